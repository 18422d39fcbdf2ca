#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow resize: sizes as they are typed, what is refused, and QEMU's words and exit codes. What becomes of the disk is
# engine_resize's.
# Rules of doc/COMPAT.md: R45.
source "$(dirname "$0")/lib.sh"
need_qemu

size_of() { "$QCOW" info --output json "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["virtual-size"])'; }
resized() { # NAME FILE SIZE ARGUMENTS…: the disk has SIZE afterwards
	local name=$1 file=$2 want=$3
	shift 3
	run "$QCOW" resize "$@"
	if [[ $rc == 0 && ! -s err && $(size_of "$file") == "$want" ]]; then ok "$name"; else bad "$name" "$(shown)"; fi
	run "$QEMU_IMG" check -q "$file"
	[[ $rc == 0 || $file == *.raw ]] || bad "$name: qemu-img check" "$(shown)"
}
create a.qcow2 1M
io -c 'write -P 1 0 1M' a.qcow2
resized grows_to_a_size a.qcow2 4194304 a.qcow2 4M
resized grows_by a.qcow2 5242880 a.qcow2 +1M
resized shrinks_by a.qcow2 5241880 --shrink a.qcow2 -1000
resized shrinks_to a.qcow2 1001 a.qcow2 1001 --shrink
resized quiet a.qcow2 4096 -q a.qcow2 4k
[[ ! -s out ]] && ok quiet_says_nothing || bad quiet_says_nothing "$(shown)"
run "$QEMU_IO" -r -c 'read -P 1 0 512' -c 'read -P 0 1024 3k' a.qcow2
if [[ $rc == 0 ]] && ! grep -q failed out; then ok what_is_new_is_zero; else bad what_is_new_is_zero "$(shown)"; fi
for mode in off metadata falloc full; do
	resized "preallocation=$mode" a.qcow2 "$(($(size_of a.qcow2) + 100000))" --preallocation $mode a.qcow2 +100000
done
# the cluster that the old end lies in is preallocated too, with what it shows of the layer below
"$QEMU_IMG" create -q -f raw below.raw 128k
io -f raw -c 'write -P 1 0 128k' below.raw
for mode in metadata falloc full; do
	create -b below.raw -F raw tail.qcow2 31k
	resized "tail preallocation=$mode" tail.qcow2 98304 --preallocation $mode tail.qcow2 96k
	run "$QEMU_IO" -r -c 'read -P 1 0 31k' -c 'read -P 0 31k 65k' tail.qcow2
	if [[ $rc == 0 && $(stat -c %s tail.qcow2) == 458752 ]] && ! grep -q failed out
	then ok "tail_is_there=$mode"; else bad "tail_is_there=$mode" "$(stat -c %s tail.qcow2) $(shown)"; fi
done
truncate -s 1000 b.raw
resized raw b.raw 3001 -f raw b.raw 3001
resized raw_shrinks b.raw 11 -f raw b.raw --shrink 11
resized without_a_change b.raw 11 -f raw b.raw 11

cp a.qcow2 before
prints dry_run "{
    \"filename\": \"a.qcow2\",
    \"old-size\": $(size_of a.qcow2),
    \"new-size\": 1048576,
    \"dry-run\": true
}" "$QCOW" resize --dry-run --output json a.qcow2 1M
says smaller_needs_shrink 1 'qcow: Use the --shrink option to perform a shrink operation.' "$QCOW" resize a.qcow2 1k
says to_nothing 1 'qcow: New image size must be positive' "$QCOW" resize --shrink a.qcow2 -1G
says no_size 1 "qcow: invalid size 'x'*" "$QCOW" resize a.qcow2 x
says no_mode 1 "qcow: Invalid preallocation mode 'x'" "$QCOW" resize --preallocation x a.qcow2 1G
says too_large 1 'qcow: cannot resize: a disk of *' "$QCOW" resize a.qcow2 7E
same refused_and_dry_runs_change_nothing before a.qcow2

# the words and exit codes of both QEMUs
create -o compat=0.10 v2.qcow2 1M
"$QEMU_IMG" snapshot -c s v2.qcow2
create c.qcow2 1M
truncate -s 1000 c.raw
as_qemu() { # ARGUMENTS…: on copies of the files, what it prints, its exit code, the size after it
	local name="$*" qemu
	for qemu in "$QCOW_QEMU_IMG" "$QEMU_IMG" ${QEMU_IMG_NEW:+"$QEMU_IMG_NEW"}; do
		mkdir files
		cp c.qcow2 v2.qcow2 c.raw files
		(cd files && run "$qemu" "$@" && cat out err && echo "$rc" && ls -l ./*.raw | cut -d ' ' -f 5 &&
			"$QEMU_IMG" info c.qcow2 | grep virtual) >"words.$(basename "$(dirname "$qemu")")" 2>&1
		rm -r files
	done
	same "$name" words.compat "words.$(basename "$(dirname "$QEMU_IMG")")"
	[[ -z $QEMU_IMG_NEW ]] || same "$name (newest)" words.compat "words.$(basename "$(dirname "$QEMU_IMG_NEW")")"
}
as_qemu resize c.qcow2 2M
as_qemu resize c.qcow2 +512
as_qemu resize -q c.qcow2 +1k
as_qemu resize c.qcow2 -- -512
as_qemu resize --shrink c.qcow2 -512
as_qemu resize --shrink c.qcow2 -1M
as_qemu resize c.qcow2 1000
as_qemu resize c.qcow2 +1000
as_qemu resize c.qcow2 xx
as_qemu resize c.qcow2 0
as_qemu resize c.qcow2 8E
as_qemu resize c.qcow2 7E
as_qemu resize --preallocation=foo c.qcow2 2M
as_qemu resize --preallocation=full c.qcow2 2M
as_qemu resize --preallocation=full --shrink c.qcow2 512k
as_qemu resize v2.qcow2 2M
as_qemu resize nothing.qcow2 2M
as_qemu resize -f raw c.raw 2000
as_qemu resize -f raw c.raw +1
as_qemu resize -f raw c.raw 1000
as_qemu resize -f raw --shrink c.raw 700
as_qemu resize -f raw --preallocation=metadata c.raw 2000
as_qemu resize -f raw --preallocation=falloc c.raw 5000
finish
