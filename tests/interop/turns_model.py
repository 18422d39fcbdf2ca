# SPDX-License-Identifier: MIT
"""The images of turns.py as arrays of bytes and sets of dirty granules, who changes them, and who judges them."""
import copy
import json
import os
import shlex
import struct
import subprocess


class Wrong(Exception):
    pass


class Refused(Exception):
    """the party did not do the step; nothing may have changed"""


class PeerDied(Exception):
    """a QEMU fell over an assertion of its own, or never ended: the sequence does"""


class Party:
    def __init__(self, name, img, io, is_ours):
        self.img, self.io, self.is_ours = [img], io, is_ours
        self.name = name
        self.is_new = True
        if not is_ours:
            said = subprocess.run([img, "--version"], capture_output=True, check=True).stdout
            self.name = "QEMU " + said.split()[2].decode()
            self.is_new = int(self.name.split()[1].split(".")[0]) >= 9


class Bitmap:
    """granules that must be dirty and granules that may be (None: any)"""

    def __init__(self, granularity):
        self.granularity, self.is_enabled, self.must, self.may = granularity, True, set(), set()

    def mark(self, start, end):
        if self.is_enabled and end > start:
            granules = range(start // self.granularity, (end - 1) // self.granularity + 1)
            self.must.update(granules)
            if self.may is not None:
                self.may.update(granules)

    def any_may(self):
        self.may = None

    def clip(self, size):
        n = -(-size // self.granularity)
        self.must = {g for g in self.must if g < n}

    def merge(self, other):
        for g in other.must:
            self.must.update(self.covered(g, other.granularity))
        if other.may is None or self.may is None:
            self.may = None
        else:
            for g in other.may:
                self.may.update(self.covered(g, other.granularity))

    def covered(self, granule, granularity):
        start = granule * granularity
        return range(start // self.granularity, (start + granularity - 1) // self.granularity + 1)


class Layer:
    def __init__(self, name, fmt, view, below):
        self.name, self.fmt, self.view, self.below = name, fmt, view, below
        self.snapshots = {}  # name: the disk's bytes
        self.bitmaps = {}

    def mark(self, start, end):
        for bitmap in self.bitmaps.values():
            bitmap.mark(start, end)

    def changed_otherwise(self):
        for bitmap in self.bitmaps.values():
            bitmap.any_may()


class Chain:
    """the image `top` and the files below it, all in one folder, by relative names"""

    def __init__(self, ctx, folder, rng, log):
        self.ctx, self.folder, self.rng, self.log = ctx, folder, rng, log
        self.top = None
        self.others = []  # layers that nobody has below him: targets of rebase
        self.n_names = 0

    def copy_at(self, folder):
        other = copy.copy(self)
        other.folder, other.log = folder, []
        other.top, other.others = copy.deepcopy((self.top, self.others))
        return other

    def path(self, name):
        return os.path.join(self.folder, name)

    def new_name(self, stem):
        self.n_names += 1
        return "%s%d" % (stem, self.n_names)

    # ---- who does a step ----

    def call(self, argv, ok=(0,)):
        self.log.append(" ".join(map(shlex.quote, argv)))
        by_us = any(p.is_ours and argv[0] in (p.img[0], p.io[0]) for p in self.ctx.parties)
        try:
            r = subprocess.run(argv, capture_output=True, cwd=self.folder, stdin=subprocess.DEVNULL, timeout=120)
        except subprocess.TimeoutExpired:
            if by_us:
                raise
            raise PeerDied("it goes on for ever")
        if r.returncode not in ok:
            said = (r.stderr + r.stdout[-300:]).decode("utf-8", "replace").strip()
            if r.returncode < 0 and not by_us:
                raise PeerDied(said)
            if r.returncode < 0 or r.returncode > 2 or "BUG" in said:
                raise Wrong("status %d of %s: %s" % (r.returncode, " ".join(argv), said))
            raise Refused(said)
        return r

    def img(self, party, *words, ok=(0,)):
        return self.call(party.img + list(words), ok)

    def io(self, party, *commands, ok=(0,), cache="unsafe"):
        argv = list(party.io) + ["-d", "unmap", "-t", cache, "-f", "qcow2"]
        for command in commands:
            argv += ["-c", command]
        r = self.call(argv + [self.top.name], ok)
        said = (r.stdout + r.stderr).decode("utf-8", "replace")
        if "failed" in said or "rror" in said:
            raise Refused(said.strip())

    # ---- who judges ----

    def layers(self):
        layer, out = self.top, []
        while layer:
            out.append(layer)
            layer = layer.below
        return out

    def oracle_read(self, layer, snapshot=None):
        if layer.fmt == "raw":
            with open(self.path(layer.name), "rb") as f:
                return bytearray(f.read())
        argv = [self.ctx.oracle, "read", layer.name]
        below = layer.below
        while below:
            argv += ["--backing", "%s:%s" % (below.name, below.fmt)]
            below = below.below
        if snapshot:
            argv += ["--snapshot", self.snapshot_id(snapshot)]
        r = subprocess.run(argv + ["-o", "oracle.raw"], capture_output=True, cwd=self.folder)
        if r.returncode:
            raise Wrong("the oracle cannot read %s: %s" % (layer.name, r.stderr.decode("utf-8", "replace").strip()))
        with open(self.path("oracle.raw"), "rb") as f:
            return bytearray(f.read())

    def snapshot_id(self, name):
        for s in self.info(self.ctx.parties[0]).get("snapshots", []):
            if s["name"] == name:
                return s["id"]
        raise Wrong("qcow does not list snapshot %s" % name)

    def party_read(self, party, layer, snapshot=None):
        argv = party.img + ["convert", "-O", "raw"]
        if not party.is_ours:
            argv += ["-t", "unsafe"]
        if snapshot:
            argv += ["-l", "snapshot.name=" + snapshot]
        argv += ["-f", layer.fmt, layer.name, "party.raw"]
        r = subprocess.run(argv, capture_output=True, cwd=self.folder, timeout=120)
        if r.returncode:
            raise Wrong("%s cannot read %s: %s" % (party.name, layer.name, r.stderr.decode("utf-8", "replace").strip()))
        with open(self.path("party.raw"), "rb") as f:
            return f.read()

    def info(self, party):
        r = subprocess.run(party.img + ["info", "--output", "json", self.top.name], capture_output=True, cwd=self.folder)
        if r.returncode:
            raise Wrong("%s info: %s" % (party.name, r.stderr.decode("utf-8", "replace").strip()))
        return json.loads(r.stdout)

    def same(self, who, layer, got, want):
        if bytes(got) == bytes(want):
            return
        if len(got) != len(want):
            raise Wrong("%s: %s has %d bytes, not %d" % (layer, who, len(got), len(want)))
        off = next(i for i in range(len(got)) if got[i] != want[i])
        n = sum(a != b for a, b in zip(got, want))
        raise Wrong("%s: %s reads %d for %d at byte %d, %d bytes differ" % (layer, who, got[off], want[off], off, n))

    def judge(self, everything=False, by=None):
        """after a step of the party `by`"""
        if by and not by.is_ours:
            self.take_away_leaks()
        parties = self.ctx.parties
        ours, qemu = parties[0], self.rng.choice([p for p in parties if not p.is_ours])
        who = [p for p in parties if everything or p in (ours, qemu)]
        for layer in self.layers() if everything else [self.top, self.rng.choice(self.layers())]:
            self.same("the oracle", layer.name, self.oracle_read(layer), layer.view)
            for party in who:
                self.same(party.name, layer.name, self.party_read(party, layer), layer.view)
            if layer.fmt == "qcow2":
                self.clean(layer, who)
        names = sorted(self.top.snapshots)
        for name in names if everything else self.rng.sample(names, min(1, len(names))):
            self.same("the oracle", name, self.oracle_read(self.top, name), self.top.snapshots[name])
            for party in who:
                want = self.top.snapshots[name]
                got = self.party_read(party, self.top, name)
                if not party.is_ours:  # it reads a snapshot in the length of the disk
                    n = min(len(got), len(want))
                    got, want = got[:n], want[:n]
                self.same(party.name, name, got, want)
        for party in who:
            self.lists(party)
        self.bits(ours)

    def check(self, party, layer, *words):
        return subprocess.run(party.img + ["check", "-f", "qcow2", *words, layer.name], capture_output=True,
                              cwd=self.folder)

    def take_away_leaks(self):
        """QEMU leaks clusters now and then: where it says so itself, they are nothing to find fault with"""
        for layer in self.layers():
            if layer.fmt == "qcow2" and self.check(self.ctx.parties[0], layer).returncode == 3:
                for party in self.ctx.parties[1:]:
                    if self.check(party, layer).returncode != 3:
                        raise Wrong("%s: leaks for qcow, and not for %s" % (layer.name, party.name))
                self.check(self.ctx.parties[0], layer, "-r", "leaks")
                self.log.append("# QEMU leaked clusters")

    def clean(self, layer, who):
        for party in who:
            r = self.check(party, layer)
            if r.returncode:
                raise Wrong("%s check of %s: status %d: %s" % (
                    party.name, layer.name, r.returncode, (r.stderr + r.stdout).decode("utf-8", "replace").strip()[:600]))

    def lists(self, party):
        """snapshots and bitmaps by name"""
        info = self.info(party)
        got = sorted(s["name"] for s in info.get("snapshots", []))
        if got != sorted(self.top.snapshots):
            raise Wrong("%s lists snapshots %s, not %s" % (party.name, got, sorted(self.top.snapshots)))
        listed = info["format-specific"]["data"].get("bitmaps", [])
        got = {b["name"]: (b["granularity"], "auto" in b["flags"], "in-use" in b["flags"]) for b in listed}
        want = {n: (b.granularity, b.is_enabled, False) for n, b in self.top.bitmaps.items()}
        if got != want:
            raise Wrong("%s lists bitmaps %s, not %s" % (party.name, got, want))

    def bits(self, party):
        for name, bitmap in self.top.bitmaps.items():
            r = subprocess.run(party.img + ["map", "--output", "json", "--bitmap", name, self.top.name],
                               capture_output=True, cwd=self.folder)
            if r.returncode:
                raise Wrong("bitmap %s: %s" % (name, r.stderr.decode("utf-8", "replace")))
            dirty = set()
            for e in json.loads(r.stdout):
                if e["dirty"]:
                    dirty.update(range(e["start"] // bitmap.granularity,
                                       (e["start"] + e["length"] - 1) // bitmap.granularity + 1))
            lost = bitmap.must - dirty
            if lost:
                raise Wrong("bitmap %s lacks granule %d of %d" % (name, min(lost), bitmap.granularity))
            if bitmap.may is not None and dirty - bitmap.may:
                raise Wrong("bitmap %s: granule %d of %d is dirty, and nobody wrote there" % (
                    name, min(dirty - bitmap.may), bitmap.granularity))


def leak(path, rng):
    """count a cluster that nothing refers to: -> whether one was found (the specification's refcounts)"""
    with open(path, "r+b") as f:
        header = f.read(104)
        version, = struct.unpack(">I", header[4:8])
        cluster = 1 << struct.unpack(">I", header[20:24])[0]
        table, n_table = struct.unpack(">QI", header[48:60])
        bits = 16 if version == 2 else 1 << struct.unpack(">I", header[96:100])[0]
        f.seek(table)
        blocks = [b for b in struct.unpack(">%dQ" % (n_table * cluster // 8), f.read(n_table * cluster)) if b]
        block = rng.choice(blocks)
        f.seek(block)
        counts = bytearray(f.read(cluster))
        width = max(1, bits // 8)
        for i in range(0, cluster, width):
            if not any(counts[i:i + width]):
                counts[i + width - 1] = 1
                f.seek(block)
                f.write(counts)
                return True
    return False
