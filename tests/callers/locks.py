#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A machine of QEMU's holds images, for writing and for reading, and every command comes by: ours is refused where QEMU's is, in the
same words, and prints the same where it is not; with -U too. Then the other way round: what the machine is told while one of our
programs holds the image is what it is told while QEMU's does."""
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import callers
from callers import OURS, THEIRS, check, run
from qmp import PROGRAM, Machine, Refused, node

IMAGES = {"disk.qcow2": "qcow2", "base.qcow2": "qcow2", "raw.img": "raw"}
READING = """
info {x}
info -U {x}
info --output=json --backing-chain {x}
info --output=json --backing-chain -U {x}
info --force-share -f {f} {x}
check {x}
check -U {x}
check -U --output=json -f {f} {x}
map -f {f} {x}
map -U -f {f} --output=json {x}
measure -f {f} -O qcow2 {x}
measure -U -f {f} -O raw {x}
compare {x} {x}
compare -U {x} {x}
compare -U -f {f} {x} free.qcow2
convert -f {f} -O raw {x} out
convert -U -f {f} -O raw {x} out
convert -U -c -f {f} -O qcow2 {x} out
dd -f {f} -O raw bs=64k count=2 if={x} of=out
dd -U -f {f} -O raw bs=64k count=2 if={x} of=out
snapshot -l {x}
snapshot -U -l {x}
bench -c 2 -f {f} {x}
bench -U -c 2 -f {f} {x}
create -f qcow2 -b {x} -F {f} out
create -f qcow2 -b {x} -F {f} out 64M
create -u -f qcow2 -b {x} -F {f} out 64M
rebase -u -b {x} -F {f} over.qcow2
rebase -b {x} -F {f} over.qcow2
rebase -U -b {x} -F {f} over.qcow2
info --image-opts driver={f},file.filename={x},file.locking=off
info 'json:{{"driver":"{f}","file":{{"driver":"file","filename":"{x}","locking":"off"}}}}'
qemu-io -r -f {f} -c "read 0 64k" {x}
qemu-io -r -U -f {f} -c "read 0 64k" {x}
qemu-nbd -r -f {f} {x}
"""
WRITING = """
check -r all {x}
resize -f {f} {x} 128M
resize -f {f} --shrink {x} 32M
snapshot -c one {x}
snapshot -a one {x}
snapshot -d one {x}
amend -f {f} -o lazy_refcounts=on {x}
bitmap --add -f {f} {x} b
rebase -u -b '' -f {f} {x}
rebase -b '' -f {f} {x}
commit -f {f} {x}
convert -n -O {f} free.qcow2 {x}
convert -O {f} free.qcow2 {x}
dd -O {f} if=free.qcow2 of={x}
create -f {f} {x} 1M
create -f raw {x} 1M
bench -w -c 2 -f {f} {x}
qemu-io -f {f} -c "write 0 64k" {x}
qemu-io -U -f {f} -c "read 0 64k" {x}
qemu-nbd -f {f} {x}
"""
SPEED = re.compile(r"(\d[\d.]* \S+, \d+ ops; ).*|(Run completed in ).*|(Sending .*)")
# on an overlay that nobody holds, over what somebody does. What needs nothing of the files below (check, snapshot, bitmap) does not
# open them here, so it is not refused as QEMU's is.
OVERLAY = """
info over.qcow2
info --backing-chain over.qcow2
info --backing-chain -U over.qcow2
map over.qcow2
map -U over.qcow2
measure -O raw over.qcow2
compare over.qcow2 {x}
convert -O raw over.qcow2 out
convert -U -O raw over.qcow2 out
dd bs=64k count=2 if=over.qcow2 of=out
amend -o lazy_refcounts=on over.qcow2
commit -d over.qcow2
rebase -b '' over.qcow2
rebase -u -b '' over.qcow2
rebase -b free.qcow2 -F qcow2 over.qcow2
rebase -U -b free.qcow2 -F qcow2 over.qcow2
bitmap --merge b -b {x} -F {f} free.qcow2 none
qemu-io -c "read 0 64k" over.qcow2
qemu-io -r -U -c "read 0 64k" over.qcow2
qemu-nbd -f qcow2 over.qcow2
"""
# QEMU's three lines of a raw image without -f that is opened for writing
PROBED = re.compile("WARNING: Image format .*\n  .*\n  .*\n")


def tool(bin_, line):
    """The words of a line of the tables, with the program in front."""
    words = shlex.split(line)
    if words[0] not in ("qemu-io", "qemu-nbd"):
        return [bin_ / "qemu-img", *words]
    more = ["--fork", "--pid-file=pid", "--socket=" + os.path.abspath("nbd.sock")] if words[0] == "qemu-nbd" else []
    return [bin_ / words[0], *more, *words[1:]]


def one(bin_, line):
    """Status, stdout and the lines of stderr, and nothing of it left behind."""
    r = run(tool(bin_, line), ".", dict(os.environ, LC_ALL="C"))
    if r.returncode == 0 and line.startswith("qemu-nbd"):
        pid = int(Path("pid").read_text())
        while Path("nbd.sock").exists():  # QEMU's misses a signal that comes early
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.02)
    for name in ("out", "over.qcow2", "pid"):
        Path(name).unlink(missing_ok=True)
    shutil.copy("over.saved", "over.qcow2")
    said = PROBED.sub("", r.stderr)
    return r.returncode, SPEED.sub(r"\1\2", r.stdout), [x for x in said.splitlines() if x]


def restore_overlay():
    run([THEIRS, "create", "-u", "-f", "qcow2", "-b", "free.qcow2", "-F", "qcow2", "over.saved", "64M"], ".", check=True)
    shutil.copy("over.saved", "over.qcow2")


def table(state, lines):
    """Each line on each image, by QEMU's and by ours. The words of ours may go on where QEMU's end."""
    for image, format_ in IMAGES.items():
        for line in filter(None, lines.splitlines()):
            line = line.format(x=image, f=format_)
            want, got = one(THEIRS.parent, line), one(OURS.parent, line)
            same = got[:2] == want[:2] and got[2][:len(want[2])] == want[2]
            check(same and (got[0] or not got[2]), f"{state}: {line}", f"ours {got}\nQEMU's {want}")
        run([THEIRS, "create", "-u", "-f", "qcow2", "-b", image, "-F", format_, "over.saved", "64M"], ".", check=True)
        shutil.copy("over.saved", "over.qcow2")
        for line in filter(None, OVERLAY.splitlines()):
            line = line.format(x=image, f=format_)
            want, got = one(THEIRS.parent, line), one(OURS.parent, line)
            same = got[:2] == want[:2] and set(want[2][1:]) <= set(got[2]) and bool(want[2]) == bool(got[2])
            check(same, f"{state} {image}: {line}", f"ours {got}\nQEMU's {want}")
    restore_overlay()


def machine(read_only):
    held = [node("b", "base.qcow2", **{"read-only": True}),
            {**node("d", "disk.qcow2", **{"read-only": read_only}), "backing": "b"},
            node("r", "raw.img", driver="raw", **{"read-only": read_only})]
    return Machine(".", *held, devices=("d", "r"))


def held_by_a_machine():
    with machine(False) as m:
        m.io("d", "write -P 5 1M 64k")
        table("a machine writes", READING + WRITING)
        m.io("d", "read -P 5 1M 64k")
        m.io("r", "write -P 6 1M 64k")
        m.quit()
    with machine(True) as m:
        table("a machine reads", READING + WRITING)
        m.quit()
    for image in IMAGES:
        check(not callers.clean(image), f"{image} is clean", callers.clean(image))


class Holder:
    """A program that has an image open. It is sure to once it has said so, or once its socket is there."""

    def __init__(self, argv, ready):
        self.process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(1200):
            if ready(self.process.pid) or self.process.poll() is not None:
                break
            time.sleep(0.05)
        if self.process.poll() is not None:
            raise AssertionError(f"{argv}: {self.process.stderr.read().decode()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate()
        Path("s").unlink(missing_ok=True)


def has_locks(pid):
    """The process holds one of the bytes with which QEMU's programs keep each other out."""
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            if re.search(r"OFDLCK .* (100|101|201) \d+$", info.read_text(), re.M):
                return True
        except OSError:
            pass
    return False


def served(_):
    return Path("s").exists()


HOLDERS = {
    "qemu-io": (["{bin}/qemu-io", "{x}"], has_locks),
    "qemu-io -r": (["{bin}/qemu-io", "-r", "{x}"], has_locks),
    "qemu-nbd": (["{bin}/qemu-nbd", "-t", "-k", "{here}/s", "-f", "qcow2", "{x}"], served),
    "qemu-nbd -r": (["{bin}/qemu-nbd", "-t", "-r", "-k", "{here}/s", "-f", "qcow2", "{x}"], served),
    "convert to it": (["{bin}/qemu-img", "convert", "-r", "64k", "-n", "-O", "qcow2", "src.qcow2", "{x}"], has_locks),
    "convert from it": (["{bin}/qemu-img", "convert", "-r", "64k", "-O", "raw", "{x}", "out"], has_locks),
}
OWN = {  # the same as one of the above, by our own name
    "io": ([os.environ["QCOW"], "io", "{x}"], has_locks, "qemu-io"),
    "serve": ([os.environ["QCOW"], "serve", "-t", "-k", "{here}/s", "{x}"], served, "qemu-nbd"),
    "serve -r": ([os.environ["QCOW"], "serve", "-t", "-r", "-k", "{here}/s", "{x}"], served, "qemu-nbd -r"),
}


def told(m, argv, ready, bin_, image):
    """What the machine is told for each way to attach an image that somebody holds. Nobody holds it afterwards."""
    answers = []
    with Holder([a.format(bin=bin_, x=image, here=os.getcwd()) for a in argv], ready):
        for more in ({"read-only": False}, {"read-only": True}, {"read-only": True, "force-share": True}):
            answers.append(m.refusal("blockdev-add", **node("n", image, **more)))
            if answers[-1] is None:
                m.tell("blockdev-del", node_name="n")
        over = {**node("o", "over.qcow2"), "backing": node("n", image, **{"read-only": True})}
        answers.append(m.refusal("blockdev-add", **over))
        if answers[-1] is None:
            m.tell("blockdev-del", node_name="o")
        answers.append(m.refusal("blockdev-add", driver="raw", **{"node-name": "f", "file": {"driver": "file", "filename": image}}))
        if answers[-1] is None:  # a raw node takes what its user needs
            answers.append(m.refusal("device_add", driver="scsi-hd", drive="f", id="t"))
            if answers[-1] is None:
                raise AssertionError(f"a machine writes to {image} beside {argv}")
            m.tell("blockdev-del", node_name="f")
    return answers


def held_by_a_program():
    with Machine(".") as m:
        known = {}
        for name, (argv, ready) in HOLDERS.items():
            image = "src.qcow2" if name == "convert from it" else "free.qcow2"  # it is full, and takes a while
            known[name], got = (told(m, argv, ready, program.parent, image) for program in (THEIRS, OURS))
            check(got == known[name], f"a machine beside our {name}", f"ours {got}\nQEMU's {known[name]}")
        for name, (argv, ready, like) in OWN.items():
            got = told(m, argv, ready, OURS.parent, "free.qcow2")
            check(got == known[like], f"a machine beside our own {name}", f"ours {got}\nQEMU's {known[like]}")
        check(any(known["qemu-io"]) and any(known["qemu-io -r"]), "a machine is refused at all", str(known))
    # one that starts, as libvirt has it
    for bin_ in (THEIRS.parent, OURS.parent):
        with Holder([bin_ / "qemu-io", "free.qcow2"], has_locks):
            try:
                with Machine(".", node("n", "free.qcow2"), devices=("n",)):
                    check(False, "a machine does not start on what is held")
            except Refused as e:
                text = 'Failed to get "write" lock\nIs another process using the image [free.qcow2]?'
                check(text in str(e), "a machine does not start on what is held", str(e))


def main():
    callers.need_newest()
    if PROGRAM is None:
        callers.skip_all("qemu-system-x86_64 is not there")
    with tempfile.TemporaryDirectory(prefix="qcow-callers.") as folder:
        os.chdir(folder)
        img = str(OURS)
        Path("raw.img").write_bytes(bytes(range(1, 255)) * 4000)
        os.truncate("raw.img", 64 << 20)
        for line in ("convert -f raw -O qcow2 raw.img base.qcow2", "create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2",
                     "snapshot -c one disk.qcow2", "snapshot -c one base.qcow2", "convert -f raw -O qcow2 raw.img free.qcow2",
                     "create -q -f qcow2 src.qcow2 64M"):
            run([img, *line.split()], ".", check=True)
        run([OURS.parent / "qemu-io", "-c", "write -P 9 0 64M", "src.qcow2"], ".", check=True)
        restore_overlay()
        held_by_a_machine()
        held_by_a_program()
        os.chdir("/")
    callers.finish()


main()
