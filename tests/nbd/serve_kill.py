#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`qcow serve` is killed again and again while a client writes, or with --mount `qcow mount` while a program writes to its
file. Whenever it happens: the image is sound (clusters may leak), and each sector has what it had when the last flush was
answered, or something that was written since.

usage: serve_kill.py [--mount] [ROUNDS [SEED]]      the environment names QCOW; QEMU's qemu-img judges
"""
import atexit
import ctypes
import os
import queue
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
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

    def close(self):
        self.s.close()


class Program:
    """The same by a file, on which several threads work. What fails after the server was killed is not looked at."""
    KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
    libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, path):
        self.f = os.open(path, os.O_RDWR)
        self.flying, self.handle, self.lock, self.errors = {}, 0, threading.Condition(), 0
        self.work = queue.Queue()
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(4)]
        for thread in self.threads:
            thread.start()

    def run(self):
        while True:
            job = self.work.get()
            if job is None:
                return
            handle, kind, flags, off, length, data = job
            try:
                self.do(kind, flags, off, length, data)
            except OSError:
                self.errors += 1
            with self.lock:
                del self.flying[handle]
                self.lock.notify()

    def do(self, kind, flags, off, length, data):
        if kind == WRITE:
            if os.pwrite(self.f, data, off) != length:
                raise OSError("short")
        elif kind != FLUSH:
            mode = self.ZERO_RANGE if flags & NO_HOLE else self.PUNCH_HOLE
            if self.libc.fallocate(self.f, mode | self.KEEP_SIZE, ctypes.c_long(off), ctypes.c_long(length)):
                raise OSError(ctypes.get_errno())
        if kind == FLUSH or flags & FUA:
            os.fsync(self.f)

    def send(self, kind, flags=0, off=0, length=0, data=b""):
        if kind == TRIM:  # not of a file: its holes are zeros
            kind = ZERO
        self.handle += 1
        with self.lock:
            self.flying[self.handle] = (off, length)
        self.work.put((self.handle, kind, flags, off, length, data))

    def settle(self, most):
        with self.lock:
            assert self.lock.wait_for(lambda: len(self.flying) <= most, 60), "no answer"
        assert self.errors == 0, "a request failed"

    def is_free(self, off, length):
        with self.lock:
            return not any(o < off + length and off < o + n for o, n in self.flying.values())

    def close(self):
        for _ in self.threads:
            self.work.put(None)
        for thread in self.threads:
            thread.join(60)
        try:
            os.close(self.f)
        except OSError:
            pass  # its server was killed


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


def start(qcow, image, mounts):
    for name in ("pid", "s"):
        if os.path.exists(name):
            os.unlink(name)
    how = ["mount", "-w", image, "m"] if mounts else ["serve", "-t", "-k", "s", image]
    process = subprocess.Popen([qcow, *how, "--pid-file", "pid"])
    for _ in range(2400):
        if os.path.exists("pid") and os.path.getsize("pid"):
            return process
        assert process.poll() is None, "the server ended with %r" % process.returncode
        time.sleep(0.025)
    raise AssertionError("the server does not start")


def unmount(point="m"):
    """What a server that was killed leaves, or one that could not start."""
    for how in (["umount", "-l", point], ["fusermount3", "-u", "-z", point]):
        if shutil.which(how[0]) and subprocess.run(how, stderr=subprocess.DEVNULL).returncode == 0:
            return


def run_round(qcow, image, disk, rng, first, mounts):
    """Write until the server ends. The number of the next change."""
    process = start(qcow, image, mounts)
    client = Program("m/disk") if mounts else Client("s")
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
    client.close()
    if mounts and is_killed:
        unmount()
    return number


def can_mount(qcow, qemu_img):
    subprocess.check_call([qemu_img, "create", "-q", "-f", "qcow2", "probe", "1M"])
    r = subprocess.run([qcow, "mount", "--fork", "probe", "m"], capture_output=True, text=True)
    if r.returncode:
        print("SKIP there is no FUSE here: " + r.stderr.split("\n")[0])
        return False
    unmount()
    return True


def main():
    mounts = "--mount" in sys.argv
    numbers = [int(x) for x in sys.argv[1:] if x != "--mount"]
    rounds = numbers[0] if numbers else 20
    seed = numbers[1] if len(numbers) > 1 else random.SystemRandom().randrange(1 << 32)
    qcow, qemu_img = os.environ["QCOW"], shutil.which("qemu-img")
    if qemu_img is None:
        print("SKIP qemu-img is not there")
        return 77
    rng = random.Random(seed)
    print("seed %d" % seed)
    n_bad = number = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        os.mkdir("m")
        if mounts:
            atexit.register(unmount, os.path.join(folder, "m"))
        if mounts and not can_mount(qcow, qemu_img):
            os.chdir("/")
            return 77
        for i in range(rounds):
            if i % 10 == 0:
                options = rng.choice(["cluster_size=64k", "cluster_size=4k", "cluster_size=512,refcount_bits=1",
                                      "extended_l2=on", "compat=0.10", "lazy_refcounts=on"])
                subprocess.check_call([qemu_img, "create", "-q", "-f", "qcow2", "-o", options, "image", str(DISK)])
                disk = Disk()
            try:
                number = run_round(qcow, "image", disk, rng, number + 1, mounts)
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
