# SPDX-License-Identifier: MIT
"""Two folders that are alike: one command line runs in both, once with our programs first on PATH, once with QEMU's.

The environment: QCOW_COMPAT, the folder with our programs; QEMU_IMG_NEW, QEMU's (default: what tools/peers/get fetched).
"""
import os, re, shlex, shutil, subprocess
from pathlib import Path

ours = Path(os.environ["QCOW_COMPAT"]) / "qemu-img"
theirs = Path(os.environ.get("QEMU_IMG_NEW", Path.home() / ".cache/qcowkit-peers/bin/qemu-img"))
# what the host decides, and not the program: how much space a file takes, and the time
HOST = re.compile(r'("actual-size": )\d+|(disk size: ).*|("date-n?sec": )\d+|("l[123]-size": )\d+')


def plain(text):
    """Without what the host decides."""
    return HOST.sub(lambda m: m.group(m.lastindex) + "0", text)


class Counts:
    def __init__(self):
        self.ok = self.bad = 0

    def __call__(self, ok, what, why=""):
        self.ok, self.bad = self.ok + bool(ok), self.bad + (not ok)
        print(("[       OK ] " if ok else f"{why}\n[  FAILED  ] ") + what)

    def finish(self):
        print(f"{self.ok} passed, {self.bad} failed")
        return 1 if self.bad or not self.ok else 0


def folder(place, program, images=()):
    """A folder with copies of the images, and QEMU's names for the programs beside `program` on its PATH."""
    (place / "bin").mkdir(parents=True)
    for name in ("qemu-img", "qemu-io", "qemu-nbd"):
        (place / "bin" / name).symlink_to((program.parent / name).absolute())
    for image in images:
        # with the same holes
        subprocess.run(["cp", "--sparse=always", "--reflink=never", image, place / image.name], check=True)
    return place


def run(place, line):
    env = dict(os.environ, PATH=f"{place}/bin:{os.environ['PATH']}", LC_ALL="C")
    words = shlex.split(line) if isinstance(line, str) else line
    r = subprocess.run(words, cwd=place, env=env, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    r.stdout, r.stderr = r.stdout.decode(errors="replace"), r.stderr.decode(errors="replace")
    return r


def same_disks(a, b):
    """Every image that one of the two left is in the other, with the same disk, and clean."""
    names = sorted(p.name for p in a.iterdir() if p.is_file())
    if names != sorted(p.name for p in b.iterdir() if p.is_file()):
        return False, f"{names}"
    for name in names:
        with open(a / name, "rb") as f, open(b / name, "rb") as g:
            formats = ["qcow2" if x.read(4) == b"QFI\xfb" else "raw" for x in (f, g)]
        r = subprocess.run([theirs, "compare", "-f", formats[0], "-F", formats[1], a / name, b / name], capture_output=True, text=True)
        if r.returncode == 2 and ("Could not open backing file" in r.stderr or "No such file" in r.stderr):
            continue  # an overlay of what is not there, or is something else
        if r.returncode != 0 or "size" in r.stdout:
            return False, f"{name}: {r.stdout}{r.stderr}"
        if formats[0] == "qcow2":
            r = subprocess.run([theirs, "check", "-q", a / name], capture_output=True, text=True)
            if r.returncode != 0:
                return False, f"{name}: {r.stdout}{r.stderr}"
    return True, ""
