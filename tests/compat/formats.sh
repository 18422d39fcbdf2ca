#!/bin/bash
# SPDX-License-Identifier: MIT
# Images of formats that are not built in: never taken for raw disks, refused by name with what to do instead.
# Rules of doc/COMPAT.md: R54.
source "$(dirname "$0")/../cli/lib.sh"
need_qemu
img=$QCOW_QEMU_IMG
names_it() { # NAME FORMAT COMMAND...
	local name=$1 format=$2
	shift 2
	run "$@"
	if [[ $rc == 1 || $rc == 2 ]] && grep -q "$format" err && grep -q 'convert -O qcow2' err && [[ ! -s out ]]
	then ok "$name"; else bad "$name" "$(shown)"; fi
}
for format in vmdk vdi vhdx vpc qed parallels qcow; do
	"$QEMU_IMG" create -q -f $format "x.$format" 4M 2>err || { echo "SKIP this QEMU makes no $format: $(<err)"; continue; }
	cp "x.$format" before
	word=$format
	# version 1 of qcow has a sentence of its own
	if [[ $format != qcow ]]; then
		for line in "info x.$format" "info --output=json x.$format" "map x.$format" "convert -O qcow2 x.$format y" "compare x.$format x.$format" \
			"resize x.$format 8M" "measure -O qcow2 x.$format" "create -f qcow2 -b x.$format over.qcow2"; do
			# shellcheck disable=SC2086 # words
			names_it "$format: $line" "$word" "$img" $line
		done
	fi
	names_it "-f $format" "$word" "$img" info -f $format "x.$format"
	says "$format is no target" 1 "*Unknown file format '$format'*" "$img" convert -f raw -O $format before y
	says "$format is not made" 1 "*Unknown file format '$format'*" "$img" create -f $format y 1M
	expect "$format as raw" 0 "$img" convert -f raw -O qcow2 "x.$format" y
	same "$format stays as it is" before "x.$format"
	rm -f y
done
# a DMG has its mark at the end: known where the name says so too; a fixed VHD's is where a guest could write it, for QEMU also
truncate -s 1M disk.dmg
printf koly | dd of=disk.dmg bs=1 seek=$((1048576 - 512)) conv=notrunc status=none
cp disk.dmg disk.img
names_it 'dmg by name and mark' dmg "$img" info disk.dmg
names_it 'convert of a dmg' dmg "$img" convert -O qcow2 disk.dmg y
expect 'the mark alone is a raw disk' 0 "$img" info disk.img
truncate -s 1M plain.dmg
expect 'the name alone is a raw disk' 0 "$img" info plain.dmg
if "$QEMU_IMG" create -q -f vpc -o subformat=fixed fixed.vhd 4M 2>err; then
	for qemu in "$img" "$QEMU_IMG"; do
		run "$qemu" info fixed.vhd
		grep -qx 'file format: raw' out && ok "a fixed VHD is raw for $(basename "$(dirname "$qemu")")" || bad "a fixed VHD for $qemu" "$(shown)"
	done
fi
finish
