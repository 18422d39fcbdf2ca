#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`qcow serve` is killed again and again while a client writes. Whenever it happens: the image is sound (clusters may
leak), and each sector has what it had when the last flush was answered, or something that was written since.

usage: serve_kill.py [ROUNDS [SEED]]      the environment names QCOW; QEMU's qemu-img judges
"""
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

SECTOR, DISK = 512, 4 << 20
WRITE, FLUSH, TRIM, ZERO = 1, 3, 4, 6
FUA, NO_HOLE = 1, 2


class Disk:
    """What each sector may have after a crash, and what it has for who reads it now. Values are numbers of changes, 0: zeros."""

    def __init__(self):
        self.allowed = [{0} for _ in range(DISK // SECTOR)]
        self.current = [{0} for _ in range(DISK // SECTOR)]
        self.changed = set()

    def change(self, off, length, value, is_trim):
        for i in range(off // SECTOR, (off + length) // SECTOR):
            self.allowed[i].add(value)
            self.current[i] = self.current[i] | {value} if is_trim else {value}
            self.changed.add(i)

    def flushed(self):
        for i in self.changed:
            self.allowed[i] = set(self.current[i])
        self.changed.clear()

    def judge(self, data):
        """What the disk has is what counts from now on."""
        for i in range(DISK // SECTOR):
            sector = data[i * SECTOR:(i + 1) * SECTOR]
            number, place = struct.unpack_from("<QQ", sector)
            assert sector == sector[:16] * (SECTOR // 16), "sector %d is torn" % i
            assert number == 0 or place == i, "sector %d has what was written to %d" % (i, place)
            assert number in self.allowed[i], "sector %d has change %d, and may have %s" % (i, number, sorted(self.allowed[i]))
            self.allowed[i] = {number}
            self.current[i] = {number}
        self.changed.clear()


class Client:
    """One connection and its requests in flight, none of which overlap."""

    def __init__(self, path):
        self.flying, self.handle = {}, 0
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        self.s.settimeout(60)
        assert self.get(16) == b"NBDMAGICIHAVEOPT"
        self.get(2)
        self.s.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))
        size, flags = struct.unpack(">QH", self.get(10))
        assert size == DISK and flags & 0x6d == 0x6d, (size, flags)  # flush, FUA, trim, zeroes

    def get(self, n):
        b = b""
        while len(b) < n:
            more = self.s.recv(n - len(b))
            assert more, "the server went away"
            b += more
        return b

    def send(self, kind, flags=0, off=0, length=0, data=b""):
        self.handle += 1
        self.flying[self.handle] = (off, length)
        self.s.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind, self.handle, off, length) + data)

    def settle(self, most):
        """Take answers until at most so many requests are in flight."""
        while len(self.flying) > most:
            magic, error, handle = struct.unpack(">IIQ", self.get(16))
            assert magic == 0x67446698 and error == 0, (hex(magic), error)
            del self.flying[handle]

    def is_free(self, off, length):
        return not any(o < off + length and off < o + n for o, n in self.flying.values())


def change(client, disk, rng, number):
    length = rng.choice((1, 1, 8, 128, 300)) * SECTOR
    off = rng.randrange((DISK - length) // SECTOR) * SECTOR
    if not client.is_free(off, length):
        return
    kind = rng.choices((WRITE, ZERO, TRIM), (8, 2, 1))[0]
    flags = FUA if rng.random() < 0.05 else NO_HOLE if kind == ZERO and rng.random() < 0.5 else 0
    disk.change(off, length, number if kind == WRITE else 0, kind == TRIM)
    data = b""
    if kind == WRITE:
        data = b"".join(struct.pack("<QQ", number, i) * (SECTOR // 16) for i in range(off // SECTOR, (off + length) // SECTOR))
    client.send(kind, flags, off, length, data)


def start(qcow, image):
    for name in ("pid", "s"):
        if os.path.exists(name):
            os.unlink(name)
    process = subprocess.Popen([qcow, "serve", "-t", "-k", "s", "--pid-file", "pid", image])
    for _ in range(2400):
        if os.path.exists("pid") and os.path.getsize("pid"):
            return process
        assert process.poll() is None, "the server ended with %r" % process.returncode
        time.sleep(0.025)
    raise AssertionError("the server does not start")


def run_round(qcow, image, disk, rng, first):
    """Write until the server ends. The number of the next change."""
    process = start(qcow, image)
    client = Client("s")
    number, n_requests = first, rng.randrange(5, 600)
    is_killed = rng.random() < 0.9
    for _ in range(n_requests):
        if rng.random() < 0.04:
            client.settle(0)
            client.send(FLUSH)
            client.settle(0)
            disk.flushed()
            continue
        change(client, disk, rng, number)
        number += 1
        client.settle(rng.randrange(9))
    if is_killed:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=120)
    else:
        client.settle(0)
        process.terminate()
        assert process.wait(timeout=120) == 0
        disk.flushed()
    client.s.close()
    return number


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    qcow, qemu_img = os.environ["QCOW"], shutil.which("qemu-img")
    if qemu_img is None:
        print("SKIP qemu-img is not there")
        return 77
    rng = random.Random(seed)
    print("seed %d" % seed)
    n_bad = number = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for i in range(rounds):
            if i % 10 == 0:
                options = rng.choice(["cluster_size=64k", "cluster_size=4k", "cluster_size=512,refcount_bits=1",
                                      "extended_l2=on", "compat=0.10", "lazy_refcounts=on"])
                subprocess.check_call([qemu_img, "create", "-q", "-f", "qcow2", "-o", options, "image", str(DISK)])
                disk = Disk()
            try:
                number = run_round(qcow, "image", disk, rng, number + 1)
                check = subprocess.run([qemu_img, "check", "-f", "qcow2", "image"], capture_output=True, text=True)
                assert check.returncode in (0, 3), check.stdout + check.stderr
                subprocess.check_call([qemu_img, "convert", "-f", "qcow2", "-O", "raw", "image", "raw"])
                with open("raw", "rb") as f:
                    disk.judge(f.read())
            except AssertionError as e:
                n_bad += 1
                print("[  FAILED  ] round %d of seed %d (%s): %s" % (i, seed, options, e))
                break
        os.chdir("/")
    print("%d passed, %d failed" % (rounds if n_bad == 0 else i, n_bad))
    return 1 if n_bad else 0


sys.exit(main())
