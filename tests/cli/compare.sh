#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow compare against bytes written here, and against what qemu-img compare prints.
# Rules of doc/COMPAT.md: R24, R46.
source "$(dirname "$0")/lib.sh"
need_qemu
head -c 5M /dev/urandom >a.raw
for at in 100 5000000; do printf 'these' | dd of=a.raw bs=1 seek=$at conv=notrunc status=none; done # not what change writes
change() { # FROM TO OFFSET
	cp "$1" "$2"
	printf 'other' | dd of="$2" bs=1 seek="$3" conv=notrunc status=none
}
change a.raw early.raw 100
change a.raw late.raw 5000000
cp a.raw longer.raw
truncate -s 7M longer.raw
change longer.raw longer-other.raw 6000000
head -c 1000 a.raw >odd.raw
cp odd.raw even.raw
truncate -s 1024 even.raw
truncate -s 1M hole.raw
head -c 1M /dev/zero >zeros.raw
"$QEMU_IMG" convert -O qcow2 a.raw a.qcow2
yes text | head -c 1M >text.raw
"$QEMU_IMG" convert -O qcow2 text.raw text.qcow2
"$QEMU_IMG" convert -c -O qcow2 text.raw packed.qcow2
create -b a.qcow2 -F qcow2 over.qcow2
create -b a.qcow2 -F qcow2 over-other.qcow2
io -c 'write -P 9 3M 64k' over-other.qcow2
create empty.qcow2 1M
create zeroed.qcow2 1M
io -c 'write -z 0 1M' zeroed.qcow2
create written.qcow2 1M
io -c 'write -P 0 0 1M' written.qcow2
create -o preallocation=metadata prealloc.qcow2 1M
io -c 'write -P 0 0 64k' prealloc.qcow2

prints same_file 'Images are identical.' "$QCOW" compare a.raw a.raw
prints other_format 'Images are identical.' "$QCOW" compare -f raw -F qcow2 a.raw a.qcow2
prints chain 'Images are identical.' "$QCOW" compare a.raw over.qcow2
prints compressed 'Images are identical.' "$QCOW" compare text.raw packed.qcow2
run "$QCOW" compare a.raw early.raw
[[ $rc == 1 && $(<out) == 'Content mismatch at offset 100!' ]] && ok the_byte_that_differs || bad the_byte_that_differs "$(shown)"
run "$QCOW" compare --output json over-other.qcow2 a.raw
if python3 -c 'import json
o = json.load(open("out"))
assert o["identical"] is False and o["difference"] == "content" and o["offset"] == 3 << 20, o
assert [i["virtual-size"] for i in o["images"]] == [5 << 20] * 2, o' && [[ $rc == 1 ]]; then ok json; else bad json "$(shown)"; fi
says not_there 2 'qcow: cannot open *nope*No such file*' "$QCOW" compare a.raw nope
says too_many 1 'qcow: Expecting two image file names' "$QCOW" compare a.raw a.raw a.raw
# the L2 table leads beyond the file: where it is needed that is an error of the map, not a difference
at=$(python3 -c 'import struct; d = open("text.qcow2", "rb").read(); l1 = struct.unpack(">Q", d[40:48])[0]; print(struct.unpack(">Q", d[l1:l1 + 8])[0] & ~(1 << 63))')
python3 "$here/patch.py" text.qcow2 broken.qcow2 "$at:8000ff0000000000:8"
run "$QCOW" compare broken.qcow2 text.raw
[[ $rc == 3 || $rc == 4 ]] && [[ -s err && ! -s out ]] && ok damage_is_no_difference || bad damage_is_no_difference "$(shown)"

# the personality prints what QEMU prints, with its exit code
if have_new_qemu; then
	as_qemu() { # ARGS…
		local theirs_rc
		"$QEMU_IMG_NEW" compare "$@" >theirs 2>theirs.err </dev/null
		theirs_rc=$?
		run "$QCOW_QEMU_IMG" compare "$@"
		sed -i '/^hint: /d' err
		if [[ $rc == "$theirs_rc" ]] && cmp -s theirs out && cmp -s theirs.err err; then ok "as QEMU: $*"
		else bad "as QEMU: $*" "QEMU, with status $theirs_rc: $(cat theirs theirs.err) $(shown)"; fi
	}
	for pair in 'a.raw a.qcow2' 'a.raw early.raw' 'late.raw a.qcow2' 'a.raw longer.raw' 'longer-other.raw a.raw' \
		'a.qcow2 longer-other.raw' 'odd.raw even.raw' 'over-other.qcow2 over.qcow2' 'text.qcow2 packed.qcow2' \
		'hole.raw a.raw'; do
		# shellcheck disable=SC2086 # words
		as_qemu $pair
	done
	as_qemu -s a.raw longer.raw
	as_qemu -q a.raw early.raw
	as_qemu -q a.raw longer.raw
	as_qemu -s over.qcow2 a.qcow2
	as_qemu -s text.qcow2 packed.qcow2
	as_qemu -f qcow2 a.raw a.qcow2
	as_qemu -F qcow2 a.qcow2 a.raw
	as_qemu a.raw nope
	printf '[inject-error]\nevent = "read_aio"\nerrno = "5"\n' >rules
	as_qemu blkdebug:rules:text.qcow2 packed.qcow2
	as_qemu a.raw
	for a in hole.raw zeros.raw empty.qcow2 zeroed.qcow2 written.qcow2 prealloc.qcow2; do
		for b in hole.raw zeros.raw empty.qcow2 zeroed.qcow2 written.qcow2 prealloc.qcow2; do
			# QEMU's strict mode also sees where metadata was preallocated; ours does not
			[[ "$a $b" =~ (zeros|written).*prealloc|prealloc.*(zeros|written) ]] && continue
			as_qemu -s "$a" "$b"
		done
	done
	run "$QCOW_QEMU_IMG" compare -p a.raw a.qcow2
	if python3 -c 'import re
d = open("out", "rb").read()
assert re.fullmatch(rb"(    \(\d+\.\d\d/100%\)\r)+    \(100\.00/100%\)\rImages are identical\.\n\n", d), d'
	then ok progress_records; else bad progress_records "$(shown)"; fi
fi

# ---- any number of workers says the same: what comes first on the disk ----
python3 - <<-'END'
	import random
	rng = random.Random(7)
	data = bytearray(rng.randbytes(1 << 20) * 24)
	open("w0.raw", "wb").write(data)
	for n in range(1, 7):
	    other = bytearray(data)
	    for _ in range(n):
	        other[rng.randrange(len(other))] ^= 1
	    if n == 5:
	        other += bytes(3000001)
	    if n == 6:
	        other = data + bytes(3000000) + b"x"
	    open("w%d.raw" % n, "wb").write(other)
END
for n in 0 1 2 3 4 5 6; do "$QEMU_IMG" convert -f raw -c -O qcow2 w$n.raw w$n.qcow2; done
# a table that names a cluster past the end of the file: guest clusters 100 and 200
cp w0.qcow2 broken.qcow2
python3 - <<-'END'
	import struct
	f = open("broken.qcow2", "r+b")
	head = f.read(48)
	f.seek(struct.unpack(">Q", head[40:48])[0])
	l2 = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
	for n in (100, 200):
	    f.seek(l2 + 8 * n)
	    f.write(struct.pack(">Q", 0x8000400000000000))
END
for other in w1 w2 w3 w4 w5 w6 broken; do
	run "$QCOW" compare -m 1 w0.qcow2 $other.qcow2
	{ echo "$rc"; cat out err; } >want
	for m in 2 3 8 16; do
		run "$QCOW" compare -m $m w0.qcow2 $other.qcow2
		{ echo "$rc"; cat out err; } >got
		same "compare $other -m $m says what -m 1 says" want got
	done
	[[ $other == broken ]] && continue
	"$QEMU_IMG" compare w0.qcow2 $other.qcow2 >theirs; rc=$?
	run "$QCOW_QEMU_IMG" compare w0.qcow2 $other.qcow2
	same "compare $other says what QEMU says" theirs out
done
says 'damage before a difference is told' 3 '*at offset 6553600*' "$QCOW" compare w0.qcow2 broken.qcow2
finish
