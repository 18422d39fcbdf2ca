#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The field matrix: every scalar field of an image times hostile values times bases times commands.

usage: matrix.py [--qcow PROGRAM] [--qemu-img PROGRAM] [--seed N] [--sample N] [--only BASE/FIELD[/VALUE]]...
                 [--unbounded] [--list] [--self-test]

Bases are made by qemu-img. In each every field of header, extensions, snapshots, bitmaps, LUKS header, L1, L2,
refcount table and blocks is set to 0, 1, all ones, the largest signed number, its top bit and its low bit
flipped, one more, one less, twice, a random number and its neighbour's value. For each such image:

  - every command ends within a second of processor time and a minute in all, and never by a signal
  - its memory is within the bound of the command over what the program takes by itself
  - its exit code is one that its page names; vet always has a verdict
  - JSON is JSON; stderr is sentences; no control byte reaches a terminal
  - the image, and the canaries that it names as backing and data file, are not changed

--sample N takes N images at random, the same for one seed. Last line: "N passed, N failed, N skipped".
"""
import argparse
import concurrent.futures
import hashlib
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
import measured  # noqa: E402

MIB = 1024
CANARY = b"canary" * 1000
BASES = dict(images.BASES)
BASES.update({
    "luks": "create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s,"
            "encrypt.iter-time=TIME F 64M; keyio F write -q -P 5 1000k 200k",
    "aes": "create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=aes,encrypt.key-secret=s F 64M; "
           "keyio F write -q -P 5 1000k 200k",
    "c512": "create -q -f qcow2 -o cluster_size=512 F 1M; io F write -q -P 1 0 64k",
})

# name, words before the image, words after it, exit codes, memory over that of the base in KiB
COMMANDS = [
    ("info", ["info", "--output=json"], [], (0, 1), 8 * MIB),
    ("show", ["info"], [], (0, 1), 8 * MIB),
    ("check", ["check", "-f", "qcow2", "--output=json"], [], (0, 1, 2, 3), 64 * MIB),
    ("data", ["check", "-f", "qcow2", "--data", "--max-findings=10"], [], (0, 1, 2, 3), 68 * MIB),
    ("map", ["map", "--output=json"], [], (0, 1), 32 * MIB),
    ("measure", ["measure", "-f", "qcow2", "--output=json"], [], (0, 1), 32 * MIB),
    ("dump", ["dump", "-f", "qcow2"], [], (0, 1), 64 * MIB),
    ("vet", ["vet", "--output=json"], [], (0, 2), 64 * MIB),
    ("convert", ["convert", "-m", "2", "-f", "qcow2", "-O", "raw"], ["TARGET"], (0, 1), 40 * MIB),
    ("sanitize", ["sanitize"], ["TARGET"], (0, 1, 2), 64 * MIB),
]
# of encrypted bases alone
UNLOCK = ("unlock", ["convert", "-m", "2", "-f", "qcow2", "-O", "raw", "--secret-file", "KEY"], ["TARGET"], (0, 1),
          40 * MIB)
MOST_ITERATIONS = 100000000
JSON = ("info", "check", "map", "measure", "dump", "vet")


# ---- fields ----

def words(prefix, at, layout):
    """fields of one structure: "name:bytes name:bytes …" from offset `at`"""
    got = []
    for word in layout.split():
        name, _, n = word.partition(":")
        got.append(("%s.%s" % (prefix, name), at, int(n)))
        at += int(n)
    return got


HEADER_2 = "magic:4 version:4 backing_off:8 backing_size:4 cluster_bits:4 size:8 crypt_method:4 l1_size:4 " \
           "l1_off:8 rt_off:8 rt_clusters:4 nb_snapshots:4 snapshots_off:8"
HEADER_3 = HEADER_2 + " incompatible:8 compatible:8 autoclear:8 refcount_order:4 header_length:4 " \
                      "compression_type:1 padding:7"
SNAPSHOT = "l1_off:8 l1_size:4 id_size:2 name_size:2 date_sec:4 date_nsec:4 clock:8 vm_size:4 extra_size:4 " \
           "vm_size_large:8 disk_size:8 icount:8 id:1 name:1"
BITMAP = "table_off:8 table_size:4 flags:4 type:1 granularity:1 name_size:2 extra_size:4 name:1"
LUKS = "magic:6 version:2 cipher:4 cipher_rest:28 mode:4 mode_rest:28 hash:4 hash_rest:28 payload:4 key_bytes:4 " \
       "digest:20 salt:32 iterations:4 uuid:4 uuid_rest:36"
SLOT = "active:4 iterations:4 salt:32 key_off:4 stripes:4"


def be(data, off, n):
    return int.from_bytes(data[off:off + n], "big")


def extension_fields(data, off):
    got, n = [], 0
    while be(data, off, 4) != 0:
        kind, length = be(data, off, 4), be(data, off + 4, 4)
        name = "ext%d" % n
        got += words(name, off, "type:4 length:4")
        body = off + 8
        if kind == 0x23852875:
            got += words(name, body, "nb:4 reserved:4 dir_size:8 dir_off:8")
            directory = be(data, body + 16, 8)
            got += words("bitmap", directory, BITMAP)
            got += words("bitmap_table", be(data, directory, 8), "entry0:8")
        elif kind == 0x0537be77:
            got += words(name, body, "off:8 length_of:8")
            luks = be(data, body, 8)
            got += words("luks", luks, LUKS)
            for slot in range(2):
                got += words("luks_slot%d" % slot, luks + 208 + 48 * slot, SLOT)
        elif kind == 0x6803f857:
            got += words(name, body, "kind0:1 bit0:1 name0:2 rest0:44 kind1:1 bit1:1")
        else:
            got += words(name, body, "text:4")
        off = body + (length + 7) // 8 * 8
        n += 1
    return got + words("ext_end", off, "type:4 length:4")


def table_fields(data):
    cluster = 1 << be(data, 20, 4)
    extl2 = be(data, 4, 4) == 3 and be(data, 72, 8) >> 4 & 1
    l1, rt = be(data, 40, 8), be(data, 48, 8)
    got = words("l1", l1, "entry0:8 entry1:8")
    l2 = be(data, l1, 8) & images.OFFSET
    if l2:
        got += words("l2", l2, "entry0:8 bitmap0:8 entry1:8 bitmap1:8" if extl2 else "entry0:8 entry1:8 entry2:8")
        got += words("l2", l2 + cluster - 8, "last:8")
        entry = be(data, l2, 8)
        if entry >> 62 & 1:
            got += words("stream", entry & ((1 << 54) - 1), "head:4 more:4")
    got += words("rt", rt, "entry0:8 entry1:8")
    rb = be(data, rt, 8)
    return got + words("rb", rb, " ".join("entry%d:2" % n for n in range(8)))


def fields(data):
    v3 = be(data, 4, 4) == 3
    got = words("header", 0, HEADER_3 if v3 else HEADER_2)
    got += extension_fields(data, be(data, 100, 4) if v3 else 72)
    got += table_fields(data)
    at = be(data, 64, 8)
    for n in range(be(data, 60, 4)):
        got += words("snapshot%d" % n, at, SNAPSHOT)
        size = 40 + be(data, at + 36, 4) + be(data, at + 12, 2) + be(data, at + 14, 2)
        at += (size + 7) // 8 * 8
        if n == 0:
            sl1 = be(data, be(data, 64, 8), 8)
            got += words("snapshot_l1", sl1, "entry0:8")
            got += words("snapshot_l2", be(data, sl1, 8) & images.OFFSET, "entry0:8")
    if be(data, 8, 8):
        got += words("backing_name", be(data, 8, 8), "text:4 more:2")
    return [f for f in got if f[1] + f[2] <= len(data)]


def values(data, field, neighbour, rng):
    """the hostile values of a field, each once, without the one that it has"""
    _, off, n = field
    top, old = 1 << 8 * n, be(data, off, n)
    named = [("zero", 0), ("one", 1), ("ones", top - 1), ("half", top // 2 - 1), ("top", old ^ top // 2),
             ("low", old ^ 1), ("more", old + 1), ("less", old - 1), ("twice", old * 2),
             ("random", rng.randrange(top)), ("neighbour", be(data, neighbour[1], neighbour[2]))]
    seen = {old}
    for name, value in named:
        value %= top
        if value not in seen:
            seen.add(value)
            yield name, value


def matrix(bases, seed):
    for base, data in bases.items():
        all_fields = fields(data)
        for n, field in enumerate(all_fields):
            rng = random.Random("%d %s %s" % (seed, base, field[0]))
            for name, value in values(data, field, all_fields[n - 1], rng):
                yield base, "%s/%s/%s" % (base, field[0], name), field[1], field[2], value


# ---- running ----

def run_once(argv, folder, helper, seconds=60):
    """(exit code, processor seconds, KiB, stdout, stderr); output is cut at 16 MiB"""
    out, err = os.path.join(folder, "out"), os.path.join(folder, "err")
    got = measured.run(helper, argv, out, err, seconds, folder)
    with open(out, "rb") as o, open(err, "rb") as e:
        return got.code, got.seconds, got.kib, o.read(16 << 20), e.read(1 << 20)


def has_control(text):
    return any(byte < 32 and byte != 10 or byte == 127 for byte in text)


def judge(command, got, floor, unbounded):
    name, _, _, codes, bound = command
    code, seconds, kib, out, err = got
    if code in (124, 134, 137, -6) or code < 0 or code >= 128:
        return "%s: it hung, or a signal killed it (%d): %s" % (name, code, err[:300])
    if code not in codes:
        return "%s: exit code %d: %s" % (name, code, err[:300])
    if not unbounded and seconds > 1.0:
        return "%s: %.2f s of processor time" % (name, seconds)
    if not unbounded and kib > floor + bound:
        return "%s: %d KiB, %d for the empty program" % (name, kib, floor)
    if has_control(err) or (name not in JSON and has_control(out)):
        return "%s: control bytes in what it prints: %s" % (name, (err + out)[:300])
    if code == 1 and not err.startswith(b"qcow: "):
        return "%s: no sentence: %r" % (name, err[:300])
    if name in JSON and len(out) < 16 << 20 and (out or code != 1):
        try:
            json.loads(out)
        except ValueError as e:
            return "%s: not JSON (%s): %r" % (name, e, out[:300])
    return None


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).digest()


def argv_of(command, args, path, folder):
    named = {"TARGET": os.path.join(folder, "target"), "KEY": os.path.join(folder, "key")}
    return [args.qcow] + [named.get(w, w) for w in command[1]] + [path] + [named.get(w, w) for w in command[2]]


def commands_of(mutant):
    """those that are tried; a minute of key derivation is what qcow(1) promises up to 10^8 iterations, and not waited for"""
    base, name, _, _, value = mutant
    if base not in ("luks", "aes") or "iterations" in name and MOST_ITERATIONS // 100 < value <= MOST_ITERATIONS:
        return COMMANDS
    return COMMANDS + [UNLOCK]


def try_mutant(mutant, data, floors, args, folder):
    """what is wrong, or None"""
    base, _, off, n, value = mutant
    path = os.path.join(folder, "image.qcow2")
    changed = bytearray(data)
    changed[off:off + n] = value.to_bytes(n, "big")
    with open(path, "wb") as f:
        f.write(changed)
    before = hashlib.sha256(changed).digest()
    for command in commands_of(mutant):
        got = run_once(argv_of(command, args, path, folder), folder, args.helper)
        why = judge(command, got, floors[base, command[0]], args.unbounded)
        if os.path.exists(os.path.join(folder, "target")):
            os.unlink(os.path.join(folder, "target"))
        if why:
            return why
    if digest(path) != before:
        return "the image was changed"
    if any(digest(os.path.join(folder, name)) != hashlib.sha256(CANARY).digest() for name in ("canary", "canary.raw")):
        return "a canary was changed"
    left = set(os.listdir(folder)) - {"image.qcow2", "canary", "canary.raw", "out", "err", "key"}
    return "files were made: %s" % sorted(left) if left else None


def canaries(folder):
    for name in ("canary", "canary.raw"):
        with open(os.path.join(folder, name), "wb") as f:
            f.write(CANARY)
    with open(os.path.join(folder, "key"), "w") as f:
        f.write("abc")


def work(mutants, bases, floors, args):
    folder = tempfile.mkdtemp(prefix="qcow-matrix-")
    canaries(folder)
    faults = []
    try:
        for mutant in mutants:
            why = try_mutant(mutant, bases[mutant[0]], floors, args, folder)
            if why:
                faults.append((mutant[1], why))
                canaries(folder)
    finally:
        shutil.rmtree(folder)
    return faults


def make_bases(args, folder):
    bases = {}
    os.chdir(folder)
    for name in BASES:
        canaries(folder)
        for attempt in range(1, 11): # key derivation is timed: a busy machine may fail it
            try:
                images.BASES[name] = BASES[name].replace("TIME", str(100 * attempt))
                images.make_base(name, name, args)
                break
            except subprocess.CalledProcessError:
                if name != "luks" or attempt == 10:
                    raise
        with open(name, "rb") as f:
            bases[name] = f.read()
    return bases


def base_floors(bases, args, folder):
    """KiB that the program takes by itself; and the bases are well"""
    floors = {}
    own = run_once([args.qcow, "--version"], folder, args.helper)[2]
    canaries(folder)
    for base in bases:
        for command in commands_of((base, "", 0, 0, 0)):
            got = run_once(argv_of(command, args, os.path.join(folder, base), folder), folder, args.helper)
            if command == UNLOCK and got[0] != 0:
                raise SystemExit("matrix: base %s is not decrypted: %s" % (base, got[4].decode(errors="replace")))
            if got[0] < 0 or got[0] not in command[3] and base not in ("back", "df"):
                raise SystemExit("matrix: %s of base %s: exit code %d\n%s" %
                                 (command[0], base, got[0], got[4].decode(errors="replace")))
            floors[base, command[0]] = own
            if os.path.exists(os.path.join(folder, "target")):
                os.unlink(os.path.join(folder, "target"))
    return floors


def self_test():
    """each rule refuses something bad, and nothing that is good"""
    info, convert = COMMANDS[0], COMMANDS[-1]
    good = (0, 0.1, 1000, b"{}", b"")
    bad = [(info, (-11, 0.1, 1000, b"{}", b"")), (info, (134, 0.1, 1000, b"{}", b"")), (info, (124, 0.1, 1000, b"{}", b"")),
           (info, (2, 0.1, 1000, b"{}", b"")), (info, (0, 1.5, 1000, b"{}", b"")), (info, (0, 0.1, 1001 + 8 * MIB, b"{}", b"")),
           (info, (0, 0.1, 1000, b"{", b"")), (info, (0, 0.1, 1000, b"", b"")), (info, (1, 0.1, 1000, b"", b"oops")),
           (info, (1, 0.1, 1000, b"", b"qcow: \033[31m")), (convert, (0, 0.1, 1000, b"\a", b""))]
    failed = [b for b in bad if judge(*b, 1000, False) is None]
    failed += [c for c in COMMANDS if judge(c, good, 1000, False) is not None]
    for f in failed:
        print("FAILED self-test: %r" % (f,))
    print("%d passed, %d failed" % (len(bad) + len(COMMANDS) - len(failed), len(failed)))
    return 1 if failed else 0


def chosen(mutants, args):
    if args.only:
        return [m for m in mutants if any(m[1] == o or m[1].startswith(o + "/") for o in args.only)]
    if args.sample:
        return random.Random(args.seed).sample(mutants, min(args.sample, len(mutants)))
    return mutants


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--qcow", default=os.path.join(images.TOP, "build/bin/qcow"))
    p.add_argument("--qemu-img", default="qemu-img")
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    p.add_argument("--sample", type=int, default=0)
    p.add_argument("--only", action="append")
    p.add_argument("--unbounded", action="store_true")
    p.add_argument("--list", action="store_true")
    p.add_argument("--self-test", action="store_true")
    args = p.parse_args()
    if args.self_test:
        return self_test()
    args.qcow = os.path.abspath(args.qcow)
    if not shutil.which(args.qemu_img):
        print("SKIP matrix: no qemu-img (package qemu-utils)\n0 passed, 0 failed, 1 skipped")
        return 0
    folder = tempfile.mkdtemp(prefix="qcow-matrix-")
    faults = []
    try:
        args.helper = measured.build(folder)
        bases = make_bases(args, folder)
        mutants = chosen(list(matrix(bases, args.seed)), args)
        if args.list:
            print("\n".join("%s = 0x%x" % (m[1], m[4]) for m in mutants))
            return 0
        floors = base_floors(bases, args, folder)
        n = max(2, os.cpu_count() or 2)
        random.Random(args.seed).shuffle(mutants)
        with concurrent.futures.ProcessPoolExecutor(n) as pool:
            for got in pool.map(work, [mutants[i::n] for i in range(n)], [bases] * n, [floors] * n, [args] * n):
                faults += got
    finally:
        os.chdir("/")
        shutil.rmtree(folder)
    for name, why in sorted(faults):
        print("FAILED %s: %s\n  again: tests/images/matrix.py --qcow %s --seed %d --only %s" %
              (name, why, args.qcow, args.seed, name))
    print("seed %d: %d images, %d commands on each" % (args.seed, len(mutants), len(COMMANDS)))
    print("%d passed, %d failed, 0 skipped" % (len(mutants) - len(faults), len(faults)))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
