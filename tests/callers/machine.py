#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A machine of QEMU's and qemu-img take turns on one image, once with ours and once with QEMU's: overlays and targets that qemu-img
made are used by block jobs, internal snapshots and bitmaps go to and fro. What qemu-img prints, what the machine says of its nodes and
their bitmaps, and the disks that are left are the same both times, and clean."""
import json
import re
import tempfile
from pathlib import Path

import callers
from callers import OURS, THEIRS, check
from qmp import PROGRAM, Machine, Refused, node

# of the host, and of the moment
HOST = re.compile(r'("actual-size": )\d+|("virtual-size": )\d+(?=,\s+"filename": "[^"]*",\s+"format": "file")|(file length: ).*|'
                  r'(disk size: ).*|("(?:date|vm-clock)-n?sec": )\d+|("uuid": )"[^"]*"|("(?:master-key-)?iters": )\d+|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d')
KINDS = {
    "plain": "",
    "version 2": "compat=0.10",
    "small clusters": "cluster_size=4k,refcount_bits=1",
    "subclusters": "extended_l2=on,cluster_size=128k,lazy_refcounts=on",
    "preallocated": "preallocation=metadata",
    "zstd": "compression_type=zstd",
    "data file": "data_file=data.raw,data_file_raw=on",
    "LUKS": "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
}
SECRET = ("--object", "secret,id=s,data=open-sesame")


class Turn:
    """One of the two runs: its folder, its qemu-img, and what was noted in it."""

    def __init__(self, root, name, program):
        self.place, self.bin = root / name, program.parent
        self.place.mkdir()
        self.notes = []

    def img(self, line, *more, status=0):
        """What qemu-img says goes into the notes; with status 0 it says nothing on stderr."""
        r = callers.run([self.bin / "qemu-img", *line.split(), *more], self.place)
        text = HOST.sub(lambda m: next((g for g in m.groups() if g), ""), r.stdout)
        if r.returncode != status or (status == 0 and r.stderr):
            raise AssertionError(f"qemu-img {line}: status {r.returncode}: {r.stdout}{r.stderr}")
        self.notes.append((line, text))
        return r.stdout

    def io(self, image, *commands):
        argv = [self.bin / "qemu-io", *(word for c in commands for word in ("-c", c)), image]
        r = callers.run(argv, self.place)
        if r.returncode or r.stderr or "failed" in r.stdout:
            raise AssertionError(f"{argv}: {r.stdout}{r.stderr}")

    def machine(self, *nodes, **kw):
        return Machine(self.place, *nodes, **kw)

    def note(self, what, value):
        self.notes.append((what, HOST.sub("", json.dumps(value, sort_keys=True))))


def seen(turn, m):
    """What the machine says of the images of its nodes."""
    turn.note("nodes", sorted((n["node-name"], n["image"]) for n in m.tell("query-named-block-nodes") if not n["node-name"].startswith("#")))


def external_snapshots(turn):
    """overlays of ours under a machine that runs; its jobs merge them again"""
    turn.img("create -f qcow2 base.qcow2 64M")
    turn.io("base.qcow2", "write -P 1 0 8M")
    with turn.machine(node("b", "base.qcow2"), devices=("b",)) as m:
        m.io("b", "write -P 2 1M 1M")
        turn.img("create -u -f qcow2 -b base.qcow2 -B qcow2 one.qcow2 64M")
        m.tell("blockdev-snapshot-sync", node_name="b", snapshot_file="one.qcow2", snapshot_node_name="one", format="qcow2", mode="existing")
        m.io("b", "write -P 3 2M 1M")
        turn.img("create -u -f qcow2 -o cluster_size=4k,backing_file=one.qcow2,backing_fmt=qcow2 two.qcow2 64M")
        m.tell("blockdev-add", **node("two", "two.qcow2", backing=None))
        m.tell("blockdev-snapshot", node="one", overlay="two")
        m.io("b", "write -P 4 3M 1M", "write -z 0 64k", "discard 5M 1M")
        turn.img("info --backing-chain -U --output=json two.qcow2")
        seen(turn, m)
        m.job("block-commit", device="two", base_node="b", top_node="one")
        seen(turn, m)
        turn.img("info -U two.qcow2")
        m.job("block-commit", complete=True, device="two")
        seen(turn, m)
        m.io("b", "read -P 0 0 64k", "read -P 2 1M 1M", "read -P 3 2M 1M", "read -P 4 3M 1M")
        m.quit()
    turn.img("check -q base.qcow2")
    turn.img("map --output=json base.qcow2")


def streams(turn):
    """a chain of ours: the machine streams a part of it, and then all"""
    turn.img("create -f qcow2 base.qcow2 32M")
    turn.io("base.qcow2", "write -P 1 0 8M")
    turn.img("create -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2")
    turn.io("middle.qcow2", "write -P 2 1M 1M")
    turn.img("create -f qcow2 -b middle.qcow2 -F qcow2 -o cluster_size=4k top.qcow2 48M")
    turn.io("top.qcow2", "write -P 3 2M 10k", "write -z 40M 1M")
    with turn.machine(node("t", "top.qcow2"), devices=("t",)) as m:
        chain = [n["node-name"] for n in m.tell("query-named-block-nodes") if n["file"] == "base.qcow2" and n["drv"] == "qcow2"]
        m.job("block-stream", device="t", base_node=chain[0])
        turn.img("info -U --output=json top.qcow2")
        m.io("t", "read -P 1 0 1M", "read -P 2 1M 1M", "read -P 3 2M 10k", "read -P 1 3M 5M")
        m.job("block-stream", device="t")
        turn.img("info -U --output=json top.qcow2")
        m.quit()
    turn.img("check -q top.qcow2")


def mirrors(turn):
    """targets of ours for mirror and backup, by name and as nodes; and the machine's own target for us"""
    turn.img("create -f qcow2 disk.qcow2 32M")
    turn.io("disk.qcow2", "write -P 1 0 8M", "write -z 2M 1M")
    for name, options in {"m1": "", "m2": " -o preallocation=metadata", "b1": "", "b2": " -o cluster_size=2M", "b3": ""}.items():
        turn.img(f"create -f qcow2{options} {name}.qcow2 32M")
    turn.img("create -f raw raw.img 32M")
    with turn.machine(node("d", "disk.qcow2"), devices=("d",)) as m:
        m.job("drive-backup", device="d", sync="full", target="b1.qcow2", format="qcow2", mode="existing")
        for name in ("b2", "b3", "m2"):
            m.tell("blockdev-add", **node(name, name + ".qcow2"))
        m.job("blockdev-backup", device="d", sync="full", target="b2", compress=True)
        m.tell("block-dirty-bitmap-add", node="d", name="inc", granularity=65536)
        m.job("blockdev-backup", device="d", sync="full", target="b3")
        m.io("d", "write -P 7 4M 1M", "write -c -P 8 20M 64k")
        m.job("blockdev-backup", device="d", sync="incremental", bitmap="inc", target="b3")
        m.job("blockdev-mirror", complete=True, device="d", sync="full", target="m2")
        m.job("drive-mirror", complete=True, device="m2", sync="full", target="m1.qcow2", format="qcow2", mode="existing")
        m.io("d", "write -P 9 7M 64k")
        turn.img("info -U m1.qcow2")
        m.job("drive-mirror", complete=True, device=m.tell("query-block")[0]["inserted"]["node-name"], sync="full", target="raw.img",
              format="raw", mode="existing")
        m.quit()
    for pair in ("disk.qcow2 m2.qcow2", "m1.qcow2 raw.img", "b3.qcow2 m2.qcow2"):
        turn.img(f"compare {pair}", status=0)


def images_of_the_machine(turn):
    """blockdev-create: what the machine makes, qemu-img describes, checks and changes"""
    with turn.machine() as m:
        more = {"v3": {"version": "v3", "cluster-size": 4096}, "v2": {"version": "v2"}, "l2": {"extended-l2": True, "refcount-bits": 64},
                "z": {"compression-type": "zstd", "lazy-refcounts": True, "preallocation": "full"}}
        for name, options in more.items():
            m.job("blockdev-create", options={"driver": "file", "filename": f"{name}.qcow2", "size": 0})
            m.tell("blockdev-add", **{"driver": "file", "node-name": name, "filename": f"{name}.qcow2"})
            m.job("blockdev-create", options={"driver": "qcow2", "file": name, "size": 16 << 20, **options})
            m.tell("blockdev-del", node_name=name)
        m.quit()
    for name in more:
        turn.img(f"info --output=json {name}.qcow2")
        turn.img(f"check -q {name}.qcow2")
        turn.img(f"resize {name}.qcow2 24M")
        turn.img(f"snapshot -c one {name}.qcow2")
        turn.io(f"{name}.qcow2", "write -P 3 15M 2M")
        turn.img(f"amend -o compat=1.1 {name}.qcow2")
    with turn.machine(*(node(name, f"{name}.qcow2") for name in more), devices=more) as m:
        for name in more:
            m.io(name, "read -P 3 15M 2M", "read -P 0 17M 7M", "write -P 4 20M 1M")
        seen(turn, m)
        m.quit()


def saved_states(turn):
    """snapshots with the state of a machine, saved and loaded by it, listed, copied, applied and deleted by qemu-img"""
    turn.img("create -f qcow2 disk.qcow2 32M")

    def job(m, command, tag):
        more = {} if command == "snapshot-delete" else {"vmstate": "d"}
        m.job(command, name=f"{command}-{tag}", tag=tag, devices=["d"], **more)

    with turn.machine(node("d", "disk.qcow2"), devices=("d",)) as m:
        for i in (1, 2, 3):
            m.io("d", f"write -P {i} 0 1M")
            job(m, "snapshot-save", f"s{i}")
        m.io("d", "write -P 9 0 1M")
        turn.img("snapshot -U -l disk.qcow2")
        job(m, "snapshot-load", "s2")
        m.io("d", "read -P 2 0 1M")
        m.quit()
    sizes = [s["vm-state-size"] for s in json.loads(turn.img("info --output=json disk.qcow2"))["snapshots"]]
    assert len(sizes) == 3 and min(sizes) > 10000, sizes
    turn.img("snapshot -d s2 disk.qcow2")
    turn.img("snapshot -c of-ours disk.qcow2")
    turn.img("snapshot -a s3 disk.qcow2")
    turn.img("snapshot -l disk.qcow2")
    turn.img("convert -l snapshot.name=s1 -O qcow2 disk.qcow2 first.qcow2")
    turn.img("amend -o refcount_bits=64 disk.qcow2")
    with turn.machine(node("d", "disk.qcow2"), devices=("d",), more=("-loadvm", "s1")) as m:
        m.io("d", "read -P 1 0 1M", "write -P 7 0 64k")
        job(m, "snapshot-load", "s3")
        m.io("d", "read -P 3 0 1M")
        job(m, "snapshot-delete", "s3")
        refused = None
        try:
            job(m, "snapshot-load", "of-ours")
        except Refused as e:
            refused = str(e)
        turn.note("a snapshot without a machine", refused)
        job(m, "snapshot-save", "s4")
        m.quit()
    turn.img("snapshot -l disk.qcow2")
    turn.img("snapshot -d s4 disk.qcow2")
    turn.img("check -q disk.qcow2")


def bitmaps(turn):
    """persistent bitmaps: stored by the machine when it ends, merged and made by qemu-img, counted by the machine"""
    turn.img("create -f qcow2 disk.qcow2 64M")

    def known(m):
        found = m.tell("query-block")[0]["inserted"].get("dirty-bitmaps", [])
        hashes = {b["name"]: m.refusal("x-debug-block-dirty-bitmap-sha256", node="d", name=b["name"]) or
                  m.tell("x-debug-block-dirty-bitmap-sha256", node="d", name=b["name"])["sha256"] for b in found}
        turn.note("bitmaps", sorted(([b["name"], b["count"], b["granularity"], b["recording"], b["persistent"], hashes[b["name"]]] for b in found)))
        return {b["name"]: b["count"] for b in found}

    with turn.machine(node("d", "disk.qcow2"), devices=("d",)) as m:
        m.tell("block-dirty-bitmap-add", node="d", name="all", persistent=True)
        m.tell("block-dirty-bitmap-add", node="d", name="coarse", persistent=True, granularity=1 << 20)
        m.tell("block-dirty-bitmap-add", node="d", name="off", persistent=True, disabled=True)
        m.tell("block-dirty-bitmap-add", node="d", name="gone", persistent=False)
        m.io("d", "write -P 1 0 1M", "write -P 2 40M 10k")
        m.tell("block-dirty-bitmap-disable", node="d", name="coarse")
        m.io("d", "write -z 50M 3M", "discard 60M 1M")
        turn.img("info -U --output=json disk.qcow2")
        counts = known(m)
        m.quit()
    assert counts["all"] >= (4 << 20) and counts["off"] == 0, counts
    turn.img("info --output=json disk.qcow2")
    turn.img("info disk.qcow2")
    turn.img("bitmap --add -g 128k disk.qcow2 ours")
    turn.img("bitmap --merge all disk.qcow2 off")
    turn.img("bitmap --merge coarse disk.qcow2 ours")
    turn.img("bitmap --remove disk.qcow2 coarse")
    turn.img("bitmap --disable disk.qcow2 off")
    turn.io("disk.qcow2", "write -P 5 30M 200k")
    turn.img("check -q disk.qcow2")
    turn.img("convert --bitmaps -O qcow2 disk.qcow2 copy.qcow2")
    for image in ("disk.qcow2", "copy.qcow2"):
        with turn.machine(node("d", image), devices=("d",)) as m:
            known(m)
            m.io("d", "write -P 6 61M 64k")
            m.tell("block-dirty-bitmap-merge", node="d", target="ours", bitmaps=["all"])
            m.tell("block-dirty-bitmap-clear", node="d", name="all")
            known(m)
            m.quit()
        turn.img(f"info --output=json {image}")
        turn.img(f"bitmap --merge ours {image} all")
    # a machine that dies leaves them in use
    with turn.machine(node("d", "disk.qcow2"), devices=("d",)) as m:
        m.io("d", "write -P 6 1M 64k", "flush")
        m.process.kill()
    turn.img("info disk.qcow2")
    turn.img("bitmap --remove disk.qcow2 ours")
    turn.img("check -q -r all disk.qcow2")
    with turn.machine(node("d", "disk.qcow2"), devices=("d",)) as m:
        known(m)
        m.tell("block-dirty-bitmap-remove", node="d", name="all")
        m.quit()
    turn.img("info --output=json disk.qcow2")


def every_kind(turn):
    """images of every kind, made by qemu-img, written by qemu-io and the machine in turns"""
    for i, (kind, options) in enumerate(KINDS.items()):
        image, secret = f"k{i}.qcow2", SECRET if "luks" in options else ()
        more = {"encrypt": {"format": "luks", "key-secret": "s"}} if secret else {}
        turn.img(f"create -f qcow2 {image} 32M", *secret, *(("-o", options) if options else ()))
        opts = f"driver=qcow2,file.filename={image}" + (",encrypt.key-secret=s" if secret else "")

        def io(*commands):
            argv = [turn.bin / "qemu-io", *secret, "--image-opts", opts, *(w for c in commands for w in ("-c", c))]
            r = callers.run(argv, turn.place)
            if r.returncode or r.stderr or "failed" in r.stdout:
                raise AssertionError(f"{kind}: {argv}: {r.stdout}{r.stderr}")

        io("write -P 1 0 3M", "write -P 2 10M 1000", "write -z 1M 64k", "discard 2M 512k")
        for step in (1, 2):
            with turn.machine(node("d", image, **more), devices=("d",), more=("-object", secret[1]) if secret else ()) as m:
                m.io("d", "read -P 1 0 1M", "read -P 0 1M 64k", "read -P 2 10M 512" if step == 1 else "read -P 3 10M 512",
                       "write -P 3 10M 70k", f"write -P {step} 20M 300k", "write -z 5M 1M")
                seen(turn, m)
                m.quit()
            io("read -P 3 10M 70k", f"read -P {step} 20M 300k", "read -P 0 5M 1M")
        turn.img(f"info --output=json {image}")
        turn.img(f"check -q --image-opts {opts}", *secret)


def main():
    callers.need_newest()
    if PROGRAM is None:
        callers.skip_all("qemu-system-x86_64 is not there")
    with tempfile.TemporaryDirectory(prefix="qcow-callers.") as root:
        for scene in (external_snapshots, streams, mirrors, images_of_the_machine, saved_states, bitmaps, every_kind):
            turns = [Turn(Path(root), f"{scene.__name__}-{who}", program) for who, program in (("theirs", THEIRS), ("ours", OURS))]
            for turn in turns:
                try:
                    scene(turn)
                except (AssertionError, Refused) as e:
                    turn.notes.append(("failed", str(e)))
            name = scene.__name__.replace("_", " ")
            theirs, ours = (t.notes for t in turns)
            failed = [n for n in theirs + ours if n[0] == "failed"]
            if not check(not failed, f"{name}: all that is asked is done", str(failed)):
                continue
            for want, got in zip(theirs, ours):
                check(want == got, f"{name}: {want[0]}", f"QEMU's {want[1]}\nours   {got[1]}")
            if scene is not every_kind:  # the one with a passphrase has been read
                wrong = callers.same_disks(turns[0].place, turns[1].place)
                check(not wrong, f"{name}: the same disks are left", wrong)
    callers.finish()


main()
