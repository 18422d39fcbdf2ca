#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow map prints what qemu-img map prints, byte for byte.
# Rules of doc/COMPAT.md: R42.
source "$(dirname "$0")/lib.sh"
need_qemu
make_images
create_luks luks.qcow2 1M
head -c 1000 /dev/zero | tr '\0' x >odd.raw

for image in "${images[@]}" odd.raw; do
	all_args=('' '--output json')
	[[ $image =~ top|long2|compressed|datafile|plain|odd|empty ]] &&
		all_args+=('--output=json --start-offset=100' '--output=json -s 70000 -l 1M'
			'--output=json --start-offset 1G' '-s 64k -l 70000')
	for args in "${all_args[@]}"; do
		# shellcheck disable=SC2086 # words
		run "$QEMU_IMG" map $args "$image"
		cp out theirs
		theirs_rc=$rc
		# shellcheck disable=SC2086
		run "$QCOW_QEMU_IMG" map $args "$image"
		# QEMU 7.2 does not say which data is compressed
		sed 's/, "compressed": [a-z]*//' out >ours
		same "map $args $image is that of QEMU 7.2" theirs ours
		if [[ $rc == "$theirs_rc" ]]; then ok "map $args $image ends as QEMU 7.2"
		else bad "map $args $image ends as QEMU 7.2" "theirs $theirs_rc, $(shown)"; fi
		cp out ours
		have_new_qemu || continue
		# shellcheck disable=SC2086
		run "$QEMU_IMG_NEW" map $args "$image"
		same "map $args $image is that of the newest QEMU" out ours
		[[ $image == odd.raw ]] && continue # qcow does not round it to a sector
		[[ $rc != 0 ]] && continue # the table of compressed data: qcow has one
		# shellcheck disable=SC2086
		run "$QCOW" map $args "$image"
		same "map $args $image says the same as qcow" out ours
	done
done

says the_personality_has_no_table_of_compressed_data 1 'qemu-img: File contains external*' \
	"$QCOW_QEMU_IMG" map compressed.qcow2
cp zstd.qcow2 mixed.qcow2
io -c 'write -P 5 64k 64k' mixed.qcow2
at=$("$QEMU_IMG" map --output json mixed.qcow2 | sed -n 's/.*"start": 65536, "length": 65536, .*"offset": \([0-9]*\).*/\1/p')
prints compressed_data_stands_beside_plain_data "$(printf '%-16s%-16s%-16s%s\n' Offset Length 'Mapped to' File \
	0 0x10000 compressed mixed.qcow2 0x10000 0x10000 "$(printf %#x "$at")" mixed.qcow2 \
	0x20000 0x20000 compressed mixed.qcow2)" "$QCOW" map mixed.qcow2
prints max_output_stops "$(printf '%s\n%s' \
	'[{ "start": 0, "length": 65536, "depth": 1, "present": true, "zero": false, "data": true, "compressed": false, "offset": 327680},' \
	'{ "start": 65536, "length": 262144, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 327680}]')" \
	"$QCOW" map --output json --max-output 2 top.qcow2
says map_of_an_encrypted_image_is_refused 1 'qcow: cannot open *luks.qcow2*encrypted*' "$QCOW" map luks.qcow2
says a_range_that_is_no_number 1 "qcow: invalid start offset '1x': *" "$QCOW" map -s 1x top.qcow2
finish
