#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow info prints what qemu-img info prints, byte for byte.
# Rules of doc/COMPAT.md: R35, R37, R38, R39.
source "$(dirname "$0")/lib.sh"
need_qemu
make_images
create_luks -b base.qcow2 -F qcow2 luks.qcow2 1M
create_luks -o encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256 \
	-o encrypt.cipher-alg=aes-128 luks-cbc.qcow2 1M
images+=(luks.qcow2 luks-cbc.qcow2)

# The text of QEMU 7.2 has neither the block of the file's node nor two keys of the JSON.
as_old() { sed '/^Child node/,/^$/{/^$/!d}; /^ *detached header: /d' "$1"; }
as_old_json() {
	python3 -c 'import json, sys
def strip(o):
    for x in o if isinstance(o, list) else [o]:
        x.pop("children", None)
        x.get("format-specific", {}).get("data", {}).get("encrypt", {}).pop("detached-header", None)
    return o
a, b = (strip(json.load(open(f))) for f in sys.argv[1:])
sys.exit(a != b)' "$1" "$2"
}

for image in "${images[@]}"; do
	all_args=('' '--output json')
	[[ $image =~ top|third|long|overraw|plain ]] &&
		all_args+=('--backing-chain' '--backing-chain --output=json')
	for args in "${all_args[@]}"; do
		# shellcheck disable=SC2086 # words
		expect "info $args $image" 0 "$QCOW_QEMU_IMG" info $args "$image"
		cp out ours
		if have_new_qemu; then
			# shellcheck disable=SC2086
			run "$QEMU_IMG_NEW" info $args "$image"
			same "info $args $image is that of the newest QEMU" out ours
		fi
		# shellcheck disable=SC2086
		run "$QEMU_IMG" info $args "$image"
		if [[ $args == *json* ]]; then
			if as_old_json out ours; then ok "info $args $image is that of QEMU 7.2"
			else bad "info $args $image is that of QEMU 7.2" "$(diff out ours)"; fi
		elif [[ $image != v2.qcow2 ]]; then # its snapshot table has other columns
			as_old ours >ours.old
			same "info $args $image is that of QEMU 7.2" out ours.old
		fi
		# qcow says the same; only the length of a file is not rounded to sectors
		# shellcheck disable=SC2086
		run "$QCOW" info $args "$image"
		grep -Ev 'file length|^ {16}"virtual-size"|^ {20}"virtual-size"' out >a
		grep -Ev 'file length|^ {16}"virtual-size"|^ {20}"virtual-size"' ours >b
		same "info $args $image says the same as qcow" a b
	done
	[[ $image =~ ^(top|v2|bitmaps|luks|plain) ]] || continue
	for args in '--limits' '--limits -t none --output json' '--limits -f raw'; do
		have_new_qemu || continue
		# shellcheck disable=SC2086
		run "$QEMU_IMG_NEW" info $args "$image"
		cp out theirs
		# shellcheck disable=SC2086
		run "$QCOW_QEMU_IMG" info $args "$image"
		same "info $args $image is that of the newest QEMU" theirs out
	done
done

# a snapshot without an instruction count, with a machine state, and a bitmap in use
python3 "$here/patch.py" v2.qcow2 icount.qcow2 snap+0x38:ffffffffffffffff:8 \
	snap+0x18:0001a5ff77336740:8 snap+0x28:75bcd15:8
python3 "$here/patch.py" bitmaps.qcow2 inuse.qcow2 bitmap+12:3:4
# a name with a NUL, and one that begins with it
python3 "$here/patch.py" v2.qcow2 nul.qcow2 snap+0x43:00:1
python3 "$here/patch.py" v2.qcow2 empty-name.qcow2 snap+0x41:00:1
for image in icount.qcow2 inuse.qcow2 nul.qcow2 empty-name.qcow2; do
	for args in '' '--output json'; do
		have_new_qemu || continue
		# shellcheck disable=SC2086
		run "$QEMU_IMG_NEW" info $args "$image"
		cp out theirs
		# shellcheck disable=SC2086
		run "$QCOW_QEMU_IMG" info $args "$image"
		same "info $args $image is that of the newest QEMU" theirs out
	done
done

# sizes as people read them
for bytes in 512 1024 511488 1023488 1024000 1047552 1048576 104857600 1072693248 1073741824 5000000000512 \
	1125899906842112; do
	truncate -s $bytes size.raw 2>/dev/null || continue
	run "$QEMU_IMG" info -f raw size.raw
	grep virtual out >theirs
	run "$QCOW" info -f raw size.raw
	grep virtual out >ours
	same "the size of $bytes bytes in words" theirs ours
done

# names that would act on a terminal are escaped, and the JSON is valid whatever they hold
python3 "$here/patch.py" v2.qcow2 names.qcow2 snap+0x41:1b5b33316d07ff0a:8
expect 'hostile_names_are_printed' 0 "$QCOW" info names.qcow2
if grep -qF $'\\x1b[31m\\x07\ufffd\\x0a' out && ! LC_ALL=C grep -q $'\x1b\|\x07\|\xff' out; then
	ok hostile_names_are_escaped
else bad hostile_names_are_escaped "$(shown)"; fi
expect 'hostile_names_in_json' 0 "$QCOW" info --output json names.qcow2
if python3 -c 'import json
name = json.load(open("out"))["snapshots"][0]["name"]
assert name == "\x1b[31m\x07\ufffd\n", repr(name)'; then ok hostile_names_are_valid_json
else bad hostile_names_are_valid_json "$(shown)"; fi

# a file by itself, without a format over it
for args in '-f file' '--image-opts driver=file,filename=' '--output=json -f file' '--limits -f file'; do
	operand=size.raw
	[[ $args == *= ]] && operand=${args##* }size.raw && args=${args% *}
	# shellcheck disable=SC2086 # words
	expect "info $args $operand" 0 "$QCOW_QEMU_IMG" info $args "$operand"
	cp out ours
	if have_new_qemu; then
		# shellcheck disable=SC2086
		run "$QEMU_IMG_NEW" info $args "$operand"
		same "info $args $operand is that of the newest QEMU" out ours
	fi
done

# exactly one file is opened
rm -f base.qcow2 data.raw
expect info_does_not_open_the_backing_file 0 "$QCOW" info top.qcow2
expect info_does_not_open_the_data_file 0 "$QCOW" info datafile.qcow2
says the_backing_chain_needs_all_files 1 'qcow: cannot open *base.qcow2*: No such file or directory' \
	"$QCOW" info --backing-chain top.qcow2

# limits of programs that call us: 1 GiB of address space and 2 s
if [[ -z ${QCOW_SANITIZED:-} ]]; then
	expect info_works_in_small_memory 0 bash -c 'ulimit -v 1048576 -t 2; exec "$@"' - \
		"$QCOW" info long2.qcow2
fi
finish
