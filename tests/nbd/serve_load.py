#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Clients that write and read at once, some of which come and go, while the control socket makes snapshots and bitmaps, resizes,
adds and removes exports, and holds everybody back. Each client knows what its part of the disk holds; in the end qemu-img does
too. Under ThreadSanitizer this is the test of the server as a whole.
usage: serve_load.py [SECONDS [SEED]]      the environment names QCOW
"""
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import served  # noqa: E402
from wire import CACHE, Closed, FLUSH, FUA, READ, STATUS, TRIM, WRITE, ZEROES  # noqa: E402

PART, N_PARTS = 4 << 20, 4
MODES = ("simple", "structured", "extended")


class Part(threading.Thread):
    """A client and its part of the disk: an array of bytes. Several requests are in flight, which do not overlap."""

    def __init__(self, server, number, seed, until):
        super().__init__()
        self.server, self.base, self.until = server, number * PART, until
        self.rng = random.Random(seed * 100 + number)
        self.disk, self.failure, self.n_requests = bytearray(PART), None, 0

    def run(self):
        try:
            while time.time() < self.until:
                self.session(self.rng.choice(MODES))
        except Exception:
            self.failure = traceback.format_exc()

    def session(self, mode):
        contexts = () if mode == "simple" else ("base:allocation", "qemu:allocation-depth")
        c = self.server.started("", mode, contexts=contexts)
        for _ in range(self.rng.randrange(3, 60)):
            self.batch(c, contexts)
            if time.time() >= self.until:
                break
        c.close()

    def batch(self, c, contexts):
        n, at, reads, cookies, trims = self.rng.choice((512, 4096, 65536, 200192)), 0, {}, set(), []
        while at + n <= PART and len(cookies) < self.rng.randrange(1, 24):
            off = at + self.rng.randrange(1 + min(n, PART - at - n)) // 512 * 512
            at = off + n
            kind = self.rng.choice((READ, READ, WRITE, WRITE, WRITE, ZEROES, TRIM, CACHE, STATUS if contexts else FLUSH))
            flags = FUA if kind == WRITE and self.rng.random() < 0.02 else 0
            data = self.rng.randbytes(n) if kind == WRITE else b""
            where = (0, 0) if kind == FLUSH else (self.base + off, n)
            cookie = c.send_request(kind, *where, flags=flags, payload=data)
            cookies.add(cookie)
            if kind == READ:
                reads[cookie] = bytes(self.disk[off:off + n])
            elif kind in (WRITE, ZEROES):
                self.disk[off:off + n] = data or bytes(n)
            elif kind == TRIM:
                trims.append(off)
        while cookies:
            cookie, reply = c.read_reply()
            cookies.remove(cookie)
            self.n_requests += 1
            assert reply.error == 0, "error %d" % reply.error
            assert cookie not in reads or reply.data == reads[cookie], "other bytes than were written"
        for off in trims:  # each sector is what it was, or zeros
            now = c.request(READ, self.base + off, n).data
            for i in range(0, n, 512):
                assert now[i:i + 512] in (self.disk[off + i:off + i + 512], bytes(512)), "other bytes in what was trimmed"
            self.disk[off:off + n] = now


def half_open(server, until):
    """Who connects and says nothing, or half of it."""
    rng = random.Random(5)
    while time.time() < until:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(server.path)
            s.sendall(b"\0\0\0\3IHAVEOPT\0\0\0\3\0\0\0\0IHAVE"[:rng.randrange(1, 22)])
            time.sleep(0.02)


def act(server, rng, i, other):
    """One command of each kind, and those that undo it."""
    size = (PART * N_PARTS) + rng.randrange(1 << 20) * 512
    snapshot, bitmap = "s%d" % i, "b%d" % i
    for line in rng.sample([
            (("snapshot-create", "name=" + snapshot, "export-it"), ("status",), ("snapshot-delete", "name=" + snapshot, "hard")),
            (("bitmap-add", "bitmap=" + bitmap), ("bitmap-clear", "bitmap=" + bitmap), ("bitmap-disable", "bitmap=" + bitmap),
             ("bitmap-enable", "bitmap=" + bitmap), ("bitmap-remove", "bitmap=" + bitmap)),
            (("resize", "size=%d" % size), ("resize", "size=%d" % (PART * N_PARTS), "shrink")),
            (("export-add", "name=other", "file=" + other), ("status",), ("export-remove", "name=other", "hard"))], 2):
        for words in line:
            server.tell(*words)
    hold = '{"command": "quiesce"}\n{"command": "status"}\n{"command": "resume"}\n'
    said = subprocess.run([os.environ["QCOW"], "ctl", server.control], input=hold, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0 and '"quiesced": true' in said.stdout, said.stdout + said.stderr


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 4
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    qemu_img = shutil.which("qemu-img")
    if qemu_img is None:
        print("SKIP qemu-img is not there")
        return 77
    print("seed %d" % seed)
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        image, other = os.path.join(folder, "image"), os.path.join(folder, "other")
        for name in (image, other):
            served.run(qemu_img, "create", "-q", "-f", "qcow2", "-o", rng.choice(["compat=1.1", "cluster_size=4k", "extended_l2=on"]),
                       name, str(PART * N_PARTS))
        server = served.Ours(folder, "--detect-zeroes=unmap", image)
        until = time.time() + seconds
        parts = [Part(server, i, seed, until) for i in range(N_PARTS)]
        idle = threading.Thread(target=half_open, args=(server, until))
        for t in parts + [idle]:
            t.start()
        n_acts = 0
        while time.time() < until:
            act(server, rng, n_acts, other)
            n_acts += 1
        for t in parts + [idle]:
            t.join()
        failures = [p.failure for p in parts if p.failure]
        status = json.loads(server.tell("status"))
        if status["in-flight-bytes"] > 4 * (128 << 10):
            failures.append("%d bytes in flight" % status["in-flight-bytes"])
        server.end()
        served.run(qemu_img, "check", "-q", image)
        served.run(qemu_img, "convert", "-f", "qcow2", "-O", "raw", image, other)
        with open(other, "rb") as f:
            if f.read() != b"".join(p.disk for p in parts):
                failures.append("the disk is not what was written")
    print("\n".join(failures))
    print("%d requests, %d times every command\n%d passed, %d failed" % (sum(p.n_requests for p in parts), n_acts, not failures, len(failures)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
