#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Command lines as the programs that call qemu-img write them, each with the limits that they set, run with ours and with QEMU's.

In two folders that are alike: exit codes, stdout and the words of stderr must be the same (sizes on the host aside), a run that
succeeds says nothing on stderr, and the disks that are left must be identical.
"""
import json
import re
import shlex
import shutil
import tempfile
from pathlib import Path

import callers
from callers import OURS, THEIRS, check, run, with_path

INFO = "prlimit --as=1073741824 --cpu=30 -- env LC_ALL=C LANG=C qemu-img"
WORK = "prlimit --as=2147483648 -- env MALLOC_ARENA_MAX=3 LC_ALL=C qemu-img"
# the sanitizers reserve address space of their own
if callers.SANITIZED:
    INFO = WORK = "env LC_ALL=C qemu-img"

LINES = {
    "nova": f"""
{INFO} info base.raw --force-share --output=json
{INFO} info src.qcow2 --force-share --output=json -f qcow2
qemu-img create -f qcow2 -o backing_file=base.raw,backing_fmt=raw,size=67108864 disk
qemu-img create -f qcow2 -o backing_file=base.raw disk2
qemu-img resize disk 134217728
qemu-img convert -t none -O raw -f qcow2 src.qcow2 src.converted
qemu-img convert -t none -T none -O qcow2 -f qcow2 -c src.qcow2 snapshot.qcow2
qemu-img rebase -u -b '' disk2
qemu-img rebase -b base.raw -F raw disk
qemu-img snapshot -c one src.qcow2
qemu-img convert -f qcow2 -O qcow2 -l one src.qcow2 extracted
qemu-img snapshot -d one src.qcow2
qemu-img commit -q disk
qemu-img info nothing --output=json
""",
    "glance": f"""
{INFO} info -f qcow2 --output=json src.qcow2
{INFO} info -f raw --output=json base.raw
qemu-img convert -f qcow2 -O raw src.qcow2 out.raw
qemu-img convert -f raw -O qcow2 base.raw out.qcow2
{INFO} info --output=json 'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"src.qcow2"}}}}'
""",
    "cinder": f"""
{INFO} info -f qcow2 --output=json src.qcow2
qemu-img convert -O raw -t none -f qcow2 src.qcow2 volume
qemu-img convert -n -W -m 8 -O raw -f qcow2 src.qcow2 volume
qemu-img create -f raw thick 8388608
qemu-img resize -f raw thick 16777216
qemu-img convert -c -O qcow2 -f raw volume back.qcow2
qemu-img create -f qcow2 -o preallocation=falloc pre.qcow2 8M
qemu-img rebase -u -b base.raw -F raw pre.qcow2
""",
    "vdsm": f"""
{INFO} info -f qcow2 --output json -U src.qcow2
qemu-img measure --output json -f qcow2 -O qcow2 src.qcow2
qemu-img measure --output json -f raw -O qcow2 base.raw
qemu-img create -f qcow2 -o compat=1.1 -u -b base.raw -F raw leaf 67108864
qemu-img convert -p -t none -T none -f qcow2 -O raw src.qcow2 copy.raw
qemu-img convert -p -t none -T none -f qcow2 -O qcow2 -W -o compat=1.1,preallocation=off src.qcow2 copy.qcow2
qemu-img create -f qcow2 -o compat=1.1 target.qcow2 32M
qemu-img bitmap --add --enable -g 65536 src.qcow2 b1
qemu-img convert -p -t none -T none -f qcow2 -O qcow2 -n --bitmaps --target-is-zero src.qcow2 target.qcow2
qemu-img bitmap --disable target.qcow2 b1
qemu-img bitmap --merge b1 target.qcow2 b1
qemu-img bitmap --remove target.qcow2 b1
qemu-img check --output json -f qcow2 src.qcow2
qemu-img map --output json -f qcow2 src.qcow2
qemu-img compare -p -f qcow2 -F raw src.qcow2 copy.raw
qemu-img amend -f qcow2 -o compat=1.1 target.qcow2
qemu-img commit -p -t none -b base.raw -f qcow2 leaf
qemu-img resize -f qcow2 target.qcow2 67108864
""",
    "CDI": f"""
{INFO} info --output=json src.qcow2
{WORK} convert -t writeback -p -O raw src.qcow2 disk.img
{WORK} resize -f raw disk.img 67108864
{WORK} resize -f raw --preallocation=falloc disk.img 75497472
{WORK} create -f raw -o preallocation=falloc blank.img 8388608
{WORK} create -f qcow2 -F raw -b base.raw overlay.qcow2
{WORK} rebase -p -u -F raw -b base.raw overlay.qcow2
{WORK} commit -p overlay.qcow2
{WORK} measure -O qcow2 --size 1073741824 --output=json
""",
    "others": """
qemu-img create -q -f qcow2 -o preallocation=metadata,cluster_size=64k vm.qcow2 16M
qemu-img convert -p -n -f qcow2 -O raw src.qcow2 base.raw
qemu-img create -f qcow2 -b src.qcow2 -F qcow2 -o compat=1.1,lazy_refcounts=on linked.qcow2
qemu-img info --backing-chain --output=json linked.qcow2
qemu-img convert -O qcow2 -f qcow2 -o nocow=off,cluster_size=2M,lazy_refcounts=off linked.qcow2 flat.qcow2
qemu-img snapshot -l src.qcow2
qemu-img dd -f qcow2 -O raw bs=1M count=2 if=src.qcow2 of=head.raw
qemu-img convert -f vpc2 -O raw src.qcow2 x
qemu-img resize --shrink src.qcow2 8M
qemu-img check -r all src.qcow2
""",
}
HOST = re.compile(r'("actual-size": )\d+|(disk size: ).*|("date-n?sec": )\d+|("l[123]-size": )\d+')


def folder(root, name, program):
    """A folder with the same images, and the program on its PATH."""
    place = root / name
    (place / "bin").mkdir(parents=True)
    (place / "bin/qemu-img").symlink_to(program.resolve())
    for image in ("base.raw", "src.qcow2"):
        shutil.copy(root / image, place / image)
    return place


def lines_of(caller, root):
    mine, other = folder(root, f"{caller}/a", OURS), folder(root, f"{caller}/b", THEIRS)
    for line in LINES[caller].strip().splitlines():
        got, want = (run(shlex.split(line), p, with_path(p / "bin")) for p in (mine, other))
        what = f"{caller}: {line.split(' -- ')[-1]}"
        text = [HOST.sub(r"\1\2\3\4", r.stdout) for r in (got, want)]
        if " -p " in line:  # how often progress is told is its own
            text = [re.sub(r"    \(\d+\.\d\d/100%\)\r", "", t) for t in text]
        if got.returncode != want.returncode or text[0] != text[1]:
            check(False, what, f"ours {got.returncode}: {text[0]}{got.stderr}\ntheirs {want.returncode}: {text[1]}{want.stderr}")
        elif got.returncode == 0:
            check(got.stderr == "", what, got.stderr)
        else:
            check(got.stderr.splitlines()[:1] == want.stderr.splitlines()[:1], what, f"{got.stderr}\n{want.stderr}")
        if "--output" in line and got.returncode == 0:
            check(json.loads(got.stdout) is not None, f"{what}: JSON")
    wrong = callers.same_disks(mine, other)
    check(not wrong, f"{caller}: the same disks are left", wrong)


def main():
    callers.need_newest()
    with tempfile.TemporaryDirectory(prefix="qcow-callers.") as name:
        root = Path(name)
        with open(root / "base.raw", "wb") as f:
            f.truncate(32 << 20)
            for at in range(0, 8 << 20, 1 << 20):
                f.seek(at)
                f.write(bytes([at >> 20 | 0x40]) * 300000)
        run([THEIRS, "convert", "-f", "raw", "-O", "qcow2", root / "base.raw", root / "src.qcow2"], root, check=True)
        for caller in LINES:
            lines_of(caller, root)
    callers.finish()


main()
