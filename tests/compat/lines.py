#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A table of qemu-img command lines, run by ours and by both QEMUs in folders that are alike: the exit code, stdout and stderr
must be the same byte for byte, and the disks that are left identical and clean.

Left aside: what the host decides (beside.py), lines of ours that begin "hint:" behind the first line of a failure, and the
warnings that QEMU prints where it succeeds. The two QEMUs do not always say the same. A line marked "new" says what the newest
does, one marked "old" what QEMU did for many years; of one marked "fails" only the exit code and stdout are compared: no caller
looks for its words. Each heading is a rule of doc/COMPAT.md and the images that its lines change; without images the lines
only read, all in one folder. usage: lines.py [--new] [RULE...]     --new: the newest QEMU alone
"""
import json, re, sys, tempfile
from pathlib import Path

import beside

OLD = Path("/usr/bin/qemu-img")
NEW_ALONE = "--new" in sys.argv
RULES = [x for x in sys.argv[1:] if x != "--new"]
# made once, by QEMU
IMAGES = """
create -q -f qcow2 base.qcow2 3M
io base.qcow2 -c 'write -q -P 1 0 200k' -c 'write -q -z 1M 64k'
create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
io top.qcow2 -c 'write -q -P 2 100k 200k'
create -q -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 1M
snapshot -c one v2.qcow2
snapshot -c 'a-very-long-snapshot-name-it-is' v2.qcow2
create -q -f qcow2 -o extended_l2=on,compression_type=zstd,lazy_refcounts=on,cluster_size=32k bitmaps.qcow2 64M
bitmap --add bitmaps.qcow2 b1
bitmap --add -g 131072 bitmaps.qcow2 b2
bitmap --disable bitmaps.qcow2 b2
io bitmaps.qcow2 -c 'write -q 10k 70k'
create -q -f qcow2 -o data_file=data.raw,data_file_raw=on datafile.qcow2 4M
io datafile.qcow2 -c 'write -q 0 1M' -c 'write -q -z 1M 1M'
convert -c -O qcow2 base.qcow2 packed.qcow2
create -q -f raw plain.raw 1M
io -f raw plain.raw -c 'write -q 64k 64k'
create -q -f qcow2 -b plain.raw -F raw over.qcow2
create -q -f qcow2 -b gone.qcow2 -F qcow2 -u orphan.qcow2 1M
"""
READERS = "base.qcow2 top.qcow2 v2.qcow2 bitmaps.qcow2 datafile.qcow2 data.raw packed.qcow2 plain.raw over.qcow2 orphan.qcow2 empty.raw".split()
LINES = r"""
# R4 options behind operands
info base.qcow2 --output json
info base.qcow2 --output=json -f qcow2
map top.qcow2 --output=json
compare base.qcow2 top.qcow2 -f qcow2
info -- base.qcow2
check base.qcow2 --
# R5 repeated options: base.qcow2
info -f raw -f qcow2 base.qcow2
create -f raw -f qcow2 -o cluster_size=4k -o compat=0.10,refcount_bits=16 x.qcow2 1M
create -f qcow2 -o cluster_size=4k -o cluster_size=8k y.qcow2 1M
measure -O raw -O qcow2 -o cluster_size=4k -o compat=1.1 --size 1G
# R6 the form of the output
info --output json base.qcow2
info --output=human base.qcow2
new info --output yaml base.qcow2
new map --output yaml base.qcow2
new check --output xml base.qcow2
new measure --output yaml --size 1M
# R7 an option and its argument in one word: base.qcow2
convert '-m 4' '-O' qcow2 base.qcow2 a.qcow2
convert '-S 4k' -O raw base.qcow2 a.raw
create -fqcow2 -ocluster_size=4k b.qcow2 2M
# R8 sizes: plain.raw
create -f qcow2 s1.qcow2 123b
create -f qcow2 s2.qcow2 1.5G
create -f qcow2 s3.qcow2 10M
create -f qcow2 s4.qcow2 0x100000
create -f qcow2 s5.qcow2 0
create -f qcow2 s6.qcow2 1
create -f qcow2 s7.qcow2 1T
old create -f qcow2 s8.qcow2 1e3
fails create -f qcow2 s9.qcow2 -1
old create -f qcow2 s10.qcow2 1Q
old create -f qcow2 s11.qcow2 ''
create -f qcow2 s12.qcow2 ' 1M'
old create -f qcow2 s13.qcow2 1.5
fails create -f qcow2 s14.qcow2 0x1k
create -f qcow2 s15.qcow2 99999999999999999999
new create -f qcow2 s16.qcow2 .5M
create -f qcow2 s17.qcow2 16E
create -f qcow2 s18.qcow2 1m
resize -f raw plain.raw +1G
resize -f raw --shrink plain.raw -1G
resize -f raw plain.raw +0x200
resize -f raw plain.raw 2b
# R9 lists of options
new create -f qcow2 -o help
new create -f qcow2 -o '?' x
new create -f qcow2 -o cluster_size=4k,help x 1M
create -f raw -o help
new create -f luks -o help
amend -f qcow2 -o help
amend -f qcow2 -o '?'
new amend -f luks -o help
amend -f raw -o help
new convert -O qcow2 -o help
convert -O raw -o help
convert -O raw -o '?'
fails create -f nope -o help
create -f qcow2 -o help, x 1M
create -f qcow2 -o ,help x 1M
# R9 commas in names: base.qcow2
create -q -f qcow2 a,help 1M
create -f qcow2 -o backing_file=a,,help,backing_fmt=qcow2 x.qcow2 1M
convert -O qcow2 -o backing_file=a,,help,backing_fmt=qcow2 base.qcow2 y.qcow2
# R20 -U
info -U base.qcow2
info --force-share --output=json base.qcow2
check -U base.qcow2
map -U base.qcow2
new snapshot -U -l v2.qcow2
compare -U base.qcow2 top.qcow2
measure -U -O qcow2 base.qcow2
# R22 exit codes of most: base.qcow2 v2.qcow2
new info
new info a b
info nope
new check
new map
measure
new create
fails convert
fails convert base.qcow2
new resize
new resize base.qcow2
new rebase
new commit
new compare
new compare base.qcow2
new snapshot
fails snapshot -c
fails bitmap
fails bitmap base.qcow2
new amend
new amend base.qcow2
new dd
fails info -Z base.qcow2
fails info --nonsense base.qcow2
fails convert -Z base.qcow2 x
info -f nope base.qcow2
new check -f nope base.qcow2
convert -O nope base.qcow2 x
create -f nope x 1M
new convert -f nope -O raw base.qcow2 x
compare -F nope base.qcow2 base.qcow2
convert -t nope -O raw base.qcow2 x
convert -T nope -O raw base.qcow2 x
check -T nope base.qcow2
commit -t nope base.qcow2
new rebase -T nope -u -b x base.qcow2
new amend -t nope -o compat=1.1 base.qcow2
new convert -m 0 -O raw base.qcow2 x
new convert -m x -O raw base.qcow2 x
old convert -r x -O raw base.qcow2 x
fails convert -S x -O raw base.qcow2 x
convert -S 100 -O raw base.qcow2 x
convert -l nope -O raw base.qcow2 x
convert -l snapshot.id=7 -O raw v2.qcow2 x
convert -l snapshot.name=nope -O raw v2.qcow2 x
convert -O raw -c base.qcow2 x
convert -O raw base.qcow2 /nowhere/x
convert -n -O raw base.qcow2 never
convert -n -c -O raw base.qcow2 x
convert --target-is-zero -O raw base.qcow2 x
convert --bitmaps -O raw base.qcow2 x
convert --skip-broken-bitmaps -O qcow2 base.qcow2 x
fails convert -B base.qcow2 -O raw base.qcow2 x
fails convert -f qcow2 -O qcow2 base.qcow2 base.qcow2
convert -O qcow2 -o foo=1 base.qcow2 x
convert -O qcow2 -o cluster_size=3 base.qcow2 x
convert -O qcow2 -o backing_file=nope base.qcow2 x
fails convert --image-opts -f qcow2 base.qcow2 -O raw x
fails convert --target-image-opts -O qcow2 base.qcow2 driver=raw,file.filename=x
convert -W -O raw base.qcow2 x
convert base.qcow2 nope.qcow2 -O raw y
new snapshot -l -c x base.qcow2
new snapshot -a x -d y base.qcow2
snapshot -d nope v2.qcow2
snapshot -a nope v2.qcow2
rebase -u base.qcow2
rebase -b nope -F qcow2 base.qcow2
commit base.qcow2
resize base.qcow2 +x
resize base.qcow2 1M
# R35 info, human
info base.qcow2
info top.qcow2
info --backing-chain top.qcow2
new info v2.qcow2
info bitmaps.qcow2
info datafile.qcow2
info packed.qcow2
info plain.raw
info -f raw plain.raw
info over.qcow2
info orphan.qcow2
fails info --backing-chain orphan.qcow2
info empty.raw
info ./base.qcow2
info file:base.qcow2
new info --limits base.qcow2
new info --limits plain.raw
# R37 info, JSON
info --output=json base.qcow2
info --output=json top.qcow2
info --output=json v2.qcow2
info --output=json bitmaps.qcow2
info --output=json datafile.qcow2
info --output=json plain.raw
info --output=json orphan.qcow2
info --output=json -f raw base.qcow2
new info --output=json --limits base.qcow2
# R38 a chain is an array
info --output=json --backing-chain top.qcow2
info --output=json --backing-chain base.qcow2
info --output=json --backing-chain plain.raw
fails info --output=json --backing-chain orphan.qcow2
# R42 map
map base.qcow2
map top.qcow2
map --output=json top.qcow2
map --output=json bitmaps.qcow2
map --output=json datafile.qcow2
map --output=json over.qcow2
new map --output=json packed.qcow2
map --output=json plain.raw
map packed.qcow2
map --output=json -s 1M -l 1M base.qcow2
map --output=json orphan.qcow2
map --output=json nope
# R43 measure
measure --size 1G -O qcow2
measure --output=json --size 1G -O qcow2
measure --output=json -O qcow2 top.qcow2
measure --output=json -O qcow2 bitmaps.qcow2
measure -O raw base.qcow2
measure --output=json -O raw plain.raw
measure --output=json -O qcow2 -f raw plain.raw
measure --output=json -O qcow2 -o cluster_size=4k,extended_l2=off base.qcow2
measure --output=json -O qcow2 -l one v2.qcow2
measure --size 1G base.qcow2
measure base.qcow2 top.qcow2
measure --size 64P -O qcow2
measure -o , --size 1M
measure -o cluster_size=4k, --size 1M
new measure -O qcow2 --size -1
measure -O vpc2 --size 1M
new measure -O luks --size 1M --object secret,id=s,data=x -o key-secret=s
# R44 create's line: base.qcow2 plain.raw
create -f qcow2 c1.qcow2 1G
create -f qcow2 -o cluster_size=2M c2.qcow2 1G
create -f qcow2 -o lazy_refcounts=on,refcount_bits=1 c3.qcow2 1G
create -f qcow2 -o compat=0.10 c4.qcow2 1G
create -f qcow2 -o compat=1.1 c5.qcow2 1G
create -f qcow2 -o compression_type=zstd,extended_l2=on c6.qcow2 1G
create -f qcow2 -o preallocation=metadata c7.qcow2 1G
create -f qcow2 -o preallocation=falloc c8.qcow2 1M
create -f qcow2 -o preallocation=full c9.qcow2 1M
create -f qcow2 -b base.qcow2 -F qcow2 c10.qcow2
create -f qcow2 -b base.qcow2 -F qcow2 c11.qcow2 7M
create -f qcow2 -o backing_file=plain.raw,backing_fmt=raw c12.qcow2
create -f qcow2 -u -b gone -F raw c13.qcow2 1M
create -f qcow2 -o data_file=c14.raw c14.qcow2 1M
create -f qcow2 -o data_file=c15.raw,data_file_raw=on c15.qcow2 1M
create -f qcow2 -o nocow=on c16.qcow2 1M
create -q -f qcow2 c17.qcow2 1M
create -f raw c18.raw 1M
create c19.raw 1M
create -f raw -o preallocation=full c20.raw 1M
create -f raw -o preallocation=falloc,nocow=off c21.raw 1M
create -f raw -o size=1M c22.raw
create -f raw -b plain.raw c23.raw
create -f raw -o cluster_size=4k c24.raw 1M
create -f qcow2 'c 25,x.qcow2' 1M
create -f qcow2 --object secret,id=s,data=x -o encrypt.key-secret=s c26.qcow2 1M
create -f qcow2 -o encrypt.format=luks c27.qcow2 1M
create -f qcow2 -o encrypt.format=nope c28.qcow2 1M
new create -f qcow2 -b base.qcow2 c29.qcow2
create -f qcow2 -b plain.raw -F qcow2 c30.qcow2
create -f qcow2 -F qcow2 c31.qcow2 1M
new create -f qcow2 -b base.qcow2 -B qcow2 c32.qcow2
# R45 resize and commit: base.qcow2 top.qcow2 over.qcow2 plain.raw v2.qcow2
resize base.qcow2 4M
resize base.qcow2 +1M
resize -q base.qcow2 6M
resize base.qcow2 1M
resize --shrink base.qcow2 5M
new resize v2.qcow2 2M
resize plain.raw 2M
resize -f raw plain.raw 3M
resize --preallocation=full base.qcow2 6M
resize --preallocation=full base.qcow2 1M
resize -f raw --preallocation=falloc plain.raw 3M
commit top.qcow2
commit -q top.qcow2
commit -d top.qcow2
commit over.qcow2
commit -b nope top.qcow2
# R46 compare
compare base.qcow2 base.qcow2
compare base.qcow2 top.qcow2
compare base.qcow2 packed.qcow2
compare -s base.qcow2 packed.qcow2
compare -s base.qcow2 plain.raw
compare -q base.qcow2 top.qcow2
compare plain.raw empty.raw
compare base.qcow2 nope
# R47 check
check base.qcow2
check top.qcow2
check v2.qcow2
check bitmaps.qcow2
check packed.qcow2
check datafile.qcow2
check -q base.qcow2
check -q --output=json base.qcow2
new check -r foo base.qcow2
# R40 check, JSON
check --output=json base.qcow2
check --output=json packed.qcow2
check --output=json bitmaps.qcow2
check --output=json plain.raw
check --output=json -f raw base.qcow2
# R49 operands in JSON
info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}'
info 'json: {"driver": "qcow2", "file.driver": "file", "file.filename": "base.qcow2"}'
info --output=json 'json:{"driver":"qcow2","file.filename":"base.qcow2"}'
info 'json:{"driver":"raw","offset":65536,"size":65536,"file":{"driver":"file","filename":"plain.raw"}}'
map --output=json 'json:{"driver":"qcow2","backing":null,"file":{"filename":"top.qcow2"}}'
info 'json:{"driver":"qcow2"}'
fails info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"nope"}}'
fails info 'json:{'
info 'json:[]'
fails info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"},"nonsense":1}'
fails info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2","nonsense":1}}'
# R50 --image-opts
info --image-opts driver=qcow2,file.filename=base.qcow2
info --image-opts driver=qcow2,file.driver=file,file.filename=base.qcow2 --output=json
map --output=json --image-opts driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=base.qcow2
info --image-opts file.filename=base.qcow2
info --image-opts driver=qcow2
info --image-opts -f qcow2 driver=qcow2,file.filename=base.qcow2
compare --image-opts driver=qcow2,file.filename=base.qcow2 driver=qcow2,file.filename=packed.qcow2
info --image-opts driver=raw,offset=65536,size=65536,file.filename=plain.raw
info --image-opts driver=raw,offset=1,file.filename=plain.raw
# R58 letters of both interfaces: base.qcow2 top.qcow2
create -f qcow2 -b base.qcow2 -F qcow2 l1.qcow2
new create -f qcow2 -b base.qcow2 -B qcow2 l2.qcow2
new rebase -b base.qcow2 -B qcow2 l1.qcow2
rebase -b base.qcow2 -F qcow2 l1.qcow2
new convert -b base.qcow2 -F qcow2 -O qcow2 top.qcow2 l3.qcow2
convert -B base.qcow2 -F qcow2 -O qcow2 top.qcow2 l4.qcow2
fails check -p base.qcow2
# R59 what QEMU 10.2 and 11 added: bitmaps.qcow2
new bitmap --remove-all bitmaps.qcow2
new info bitmaps.qcow2
# R36 snapshot -l
new snapshot -l v2.qcow2
snapshot -l base.qcow2
new snapshot v2.qcow2
snapshot -l plain.raw
new snapshot -l -f qcow2 v2.qcow2
# R60 what the other commands say: base.qcow2 top.qcow2 v2.qcow2 bitmaps.qcow2 plain.raw
snapshot -q -c two base.qcow2
snapshot -c two base.qcow2
snapshot -a two base.qcow2
snapshot -d two base.qcow2
snapshot -a 1 base.qcow2
bitmap --add base.qcow2 b
bitmap --add base.qcow2 b
bitmap --remove base.qcow2 b
bitmap --remove base.qcow2 b
bitmap --merge b1 bitmaps.qcow2 b2
bitmap --clear --enable bitmaps.qcow2 b2
convert --bitmaps -O qcow2 bitmaps.qcow2 k1.qcow2
convert -c -O qcow2 base.qcow2 k2.qcow2
convert -p -O qcow2 base.qcow2 k3.qcow2
convert -q -p -O qcow2 base.qcow2 k4.qcow2
convert -O raw base.qcow2 k5.raw
convert -n -O raw base.qcow2 k5.raw
convert -O qcow2 base.qcow2 plain.raw k6.qcow2
convert -l one -O qcow2 v2.qcow2 k7.qcow2
convert -l snapshot.id=1 -O raw v2.qcow2 k8.raw
convert -O qcow2 -o preallocation=metadata base.qcow2 k9.qcow2
convert -S 0 -O raw base.qcow2 k10.raw
convert -O qcow2 -B base.qcow2 -o backing_fmt=qcow2 top.qcow2 k11.qcow2
convert --target-is-zero -n -O qcow2 base.qcow2 k9.qcow2
new dd if=base.qcow2 of=d1.raw bs=64k count=3
new dd -f qcow2 -O qcow2 if=base.qcow2 of=d2.qcow2 bs=1M skip=1
dd if=base.qcow2 of=d3.raw bs=0
new dd if=base.qcow2 of=d3.raw bs=x
dd if=base.qcow2 of=d3.raw nonsense=1
dd if=nope of=d3.raw
amend -o compat=0.10 base.qcow2
amend -o compat=1.1 base.qcow2
amend -o lazy_refcounts=on base.qcow2
amend -o cluster_size=4k base.qcow2
amend -o refcount_bits=64 base.qcow2
amend -f raw -o size=1 plain.raw
rebase -u -b '' top.qcow2
rebase -u -b base.qcow2 -F qcow2 top.qcow2
rebase -p -b '' top.qcow2
"""
RECORD = re.compile(r"    \(\d+\.\d\d/100%\)\r")
WARNING = re.compile(r"WARNING: Image format was not specified.*\n( .*\n)*")
n = beside.check


def sections():
    name, images, lines = None, [], []
    for line in LINES.strip().splitlines() + ["# end"]:
        if not line.startswith("# "):
            lines.append(line)
            continue
        if name:
            yield name, images, lines
        name, _, images = line[2:].partition(": ")
        images, lines = images.split(), []


def said(r):
    """(status, stdout, stderr) without what may differ"""
    out, err = beside.plain(r.stdout), r.stderr
    if RECORD.search(out):  # how often it is told is its own
        out = RECORD.sub("", out) + "records"
    err = "".join(x for x in WARNING.sub("", err).splitlines(True) if r.returncode == 0 or not x.startswith("hint: "))
    return r.returncode, out, err


def without_children(value):
    if isinstance(value, list):
        return [without_children(x) for x in value]
    return {k: v for k, v in value.items() if k != "children"} if isinstance(value, dict) else value


def as_old(text):
    """The newest QEMU's words as the distribution's QEMU has them: it has no line for the node of the file, fewer keys"""
    status, out, err = text
    out = re.sub(r"Child node '/file':\n(    .*\n)+", "", out)
    if '"children"' in out:
        out = json.dumps(without_children(json.loads(out)))
    elif out.startswith(("{", "[\n    {")) and status == 0:
        out = json.dumps(json.loads(out))
    out = re.sub(r', "compressed": (true|false)', "", out)
    return status, out, err


def show(text):
    return f"status {text[0]}\n{text[1]}{text[2]}"


def section(root, name, images, lines, readers):
    places = readers
    if images:
        place = root / name.split()[0]
        files = [root / "in" / x for x in images]
        places = [beside.folder(place / x, p, files) for x, p in (("ours", beside.ours), ("new", beside.theirs), ("old", OLD))]
    ours, new, old = places
    for line in lines:
        mark = line.split()[0] if line.split()[0] in ("new", "old", "fails") else ""
        line = beside.words(line[len(mark):].strip())
        got, want = said(beside.run(ours, line)), said(beside.run(new, line))
        n(got[0] != 0 or got[2] == "", f"R1 nothing on stderr: {line}", got[2])
        if mark == "fails":
            n(got[:2] == want[:2] and got[2], f"{name}: {line}", f"ours: {show(got)}\nQEMU: {show(want)}")
            continue
        if mark != "old":
            n(got == want, f"{name}: {line}", f"ours: {show(got)}\nQEMU: {show(want)}")
        if images or not NEW_ALONE:  # what changes images is done in all three folders
            want = as_old(said(beside.run(old, line)))
            got = as_old(got)
            n(mark == "new" or got == want, f"{name}: {line}: as QEMU 7.2", f"ours: {show(got)}\nQEMU: {show(want)}")
    if images:
        wrong = beside.same_disks(ours, new)
        n(not wrong, f"{name}: the same disks are left", wrong)


def main():
    beside.need_newest()
    if not OLD.exists():
        beside.callers.skip_all("qemu-img is not there")
    with tempfile.TemporaryDirectory(prefix="qcow-lines.") as folder:
        root = Path(folder)
        made = beside.make(root / "in", IMAGES, OLD)
        (made / "empty.raw").touch()
        readers = [beside.folder(root / x, p, [made / i for i in READERS]) for x, p in
                   (("ours", beside.ours), ("new", beside.theirs), ("old", OLD))]
        for name, images, lines in sections():
            if not RULES or name.split()[0] in RULES:
                section(root, name, images, lines, readers)
    beside.finish()


main()
