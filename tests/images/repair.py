#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Repairing the broken and hostile images of cases.txt, alone, on other bases, and two mutations in one image.

usage: repair.py [--qcow PROGRAM] [--oracle PROGRAM] [--bed PROGRAM] [--qemu-img PROGRAM]... [--seed N] [--all] [--part I/N]
                 [--only ID]... [--keep]

Each image that opens and in which check finds something:
  plan    check -r all --dry-run changes nothing, as text and as JSON
  repair  check -r all --undo ends with 0, or what repairs.txt says is left; the check after it, that of the oracle,
          and qemu-img check of every version find no error
  again   a second repair writes nothing
  guest   what an own reader (below) finds in clusters of the disk and of its snapshots is as it was, but for as many
          clusters as repairs.txt says
  leaks   check -r leaks leaves no error that was not there before, and the guest's view as it is
  undo    check --undo-apply refuses an image that has grown since, and gives the repaired one back, byte for byte
Pairs and other bases: plan, repair (with undo), again and undo, in one process for all of them (repair_bed.c). --all: every
one of them, --part I/N: one part of N. Last line: "N passed, N failed, N skipped".
"""
import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import images  # noqa: E402
from images import Wrong, be  # noqa: E402

CROSSED = ("v2", "snap", "extl2", "bm", "comp", "df", "back", "luks")
CROSSED_PART, PAIRS_PART = 20, 20
MARKED = 1 << 63


# ---- an own reader: what the clusters of the disk hold, by the specification; what is wrong is passed over ----

class Reader:
    def __init__(self, data):
        self.data = data
        self.version, self.bits, self.size = be(data, 4, 4), be(data, 20, 4), be(data, 24, 8)
        self.incompatible = be(data, 72, 8) if self.version >= 3 else 0
        self.cluster = 1 << self.bits
        self.entry = 16 if self.incompatible & 16 else 8
        self.per = self.cluster // self.entry
        self.end = (len(data) + self.cluster - 1) // self.cluster * self.cluster
        self.found = {}

    def digest(self, off, n):
        return hashlib.md5(self.data[off:off + n].ljust(n, b"\0")).digest()

    def l2_entry(self, tree, guest, raw, bitmap):
        if raw >> 62 & 1:
            x = 62 - (self.bits - 8)
            off = raw & ((1 << min(x, 56)) - 1)
            n = ((raw >> x) & ((1 << (self.bits - 8)) - 1)) * 512 + 512 - off % 512
            if not self.incompatible & 4 and off + n <= self.end:
                self.found[tree, guest] = self.digest(off, n)
            return
        off = raw & images.OFFSET
        if off == 0 or off % self.cluster or off >= self.end or self.incompatible & 4:
            return
        if self.entry == 8 and not (raw & 1 and self.version >= 3):
            self.found[tree, guest] = self.digest(off, self.cluster)
        sub = self.cluster // 32
        for i in range(32 if self.entry == 16 else 0):
            if bitmap >> i & 1 and not bitmap >> (32 + i) & 1:
                self.found[tree, guest + i * sub] = self.digest(off + i * sub, sub)

    def tree(self, tree, l1_off, n):
        for i in range(min(n, 8192)):
            l2 = be(self.data, l1_off + i * 8, 8) & images.OFFSET if l1_off + i * 8 + 8 <= len(self.data) else 0
            if l2 == 0 or l2 % self.cluster or l2 >= len(self.data):
                continue
            table = self.data[l2:l2 + self.cluster]
            if not any(table):
                continue
            for j in range(len(table) // self.entry):
                raw = be(table, j * self.entry, 8)
                bitmap = be(table, j * self.entry + 8, 8) if self.entry == 16 else 0
                if raw or bitmap:
                    self.l2_entry(tree, (i * self.per + j) * self.cluster, raw, bitmap)

    def read(self):
        d = self.data
        self.tree("disk", be(d, 40, 8), be(d, 36, 4))
        off = be(d, 64, 8)
        for _ in range(min(be(d, 60, 4), 16)):
            if off + 40 > len(d):
                break
            extra, ids, names = be(d, off + 36, 4), be(d, off + 12, 2), be(d, off + 14, 2)
            if extra > 1024 or off + 40 + extra + ids > len(d):
                break
            name = bytes(d[off + 40 + extra:off + 40 + extra + ids])
            if be(d, off, 8) % self.cluster == 0:
                self.tree(name, be(d, off, 8), be(d, off + 8, 4))
            off += (40 + extra + ids + names + 7) // 8 * 8
        return self.found


def differences(before, after):
    keys = set(before) | set(after)
    return sum(before.get(k) != after.get(k) for k in keys)


# ---- running ----

def run(argv, ok=(0,)):
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace")
    if p.returncode not in ok:
        raise Wrong("%s: exit code %d, not %s\n%s%s" % (" ".join(argv[1:]), p.returncode, ok, p.stdout[-600:], p.stderr[-600:]))
    return p


def content(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


class Expected:
    """a row of repairs.txt: how many clusters of the guest change, what is left"""

    def __init__(self, line):
        parts = [p.strip() for p in line.split("|")]
        self.id, self.n, self.left = parts[0], int(parts[1]), parts[2].split()


def ask_qemu(args, path):
    encrypted = be(content(path), 32, 4) != 0 # QEMU wants to be given the key
    for qemu in args.qemu_img if not encrypted else []:
        run([qemu, "check", "-q", "-f", "qcow2", path])


def check_clean(args, path, left):
    want = (0,) if not left else (2,)
    after = json.loads(run([args.qcow, "check", "-f", "qcow2", "--output=json", path], want).stdout)
    names = sorted({f["name"] for f in after["findings"] if f["severity"] != "note"})
    if names != sorted(left):
        raise Wrong("after the repair there is %s, not %s" % (names, left))
    if left:
        return
    run([args.oracle, "check", path])
    ask_qemu(args, path)


def repair(args, path, undo, left):
    codes = (0,) if not left else (2,)
    if os.path.exists(undo):
        os.unlink(undo)
    run([args.qcow, "check", "-q", "-f", "qcow2", "-r", "all", "--undo", undo, path], codes)
    repaired = images.digest(path)
    check_clean(args, path, left)
    run([args.qcow, "check", "-q", "-f", "qcow2", "-r", "all", path], codes)
    if images.digest(path) != repaired:
        raise Wrong("a second repair changes the image")


def refuse_longer(args, path, undo):
    size = os.path.getsize(path)
    os.truncate(path, size + 65536)
    grown = images.digest(path)
    run([args.qcow, "check", "-f", "qcow2", "--undo-apply", undo, path], (1,))
    if images.digest(path) != grown:
        raise Wrong("an undoing that is refused has changed the image")
    os.truncate(path, size)


def try_leaks(args, path, data, before, found):
    write(path, data)
    run([args.qcow, "check", "-q", "-f", "qcow2", "-r", "leaks", path], (0, 2, 3))
    after = json.loads(run([args.qcow, "check", "-f", "qcow2", "--output=json", path], (0, 2, 3)).stdout)
    if after.get("corruptions", 0) > found.get("corruptions", 0) or after.get("leaks", 0) > found.get("leaks", 0):
        raise Wrong("repairing leaks made it worse: %s, %s" % (found, after))
    if differences(before, Reader(content(path)).read()) != 0:
        raise Wrong("repairing leaks changed the guest's view")


def run_heavy(args, path, data):
    """a bomb: that it can be repaired at all, within the bounds of the machine"""
    write(path, data)
    run([args.qcow, "check", "-q", "-f", "qcow2", "-r", "all", path])
    run([args.qcow, "check", "-q", "-f", "qcow2", path])


def run_case(args, path, data, left):
    """the number of clusters that changed, or None where nothing is to be done"""
    write(path, data)
    p = run([args.qcow, "check", "-f", "qcow2", "--output=json", path], (0, 1, 2, 3))
    if p.returncode == 1:
        return None
    found = json.loads(p.stdout)
    if not found["findings"]:
        return None
    before = Reader(data).read()
    for more in ([], ["--output=json"]):
        run([args.qcow, "check", "-f", "qcow2", "-r", "all", "--dry-run", path] + more, (0, 2, 3))
    if content(path) != data:
        raise Wrong("a dry run changed the image")
    undo = path + ".undo"
    repair(args, path, undo, left)
    n = differences(before, Reader(content(path)).read())
    if os.path.exists(undo):
        refuse_longer(args, path, undo)
        run([args.qcow, "check", "-f", "qcow2", "--undo-apply", undo, path])
    if content(path) != data:
        raise Wrong("undoing does not give the image back")
    try_leaks(args, path, data, before, found)
    return n


# ---- without a process for each step ----

class Bed:
    def __init__(self, program):
        self.p = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.broken, self.clean = set(), set()  # digests: two mutations make the same image in either order

    def treat(self, args, path, data, left):
        digest = hashlib.md5(data).digest()
        if digest in self.broken:
            return
        self.broken.add(digest)
        write(path, data)
        self.p.stdin.write(path + "\n")
        self.p.stdin.flush()
        word, _, rest = self.p.stdout.readline().rstrip("\n").partition(" ")
        if word == "none":
            return
        if word != "left":
            raise Wrong(rest or "the bed has ended")
        if sorted(rest.split()) != sorted(left):
            raise Wrong("after the repair there is %s, not %s" % (rest.split(), left))
        digest = images.digest(path + ".repaired")
        if not left and digest not in self.clean:
            ask_qemu(args, path + ".repaired")
            self.clean.add(digest)


# ---- which ----

def is_heavy(case):
    return case.id.startswith("BOMB")


def select(args, cases):
    rng = random.Random(args.seed)
    light = [c for c in cases if c.verdict != "REJ" and not is_heavy(c)]
    single = [(c.id, c.base, c.mutation, c) for c in cases if c.verdict != "REJ" and (args.all or args.only or not is_heavy(c))]
    crossed = [("%s/%s" % (c.id, base), base, c.mutation, None) for c in light if c.base == "v3" for base in CROSSED]
    pairs = [("%s+%s" % (a.id, b.id), a.base, a.mutation + " " + b.mutation, None)
             for a, b in itertools.permutations(light, 2)
             if a.base == b.base and "B13c" not in (a.id, b.id) and {a.id, b.id} != {"B13", "B09"}] # granularities
    # that QEMU does not know, and refuses
    if args.only:
        return [x for x in single + crossed + pairs if x[0] in args.only]
    if not args.all:
        crossed = rng.sample(crossed, CROSSED_PART)
        pairs = rng.sample(pairs, PAIRS_PART)
    i, n = map(int, args.part.split("/"))
    return (single + crossed + pairs)[i - 1::n]


def load(name):
    with open(os.path.join(images.HERE, name)) as f:
        return [line for line in f if line.strip() and not line.startswith("#")]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--qcow", default=os.path.join(images.TOP, "build/bin/qcow"))
    p.add_argument("--oracle", default=os.path.join(images.TOP, "build/tests/oracle/oracle"))
    p.add_argument("--bed")
    p.add_argument("--part", default="1/1")
    p.add_argument("--qemu-img", action="append")
    p.add_argument("--only", action="append")
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    p.add_argument("--all", action="store_true")
    p.add_argument("--keep", action="store_true")
    p.add_argument("--print-rows", action="store_true")
    args = p.parse_args()
    args.qcow, args.oracle = os.path.abspath(args.qcow), os.path.abspath(args.oracle)
    args.bed = os.path.abspath(args.bed or os.path.join(os.path.dirname(args.oracle), "../images/repair_bed"))
    if args.qemu_img is None:
        peers = os.path.join(os.environ.get("QK_PEERS", os.path.expanduser("~/.cache/qcowkit-peers/bin")), "qemu-img")
        args.qemu_img = ["qemu-img"] + ([peers] if os.path.exists(peers) else [])
    cases = [images.Case(line) for line in load("cases.txt")]
    expected = {row.id: row for row in map(Expected, load("repairs.txt"))}
    if not shutil.which(args.qemu_img[0]):
        print("SKIP repair: no qemu-img (package qemu-utils)")
        print("0 passed, 0 failed, 1 skipped")
        return 0
    folder = tempfile.mkdtemp(prefix="qcow-repair-")
    os.chdir(folder)
    for name in ("canary", "canary.raw"):
        write(name, b"canary" * 1000)
    base_args = argparse.Namespace(qemu_img=args.qemu_img[0])
    bases = {}
    for name in images.BASES:
        images.make_base(name, os.path.join(folder, name), base_args)
        data = content(os.path.join(folder, name))
        bases[name] = (data, images.names(data))
    canaries = {name: images.digest(name) for name in ("canary", "canary.raw")}
    chosen = select(args, cases)
    bed = Bed(args.bed)
    print("repair: %d images, seed %d" % (len(chosen), args.seed))
    passed = failed = 0
    for i, (name, base, mutation, case) in enumerate(chosen):
        if i and i % 500 == 0:
            print("%d of %d: %d passed, %d failed" % (i, len(chosen), passed, failed), flush=True)
        row = expected.get(name)
        try:
            data, at = bases[base]
            try:
                broken = bytes(images.mutate(data, mutation, at))
            except KeyError:
                continue
            if case and is_heavy(case):
                run_heavy(args, os.path.join(folder, "image"), broken)
                passed += 1
                continue
            left = row.left if row else []
            if case:
                n = run_case(args, os.path.join(folder, "image"), broken, left)
            else:
                bed.treat(args, os.path.join(folder, "image"), broken, left)
            if args.print_rows and case:
                print("%-6s| %s |" % (name, n or 0))
            if case and (n or 0) != (row.n if row else 0):
                raise Wrong("%s clusters of the guest changed, not %s" % (n, row.n if row else 0))
            if any(images.digest(name) != was for name, was in canaries.items()):
                raise Wrong("a canary was changed")
            passed += 1
        except (Wrong, subprocess.CalledProcessError, ValueError) as e:
            failed += 1
            print("FAILED %s: %s\n  again: tests/images/repair.py --qcow %s --oracle %s --only %s" %
                  (name, e, args.qcow, args.oracle, name))
    if args.keep:
        print("kept: " + folder)
    else:
        shutil.rmtree(folder)
    print("%d passed, %d failed, 0 skipped" % (passed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
