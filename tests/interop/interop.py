#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""qcowkit beside QEMU, both ways.

usage: interop.py [--qcow PROGRAM] [--qemu DIR]... [--seed N] [--quick|--all] [--list] [--only ID]... [--jobs N] [--keep]

  read    images made by qemu-img and qemu-io, one for each row of an array that covers all pairs of
          version, cluster size, refcount width, extended L2, compression, lazy refcounts (also left dirty),
          preallocation, data file, chain and formats, snapshots, bitmaps (also left in use), size and maker:
          data, snapshots, info, check, map and bitmaps of qcow = those of every QEMU
  write   images made by `qcow convert`, a row each for all pairs of its options, bitmaps too: clean for
          `qemu-img check` and identical for `qemu-img compare`, by every QEMU
  create  images by `qcow create`, a row each for all pairs of its options, in the same way; then written by
          qemu-io, or by `qcow io`
  crypt   encrypted images, both ways: encrypted.py
  codec   clusters compressed by qcow at every cluster size, by both methods, read by every QEMU

--qcow   the program under test (build/bin/qcow); ../compat/qemu-img beside it is tried too
--qemu   a folder with qemu-img and qemu-io; may be given several times (default: those on PATH)
--seed   rows and data come from it; printed, and part of the command that repeats a failure
--all    every row; else a part of each kind, another with each seed; --quick: less
--list   print the configurations and count them, no more
--only   run one row, say read-17; --keep leaves its files, in the folder that is printed
Two rows never hold the same image made the same way; fewer than 300 different images are a failure.
Last line: "N passed, N failed, N skipped". Status 1 where something failed.
"""
import argparse
import concurrent.futures
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import encrypted
from pairs import covering_array, uncovered

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KIB, MIB = 1024, 1024 * 1024
CHECK_OK = (0, 2, 3)
CLUSTERS = [512 << i for i in range(13)]


class Mismatch(Exception):
    pass


class MakerFailed(Exception):
    """QEMU could not make the image, or damaged it itself (11.1 does, rarely): not our case"""


# ---- running programs ----

def run(argv, ok=(0,), cwd=None):
    r = subprocess.run(argv, capture_output=True, cwd=cwd, stdin=subprocess.DEVNULL, timeout=300)
    if r.returncode not in ok:
        raise Mismatch("exit status %d of: %s\n%s" % (
            r.returncode, " ".join(argv), (r.stderr + r.stdout[-500:]).decode("utf-8", "replace").strip()))
    return r


class Qemu:
    def __init__(self, folder):
        self.img = os.path.join(folder, "qemu-img") if folder else "qemu-img"
        self.io = os.path.join(folder, "qemu-io") if folder else "qemu-io"
        self.nbd = os.path.join(folder, "qemu-nbd") if folder else "qemu-nbd"
        self.version = run([self.img, "--version"]).stdout.decode().split()[2]
        self.major = int(self.version.split(".")[0])

    def write(self, path, commands):
        """qemu-io commands; one may fail (a compressed write onto an allocated cluster does)"""
        if not commands:
            return
        argv = [self.io, "-t", "unsafe", "-f", "qcow2" if not path.endswith(".raw") else "raw"]
        for command in commands:
            argv += ["-c", command]
        run(argv + [path], ok=(0, 1))


def same_bytes(a, b):
    """None, or where two files differ"""
    if os.path.getsize(a) != os.path.getsize(b):
        return "%d and %d bytes" % (os.path.getsize(a), os.path.getsize(b))
    with open(a, "rb") as fa, open(b, "rb") as fb:
        off = 0
        while True:
            x, y = fa.read(MIB), fb.read(MIB)
            if x != y:
                return "byte %d" % (off + next(i for i in range(len(x)) if x[i] != y[i]))
            if not x:
                return None
            off += len(x)


def want_same(what, a, b):
    where = same_bytes(a, b)
    if where:
        raise Mismatch("%s: %s and %s differ: %s" % (what, os.path.basename(a), os.path.basename(b), where))


# ---- random content ----

def pattern_file(folder, name, rng, n_bytes, compressible):
    path = os.path.join(folder, name)
    if compressible:
        words = [rng.randbytes(rng.randint(3, 12)) for _ in range(64)]
        data = b"".join(rng.choice(words) for _ in range(n_bytes // 3))[:n_bytes]
    else:
        data = rng.randbytes(n_bytes)
    with open(path, "wb") as f:
        f.write(data)
    return path


def random_writes(rng, folder, size, cluster, compressed_too, n):
    """qemu-io commands for a disk of `size`: data, zeros, discards, compressed clusters"""
    text = pattern_file(folder, "text", rng, 96 * KIB, True)
    noise = pattern_file(folder, "noise", rng, 96 * KIB, False)
    longest = max(cluster * 3, 160 * KIB)
    commands = []
    for _ in range(n):
        kind = rng.choice(["text", "noise", "byte", "zero", "discard", "unmap", "sector", "compressed"])
        if kind == "compressed" and compressed_too:
            first = rng.randrange((size + cluster - 1) // cluster) * cluster
            for off in range(first, min(size, first + cluster * rng.randint(1, 4)), cluster):
                length = min(cluster, size - off)
                if length % 512:
                    continue
                source = rng.choice([text, text, noise])
                commands.append("write -q -c -s %s %d %d" % (source, off, length))
            continue
        align = rng.choice([512, 512, 4096, cluster])
        off = rng.randrange(size) // align * align
        length = min(size - off, max(512, rng.randint(1, longest) // align * align))
        if kind == "sector":
            length = 512
        length -= length % 512
        if not length:
            continue
        if kind in ("text", "noise"):
            commands.append("write -q -s %s %d %d" % (text if kind == "text" else noise, off, length))
        elif kind == "zero":
            commands.append("write -q -z %d %d" % (off, length))
        elif kind == "unmap":
            commands.append("write -q -z -u %d %d" % (off, length))
        elif kind == "discard":
            commands.append("discard -q %d %d" % (off, length))
        else:
            commands.append("write -q -P %d %d %d" % (rng.randint(1, 255), off, length))
    return commands


def raw_disk(path, rng, size):
    """a sparse disk of text, noise, zeros written out, and holes"""
    words = [rng.randbytes(rng.randint(3, 12)) for _ in range(64)]
    with open(path, "wb") as f:
        off = 0
        while off < size:
            length = min(size - off, rng.choice([512, 4096, 65536, 300000, rng.randint(1, 700000)]))
            kind = rng.choice(["text", "text", "noise", "zero", "hole"])
            f.seek(off)
            if kind == "text":
                f.write(b"".join(rng.choices(words, k=length // 3 + 1))[:length])
            elif kind == "noise":
                f.write(rng.randbytes(length))
            elif kind == "zero":
                f.write(bytes(length))
            off += length
        f.truncate(size)


# ---- read: QEMU makes, we look ----

READ_FACTORS = {
    "version": [2, 3],
    "cluster": CLUSTERS,
    "refcount_bits": [1, 2, 4, 8, 16, 32, 64],
    "extended_l2": [False, True],
    "compression": ["none", "zlib", "zstd"],
    "lazy": [False, True, "dirty"],
    "preallocation": ["off", "metadata", "falloc", "full"],
    "data_file": ["none", "data", "raw"],
    "chain": ["none", "raw", "qcow2", "shorter", "longer", "other-cluster", "deep", "raw-shorter"],
    "snapshots": [0, 1, 2],
    "bitmaps": ["none", "one", "three", "in-use"],
    "size": ["even", "odd", "tiny"],
    "maker": [0, 1],
}


def format_ok(row):
    """what version, refcount width, extended L2 and compression allow each other; for parts of rows too"""
    if row.get("version") == 2:
        if row.get("refcount_bits", 16) != 16 or row.get("extended_l2", False) or \
                row.get("compression", "zlib") == "zstd" or row.get("lazy", False) or \
                row.get("bitmaps", "none") != "none" or row.get("data_file", "none") != "none":
            return False
    return not (row.get("extended_l2") and row.get("cluster", 65536) < 16384)


def read_ok(row):
    if not format_ok(row):
        return False
    # a refcount of one bit cannot count a snapshot
    if row.get("refcount_bits") == 1 and row.get("snapshots", 0) > 0:
        return False
    data_file = row.get("data_file", "none")
    if data_file != "none" and (row.get("snapshots", 0) > 0 or row.get("compression", "none") != "none"):
        return False
    chain = row.get("chain", "none")
    return chain == "none" or (row.get("preallocation", "off") == "off" and data_file != "raw")


def options_of(row):
    options = "compat=%s,cluster_size=%d" % ("0.10" if row["version"] == 2 else "1.1", row["cluster"])
    if row["version"] == 3:
        options += ",refcount_bits=%d,extended_l2=%s,compression_type=%s" % (
            row["refcount_bits"], "on" if row["extended_l2"] else "off",
            "zstd" if row["compression"] == "zstd" else "zlib")
        options += ",lazy_refcounts=%s" % ("on" if row["lazy"] else "off")
    if row["preallocation"] != "off":
        options += ",preallocation=%s" % row["preallocation"]
    return options


def data_file_options(row, path):
    if row["data_file"] == "none":
        return ""
    return ",data_file=%s%s" % (path, ",data_file_raw=on" if row["data_file"] == "raw" else "")


def disk_size(row, rng):
    cluster = row["cluster"]
    if row["size"] == "tiny":
        return rng.choice([512, 1536, max(512, cluster // 2), cluster + 512])
    even = max(3 * MIB, cluster * 5)
    if row["size"] == "even":
        return even
    return even + 512 * rng.randint(1, max(2, 2 * cluster // 512))


def make_chain(row, rng, folder, qemu, size):
    """the layers below; -> (name, format) of the image to name as backing file, or None"""
    chain = row["chain"]
    if chain == "none":
        return None
    other = 4096 if row["cluster"] >= 32768 else 65536
    layers = {
        "raw": [("base.raw", None, size)],
        "raw-shorter": [("base.raw", None, max(512, size * 2 // 3 // 512 * 512))],
        "qcow2": [("base.qcow2", row["cluster"], size)],
        "shorter": [("base.qcow2", row["cluster"], max(512, size // 2 // 512 * 512))],
        "longer": [("base.qcow2", row["cluster"], size + size // 2 // 512 * 512 + 512)],
        "other-cluster": [("base.qcow2", other, size)],
        "deep": [("base0.raw", None, size), ("base1.qcow2", other, max(512, size // 2 // 512 * 512)),
                 ("base.qcow2", row["cluster"], size + 1024)],
    }[chain]
    below = None
    for name, cluster, layer_size in layers:
        path = os.path.join(folder, name)
        argv = [qemu.img, "create", "-q", "-f", "qcow2" if cluster else "raw"]
        if cluster:
            argv += ["-o", "cluster_size=%d" % cluster]
        if below:
            argv += ["-b", below[0], "-F", below[1]]
        run(argv + [path, str(layer_size)])
        qemu.write(path, random_writes(rng, folder, layer_size, cluster or 65536, bool(cluster), 12))
        if not cluster:
            settle(path)
        below = (name, "qcow2" if cluster else "raw")
    return below


def settle(path):
    """a file without preallocated blocks: whether SEEK_DATA calls those data depends on what was read before"""
    run(["cp", "--sparse=always", path, path + ".settled"])
    os.replace(path + ".settled", path)


def make_image(row, rng, folder, qemu):
    """an image that its maker finds clean (unless it was left open), or MakerFailed"""
    left_open = row["lazy"] == "dirty" or row["bitmaps"] == "in-use"
    try:
        path = try_make_image(row, rng, folder, qemu)
        run([qemu.img, "check", path], ok=CHECK_OK if left_open else (0, 3))
        return path
    except Mismatch as e:
        raise MakerFailed(str(e))


def try_make_image(row, rng, folder, qemu):
    size = disk_size(row, rng)
    below = make_chain(row, rng, folder, qemu, size)
    path = os.path.join(folder, "top.qcow2")
    data = os.path.join(folder, "top.data")
    argv = [qemu.img, "create", "-q", "-f", "qcow2", "-o", options_of(row) + data_file_options(row, data)]
    if below:
        argv += ["-b", below[0], "-F", below[1]]
    run(argv + [path, str(size)])
    add_bitmaps(qemu, path, {"none": 0, "one": 1, "three": 3, "in-use": 2}[row["bitmaps"]])
    # several compressed clusters share a host cluster: a narrow refcount cannot count their snapshots
    compressed_too = row["compression"] != "none" and (row["snapshots"] == 0 or row["refcount_bits"] >= 8)
    for i in range(row["snapshots"] + 1):
        qemu.write(path, random_writes(rng, folder, size, row["cluster"], compressed_too, 14))
        if i < row["snapshots"]:
            run([qemu.img, "snapshot", "-c", "snap %d" % i, path])
    if row["lazy"] == "dirty" or row["bitmaps"] == "in-use":
        leave_open(qemu, path, size)
    if row["data_file"] != "none":
        settle(data)
    return path


def add_bitmaps(qemu, path, n):
    """one of the usual granularity, a fine one that is off, a coarse one"""
    for i, more in enumerate(([], ["-g", "512", "--disable"], ["-g", "1M"])[:n]):
        run([qemu.img, "bitmap", "--add", *more, path, "bitmap %d" % i])


def leave_open(qemu, path, size):
    """a process that writes, flushes and is gone: bitmaps in use, lazy refcounts dirty"""
    run([qemu.io, "-f", "qcow2", "-c", "write -q -P 7 0 %d" % min(size, 4096), "-c", "flush", "-c", "abort", path],
        ok=(-6, 134))


def merged_map(text, keys, cluster):
    """the map as [(start, end, answers)] with neighbours of one answer joined"""
    extents = []
    for e in json.loads(text):
        start, end = e["start"], e["start"] + e["length"]
        answer = {k: e[k] for k in keys if k in e}
        # Holes of the host under stored data: QEMU reports them or not by a guess about the whole image,
        # so `zero` beside `data` is a hint. Ours is compared with the content instead (zeros_are_zeros).
        if e["data"]:
            answer.pop("zero", None)
        if "offset" in e and not e.get("compressed"):
            answer["offset"] = e["offset"] - start  # constant along a run
        # A zero cluster that keeps the first cluster of a data file: QEMU takes its offset 0 for none
        if e["zero"] and not e["data"] and e.get("offset") == 0:
            first = min(end, start + cluster)
            join(extents, start, first, {k: v for k, v in answer.items() if k != "offset"})
            start = first
        join(extents, start, end, answer)
    return extents


def join(extents, start, end, answer):
    """one extent more, part of the last where the answer is the same"""
    if start == end:
        return
    if extents and extents[-1][1] == start and extents[-1][2] == answer:
        extents[-1] = (extents[-1][0], end, answer)
    else:
        extents.append((start, end, answer))


def compare_maps(ours, theirs, cluster):
    keys = {"depth", "zero", "data", "present", "compressed"}
    first = json.loads(theirs)[:1]
    if first:
        keys &= set(first[0])
    a, b = merged_map(ours, keys, cluster), merged_map(theirs, keys, cluster)
    for x, y in zip(a, b):
        if x != y:
            raise Mismatch("map: qcow says %s, QEMU says %s" % (x, y))
    if len(a) != len(b):
        raise Mismatch("map: qcow has %d extents, QEMU %d: %s" % (len(a), len(b), (a + b)[min(len(a), len(b))]))


def zeros_are_zeros(text, raw):
    """what our map calls zero reads as zeros, and the map covers the disk"""
    with open(raw, "rb") as f:
        at = 0
        for e in json.loads(text):
            if e["start"] != at:
                raise Mismatch("map: no extent for byte %d" % at)
            at += e["length"]
            f.seek(e["start"])
            while e["zero"] and f.tell() < at:
                part = f.read(min(MIB, at - f.tell()))
                if part.count(0) != len(part) or not part:
                    raise Mismatch("map: [%d, %d) is not zero" % (e["start"], at))
    if at != os.path.getsize(raw):
        raise Mismatch("map: ends at %d, the disk at %d" % (at, os.path.getsize(raw)))


def compare_json(what, ours, theirs, path=""):
    """every member that QEMU prints stands in ours with the same value"""
    if isinstance(theirs, dict):
        if not isinstance(ours, dict):
            raise Mismatch("%s: %s is no object" % (what, path or "the answer"))
        for key, value in theirs.items():
            where = path + "." + key if path else key
            if key not in ours:
                raise Mismatch("%s: %s is missing" % (what, where))
            compare_json(what, ours[key], value, where)
    elif isinstance(theirs, list):
        if not isinstance(ours, list) or len(ours) != len(theirs):
            raise Mismatch("%s: %s has another length" % (what, path))
        for i, value in enumerate(theirs):
            compare_json(what, ours[i], value, "%s[%d]" % (path, i))
    elif path.endswith("virtual-size") and what.startswith("qcow info") and (ours + 511) // 512 * 512 == theirs:
        return  # qcow tells the bytes of a raw file, QEMU and the personality whole sectors
    elif ours != theirs:
        raise Mismatch("%s: %s is %r, QEMU says %r" % (what, path, ours, theirs))


def keeps_offset_0(text):
    """does a zero range keep offset 0 of its file?"""
    return any(e["zero"] and not e["data"] and e["depth"] == 0 and e.get("offset") == 0 for e in json.loads(text))


def look(ctx, folder, path, n_snapshots):
    """data, snapshots, info, check and map of `path`, ours and each QEMU's"""
    ours_raw = os.path.join(folder, "ours")
    run([ctx.qcow, "convert", "-f", "qcow2", "-O", "raw", path, ours_raw])
    views = []
    for i in range(n_snapshots):
        view = os.path.join(folder, "ours.snap%d" % i)
        run([ctx.qcow, "convert", "-l", "snapshot.name=snap %d" % i, "-O", "raw", path, view])
        views.append(view)
    ours_map = run([ctx.qcow, "map", "--output", "json", path]).stdout
    zeros_are_zeros(ours_map, ours_raw)
    ours_info = [(name, json.loads(run([program, "info", "--output", "json", path]).stdout))
                 for name, program in (("qcow info", ctx.qcow), ("qemu-img info", ctx.compat))]
    ours_check = run([ctx.qcow, "check", "--output", "json", path], ok=CHECK_OK)
    for qemu in ctx.qemus:
        theirs = os.path.join(folder, "theirs")
        run([qemu.img, "convert", "-f", "qcow2", "-O", "raw", path, theirs])
        want_same("convert -O raw (QEMU %s)" % qemu.version, ours_raw, theirs)
        for i, view in enumerate(views):
            run([qemu.img, "convert", "-l", "snapshot.name=snap %d" % i, "-O", "raw", path, theirs])
            want_same("convert -l 'snap %d' (QEMU %s)" % (i, qemu.version), view, theirs)
        theirs_map = run([qemu.img, "map", "--output", "json", path]).stdout
        compare_maps(ours_map, theirs_map, ours_info[0][1]["cluster-size"])
        # QEMU does not count a zero cluster that keeps cluster 0 of a data file, and maps it without an offset
        at_0 = keeps_offset_0(ours_map) and not keeps_offset_0(theirs_map)
        theirs_info = json.loads(run([qemu.img, "info", "--output", "json", path]).stdout)
        # allocation on the host moves while others write to the file system
        for info in (theirs_info, *(c.get("info", {}) for c in theirs_info.get("children", []))):
            info.pop("actual-size", None)
        for name, info in ours_info:
            compare_json("%s (QEMU %s)" % (name, qemu.version), info, theirs_info)
        theirs_check = run([qemu.img, "check", "--output", "json", path], ok=CHECK_OK)
        if theirs_check.returncode != ours_check.returncode:
            raise Mismatch("check: exit status %d, QEMU %s says %d" % (
                ours_check.returncode, qemu.version, theirs_check.returncode))
        said = json.loads(theirs_check.stdout)
        if "allocated-clusters" in said:
            said["allocated-clusters"] += at_0
        if at_0:
            said.pop("fragmented-clusters", None)
        compare_json("check (QEMU %s)" % qemu.version, json.loads(ours_check.stdout), said)


def merged_runs(runs):
    """[(start, length, dirty)] with neighbours of one state joined"""
    out = []
    for start, length, dirty in runs:
        if out and out[-1][2] == dirty:
            out[-1] = (out[-1][0], out[-1][1] + length, dirty)
        else:
            out.append((start, length, dirty))
    return out


def has_ended(pid):
    """gone, or dead and not yet reaped"""
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def exported_bitmap(qemu, folder, path, name):
    """what qemu-nbd shows of a bitmap"""
    place = tempfile.mkdtemp(dir=folder)
    socket, pid = os.path.join(place, "nbd"), os.path.join(place, "pid")
    run([qemu.nbd, "-r", "-t", "-f", "qcow2", "-k", socket, "-B", name, "--fork", "--pid-file", pid, path])
    try:
        text = run(["nbdinfo", "--map=qemu:dirty-bitmap:" + name, "nbd+unix:///?socket=" + socket]).stdout
    finally:
        with open(pid) as f:
            number = int(f.read())
        os.kill(number, signal.SIGTERM)
        for _ in range(500):  # its lock on the image ends with it
            if has_ended(number):
                break
            time.sleep(0.01)
    return merged_runs([tuple(map(int, line.split()[:3])) for line in text.decode().splitlines()])


def bitmaps_of(program, path):
    """what info lists: {name: (granularity, flags)}"""
    info = json.loads(run([program, "info", "--output", "json", path]).stdout)
    listed = info["format-specific"]["data"].get("bitmaps", [])
    return {b["name"]: (b["granularity"], tuple(sorted(b["flags"]))) for b in listed}


def compare_bitmaps(ctx, folder, path, n):
    """each bitmap as we and as every QEMU list and show it; one left in use shows nothing"""
    ours = bitmaps_of(ctx.qcow, path)
    if len(ours) != n:
        raise Mismatch("%d bitmaps, not %d" % (len(ours), n))
    for qemu in ctx.qemus:
        if bitmaps_of(qemu.img, path) != ours:
            raise Mismatch("bitmaps: %s, QEMU %s lists %s" % (ours, qemu.version, bitmaps_of(qemu.img, path)))
    for name, (_, flags) in ours.items():
        argv = [ctx.qcow, "map", "--output", "json", "--bitmap", name, path]
        if "in-use" in flags:
            if b"in use" not in run(argv, ok=(1,)).stderr:
                raise Mismatch("bitmap %s: shown, though nobody finished it" % name)
            continue
        shown = merged_runs([(e["start"], e["length"], int(e["dirty"])) for e in json.loads(run(argv).stdout)])
        for qemu in ctx.qemus if shutil.which("nbdinfo") else []:
            theirs = exported_bitmap(qemu, folder, path, name)
            if theirs != shown:
                raise Mismatch("bitmap %s: %s, QEMU %s exports %s" % (name, shown[:9], qemu.version, theirs[:9]))


def unreadable(ctx, path, n_snapshots):
    """what no QEMU can read of an image that one of them made (a compressed cluster of a snapshot, overwritten), or None"""
    for view in [[]] + [["-l", "snapshot.name=snap %d" % i] for i in range(n_snapshots)]:
        said = [subprocess.run([qemu.img, "convert", *view, "-O", "raw", path, path + ".read"], capture_output=True,
                               timeout=300).stderr for qemu in ctx.qemus]
        if said and all(b"error while reading" in text for text in said):
            return "no QEMU reads %s: %s" % (" ".join(view), said[0].decode("utf-8", "replace").strip())
    return None


def read_case(ctx, row, rng, folder):
    maker = ctx.qemus[row["maker"] % len(ctx.qemus)]
    for attempt in range(5):
        inside = os.path.join(folder, "made%d" % attempt)
        os.mkdir(inside)
        try:
            path = make_image(row, rng, inside, maker)
            look(ctx, inside, path, row["snapshots"])
            break
        except MakerFailed as e:
            why = e
        except Mismatch:
            why = unreadable(ctx, path, row["snapshots"])
            if not why:
                raise
    else:
        raise Mismatch("five times: %s" % why)
    if row["bitmaps"] != "none":
        compare_bitmaps(ctx, inside, path, {"one": 1, "three": 3, "in-use": 2}[row["bitmaps"]])


# ---- write: we convert, QEMU looks ----

WRITE_FACTORS = {
    "version": [2, 3],
    "cluster": CLUSTERS,
    "refcount_bits": [1, 2, 4, 8, 16, 32, 64],
    "extended_l2": [False, True],
    "compression": ["none", "zlib", "zstd"],
    "lazy": [False, True],
    "preallocation": ["off", "metadata", "falloc", "full"],
    "bitmaps": ["none", "three"],
    "source": ["raw", "qcow2", "zlib", "two", "overlay", "snapshot"],
    "backing": ["none", "raw", "qcow2", "shorter"],
    "data_file": ["none", "data", "raw"],
    "sparse": ["", "0", "64k", "1M"],
    "workers": ["", "1", "4"],
    "size": ["even", "odd"],
}


def write_ok(row):
    if not format_ok(row):
        return False
    if row.get("data_file", "none") != "none":
        if row.get("compression", "none") != "none" or row.get("backing", "none") != "none":
            return False
    if row.get("preallocation", "off") != "off":
        if row.get("compression", "none") != "none" or row.get("backing", "none") != "none":
            return False
    if row.get("bitmaps", "none") != "none" and row.get("source", "qcow2") not in ("qcow2", "zlib"):
        return False
    # -B does not copy what the source's own chain answers: that chain must be the one given
    if row.get("source") == "overlay":
        return row.get("backing", "none") in ("none", "raw")
    return not (row.get("backing", "none") != "none" and row.get("source") == "two")


def write_source(ctx, row, rng, folder, qemu):
    """-> (operands and options of convert, raw file with the disk it must give)"""
    size = max(3 * MIB, row["cluster"] * 4) + (512 * rng.randint(1, 4000) if row["size"] == "odd" else 0)
    raw = os.path.join(folder, "disk.raw")
    raw_disk(raw, rng, size)
    kind = row["source"]
    if kind == "raw":
        return ["-f", "raw", raw], raw
    image = os.path.join(folder, "source.qcow2")
    if kind in ("qcow2", "zlib"):
        run([qemu.img, "convert", "-f", "raw", "-O", "qcow2", *(["-c"] if kind == "zlib" else []), raw, image])
        if row["bitmaps"] == "none":
            return [image], raw
        add_bitmaps(qemu, image, 3)
        qemu.write(image, random_writes(rng, folder, size, 65536, False, 12))
        run([qemu.img, "convert", "-O", "raw", image, raw])
        return ["--bitmaps", image], raw
    if kind == "two":
        second = os.path.join(folder, "second.raw")
        raw_disk(second, rng, MIB + 512 * rng.randint(1, 100))
        run([qemu.img, "convert", "-f", "raw", "-O", "qcow2", second, image])
        both = os.path.join(folder, "both.raw")
        with open(both, "wb") as f:
            for part in (raw, second):
                with open(part, "rb") as g:
                    shutil.copyfileobj(g, f)
        plain = os.path.join(folder, "first.qcow2")
        run([qemu.img, "convert", "-f", "raw", "-O", "qcow2", raw, plain])
        return [plain, image], both
    if kind == "overlay":
        run([qemu.img, "create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", image])
        qemu.write(image, random_writes(rng, folder, size, 65536, True, 12))
        options = [image]
    else:
        run([qemu.img, "convert", "-f", "raw", "-O", "qcow2", raw, image])
        run([qemu.img, "snapshot", "-c", "then", image])
        qemu.write(image, random_writes(rng, folder, size, 65536, True, 12))
        options = ["-l", "snapshot.name=then", image]
    want = os.path.join(folder, "want.raw")
    run([qemu.img, "convert", "-O", "raw", *options, want])
    return options, want


def write_backing(row, folder, want, qemu):
    """a backing file, of other content than the disk unless it is the source's; -> options of convert"""
    if row["backing"] == "none":
        return []
    if row["source"] == "overlay":
        return ["-B", os.path.join(folder, "disk.raw"), "-F", "raw"]
    size = os.path.getsize(want)
    if row["backing"] == "shorter":
        size = size // 3 // 512 * 512
    path = os.path.join(folder, "below.raw")
    with open(path, "wb") as f:
        f.write(b"\xb7" * size)
    if row["backing"] == "raw":
        return ["-B", path, "-F", "raw"]
    image = os.path.join(folder, "below.qcow2")
    run([qemu.img, "convert", "-f", "raw", "-O", "qcow2", path, image])
    return ["-B", image, "-F", "qcow2"]


def accepted(ctx, path, want, folder):
    """clean and identical for every QEMU, clean for us"""
    run([ctx.qcow, "check", path])
    for qemu in ctx.qemus:
        run([qemu.img, "check", path])
        run([qemu.img, "compare", "-f", "raw", "-F", "qcow2", want, path])


def same_bitmaps(ctx, folder, source, target):
    """the copies are the source's bitmaps, for us and every QEMU"""
    compare_bitmaps(ctx, folder, target, 3)
    if bitmaps_of(ctx.qemus[0].img, source) != bitmaps_of(ctx.qemus[0].img, target):
        raise Mismatch("the copies of the bitmaps have other granularities or flags")
    for name in bitmaps_of(ctx.qemus[0].img, source) if shutil.which("nbdinfo") else []:
        if exported_bitmap(ctx.qemus[0], folder, source, name) != exported_bitmap(ctx.qemus[0], folder, target, name):
            raise Mismatch("bitmap %s: other ranges than in the source" % name)


def write_case(ctx, row, rng, folder):
    qemu = ctx.qemus[0]
    operands, want = write_source(ctx, row, rng, folder, qemu)
    target = os.path.join(folder, "target.qcow2")
    options = options_of(row) + data_file_options(row, os.path.join(folder, "target.data"))
    argv = [ctx.qcow, "convert", "-t", "unsafe", "-O", "qcow2", "-o", options]
    argv += ["-c"] if row["compression"] != "none" else []
    argv += ["-S", row["sparse"]] if row["sparse"] else []
    argv += ["-m", row["workers"]] if row["workers"] else []
    argv += write_backing(row, folder, want, qemu)
    run(argv + operands + [target])
    accepted(ctx, target, want, folder)
    if row["bitmaps"] != "none":
        same_bitmaps(ctx, folder, os.path.join(folder, "source.qcow2"), target)
    if row["data_file"] == "raw":
        data = os.path.join(folder, "target.data")
        rest = os.path.getsize(data) - os.path.getsize(want)
        if rest < 0 or rest >= row["cluster"]:  # the last cluster may be whole
            raise Mismatch("the raw data file has %d bytes too many" % rest)
        os.truncate(data, os.path.getsize(want))
        want_same("data_file_raw", want, data)
    back = os.path.join(folder, "back")
    run([ctx.qcow, "convert", "-O", "raw", target, back])
    want_same("there and back", want, back)


# ---- create ----

CREATE_FACTORS = {
    "version": [2, 3],
    "cluster": CLUSTERS,
    "refcount_bits": [1, 2, 4, 8, 16, 32, 64],
    "extended_l2": [False, True],
    "compression": ["zlib", "zstd"],
    "lazy": [False, True],
    "preallocation": ["off", "metadata", "falloc", "full"],
    "data_file": ["none", "data", "raw"],
    "backing": ["none", "raw", "qcow2"],
    "size": ["zero", "sector", "odd", "large"],
    "writer": ["qemu", "qcow"],
}


def create_ok(row):
    if not format_ok(row):
        return False
    if row.get("data_file", "none") != "none" and (row.get("version") == 2 or row.get("backing", "none") != "none"):
        return False
    if row.get("backing", "none") != "none" and row.get("preallocation", "off") != "off":
        return False  # QEMU allows it with extended L2 only
    return not (row.get("preallocation", "off") != "off" and row.get("size") == "large")


def create_case(ctx, row, rng, folder):
    size = {"zero": 0, "sector": 512, "odd": row["cluster"] * 3 + 512 * rng.randint(1, 3000),
            "large": 300 * MIB + 512}[row["size"]]
    want, target = os.path.join(folder, "want.raw"), os.path.join(folder, "target.qcow2")
    with open(want, "wb") as f:
        f.truncate(size)
    options = options_of(row) + data_file_options(row, os.path.join(folder, "target.data"))
    argv = [ctx.qcow, "create", "-q", "-f", "qcow2", "-o", options]
    if row["backing"] != "none":
        below = os.path.join(folder, "below." + row["backing"])
        want = below
        run([ctx.qemus[0].img, "create", "-q", "-f", row["backing"], below, str(size)])
        ctx.qemus[0].write(below, random_writes(rng, folder, size, 65536, False, 6) if size > 512 else [])
        argv += ["-b", below, "-F", row["backing"]]
    run(argv + [target, str(size)])
    run([ctx.qcow, "check", target])
    for qemu in ctx.qemus:
        run([qemu.img, "check", target])
        run([qemu.img, "compare", want, target])
        # and it takes writes: what is written into it reads back, and it stays clean
    if not size:
        return
    commands = random_writes(rng, folder, size, row["cluster"], row["data_file"] == "none", 8)
    if row["writer"] == "qcow":
        disk = written_by_us(ctx, folder, want, target, commands)
        if row["data_file"] == "raw":
            run([ctx.qemus[0].img, "compare", "-f", "raw", "-F", "raw", disk, os.path.join(folder, "target.data")])
    else:
        ctx.qemus[-1].write(target, commands)
    if row["data_file"] != "none":
        settle(os.path.join(folder, "target.data"))
    look(ctx, folder, target, 0)


def written_by_us(ctx, folder, below, target, commands):
    """`qcow io` writes the image, qemu-io a raw disk of the same content: both must then be equal. The raw disk"""
    commands = [c.replace("-c ", "") for c in commands if not c.startswith("discard")]
    disk = os.path.join(folder, "written.raw")
    run([ctx.qemus[0].img, "convert", "-O", "raw", below, disk])
    ctx.qemus[0].write(disk, commands)
    argv = [ctx.compat_io, "-f", "qcow2"]
    for command in commands:
        argv += ["-c", command]
    run(argv + [target])
    accepted(ctx, target, disk, folder)
    return disk


# ---- codec ----

def codec_case(ctx, row, rng, folder):
    raw = os.path.join(folder, "disk.raw")
    raw_disk(raw, rng, max(2 * MIB, row["cluster"] * 3) + 512 * 5)
    target = os.path.join(folder, "target.qcow2")
    options = "cluster_size=%d,compression_type=%s" % (row["cluster"], row["compression"])
    argv = [ctx.qcow, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options]
    argv += ["--level", str(row["level"])] if row["level"] else []
    run(argv + [raw, target])
    compressed = json.loads(run([ctx.qcow, "check", "--output", "json", target]).stdout)
    if not compressed.get("compressed-clusters"):
        raise Mismatch("nothing was compressed")
    accepted(ctx, target, raw, folder)
    for qemu in ctx.qemus:
        back = os.path.join(folder, "back")
        run([qemu.img, "convert", "-O", "raw", target, back])
        want_same("QEMU %s reads it" % qemu.version, raw, back)


# ---- the whole ----

class Context:
    pass


KINDS = ["read", "write", "create", "codec", "crypt-read", "crypt-write"]
FEWEST = 300
PART = 0.75  # of each kind by default: a minute and a half on two busy cores
PARTS = {"crypt-read": 0.1}  # QEMU measures its own speed for seconds before it makes one


def cases(seed):
    """all of them: (name, function, row)"""
    for i, row in enumerate(covering_array(READ_FACTORS, read_ok, seed)):
        yield "read-%d" % i, read_case, row
    for i, row in enumerate(covering_array(WRITE_FACTORS, write_ok, seed)):
        yield "write-%d" % i, write_case, row
    for i, row in enumerate(covering_array(CREATE_FACTORS, create_ok, seed)):
        yield "create-%d" % i, create_case, row
    codec = [{"cluster": c, "compression": m, "level": 0} for c in CLUSTERS for m in ("zlib", "zstd")]
    codec += [{"cluster": 65536, "compression": m, "level": n} for m, n in (("zlib", 1), ("zlib", 9), ("zstd", 19))]
    for i, row in enumerate(codec):
        yield "codec-%d" % i, codec_case, row
    for i, row in enumerate(covering_array(encrypted.FACTORS, encrypted.ok, seed)):
        yield "crypt-read-%d" % i, encrypted.read_case, row
        yield "crypt-write-%d" % i, encrypted.write_case, row


def kind_of(name):
    return name.rsplit("-", 1)[0]


def sample(todo, seed, part):
    """a part of each kind"""
    rng = random.Random(seed)
    chosen = []
    for kind in KINDS:
        rows = [c for c in todo if kind_of(c[0]) == kind]
        chosen += rng.sample(rows, max(1, round(len(rows) * min(part, PARTS.get(kind, part)))))
    return chosen


def configuration(row):
    """what the image is, in words; how it comes about (its maker, threads, the source) left out"""
    how = ("maker", "workers", "sparse", "source", "how", "writer", "level")
    return " ".join("%s=%s" % (k, row[k]) for k in sorted(row) if k not in how)


def counted(todo):
    """-> (number of different images, complaints): no row is another's repeat"""
    rows = [(kind_of(name), tuple(sorted(row.items(), key=str))) for name, _, row in todo]
    images = {configuration(row) for _, _, row in todo}
    bad = ["a row is there twice: %s %s" % r for r in sorted(set(rows), key=str) if rows.count(r) > 1]
    if len(images) < FEWEST:
        bad.append("%d configurations, fewer than %d" % (len(images), FEWEST))
    return len(images), bad


def self_test():
    """the rows cover what they promise, and the comparisons can fail"""
    bad = []
    for name, factors, ok in (("read", READ_FACTORS, read_ok), ("write", WRITE_FACTORS, write_ok),
                              ("create", CREATE_FACTORS, create_ok),
                              ("crypt", encrypted.FACTORS, encrypted.ok)):
        rows = covering_array(factors, ok, 1)
        bad += ["%s: %s" % (name, pair) for pair in uncovered(factors, ok, rows)]
        bad += ["%s: invalid row" % name for row in rows if not ok(row)]
    whole = list(cases(1))
    bad += counted(whole)[1]
    if not counted(whole[:FEWEST - 1])[1] or len(counted(whole + whole[:2])[1]) != 2:
        bad.append("too few rows, or a repeated one, are not seen")
    extent = '[{"start": 0, "length": %d, "depth": 0, "zero": false, "data": true, "offset": %d}]'
    split = ('[{"start": 0, "length": 512, "depth": 0, "zero": false, "data": true, "offset": 4096},'
             '{"start": 512, "length": 512, "depth": 0, "zero": false, "data": true, "offset": 4608}]')
    compare_maps(split, extent % (1024, 4096), 512)
    for what, call in (("offset", lambda: compare_maps(split, extent % (1024, 8192), 512)),
                       ("zero", lambda: zeros_are_zeros('[{"start": 0, "length": 4, "zero": true}]', __file__)),
                       ("end", lambda: zeros_are_zeros('[{"start": 0, "length": 4, "zero": false}]', __file__)),
                       ("length", lambda: compare_maps(split, extent % (2048, 4096), 512)),
                       ("member", lambda: compare_json("x", {"a": 1}, {"a": 1, "b": {"c": 2}})),
                       ("value", lambda: compare_json("x", {"a": [1, 2]}, {"a": [1, 3]}))):
        try:
            call()
            bad.append("a wrong %s is not seen" % what)
        except Mismatch:
            pass
    for line in bad:
        print("self-test: %s" % line)
    print("%d passed, %d failed" % (10 - min(10, len(bad)), len(bad)))
    return 1 if bad else 0


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--qcow", default=os.path.join(TOP, "build", "bin", "qcow"))
    p.add_argument("--qemu", action="append", default=[])
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    p.add_argument("--quick", action="store_true")
    p.add_argument("--all", "--long", action="store_true")
    p.add_argument("--list", action="store_true")
    p.add_argument("--only", action="append", default=[])
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    p.add_argument("--keep", action="store_true")
    p.add_argument("--self-test", action="store_true")
    a = p.parse_args()
    if a.self_test:
        return self_test()
    ctx = Context()
    ctx.tools = sys.modules[__name__]
    ctx.qcow = os.path.abspath(a.qcow)
    ctx.compat = os.path.join(os.path.dirname(os.path.dirname(ctx.qcow)), "compat", "qemu-img")
    ctx.compat_io = os.path.join(os.path.dirname(ctx.compat), "qemu-io")
    ctx.qemus = [Qemu(folder) for folder in a.qemu or [None]]
    todo = list(cases(a.seed))
    n_images, complaints = counted(todo)
    print("interop: %d rows (%s), %d different images" % (len(todo), ", ".join(
        "%d %s" % (sum(kind_of(n) == k for n, _, _ in todo), k) for k in KINDS), n_images))
    for complaint in complaints:
        print("FAILED rows: %s" % complaint)
    if a.list or a.all:
        for name, _, row in todo:
            print("%s: %s" % (name, " ".join("%s=%s" % kv for kv in row.items())))
    if a.list:
        return 1 if complaints else 0
    if a.only:
        todo = [c for c in todo if c[0] in a.only or kind_of(c[0]) in a.only]
    elif not a.all:
        todo = sample(todo, a.seed, 0.08 if a.quick else PART)
    print("interop: running %d of them, QEMU %s, seed %d" % (
        len(todo), " and ".join(q.version for q in ctx.qemus), a.seed), flush=True)
    top = tempfile.mkdtemp(prefix="qcowkit-interop.")
    lock, failed = threading.Lock(), ["rows"] * len(complaints)
    seconds = dict.fromkeys(KINDS, 0)

    def one(case):
        name, function, row = case
        folder = os.path.join(top, name)
        os.mkdir(folder)
        start = time.monotonic()
        try:
            function(ctx, row, random.Random("%d %s" % (a.seed, name)), folder)
        except (Mismatch, subprocess.TimeoutExpired, ValueError, OSError) as e:
            with lock:
                failed.append(name)
                print("FAILED %s: %s\n  %s" % (name, " ".join("%s=%s" % kv for kv in row.items()), e))
                print("  again: tests/interop/interop.py --qcow %s %s --seed %d --only %s --keep" % (
                    a.qcow, " ".join("--qemu " + q for q in a.qemu), a.seed, name), flush=True)
        finally:
            with lock:
                seconds[kind_of(name)] += time.monotonic() - start
            if not a.keep:
                shutil.rmtree(folder, ignore_errors=True)

    try:
        with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
            list(pool.map(one, todo))
    finally:
        if a.keep:
            print("kept: %s" % top)
        else:
            shutil.rmtree(top, ignore_errors=True)
    print("seconds: " + ", ".join("%s %.0f" % item for item in seconds.items()))
    print("%d passed, %d failed, 0 skipped" % (len(todo) + len(complaints) - len(failed), len(failed)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
