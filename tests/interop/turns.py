#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""qcowkit and QEMU take turns on one image: random sequences of everything that manages one.

usage: turns.py [--qcow PROGRAM] [--oracle PROGRAM] [--qemu DIR]... [--seed N] [--count N] [--steps N] [--long]
                [--only N] [--jobs N] [--keep] [--self-test]

Each sequence draws an image (version, cluster size, refcount width, extended L2, compression, lazy refcounts, a chain of
raw and qcow2 files of other lengths and cluster sizes) and then steps: writes, zeros, compressed clusters, discards,
snapshots made, applied and deleted, bitmaps, resize, amend, rebase, commit, leaks that check -r repairs, a writer that
dies. A party drawn anew does each: qcow, its personality, and every QEMU.
After each step the disk is an array of bytes here, and for qcow, for a QEMU and for the oracle; sizes, snapshots and bitmaps
are what they were made; no two of them differ about check, which finds nothing. A step that we refuse and a QEMU
takes is a failure, but for those in REFUSED.

--only   the one sequence of that number; --keep leaves its files and steps.sh, which repeats it, in the folder printed
--long   many long sequences
--self-test  what is wrong with an image is seen
Last line: "N passed, N failed, N skipped". Status 1 where something failed.
"""
import argparse
import concurrent.futures
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
from turns_model import Bitmap, Chain, Layer, Party, PeerDied, Refused, Wrong, leak  # noqa: E402
from turns_steps import STEPS, first_image  # noqa: E402

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# What we refuse although a QEMU does it: (part of our message, why).
REFUSED = [
    ("incompatible features 0x8", "QEMU 7.2 forgets that clusters are compressed by zstd"),
    ("version 2 has no bitmaps", "QEMU drops them"),
]


def refused_for_known(message):
    return any(part in message for part, _ in REFUSED)


class Sequence:
    def __init__(self, ctx, number, folder):
        self.ctx, self.number, self.folder = ctx, number, folder
        self.rng = random.Random("%d turns %d" % (ctx.seed, number))
        self.log = []

    def run(self, n_steps):
        rng = self.rng
        chain = Chain(self.ctx, self.folder, rng, self.log)
        self.row = first_image(chain, rng)
        chain.take_away_leaks()
        chain.judge()
        weights = [w for _, w in STEPS]
        refusals = 0
        for _ in range(n_steps):
            step = rng.choices([s for s, _ in STEPS], weights)[0]
            party = rng.choice(self.ctx.parties)
            before = rng.getstate()
            try:
                words = step(chain, rng, party)
            except Refused as e:
                refusals += 1
                self.log.append("# %s refused: %s" % (party.name, e))
                if party.is_ours and not refused_for_known(str(e)):
                    self.others_refuse(chain, step, before, str(e))
                words = step.__name__
            if words is not None:
                self.log.append("# %s: %s" % (party.name, words))
                chain.judge(by=party)
        chain.judge(everything=True)
        return refusals

    def others_refuse(self, chain, step, state, message):
        """what we refuse every QEMU refuses too: tried on a copy"""
        for party in self.ctx.parties:
            if party.is_ours:
                continue
            place = self.folder + ".copy"
            shutil.copytree(self.folder, place)
            rng = random.Random()
            rng.setstate(state)
            try:
                step(chain.copy_at(place), rng, party)
                raise Wrong("refused, but not by %s: %s" % (party.name, message))
            except Refused:
                pass
            finally:
                shutil.rmtree(place)


def self_test(ctx, folder):
    """a judge that sees nothing would be no judge"""
    chain = Chain(ctx, folder, random.Random(1), [])
    chain.top = Layer("top", "qcow2", bytearray(299520), None)
    ours = ctx.parties[0]
    for words in (["create", "-f", "qcow2", "-o", "cluster_size=4k", "top", "299520"],
                  ["bitmap", "--add", "-g", "64k", "top", "b"], ["snapshot", "-c", "s", "top"]):
        chain.img(ours, *words)
    top = chain.top
    top.bitmaps["b"], top.snapshots["s"] = Bitmap(65536), bytes(299520)
    chain.judge(everything=True)

    def change(what):
        if what == "byte":
            top.view[77] = 1
        elif what == "size":
            del top.view[-512:]
        elif what == "snapshot":
            top.snapshots["s"] = b"1" + bytes(299519)
        elif what == "bit that is lost":
            top.bitmaps["b"].must = {1}
        elif what == "bitmap":
            top.bitmaps["b"].is_enabled = False
        elif what == "snapshot's name":
            top.snapshots["t"] = top.snapshots.pop("s")
        else:
            leak(chain.path("top"), chain.rng)

    bad, kinds = 0, ("byte", "size", "snapshot", "bit that is lost", "bitmap", "snapshot's name", "leak")
    for what in kinds:
        saved = copy.deepcopy(top)
        change(what)
        try:
            chain.judge(everything=True)
            bad += 1
            print("FAILED self-test: a wrong %s is not seen" % what)
        except Wrong:
            pass
        chain.top = top = saved
    print("%d passed, %d failed" % (len(kinds) - bad, bad))
    return 1 if bad else 0


def options():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--qcow", default=os.path.join(TOP, "build", "bin", "qcow"))
    p.add_argument("--oracle")
    p.add_argument("--qemu", action="append", default=[])
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    p.add_argument("--count", type=int, default=4)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--long", action="store_true")
    p.add_argument("--only", type=int, action="append", default=[])
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    p.add_argument("--keep", action="store_true")
    p.add_argument("--self-test", action="store_true")
    a = p.parse_args()
    if a.long:
        a.count, a.steps = max(a.count, 400), max(a.steps, 40)
    return a


def main():
    a = options()
    a.qcow = os.path.abspath(a.qcow)
    build = os.path.dirname(os.path.dirname(a.qcow))
    a.oracle = os.path.abspath(a.oracle or os.path.join(build, "tests", "oracle", "oracle"))
    compat = os.path.join(build, "compat")
    a.parties = [Party("qcow", a.qcow, [a.qcow, "io"], True),
                 Party("personality", os.path.join(compat, "qemu-img"), [os.path.join(compat, "qemu-io")], True)]
    for folder in a.qemu or [os.path.dirname(shutil.which("qemu-img") or "/usr/bin/qemu-img")]:
        a.parties.append(Party(os.path.join(folder, "qemu-img"), os.path.join(folder, "qemu-img"),
                               [os.path.join(folder, "qemu-io")], False))
    if a.self_test:
        with tempfile.TemporaryDirectory(prefix="qcowkit-turns.") as folder:
            return self_test(a, folder)
    numbers = a.only or range(a.count)
    print("turns: %d sequences of %d steps, seed %d" % (len(numbers), a.steps, a.seed), flush=True)
    top = tempfile.mkdtemp(prefix="qcowkit-turns.")
    lock, failed, died, refusals = threading.Lock(), [], [], []

    def one(number):
        folder = os.path.join(top, "turns-%d" % number)
        os.mkdir(folder)
        sequence = Sequence(a, number, folder)
        bad = False
        try:
            refusals.append(sequence.run(a.steps))
        except PeerDied as e:
            died.append(number)
            print("sequence %d ends where a QEMU does: %s: %s" % (number, sequence.log[-1], e))
        except (Wrong, Refused, subprocess.TimeoutExpired, OSError) as e:
            bad = True
            with lock:
                failed.append(number)
                print("FAILED sequence %d: %s" % (number, e))
                print("  again: tests/interop/turns.py --qcow %s %s --seed %d --steps %d --only %d --keep" % (
                    a.qcow, " ".join("--qemu " + q for q in a.qemu), a.seed, a.steps, number))
                print("".join("    %s\n" % line for line in sequence.log[-12:]), flush=True)
        with open(os.path.join(folder, "steps.sh"), "w") as f:
            f.write("".join(line + "\n" for line in sequence.log))
        if not a.keep:
            shutil.rmtree(folder, ignore_errors=True)
        return bad

    try:
        with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
            list(pool.map(one, numbers))
    finally:
        if a.keep:
            print("kept: %s" % top)
        else:
            shutil.rmtree(top, ignore_errors=True)
    print("%d steps were refused by whoever was to do them" % sum(refusals))
    print("%d passed, %d failed, 0 skipped" % (len(numbers) - len(failed), len(failed)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
