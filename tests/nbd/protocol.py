#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every request that the protocol knows, and every bad one, by a client written from proto.md (wire.py).
usage: protocol.py [TEST...]    NBD_BED names the server"""
import os
import random
import struct
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from wire import *  # noqa: F403 pylint: disable=all

SIZE = 4 << 20


# ---- handshake ----

def client_flags_that_nobody_knows_close(bed):
    for flags in (4, 0x80000000, 7, 0xffffffff):
        check_closed("flags %x" % flags, bed.client().greet(None), struct.pack(">I", flags))


def newstyle_without_fixed_knows_one_option(bed):
    for option in (OPT["LIST"], OPT["GO"], OPT["ABORT"], 99):
        c = bed.client().greet(0)
        c.send_option(option)
        check_closed("option %d" % option, c)
    c = bed.client().greet(0)
    c.send_option(OPT["EXPORT_NAME"], b"disk")
    size, flags = struct.unpack(">QH", c.recv(10))
    check("size", size, SIZE)
    check("zeroes", c.recv(124), bytes(124))
    check("a write", c.error(WRITE, 0, 3, payload=b"abc"), 0)


def export_name_with_and_without_zeroes(bed):
    for flags, zeroes in ((1, 124), (3, 0)):
        c = bed.client().greet(flags)
        c.send_option(OPT["EXPORT_NAME"], b"ro")
        check("size", struct.unpack(">QH", c.recv(10))[0], 65536)
        check("zeroes", c.recv(zeroes), bytes(zeroes))
        check("a read", c.request(READ, 0, 512).data, bytes(512))
    for name in (b"nobody", b"x" * 4096, b"x" * 4097, b"\0", b"disk\0"):
        c = bed.client().greet()
        c.send_option(OPT["EXPORT_NAME"], name)
        check_closed("name of %d bytes" % len(name), c)


def bad_option_magic_closes(bed):
    for magic in (0, NBDMAGIC, IHAVEOPT ^ 1):
        c = bed.client().greet()
        c.send_option(OPT["LIST"], magic=magic)
        check_closed("magic %x" % magic, c)


def unknown_options_are_answered(bed):
    c = bed.client().greet()
    for option in (0, 4, 12, 99, 0x7fffffff, 0xffffffff):
        for data in (b"", b"x", bytes(65536)):
            check("option %x" % option, c.last(option, data), ERR["UNSUP"])
    check("more data than is looked at", c.last(99, bytes(65537)), ERR["TOO_BIG"])
    check("1 MiB of it", c.last(OPT["GO"], bytes(1 << 20)), ERR["TOO_BIG"])
    check("still there", c.last(OPT["LIST"]), ACK)
    c.send_option(99, length=(1 << 20) + 1)
    check_closed("more than 1 MiB", c)
    c = bed.client().greet()
    c.send_option(OPT["INFO"], length=0xffffffff)
    check_closed("4 GiB", c)


def options_without_data_refuse_data(bed):
    c = bed.client().greet()
    for option in ("LIST", "STARTTLS", "STRUCTURED", "EXTENDED"):
        check(option, c.last(OPT[option], b"data"), ERR["INVALID"])
    check("STARTTLS", c.last(OPT["STARTTLS"]), ERR["POLICY"])
    check("ABORT with data", c.option(OPT["ABORT"], b"data"), [(ACK, b"")])
    check_closed("after ABORT", c)


def list_names_and_describes(bed):
    c = bed.client().greet()
    got = {}
    for kind, d in c.option(OPT["LIST"])[:-1]:
        check("reply", kind, SERVER)
        n = struct.unpack(">I", d[:4])[0]
        got[d[4:4 + n].decode()] = d[4 + n:].decode()
    check("names", sorted(got), sorted(["disk", "ro", "slow", "blocks", "broken", "one", "n" * 4096]))
    check("description", got["disk"], "what it is")


def info_and_go_with_bad_lengths(bed):
    c = bed.client().greet()
    for option in (OPT["INFO"], OPT["GO"]):
        for data in (b"", b"\0\0\0", struct.pack(">I", 4) + b"disk", struct.pack(">I", 5) + b"disk\0\0",
                     struct.pack(">IH", 0xffffffff, 0), string("disk") + struct.pack(">H", 1),
                     string("disk") + struct.pack(">HHH", 1, 0, 0), string("disk") + b"\xff\xff",
                     string("x" * 4097) + struct.pack(">H", 0), struct.pack(">I", 0x80000000) + bytes(100)):
            check("data %r" % data[:12], c.last(option, data), ERR["INVALID"])
        check("no such", c.last(option, info_data("nobody")), ERR["UNKNOWN"])
        check("4096 of them", c.last(option, info_data("x" * 4096)), ERR["UNKNOWN"])
        check("no UTF-8", c.last(option, info_data(b"\xff\xfe")), ERR["UNKNOWN"])
        check("a NUL", c.last(option, info_data(b"disk\0")), ERR["UNKNOWN"])
    check("go", c.go("disk"), ACK)


def info_tells_what_is_asked(bed):
    c = bed.client().greet()
    replies = c.option(OPT["INFO"], info_data("disk", 1, 2, 3, 77))
    infos = {struct.unpack(">H", d[:2])[0]: d[2:] for k, d in replies[:-1]}
    check("kinds", sorted(infos), [0, 1, 2, 3])
    check("size", struct.unpack(">QH", infos[0])[0], SIZE)
    check("name", infos[1], b"disk")
    check("text", infos[2], b"what it is")
    check("blocks", struct.unpack(">III", infos[3]), (1, 4096, 32 << 20))
    check("long name", c.last(OPT["INFO"], info_data("n" * 4096, 1)), ACK)
    check("repeated", c.last(OPT["INFO"], info_data("disk", 1, 1, 1)), ACK)
    check("then go", c.go("disk", 1, 2, 3, 77), ACK)
    check("the same", c.infos, infos)


def transmission_flags_follow_the_export(bed):
    for mode, more in (("simple", 0), ("structured", 0x80), ("extended", 0x80)):
        c = bed.started("disk", mode)
        check(mode, c.flags, 0x1 | 0x4 | 0x8 | 0x20 | 0x40 | 0x100 | 0x400 | 0x800 | more)
        check("read-only", bed.started("ro", mode).flags, 0x3 | 0xc | 0x100 | 0x400 | more)
    check("one", bed.started("one").flags & 0x100, 0)
    c = bed.started("disk", "extended", contexts=["base:allocation"])
    check("payload", c.flags & 0x1000, 0x1000)


def an_export_has_as_many_clients_as_it_may(bed):
    c = bed.started("one")
    d = bed.client().greet()
    check("second", d.go("one"), ERR["POLICY"])
    check("another", d.go("disk"), ACK)
    e = bed.client().greet()
    e.send_option(OPT["EXPORT_NAME"], b"one")
    check_closed("EXPORT_NAME", e)
    c.close()
    for _ in range(1000):
        d = bed.client().greet()
        if d.go("one") == ACK:
            break
        time.sleep(0.02)
    else:
        raise AssertionError("a client that left is still counted")


def modes_and_their_order(bed):
    c = bed.client().greet()
    check("structured", c.last(OPT["STRUCTURED"]), ACK)
    check("extended", c.last(OPT["EXTENDED"]), ACK)
    check("structured behind it", c.last(OPT["STRUCTURED"]), ERR["EXT_HEADER_REQD"])
    c.extended = True
    check("go", c.go("ro"), ACK)
    check("extended it is", c.request(READ, 0, 512).data, bytes(512))


# ---- metadata contexts ----

def meta_contexts_by_query(bed):
    def names(c, *queries):
        replies = c.option(OPT["LIST_META"], meta_data("disk", *queries))
        return replies[-1][0], sorted(d[4:].decode() for k, d in replies[:-1])

    bitmaps = ["qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"]
    c = bed.client().greet()
    check("too early", names(c, "base:"), (ERR["INVALID"], []))
    check("too early", c.set_meta("disk", "base:allocation"), ERR["INVALID"])
    c.last(OPT["STRUCTURED"])
    everything = sorted(["base:allocation", "qemu:allocation-depth"] + bitmaps)
    check("all", names(c), (ACK, everything))
    check("base:", names(c, "base:"), (ACK, ["base:allocation"]))
    check("qemu:", names(c, "qemu:"), (ACK, everything[1:]))
    check("bitmaps", names(c, "qemu:dirty-bitmap:"), (ACK, bitmaps))
    check("repeated", names(c, *["qemu:dirty-bitmap:b1"] * 1000), (ACK, bitmaps[1:]))
    check("unknown", names(c, "base:nothing", "x-y:", "qemu:no", "qemu:dirty-bitmap:b9", ":", ":x"), (ACK, []))
    check("no namespace", names(c, "base"), (ERR["INVALID"], []))
    check("empty", names(c, ""), (ERR["INVALID"], []))
    check("too many", names(c, *["b:"] * 1025), (ERR["TOO_BIG"], []))
    check("4096 bytes", names(c, "base:" + "x" * 4091), (ACK, []))
    check("4097 bytes", names(c, "base:" + "x" * 4092), (ERR["INVALID"], []))
    check("no such export", c.last(OPT["LIST_META"], meta_data("nobody")), ERR["UNKNOWN"])
    for data in (b"", b"\0\0\0\4disk", string("disk") + b"\0\0\0\1", string("disk") + struct.pack(">II", 1, 5) + b"base",
                 string("disk") + struct.pack(">I", 0) + b"x", string("disk") + struct.pack(">I", 0xffffffff),
                 struct.pack(">I", 0xfffffffc) + bytes(40), string("x" * 4097) + bytes(4)):
        check("data %r" % data[:20], c.last(OPT["LIST_META"], data), ERR["INVALID"])
        check("data %r" % data[:20], c.last(OPT["SET_META"], data), ERR["INVALID"])
    for wildcard in ("base:", "qemu:", "qemu:dirty-bitmap:"):
        check("set " + wildcard, (c.set_meta("disk", wildcard), c.contexts), (ACK, {}))
    check("set nothing", (c.set_meta("disk"), c.contexts), (ACK, {}))
    check("set", c.set_meta("disk", *(everything + everything)), ACK)
    check("each once", sorted(c.contexts), everything)
    check("ids differ", len(set(c.contexts.values())), 4)


def block_status_needs_its_context(bed):
    for spoil in ("none", "other", "failed", "nothing", "again"):
        c = bed.client().greet()
        c.structured = True
        c.last(OPT["STRUCTURED"])
        if spoil == "other":
            check("set", c.set_meta("ro", "base:allocation"), ACK)
        elif spoil != "none":
            check("set", c.set_meta("disk", "base:allocation"), ACK)
        if spoil == "failed":
            check("set", c.set_meta("disk", "no namespace"), ERR["INVALID"])
        if spoil == "nothing":
            check("set", c.set_meta("disk"), ACK)
        if spoil == "again":
            c.set_meta("disk", "qemu:allocation-depth")
        check("go", c.go("disk"), ACK)
        reply = c.request(STATUS, 0, 65536)
        check(spoil, reply.error, 0 if spoil == "again" else EINVAL)
        if spoil == "again":
            check("contexts", list(reply.status), list(c.contexts.values()))


def check_status(c, reply, off, length, one):
    for extents in reply.status.values():
        total = sum(n for n, _ in extents)
        if one and (len(extents) != 1 or total > length):
            raise AssertionError("REQ_ONE: %r" % extents)
        if sum(n for n, _ in extents[:-1]) >= length:
            raise AssertionError("extents behind the range")


def block_status_says_what_is_there(bed):
    for mode in MODES[1:]:
        c = bed.started("disk", mode, contexts=["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"])
        check("zero", c.error(ZEROES, 0, SIZE), 0)
        check("write", c.error(WRITE, 8192, 4096, payload=b"x" * 4096), 0)
        alloc, depth, bits = (c.contexts[n] for n in ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"))
        reply = c.request(STATUS, 0, 1 << 20)
        check_status(c, reply, 0, 1 << 20, False)
        check("alloc", reply.status[alloc], [(8192, 3), (4096, 0), ((1 << 20) - 12288, 3)])
        check("depth", reply.status[depth], [(8192, 0), (4096, 1), ((1 << 20) - 12288, 0)])
        check("bits", reply.status[bits], [(65536, i % 2) for i in range(16)])
        reply = c.request(STATUS, 5000, 20000, flags=REQ_ONE)
        check_status(c, reply, 5000, 20000, True)
        check("one", reply.status[alloc], [(3192, 3)])
        for off, n in ((0, 0), (SIZE, 1), (SIZE - 1, 2), (1 << 63, 1 << 31), (0, 0xffffffff)):
            check("range %d+%d" % (off, n), c.error(STATUS, off, n), EINVAL)
        check("a flag", c.error(STATUS, 0, 512, flags=DF), EINVAL)
        check("the end", c.request(STATUS, SIZE - 1, 1).status[alloc], [(1, 3)])


def block_status_with_a_payload(bed):
    c = bed.started("disk", "extended", contexts=["base:allocation", "qemu:dirty-bitmap:b1"])
    alloc, bits = c.contexts["base:allocation"], c.contexts["qemu:dirty-bitmap:b1"]

    def ask(n, *ids, off=0, flags=0):
        return c.request(STATUS, off, payload=struct.pack(">Q", n) + b"".join(struct.pack(">I", i) for i in ids), flags=flags)

    check("one of two", list(ask(SIZE, bits).status), [bits])
    check("both", sorted(ask(SIZE, bits, alloc).status), sorted([alloc, bits]))
    check("its length counts", ask(512, bits, off=100).status, {bits: [(512, 1)]})
    check("REQ_ONE", len(ask(SIZE, alloc, flags=REQ_ONE).status[alloc]), 1)
    for what, reply in (("twice", ask(512, alloc, alloc)), ("unknown", ask(512, 77)), ("both bad", ask(512, alloc, 77)),
                        ("none", ask(512)), ("too long", ask(SIZE + 1, alloc)), ("overflow", ask((1 << 64) - 1, alloc, off=1)),
                        ("nothing", ask(0, alloc)), ("many", ask(512, *range(100)))):
        check(what, reply.error, EINVAL)
    for n in (1, 4, 8, 9, 11, 13, 15, 100000):
        check("payload of %d" % n, c.error(STATUS, 0, payload=bytes(n)), EINVAL)
    check("a read with a payload", c.error(READ, 0, payload=bytes(4096)), EINVAL)
    check("a flush with a payload", c.error(FLUSH, 0, payload=bytes(70000)), EINVAL)
    check("all is well", c.request(READ, 0, 512).error, 0)
    d = bed.started("disk", "extended")
    check("not offered", d.error(STATUS, 0, payload=struct.pack(">QI", 512, 0)), EINVAL)
    check("all is well", d.request(READ, 0, 512).error, 0)
    d.send_request(READ, 0, (32 << 20) + 1, flags=PAYLOAD_LEN)
    check_closed("a payload that is too long", d)


def long_extents_with_extended_headers(bed):
    check("add", bed.tell("add big,/%s,0" % os.environ["NBD_BIG"].lstrip("/")), "ok 0")
    for mode, n in (("structured", 0xffff0000), ("extended", 1 << 40)):
        c = bed.started("big", mode, contexts=["base:allocation"])
        length = 0xffffffff if mode == "structured" else 1 << 40
        extents = c.request(STATUS, 0, length, flags=REQ_ONE).status[c.contexts["base:allocation"]]
        check(mode, extents, [(n, 3)])
    check("a long zero", c.error(ZEROES, 0, 1 << 40), 0)
    check("a long trim", c.error(TRIM, 1 << 39, 1 << 39), 0)
    check("the end", c.request(READ, (1 << 40) - 512, 512).data, bytes(512))
    c.close()
    check("remove", bed.tell("cut big"), "ok 0")


# ---- transmission ----

def what_is_written_is_read(bed):
    rng = random.Random(1)
    for mode in MODES:
        c = bed.started("disk", mode)
        disk = bytearray(SIZE)
        check("zero", c.error(ZEROES, 0, SIZE), 0)
        for _ in range(150):
            n = rng.choice((1, 511, 512, 4096, 65536, 65537, 300000, 1 << 20, SIZE))
            off = rng.randrange(0, SIZE - n + 1)
            what = rng.randrange(4)
            if what == 0:
                data = rng.randbytes(n)
                check("write", c.error(WRITE, off, n, payload=data, flags=rng.choice((0, FUA))), 0)
                disk[off:off + n] = data
            elif what == 1:
                check("zero", c.error(ZEROES, off, n, flags=rng.choice((0, FUA, NO_HOLE))), 0)
                disk[off:off + n] = bytes(n)
            else:
                flags = DF if mode != "simple" and what == 3 else 0
                reply = c.request(READ, off, n, flags=flags)
                check("read", reply.data == disk[off:off + n], True)
                if flags and sum(k in (DATA, HOLE) for k in reply.chunks) > 1:
                    raise AssertionError("DF: %r" % reply.chunks)
        check("flush", c.error(FLUSH), 0)
        check("trim", c.error(TRIM, 0, SIZE), 0)
        check("cache", c.error(CACHE, 0, SIZE), 0)


def holes_in_reads_are_told(bed):
    for mode in MODES[1:]:
        c = bed.started("disk", mode)
        c.error(ZEROES, 0, SIZE)
        check("all of it", c.request(READ, 0, SIZE).chunks, [HOLE])
        check("a little", c.request(READ, 5, 100).chunks, [HOLE])
        c.error(WRITE, 1 << 20, 1, payload=b"x")
        reply = c.request(READ, 0, SIZE)
        check("one block", (reply.chunks, reply.holes), ([HOLE, DATA, HOLE], SIZE - 65536))
        check("unfragmented", c.request(READ, 0, SIZE, flags=DF).chunks, [DATA])


def ranges_are_judged(bed):
    errors = {READ: EINVAL, WRITE: ENOSPC, TRIM: EINVAL, CACHE: EINVAL, ZEROES: ENOSPC}
    for mode in MODES:
        c = bed.started("disk", mode)
        for kind, error in errors.items():
            for off, n in ((SIZE, 1), (SIZE - 1, 2), (SIZE + 1, 1), (0, SIZE + 1), (1 << 63, 1), ((1 << 64) - 1, 1),
                           ((1 << 64) - 512, 1024)):
                check("%s %d %d+%d" % (mode, kind, off, n),
                      c.error(kind, off, n, payload=bytes(n) if kind == WRITE else b""), error)
        check("a read of 4 GiB", c.error(READ, 0, 0xffffffff), EINVAL)
        for kind in (READ, WRITE, TRIM, CACHE, ZEROES):
            check("nothing", c.error(kind, 0, 0), 0)
            check("nothing at the end", c.error(kind, SIZE, 0), 0)
        check("flush with a length", c.error(FLUSH, 0, 512), EINVAL)
        check("flush with an offset", c.error(FLUSH, 512, 0), EINVAL)
        if mode == "extended":
            for off, n in ((0, 1 << 63), (1 << 63, 1 << 63), (1, (1 << 64) - 1)):
                for kind, error in errors.items():
                    if kind != WRITE:
                        check("%d %d+%d" % (kind, off, n), c.error(kind, off, n), error)
        check("all is well", c.request(READ, 0, 512).error, 0)


def commands_and_flags_that_nobody_knows(bed):
    good = {READ: FUA, WRITE: FUA, FLUSH: FUA, TRIM: FUA, CACHE: FUA, ZEROES: FUA | NO_HOLE | FAST_ZERO}
    for mode in MODES:
        c = bed.started("disk", mode)
        for kind in (8, 9, 99, 0x7fff, 0xffff):
            check("command %d" % kind, c.error(kind, 0, 512), EINVAL)
        for kind, flags in good.items():
            if kind == READ and mode != "simple":
                flags |= DF
            for bit in range(16):
                flag = 1 << bit
                if mode == "extended" and flag == PAYLOAD_LEN:
                    continue
                n = 0 if kind == FLUSH else 4096
                got = c.error(kind, 0, n, flags=flag, payload=bytes(n) if kind == WRITE else b"")
                check("%s: command %d flag %x" % (mode, kind, flag), got, 0 if flag & flags else EINVAL)
        check("all is well", c.request(READ, 0, 512).error, 0)


def fast_zero_says_what_is_not_fast(bed):
    c = bed.started("disk")
    c.error(WRITE, 0, 4, payload=b"abcd")
    check("not fast", c.error(ZEROES, 1, 2, flags=FAST_ZERO), ENOTSUP)
    check("untouched", c.request(READ, 0, 4).data, b"abcd")
    check("fast", c.error(ZEROES, 0, 4096, flags=FAST_ZERO), 0)
    check("slow is allowed", c.error(ZEROES, 1, 2), 0)


def read_only_is_read_only(bed):
    for mode in MODES:
        c = bed.started("ro", mode)
        for kind in (WRITE, TRIM, ZEROES):
            check("%d" % kind, c.error(kind, 0, 512, payload=bytes(512) if kind == WRITE else b""), EPERM)
        check("read", c.request(READ, 0, 512).data, bytes(512))
        check("flush", c.error(FLUSH), 0)


def block_sizes_bind_who_asked(bed):
    c = bed.client().greet()
    c.structured = True
    c.last(OPT["STRUCTURED"])
    c.set_meta("blocks", "base:allocation")
    check("go", c.go("blocks", 3), ACK)
    check("told", struct.unpack(">III", c.infos[3]), (4096, 4096, 65536))
    for kind in (READ, WRITE, TRIM, CACHE, ZEROES, STATUS):
        for off, n in ((1, 4096), (0, 4095), (512, 512), (4096, 1)):
            check("%d %d+%d" % (kind, off, n), c.error(kind, off, n, payload=bytes(n) if kind == WRITE else b""), EINVAL)
        big = c.error(kind, 0, 131072, payload=bytes(131072) if kind == WRITE else b"")
        check("%d of 128 KiB" % kind, big, 0 if kind in (TRIM, STATUS) else EINVAL)
    check("a fast zero", c.error(ZEROES, 0, 131072, flags=FAST_ZERO), 0)
    check("a block", c.error(WRITE, 4096, 4096, payload=b"b" * 4096), 0)
    d = bed.started("blocks")
    check("told", struct.unpack(">III", d.infos[3])[0], 1)
    check("who did not ask", d.request(READ, 4097, 3).data, b"bbb")
    check("may write", d.error(WRITE, 1, 3, payload=b"abc"), 0)
    check("as long as it likes", d.error(ZEROES, 0, 262144), 0)


def failures_are_told_and_end_nothing(bed):
    for mode in MODES:
        c = bed.started("broken", mode, contexts=["base:allocation"] if mode != "simple" else ())
        for kind in (READ, WRITE, TRIM, CACHE, ZEROES, FLUSH):
            n = 0 if kind == FLUSH else 4096
            reply = c.request(kind, 0, n, payload=bytes(n) if kind == WRITE else b"")
            check("%s %d" % (mode, kind), reply.error, EIO)
            if mode != "simple":
                check("its text, which names no files", reply.message, "the disk of the server failed")
        if mode != "simple":
            check("status", c.error(STATUS, 0, 4096), EIO)


def framing_that_is_lost_closes(bed):
    for mode in MODES:
        for magic in (0, 1, SIMPLE, CHUNK, REQUEST if mode == "extended" else EXT_REQUEST, 0x12560953):
            c = bed.started("disk", mode)
            c.send_request(READ, 0, 512, magic=magic)
            check_closed("%s magic %x" % (mode, magic), c)
        c = bed.started("disk", mode)
        c.send_request(WRITE, 0, (32 << 20) + 1, flags=PAYLOAD_LEN if mode == "extended" else 0)
        check_closed("a write of more than 32 MiB", c)
        c = bed.started("disk", mode)
        c.send_request(WRITE, 0, 0xffffffff)
        check_closed("a write of 4 GiB", c)


def refused_writes_are_skipped(bed):
    for mode in MODES:
        c = bed.started("ro", mode)
        # whatever lies in the payload is no request
        payload = struct.pack(">IHHQQI", REQUEST, 0, DISC, 0, 0, 0) * 20000
        check("skipped", c.error(WRITE, 0, len(payload), payload=payload), EPERM)
        check("all is well", c.request(READ, 0, 512).data, bytes(512))


def disconnecting(bed):
    for mode in MODES:
        c = bed.started("slow", mode)
        cookies = {c.send_request(WRITE, i * 4096, 4096, payload=bytes([i]) * 4096) for i in range(40)}
        c.send_request(DISC)
        while cookies:
            cookie, reply = c.read_reply()
            check("under way", reply.error, 0)
            cookies.remove(cookie)
        check_closed("after DISC", c)
        d = bed.started("slow", mode)
        check("it was done", d.request(READ, 39 * 4096, 10).data, bytes([39]) * 10)
        d.send_request(DISC)
        check_closed("at once", d)


def requests_cut_anywhere(bed):
    """A client that ends in the middle leaves nothing behind."""
    c = bed.client()
    whole = struct.pack(">I", 3) + struct.pack(">QII", IHAVEOPT, OPT["STRUCTURED"], 0) + \
        struct.pack(">QII", IHAVEOPT, OPT["GO"], 10) + info_data("disk") + \
        struct.pack(">IHHQQI", REQUEST, 0, WRITE, 7, 0, 100) + bytes(100)
    c.close()
    for n in range(0, len(whole) - 1, 3):
        c = bed.client()
        c.send(whole[:n])
        c.close()
    for _ in range(600):
        stats = eval(bed.tell("stats"))  # its own JSON
        if stats["connections"] == 0 and stats["in_flight"] == 0:
            break
        time.sleep(0.05)
    check("left", (stats["connections"], stats["in_flight"]), (0, 0))


def requests_byte_by_byte(bed):
    c = bed.client()
    c.recv(18)
    for b in struct.pack(">I", 3) + struct.pack(">QII", IHAVEOPT, OPT["GO"], 10) + info_data("disk"):
        c.send(bytes([b]))
    c.option_reply(OPT["GO"])
    c.pending[7] = (WRITE, 0, 100, 0)
    for b in struct.pack(">IHHQQI", REQUEST, 0, WRITE, 7, 0, 100) + b"q" * 100:
        c.send(bytes([b]))
    check("write", c.read_reply()[1].error, 0)
    check("read", c.request(READ, 0, 100).data, b"q" * 100)


def many_requests_at_once(bed):
    for mode in MODES:
        for name in ("disk", "slow"):
            c = bed.started(name, mode)
            expected = {}
            for i in range(700):
                if i % 3 == 0:
                    expected[c.send_request(WRITE, i * 512, 512, payload=struct.pack(">I", i) * 128)] = None
                else:
                    expected[c.send_request(READ, SIZE // 2 + i * 512, 512)] = bytes(512)
            while expected:
                cookie, reply = c.read_reply()
                check("reply", (reply.error, reply.data), (0, expected.pop(cookie)))
            check("first", c.request(READ, 699 * 512, 4).data, struct.pack(">I", 699))
            c.error(ZEROES, 0, SIZE)


def one_cookie_for_all(bed):
    c = bed.started("slow")
    for _ in range(20):
        c.send_request(FLUSH, cookie=5)
    for _ in range(20):
        c.pending[5] = (FLUSH, 0, 0, 0)
        check("reply", c.read_reply()[1].error, 0)


def who_does_not_read_holds_up_nobody(bed):
    lazy = [bed.started("disk", "simple") for _ in range(4)]
    for c in lazy:
        c.sock.settimeout(0.2)
        try:
            for i in range(2000):
                c.send_request(READ, 0, 1 << 20)
        except TimeoutError:
            pass
    other = bed.started("disk")
    begin = time.time()
    for _ in range(50):
        check("read", other.request(READ, 0, 65536).error, 0)
    if time.time() - begin > 30:
        raise AssertionError("50 reads took %.1f s" % (time.time() - begin))
    stats = eval(bed.tell("stats"))
    if stats["in_flight"] > 160 << 20:
        raise AssertionError("%d bytes in flight" % stats["in_flight"])
    for c in lazy:
        c.close()


def flush_covers_all_connections(bed):
    a, b = bed.started("disk"), bed.started("disk")
    check("write", a.error(WRITE, 0, 5, payload=b"hello"), 0)
    check("seen", b.request(READ, 0, 5).data, b"hello")
    check("flush", b.error(FLUSH), 0)


# ---- what the embedding program does meanwhile ----

def quiesce_stops_and_resume_goes_on(bed):
    c, d = bed.started("disk"), bed.started("slow")
    check("quiesce", bed.tell("quiesce"), "ok 0")
    check("again", bed.tell("quiesce"), "ok 0")
    cookies = [c.send_request(WRITE, 0, 4, payload=b"late"), c.send_request(READ, 0, 4)]
    d.send_request(FLUSH)
    check("nothing", (c.is_silent(), d.is_silent()), (True, True))
    check("resume", bed.tell("resume"), "ok 0")
    check("still nothing", c.is_silent(), True)
    check("resume", bed.tell("resume"), "ok 0")
    for _ in cookies:
        check("then", c.read_reply()[1].error, 0)
    check("and the other", d.read_reply()[1].error, 0)


def exports_come_and_go(bed):
    check("add", bed.tell("add new,memory,65536,bitmap=x"), "ok 0")
    check("twice", bed.tell("add new,memory,65536"), "no 0")
    c = bed.started("new", contexts=["qemu:dirty-bitmap:x"])
    check("in use", bed.tell("remove new"), "no 0")
    check("works", c.request(READ, 0, 512).error, 0)
    check("shrink", bed.tell("resize new 4096"), "ok 0")
    check("inside", c.request(READ, 0, 4096).error, 0)
    check("outside", c.error(READ, 4096, 512), EINVAL)
    check("outside, in a worker", c.error(ZEROES, 4096, 512), EINVAL)
    check("told", bed.started("new").size, 4096)
    check("renamed", bed.tell("bitmaps new y x"), "ok 2")
    check("kept by name", c.request(STATUS, 0, 4096).status, {0: [(4096, 1)]})
    check("gone", bed.tell("bitmaps new y"), "ok 1")
    check("and told", c.error(STATUS, 0, 4096), EIO)
    h = bed.client().greet()
    h.last(OPT["STRUCTURED"])
    check("a handshake", h.set_meta("new", "qemu:dirty-bitmap:y"), ACK)
    check("cut", bed.tell("cut new"), "ok 0")
    check_closed("its client", c)
    check("unknown", h.go("new"), ERR["UNKNOWN"])
    check("no more", bed.tell("remove new"), "no 0")


def many_clients(bed):
    clients = [bed.started("disk", random.Random(i).choice(MODES)) for i in range(60)]
    check("connections", bed.tell("connections").startswith("ok 6"), True)
    for i, c in enumerate(clients):
        check("write", c.error(WRITE, i * 4096, 4096, payload=bytes([i]) * 4096), 0)
    for i, c in enumerate(clients):
        check("read", c.request(READ, (59 - i) * 4096, 4096).data, bytes([59 - i]) * 4096)
    for c in clients:
        c.close()


# ---- beds of their own ----

def half_open_clients_are_closed(folder):
    bed = Bed(folder, "--export", "disk,memory,65536", "--handshake-ms", "2000", "--connections", "3")
    a, b = bed.client().greet(), bed.client()
    c = bed.started("disk")
    check_closed("one too many", bed.client())
    a.send(b"\0")
    begin = time.time()
    check_closed("silent", a)
    b.recv(18)
    check_closed("silent from the start", b)
    if time.time() - begin > 30:
        raise AssertionError("it took %.1f s" % (time.time() - begin))
    check("served", c.request(READ, 0, 10).error, 0)
    check("room", bed.started("disk").request(READ, 0, 10).error, 0)
    stats = eval(bed.end().split("\n")[-2])
    check("failed", (stats["handshakes_failed"], stats["refused"]), (2, 1))


def stopping_answers_what_came(folder):
    bed = Bed(folder, "--export", "slow,slow,65536", "--workers", "2")
    c, h = bed.started("slow"), bed.client().greet()
    cookies = {c.send_request(WRITE, i * 512, 512, payload=bytes(512)) for i in range(50)}
    c.read_reply()
    bed.process.stdin.close()
    n = 1
    try:
        while True:
            check("reply", c.read_reply()[1].error, 0)
            n += 1
    except Closed:
        pass
    check("answered", n, len(cookies))
    check_closed("a handshake", h)
    check("status", bed.process.wait(60), 0)


def memory_in_flight_is_bounded(folder):
    """Clients that take nothing, or send nothing, are neither waited for nor closed."""
    size, total = 32 << 20, 40000000
    bed = Bed(folder, "--export", "disk,memory,%d" % size, "--total", str(total))
    data = random.Random(3).randbytes(size)
    lazy = [bed.started("disk", mode) for mode in MODES]
    for c in lazy:
        for _ in range(4):
            c.send_request(READ, 0, size)
    stuck = [bed.started("disk", mode) for mode in MODES for _ in range(10)]
    for i, c in enumerate(stuck):
        c.send_request(WRITE, 0, size, cookie=i + 1, flags=PAYLOAD_LEN if c.extended else 0)
        c.send(data[:i * 3000])
    begin = time.time()
    for mode in MODES:
        other = bed.started("disk", mode)
        check("a small one", other.request(READ, size - 4096, 4096).data, bytes(4096))
        check("a big one", other.error(WRITE, 0, size, payload=data, flags=FUA), 0)
        check("which is there", other.request(READ, 0, size).data == data, True)
        check("many", [other.request(READ, i << 20, 1 << 20).data == data[i << 20:(i + 1) << 20] for i in range(8)], [True] * 8)
        check("zeros", other.error(ZEROES, 0, size), 0)
        stats = eval(bed.tell("stats"))
        bound = total + (len(lazy) + len(stuck) + 3) * (128 << 10)
        if stats["in_flight"] > bound:
            raise AssertionError("%d bytes in flight, %d may be" % (stats["in_flight"], bound))
    if time.time() - begin > 60:
        raise AssertionError("it took %.1f s" % (time.time() - begin))
    for i, c in list(enumerate(stuck))[::7]:
        c.send(data[i * 3000:])
        check("who was slow", c.read_reply()[1].error, 0)
        check("wrote", bed.started("disk").request(READ, 0, size).data == data, True)
    for c in lazy:
        check("who took nothing", c.read_reply()[1].error, 0)
    stats = eval(bed.end().split("\n")[-2])
    check("nobody was closed", stats["cut"], 0)


def requests_in_parts(folder):
    """Where one request is more than memory allows: its reply is that of a whole one, whatever comes between its parts."""
    size = 23 << 20
    bed = Bed(folder, "--export", "disk,memory,%d" % size, "--export", "slow,slow,%d" % size, "--export", "broken,broken,%d" % size,
              "--total", "1")
    data = random.Random(4).randbytes(size)
    for mode in MODES:
        for name in ("disk", "slow") if mode == "simple" else ("disk",):
            c = bed.started(name, mode)
            n = size - 12345
            cookies = [c.send_request(WRITE, 777, n, payload=data[:n], flags=FUA), c.send_request(READ, 777, n)]
            cookies += [c.send_request(READ, 777, n, flags=DF) if mode != "simple" else c.send_request(READ, 778, n)]
            cookies += [c.send_request(FLUSH), c.send_request(READ, 0, 1000)]
            replies = dict(c.read_reply() for _ in cookies)
            check("errors", [replies[i].error for i in cookies], [0] * 5)
            check("read", replies[cookies[1]].data == data[:n], True)
            shift = mode == "simple"
            check("the other", replies[cookies[2]].data[:n - shift] == data[shift:n], True)
            check("small", replies[cookies[4]].data, bytes(777) + data[:223])
            if mode != "simple":
                check("DF", replies[cookies[2]].chunks, [DATA])
            check("clean", c.error(ZEROES, 0, size), 0)
        c = bed.started("broken", mode)
        check("a write", c.error(WRITE, 5, size - 5, payload=data[5:]), EIO)
        check("a read", c.error(READ, 5, size - 5), EIO)
        check("and on", c.error(READ, 0, 512), EIO)
    # the disk shrinks while a part of it was read
    for mode in MODES:
        for flags in (0, DF) if mode != "simple" else (0,):
            check("size", bed.tell("resize slow %d" % size), "ok 0")
            c = bed.started("slow", mode)
            c.send_request(READ, 0, size, flags=flags, cookie=9)
            c.sock.recv(1, socket.MSG_PEEK)
            check("size", bed.tell("resize slow 4096"), "ok 0")
            if mode == "simple" or flags:
                check_closed_in_reply(c)
            else:
                check("told", c.read_reply()[1].error, EINVAL)
                check("and on", c.request(READ, 0, 512).error, 0)
    check("size", bed.tell("resize slow %d" % size), "ok 0")
    # clients that go in the middle, and a stop
    for i in range(6):
        c = bed.started("slow", "simple")
        c.send_request(WRITE, 0, size)
        c.send(data[:i * 100000])
        d = bed.started("slow", MODES[i % 3])
        d.send_request(READ, 0, size)
        d.sock.recv(1, socket.MSG_PEEK)
        if i < 4:
            c.close()
            d.close()
    stats = eval(bed.end().split("\n")[-2])
    check("left", stats["connections"], 0)


def check_closed_in_reply(client):
    try:
        client.read_reply()
    except Closed:
        return
    raise AssertionError("a whole reply")


def main(names):
    tests = [f for n, f in globals().items() if callable(f) and getattr(f, "__module__", "") == "__main__" and
             n not in ("main", "check_closed_in_reply", "check_status") and (not names or n in names)]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NBD_BIG"] = os.path.join(folder, "big.qcow2")
        qcow = os.environ.get("QCOW")
        if qcow:
            subprocess.run([qcow, "create", os.environ["NBD_BIG"], "1T"], check=True, stdout=subprocess.DEVNULL)
        bed = Bed(folder, "--export", "disk,memory,%d,depth,bitmap=b0,bitmap=b1,text=what it is" % SIZE, "--export", "ro,memory,65536,ro",
                  "--export", "slow,slow,%d" % SIZE, "--export", "blocks,memory,1048576,min=4096,max=65536", "--export",
                  "broken,broken,65536", "--export", "one,memory,4096,single,limit=1", "--export", "n" * 4096 + ",memory,4096",
                  "--workers", "4")
        for test in tests:
            begin = time.time()
            if test is long_extents_with_extended_headers and not qcow:
                continue
            try:
                test(folder if "folder" in test.__code__.co_varnames else bed)
                print("ok   %s (%.1f s)" % (test.__name__, time.time() - begin))
            except Exception:
                failed += 1
                print("FAIL %s" % test.__name__)
                traceback.print_exc(file=sys.stdout)
        bed.end()
    print("%d passed, %d failed" % (len(tests) - failed, failed))
    return failed != 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
