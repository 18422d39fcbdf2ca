# SPDX-License-Identifier: MIT
"""Two folders that are alike: one command line runs in both, once with our programs first on PATH, once with QEMU's.

The programs and the environment are those of tests/callers/callers.py.
"""
import re, shlex, subprocess, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "callers"))
import callers  # noqa: E402
from callers import OURS as ours, THEIRS as theirs, check, finish, need_newest, with_path  # noqa: E402,F401

# what the host decides, and not the program: how much space a file takes, and the time
HOST = re.compile(r'("actual-size": )\d+|(disk size: ).*|("date-n?sec": )\d+|("l[123]-size": )\d+')


def plain(text):
    """Without what the host decides."""
    return HOST.sub(lambda m: m.group(m.lastindex) + "0", text)


def folder(place, program, images=()):
    """A folder with copies of the images, and QEMU's names for the programs beside `program` on its PATH."""
    (place / "bin").mkdir(parents=True)
    for name in ("qemu-img", "qemu-io", "qemu-nbd"):
        (place / "bin" / name).symlink_to((program.parent / name).absolute())
    for image in images:
        # with the same holes
        subprocess.run(["cp", "--sparse=always", "--reflink=never", image, place / image.name], check=True)
    return place


def env(place):
    return with_path(f"{place}/bin")


def run(place, line):
    return callers.run(shlex.split(line) if isinstance(line, str) else line, place, env(place))


def make(place, lines, program=theirs):
    """A folder with the images that QEMU makes by these lines; those that begin with io are qemu-io's."""
    folder(place, program)
    for line in lines.strip().splitlines():
        r = run(place, words(line))
        assert r.returncode == 0, (line, r.stderr)
    return place


def words(line):
    return "qemu-" + line if line.startswith("io ") else "qemu-img " + line


def same_disks(a, b):
    """As callers.same_disks, for what can be opened: not an overlay of what is not there, or is something else."""
    names = [sorted(p.name for p in x.iterdir() if p.is_file()) for x in (a, b)]
    if names[0] != names[1]:
        return f"{names[0]} and {names[1]}"
    for name in names[0]:
        wrong = callers.same_disk(a / name, b / name)
        if "Could not open backing file" in wrong or "No such file" in wrong:
            continue
        wrong = wrong or callers.clean(a / name)
        if wrong:
            return wrong
    return ""
