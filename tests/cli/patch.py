#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Copy a file with big-endian numbers changed: patch.py FROM TO OFFSET:HEX:BYTES…

OFFSET may be snap+N: N bytes into the snapshot table, or bitmap+N: into the bitmap directory.
"""
import struct
import sys


def place(data, where):
    base = 0
    if where.startswith("snap+"):
        base, where = struct.unpack(">Q", data[64:72])[0], where[5:]
    elif where.startswith("bitmap+"):
        at = data.index(struct.pack(">I", 0x23852875))
        base, where = struct.unpack(">Q", data[at + 24:at + 32])[0], where[7:]
    return base + int(where, 0)


def main():
    source, target, *changes = sys.argv[1:]
    data = bytearray(open(source, "rb").read())
    for change in changes:
        where, value, count = change.split(":")
        at, n = place(data, where), int(count)
        data[at:at + n] = int(value, 16).to_bytes(n, "big")
    open(target, "wb").write(data)


main()
