#!/bin/bash
# SPDX-License-Identifier: MIT
# Images with an external data file, as the commands treat them, beside both QEMUs.
# shellcheck source=tests/cli/lib.sh
source "$(dirname "$0")/lib.sh"
need_qemu
qemus=("$QEMU_IMG")
if have_new_qemu; then qemus+=("$QEMU_IMG_NEW"); fi

# ---- COPIED ----
# A cluster of a data file has one reference for ever. COPIED clear is an error for QEMU, a note here; a repair sets it,
# and leaves the same bytes as QEMU's. Entry 0 has no other sign of its cluster, so without COPIED it has none.
copied() { # NAME CLUSTER_BYTES ENTRY_BYTES CREATE_OPTIONS ENTRY…: COPIED cleared in these entries
	local name=$1 cluster=$2 size=$3 options=$4 entry qemu patches=()
	shift 4
	rm -f i d
	create -o "data_file=d,cluster_size=$cluster,$options" i $((64 * cluster))
	io -c "write -P 1 0 $((5 * cluster))" -c "write -z $cluster $cluster" -c "write -P 2 $((25 * cluster)) $((cluster + 2048))" i
	cp i well
	for entry; do patches+=("$((4 * cluster + entry * size)):00:1"); done
	python3 "$here/patch.py" well sick "${patches[@]}"
	run "$QCOW" check --output json sick
	python3 -c 'import json, sys
o = json.load(open("out"))
n = sum(f["name"] == "COPIED_MISSING" for f in o.get("findings", []))
assert n == int(sys.argv[1]) and o.get("corruptions", 0) == 0, o' $# && ok "$name: each is found" || bad "$name: each is found" "$(shown)"
	for qemu in "${qemus[@]}"; do
		run "$qemu" check -q sick
		[[ $rc == 2 && $(grep -c OFLAG_COPIED err) == "$#" ]] && ok "$name: as many as for QEMU" ||
			bad "$name: as many as for QEMU" "$(shown)"
		cp sick ours
		cp sick theirs
		run "$QCOW" check -q -r all ours
		[[ $rc == 0 ]] && ok "$name: repaired" || bad "$name: repaired" "$(shown)"
		same "$name: as it was" ours well
		run "$qemu" check -q -r all theirs
		same "$name: as QEMU" ours theirs
		expect "$name: clean for QEMU" 0 "$qemu" check -q ours
	done
}
copied standard 4096 8 lazy_refcounts=off 1 4 25
copied raw 65536 8 data_file_raw=on 2 26
copied subclusters 16384 16 extended_l2=on 3 25

# ---- discards ----
# Where the data file has holes afterwards, and what the image says of the range. In a raw data file we leave no old bytes
# where the image reads as zeros, and keep its entries; QEMU leaves them there without pass-discard-request.
holes() { python3 -c 'import os
f = os.open("d", os.O_RDONLY)
def has_data(off):
    try:
        return os.lseek(f, off, os.SEEK_DATA) < off + 65536
    except OSError:
        return False
print("".join("D" if has_data(i << 16) else "-" for i in range(16)))'; }
discarded() { # QEMU_IO OPTIONS COMMAND…: by this program
	local io=$1 options=$2 command args=()
	shift 2
	rm -f i d
	create -o "data_file=d$raw" i 1M
	io -c 'write -P 7 0 1M' i
	for command; do args+=(-c "$command"); done
	"$io" --image-opts "${args[@]}" \
		"driver=qcow2,file.filename=i,data-file.driver=file,data-file.filename=d$options" >/dev/null || bad "$io $*"
	holes
	[[ -n $raw ]] || "$QEMU_IMG" map --output json i
	"$QEMU_IMG" check -q i || bad "check: $options $*"
	"$QEMU_IMG" convert -O raw i i.raw
	sha256sum <i.raw
	[[ -z $raw || $io != "$QCOW_QEMU_IO" ]] || cmp i.raw d || bad "the raw data file is the disk: $options $*"
}
as_qemu() { # OPTIONS COMMAND…
	local options=$1 qemu io
	discarded "$QCOW_QEMU_IO" "$@" >ours
	for qemu in "${qemus[@]}"; do
		io=${qemu%qemu-img}qemu-io
		# this one knows no discard-no-unref
		[[ $options != *no-unref* || $qemu == "$QEMU_IMG_NEW" ]] || continue
		discarded "$io" "$@" >theirs
		same "holes${raw:+ of a raw one}: $*" ours theirs
	done
}
if : >sparse && python3 -c 'import ctypes, os
f = os.open("sparse", os.O_RDWR)
os.write(f, b"x" * (1 << 20))
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
raise SystemExit(libc.fallocate(f, 3, 65536, 65536) != 0 or os.lseek(f, 65536, os.SEEK_DATA) != 131072)'; then
	some=('discard 128k 192k' 'discard 500k 100k' 'write -P 9 192k 1k')
	for raw in '' ,data_file_raw=on; do
		as_qemu '' "${some[@]}" 'write -z -u 704k 128k'
		as_qemu ,discard=ignore "${some[@]}"
		as_qemu ,discard=unmap,discard-no-unref=on "${some[@]}" 'write -z -u 704k 128k'
	done
	raw=
	as_qemu ,discard=unmap,pass-discard-request=off "${some[@]}" 'write -z -u 704k 128k'
else
	echo "SKIP this file system has no holes of 64 KiB"
fi

finish
