#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random chains of qcow2 and raw files, on which our commands and QEMU's take turns: rebase (safe, -u to a copy, -c, to
none), commit (to the next layer or a deeper one, -d), writes between. What the overlay reads is known as an array of
bytes; after each turn qemu-img reads it back, compares, and checks every layer. The last line counts.

usage: chains.py [--seed N] [--chains N] [--turns N]      QCOW, QEMU_IMG, QEMU_IMG_NEW as tests/cli/lib.sh
"""
import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=None)
parser.add_argument("--chains", type=int, default=10)
parser.add_argument("--turns", type=int, default=6)
arguments = parser.parse_args()
SEED = arguments.seed
if SEED is None:
    SEED = int(os.environ.get("QCOWKIT_SEED", "1"), 0)
rng = random.Random(SEED)

QCOW = os.environ["QCOW"]
OLD = os.environ.get("QEMU_IMG") or shutil.which("qemu-img")
NEW = os.environ.get("QEMU_IMG_NEW") or os.path.expanduser("~/.cache/qcowkit-peers/bin/qemu-img")
IO = os.environ.get("QEMU_IO") or shutil.which("qemu-io")
if not OLD or not IO:
    print("SKIP qemu-img and qemu-io are not there")
    sys.exit(77)
PEERS = [OLD] + ([NEW] if os.access(NEW, os.X_OK) else [])
HAS_COMMIT = subprocess.run([QCOW, "commit", "--help"], capture_output=True).returncode == 0
told = []


def run(*argv):
    told.append(" ".join(argv))
    r = subprocess.run(argv, capture_output=True, text=True)
    if r.returncode != 0:
        if argv[0] in PEERS and "Operation not supported" in r.stderr:
            # it cannot grow a base of version 2 under which a longer file lies
            raise Unable()
        fail(f"status {r.returncode}: {r.stdout}{r.stderr}")
    return r.stdout


class Unable(Exception):
    """QEMU cannot do a turn"""


def fail(why):
    print(f"FAILED with --seed {SEED}: {why}")
    for line in told[-30:]:
        print("  " + re.sub("n{20,}", "nn…", line))
    sys.exit(1)


def some_options():
    if rng.random() < 0.2:
        return "compat=0.10," + rng.choice(["cluster_size=512", "cluster_size=4k", "cluster_size=64k"])
    size = rng.choice(["512", "4k", "16k", "64k", "2M"])
    more = rng.choice(["", "", ",refcount_bits=1", ",refcount_bits=64", ",lazy_refcounts=on", ",compression_type=zstd"])
    if size in ("16k", "64k") and rng.random() < 0.4:
        more += ",extended_l2=on"
    return "cluster_size=" + size + more


def write_some(path, fmt, size, content, n):
    """through QEMU; `content` follows"""
    line = [IO, "-f", fmt]
    for _ in range(n):
        off = rng.randrange(size) // 512 * 512
        length = min(rng.choice([512, 4096, 65536, 300000 // 512 * 512]), size - off)
        if length % 512:
            continue
        byte = rng.randrange(1, 4)
        kind = rng.random()
        if kind < 0.25:
            line += ["-c", f"write -z {off} {length}"]
            content[off:off + length] = bytes(length)
        else:
            line += ["-c", f"write -P {byte} {off} {length}"]
            content[off:off + length] = bytes([byte]) * length
    line.append(path)
    out = run(*line)
    if "rror" in out or "ailed" in out:
        fail(out)


def resized(content, size):
    return content[:size] + bytearray(max(0, size - len(content)))


class Chain:
    """layers[0] is the lowest: [path, format, content as read through it]"""

    def __init__(self):
        self.n_files = 0
        self.layers = []
        for _ in range(rng.randrange(2, 5)):
            self.add_layer()

    def name(self, ext):
        self.n_files += 1
        return f"{'n' * rng.choice([1, 1, 3, 200])}{self.n_files}.{ext}"

    def some_size(self):
        return rng.choice([300 * 1024, 1024 * 1024, 1024 * 1024 + 512, 2000 * 1024])

    def add_layer(self):
        size = self.some_size()
        below = self.layers[-1] if self.layers else None
        if below is None and rng.random() < 0.3:
            path = self.name("raw")
            run(OLD, "create", "-q", "-f", "raw", path, str(size))
            fmt, content = "raw", bytearray(size)
        else:
            path, fmt = self.name("qcow2"), "qcow2"
            line = [OLD, "create", "-q", "-f", "qcow2", "-o", some_options()]
            if below:
                line += ["-b", below[0], "-F", below[1]]
            run(*line, path, str(size))
            content = resized(below[2], size) if below else bytearray(size)
        write_some(path, fmt, size, content, rng.randrange(5))
        self.layers.append([path, fmt, content])

    def verify(self):
        path, fmt, content = self.layers[-1]
        with open("want.raw", "wb") as f:
            f.write(content)
        # another file that is read by qemu-img itself: nothing of ours is asked
        run(rng.choice(PEERS), "convert", "-f", fmt, "-O", "raw", path, "got.raw")
        with open("got.raw", "rb") as f:
            got = f.read()
        if got != bytes(content):
            at = next((i for i, (a, b) in enumerate(zip(got, content)) if a != b), min(len(got), len(content)))
            fail(f"{path} differs at byte {at}: sizes {len(got)}, {len(content)}")
        run(QCOW, "compare", "-q", path, "want.raw")
        for name, kind, _ in self.layers:
            if kind == "qcow2":
                run(OLD, "check", "-q", "-f", "qcow2", name)
                run(QCOW, "check", "-q", name)

    def turn_write(self):
        path, fmt, content = self.layers[-1]
        write_some(path, fmt, len(content), content, 3)

    def turn_rebase(self):
        """onto a file that differs here and there, a deeper layer, or none"""
        path, _, content = self.layers[-1]
        options = []
        kind = rng.random()
        if kind < 0.2:
            options, below = ["-b", ""], []
        elif kind < 0.5 and len(self.layers) > 2:
            below = self.layers[:rng.randrange(1, len(self.layers) - 1)]
        else:
            self.layers.pop()
            keep = self.layers
            self.layers = keep[:rng.randrange(len(keep) + 1)]
            self.add_layer()
            below = self.layers
        if below:
            options = ["-b", below[-1][0], "-F", below[-1][1]]
        if rng.random() < 0.6:
            if rng.random() < 0.4:
                options.append("-c")
            run(QCOW, "rebase", *options, path)
        else:
            run(rng.choice(PEERS), "rebase", *options, path)
        self.layers = below + [[path, "qcow2", content]]

    def turn_rename(self):
        """-u: a file with the same content under another name"""
        path, _, content = self.layers[-1]
        if len(self.layers) < 2:
            return
        old, fmt, below = self.layers[-2]
        name = self.name(fmt)
        shutil.copy(old, name)
        run(rng.choice([QCOW] + PEERS), "rebase", "-u", "-b", name, "-F", fmt, path)
        self.layers[-2] = [name, fmt, below]

    def turn_commit(self):
        if len(self.layers) < 2:
            return
        path, fmt, content = self.layers[-1]
        base = rng.randrange(len(self.layers) - 1)
        drop = rng.random() < 0.4
        options = ["-d"] if drop else []
        if base != len(self.layers) - 2:
            options += ["-b", self.layers[base][0]]
            drop = True
        run(rng.choice([QCOW, QCOW] + PEERS) if HAS_COMMIT else rng.choice(PEERS), "commit", "-q", *options, path)
        size = max(len(content), len(self.layers[base][2]))
        self.layers[base][2][:] = content + self.layers[base][2][len(content):size]
        top = self.layers[-1]
        # layers between are of no use, and what the overlay holds is in the base as well
        self.layers = self.layers[:base + 1]
        if not drop or rng.random() < 0.5:
            run(OLD, "rebase", "-u", "-b", self.layers[-1][0], "-F", self.layers[-1][1], path)
            self.layers.append(top)


def one_chain():
    told.clear()
    chain = Chain()
    chain.verify()
    turns = [chain.turn_write, chain.turn_rebase, chain.turn_rebase, chain.turn_rename, chain.turn_commit, chain.turn_commit]
    for _ in range(arguments.turns):
        if chain.layers[-1][1] != "qcow2":
            chain.add_layer()
        try:
            rng.choice(turns)()
        except Unable:
            return 0
        chain.verify()
    return arguments.turns


with tempfile.TemporaryDirectory(prefix="qcowkit-chains.", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
    total = 0
    for _ in range(arguments.chains):
        os.chdir(folder)
        for name in os.listdir("."):
            os.unlink(name)
        total += one_chain()
    os.chdir("/")
print(f"{total} turns, seed {SEED}: passed")
