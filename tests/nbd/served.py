# SPDX-License-Identifier: MIT
"""Servers of images that the tests talk to: `qcow serve`, and the newest QEMU's as the referee. And who sits between a client and
a server and counts what passes."""
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback

import wire

NEWEST = os.path.join(os.environ.get("QK_PEERS") or os.path.expanduser("~/.cache/qcowkit-peers/bin"), "")
IMG = os.environ.get("QEMU_IMG") or shutil.which("qemu-img")


PASS = """import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])"""


def newest(tool):
    """The newest QEMU's, or None."""
    path = NEWEST + tool
    return path if os.access(path, os.X_OK) else None


def run(*argv, **kw):
    """Succeeds, and says nothing on stderr: what it printed."""
    r = subprocess.run(argv, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, **kw)
    if r.returncode != 0 or r.stderr:
        raise AssertionError("%s: status %d: %.1500s%.1500s" % (" ".join(argv), r.returncode, r.stdout, r.stderr))
    return r.stdout


class Server:
    """A program that serves at a Unix socket and writes its id to a file when it does."""
    n = 0
    running = []

    def __init__(self, folder, *argv, listener=None):
        """listener: a socket that is passed as a service manager does it."""
        Server.n += 1
        self.path = os.path.join(folder, "s%d" % Server.n)
        self.control = self.path + "c"
        pid = self.path + ".pid"
        argv = [a.format(socket=self.path, control=self.control, pid=pid) for a in argv]
        self.err = open(self.path + ".err", "w+")
        passed = []
        if listener:
            passed = [listener.fileno()]
            argv = [sys.executable, "-c", PASS, str(passed[0]), *argv]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.err, pass_fds=passed)
        Server.running.append(self)
        for _ in range(2400):
            if os.path.exists(pid) and os.path.getsize(pid):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.025)
        raise AssertionError("%s does not start: %s" % (" ".join(argv), self.said()))

    def stop(self):
        """Its status."""
        self.process.terminate()
        return self.process.wait(120)

    def said(self):
        self.err.flush()
        with open(self.err.name) as f:
            return f.read()

    def client(self, **kw):
        return wire.Client(self.path, **kw)

    def started(self, name="", mode="structured", **kw):
        return self.client().start(name, mode, **kw)

    def uri(self, name=""):
        return "nbd+unix:///%s?socket=%s" % (name, self.path)

    def end(self):
        status = self.stop()
        text = self.said()
        assert status == 0 and not text, "the server ended with %d: %.3000s" % (status, text)


class Ours(Server):
    is_ours = True

    def __init__(self, folder, *argv, tcp=False):
        listener = None
        if tcp:
            listener = socket.create_server(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        where = () if tcp else ("-k", "{socket}")
        super().__init__(folder, os.environ["QCOW"], "serve", "-t", *where, "--control", "{control}", "--pid-file", "{pid}", *argv,
                         listener=listener)
        if tcp:
            listener.close()

    def client(self, **kw):
        return wire.Client(self.path, **kw) if os.path.exists(self.path) else wire.Client(("localhost", self.port), **kw)

    def tell(self, *argv):
        return run(os.environ["QCOW"], "ctl", self.control, *argv)

    def status(self):
        return json.loads(self.tell("status"))

    def connections_left(self):
        """those that are there yet when clients have had ten seconds to be gone"""
        for _ in range(200):
            left = self.status()["connections"]
            if not left:
                break
            time.sleep(0.05)
        return left


class Theirs(Server):
    is_ours = False

    def __init__(self, folder, *argv):
        super().__init__(folder, NEWEST + "qemu-nbd", "-t", "-e", "40", "-k", "{socket}", "--pid-file", "{pid}", *argv)

    def end(self):
        self.stop()


class Tap(threading.Thread):
    """Sits at a socket of its own between clients and a server, and takes both directions apart: which options were
    acknowledged, the magic of each request and reply, the extents of each block status."""

    def __init__(self, path, to):
        super().__init__(daemon=True)
        self.path, self.to = path, to
        self.acknowledged, self.requests, self.replies, self.extents = set(), {}, {}, []
        self.wrong, self.connections = [], 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        self.start()

    def run(self):
        while True:
            here, _ = self.listener.accept()
            there = socket.socket(socket.AF_UNIX)
            there.connect(self.to)
            self.connections += 1
            state = {"mode": "simple", "started": False, "answers": threading.Semaphore(0), "reads": {}}
            for pair, take in (((here, there), self.from_client), ((there, here), self.from_server)):
                threading.Thread(target=self.pass_on, args=(*pair, take, state), daemon=True).start()

    def pass_on(self, source, sink, take, state):
        def get(n):
            out = bytearray()
            while len(out) < n:
                part = source.recv(n - len(out))
                if not part:
                    raise EOFError
                out += part
            return bytes(out)

        def both(n):
            data = get(n)
            sink.sendall(data)
            return data
        try:
            take(get, both, sink, state)
        except (EOFError, OSError):
            pass
        except Exception as e:  # a test must hear of it
            self.wrong.append(repr(e))
        for s in (sink, source):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def from_client(self, get, both, sink, state):
        both(4)
        while True:
            _, option, n = struct.unpack(">QII", both(16))
            both(n)
            if option == wire.OPT["EXPORT_NAME"]:
                raise ValueError("EXPORT_NAME")
            if option == wire.OPT["ABORT"]:
                while True:
                    both(1)
            if not state["answers"].acquire(timeout=60):
                raise ValueError("an option without an answer")
            if state["started"]:
                break
        while True:
            head = get(32 if state["mode"] == "extended" else 28)
            magic, flags, kind, cookie = struct.unpack(">IHHQ", head[:16])
            n = struct.unpack(">Q" if state["mode"] == "extended" else ">I", head[24:])[0]
            self.requests[magic] = self.requests.get(magic, 0) + 1
            state["reads"][cookie] = n if kind == wire.READ else 0
            sink.sendall(head)
            if kind == wire.WRITE or flags & wire.PAYLOAD_LEN:
                both(n)

    def from_server(self, get, both, sink, state):
        both(18)
        while not state["started"]:
            head = get(20)
            _, option, kind, n = struct.unpack(">QIII", head)
            data = get(n)
            last = kind == wire.ACK or kind >= 0x80000000
            if kind == wire.ACK:
                self.acknowledged.add(option)
                if option == wire.OPT["EXTENDED"]:
                    state["mode"] = "extended"
                if option == wire.OPT["GO"]:
                    state["started"] = True
            if last:
                state["answers"].release()
            sink.sendall(head + data)
        while True:
            magic = get(4)
            number = struct.unpack(">I", magic)[0]
            self.replies[number] = self.replies.get(number, 0) + 1
            if number == wire.SIMPLE:
                head = get(12)
                error, cookie = struct.unpack(">IQ", head)
                sink.sendall(magic + head)
                both(0 if error else state["reads"][cookie])
                continue
            head = get(28 if number == wire.EXT_REPLY else 16)
            kind = struct.unpack(">H", head[2:4])[0]
            body = get(struct.unpack(">Q" if number == wire.EXT_REPLY else ">I", head[20 if number == wire.EXT_REPLY else 12:])[0])
            if kind == wire.BLOCK_STATUS:
                self.extents.append(list(struct.iter_unpack(">II", body[4:])))
            elif kind == wire.BLOCK_STATUS_EXT:
                self.extents.append(list(struct.iter_unpack(">QQ", body[8:])))
            sink.sendall(magic + head + body)


def main(tests, names, folder, *args):
    """Run the tests that are named, or all: the status."""
    bad = 0
    for test in tests:
        if names and test.__name__ not in names:
            continue
        begin = time.time()
        try:
            test(folder, *args)
            print("[       OK ] %s (%.1f s)" % (test.__name__, time.time() - begin), flush=True)
        except Exception:
            bad += 1
            traceback.print_exc(file=sys.stdout)
            print("[  FAILED  ] %s" % test.__name__, flush=True)
            for server in Server.running:
                if not args or server is not args[0]:  # the one of all tests goes on
                    server.stop()
    return 1 if bad else 0
