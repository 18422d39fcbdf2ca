#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""R11, R25, R26, R51, R55, R56, R57: qemu-nbd as its callers start it, ours beside the newest QEMU's, as nbdinfo sees the two.

The environment: as beside.py.
"""
import json, os, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path

import beside

n = beside.check
IMAGES = """
create -q -f qcow2 a.qcow2 1M
io a.qcow2 -c 'write -q -P 1 0 200k' -c 'write -q -z 512k 64k'
bitmap --add a.qcow2 marks
io a.qcow2 -c 'write -q -P 2 64k 64k'
snapshot -c one a.qcow2
io a.qcow2 -c 'write -q -P 3 800k 64k'
create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
io b.qcow2 -c 'write -q -P 4 100k 64k'
create -q -f raw r.raw 1M
io -f raw r.raw -c 'write -q -P 5 128k 64k'
"""
FILES = ["a.qcow2", "b.qcow2", "r.raw"]
# options, the export's name, contexts whose ranges are compared
LINES = [
    ("-f qcow2 a.qcow2", "", ["base:allocation"]),
    ("-f raw -r r.raw", "", ["base:allocation"]),
    ("-f qcow2 -r -e 2 a.qcow2", "", ["base:allocation"]),
    ("-f qcow2 -x disk -D 'a disk' -A b.qcow2", "disk", ["base:allocation", "qemu:allocation-depth"]),
    ("-f qcow2 -r -B marks a.qcow2", "", ["base:allocation", "qemu:dirty-bitmap:marks"]),
    ("-f raw -o 65536 r.raw", "", ["base:allocation"]),
    ("-f qcow2 -l one a.qcow2", "", ["base:allocation"]),
    ("-f qcow2 -l snapshot.name=one a.qcow2", "", ["base:allocation"]),
    ("-f qcow2 -s a.qcow2", "", ["base:allocation"]),
    ("-f qcow2 --discard=unmap --detect-zeroes=unmap --cache=none --aio=threads a.qcow2", "", ["base:allocation"]),
    ("-f qcow2 --discard=ignore --detect-zeroes=on --cache=writeback a.qcow2", "", ["base:allocation"]),
    ("--image-opts driver=qcow2,file.filename=a.qcow2", "", ["base:allocation"]),
]
# what an export is for every client; sizes of blocks and how many connections are each server's own
SAME = ["export-name", "description", "export-size", "is_read_only", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_trim", "can_zero",
        "contexts"]


def stop(place, pid):
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 60
    while (place / "s").exists() and time.monotonic() < end:
        time.sleep(.01)
    return not (place / "s").exists()


def seen(place, options, name, contexts):
    """What nbdinfo tells of the export at once when the parent has ended, and what is written to stdout and stderr."""
    start = beside.run(place, f"qemu-nbd -t -k {place}/s --fork --pid-file pid {options}")
    if start.returncode != 0:
        return {"status": start.returncode, "err": start.stderr}
    pid = int((place / "pid").read_text())
    uri = f"nbd+unix:///{name}?socket={place}/s"
    try:
        info = beside.run(place, ["nbdinfo", "--json", "--no-content", uri])
        export = json.loads(info.stdout)["exports"][0]
        what = {k: export.get(k) for k in SAME}
        for context in contexts:
            what[context] = beside.run(place, ["nbdinfo", f"--map={context}", uri]).stdout
        what["list"] = beside.run(place, f"qemu-nbd -L -k {place}/s").returncode
        what["said"] = start.stdout + start.stderr
    finally:
        what["gone"] = stop(place, pid)
    return what


def ends_at(place, number):
    """R25: 0, and the socket is gone."""
    p = subprocess.Popen(["qemu-nbd", "-t", "-k", str(place / "s"), "-f", "qcow2", "a.qcow2"], cwd=place, env=beside.env(place))
    end = time.monotonic() + 60
    while not (place / "s").exists() and time.monotonic() < end:
        time.sleep(.01)
    while beside.run(place, ["nbdinfo", "--size", "nbd+unix:///?socket=s"]).returncode != 0 and time.monotonic() < end:
        time.sleep(.01)
    p.send_signal(number)
    return p.wait(60), (place / "s").exists()


def activated(place):
    """R56: the socket of a service manager, by LISTEN_FDS and LISTEN_PID."""
    with socket.socket(socket.AF_UNIX) as s:
        os.chdir(place)
        s.bind("passed")
        s.listen()
        code = ("import os, sys\nos.dup2(int(sys.argv[1]), 3)\nos.set_inheritable(3, True)\n"
                "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\nos.execvp(sys.argv[2], sys.argv[2:])")
        p = subprocess.Popen([sys.executable, "-c", code, str(s.fileno()), "qemu-nbd", "-r", "-f", "qcow2", "a.qcow2"], env=beside.env(place),
                             pass_fds=[s.fileno()])
        size = beside.run(place, ["nbdinfo", "--size", "nbd+unix:///?socket=passed"]).stdout
        status = p.wait(60)
        os.unlink("passed")
        return size, status


def main():
    beside.need_newest()
    if not shutil.which("nbdinfo"):
        beside.callers.skip_all("nbdinfo is not there")
    with tempfile.TemporaryDirectory(prefix="qcow-nbd.") as name:
        root = Path(name)
        made = beside.make(root / "in", IMAGES)
        ours, theirs = (beside.folder(root / x, p, [made / f for f in FILES]) for x, p in (("o", beside.ours), ("t", beside.theirs)))
        for options, export, contexts in LINES:
            got, want = (seen(place, options, export, contexts) for place in (ours, theirs))
            for key in sorted(set(got) | set(want)):
                rule = "R57" if ":" in key else "R26" if key in ("said", "status", "gone") else "R51" if key == "list" else "R55"
                n(got.get(key) == want.get(key), f"{rule} {options}: {key}", f"ours {got.get(key)}\nQEMU {want.get(key)}")
        for number in signal.SIGTERM, signal.SIGINT:
            n(ends_at(ours, number) == (0, False), f"R25 {number.name}: 0, and the socket is gone")
        mine = activated(ours)
        n(mine == ("1048576\n", 0), "R56 a socket of a service manager", f"{mine}")
        r = beside.run(ours, "qemu-nbd --version")
        words = r.stdout.split()
        n(words[0] == "qemu-nbd" and tuple(map(int, words[1].split("."))) >= (5, 2, 0), "R11 qemu-nbd --version", r.stdout)
        os.chdir("/")
    beside.finish()


main()
