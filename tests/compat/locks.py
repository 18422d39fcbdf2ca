#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""R19, R20, R21, R28, R33: the bytes that are locked beside those that the newest QEMU locks, -U, and a file system without such locks.

The environment: as beside.py; REFUSE_CALLS, refuse.c as a library.
"""
import os, re, subprocess, sys, tempfile, time
from pathlib import Path

import beside

n = beside.check
READER, WRITER = {100, 201, 203}, {100, 101, 103, 201, 203}


def locked(place, image):
    """{byte: kind} of the OFD locks on a file, as the kernel tells them."""
    inode, found = os.stat(place / image).st_ino, {}
    for line in Path("/proc/locks").read_text().splitlines():
        m = re.match(r"\d+: OFDLCK\s+ADVISORY\s+(\w+)\s+-?\d+ \S+:(\d+) (\d+) (\d+)$", line)
        if m and int(m[2]) == inode:
            found.update(dict.fromkeys(range(int(m[3]), int(m[4]) + 1), m[1]))
    return found


def held(place, options):
    """What a process that has a.qcow2 open holds."""
    p = subprocess.Popen(["qemu-io", *options, "-c", "length", "-c", "sleep 600000", "a.qcow2"], cwd=place, env=beside.env(place), stdout=subprocess.PIPE)
    try:
        first = b""
        if "-s" not in options:  # its output waits in a pipe: the locks tell when it is there
            end = time.monotonic() + 60
            while not locked(place, "a.qcow2") and time.monotonic() < end and p.poll() is None:
                time.sleep(.01)
            last = None
            while (now := locked(place, "a.qcow2")) != last:  # until they stay the same
                last = now
                time.sleep(.2)
            first = now
        return first
    finally:
        p.kill()
        p.wait()
        p.stdout.close()


def without(place, tool):
    """No OFD locks; the kernel has no room for a read."""
    refuse = "env LD_PRELOAD=" + os.environ["REFUSE_CALLS"]
    r = beside.run(place, f"{refuse} REFUSE=locks {tool} resize a.qcow2 2M")
    n(r.returncode == 1 and r.stderr.startswith("qemu-img: ") and "the file system has no open file description locks" in r.stderr,
      "R21 no locks: it says so", r.stderr)
    n("file.locking=off" in r.stderr, "R21 and how to go on", r.stderr)
    r = beside.run(place, f"{refuse} REFUSE=locks {tool} resize --image-opts driver=qcow2,file.filename=a.qcow2,file.locking=off 2M")
    n(r.returncode == 0 and r.stderr == "", "R21 which then works", r.stderr)
    r = beside.run(place, f"{refuse} REFUSE=reads {tool} info a.qcow2")
    n(r.returncode == 1 and "Resource temporarily unavailable" in r.stderr, "R33 the words for a read without room", r.stderr)


def main():
    beside.need_newest()
    with tempfile.TemporaryDirectory(prefix="qcow-locks.") as folder:
        root = Path(folder)
        ours, theirs = beside.folder(root / "ours", beside.ours), beside.folder(root / "theirs", beside.theirs)
        for place in ours, theirs:
            beside.run(place, "qemu-img create -q -f qcow2 a.qcow2 1M")
        for options, want in (["-r"], READER), ([], WRITER):
            mine, other = held(ours, options), held(theirs, options)
            what = "writer" if want is WRITER else "reader"
            n(mine == dict.fromkeys(want, "READ"), f"R19 a {what} holds {sorted(want)}, as read locks", f"{mine}")
            n(mine == other, f"R19 a {what} holds what QEMU's holds", f"ours {mine}, QEMU {other}")
        # somebody writes: the words without -U, an answer with it
        writer = subprocess.Popen(["qemu-io", "-c", "sleep 600000", "a.qcow2"], cwd=theirs, env=beside.env(theirs))
        while not WRITER <= set(locked(theirs, "a.qcow2")):
            time.sleep(.01)
        tool = str(beside.ours)
        for line in ("info", "check", "map", "snapshot -l", "measure -O qcow2"):
            r = beside.run(theirs, f"{tool} {line} a.qcow2")
            n(r.returncode == 1 and 'Failed to get shared "write" lock\nIs another process using the image [a.qcow2]?\n' in r.stderr,
              f"R28 {line} of an image that is written", r.stderr)
            r = beside.run(theirs, f"{tool} {line} -U a.qcow2")
            n(r.returncode == 0 and r.stderr == "", f"R20 {line} -U of an image that is written", r.stderr)
        writer.kill()
        writer.wait()
        if not os.environ.get("QCOW_SANITIZED"):
            without(ours, tool)
    beside.finish()


main()
