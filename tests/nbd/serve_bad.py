#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Each bad request that proto.md names, to `qcow serve`: the answer that is demanded, or recommended (MUST and SHOULD are the same
here), and a server that then serves as before. The newest QEMU as the server shows that the demands are not our
own: where it answers something else that the text permits, the row says so behind `or_theirs`.

usage: serve_bad.py [TEST...]      the environment names QCOW
"""
import os
import random
import socket
import struct
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import served
from wire import *  # noqa: F403 pylint: disable=all

SIZE = 4 << 20
MAX = 32 << 20
CLOSED = "closed"
INVALID, UNKNOWN, TOO_BIG, UNSUP = ERR["INVALID"], ERR["UNKNOWN"], ERR["TOO_BIG"], ERR["UNSUP"]
CONTEXT = "base:allocation"


def answers(what, server, got, demanded, or_theirs=()):
    allowed = {demanded} if server.is_ours else {demanded, *or_theirs}
    if got not in allowed:
        raise AssertionError("%s: %r, expected %r" % (what, got, allowed))


def tried(call, *args, **kw):
    """The answer, or that the connection is closed."""
    try:
        return call(*args, **kw)
    except Closed:
        return CLOSED


def check_lost(what, server, c, data):
    """Closed; QEMU says first that it does not understand, for a request that it takes it for."""
    if server.is_ours:
        return check_closed(what, c, data)
    try:
        c.send(data)
        while True:
            c.recv(1)
    except Closed:
        pass


def serves(server, name="disk"):
    """Somebody else is served."""
    c = server.started(name, "extended")
    check("served", bytes(c.request(READ, 0, 512).data), b"a" * 512)
    c.send_request(DISC)
    check_closed("DISC", c)


# ---- haggling: each row on one connection, which must go on ----

def name_rows(option):
    """Data of INFO and GO."""
    return [("no data", option, b"", INVALID, ()),
            ("3 bytes", option, b"\0\0\0", INVALID, ()),
            ("no count", option, string("disk"), INVALID, ()),
            ("half a count", option, string("disk") + b"\0", INVALID, ()),
            ("a name longer than the data", option, struct.pack(">I", 100) + b"disk\0\0", INVALID, ()),
            ("a name of the data's length", option, struct.pack(">I", 6) + b"disk\0\0", INVALID, ()),
            ("a name of 4 GiB", option, struct.pack(">I", 0xffffffff) + b"disk\0\0", INVALID, (TOO_BIG,)),
            ("a length that overflows", option, struct.pack(">I", 0xfffffffe) + b"disk\0\0", INVALID, (TOO_BIG,)),
            ("a request that is missing", option, string("disk") + struct.pack(">H", 1), INVALID, ()),
            ("half a request", option, string("disk") + struct.pack(">HB", 1, 0), INVALID, ()),
            ("one request too many", option, string("disk") + struct.pack(">HHH", 1, 1, 3), INVALID, ()),
            ("65535 requests of none", option, string("disk") + b"\xff\xff", INVALID, ()),
            ("bytes behind", option, info_data("disk") + b"x", INVALID, ()),
            ("4097 bytes", option, info_data("x" * 4097), INVALID, (UNKNOWN, TOO_BIG)),
            ("4096 bytes", option, info_data("x" * 4096), UNKNOWN, ()),
            ("an unknown name", option, info_data("nobody"), UNKNOWN, ()),
            ("part of a name", option, info_data("dis"), UNKNOWN, ()),
            ("a NUL in the name", option, info_data(b"disk\0"), UNKNOWN, (INVALID,)),
            ("no UTF-8", option, info_data(b"\xc3\x28"), UNKNOWN, (INVALID,))]


def meta_rows(option):
    queries = string("disk")
    return [("no data", option, b"", INVALID, ()),
            ("no queries", option, queries, INVALID, ()),
            ("half a count", option, queries + b"\0\0\0", INVALID, ()),
            ("a name longer than the data", option, struct.pack(">I", 90) + b"disk", INVALID, ()),
            ("a name of 4 GiB", option, struct.pack(">I", 0xfffffffc) + bytes(40), INVALID, (TOO_BIG,)),
            ("4097 bytes", option, meta_data("x" * 4097), INVALID, (UNKNOWN, TOO_BIG)),
            ("an unknown name", option, meta_data("nobody", CONTEXT), UNKNOWN, ()),
            ("a query that is missing", option, queries + struct.pack(">I", 1), INVALID, ()),
            ("a second one", option, queries + struct.pack(">I", 2) + string(CONTEXT), INVALID, ()),
            ("4 Gi queries", option, queries + struct.pack(">I", 0xffffffff), INVALID, (TOO_BIG,)),
            ("a query longer than the data", option, queries + struct.pack(">II", 1, 16) + CONTEXT.encode(), INVALID, ()),
            ("a query of 4 GiB", option, queries + struct.pack(">II", 1, 0xffffffff) + CONTEXT.encode(), INVALID, (TOO_BIG,)),
            ("bytes behind", option, meta_data("disk", CONTEXT) + b"x", INVALID, (ACK,)),
            ("bytes behind none", option, meta_data("disk") + b"x", INVALID, (ACK,)),
            ("a query of 4097 bytes", option, meta_data("disk", "base:" + "x" * 4092), INVALID, (ACK, TOO_BIG)),
            ("a query of 4096 bytes", option, meta_data("disk", "base:" + "x" * 4091), ACK, ()),
            ("no namespace", option, meta_data("disk", "allocation"), INVALID, (ACK,)),
            ("an empty query", option, meta_data("disk", ""), INVALID, (ACK,)),
            ("a namespace that nobody knows", option, meta_data("disk", "nobody:nothing", "x-a:b", "ba:"), ACK, ()),
            ("a leaf that nobody knows", option, meta_data("disk", "base:nothing", "qemu:dirty-bitmap:nothing", "qemu:x"), ACK, ())]


def option_rows():
    rows = [("%s with data" % name, OPT[name], b"x", INVALID, ()) for name in ("LIST", "STARTTLS", "STRUCTURED", "EXTENDED")]
    rows += [("STARTTLS where there is none", OPT["STARTTLS"], b"", ERR["POLICY"], (UNSUP,))]
    rows += [("option %d" % i, i, data, UNSUP, ()) for i in (0, OPT["PEEK"], 12, 255, 256, 0x80000000, 0xffffffff)
             for data in (b"", b"x" * 100)]
    for name in ("INFO", "GO"):
        rows += [(name + ": " + r[0], *r[1:]) for r in name_rows(OPT[name])]
    for name in ("LIST_META", "SET_META"):
        rows += [(name + ": " + r[0], *r[1:]) for r in meta_rows(OPT[name])]
    return rows


def options_that_are_refused(server):
    for structure in ("STRUCTURED", "EXTENDED"):
        def begin():
            c = server.client().greet()
            check(structure, c.last(OPT[structure]), ACK)
            return c
        c = begin()
        for what, option, data, demanded, or_theirs in option_rows():
            replies = tried(c.option, option, data)
            if replies == CLOSED and not server.is_ours:  # what is malformed may end the session
                c = begin()
                continue
            got = replies if replies == CLOSED else replies[-1][0]
            answers(what, server, got, demanded, or_theirs)
            if got == ACK and replies[:-1] and server.is_ours:
                raise AssertionError("%s: %r" % (what, replies))
        check("it goes on", c.last(OPT["LIST"]), ACK)
        c.structured, c.extended = structure == "STRUCTURED", structure == "EXTENDED"
        check("and begins", c.go("disk"), ACK)
        check("and reads", bytes(c.request(READ, 0, 3).data), b"aaa")
    serves(server)


def meta_contexts_without_a_structure(server):
    for option in ("LIST_META", "SET_META"):
        c = server.client().greet()
        answers(option, server, c.last(OPT[option], meta_data("disk", CONTEXT)), INVALID, (ACK,) if option == "LIST_META" else ())
        check("it goes on", c.go("disk"), ACK)


def the_order_of_structures(server):
    c = server.client().greet()
    check("first", c.last(OPT["EXTENDED"]), ACK)
    answers("again", server, c.last(OPT["EXTENDED"]), ACK, (INVALID,))
    check("and back", c.last(OPT["STRUCTURED"]), ERR["EXT_HEADER_REQD"])
    c.extended = True
    check("set", c.set_meta("disk", CONTEXT), ACK)
    check("go", c.go("disk"), ACK)
    check("the extended kind", list(c.request(STATUS, 0, 65536).status), [c.contexts[CONTEXT]])
    c = server.client().greet()
    check("structured", c.last(OPT["STRUCTURED"]), ACK)
    answers("again", server, c.last(OPT["STRUCTURED"]), ACK, (INVALID,))


def haggling_that_ends_the_session(server):
    """Where no answer is possible, or where nobody knows any more what follows."""
    head = struct.Struct(">QII")

    def after(what, data, flags=3):
        c = server.client().greet(flags)
        check_closed(what, c, data)
    for flags in (4, 8, 0x80000003, 0xffffffff):
        check_closed("flags %x" % flags, server.client().greet(None), struct.pack(">I", flags))
    for name in (b"nobody", b"x" * 4096, b"x" * 4097, b"disk\0", b"\xc3\x28", b"Disk"):
        if b"\0" in name and not server.is_ours:
            continue  # it stops reading there
        after("EXPORT_NAME of %d bytes" % len(name), head.pack(IHAVEOPT, 1, len(name)) + name)
    for magic in (0, NBDMAGIC, REPMAGIC, IHAVEOPT + 1, 0x00420281861253):
        after("magic %x" % magic, head.pack(magic, OPT["LIST"], 0))
    for mode, request in (("compact", struct.pack(">IHHQQI", REQUEST, 0, READ, 1, 0, 512)),
                          ("extended", struct.pack(">IHHQQQ", EXT_REQUEST, 0, READ, 1, 0, 512))):
        after("a %s request before GO" % mode, request)
    for n in (0xffffffff, 0x80000000, 64 << 20):
        after("an option of %d bytes" % n, head.pack(IHAVEOPT, OPT["INFO"], n))
    serves(server)


def haggling_in_old_newstyle(server):
    """Without "fixed" there is one option."""
    for option in ("LIST", "INFO", "GO", "STRUCTURED", "STARTTLS"):
        c = server.client().greet(2)
        c.send_option(OPT[option], info_data("disk") if option in ("INFO", "GO") else b"")
        check_closed(option, c) if server.is_ours else None
    c = server.client().greet(0)
    c.send_option(OPT["EXPORT_NAME"], b"disk")
    check("size", struct.unpack(">QH", c.recv(10))[0], SIZE)
    check("zeroes", c.recv(124), bytes(124))
    check("it reads", c.request(READ, 0, 3).data, b"aaa")


def after_the_end(server):
    """Nothing is heard behind ABORT and DISC; GO ends the options."""
    c = server.client().greet()
    c.send(struct.pack(">QII", IHAVEOPT, OPT["ABORT"], 0) + struct.pack(">QII", IHAVEOPT, OPT["LIST"], 0))
    check("ABORT", tried(c.option_reply, OPT["ABORT"]), [(ACK, b"")])
    check_closed("behind ABORT", c)
    for mode in MODES:
        c = server.started("disk", mode)
        c.send_request(DISC)
        try:
            c.send_request(WRITE, 0, 3, payload=b"bad")
        except Closed:
            pass
        check_closed("behind DISC", c)
        c = server.started("disk", mode)
        check_lost("%s: an option behind GO" % mode, server, c, struct.pack(">QII", IHAVEOPT, OPT["GO"], 24) + bytes(24))
    serves(server)  # and finds what was there before


# ---- transmission ----

def beyond(kind):
    """What lies beyond the end."""
    return [(SIZE, 1), (SIZE - 1, 2), (SIZE + 1, 1), (0, SIZE + 1), (SIZE - 512, 4096), (1 << 32, 512), ((1 << 63) - 1, 1), (1 << 63, 512),
            ((1 << 64) - 1, 1), ((1 << 64) - 512, 512), ((1 << 64) - 1, SIZE), ((1 << 64) - 4096, 8192)] + \
        ([] if kind == WRITE else [(0, 0xffffffff), (SIZE, 0xfffffe00), ((1 << 64) - 1, 0xffffffff)])


def ranges_beyond_the_end(server):
    for mode in MODES:
        c = server.started("disk", mode, contexts=[CONTEXT] if mode != "simple" else ())
        for kind, demanded in ((READ, EINVAL), (WRITE, ENOSPC), (TRIM, EINVAL), (CACHE, EINVAL), (ZEROES, ENOSPC), (STATUS, EINVAL)):
            if kind == STATUS and mode == "simple":
                continue
            for off, n in beyond(kind) + ([(0, 1 << 32), (1, (1 << 64) - 1), (0, 1 << 63), (1 << 63, 1 << 63)]
                                          if mode == "extended" and kind != WRITE else []):
                got = tried(c.error, kind, off, n, payload=bytes(n) if kind == WRITE else b"")
                # QEMU: a read that is too long is EINVAL first, a block status that overflows too
                answers("%s: command %d [%d, +%d)" % (mode, kind, off, n), server, got, demanded, (EINVAL,))
        check("it goes on", bytes(c.request(READ, 0, 3).data), b"aaa")
    serves(server)


def commands_and_flags_that_are_not_defined(server):
    defined = {READ: FUA | DF, WRITE: FUA, FLUSH: FUA, TRIM: FUA, CACHE: FUA, ZEROES: FUA | NO_HOLE | FAST_ZERO, STATUS: FUA | REQ_ONE}
    for mode in MODES:
        c = server.started("scratch", mode, contexts=[CONTEXT] if mode != "simple" else ())
        for kind in (8, 9, 10, 255, 256, 0x8000, 0xffff):
            answers("%s: command %d" % (mode, kind), server, tried(c.error, kind, 0, 512), EINVAL)
            answers("%s: command %d with a flag" % (mode, kind), server, tried(c.error, kind, 0, 512, flags=FUA), EINVAL)
        for kind, flags in defined.items():
            for bit in range(16):
                flag = 1 << bit
                if flag == PAYLOAD_LEN and mode == "extended" or (kind == STATUS and mode == "simple"):
                    continue
                n = 0 if kind == FLUSH else 65536  # whole clusters
                is_defined = flag & flags and not (flag == DF and mode == "simple")
                got = tried(c.error, kind, 0, n, flags=flag, payload=b"a" * n if kind == WRITE else b"")
                answers("%s: command %d flag %x" % (mode, kind, flag), server, got, 0 if is_defined else EINVAL,
                        (EINVAL,) if flag == FUA and kind not in (WRITE, ZEROES, TRIM) else
                        (ENOTSUP,) if flag == FAST_ZERO else ())
        check("it goes on", c.request(READ, 0, 3).error, 0)
    serves(server)


def reserved_fields(server):
    for mode in MODES:
        c = server.started("disk", mode)
        for off, n in ((0, 1), (1, 0), (512, 512), ((1 << 64) - 1, 0)):
            answers("%s: FLUSH [%d, +%d)" % (mode, off, n), server, c.error(FLUSH, off, n), EINVAL, (0,))
        for off, n in ((0, 1), (5, 0)):
            d = server.started("disk", mode)
            d.send_request(DISC, off, n)
            check_closed("%s: DISC [%d, +%d)" % (mode, off, n), d)
        for kind in (READ, WRITE, TRIM, CACHE, ZEROES):
            for off in (0, SIZE):
                if tried(c.error, kind, off, 0) == CLOSED:
                    raise AssertionError("%s: command %d of nothing ends the session" % (mode, kind))
    serves(server)


def who_may_not_write(server):
    for mode in MODES:
        c = server.started("ro", mode)
        check("read-only", c.flags & 2, 2)
        for kind, flags in ((WRITE, 0), (WRITE, FUA), (TRIM, 0), (ZEROES, 0), (ZEROES, NO_HOLE), (ZEROES, FAST_ZERO)):
            payload = struct.pack(">IHHQQI", REQUEST, 0, DISC, 0, 0, 0) * 200 if kind == WRITE else b""
            answers("%s: command %d" % (mode, kind), server, tried(c.error, kind, 0, len(payload) or 512, flags=flags, payload=payload),
                    EPERM, (EINVAL,))
        answers("a write beyond the end", server, tried(c.error, WRITE, SIZE, 3, payload=b"xyz"), EPERM, (EINVAL, ENOSPC))
        check("it reads on", bytes(c.request(READ, 0, 3).data), b"aaa")
    serves(server)


def block_status_that_was_not_set_up(server):
    for what, export, queries in (("nothing", None, ()), ("no context", "disk", ()), ("another export", "ro", (CONTEXT,)),
                                  ("unknown ones", "disk", ("base:x",)), ("a wildcard", "disk", ("base:",))):
        for structure in ("STRUCTURED", "EXTENDED"):
            c = server.client().greet()
            check(structure, c.last(OPT[structure]), ACK)
            c.structured, c.extended = structure == "STRUCTURED", structure == "EXTENDED"
            if export is not None:
                check("set", c.set_meta(export, *queries), ACK)
            check("go", c.go("disk"), ACK)
            answers(what, server, c.error(STATUS, 0, 65536), EINVAL)
            check("it goes on", c.request(READ, 0, 3).error, 0)
    c = server.started("disk", "simple")
    answers("without structured replies", server, c.error(STATUS, 0, 65536), EINVAL)
    for spoil in (meta_data("disk", "nothing"), b"", meta_data("nobody", CONTEXT)):  # a set that fails unsets
        c = server.client().greet()
        c.last(OPT["STRUCTURED"])
        c.structured = True
        check("set", c.set_meta("disk", CONTEXT), ACK)
        if c.last(OPT["SET_META"], spoil) == ACK:
            continue
        check("go", c.go("disk"), ACK)
        answers("a set that failed", server, c.error(STATUS, 0, 65536), EINVAL)


def payloads_with_extended_headers(server):
    c = server.started("disk", "extended", contexts=[CONTEXT, "qemu:allocation-depth"])
    check("offered", c.flags & 0x1000, 0x1000)
    one = c.contexts[CONTEXT]
    for what, payload in (("nothing", b"\0"), ("no length", bytes(4)), ("7 bytes", bytes(7)), ("no context", struct.pack(">Q", 512)),
                          ("half a context", struct.pack(">QH", 512, 0)), ("9 bytes", bytes(9)), ("15 bytes", bytes(15)),
                          ("an unknown context", struct.pack(">QI", 512, 4711)), ("one twice", struct.pack(">QII", 512, one, one)),
                          ("a known and an unknown one", struct.pack(">QII", 512, one, 4711)),
                          ("too many", struct.pack(">QIII", 512, one, one ^ 1, one)),
                          ("beyond the end", struct.pack(">QI", SIZE + 1, one)), ("far beyond", struct.pack(">QI", (1 << 64) - 1, one)),
                          ("64 KiB", bytes(65536)), ("1 MiB", bytes(1 << 20))):
        answers("a payload of " + what, server, tried(c.error, STATUS, 0, payload=payload), EINVAL, (CLOSED,))
    answers("an offset beyond the end", server, c.error(STATUS, SIZE, payload=struct.pack(">QI", 1, one)), EINVAL)
    for kind in (READ, TRIM, CACHE, ZEROES, FLUSH, 8, 0xffff):
        c = server.started("disk", "extended")
        answers("command %d with a payload" % kind, server, tried(c.error, kind, 0, payload=bytes(1000)), EINVAL, (CLOSED,))
    c = server.started("scratch", "extended")
    c.send_request(WRITE, 0, 3)
    c.send(b"bad")  # no PAYLOAD_LEN, and yet a payload: what an old client may do is taken as it is meant
    answers("a write without the flag", server, tried(lambda: c.read_reply()[1].error), 0, (EINVAL, CLOSED))
    if server.is_ours:
        check("it goes on", bytes(c.request(READ, 0, 3).data), b"bad")
    if server.is_ours:  # QEMU 11.1 ends here
        c = server.started("disk", "extended")
        check("block status that was not set up", c.error(STATUS, 0, payload=struct.pack(">QI", 512, 0)), EINVAL)
    serves(server)


def lost_framing(server):
    """What is not the magic of a request is none, and nothing behind it is understood."""
    magics = (0, REQUEST ^ 1, 0x12560953, 0x25609514, SIMPLE, 0x96744668, CHUNK, EXT_REPLY, 0x49484156, 0xffffffff)
    for mode in MODES:
        for magic in (*magics, REQUEST if mode == "extended" else EXT_REQUEST):
            c = server.started("disk", mode)
            c.send_request(READ, 0, 512, magic=magic)
            check_lost("%s: magic %x" % (mode, magic), server, c, bytes(4096))
    serves(server)


def payloads_that_are_too_long(server):
    for mode in MODES:
        c = server.started("scratch", mode)
        check("32 MiB are none", tried(c.error, READ, 0, MAX), EINVAL)  # beyond the end
        for n in (MAX + 1, 64 << 20, 0xffffffff) + ((1 << 32, 1 << 40, (1 << 64) - 1) if mode == "extended" else ()):
            c = server.started("scratch", mode)
            c.send_request(WRITE, 0, n, flags=PAYLOAD_LEN if mode == "extended" else 0)
            if server.is_ours:
                check_closed("%s: a write of %d" % (mode, n), c)
            c.close()
    serves(server)


def half_open(server):
    """Clients that close one direction, or all, anywhere: the server closes the other."""
    c = server.client()
    c.close()
    hello = struct.pack(">I", 3)
    go = struct.pack(">QII", IHAVEOPT, OPT["GO"], 10) + info_data("disk")
    read = struct.pack(">IHHQQI", REQUEST, 0, READ, 7, 0, 512)
    write = struct.pack(">IHHQQI", REQUEST, 0, WRITE, 8, 0, 100000) + b"a" * 50000
    for what, sent in (("nothing", b""), ("flags", hello), ("half an option", hello + go[:9]), ("half a name", hello + go[:-4]),
                       ("all but a request", hello + go), ("half a request", hello + go + read[:20]),
                       ("half a payload", hello + go + write), ("a request", hello + go + read)):
        for way in ("one direction", "both", "at once"):
            c = server.client()
            if way != "at once":
                c.recv(18)
            c.send(sent)
            if way == "one direction":
                c.sock.shutdown(socket.SHUT_WR)
                rest = bytearray()
                try:
                    while True:
                        rest += c.recv(1)
                except Closed:
                    pass
                if server.is_ours and what == "a request":  # what came whole is answered
                    check("%s, %s" % (what, way), bytes(rest[-528:]), struct.pack(">IIQ", SIMPLE, 0, 7) + b"a" * 512)
            c.close()
    serves(server)


def slow_and_silent_ones(server):
    """Nobody waits for them."""
    lazy = [server.client() for _ in range(8)] + [server.started("disk") for _ in range(4)]
    for c in lazy[8:]:
        c.send(struct.pack(">IHHQQI", REQUEST, 0, WRITE, 8, 0, 1000) + b"a")
    serves(server)
    for c in lazy:
        c.close()


def noise(server):
    """Bytes that mean nothing, in each state."""
    rng = random.Random(int(os.environ.get("QCOWKIT_SEED", "1"), 0))
    for i in range(60):
        c = server.client()
        try:
            if i % 3 == 1:
                c.greet()
            elif i % 3 == 2:
                c.start("ro", rng.choice(MODES))
            c.send(rng.randbytes(rng.choice((1, 16, 100, 5000))))
            c.sock.shutdown(socket.SHUT_WR)
            while True:
                c.recv(1)
        except Closed:
            pass
        except OSError:
            pass
        c.close()
    serves(server)


TESTS = [options_that_are_refused, meta_contexts_without_a_structure, the_order_of_structures, haggling_that_ends_the_session,
         haggling_in_old_newstyle, after_the_end, ranges_beyond_the_end, commands_and_flags_that_are_not_defined, reserved_fields,
         who_may_not_write, block_status_that_was_not_set_up, payloads_with_extended_headers, lost_framing, payloads_that_are_too_long,
         half_open, slow_and_silent_ones, noise]


def images(folder):
    paths = []
    for name in ("disk", "scratch", "ro"):
        raw, path = os.path.join(folder, name + ".raw"), os.path.join(folder, name)
        with open(raw, "wb") as f:
            f.write(b"a" * (1 << 20) + bytes(SIZE - (1 << 20)))
        served.run(served.IMG, "convert", "-f", "raw", "-O", "qcow2", raw, path)
        paths.append(path)
    return paths


class Storage(served.Server):
    """The newest QEMU with several exports."""
    is_ours = False

    def __init__(self, folder, disk, scratch, ro):
        argv = ["--nbd-server", "addr.type=unix,addr.path={socket},max-connections=0"]
        for name, path in (("disk", disk), ("scratch", scratch), ("ro", ro)):
            argv += ["--blockdev", "driver=file,node-name=f%s,filename=%s,discard=unmap" % (name, path),
                     "--blockdev", "driver=qcow2,node-name=%s,file=f%s,discard=unmap,read-only=%s" % (name, name, "on" if name == "ro" else "off"),
                     "--export", "type=nbd,id=e%s,node-name=%s,name=%s,writable=%s,allocation-depth=on" %
                     (name, name, name, "off" if name == "ro" else "on")]
        super().__init__(folder, served.NEWEST + "qemu-storage-daemon", *argv, "--pidfile", "{pid}")

    def end(self):
        self.stop()


def main(names):
    if not served.IMG:
        print("SKIP qemu-img is not there")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        disk, scratch, ro = images(folder)
        if served.newest("qemu-storage-daemon"):
            print("the newest QEMU:")
            server = Storage(folder, disk, scratch, ro)
            bad = served.main(TESTS, names, server)
            server.end()
        else:
            print("SKIP the newest QEMU is not there (tools/peers/get fetches it)")
            bad = 0
        disk, scratch, ro = images(folder)
        print("qcow serve:")
        server = served.Ours(folder, "-x", "disk", "-x", "scratch", disk, scratch)
        server.tell("export-add", "name=ro", "file=" + ro, "format=qcow2", "read-only")
        bad |= served.main(TESTS, names, server)
        check("connections that are left", server.connections_left(), [])
        server.end()
        for path in (disk, ro):
            served.run(served.IMG, "check", "-q", path)
            served.run(served.IMG, "compare", "-f", "raw", "-F", "qcow2", path + ".raw", path)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
