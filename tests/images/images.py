#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Broken and hostile images: what opening, checking and dumping them says.

usage: images.py [--qcow PROGRAM] [--qemu-img PROGRAM] [--seed N] [--all] [--only ID]... [--keep] [--unbounded]

Each row of cases.txt is a base image made by qemu-img and a mutation of it. For each:
  open    info succeeds, or for REJ fails with a message that is no more than a sentence and a hint
  check   verdict, exit code and findings are those of the row
  beside  totals compare with those of qemu-img check as the row says
  vet     refuses what check finds damaged, and what is marked corrupt, and nothing else
  sandbox with --untrusted info, check, map, vet and convert say and write the same
  dump    is JSON
  bounds  each command takes less than a second of processor time (a bomb's convert 5), and info less than 8 MiB over
          what the program takes by itself, check and vet 64 (not with --unbounded: for builds with
          sanitizers); the file is not changed, nor are the canaries that bases name
  crossed each case of base v3 on nine other bases: the same class of verdict, and vet and info agree; a part of
          them by the seed, all with --all
  table   each finding of <qcowkit/findings.h> has a case
Last line: "N passed, N failed, N skipped". Status 1 where something failed.
"""
import argparse
import collections
import hashlib
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import measured  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
OFFSET = 0x00FFFFFFFFFFFE00
# QEMU needs minutes for these; the row's "-" says so
SLOW_FOR_QEMU = ("BOMB",)

BASES = {
    "v3": "create -q -f qcow2 F 64M; io F write -q -P 1 0 64k",
    "v2": "create -q -f qcow2 -o compat=0.10 F 64M; io F write -q -P 1 0 64k",
    "snap": "create -q -f qcow2 F 64M; io F write -q -P 1 0 64k; snapshot -c s1 F; "
            "io F write -q -P 2 0 64k; snapshot -c s2 F",
    "bm": "create -q -f qcow2 F 64M; io F write -q -P 1 0 64k; bitmap --add F b0; bitmap --add F b1; "
          "io F write -q -P 1 64k 64k",
    "comp": "create -q -f qcow2 F 64M; io F write -q -c -P 1 0 64k & write -q -c -P 3 64k 64k",
    "zstd": "create -q -f qcow2 -o compression_type=zstd F 64M; "
            "io F write -q -c -P 1 0 64k & write -q -c -P 3 64k 64k",
    "luks": "create -q -f qcow2 --object secret,id=s,data=abc "
            "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=200 F 64M",
    "extl2": "create -q -f qcow2 -o extended_l2=on F 64M; io F write -q -P 1 0 4k",
    "back": "create -q -f qcow2 -b canary -F raw F 64M; io F write -q -P 1 0 64k",
    "df": "create -q -f qcow2 -o data_file=canary.raw F 64M; io F write -q -P 1 0 64k",
}


# MiB over what the program takes by itself
BOUNDS = {"info": 8, "check": 64, "vet": 64, "dump": 64, "convert": 40}

# What a case of base v3 is tried on too: its class must be the same, with other findings.
CROSSED_PART = 120
CROSSED = ("v2", "back", "df", "luks", "comp", "zstd", "extl2", "snap", "bm")
# but where the base has a reason to differ
EXCEPT = {}
for reason, rows in (
    ("feature bits are 64 bits in one: the base's own go, or v2 has none there",
     "H15/v2:OK H15/df:CHK H15/zstd:REJ H15/extl2:CHK H16/zstd:REJ H18/v2:OK H20/v2:OK H18/bm:OK H17/bm:LEAK"),
    ("an image with a data file has no snapshots, no refcounts of its data, and maps offset 0",
     "H11b/df:REJ H11c/df:REJ H12b/df:REJ T07/df:OK T07b/df:OK T12/df:CHK T12b/df:CHK T18c/df:OK T18d/df:OK "
     "T27/df:OK T27b/df:OK T28/df:OK"),
    ("nothing is written in this base: its first L2 table would be the header, and clusters 4 and 5 are key material",
     "T03d/luks:CHK T06/luks:OK T07/luks:REJ T07b/luks:REJ T08/luks:REJ T09/luks:REJ T10/luks:REJ T10b/luks:REJ "
     "T11/luks:REJ T12/luks:REJ T12b/luks:REJ T12c/luks:REJ T12d/luks:REJ T18b/luks:CHK T24/luks:LEAK T27/luks:LEAK "
     "T28/luks:LEAK"),
    ("clusters 4 to 6 are a snapshot's, with refcount 2; more lies behind the cut",
     "T03d/snap:CHK T12/snap:CHK T12b/snap:CHK T18b/snap:CHK T24/snap:LEAK T27/snap:LEAK T28/snap:LEAK T18b/bm:CHK"),
    ("version 2 and extended entries have no zero flag; an entry of the latter has 16 bytes",
     "T12b/v2:CHK T12b/extl2:CHK T12c/extl2:OK T12d/extl2:OK"),
    ("two compressed clusters lie in one host cluster, which no entry calls its own",
     "T12b/comp:CHK T12b/zstd:CHK T27/comp:OK T27/zstd:OK T28/comp:LEAK T28/zstd:LEAK"),
):
    for row in rows.split():
        EXCEPT[tuple(row.split(":")[0].split("/"))] = row.split(":")[1]


class Wrong(Exception):
    pass


# ---- making images ----

def make_base(name, path, args):
    io = os.path.join(os.path.dirname(args.qemu_img), "qemu-io") if "/" in args.qemu_img else "qemu-io"
    for step in BASES[name].split(";"):
        words = [path if w == "F" else w for w in step.split()]
        if words[0] == "io":
            argv = [io, "-f", "qcow2"]
            for command in " ".join(words[2:]).split(" & "):
                argv += ["-c", command]
            argv.append(path)
        elif words[0] == "keyio":
            argv = [io, "--object", "secret,id=s,data=abc", "--image-opts", "-c", " ".join(words[2:]),
                    "driver=qcow2,encrypt.key-secret=s,file.filename=" + path]
        else:
            argv = [args.qemu_img] + words
        # QEMU measures its own speed for LUKS, and gives up where the machine is too busy to tell
        for attempt in range(20 if name == "luks" else 1):
            made = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if made.returncode == 0:
                break
            time.sleep(0.1 * attempt)
        else:
            raise RuntimeError("%s\n%s" % (" ".join(argv), made.stderr))


def be(data, off, n):
    return int.from_bytes(data[off:off + n], "big")


def names(data):
    """where the structures of a base are"""
    at = {"RT": be(data, 48, 8), "L1": be(data, 40, 8), "SN": be(data, 64, 8)}
    at["RB"] = be(data, at["RT"], 8)
    at["L2"] = be(data, at["L1"], 8) & OFFSET
    entry = be(data, at["L2"], 8)
    if entry >> 62 & 1:
        at["COMP"] = entry & ((1 << 54) - 1)
    else:
        at["DATA"] = entry & OFFSET
    if at["SN"]:
        at["SL1"] = be(data, at["SN"], 8)
        at["SL2"] = be(data, at["SL1"], 8) & OFFSET
    off = be(data, 100, 4) if be(data, 4, 4) == 3 else 72
    while be(data, off, 4) != 0:
        if be(data, off, 4) == 0x23852875:
            at["BEXT"] = off + 8
            at["BDIR"] = be(data, off + 24, 8)
            at["BTAB"] = be(data, at["BDIR"], 8)
        if be(data, off, 4) == 0x0537be77:
            at["LEXT"] = off + 8
            at["LUKS"] = be(data, off + 8, 8)
        off += 8 + (be(data, off + 4, 4) + 7) // 8 * 8
    return at


def number(text, at):
    return sum(at[word] if word in at else int(word, 0) for word in text.split("+"))


def put(data, off, new):
    if off + len(new) > len(data):
        data.extend(bytes(off + len(new) - len(data)))
    data[off:off + len(new)] = new


def snapshot_table(l1_off, n):
    entry = struct.pack(">QIHHIIQII", l1_off, 1, 1, 1, 0, 0, 0, 0, 16) + bytes(16) + b"1s"
    return (entry + bytes(-len(entry) % 8)) * n


def bitmap_directory(table_off, n):
    entry = table_off + struct.pack(">IIBBHI", 1, 0, 1, 16, 400, 0)
    return b"".join(entry + b"%0400d" % i for i in range(n))


def mutate(data, mutation, at):
    data = bytearray(data)
    for word in mutation.split():
        what, _, rest = word.partition(":")
        if what == "cut":
            n = number(rest, at)
            data = data[:n] + bytes(max(0, n - len(data)))
        elif what == "fill":
            off, n, byte = [number(x, at) for x in rest.split(",")]
            put(data, off, bytes([byte]) * n)
        elif what == "repeat":
            off, value, n = [number(x, at) for x in rest.split(",")]
            put(data, off, value.to_bytes(8, "big") * n)
        elif what == "snaps":
            off, n = [number(x, at) for x in rest.split(",")]
            put(data, off, snapshot_table(at["L1"], n))
        elif what == "bitmaps":
            off, n = [number(x, at) for x in rest.split(",")]
            directory = bitmap_directory(data[at["BDIR"]:at["BDIR"] + 8], n)
            put(data, at["BEXT"], struct.pack(">IIQQ", n, 0, len(directory), off))
            put(data, off, directory)
        else:
            value, n = rest.split("/")
            put(data, number(what, at), number(value, at).to_bytes(int(n), "big"))
    return data


# ---- running ----

class Run:
    """exit code, output in two files until the next run, and what it cost"""

    helper = None

    def __init__(self, argv, folder):
        self.out = os.path.join(folder, "out")
        self.err = os.path.join(folder, "err")
        got = measured.run(Run.helper, argv, self.out, self.err)
        self.code, self.kib, self.seconds = got.code, got.kib, got.seconds
        self.what = " ".join(argv[1:-1])
        if self.code >= 128:
            raise Wrong("%s: killed by signal %d\n%s" % (self.what, self.code - 128, self.message()))

    def message(self):
        with open(self.err, errors="replace") as f:
            return f.read(2000)

    def json(self):
        with open(self.out) as f:
            return json.load(f)


def totals(run):
    if run.code not in (0, 2, 3):
        return (run.code,)
    j = run.json()
    return (run.code, j.get("corruptions", 0), j.get("leaks", 0))


def in_child(work):
    """do something big in a process of its own"""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1] != 0:
        raise Wrong("the image cannot be made")


def findings_of(run):
    """names and numbers in the lines of check"""
    got = collections.Counter()
    for path in (run.out, run.err):
        with open(path, errors="replace") as f:
            for line in f:
                words = line.split(" ", 2)
                if words[0] in ("ERROR", "LEAK", "NOTE") and words[1].endswith(":"):
                    got[words[1][:-1]] += 1
    return got


class Case:
    def __init__(self, line):
        parts = [p.strip() for p in line.split("|")]
        self.id, self.base, self.mutation, self.verdict, self.beside, findings = parts
        self.verdict, _, only = self.verdict.partition(" ")
        self.read_only = only == "RO"
        self.findings = collections.Counter()
        for word in findings.split():
            name, _, n = word.partition(":")
            self.findings[name] = int(n or 1)


def bounded(run, limits, seconds=1.0):
    """within the bound of its command over what the empty program takes"""
    if limits is None:
        return run
    limit_kib = limits[0] + limits[1][run.what.split()[0]] * 1024
    if run.seconds > seconds:
        raise Wrong("%s: %.2f s of processor time" % (run.what, run.seconds))
    if run.kib > limit_kib:
        raise Wrong("%s: %d KiB of memory, over %d" % (run.what, run.kib, limit_kib))
    return run


def check_open(case, args, path, folder, limit):
    info = bounded(Run([args.qcow, "info", "-f", "qcow2", path], folder), limit)
    said = info.message()
    if case.verdict == "REJ" and info.code == 0:
        raise Wrong("info: the image opens")
    # info shows snapshots and bitmaps: it may say that their tables are bad
    if info.code != 0 and case.verdict not in ("REJ", "CHK"):
        raise Wrong("info: exit code %d for %s\n%s" % (info.code, case.verdict, said))
    if info.code != 0 and (not said.startswith("qcow: ") or said.count("\n") > 2):
        raise Wrong("info: not a sentence: %r" % said)


def check_dump(args, path, folder, limit):
    dump = bounded(Run([args.qcow, "dump", "-f", "qcow2", path], folder), limit, 5.0)
    if dump.code != 0:
        raise Wrong("dump: exit code %d\n%s" % (dump.code, dump.message()))
    # a dump of 100 MB is the same text a million times
    if os.path.getsize(dump.out) < 1 << 20 and len(dump.json()["structures"]) == 0:
        raise Wrong("dump: no structures")


def check_check(case, args, path, folder, limit):
    argv = [args.qcow, "check", "-f", "qcow2"]
    argv += ["--data"] if case.base in ("comp", "zstd") else []
    plain = bounded(Run(argv + ["-q", path], folder), limit)
    want = {"REJ": 1, "CHK": 2, "LEAK": 3, "NOTE": 0, "OK": 0}[case.verdict]
    if plain.code != want:
        raise Wrong("check: exit code %d, not %d\n%s" % (plain.code, want, plain.message()))
    if case.verdict == "REJ":
        return
    got = findings_of(Run(argv + ["--max-findings=0", path], folder))
    if got != case.findings:
        raise Wrong("check: found %s\n  instead of %s" % (dict(got), dict(case.findings)))
    ours = totals(Run(argv + ["--output=json", path], folder))
    if not case.id.startswith(SLOW_FOR_QEMU):
        check_beside(case, args, path, folder, ours)


def check_vet(case, args, path, folder, limit):
    allow = ["--allow-data-file"] if case.base == "df" else []
    run = bounded(Run([args.qcow, "vet", "--output=json"] + allow + [path], folder), limit)
    marked = case.findings["CORRUPT_BIT"] > 0
    # streams are data: it decodes none
    damaged = case.verdict == "CHK" and set(case.findings) != {"COMPRESSED_STREAM"}
    want = 2 if case.verdict == "REJ" or damaged or marked else 0
    if run.code != want:
        raise Wrong("vet: exit code %d, not %d\n%s" % (run.code, want, run.message()))
    verdict = run.json()
    if case.verdict != "REJ" and verdict["read-only-at-most"] != case.read_only:
        raise Wrong("vet: read-only at most: %s" % verdict["read-only-at-most"])
    if verdict["ok"] != (want == 0):
        raise Wrong("vet: says ok: %s" % verdict["ok"])
    kinds = {refusal["kind"] for refusal in verdict["refused"]}
    right = ({"header"} if case.verdict == "REJ" else set()) | ({"finding"} if damaged else set()) | \
        ({"policy"} if marked else set())
    if kinds != right:
        raise Wrong("vet: refuses by %s, not by %s" % (sorted(kinds), sorted(right)))


def check_bombs(case, args, path, folder, limit):
    """a disk that claims a million times what the file holds"""
    target = os.path.join(folder, "target")
    run = bounded(Run([args.qcow, "convert", "-f", "qcow2", "-O", "raw", path, target], folder), limit, 5.0)
    if run.code not in (0, 1):
        raise Wrong("convert: exit code %d\n%s" % (run.code, run.message()))
    if os.path.exists(target):
        os.unlink(target)


def check_crossed(case, base, bases, limit, args, folder):
    """the mutation of a case on another base: the class of the verdict, and that vet and info agree with it"""
    path = os.path.join(folder, case.id + "-" + base + ".qcow2")
    data, at = bases[base]
    with open(path, "wb") as f:
        f.write(mutate(data, case.mutation, at))
    before = digest(path)
    want = EXCEPT.get((case.id, base), case.verdict)
    info = bounded(Run([args.qcow, "info", "-f", "qcow2", "--output=json", path], folder), limit)
    check = bounded(Run([args.qcow, "check", "-f", "qcow2", "-q", path], folder), limit)
    code = check.code
    vet = bounded(Run([args.qcow, "vet", "--output=json", "--allow-backing", "--allow-data-file", path], folder), limit)
    got = {1: "REJ", 2: "CHK", 3: "LEAK", 0: "OK"}.get(code, str(code))
    if got != {"NOTE": "OK"}.get(want, want):
        raise Wrong("%s: check says %s" % (base, got))
    if (want == "REJ") != (info.code != 0) and want not in ("CHK",):
        raise Wrong("%s: info: exit code %d" % (base, info.code))
    if vet.json()["ok"] != (want in ("OK", "LEAK") or want == "NOTE" and case.findings["CORRUPT_BIT"] == 0):
        raise Wrong("%s: vet says ok: %s" % (base, vet.json()["ok"]))
    if digest(path) != before:
        raise Wrong("%s: the image was changed" % base)
    if not args.keep:
        os.unlink(path)


def said_by(argv, folder):
    run = Run(argv, folder)
    with open(run.err, "rb") as err:
        said = [run.code, digest(run.out), err.read(4000)]
    target = os.path.join(folder, "target")
    if os.path.exists(target):
        said.append(digest(target))
        os.unlink(target)
    return said


def check_untrusted(case, args, path, folder):
    target = os.path.join(folder, "target")
    big = case.id.startswith("BOMB") # the disk that it maps is the same cluster a million times
    for words, more in ((["info", "-f", "qcow2"], []), (["check", "-f", "qcow2"], []), (["map", "--output=json", "--max-output=1000"], []),
                        (["vet"], []), (["convert", "-f", "qcow2", "-O", "raw"], [target])):
        if big and words[0] == "convert":
            continue
        plain = said_by([args.qcow] + words + [path] + more, folder)
        inside = said_by([args.qcow] + words + ["--untrusted", path] + more, folder)
        if plain != inside:
            raise Wrong("%s --untrusted: %s\n  instead of %s" % (words[0], inside, plain))


def check_beside(case, args, path, folder, ours):
    theirs = totals(Run([args.qemu_img, "check", "-f", "qcow2", "--output=json", path], folder))
    how = "=" if theirs == ours else "~" if theirs[0] == ours[0] else "-"
    if how != case.beside:
        raise Wrong("beside qemu-img check: %s, ours %s: '%s', not '%s'" %
                    (theirs, ours, how, case.beside))


def digest(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while True:
            piece = f.read(1 << 20)
            if not piece:
                return h.digest()
            h.update(piece)


def write_broken(case, bases, path):
    data, at = bases[case.base]
    with open(path, "wb") as f:
        f.write(mutate(data, case.mutation, at))


def run_case(case, bases, limit, args, folder):
    path = os.path.join(folder, case.id + ".qcow2")
    in_child(lambda: write_broken(case, bases, path))
    before = digest(path)
    check_open(case, args, path, folder, limit)
    check_check(case, args, path, folder, limit)
    check_vet(case, args, path, folder, limit)
    if case.base != "df": # whose data file it does not open
        check_untrusted(case, args, path, folder)
    if case.id.startswith("BOMB"):
        check_bombs(case, args, path, folder, limit)
    if case.verdict != "REJ":
        check_dump(args, path, folder, limit)
    if digest(path) != before:
        raise Wrong("the image was changed")
    if not args.keep:
        os.unlink(path)


# no image can have it: a read of the host fails (tests/unit/api/scenario.c, tests/unit/engine/share_test.c)
NO_IMAGE = {"TABLE_READ_FAILED"}


def uncovered(cases):
    """findings that no case has"""
    with open(os.path.join(TOP, "include/qcowkit/findings.h")) as f:
        names = set(re.findall(r"\bX\(\d+, (\w+),", f.read()))
    return sorted(names - NO_IMAGE - {name for case in cases for name in case.findings})


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--qcow", default=os.path.join(TOP, "build/bin/qcow"))
    p.add_argument("--qemu-img", default="qemu-img")
    p.add_argument("--only", action="append")
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    p.add_argument("--all", action="store_true")
    p.add_argument("--keep", action="store_true")
    p.add_argument("--unbounded", action="store_true")
    args = p.parse_args()
    args.qcow = os.path.abspath(args.qcow)
    with open(os.path.join(HERE, "cases.txt")) as f:
        cases = [Case(line) for line in f if line.strip() and not line.startswith("#")]
    bare = uncovered(cases)
    if bare:
        print("FAILED table: no case of %s" % ", ".join(bare))
    if args.only:
        cases = [c for c in cases if c.id in args.only]
    if not shutil.which(args.qemu_img):
        print("SKIP images: no qemu-img (package qemu-utils)")
        print("0 passed, 0 failed, %d skipped" % len(cases))
        return 0
    folder = tempfile.mkdtemp(prefix="qcow-images-")
    Run.helper = measured.build(folder)
    os.chdir(folder)
    for name in ("canary", "canary.raw"):
        with open(name, "wb") as f:
            f.write(b"canary" * 1000)
    bases = {}
    for name in BASES:
        path = os.path.join(folder, name)
        make_base(name, path, args)
        with open(path, "rb") as f:
            data = f.read()
        bases[name] = (data, names(data))
    limit = None if args.unbounded else (Run([args.qcow, "info", os.path.join(folder, "v3")], folder).kib, BOUNDS)
    # what the images name: QEMU has grown the data file when it made the base
    canaries = {name: digest(name) for name in ("canary", "canary.raw")}
    crossed = [(case, base) for case in cases if case.base == "v3" and not case.id.startswith("BOMB") for base in CROSSED]
    if not (args.all or args.only):
        crossed = random.Random(args.seed).sample(crossed, min(CROSSED_PART, len(crossed)))
    print("images: %d cases, %d of them on another base, seed %d" % (len(cases) + len(crossed), len(crossed), args.seed))
    failed = len(bare)
    for case, base in [(case, None) for case in cases] + crossed:
        try:
            if base is None:
                run_case(case, bases, limit, args, folder)
            else:
                check_crossed(case, base, bases, limit, args, folder)
            if any(digest(name) != was for name, was in canaries.items()):
                raise Wrong("a canary was changed")
        except (Wrong, subprocess.CalledProcessError, ValueError) as e:
            failed += 1
            print("FAILED %s: %s\n  again: tests/images/images.py --qcow %s --only %s" %
                  (case.id, e, args.qcow, case.id))
    if args.keep:
        print("kept: " + folder)
    else:
        shutil.rmtree(folder)
    print("%d passed, %d failed, 0 skipped" % (len(cases) + len(crossed) + 1 - failed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
