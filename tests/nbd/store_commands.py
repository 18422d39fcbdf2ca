#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Our own client (src/store_nbd): exports as source, target and backing file of every command that opens images; how many
connections it makes, and when; servers that go away in the middle, never answer, or come late.

usage: store_commands.py [TEST...]      the environment names QCOW
"""
import json
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

QCOW = os.environ["QCOW"]
SIZE = 48 << 20


class Refused(Exception):
    """A reply with an error of that number."""

    def __init__(self, number):
        super().__init__()
        self.number = number


class Fake(threading.Thread):
    """A server of zeros in simple replies, of one thread a client, that does what a test needs: answers so many requests and ends,
    or never ends the handshake, or takes so many clients, or does not end a connection when it is told that no more comes."""

    def __init__(self, path, answers=None, is_mute=False, clients=None, flags=0x1 | 0x4 | 0x100, stays=False, size=SIZE):
        super().__init__(daemon=True)
        self.answers, self.is_mute, self.flags, self.stays = answers, is_mute, flags, stays
        self.size = size
        self.room = clients
        self.n_clients = self.n_ready = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        self.lock = threading.Lock()
        self.sockets = []
        self.start()

    def run(self):
        while True:
            s, _ = self.listener.accept()
            self.n_clients += 1
            self.sockets.append(s)
            if self.is_mute or (self.room is not None and self.n_clients > self.room):
                continue
            threading.Thread(target=self.serve, args=(s,), daemon=True).start()

    def serve(self, s):
        def get(n):
            b = b""
            while len(b) < n:
                part = s.recv(n - len(b))
                if not part:
                    raise OSError
                b += part
            return b
        try:
            s.sendall(struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3))
            get(4)
            while True:
                _, option, n = struct.unpack(">QII", get(16))
                get(n)
                if option == OPT["GO"]:
                    s.sendall(struct.pack(">QIIIHQH", REPMAGIC, option, INFO, 12, 0, self.size, self.flags))
                    s.sendall(struct.pack(">QIII", REPMAGIC, option, ACK, 0))
                    self.n_ready += 1
                    break
                s.sendall(struct.pack(">QIII", REPMAGIC, option, ERR["UNSUP"], 0))
            while True:
                _, _, kind, cookie, off, n = struct.unpack(">IHHQQI", get(28))
                if kind == DISC:
                    if self.stays:
                        time.sleep(1000)
                    break
                data = get(n if kind == WRITE else 0)
                error = 0
                try:
                    with self.lock:
                        data = self.carry_out(s, kind, off, n, data)
                except Refused as e:
                    error, data = e.number, b""
                s.sendall(struct.pack(">IIQ", SIMPLE, error, cookie) + data)
        except OSError:
            for other in self.sockets if self.answers == 0 else [s]:
                try:
                    other.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        s.close()

    def carry_out(self, s, kind, off, n, data):
        """What goes behind the reply; OSError: the end of all clients."""
        if self.answers == 0:
            raise OSError
        self.answers = None if self.answers is None else self.answers - 1
        return bytes(n if kind == READ else 0)


def fails(*argv):
    """What it says; a server that is gone ends no program but with an error."""
    r = subprocess.run(argv, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
    check("status of %s" % " ".join(argv[1:3]), r.returncode, 1)
    return r.stderr


def nbd(path, **more):
    return "driver=nbd,path=" + path + "".join(",%s=%s" % (k.replace("_", "-"), v) for k, v in more.items())


def comes_true(what, condition):
    """Who accepts connections may be late to count them."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(what)


def sample(folder, name):
    """A raw disk with holes, the same as qcow2."""
    rng = random.Random(name)
    raw, path = os.path.join(folder, name + ".raw"), os.path.join(folder, name)
    with open(raw, "wb") as f:
        f.truncate(SIZE)
        for _ in range(12):
            f.seek(rng.randrange(SIZE - (1 << 20)) & ~4095)
            f.write(rng.randbytes(rng.choice((4096, 65536, 1 << 20))))
    served.run(served.IMG, "convert", "-f", "raw", "-O", "qcow2", raw, path)
    return raw, path


def every_command_on_a_raw_export(folder):
    raw, path = sample(folder, "disk")
    server = served.Ours(folder, "-x", "disk", path)
    uri = server.uri("disk")
    out = lambda name: os.path.join(folder, "out." + name)
    info = json.loads(served.run(QCOW, "info", "--output=json", uri))
    check("info", (info["format"], info["virtual-size"]), ("raw", SIZE))
    served.run(QCOW, "convert", "-O", "qcow2", uri, out("convert"))
    served.run(QCOW, "convert", "-c", "-O", "qcow2", uri, out("compressed"))
    served.run(QCOW, "dd", "-f", "raw", "-O", "raw", "if=" + uri, "of=" + out("dd"), "bs=1M")
    for name, fmt in (("convert", "qcow2"), ("compressed", "qcow2"), ("dd", "raw")):
        served.run(served.IMG, "compare", "-f", "raw", "-F", fmt, raw, out(name))
    served.run(QCOW, "compare", "-f", "raw", "-F", "raw", uri, raw)
    theirs = json.loads(served.run(served.IMG, "map", "--output=json", "-f", "raw", uri))
    ours = json.loads(served.run(QCOW, "map", "--output=json", "-f", "raw", uri))
    check("map", [(e["start"], e["length"], e["zero"]) for e in ours], [(e["start"], e["length"], e["zero"]) for e in theirs])
    check("measure", served.run(QCOW, "measure", "-f", "raw", "-O", "qcow2", uri).split("\n")[0],
          served.run(served.IMG, "measure", "-f", "raw", "-O", "qcow2", uri).split("\n")[0])
    check("check", "does not support checks" in subprocess.run([QCOW, "check", "-f", "raw", uri], capture_output=True, text=True).stderr, True)
    served.run(QCOW, "bench", "-c", "50", "-f", "raw", uri)
    served.run(QCOW, "io", "-f", "raw", "-c", "write -P 9 1M 64k", "-c", "read -P 9 1M 64k", "-c", "write -z 2M 64k", "-c", "flush", uri)
    served.run(served.IMG, "compare", "-f", "raw", "-F", "raw", uri, server.uri("disk"))
    served.run(QCOW, "convert", "-n", "-f", "raw", "-O", "raw", raw, uri)
    served.run(QCOW, "compare", "-f", "raw", "-F", "raw", uri, raw)
    server.end()
    served.run(served.IMG, "check", "-q", path)
    served.run(served.IMG, "compare", "-f", "raw", raw, path)


def every_command_on_a_qcow2_image_in_an_export(folder):
    raw, path = sample(folder, "inner")
    holder = os.path.join(folder, "holder")
    with open(holder, "wb") as f:
        f.truncate(128 << 20)
    server = served.Ours(folder, "-f", "raw", "-x", "holder", holder)
    uri = server.uri("holder")
    qcow = lambda *argv: served.run(QCOW, *argv)
    qcow("create", "-f", "qcow2", uri, "10M")
    qcow("convert", "-f", "raw", "-O", "qcow2", raw, uri)
    qcow("check", "-q", uri)
    check("info", json.loads(qcow("info", "--output=json", uri))["format"], "qcow2")
    qcow("bitmap", "--add", uri, "b0")
    qcow("snapshot", "-c", "one", uri)
    qcow("io", "-c", "write -P 7 3M 1M", uri)
    check("snapshot", "one" in qcow("snapshot", "-l", uri), True)
    qcow("snapshot", "-a", "one", uri)
    qcow("snapshot", "-d", "one", uri)
    qcow("amend", "-o", "lazy_refcounts=on", uri)
    qcow("resize", uri, "60M")
    qcow("resize", "--shrink", uri, "48M")
    qcow("compare", "-f", "qcow2", "-F", "raw", uri, raw)
    qcow("measure", "-O", "qcow2", uri)
    qcow("map", uri)
    qcow("dump", uri)
    qcow("dd", "-O", "qcow2", "if=" + uri, "of=" + os.path.join(folder, "dd.qcow2"), "bs=1M")
    qcow("bitmap", "--remove", uri, "b0")
    server.end()
    served.run(served.IMG, "compare", "-f", "qcow2", "-F", "raw", holder, raw)
    served.run(served.IMG, "check", "-q", "-f", "qcow2", holder)


def a_backing_file_in_an_export(folder):
    raw, path = sample(folder, "base")
    server = served.Ours(folder, "-r", "-x", "base", path)
    uri, over, chain = server.uri("base"), os.path.join(folder, "over"), None
    served.run(QCOW, "create", "-q", "-f", "qcow2", "-b", uri, "-F", "raw", over)
    says = fails(QCOW, "map", over)
    check("an image may not name it", "no plain path" in says, True)
    chain = "driver=qcow2,file.filename=%s,backing.driver=raw,backing.file.driver=nbd,backing.file.path=%s,backing.file.export=base" % (over, server.path)
    served.run(QCOW, "compare", "--image-opts", chain, "driver=raw,file.filename=" + raw)
    served.run(QCOW, "io", "--image-opts", "-c", "write -P 4 1M 100k", "-c", "read -P 4 1M 100k", chain)
    served.run(QCOW, "convert", "--image-opts", "-O", "raw", chain, over + ".flat")
    served.run(served.IMG, "compare", "-f", "qcow2", "-F", "raw", over, over + ".flat")
    alone = os.path.join(folder, "alone")
    served.run(served.IMG, "convert", "-O", "qcow2", over, alone)
    served.run(QCOW, "rebase", "-u", "-b", uri, "-F", "raw", alone)
    check("rebase -u", json.loads(served.run(served.IMG, "info", "--output=json", alone))["backing-filename"], uri)
    served.run(served.IMG, "compare", "-f", "qcow2", "-F", "raw", alone, over + ".flat")
    server.end()


def what_a_server_says_of_a_range(folder):
    """x-dirty-bitmap: `map` prints what QEMU's does, whoever the server is."""
    def write(where, *commands):
        served.run(os.environ["QCOW_QEMU_IO"], "-f", "qcow2", *[a for c in commands for a in ("-c", c)], where)

    base, path = os.path.join(folder, "asked.base"), os.path.join(folder, "asked")
    served.run(served.IMG, "create", "-q", "-f", "qcow2", base, "4M")
    write(base, "write -q -P 1 0 1M")
    served.run(served.IMG, "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path, "4M")
    served.run(served.IMG, "bitmap", "--add", path, "b0")
    write(path, "write -q -P 3 1M 100k", "write -q -z 2M 128k", "write -q -P 1 3M 64k")
    servers = [served.Ours(folder, "-r", path)]
    if served.newest("qemu-nbd"):
        servers.append(served.Theirs(folder, "-r", "-A", "-B", "b0", "-f", "qcow2", path))
    for server in servers:
        for context in ("qemu:dirty-bitmap:b0", "qemu:allocation-depth", "base:allocation", None):
            more = {} if context is None else {"x-dirty-bitmap": context}
            for operand in (nbd(server.path, **more), "driver=raw,file." + nbd(server.path, **more).replace(",", ",file.")):
                for output in ("json", "human"):
                    ours = served.run(os.environ["QCOW_QEMU_IMG"], "map", "--output=" + output, "--image-opts", operand)
                    for img in filter(None, (served.newest("qemu-img"), served.IMG)):
                        theirs = served.run(img, "map", "--output=" + output, "--image-opts", operand)
                        if "compressed" not in theirs:  # before QEMU 8.2
                            ours = ours.replace(', "compressed": false', "")
                        check(operand, ours, theirs)
        says = fails(QCOW, "map", "--image-opts", nbd(server.path, x_dirty_bitmap="qemu:dirty-bitmap:none"))
        check("no such bitmap: " + says, "requested x-dirty-bitmap qemu:dirty-bitmap:none not found" in says, True)
        # it says nothing of what is stored: a copy is the whole disk
        copy = path + ".copy"
        served.run(QCOW, "convert", "--image-opts", "-O", "raw", nbd(server.path, **{"x-dirty-bitmap": "qemu:dirty-bitmap:b0"}), copy)
        served.run(served.IMG, "compare", "-f", "qcow2", "-F", "raw", path, copy, "-U")
        server.end()


def how_many_connections(folder):
    _, path = sample(folder, "many")
    server = served.Ours(folder, "-x", "many", path)
    for what, command, most in (("info", ("info",), 1), ("measure", ("measure", "-O", "qcow2"), 1), ("convert", ("convert", "-O", "qcow2"), 4)):
        tap = served.Tap("%s.%s" % (server.path, what), server.path)
        served.run(QCOW, *command, "nbd+unix:///many?socket=" + tap.path, *([path + ".copy"] if what == "convert" else []))
        check("what passed", tap.wrong, [])
        if not 1 <= tap.connections <= most:
            raise AssertionError("%s: %d connections" % (what, tap.connections))
    served.run(served.IMG, "compare", path + ".raw", path + ".copy", "-f", "raw", "-F", "qcow2")
    comes_true("several connections", lambda: tap.connections > 1)
    server.end()


def servers_that_take_one_client(folder):
    """They say that more may come, and let none in."""
    at = os.path.join(folder, "one")
    fake = Fake(at, clients=1)
    served.run(QCOW, "convert", "-f", "raw", "-O", "qcow2", "nbd+unix:///?socket=" + at, at + ".copy")
    comes_true("several clients", lambda: fake.n_clients > 1)
    _, path = sample(folder, "narrow")
    server = served.Ours(folder, "-e", "1", "-x", "narrow", path)
    served.run(QCOW, "convert", "-O", "qcow2", server.uri("narrow"), path + ".copy")
    server.end()
    served.run(served.IMG, "compare", path, path + ".copy")


def servers_that_go_away(folder):
    for answers in (0, 1, 5, 17):
        at = os.path.join(folder, "gone%d" % answers)
        Fake(at, answers=answers)
        target = at + ".copy"
        says = fails(QCOW, "convert", "-f", "raw", "-O", "qcow2", "nbd+unix:///?socket=" + at, target)
        if not says.rstrip().endswith("the server has ended the connection") or "reading at offset" not in says:
            raise AssertionError("%d answers: %s" % (answers, says))
        check("nothing is left of the target", os.path.exists(target), False)
        at += "w"
        Fake(at, answers=answers)
        source = os.path.join(folder, "ones")
        with open(source, "wb") as f:
            f.write(b"1" * SIZE)
        says = fails(QCOW, "convert", "-n", "-f", "raw", "-O", "raw", source, "nbd+unix:///?socket=" + at)
        check("%d answers to writes: %s" % (answers, says), "the server has ended the connection" in says, True)


def servers_that_are_silent_or_late(folder):
    at = os.path.join(folder, "mute")
    Fake(at, is_mute=True)
    begin = time.time()
    says = fails(QCOW, "info", "--image-opts", nbd(at, open_timeout=1))
    check(says, "does not finish the handshake" in says and time.time() - begin < 50, True)
    late = os.path.join(folder, "late")
    threading.Timer(0.7, lambda: Fake(late)).start()
    served.run(QCOW, "io", "--image-opts", "-c", "read -P 0 1M 64k", nbd(late, open_timeout=60))
    check("nobody", "Failed to connect" in fails(QCOW, "info", "--image-opts", nbd(os.path.join(folder, "nobody"), open_timeout=1)), True)
    begin = time.time()
    says = fails(os.environ["QCOW_QEMU_NBD"], "-L", "--handshake-limit=1", "-k", at)
    check(says, "does not finish the handshake" in says and time.time() - begin < 50, True)
    rude = os.path.join(folder, "rude")
    Fake(rude, stays=True)
    begin = time.time()
    served.run(QCOW, "io", "--image-opts", "-c", "read -P 0 1M 64k", nbd(rude))
    check("a farewell is not waited for", time.time() - begin < 50, True)


if __name__ == "__main__":
    if not served.IMG:
        print("SKIP qemu-img is not there")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(served.main([every_command_on_a_raw_export, every_command_on_a_qcow2_image_in_an_export, a_backing_file_in_an_export,
                              what_a_server_says_of_a_range, how_many_connections, servers_that_take_one_client, servers_that_go_away, servers_that_are_silent_or_late],
                             sys.argv[1:], folder))
