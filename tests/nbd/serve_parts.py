#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write partition tables into disks of 64 MiB: serve_parts.py MBR.raw GPT.raw. Two primary partitions, one of them extended
with two logical ones; two partitions of a GPT with its copy at the end."""
import struct
import sys
import zlib

SECTOR, SIZE = 512, 64 << 20


def entry(kind, first, n):
    return struct.pack("<B3xB3xII", 0, kind, first, n)


def sector(*entries):
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def put(f, number, data):
    f.seek(number * SECTOR)
    f.write(data)


def mbr(path):
    with open(path, "wb") as f:
        f.truncate(SIZE)
        put(f, 0, sector(entry(0x83, 2048, 4096), entry(5, 8192, 20480)))
        put(f, 8192, sector(entry(0x83, 2048, 2048), entry(5, 4096, 8192)))
        put(f, 8192 + 4096, sector(entry(0x83, 2048, 4096)))


def header(number, other, table, n, entries):
    def pack(crc):
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, number, other, 34,
                           SIZE // SECTOR - 34, b"disk of a test..", table, n, 128, zlib.crc32(entries))
    return pack(zlib.crc32(pack(0)))


def gpt(path):
    kind = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
    entries = b"".join(struct.pack("<16s16sQQQ72s", kind, b"part%012d" % i, first, last, 0, b"")
                       for i, (first, last) in enumerate([(2048, 6143), (8192, 8291)])).ljust(128 * 128, b"\0")
    last = SIZE // SECTOR - 1
    with open(path, "wb") as f:
        f.truncate(SIZE)
        put(f, 0, sector(entry(0xee, 1, last)))
        put(f, 1, header(1, last, 2, 128, entries))
        put(f, 2, entries)
        put(f, last - 32, entries)
        put(f, last, header(last, 1, last - 32, 128, entries))


mbr(sys.argv[1])
gpt(sys.argv[2])
