# SPDX-License-Identifier: MIT
"""Run a program and know what it alone took: by measured.c, for Linux counts the memory of whoever forks."""
import os
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


class Got:
    def __init__(self, code, seconds, kib):
        self.code, self.seconds, self.kib = code, seconds, kib


def build(folder):
    """compile the helper into `folder`; its path"""
    path = os.path.join(folder, "measured")
    subprocess.run([os.environ.get("CC", "cc"), "-O1", "-o", path, os.path.join(HERE, "measured.c")], check=True)
    return path


def run(helper, argv, out, err, seconds=60, cwd=None):
    """exit code (128 + signal), processor seconds and KiB; `out` and `err` are paths"""
    fd, report = tempfile.mkstemp(dir=os.path.dirname(helper))
    os.close(fd)
    try:
        with open(out, "wb") as o, open(err, "wb") as e:
            subprocess.run([helper, str(seconds), report] + argv, stdout=o, stderr=e, stdin=subprocess.DEVNULL,
                           cwd=cwd, check=True)
        with open(report) as f:
            code, micros, kib = [int(word) for word in f.read().split()]
    finally:
        os.unlink(report)
    return Got(code, micros / 1e6, kib)
