# SPDX-License-Identifier: MIT
"""A client of the NBD protocol, written from proto.md alone: it sends whatever it is told, good or bad, and takes apart what
comes back. Nothing here knows how the server is written."""
import os
import select
import socket
import struct
import subprocess

NBDMAGIC, IHAVEOPT, REPMAGIC = 0x4e42444d41474943, 0x49484156454f5054, 0x3e889045565a9
REQUEST, EXT_REQUEST = 0x25609513, 0x21e41c71
SIMPLE, CHUNK, EXT_REPLY = 0x67446698, 0x668e33ef, 0x6e8a278c
OPT = dict(EXPORT_NAME=1, ABORT=2, LIST=3, PEEK=4, STARTTLS=5, INFO=6, GO=7, STRUCTURED=8, LIST_META=9, SET_META=10, EXTENDED=11)
ACK, SERVER, INFO, META = 1, 2, 3, 4
ERR = {n: 0x80000000 + i for i, n in enumerate(
    ["", "UNSUP", "POLICY", "INVALID", "PLATFORM", "TLS_REQD", "UNKNOWN", "SHUTDOWN", "BLOCK_SIZE_REQD", "TOO_BIG", "EXT_HEADER_REQD"])}
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
MODES = ("simple", "structured", "extended")
NONE, DATA, HOLE, BLOCK_STATUS, BLOCK_STATUS_EXT, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 6, 0x8001, 0x8002


class Closed(Exception):
    """The server ended the connection."""


class Broken(Exception):
    """The server sent what the protocol forbids."""


def check(what, got, want):
    if got != want:
        raise AssertionError("%s: %.200r, expected %.200r" % (what, got, want))


def check_closed(what, client, data=None):
    try:
        if data is not None:
            client.send(data)
    except Closed:
        return
    if not client.is_closed():
        raise AssertionError("%s: the connection is still open" % what)


def string(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack(">I", len(s)) + s


def info_data(name, *infos):
    return string(name) + struct.pack(">H", len(infos)) + b"".join(struct.pack(">H", i) for i in infos)


def meta_data(name, *queries):
    return string(name) + struct.pack(">I", len(queries)) + b"".join(string(q) for q in queries)


class Reply:
    """All that was sent for one request."""

    def __init__(self):
        self.error, self.message, self.data, self.chunks, self.status, self.holes = 0, "", None, [], {}, 0


class Client:
    def __init__(self, path, timeout=60):
        """path: a Unix socket, or (host, port)"""
        if isinstance(path, tuple):
            self.sock = socket.create_connection(path, timeout)
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(path)
        self.structured = self.extended = False
        self.cookie = 1000
        self.pending = {}
        self.partial = {}  # replies of which more chunks are to come
        self.asked = {}  # contexts that the payloads of requests name
        self.size = None
        self.contexts = {}

    # bytes
    def send(self, data):
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed()

    def recv(self, n):
        out = bytearray()
        while len(out) < n:
            try:
                part = self.sock.recv(n - len(out))
            except ConnectionResetError:
                part = b""
            if not part:
                raise Closed()
            out += part
        return bytes(out)

    def is_closed(self):
        """Does the server end the connection without another byte?"""
        try:
            self.recv(1)
        except Closed:
            return True
        return False

    def is_silent(self, seconds=0.1):
        return not select.select([self.sock], [], [], seconds)[0]

    # handshake
    def greet(self, flags=3):
        magic, opts, self.server_flags = struct.unpack(">QQH", self.recv(18))
        if (magic, opts, self.server_flags) != (NBDMAGIC, IHAVEOPT, 3):
            raise Broken("greeting %x %x %x" % (magic, opts, self.server_flags))
        if flags is not None:
            self.send(struct.pack(">I", flags))
        return self

    def send_option(self, option, data=b"", magic=IHAVEOPT, length=None):
        self.send(struct.pack(">QII", magic, option, len(data) if length is None else length) + data)

    def option_reply(self, option):
        """(type, data) of every reply up to the last."""
        replies = []
        while True:
            magic, to, kind, n = struct.unpack(">QIII", self.recv(20))
            if magic != REPMAGIC or to != option or n > 65536:
                raise Broken("option reply %x to %d, %d bytes" % (magic, to, n))
            replies.append((kind, self.recv(n)))
            if kind >= 0x80000000 and len(replies[-1][1]) > 4096:
                raise Broken("a text of %d bytes" % n)
            if kind == ACK and n != 0:
                raise Broken("an ACK with data")
            if kind == ACK or kind >= 0x80000000:
                return replies

    def option(self, option, data=b"", **kw):
        self.send_option(option, data, **kw)
        return self.option_reply(option)

    def last(self, option, data=b"", **kw):
        return self.option(option, data, **kw)[-1][0]

    def go(self, name="", *infos):
        replies = self.option(OPT["GO"], info_data(name, *infos))
        if replies[-1][0] != ACK:
            return replies[-1][0]
        self.infos = {struct.unpack(">H", d[:2])[0]: d[2:] for k, d in replies if k == INFO}
        self.size, self.flags = struct.unpack(">QH", self.infos[0])
        return ACK

    def set_meta(self, name, *queries):
        replies = self.option(OPT["SET_META"], meta_data(name, *queries))
        self.contexts = {}
        for kind, d in replies[:-1]:
            self.contexts[d[4:].decode()] = struct.unpack(">I", d[:4])[0]
        return replies[-1][0]

    def start(self, name="", mode="structured", contexts=(), infos=()):
        """A whole handshake."""
        self.greet()
        if mode == "structured":
            assert self.last(OPT["STRUCTURED"]) == ACK
        if mode == "extended":
            assert self.last(OPT["EXTENDED"]) == ACK
        self.structured, self.extended = mode == "structured", mode == "extended"
        if contexts:
            assert self.set_meta(name, *contexts) == ACK
        assert self.go(name, *infos) == ACK
        return self

    # transmission
    def send_request(self, kind, off=0, length=0, flags=0, payload=b"", magic=None, cookie=None):
        if cookie is None:
            self.cookie += 1
            cookie = self.cookie
        if self.extended:
            if payload:
                length = len(payload)
                flags |= PAYLOAD_LEN
            head = struct.pack(">IHHQQQ", EXT_REQUEST if magic is None else magic, flags, kind, cookie, off, length)
        else:
            head = struct.pack(">IHHQQI", REQUEST if magic is None else magic, flags, kind, cookie, off, length)
        if kind == STATUS and flags & PAYLOAD_LEN and len(payload) >= 8:  # the payload says what the length is, and the contexts
            self.pending[cookie] = (kind, off, struct.unpack(">Q", payload[:8])[0], flags)
            self.asked[cookie] = {i for i, in struct.iter_unpack(">I", payload[8:len(payload) & ~3])}
        else:
            self.pending[cookie] = (kind, off, length, flags)
        self.send(head + payload)
        return cookie

    def read_reply(self):
        """The next reply that is whole: (cookie, Reply)."""
        while True:
            magic = struct.unpack(">I", self.recv(4))[0]
            if magic == SIMPLE:
                error, cookie = struct.unpack(">IQ", self.recv(12))
                kind, off, length, _ = self.pending.pop(cookie)
                if self.extended or (self.structured and (kind == READ or (kind == STATUS and not error))):
                    raise Broken("a simple reply")
                reply = Reply()
                reply.error = error
                if kind == READ and not error:
                    reply.data = self.recv(length)
                return cookie, reply
            if magic == EXT_REPLY and self.extended:
                flags, kind, cookie, off, n = struct.unpack(">HHQQQ", self.recv(28))
                if off != self.pending[cookie][1]:
                    raise Broken("an extended reply with offset %d" % off)
            elif magic == CHUNK and self.structured:
                flags, kind, cookie, n = struct.unpack(">HHQI", self.recv(16))
            else:
                raise Broken("a reply with magic %x" % magic)
            reply = self.partial.setdefault(cookie, Reply())
            self.take_chunk(reply, self.pending[cookie], kind, self.recv(n))
            if flags & 1:
                del self.partial[cookie]
                self.finish(reply, self.pending.pop(cookie), self.asked.pop(cookie, None))
                return cookie, reply
            if kind == NONE:
                raise Broken("a chunk of no type that is not the last")

    def take_chunk(self, reply, request, kind, body):
        command, off, length, flags = request
        reply.chunks.append(kind)
        if kind in (DATA, HOLE):
            at = struct.unpack(">Q", body[:8])[0]
            n = len(body) - 8 if kind == DATA else struct.unpack(">I", body[8:])[0]
            if command != READ or n == 0 or at < off or at + n > off + length:
                raise Broken("content [%d, +%d) for [%d, +%d)" % (at, n, off, length))
            if reply.data is None:
                reply.data, reply.covered = bytearray(length), []
            if flags & DF and reply.covered:
                raise Broken("pieces of what may not be fragmented")
            reply.data[at - off:at - off + n] = body[8:] if kind == DATA else bytes(n)
            reply.covered.append((at, n))
            reply.holes += n if kind == HOLE else 0
        elif kind in (BLOCK_STATUS, BLOCK_STATUS_EXT):
            if (kind == BLOCK_STATUS_EXT) != self.extended:
                raise Broken("a status chunk of the other kind")
            context = struct.unpack(">I", body[:4])[0]
            if kind == BLOCK_STATUS:
                extents = list(struct.iter_unpack(">II", body[4:]))
            else:
                extents = list(struct.iter_unpack(">QQ", body[8:]))
                if struct.unpack(">I", body[4:8])[0] not in (0, len(extents)):
                    raise Broken("a wrong count of extents")
            if context in reply.status or not extents or any(n == 0 for n, _ in extents):
                raise Broken("a status chunk that is empty or repeated")
            total = sum(n for n, _ in extents)
            if flags & REQ_ONE and (len(extents) != 1 or total > length):
                raise Broken("REQ_ONE: %r" % extents)
            if total - extents[-1][0] >= length or (self.size is not None and off + total > self.size):
                raise Broken("extents of %d bytes at %d" % (total, off))
            reply.status[context] = extents
        elif kind & 0x8000:
            reply.error, n = struct.unpack(">IH", body[:6])
            reply.message = body[6:6 + n].decode()
            if reply.error == 0 or n > 4096 or 6 + n > len(body):
                raise Broken("an error chunk")
            if kind == ERROR_OFFSET and not off <= struct.unpack(">Q", body[6 + n:])[0] < off + length:
                raise Broken("an error at an offset that was not asked for")
        elif kind != NONE or body:
            raise Broken("a chunk of type %x" % kind)

    def finish(self, reply, request, asked):
        command, off, length, _ = request
        if command == STATUS and not reply.error and set(reply.status) != (set(self.contexts.values()) if asked is None else asked):
            raise Broken("the status of contexts %r" % list(reply.status))
        if command == READ and not reply.error and length:
            at = off
            for begin, n in sorted(reply.covered):
                if begin != at:
                    raise Broken("content has a gap or overlaps at %d" % at)
                at += n
            if at != off + length:
                raise Broken("content ends at %d" % at)
            reply.data = bytes(reply.data)

    def request(self, *args, **kw):
        cookie = self.send_request(*args, **kw)
        got, reply = self.read_reply()
        if got != cookie:
            raise Broken("a reply to another request")
        return reply

    def error(self, *args, **kw):
        return self.request(*args, **kw).error

    def close(self):
        self.sock.close()


class Bed:
    """The server under test: BUILD/tests/nbd/bed."""
    n = 0

    def __init__(self, folder, *args, program=None):
        Bed.n += 1
        self.path = os.path.join(folder, "s%d" % Bed.n)
        self.process = subprocess.Popen([program or os.environ["NBD_BED"], self.path, *args], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def client(self, **kw):
        return Client(self.path, **kw)

    def started(self, name="", mode="structured", **kw):
        return self.client().start(name, mode, **kw)

    def end(self):
        """Stop it: its counters."""
        self.process.stdin.close()
        out = self.process.stdout.read()
        assert self.process.wait(60) == 0, "the server ended with %d" % self.process.returncode
        return out
