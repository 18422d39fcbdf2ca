#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Mutated images read by us, by the oracle and by QEMU: what is not equal must have a reason in fuzz/differ/known.c.

usage: readers.py [--differ PROGRAM] [--qemu FOLDER]... [--seed N] [--seconds N] [--images N]

Runs fuzz/differ for N seconds (30) in all, a part of it with each QEMU. QEMU runs as nobody without a network, and
what images name are files of ours that must stay as they are. Last line: "N passed, N failed, N skipped": images.
"""
import argparse
import glob
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import images  # noqa: E402
import peers  # noqa: E402


def run(args, qemu_io, work, seconds):
    """(images read, images that failed) with one QEMU, or with the oracle alone"""
    bases = sorted(glob.glob(os.path.join(images.TOP, "fuzz/corpus/image/seed-*")))
    argv = [args.differ, "--seed", str(args.seed), "--seconds", str(seconds), "--work", work]
    argv += ["--images", str(args.images)] if args.images else []
    r = subprocess.run(argv + bases + (["--"] + qemu_io if qemu_io else []), stdin=subprocess.DEVNULL,
                       capture_output=True, timeout=seconds + 120)
    said = (r.stdout + r.stderr).decode(errors="backslashreplace")
    print(re.sub(r"again: .*? --seed (\d+)", r"again: tests/images/readers.py --differ %s --seed \1" % args.differ, said))
    found = re.search(r"^(\d+) images,", said, re.M)
    bad = re.search(r"^(\d+) images failed", said, re.M)
    bad = int(bad.group(1)) if bad else 0
    if not found or (r.returncode != 0 and not bad):
        print("FAILED differ ends with %d" % r.returncode)
        return 0, 1
    return int(found.group(1)) - bad, bad


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--differ", default=os.path.join(images.TOP, "build/fuzz/differ"))
    p.add_argument("--qemu", action="append")
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    p.add_argument("--seconds", type=int, default=30)
    p.add_argument("--images", type=int)
    args = p.parse_args()
    place = tempfile.mkdtemp(prefix="qcow-readers-")
    os.chmod(place, 0o755)
    passed = failed = skipped = 0
    try:
        programs = [peers.readable_copy(folder, n, place, "qemu-io")
                    for n, folder in enumerate(args.qemu or peers.default_qemus())]
        if not programs:
            print("SKIP readers: no qemu-io (package qemu-utils)")
            skipped = 1
        for n, program in enumerate(programs or [None]):
            work = os.path.join(place, "work%d" % n)
            os.mkdir(work)
            os.chmod(work, 0o755)
            good, bad = run(args, program, work, max(1, args.seconds // max(1, len(programs))))
            passed, failed = passed + good, failed + bad
    finally:
        shutil.rmtree(place)
    print("seed %d" % args.seed)
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
