#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Images of all kinds behind `qcow serve`, and an array of bytes beside each: every command with every flag in all three kinds
of headers, many in flight, by a client written from proto.md alone (wire.py). Block status may say nothing that the array
contradicts; bitmaps have all that was written, and nothing far from it. QEMU's qemu-img has the last word on the file.
The newest QEMU serves an image too: what the client demands is what another server gives.

usage: serve_disk.py [--seed N] [--steps N] [TEST...]      the environment names QCOW
"""
import argparse
import os
import random
import struct
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import served
from wire import *  # noqa: F403 pylint: disable=all

SIZE = 6 << 20
CONTEXTS = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"]
GRANULARITY = 65536
KINDS = [("plain", [], False), ("small clusters", ["-o", "cluster_size=512,refcount_bits=1"], False),
         ("subclusters", ["-o", "extended_l2=on,cluster_size=128k"], True), ("version 2", ["-o", "compat=0.10,cluster_size=4k"], True),
         ("lazy refcounts", ["-o", "lazy_refcounts=on"], False), ("a backing file", [], True),
         ("2 MiB clusters", ["-o", "cluster_size=2M"], True), ("data file", ["-o", "data_file={}.data,data_file_raw=on"], False),
         ("allocated", ["-o", "preallocation=metadata"], False), ("compressed", "-c", False)]


class Disk:
    """What the disk must have, what was ever written, and the requests that fly."""

    def __init__(self, data, rng, is_ours=True):
        self.is_ours = is_ours
        self.data, self.rng = bytearray(data), rng
        self.touched = bytearray(SIZE // 512)  # written
        self.sent = bytearray(SIZE // 512)  # or under way
        self.flying = {}

    def is_free(self, off, n):
        return not any(o < off + n and off < o + m for _, _, o, m, _ in self.flying.values())

    @staticmethod
    def touch(sectors, off, n):
        sectors[off // 512:(off + n + 511) // 512] = b"\1" * ((off + n + 511) // 512 - off // 512)

    def judge_status(self, contexts, reply, off, length):
        for name, extents in ((n, reply.status[i]) for n, i in contexts.items() if i in reply.status):
            at = off
            for whole, flags in extents:
                n = min(whole, off + length - at)  # what was asked for stands still; the rest may be written just now
                part = self.data[at:at + n]
                touched = self.touched[at // 512:(at + n + 511) // 512]
                if name == "base:allocation" and flags & 2 and part.count(0) != n:
                    raise AssertionError("[%d, +%d) is called zeros" % (at, n))
                if name.endswith(":b0") and not flags & 1 and any(touched):
                    raise AssertionError("[%d, +%d) was written and is called clean" % (at, n))
                if name.endswith(":b0") and flags & 1:
                    for i in range(at // GRANULARITY, (at + whole - 1) // GRANULARITY + 1):
                        if not any(self.sent[i * GRANULARITY // 512:(i + 1) * GRANULARITY // 512]):
                            raise AssertionError("granule %d was not written and is called dirty" % i)
                if name == "qemu:allocation-depth" and flags not in (0, 1, 2):
                    raise AssertionError("depth %d" % flags)
                if name == "qemu:allocation-depth" and flags == 0 and part.count(0) != n:
                    raise AssertionError("[%d, +%d) is in no layer" % (at, n))
                at += whole


def send(disk, c, kind, off, n):
    rng = disk.rng
    flags = FUA if rng.random() < 0.1 else 0
    payload, data = b"", None
    if kind == WRITE:
        payload = data = rng.choice((rng.randbytes(n), bytes([rng.randrange(256)]) * n, bytes(n)))
    elif kind == ZEROES:
        data = bytes(n)
        # QEMU has made zeros of the whole clusters within when it refuses the rest: what SHOULD NOT be
        can_fast = disk.is_ours or (off | n) % 65536 == 0
        flags |= rng.choice((0, NO_HOLE, FAST_ZERO, NO_HOLE | FAST_ZERO) if can_fast else (0, NO_HOLE))
    elif kind == READ:
        flags |= DF if (c.structured or c.extended) and rng.random() < 0.3 else 0
    elif kind == STATUS:
        flags = REQ_ONE if rng.random() < 0.3 else 0
        if c.extended and c.flags & 0x1000 and rng.random() < 0.5:
            some = rng.sample(list(c.contexts.values()), rng.randrange(1, len(c.contexts) + 1))
            payload = struct.pack(">Q", n) + b"".join(struct.pack(">I", i) for i in some)
    elif kind == FLUSH:
        off = n = 0
    if kind in (WRITE, ZEROES, TRIM):
        disk.touch(disk.sent, off, n)
    cookie = c.send_request(kind, off, n, flags=flags, payload=payload)
    disk.flying[id(c), cookie] = (kind, flags, off, n, data)


def take(disk, c):
    cookie, reply = c.read_reply()
    kind, flags, off, n, data = disk.flying.pop((id(c), cookie))
    what = "command %d [%d, +%d) flags %x" % (kind, off, n, flags)
    if kind == ZEROES and flags & FAST_ZERO and reply.error == ENOTSUP:
        return
    check(what, (reply.error, reply.message), (0, ""))
    if kind == READ:
        check(what, bytes(reply.data) == disk.data[off:off + n], True)
    elif kind in (WRITE, ZEROES):
        disk.data[off:off + n] = data
        disk.touch(disk.touched, off, n)
    elif kind == STATUS:
        disk.judge_status(c.contexts, reply, off, n)
    elif kind == TRIM:  # what it has now is not known: the old bytes or zeros
        disk.touch(disk.touched, off, n)
        now = c.request(READ, off, n).data if not any(k[0] == id(c) for k in disk.flying) else None
        if now is None:
            raise AssertionError("a trim flies alone")
        for i in range(0, n, 512):
            part = now[i:i + 512]
            if part.count(0) != len(part) and part != disk.data[off + i:off + i + len(part)]:
                raise AssertionError("a trim of [%d, +%d) changed %d" % (off, n, off + i))
        disk.data[off:off + n] = now


def step(disk, clients):
    rng = disk.rng
    c = rng.choice(clients)
    n = rng.choice((1, 100, 512, 4096, 4096, 65536, 65537, 200000, 1 << 20))
    off = rng.randrange(0, SIZE - n + 1)
    if rng.random() < 0.6:
        off &= ~4095
    kind = rng.choices((READ, WRITE, ZEROES, TRIM, FLUSH, CACHE, STATUS), (30, 30, 12, 5, 3, 5, 15))[0]
    if kind == STATUS and not c.contexts:
        return
    if kind == TRIM:
        off, n = off & ~511, (n + 511) & ~511
        n = min(n, SIZE - off)
        while any(d.pending for d in clients):
            settle(disk, clients)
        send(disk, c, kind, off, n)
        take(disk, c)
        return
    if disk.is_free(off, n):
        send(disk, c, kind, off, n)
    if sum(len(d.pending) for d in clients) > rng.randrange(12):
        settle(disk, clients)


def settle(disk, clients):
    for c in clients:
        while c.pending:
            take(disk, c)


def image(folder, name, options, has_backing, rng):
    """An image, and what its disk has."""
    path = os.path.join(folder, name.replace(" ", "-"))
    data = bytearray(SIZE)
    if has_backing or options == "-c":
        for _ in range(6):
            n = rng.choice((512, 70000, 300000))
            off = rng.randrange(0, 4 << 20) & ~511
            data[off:off + n] = rng.choice((bytes([rng.randrange(1, 256)]) * n, rng.randbytes(n)))
        with open(path + ".raw", "wb") as f:
            f.write(data)
    if options == "-c":
        served.run(served.IMG, "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", path + ".raw", path)
    elif has_backing:
        served.run(served.IMG, "convert", "-q", "-f", "raw", "-O", "qcow2", path + ".raw", path + ".base")
        served.run(served.IMG, "create", "-q", "-f", "qcow2", "-b", path + ".base", "-F", "qcow2", *options, path, str(SIZE))
    else:
        served.run(served.IMG, "create", "-q", "-f", "qcow2", *(o.format(path) for o in options), path, str(SIZE))
    has_bitmap = name != "version 2"
    if has_bitmap:
        served.run(served.IMG, "bitmap", "--add", "-g", str(GRANULARITY), path, "b0")
    return path, data, has_bitmap


def work(server, name, disk, contexts, steps):
    clients = [server.started(name, mode, contexts=contexts if mode != "simple" else ()) for mode in MODES + ("extended",)]
    for c in clients:
        check("size", c.size, SIZE)
    for _ in range(steps):
        step(disk, clients)
    settle(disk, clients)
    for c in clients:
        check("all of it", bytes(c.request(READ, 0, SIZE).data) == disk.data, True)
        check("flush", c.error(FLUSH), 0)
        c.send_request(DISC)
        check_closed("after DISC", c)


def judge_file(path, data):
    served.run(served.IMG, "check", "-q", path)
    served.run(served.IMG, "convert", "-O", "raw", path, path + ".got")
    with open(path + ".got", "rb") as f:
        check("the file", f.read() == data, True)


def every_kind_of_image(folder):
    for name, options, has_backing in KINDS:
        rng = random.Random("%d %s" % (arguments.seed, name))
        path, data, has_bitmap = image(folder, name, options, has_backing, rng)
        disk = Disk(data, rng)
        server = served.Ours(folder, "--discard=unmap", "-x", "disk", path)
        try:
            work(server, "disk", disk, CONTEXTS if has_bitmap else CONTEXTS[:2], arguments.steps)
        except BaseException:
            print("%s: seed %d: the server says %r" % (name, arguments.seed, server.said()))
            raise
        server.end()
        judge_file(path, disk.data)


def several_images_at_once(folder):
    """Requests to one export change no other."""
    rng = random.Random("%d several" % arguments.seed)
    images = [image(folder, "image %d" % i, [], i == 1, rng) for i in range(3)]
    server = served.Ours(folder, *(a for i in range(3) for a in ("-x", "disk %d" % i)), *(path for path, _, _ in images))
    disks = [Disk(data, rng) for _, data, _ in images]
    clients = [[server.started("disk %d" % i, mode, contexts=CONTEXTS if mode != "simple" else ()) for mode in MODES] for i in range(3)]
    for _ in range(arguments.steps):
        i = rng.randrange(3)
        step(disks[i], clients[i])
    for i in range(3):
        settle(disks[i], clients[i])
        for c in clients[i]:
            c.close()
    server.end()
    for disk, (path, _, _) in zip(disks, images):
        judge_file(path, disk.data)


def the_newest_qemu_as_the_server(folder):
    if not served.newest("qemu-nbd"):
        print("SKIP the newest QEMU is not there (tools/peers/get fetches it)")
        return
    rng = random.Random("%d theirs" % arguments.seed)
    path, data, _ = image(folder, "theirs", [], True, rng)
    disk = Disk(data, rng, False)
    server = served.Theirs(folder, "--discard=unmap", "-x", "disk", "-A", "-B", "b0", "-f", "qcow2", path)
    work(server, "disk", disk, CONTEXTS, arguments.steps)
    server.end()
    judge_file(path, disk.data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=int(os.environ.get("QCOWKIT_SEED", "1"), 0))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("tests", nargs="*")
    arguments = parser.parse_args()
    if not served.IMG:
        print("SKIP qemu-img is not there")
        sys.exit(77)
    print("seed %d" % arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(served.main([every_kind_of_image, several_images_at_once, the_newest_qemu_as_the_server], arguments.tests, folder))
