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

finish
