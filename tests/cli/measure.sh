#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow measure: what the newest qemu-img says, in both forms.
# Rules of doc/COMPAT.md: R43.
. "$(dirname "$0")/lib.sh"

same_as_qemu() {
	local name=$1 want
	shift
	want=$("$QEMU_IMG_NEW" measure "$@" 2>&1) || bad "$name: qemu-img measure $*" "$want"
	prints "$name" "$want" "$QCOW_QEMU_IMG" measure "$@"
}

if have_new_qemu; then
	need_qemu
	truncate -s 1001 odd
	create base.qcow2 10M
	io -c 'write 0 300k' -c 'write -z 1M 1M' base.qcow2
	"$QEMU_IMG" snapshot -c first base.qcow2
	io -c 'write 5M 1M' base.qcow2
	create -b base.qcow2 -F qcow2 top.qcow2
	"$QEMU_IMG" bitmap --add top.qcow2 b
	for output in human json; do
		same_as_qemu "size_$output" --output "$output" -O qcow2 --size 10G
		same_as_qemu "raw_size_$output" --output=$output --size 1000
		same_as_qemu "image_$output" --output "$output" -O qcow2 -f qcow2 base.qcow2
		same_as_qemu "chain_$output" --output "$output" -O qcow2 -f qcow2 top.qcow2
		same_as_qemu "raw_image_$output" --output "$output" -O raw odd
		same_as_qemu "options_$output" --output "$output" -O qcow2 -o cluster_size=4k -o extended_l2=off top.qcow2
		same_as_qemu "overlay_$output" --output "$output" -O qcow2 -o backing_file=x,backing_fmt=raw top.qcow2
		same_as_qemu "snapshot_$output" --output "$output" -O qcow2 -l first base.qcow2
		same_as_qemu "image_opts_$output" --output "$output" -O qcow2 --image-opts driver=qcow2,file.filename=top.qcow2
	done
fi
# what convert makes: to the byte where every table is needed whole, never more elsewhere
need_qemu
create below.qcow2 20M
io -c 'write -P 1 0 3M' -c 'write -z 1M 1M' -c 'write -c -P 3 8M 64k' -c 'write -P 4 12M 100k' below.qcow2
"$QEMU_IMG" snapshot -c s below.qcow2
io -c 'write -P 5 15M 1M' below.qcow2
create -b below.qcow2 -F qcow2 above.qcow2 24M
io -c 'write -P 9 5M 300k' above.qcow2
file_is() { # eq|ge OPTIONS WORDS...: the required size beside the size of the file
	local how=$1 options=$2 required size
	shift 2
	required=$("$QCOW" measure -O qcow2 -o "$options" "$@" | sed -n 's/required size: //p')
	"$QCOW" convert -O qcow2 -o "$options" "$@" made >/dev/null 2>&1
	size=$(stat -c %s made)
	rm -f made
	if test "$required" "-$how" "$size"; then ok "file: $options $*"; else bad "file: $options $*" "$required, the file has $size"; fi
}
for source in below.qcow2 '-l s below.qcow2' above.qcow2; do
	for options in cluster_size=64k cluster_size=2M extended_l2=on compat=0.10 preallocation=falloc; do
		# shellcheck disable=SC2086 # words
		file_is eq $options $source
	done
	for options in cluster_size=4k cluster_size=512,refcount_bits=64 cluster_size=512,refcount_bits=1; do
		# shellcheck disable=SC2086 # words
		file_is ge $options $source
	done
done
says nothing 1 'qemu-img: Either --size N or one filename must be specified.' "$QCOW_QEMU_IMG" measure
says both 1 'qemu-img: --size N cannot be used together with a filename.' "$QCOW_QEMU_IMG" measure --size 1 x
says vmdk 1 "*'vmdk' does not support size measurement" "$QCOW" measure -O vmdk --size 1
says too_large 1 '*L1 table*' "$QCOW" measure -o cluster_size=512 --size 1T
says missing 1 '*No such file or directory*' "$QCOW" measure nothing-here
says unknown_option 1 "*Invalid parameter 'foo'*" "$QCOW" measure -o foo=1 --size 1
prints default_is_qcow2 $'required size: 327680\nfully allocated size: 393216' "$QCOW" measure --size 1
finish
