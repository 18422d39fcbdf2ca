# SPDX-License-Identifier: MIT
"""The steps of turns.py: each draws what it needs, has a party do it, and changes the model as the specification and
the manuals of both say. A step answers its words, or None where it has nothing to do; Refused goes to the caller."""
import shutil

from turns_model import Bitmap, Layer, Refused, Wrong, leak

KIB = 1024


def drawn_bytes(rng, n):
    if rng.random() < 0.5:
        return rng.randbytes(n)
    word = rng.randbytes(rng.randint(1, 40))
    return (word * (n // len(word) + 1))[:n]


def raw_file(chain, rng, name, size):
    view = bytearray(size)
    for _ in range(rng.randint(1, 6)):
        start = rng.randrange(size)
        end = min(size, start + rng.randint(1, size // 2))
        view[start:end] = drawn_bytes(rng, end - start)
    with open(chain.path(name), "wb") as f:
        f.write(view)
    return Layer(name, "raw", view, None)


def drawn_size(rng, cluster):
    clusters = rng.randint(3, 40) if cluster >= 64 * KIB else rng.randint(20, 200)
    if cluster > 256 * KIB:
        clusters = rng.randint(1, 3)
    return max(512, clusters * cluster + rng.choice([0, 0, 512, cluster // 1024 * 512, -512]))


def drawn_row(rng):
    row = {"version": rng.choice([2, 3, 3, 3]), "cluster": rng.choice([512, 1024, 4096, 4096, 65536, 65536, 2097152])}
    row["refcount_bits"] = rng.choice([16, 16, 1, 2, 4, 8, 32, 64]) if row["version"] == 3 else 16
    row["extended_l2"] = row["version"] == 3 and row["cluster"] >= 16384 and rng.random() < 0.5
    row["zstd"] = row["version"] == 3 and rng.random() < 0.5
    row["lazy"] = row["version"] == 3 and rng.random() < 0.3
    row["chain"] = rng.choice([0, 0, 1, 1, 2])
    row["writes"] = rng.randint(0, 6)
    return row


def options_of(row):
    words = ["compat=" + ("0.10" if row["version"] == 2 else "1.1"), "cluster_size=%d" % row["cluster"]]
    if row["version"] == 3:
        words += ["refcount_bits=%d" % row["refcount_bits"]]
        words += ["extended_l2=on"] if row["extended_l2"] else []
        words += ["compression_type=zstd"] if row["zstd"] else []
        words += ["lazy_refcounts=on"] if row["lazy"] else []
    return ",".join(words)


def attempt(step, chain, rng):
    try:
        step(chain, rng, rng.choice(chain.ctx.parties))
    except Refused:  # refcounts are too narrow, or QEMU compresses nothing onto an allocated cluster
        pass


def make_layer(chain, rng, name, row, below, size):
    party = rng.choice(chain.ctx.parties)
    words = ["create"] + ([] if party.name == "qcow" else ["-q"]) + ["-f", "qcow2", "-o", options_of(row)]
    if below:
        words += ["-b", below.name, "-F", below.fmt]
    chain.img(party, *words, name, str(size))
    view = bytearray(size)
    if below:
        n = min(size, len(below.view))
        view[:n] = below.view[:n]
    layer = Layer(name, "qcow2", view, below)
    layer.row = row
    chain.top = layer
    for _ in range(row["writes"]):
        attempt(step_write, chain, rng)
    return layer


def first_image(chain, rng):
    row = drawn_row(rng)
    size = drawn_size(rng, row["cluster"])
    below = None
    for i in range(row["chain"]):
        other = max(512, (size + rng.choice([0, 0, -size // 3, size // 2])) // 512 * 512)
        if i == 0 and rng.random() < 0.4:
            below = raw_file(chain, rng, "base.raw", other)
        else:
            its = drawn_row(rng)
            below = make_layer(chain, rng, "layer%d" % i, its, below, other)
            if rng.random() < 0.4:
                attempt(step_snapshot, chain, rng)
    chain.others = [raw_file(chain, rng, "other.raw", max(512, rng.choice([size, size // 2, size * 2]) // 512 * 512))]
    chain.log.append("# %s" % row)
    make_layer(chain, rng, "top", row, below, size)
    return row


# ---- guest data ----

def drawn_range(chain, rng):
    size, cluster = len(chain.top.view), chain.top.row["cluster"]
    unit = rng.choice([512, 512, 4096, cluster])
    start = rng.randrange(size) // unit * unit
    length = min(size - start, max(512, rng.randint(1, max(unit * 3, size // 4)) // unit * unit))
    return start, length - length % 512


def step_write(chain, rng, party):
    if not chain.top.view:
        return None
    kind = rng.choice(["data", "data", "data", "zero", "unmap", "compressed"])
    start, length = drawn_range(chain, rng)
    cluster = chain.top.row["cluster"]
    if kind == "compressed":
        start = start // cluster * cluster
        length = min(cluster, len(chain.top.view) - start)
        length -= length % 512
    if not length:
        return None
    new = bytes(length)
    command = "write -q -z %s%d %d" % ("-u " if kind == "unmap" else "", start, length)
    if kind in ("data", "compressed"):
        new = drawn_bytes(rng, length)
        with open(chain.path("data"), "wb") as f:
            f.write(new)
        command = "write -q %s-s data %d %d" % ("-c " if kind == "compressed" else "", start, length)
    chain.io(party, command)
    chain.top.view[start:start + length] = new
    chain.top.mark(start, start + length)
    return "%s %d %d" % (kind, start, length)


def step_discard(chain, rng, party):
    if not chain.top.view:
        return None
    start, length = drawn_range(chain, rng)
    if not length:
        return None
    chain.io(party, "discard -q %d %d" % (start, length))
    got = chain.oracle_read(chain.top)
    for off in range(start, min(start + length, len(got)), 512):
        sector = got[off:off + 512]
        if sector != chain.top.view[off:off + 512]:
            if any(sector):
                raise Wrong("after a discard by %s byte %d is neither old nor 0" % (party.name, off))
            chain.top.view[off:off + 512] = sector
    chain.top.mark(start, start + length)
    return "discard %d %d" % (start, length)


def step_die(chain, rng, party):
    """a writer dies after a flush; the next one mends what it left"""
    if chain.top.bitmaps or len(chain.top.view) < 512:
        return None
    byte = rng.randint(1, 255)
    start, length = drawn_range(chain, rng)
    if not length:
        return None
    try:
        chain.call(list(party.io) + ["-t", "writeback", "-f", "qcow2", "-c", "write -q -P %d %d %d" % (byte, start, length),
                                     "-c", "flush", "-c", "abort", chain.top.name], ok=(-6, 134))
    except Refused:
        return None
    chain.top.view[start:start + length] = bytes([byte]) * length
    chain.img(rng.choice(chain.ctx.parties), "check", "-q", "-r", "all", chain.top.name, ok=(0, 2, 3))
    return "dies after %d %d" % (start, length)


# ---- snapshots ----

def step_snapshot(chain, rng, party):
    top = chain.top
    if len(top.snapshots) >= 4:
        return step_snapshot_delete(chain, rng, party)
    name = chain.new_name("snap")
    chain.img(party, "snapshot", "-c", name, top.name)
    top.snapshots[name] = bytes(top.view)
    return "snapshot " + name


def step_snapshot_apply(chain, rng, party):
    if not chain.top.snapshots:
        return None
    name = rng.choice(sorted(chain.top.snapshots))
    chain.img(party, "snapshot", "-a", name, chain.top.name)
    chain.top.view = bytearray(chain.top.snapshots[name])
    for bitmap in chain.top.bitmaps.values():
        bitmap.clip(len(chain.top.view))
        bitmap.any_may()
    return "apply " + name


def step_snapshot_delete(chain, rng, party):
    if not chain.top.snapshots:
        return None
    name = rng.choice(sorted(chain.top.snapshots))
    chain.img(party, "snapshot", "-d", name, chain.top.name)
    del chain.top.snapshots[name]
    return "delete " + name


# ---- bitmaps ----

def step_bitmap(chain, rng, party):
    top = chain.top
    names = sorted(top.bitmaps)
    what = rng.choice(["--add", "--add", "--remove", "--clear", "--enable", "--disable", "--merge", "--merge"])
    if what == "--add":
        if len(names) >= 3:
            return None
        name, granularity = chain.new_name("bits"), rng.choice([512, 4096, 65536, 1 << 20])
        disabled = ["--disable"] if rng.random() < 0.3 else []
        chain.img(party, "bitmap", "--add", *disabled, "-g", str(granularity), top.name, name)
        top.bitmaps[name] = Bitmap(granularity)
        top.bitmaps[name].is_enabled = not disabled
        return "add " + name
    if not names:
        return None
    name = rng.choice(names)
    bitmap = top.bitmaps[name]
    if what == "--merge":
        source = rng.choice(names)
        chain.img(party, "bitmap", "--merge", source, top.name, name)
        bitmap.merge(top.bitmaps[source])
        return "merge %s into %s" % (source, name)
    chain.img(party, "bitmap", what, top.name, name)
    if what == "--remove":
        del top.bitmaps[name]
    elif what == "--clear":
        bitmap.must, bitmap.may = set(), set()
    else:
        bitmap.is_enabled = what == "--enable"
    return "%s %s" % (what, name)


# ---- the image ----

def step_resize(chain, rng, party):
    top = chain.top
    old, cluster = len(top.view), top.row["cluster"]
    if rng.random() < 0.5:
        new = old + rng.choice([512, cluster, cluster * 5, cluster * 9 + 512, rng.randint(1, 400) * 512])
        if new > 24 << 20:
            return None
    else:
        new = max(0, (old - rng.choice([512, cluster, rng.randint(0, old)])) // 512 * 512)
    words = ["--shrink"] if new < old else []
    if new > old and rng.random() < 0.4:
        words = ["--preallocation", rng.choice(["metadata", "falloc", "full"])]
    chain.img(party, "resize", "-q", "-f", "qcow2", *words, top.name, str(new))
    top.view = bytearray(top.view[:new]) + bytes(max(0, new - old))
    for bitmap in top.bitmaps.values():
        bitmap.clip(new)
        bitmap.any_may()
    return "resize %d to %d %s" % (old, new, " ".join(words))


def step_amend(chain, rng, party):
    top = chain.top
    what = rng.choice(["compat=0.10", "compat=1.1", "refcount_bits=%d" % rng.choice([1, 2, 4, 8, 16, 16, 32, 64]),
                       "lazy_refcounts=on", "lazy_refcounts=off"])
    chain.img(party, "amend", "-f", "qcow2", "-o", what, top.name)
    return "amend " + what


def step_leak(chain, rng, party):
    if not party.is_ours and chain.top.bitmaps and chain.top.snapshots:
        return None  # check -r of QEMU takes the snapshots of an image that has bitmaps for leaks, 7.2 and 11.1 alike
    if not leak(chain.path(chain.top.name), rng):
        return None
    chain.log.append("# a cluster is leaked")
    how = rng.choice(["leaks", "all"])
    chain.img(party, "check", "-q", "-r", how, chain.top.name)
    return "check -r " + how


# ---- chains ----

def adopt_snapshots(chain):
    """what lies below changed, and with it what snapshots read; the oracle says what"""
    for name in chain.top.snapshots:
        chain.top.snapshots[name] = bytes(chain.oracle_read(chain.top, name))


def step_rebase(chain, rng, party):
    top = chain.top
    below = top.below
    if not below and not party.is_ours:
        return None  # QEMU lets the new file show where there was none before
    targets = [None] + chain.others + ([below.below] if below and below.below else [])
    target = rng.choice(targets)
    words = ["rebase", "-f", "qcow2"] + ([] if party.is_ours else ["-q"])
    if rng.random() < 0.25 and below:  # the same bytes under another name
        name = chain.new_name("twin")
        shutil.copyfile(chain.path(below.name), chain.path(name))
        chain.img(party, *words, "-u", "-b", name, "-F", below.fmt, top.name)
        below.name = name
        return "rebase -u to " + name
    if rng.random() < 0.3 and party.is_new and not (target is None and not below):
        words.append("-c")
    if not party.is_ours:
        words += ["-t", "unsafe"]
    chain.img(party, *words, "-b", target.name if target else "", *(["-F", target.fmt] if target else []), top.name)
    if below and target is not (below.below if below else None):
        chain.others.append(below)
    if target in chain.others:
        chain.others.remove(target)
    top.below = target
    top.changed_otherwise()
    adopt_snapshots(chain)
    return "rebase to %s" % (target.name if target else "none")


def step_commit(chain, rng, party):
    top = chain.top
    if not top.below:
        return None
    layers = chain.layers()
    base = rng.choice(layers[1:]) if rng.random() < 0.4 else top.below
    words = ["commit", "-q", "-f", "qcow2"] + ([] if party.is_ours else ["-t", "unsafe"])
    if base is not top.below:
        words += ["-b", base.name]
    elif rng.random() < 0.4:
        words += ["-d"]
    chain.img(party, *words, top.name)
    n = len(top.view)
    base.view = bytearray(top.view) + base.view[n:]
    for layer in layers[1:layers.index(base)]:
        layer.view = chain.oracle_read(layer)
    top.changed_otherwise()
    adopt_snapshots(chain)
    return "%s to %s" % (" ".join(words), base.name)


STEPS = [
    (step_write, 8), (step_discard, 2), (step_die, 1), (step_snapshot, 4), (step_snapshot_apply, 3),
    (step_snapshot_delete, 2), (step_bitmap, 6), (step_resize, 5), (step_amend, 4), (step_leak, 2), (step_rebase, 3),
    (step_commit, 3),
]
