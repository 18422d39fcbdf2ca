#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Whole sessions as streams of bytes, as nbdkit's fuzzing has them (the six of its testcase_dir, by their names, and richer ones):
each to `qcow serve -` at standard input, then thousands that are cut, changed, doubled and mixed, to one server at a socket. It
answers or closes, never ends, never keeps one; the image is sound afterwards.

usage: serve_streams.py [--seed N] [--streams N]      the environment names QCOW
"""
import argparse
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import served
from wire import *  # noqa: F403 pylint: disable=all

SIZE = 1 << 20


def option(name, data=b""):
    return struct.pack(">QII", IHAVEOPT, OPT[name], len(data)) + data


def request(kind, off=0, n=0, flags=0, payload=b"", cookie=1):
    return struct.pack(">IHHQQI", REQUEST, flags, kind, cookie, off, n) + payload


def long_request(kind, off=0, n=0, flags=0, payload=b"", cookie=1):
    return struct.pack(">IHHQQQ", EXT_REQUEST, flags | (PAYLOAD_LEN if payload else 0), kind, cookie, off, n) + payload


FLAGS = struct.pack(">I", 3)
GO = FLAGS + option("GO", info_data(""))
EVERYTHING = FLAGS + option("LIST") + option("INFO", info_data("", 0, 1, 2, 3)) + option("STRUCTURED") + \
    option("LIST_META", meta_data("")) + option("SET_META", meta_data("", "base:allocation", "qemu:allocation-depth"))
DISCONNECT = request(DISC)
STREAMS = {
    "newstyle-cflags-exportname": FLAGS + option("EXPORT_NAME"),
    "newstyle-cflags-exportname-read4": FLAGS + option("EXPORT_NAME") + b"".join(request(READ, i * 512, 512, cookie=i) for i in range(4)),
    "newstyle-cflags-go": GO,
    "newstyle-cflags-go-read": GO + request(READ, 0, 512),
    "newstyle-cflags-go-read4": GO + b"".join(request(READ, i * 512, 512, cookie=i) for i in range(4)),
    "newstyle-cflags-go-write": GO + request(WRITE, 0, 512, payload=b"w" * 512),
    "abort": FLAGS + option("ABORT"),
    "structured": EVERYTHING + option("GO", info_data("", 3)) + request(READ, 0, 65536) + request(STATUS, 0, SIZE) +
    request(ZEROES, 0, 4096, FAST_ZERO) + request(TRIM, 0, 65536) + request(CACHE, 0, SIZE) + request(WRITE, 9, 3, FUA, b"abc") +
    request(READ, 0, 65536, DF) + request(STATUS, 0, SIZE, REQ_ONE) + request(FLUSH) + DISCONNECT,
    "extended": FLAGS + option("EXTENDED") + EVERYTHING[4:] + option("GO", info_data("", 3)) + long_request(READ, 0, 65536) +
    long_request(STATUS, 0, SIZE) + long_request(STATUS, 0, 12, payload=struct.pack(">QI", SIZE, 0)) +
    long_request(WRITE, 70000, 600, payload=b"e" * 600) + long_request(ZEROES, 0, SIZE, NO_HOLE) + long_request(FLUSH) + long_request(DISC),
}


def ends(stream, name):
    """What the last bytes of the answer must be."""
    if name.endswith("read4"):
        return [struct.pack(">IIQ", SIMPLE, 0, i) + b"a" * 512 for i in range(4)]
    if name.endswith("read"):
        return [struct.pack(">IIQ", SIMPLE, 0, 1) + b"a" * 512]
    if name.endswith("write"):
        return [struct.pack(">IIQ", SIMPLE, 0, 1)]
    if name.endswith("go"):
        return [struct.pack(">QIII", REPMAGIC, OPT["GO"], ACK, 0)]
    return []


def at_standard_input(image, stream, sink):
    """`qcow serve -` with two pipes, as ssh has it, with a file as the input, as nbdkit's -s has it, or with a socket as both."""
    argv = [os.environ["QCOW"], "serve", "-", image]
    if sink == "pipes":
        return subprocess.run(argv, input=stream, capture_output=True, timeout=120)
    if sink == "file":
        with tempfile.TemporaryFile() as f:
            f.write(stream)
            f.seek(0)
            return subprocess.run(argv, stdin=f, capture_output=True, timeout=120)
    ours, theirs = socket.socketpair()
    p = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
    theirs.close()
    out = bytearray()
    reader = threading.Thread(target=lambda: drain(ours, out))
    reader.start()
    try:
        ours.sendall(stream)
        ours.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    _, err = p.communicate(timeout=120)
    reader.join()
    ours.close()
    return subprocess.CompletedProcess(argv, p.returncode, bytes(out), err)


def drain(sock, out):
    try:
        while True:
            part = sock.recv(65536)
            if not part:
                return
            out += part
    except OSError:
        pass


def whole_streams(folder, image):
    for name, stream in STREAMS.items():
        for sink in ("pipes", "file", "socket"):
            r = at_standard_input(image, stream, sink)
            check("%s by a %s: status, stderr" % (name, sink), (r.returncode, r.stderr), (0, b""))
            check("the greeting", r.stdout[:18], struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3))
            for piece in ends(stream, name):
                check("%s by a %s: %r is answered" % (name, sink, piece[:16]), piece in r.stdout, True)
            if name == "newstyle-cflags-go-write":  # as it was
                at_standard_input(image, GO + request(WRITE, 0, 512, payload=b"a" * 512) + DISCONNECT, sink)


def changed(rng):
    """A stream, and something wrong in it."""
    stream = bytearray(rng.choice(list(STREAMS.values())))
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(stream))
        what = rng.randrange(7)
        if what == 0:
            stream[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            stream[at] = rng.choice((0, 1, 0x7f, 0x80, 0xff))
        elif what == 2:
            del stream[at:at + rng.choice((1, 2, 4, 8, 100))]
        elif what == 3:
            stream[at:at] = stream[at:at + rng.choice((1, 8, 16, 28, 32))]
        elif what == 4:
            stream[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        elif what == 5:
            n = rng.choice((2, 4, 8))
            stream[at:at + n] = rng.choice((0, 1, (1 << 8 * n) - 1, 1 << 8 * n - 1, SIZE % (1 << 8 * n))).to_bytes(n, "big")
        else:
            stream[at:] = rng.choice(list(STREAMS.values()))[rng.randrange(40):]
        if not stream:
            stream = bytearray(b"\0")
    return bytes(stream)


def changed_streams(folder, image):
    rng = random.Random(arguments.seed)
    server = served.Ours(folder, image)
    for i in range(arguments.streams):
        stream = changed(rng)
        c = server.client(timeout=60)
        out = bytearray()
        try:
            c.sock.sendall(stream)
            c.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        begin = time.time()
        drain(c.sock, out)
        if time.time() - begin > 50 or server.process.poll() is not None:
            raise AssertionError("stream %d of seed %d: status %r: %s" % (i, arguments.seed, server.process.poll(), stream.hex()))
        c.close()
    c = server.started("", "extended")
    check("served", c.request(READ, 0, 512).error, 0)
    c.close()
    check("connections that are left", server.connections_left(), [])
    check("the server's status", server.stop(), 0)
    for _ in range(10):
        stream = changed(rng)
        r = at_standard_input(image, stream, rng.choice(("pipes", "file", "socket")))
        if r.returncode not in (0, 1):
            raise AssertionError("status %d: %s %r" % (r.returncode, stream.hex(), r.stderr))
    served.run(served.IMG, "check", "-q", image)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=int(os.environ.get("QCOWKIT_SEED", "1"), 0))
    parser.add_argument("--streams", type=int, default=1500)
    arguments = parser.parse_args()
    if not served.IMG:
        print("SKIP qemu-img is not there")
        sys.exit(77)
    print("seed %d" % arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        image = os.path.join(folder, "image")
        with open(image + ".raw", "wb") as f:
            f.write(b"a" * SIZE)
        served.run(served.IMG, "convert", "-f", "raw", "-O", "qcow2", image + ".raw", image)
        sys.exit(served.main([whole_streams, changed_streams], [], folder, image))
