#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`qcow serve` is killed while fio writes, flushes and trims; then fio verifies what it had synced.

fio keeps no record of what was flushed, but with one request at a time its log has the order of writes and syncs: whatever stands before a
sync that was answered was durable. A pass of random writes takes each block once, so no later write hides those. fio's
--verify_only then draws the same offsets and contents from the same seed, and reads that many.

usage: serve_fio.py [ROUNDS [SEED]]      the environment names QCOW; QEMU's qemu-img judges the image
"""
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import served

REGION = 4 << 20
OPTIONS = ("cluster_size=64k", "cluster_size=4k", "cluster_size=512,refcount_bits=1", "extended_l2=on", "compat=0.10", "lazy_refcounts=on")


class Job:
    """One fio with a region of its own."""

    def __init__(self, folder, number, rng):
        self.log = os.path.join(folder, "log%d" % number)
        self.out = os.path.join(folder, "out%d" % number)
        self.words = ["fio", "--name=j", "--ioengine=nbd", "--rw=randwrite", "--bs=%d" % rng.choice((4096, 8192, 16384)), "--size=%d" % REGION,
                      "--offset=%d" % (number * REGION), "--fsync=%d" % rng.randrange(1, 24), "--iodepth=1", "--verify=crc32c",
                      "--randrepeat=0", "--randseed=%d" % rng.randrange(1, 1 << 30), "--verify_state_save=0", "--thread",
                      "--output=" + self.out]

    def begin(self, server):
        if os.path.exists(self.log):
            os.unlink(self.log)
        return subprocess.Popen(self.words + ["--uri=" + server.uri(), "--do_verify=0", "--write_iolog=" + self.log],
                                stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def synced(self):
        """Writes that a sync was answered for. fio does not look at the error of a sync, but ends with that of a write: so a write that
        was answered stands behind it, and something behind that."""
        if not os.path.exists(self.log):  # it came too late
            return 0
        with open(self.log) as f:
            actions = [line.split()[2] for line in f if len(line.split()) == 5]
        whole = [i for i, action in enumerate(actions[:-2]) if action == "sync"]
        return actions[:whole[-1]].count("write") if whole else 0

    def verify(self, server, n):
        r = subprocess.run(self.words + ["--uri=" + server.uri(), "--verify_only", "--verify_fatal=1", "--number_ios=%d" % n],
                           capture_output=True, text=True, timeout=300)
        if r.returncode != 0:
            with open(self.out) as f:
                raise AssertionError("of %d writes that were synced: %s%s%s" % (n, r.stdout, r.stderr, f.read()))


def run_round(folder, image, rng):
    """The number of writes that were synced."""
    server = served.Ours(folder, image)
    jobs = [Job(folder, number, rng) for number in range(2)]
    programs = [job.begin(server) for job in jobs]
    noise = subprocess.Popen(["fio", "--name=n", "--ioengine=nbd", "--uri=" + server.uri(), "--rw=randtrim" if rng.random() < 0.5 else "--rw=randwrite",
                              "--bsrange=4k-256k", "--size=%d" % REGION, "--offset=%d" % (2 * REGION), "--iodepth=8", "--loops=1000", "--thread",
                              "--output=/dev/null"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    n_flushes = rng.randrange(3, 60)
    while server.status()["requests"]["flush"]["requests"] < n_flushes and any(p.poll() is None for p in programs):
        time.sleep(0.01)
    server.process.kill()
    server.process.wait()
    for program in programs + [noise]:
        program.wait(300)
    counts = [job.synced() for job in jobs]
    check = subprocess.run([served.IMG, "check", "-f", "qcow2", image], capture_output=True, text=True)
    assert check.returncode in (0, 3), check.stdout + check.stderr
    server = served.Ours(folder, image)
    for job, n in zip(jobs, counts):
        if n:
            job.verify(server, n)
    server.end()
    return sum(counts)


def main():
    if not served.IMG:
        print("SKIP qemu-img is not there")
        return 77
    if not shutil.which("fio") or "nbd" not in subprocess.run(["fio", "--enghelp"], capture_output=True, text=True).stdout:
        print("SKIP fio has no engine for NBD")
        return 77
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    seed = int(sys.argv[2] if len(sys.argv) > 2 else os.environ.get("QCOWKIT_SEED", "1"), 0)
    rng = random.Random(seed)
    print("seed %d" % seed)
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        image = os.path.join(folder, "image")
        for i in range(rounds):
            options = rng.choice(OPTIONS)
            if i % 4 == 0:
                subprocess.check_call([served.IMG, "create", "-q", "-f", "qcow2", "-o", options, image, str(3 * REGION)])
            try:
                n = run_round(folder, image, rng)
                assert n > 0, "nothing was synced"
            except AssertionError as e:
                print("[  FAILED  ] round %d of seed %d (%s): %s\n%d passed, 1 failed" % (i, seed, options, e, i))
                return 1
            total += n
    print("%d writes that were synced are there\n%d passed, 0 failed" % (total, rounds))
    return 0


sys.exit(main())
