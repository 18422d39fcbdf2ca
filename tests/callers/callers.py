# SPDX-License-Identifier: MIT
"""What the tests of callers share: our programs and QEMU's, cases that are counted, and folders whose disks must be alike.

The environment: QCOW, the program as qcow; QCOW_COMPAT, the folder with it under QEMU's names; QEMU_IMG_NEW, QEMU's newest
(default: what tools/peers/get fetched)."""
import os
import subprocess
import sys
from pathlib import Path

OURS = Path(os.environ["QCOW_COMPAT"]) / "qemu-img"
THEIRS = Path(os.environ.get("QEMU_IMG_NEW", Path.home() / ".cache/qcowkit-peers/bin/qemu-img"))
SANITIZED = bool(os.environ.get("QCOW_SANITIZED"))
n_ok = n_bad = 0


def check(ok, what, why=""):
    global n_ok, n_bad
    n_ok, n_bad = n_ok + bool(ok), n_bad + (not ok)
    print(("[       OK ] " if ok else f"{why}\n[  FAILED  ] ") + what, flush=True)
    return ok


def finish():
    print(f"{n_ok} passed, {n_bad} failed")
    sys.exit(1 if n_bad or not n_ok else 0)


def skip_all(reason):
    print(f"SKIP {reason}")
    sys.exit(77)


def need_newest():
    if not THEIRS.exists():
        skip_all("the newest QEMU is not there (tools/peers/get fetches it)")


def run(argv, place, env=None, seconds=120, **kw):
    """How it ended, with what it printed as text."""
    r = subprocess.run(argv, cwd=place, env=env or os.environ, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, **kw)
    r.stdout, r.stderr = r.stdout.decode(errors="replace"), r.stderr.decode(errors="replace")
    return r


def with_path(folder, **more):
    """The environment with the programs of a folder first."""
    return dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}", LC_ALL="C", **more)


def format_of(path):
    with open(path, "rb") as f:
        return "qcow2" if f.read(4) == b"QFI\xfb" else "raw"


def clean(path):
    """What both say of an image; "" where nothing is wrong with it."""
    if format_of(path) != "qcow2":
        return ""
    for img in (THEIRS, OURS):
        r = run([img, "check", "-q", path], None)
        if r.returncode != 0:
            return f"{img} check {path}: {r.returncode} {r.stdout}{r.stderr}"
    return ""


def same_disk(a, b):
    """How two images differ for QEMU, sizes included; "" where they do not."""
    r = run([THEIRS, "compare", "-f", format_of(a), "-F", format_of(b), a, b], None)
    return f"{a}, {b}: {r.stdout}{r.stderr}" if r.returncode != 0 or "size" in r.stdout else ""


def same_disks(a, b):
    """Every file that one of two folders has is in the other, with the same disk, and clean. "": so it is."""
    names = sorted(p.name for p in a.iterdir() if p.is_file())
    if names != sorted(p.name for p in b.iterdir() if p.is_file()):
        return f"{names} and {sorted(p.name for p in b.iterdir())}"
    for name in names:
        wrong = same_disk(a / name, b / name) or clean(a / name)
        if wrong:
            return wrong
    return ""
