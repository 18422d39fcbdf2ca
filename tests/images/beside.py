#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""qcow check beside qemu-img check, on images that are well.

usage: beside.py [--qcow PROGRAM] [--qemu DIR] [--seed N] [--images N]

Random images by qemu-img and qemu-io: every cluster size, refcount width, version and compression, extended
L2, snapshots taken, applied and deleted, bitmaps, discards, zeros, compressed and plain writes. The
corruptions, leaks and statistics must be those of qemu-img check, and the personality's output, for people
and for programs, must be the same byte for byte. Last line: "N passed, N failed, N skipped".
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run(argv, ok=(0,)):
    r = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ok is not None and r.returncode not in ok:
        raise RuntimeError("exit code %d of %s\n%s" % (r.returncode, " ".join(argv), r.stderr))
    return r


def create_options(rng, cluster_bits):
    options = ["cluster_size=%d" % (1 << cluster_bits)]
    if rng.random() < 0.25:
        return options + ["compat=0.10"], 16
    width = rng.choice([1, 2, 4, 8, 16, 16, 32, 64])
    options.append("refcount_bits=%d" % width)
    options.append("compression_type=" + rng.choice(["zlib", "zstd"]))
    if cluster_bits >= 14 and rng.random() < 0.3:
        options.append("extended_l2=on")
    if rng.random() < 0.2:
        options.append("lazy_refcounts=on")
    return options, width


def io_command(rng, size, cluster):
    off = rng.randrange(size // 512) * 512
    length = min(size - off, rng.choice([512, 4096, cluster, 3 * cluster, 99840]))
    what = rng.choice(["write -q -P 7 %d %d", "write -q -z %d %d", "write -q -z -u %d %d",
                       "write -q -c -P 9 %d %d", "discard -q %d %d"])
    if " -c " in what:
        off = off // cluster * cluster
        length = min(cluster, size - off)
    return what % (off, length)


def make_image(rng, args, path):
    bits = rng.choice([9, 10, 11, 12, 13, 14, 15, 16, 16, 17, 18, 19, 20, 21])
    options, width = create_options(rng, bits)
    sizes = [1 << 20, (5 << 20) + 512] if bits < 12 else [64 << 20, (1 << 30) + 1024, 300 << 20]
    size = rng.choice(sizes)
    run([args.img, "create", "-f", "qcow2", "-o", ",".join(options), path, str(size)])
    for turn in range(rng.randrange(5)):
        commands = []
        for _ in range(rng.randrange(1, 16)):
            commands += ["-c", io_command(rng, size, 1 << bits)]
        run([args.io, "-f", "qcow2"] + commands + [path], ok=None)
        name = "s%d" % turn
        if width > 1 and rng.random() < 0.6:
            # narrow refcounts run full: then there is no snapshot
            made = run([args.img, "snapshot", "-c", name, path], ok=None).returncode == 0
            if made and rng.random() < 0.3:
                run([args.img, "snapshot", rng.choice(["-a", "-d"]), name, path], ok=None)
        if "compat=0.10" not in options and rng.random() < 0.3:
            run([args.img, "bitmap", "--add", path, "b%d" % turn], ok=None)
    return "%s, %d bytes" % (",".join(options), size)


def compare(args, path, more):
    theirs = json.loads(run([args.img, "check", "--output=json", path], ok=(0, 2, 3)).stdout)
    if theirs.get("corruptions") or theirs["check-errors"]:
        return None # QEMU damaged it itself
    ours = json.loads(run([args.qcow, "check", "--output=json"] + more + [path], ok=(0, 2, 3)).stdout)
    ours.pop("findings")
    ours.pop("notes", None)
    return None if ours == theirs else "ours %s\n  QEMU's %s" % (ours, theirs)


def compare_personality(args, path):
    for more in ([], ["--output=json"]):
        said = [run([program, "check"] + more + [path], ok=None) for program in (args.personality, args.img)]
        ours, theirs = [(r.returncode, r.stdout, r.stderr) for r in said]
        if theirs[0] in (0, 3) and ours != theirs:
            return "the personality says %s\n  QEMU says %s" % (ours, theirs)
    return None


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--qcow", default=os.path.join(TOP, "build/bin/qcow"))
    p.add_argument("--qemu", default="")
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    p.add_argument("--images", type=int, default=60)
    args = p.parse_args()
    args.img = os.path.join(args.qemu, "qemu-img")
    args.personality = os.path.join(os.path.dirname(args.qcow), "../compat/qemu-img")
    args.io = os.path.join(args.qemu, "qemu-io")
    if not shutil.which(args.img) or not shutil.which(args.io):
        print("SKIP beside: no qemu-img or qemu-io (package qemu-utils)")
        print("0 passed, 0 failed, %d skipped" % args.images)
        return 0
    folder = tempfile.mkdtemp(prefix="qcow-beside-")
    path = os.path.join(folder, "image.qcow2")
    failed = 0
    for n in range(args.images):
        rng = random.Random(args.seed + n)
        what = make_image(rng, args, path)
        why = compare(args, path, []) or compare(args, path, ["--data"]) or \
            compare_personality(args, path)
        if why:
            failed += 1
            print("FAIL %s\n  %s\n  again: tests/images/beside.py --qcow %s --seed %d --images 1" %
                  (what, why, args.qcow, args.seed + n))
    shutil.rmtree(folder)
    print("seed %d" % args.seed)
    print("%d passed, %d failed, 0 skipped" % (args.images - failed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
