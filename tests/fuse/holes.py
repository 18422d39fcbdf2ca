#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Where the data of a file lies: usage: holes.py [--blocks|--content] FILE

prints the runs of data that lseek(2) finds; with --content those of 64 KiB blocks that are not all zeros; with --blocks how many blocks of
512 bytes the runs have"""
import os
import sys

BLOCK = 65536


def runs_of_file(path):
    with open(path, "rb") as f:
        at, size, runs = 0, os.fstat(f.fileno()).st_size, []
        while at < size:
            try:
                begin = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(f.fileno(), begin, os.SEEK_HOLE)
            runs.append((begin, at))
        return runs


def runs_of_content(path):
    runs, at = [], 0
    with open(path, "rb") as f:
        while True:
            block = f.read(BLOCK)
            if not block:
                return runs
            if block.count(0) != len(block):
                if runs and runs[-1][1] == at:
                    runs[-1] = (runs[-1][0], at + len(block))
                else:
                    runs.append((at, at + len(block)))
            at += len(block)


if sys.argv[1] == "--blocks":
    print(sum(end - begin for begin, end in runs_of_file(sys.argv[2])) // 512)
elif sys.argv[1] == "--content":
    print(runs_of_content(sys.argv[2]))
else:
    print(runs_of_file(sys.argv[1]))
