#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random qemu-img command lines, valid and invalid, run by ours and by the newest QEMU on equal copies of some images.

Each sequence starts with fresh copies, and each line finds what the lines before it left. Exit code and stdout must be the same,
the words that callers look for on stderr too, nothing is on stderr where a line succeeds, and at the end all disks are identical
and clean. R27, R29, R30, R34 of doc/COMPAT.md. Left aside: what the host decides (beside.py), and where in the file clusters lie (offsets of map, ends of images).
usage: random_lines.py [--seed N] [--sequences N] [--lines N] [--trace]    --trace compares the disks behind each line
"""
import argparse, random, re, shlex, shutil, sys, tempfile
from pathlib import Path

import beside

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--sequences", type=int, default=8)
parser.add_argument("--lines", type=int, default=14)
parser.add_argument("--trace", action="store_true")
arguments = parser.parse_args()
IMAGES = """
create -q -f qcow2 a.qcow2 1M
io a.qcow2 -c 'write -q -P 1 0 200k' -c 'write -q -z 512k 64k'
create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
io b.qcow2 -c 'write -q -P 2 100k 200k'
create -q -f qcow2 -o compat=0.10,cluster_size=4k s.qcow2 512k
io s.qcow2 -c 'write -q -P 3 0 100k'
snapshot -c one s.qcow2
io s.qcow2 -c 'write -q -P 4 50k 100k'
create -q -f qcow2 -o extended_l2=on,cluster_size=16k m.qcow2 1M
bitmap --add m.qcow2 b0
io m.qcow2 -c 'write -q 10k 70k'
create -q -f raw r.raw 1M
io -f raw r.raw -c 'write -q -P 5 64k 64k'
create -q -f qcow2 -b r.raw -F raw o.qcow2
convert -c -O qcow2 a.qcow2 c.qcow2
"""
FILES = "a.qcow2 b.qcow2 s.qcow2 m.qcow2 r.raw o.qcow2 c.qcow2".split()
NEW = ["n1", "n2", "n3"]
MATCHED = ["No such file or directory", 'Failed to get shared "write" lock', "Image is not in qcow2 format", "snapshot not found",
           "No space left on device", "Can't find snapshot", "Unknown driver", "unrecognized option", "Command not found"]
n = beside.check


class Lines:
    """Makes command lines: a command's options are (name, what makes its argument or None, how often)."""

    def __init__(self, rng):
        self.rng = rng
        some = self.some
        fmt = some("qcow2", "qcow2", "raw", "nope")
        cache = some("none", "writeback", "unsafe", "directsync", "bad")
        out = some("json", "json", "human", "xml")
        size = some("1M", "2M", "512k", "3M", "1000", "0", "x", "1.5M", "-1", "4097")
        change = some("2M", "+512", "-64k", "+1M", "1M", "300k", "x", "0", "-1000", "+1000")
        snap = some("one", "1", "two", "nope", "2")
        mark = some("b0", "b1", "nope")
        made = some("cluster_size=4k", "cluster_size=64k,lazy_refcounts=on", "compat=0.10", "refcount_bits=1", "extended_l2=on",
                    "preallocation=metadata", "preallocation=full", "cluster_size=1000", "nope=1", "compression_type=zstd", "size=1M",
                    "backing_file=a.qcow2", "backing_file=a.qcow2,backing_fmt=qcow2", "", "=", "compat", "lazy_refcounts")
        amended = some("compat=0.10", "compat=1.1", "refcount_bits=8", "refcount_bits=16", "lazy_refcounts=on", "size=2M", "size=256k",
                       "cluster_size=4k", "nope=1", "backing_file=x", "compat=2", "refcount_bits=3", "data_file_raw=on")
        old, new, any_file = self.old, self.new, self.any_file
        U = ("-U", None, .1)
        q = ("-q", None, .1)
        p = ("-p", None, .15)
        f = ("-f", fmt, .2)
        self.table = {
            "info": ([f, U, ("--output", out, .5), ("--backing-chain", None, .3), ("--limits", None, .1), ("-t", cache, .1)], [any_file]),
            "check": ([f, U, ("--output", out, .4), q, ("-r", some("leaks", "all", "bad"), .2), ("-T", cache, .1)], [any_file]),
            "map": ([f, U, ("--output", out, .6), ("-s", size, .2), ("-l", size, .2)], [any_file]),
            "measure": ([f, U, ("--output", out, .5), ("-O", fmt, .7), ("--size", size, .3), ("-o", made, .3), ("-l", snap, .1)], [any_file]),
            "create": ([("-f", fmt, .8), ("-o", made, .5), ("-b", old, .3), ("-F", fmt, .4), ("-u", None, .2), q], [new, size]),
            "convert": ([f, ("-O", fmt, .7), ("-o", made, .3), ("-c", None, .2), p, q, ("-n", None, .2), ("-S", size, .15), ("-l", snap, .15),
                         ("-B", old, .15), ("-F", fmt, .1), ("-m", some("1", "4", "17"), .1), ("-W", None, .1), ("-t", cache, .1),
                         ("-T", cache, .1), ("--bitmaps", None, .1), ("--target-is-zero", None, .05), ("-C", None, .1)], [any_file, new]),
            "resize": ([f, ("--shrink", None, .4), q, ("--preallocation", some("off", "metadata", "falloc", "full", "bad"), .2)], [any_file, change]),
            "rebase": ([f, ("-b", self.base, .8), ("-F", fmt, .6), ("-u", None, .3), p, q, ("-c", None, .1), ("-t", cache, .1)], [any_file]),
            "commit": ([f, ("-d", None, .3), ("-b", old, .2), p, q, ("-t", cache, .1), ("-r", size, .1)], [any_file]),
            "compare": ([f, ("-F", fmt, .2), ("-s", None, .3), p, q, U, ("-T", cache, .1)], [any_file, any_file]),
            "snapshot": ([("-l", None, .2), ("-c", snap, .4), ("-a", snap, .2), ("-d", snap, .2), q, U, f], [any_file]),
            "bitmap": ([("--add", None, .4), ("--remove", None, .2), ("--clear", None, .2), ("--enable", None, .2), ("--disable", None, .2),
                        ("--merge", mark, .3), ("-g", size, .15), ("-b", old, .1), ("-F", fmt, .1), f], [any_file, mark]),
            "amend": ([("-o", amended, .9), f, p, q, ("-t", cache, .1)], [any_file]),
            "dd": ([f, ("-O", fmt, .4), U], [lambda: "if=" + self.any_file(), lambda: "of=" + self.new(),
                                            some("bs=64k", "bs=1M", "bs=x", "count=3", "bs=1000"), some("skip=1", "count=2", "nope=1", "count=x")]),
        }
        self.commands = sorted(self.table)

    def some(self, *words):
        return lambda: self.rng.choice(words)

    def old(self):
        return self.rng.choice(FILES)

    def new(self):
        return self.rng.choice(NEW * 4 + ["/nowhere/x", "gone"])

    def base(self):
        return self.rng.choice(FILES + ["", "gone"])

    def any_file(self):
        return self.rng.choice(FILES * 4 + NEW * 3 + ["gone", "./a.qcow2", "file:b.qcow2", "."])

    def line(self):
        rng = self.rng
        command = rng.choice(self.commands)
        options, operands = self.table[command]
        parts = [[x()] for x in operands]
        if rng.random() < .04:
            parts.pop()
        if rng.random() < .02:
            parts.append([self.any_file()])
        for name, argument, often in options:
            if rng.random() < often * .7:
                parts.insert(rng.randrange(len(parts) + 1), self.option(name, argument))
        if rng.random() < .02:
            parts.append([rng.choice(["-Z", "--nonsense", "--", "--output"])])
        words = sum(parts, [])
        files = [x.removeprefix("if=") for x in words]
        if any(x in FILES + NEW and x != "r.raw" or ":" in x or "/" in x for x in files):
            self.no_raw(command, words)
        return shlex.join(["qemu-img", command] + words)

    @staticmethod
    def no_raw(command, words):
        """The bytes of a qcow2 file are each program's own: none is read as a raw disk."""
        for i, word in enumerate(words):
            if word in ("-fraw", "-Fraw") and not (command == "create" and word[1] == "f"):
                words[i] = word[:2] + "qcow2"
            elif word == "raw" and words[i - 1] in ("-f", "-F") and not (command == "create" and words[i - 1] == "-f"):
                words[i] = "qcow2"

    def option(self, name, argument):
        if argument is None:
            return [name]
        value = argument()
        if name.startswith("--") and self.rng.random() < .5:
            return [name + "=" + value]
        return [name + value] if not name.startswith("--") and value and self.rng.random() < .1 else [name, value]


PLACES = [(re.compile(p), r) for p, r in [
    (r'("offset": )\d+', r"\1"), (r'("image-end-offset": )\d+', r"\1"), (r"(Image end offset: )\d+", r"\1"),
    (r'\s*"fragmented-clusters": \d+,', ""), (r"[\d.]+(% fragmented)", r"\1"),
    (r"(file length: ).*", r"\1"), (r"(0x[0-9a-f]+\s+0x[0-9a-f]+\s+)0x[0-9a-f]+", r"\1"), (r"    \(\d+\.\d\d/100%\)\r", ""),
    (r"\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d", "DATE"), (r'("filename": "[^"]*",\n\s*"format": "file",\n)', r"\1"),
    (r'("virtual-size": )\d+(,\n\s*"filename": "[^"]*",\n\s*"format": "file")', r"\1\2")]]


def plain(text):
    text = beside.plain(text)
    for pattern, to in PLACES:
        text = pattern.sub(to, text)
    return text


# What ours finds before it opens any file, where QEMU first misses one.
FIRST = ["Granularity must be", "does not support bitmaps", "Invalid parameter", "Unknown file format", "invalid option list",
         "Compression not supported", "bitmaps are about the disk", "Invalid format name", "they do not go together",
         "Backing format cannot be used"]


def difference(got, want):
    """Why the two are not alike, or None."""
    if got.returncode != want.returncode:
        return "another status"
    out = [plain(r.stdout) for r in (got, want)]
    if got.returncode != 0:  # QEMU ends the line of progress that it has not begun
        out = [x.strip() for x in out]
    if out[0] != out[1]:
        return "another stdout"
    if got.returncode == 0 and got.stderr and not want.stderr:
        return "something on stderr"
    if got.returncode != 0:
        for word in MATCHED:
            if word in want.stderr and word not in got.stderr and not any(x in got.stderr for x in FIRST):
                return f"the words {word!r} are missing"
    return None


def restore(ours, theirs, names):
    """A line that fails leaves what there was; QEMU's may have emptied or removed its target."""
    for name in names:
        if (ours / name).exists():
            shutil.copy(ours / name, theirs / name)
        else:
            (theirs / name).unlink(missing_ok=True)


def sequence(root, number, lines):
    files = [root / "in" / x for x in FILES]
    ours = beside.folder(root / f"{number}/ours", beside.ours, files)
    theirs = beside.folder(root / f"{number}/theirs", beside.theirs, files)
    told = []
    for _ in range(arguments.lines):
        line = lines.line()
        told.append(line)
        got, want = beside.run(ours, line), beside.run(theirs, line)
        if want.returncode < 0:  # QEMU falls over an assertion of its own
            return
        why = difference(got, want)
        if want.returncode != 0:
            restore(ours, theirs, NEW)
        if " rebase " in line:  # a version 2 image from no backing file: QEMU's shows the new one where it held nothing
            restore(ours, theirs, ["s.qcow2"])
        if why is None and arguments.trace:
            wrong = beside.same_disks(ours, theirs)
            why = "the disks differ: " + wrong if wrong else None
        if why:
            history = "\n".join(told)
            n(False, f"sequence {number}: {line}", f"{history}\n{why}\nours: {got.returncode}\n{got.stdout}{got.stderr}\n"
              f"QEMU: {want.returncode}\n{want.stdout}{want.stderr}\n  again: random_lines.py --seed {arguments.seed} --trace")
            return
        beside.callers.n_ok += 1
    wrong = beside.same_disks(ours, theirs)
    n(not wrong, f"sequence {number}: the same disks are left", "\n".join(told) + "\n" + wrong)


def main():
    beside.need_newest()
    with tempfile.TemporaryDirectory(prefix="qcow-random.") as folder:
        root = Path(folder)
        beside.make(root / "in", IMAGES)
        for number in range(arguments.sequences):
            # each sequence can be made alone
            sequence(root, number, Lines(random.Random(arguments.seed * 1000003 + number)))
    beside.finish()


main()
