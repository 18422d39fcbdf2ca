#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A mounted image under load: threads that write, punch and read back their own parts of the disk, by the disk's file and by that of
a partition; others that read snapshots and look for holes; and the control socket, which makes and removes snapshots and bitmaps, resizes and
holds everybody back. Each thread always reads what it wrote, a snapshot never changes, and the image is clean.

usage: load.py [SECONDS [SEED]]      the environment names QCOW; QEMU's qemu-img judges
"""
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

MIB = 1 << 20
PART = 8 * MIB
N_WRITERS = 4
PUNCH, ZERO, KEEP_SIZE = 2, 16, 1
libc = ctypes.CDLL(None, use_errno=True)
failures = []


class Writer(threading.Thread):
    """Owns [PART * (i + 1), +PART) of the disk, which the one partition holds too."""

    def __init__(self, i, rng, end):
        super().__init__(daemon=True)
        self.rng, self.end = rng, end
        self.begin = PART * (i + 1)
        self.paths = (("m/disk", self.begin), ("m/partitions/p1", self.begin - MIB))
        self.content = bytearray(PART)
        self.files = {}

    def step(self, fd, at):
        length = self.rng.choice((512, 4096, 5000, 65536, 200000))
        off = self.rng.randrange(PART - length)
        kind = self.rng.randrange(6)
        if kind < 3:
            data = os.urandom(length)
            assert os.pwrite(fd, data, at + off) == length, "a short write"
            self.content[off:off + length] = data
        elif kind == 3:
            mode = self.rng.choice((PUNCH, ZERO)) | KEEP_SIZE
            if libc.fallocate(fd, mode, ctypes.c_long(at + off), ctypes.c_long(length)):
                raise OSError(ctypes.get_errno(), "fallocate")
            self.content[off:off + length] = bytes(length)
        elif kind == 4:
            os.fsync(fd)
        got = os.pread(fd, length, at + off)
        assert got == self.content[off:off + length], "%d bytes at %d are not what was written" % (length, at + off)

    def run(self):
        try:
            while time.time() < self.end:
                # one file for a while: the other sees it a moment later
                path, at = self.rng.choice(self.paths)
                fd = os.open(path, os.O_RDWR)
                for _ in range(20):
                    self.step(fd, at)
                os.close(fd)
        except (OSError, AssertionError) as e:
            failures.append("%s of %d: %s" % (type(e).__name__, self.begin, e))


class Looker(threading.Thread):
    def __init__(self, rng, end, want):
        super().__init__(daemon=True)
        self.rng, self.end, self.want = rng, end, want

    def run(self):
        try:
            while time.time() < self.end:
                with open("m/snapshots/first", "rb") as f:
                    off = self.rng.randrange(len(self.want))
                    f.seek(off)
                    assert f.read(65536) == self.want[off:off + 65536], "a snapshot has changed"
                fd = os.open("m/disk", os.O_RDONLY)
                try:
                    data = os.lseek(fd, self.rng.randrange(MIB), os.SEEK_DATA)
                    os.lseek(fd, data, os.SEEK_HOLE)
                except OSError as e:
                    assert e.errno == 6, str(e)
                os.close(fd)
                try:  # they come and go
                    for name in os.listdir("m/bitmaps"):
                        with open("m/bitmaps/" + name) as f:
                            json.load(f)
                except OSError as e:
                    assert e.errno in (2, 116), str(e)
                for name in os.listdir("m/snapshots"):
                    try:
                        os.stat("m/snapshots/" + name)
                        with open("m/snapshots/" + name, "rb") as f:
                            f.read(4096)
                    except OSError as e:
                        assert e.errno in (2, 5, 116), str(e)  # it may go meanwhile
        except (OSError, AssertionError, ValueError) as e:
            failures.append("%s of a looker: %s" % (type(e).__name__, e))


def control(end, rng, size):
    s = socket.socket(socket.AF_UNIX)
    s.connect("ctl")
    stream = s.makefile("rw")

    def ask(command, **more):
        stream.write(json.dumps(dict(command=command, **more)) + "\n")
        stream.flush()
        reply = json.loads(stream.readline())
        assert reply.pop("ok"), reply
    n = 0
    while time.time() < end:
        n += 1
        ask("snapshot-create", name="s%d" % n)
        ask("bitmap-add", bitmap="b%d" % n)
        if rng.random() < 0.5:
            size += 65536
            ask("resize", size=size)
        ask("quiesce")
        ask("status")
        ask("resume")
        ask("bitmap-remove", bitmap="b%d" % n)
        ask("snapshot-delete", name="s%d" % n, hard=True)
        time.sleep(rng.random() * 0.05)
    s.close()
    return n


def make_image():
    size = PART * (N_WRITERS + 1)
    with open("raw", "wb") as f:
        f.truncate(size)
        f.seek(446)  # one partition from 1 MiB on
        f.write(bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + ((size - MIB) // 512).to_bytes(4, "little"))
        f.seek(510)
        f.write(b"\x55\xaa")
        f.seek(4 * MIB)
        f.write(os.urandom(MIB))
    subprocess.check_call(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "raw", "image"])
    subprocess.check_call(["qemu-img", "snapshot", "-c", "first", "image"])
    with open("raw", "rb") as f:
        return f.read()


def run_load(qcow, seconds, seed):
    want = make_image()
    process = subprocess.run([qcow, "mount", "-w", "--fork", "--control", "ctl", "--pid-file", "pid", "image", "m"],
                             capture_output=True, text=True)
    if process.returncode:
        print("SKIP there is no FUSE here: " + process.stderr.split("\n")[0])
        return 77
    with open("pid") as f:
        pid = int(f.read())
    end = time.time() + seconds
    writers = [Writer(i, random.Random("%d %d" % (seed, i)), end) for i in range(N_WRITERS)]
    threads = writers + [Looker(random.Random("%d look %d" % (seed, i)), end, want) for i in range(2)]
    for thread in threads:
        thread.start()
    n = 0
    try:
        n = control(end, random.Random(seed), len(want))
    except (AssertionError, OSError, ValueError) as e:
        failures.append("the control socket: %s" % e)
    for thread in threads:
        thread.join(120)
    os.kill(pid, signal.SIGTERM)
    for _ in range(2400):
        if not os.path.exists("pid"):
            break
        time.sleep(0.025)
    subprocess.run(["umount", "-l", "m"], stderr=subprocess.DEVNULL)
    time.sleep(0.2)
    for _ in range(100):  # until its locks are gone
        check = subprocess.run(["qemu-img", "check", "-q", "image"], capture_output=True, text=True)
        if "lock" not in check.stderr:
            break
        time.sleep(0.1)
    if check.returncode:
        failures.append("the image is not clean: " + check.stdout + check.stderr)
    else:
        subprocess.check_call(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "raw"])
        with open("raw", "rb") as f:
            data = f.read()
        for w in writers:
            if data[w.begin:w.begin + PART] != w.content:
                failures.append("the image does not have what was written to %d" % w.begin)
    print("%d changes by the control socket, seed %d" % (n, seed))
    return 0


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(os.environ.get("QK_SEED", "1"))
    qcow = os.path.abspath(os.environ["QCOW"])
    if shutil.which("qemu-img") is None:
        print("SKIP qemu-img is not there")
        return 77
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        os.mkdir("m")
        status = run_load(qcow, seconds, seed)
        subprocess.run(["umount", "-l", "m"], stderr=subprocess.DEVNULL)
        os.chdir("/")
    for failure in failures:
        print("[  FAILED  ] " + failure)
    if status == 0:
        print("%d passed, %d failed" % (0 if failures else 1, len(failures)))
    return 1 if failures else status


sys.exit(main())
