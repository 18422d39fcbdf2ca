#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow rebase: what it says and leaves, beside both QEMUs. What it copies is chains.py's.
# Rules of doc/COMPAT.md: R60.
# shellcheck source=tests/cli/lib.sh
source "$(dirname "$0")/lib.sh"
need_qemu
create old.qcow2 4M
io -c 'write -P 1 0 2M' old.qcow2
cp old.qcow2 new.qcow2
io -c 'write -P 2 1M 100k' -c 'write -P 3 3M 64k' new.qcow2
create -b old.qcow2 -F qcow2 over.qcow2
io -c 'write -P 9 512k 64k' over.qcow2
"$QEMU_IMG" convert -O raw over.qcow2 want.raw
"$QEMU_IMG" create -q -f raw plain.raw 4M
mkdir sub
create -b ../old.qcow2 -F qcow2 sub/over.qcow2
fresh() { cp over.qcow2 o.qcow2; }
backing_of() { "$QEMU_IMG" info --output json "$1" | python3 -c 'import json, sys; o = json.load(sys.stdin); print(o.get("backing-filename"), o.get("backing-filename-format"))'; }

fresh
expect safe 0 "$QCOW" rebase -b new.qcow2 -F qcow2 o.qcow2
expect reads_the_same 0 "$QEMU_IMG" compare -q o.qcow2 want.raw
[[ $(backing_of o.qcow2) == 'new.qcow2 qcow2' ]] && ok records_the_name || bad records_the_name "$(backing_of o.qcow2)"
# 2 clusters of 64 KiB differ around 1 MiB, one is only in the new file
fresh
cp o.qcow2 before.qcow2
prints dry_run '131072 bytes would be copied, 65536 zeroed' "$QCOW" rebase --dry-run -b new.qcow2 -F qcow2 o.qcow2
same dry_run_changes_nothing o.qcow2 before.qcow2
run "$QCOW" rebase --output json -b new.qcow2 -F qcow2 o.qcow2
python3 -c 'import json
o = json.load(open("out"))
assert o == {"filename": "o.qcow2", "backing-filename": "new.qcow2", "backing-filename-format": "qcow2",
	"bytes-copied": 131072, "bytes-zeroed": 65536, "dry-run": False}, o' && ok json || bad json "$(shown)"
fresh
expect to_none 0 "$QCOW" rebase -b '' o.qcow2
expect none_reads_the_same 0 "$QEMU_IMG" compare -q o.qcow2 want.raw
[[ $(backing_of o.qcow2) == 'None None' ]] && ok none_is_recorded || bad none_is_recorded
expect from_none 0 "$QCOW" rebase -b new.qcow2 -F qcow2 o.qcow2
expect from_none_reads_the_same 0 "$QEMU_IMG" compare -q o.qcow2 want.raw
fresh
expect compressed 0 "$QCOW" rebase -c -b '' o.qcow2
run "$QEMU_IMG" check --output json o.qcow2
grep -q '"compressed-clusters": 3[0-9]' out && ok copies_are_compressed || bad copies_are_compressed "$(shown)"
expect found_from_the_overlays_folder 0 "$QCOW" rebase -b ../new.qcow2 -F qcow2 sub/over.qcow2
# a backing file that is gone
fresh
mv old.qcow2 gone.qcow2
says safe_needs_the_old_file 1 'qcow: *old.qcow2*' "$QCOW" rebase -b new.qcow2 -F qcow2 o.qcow2
expect unsafe_needs_nothing 0 "$QCOW" rebase -u -b nowhere.qcow2 -F qcow2 o.qcow2
[[ $(backing_of o.qcow2) == 'nowhere.qcow2 qcow2' ]] && ok unsafe_records || bad unsafe_records "$(backing_of o.qcow2)"
mv gone.qcow2 old.qcow2
says nothing_to_do 1 'qcow: Must specify backing file (-b) or use unsafe mode (-u)' "$QCOW" rebase o.qcow2
fresh
says no_format 1 "qcow: Could not change the backing file to 'new.qcow2': backing format must be specified" "$QCOW" rebase -b new.qcow2 o.qcow2
says onto_itself 1 "qcow: cannot open the new backing file 'o.qcow2'*" "$QCOW" rebase -b o.qcow2 -F qcow2 o.qcow2
same refused_changes_nothing o.qcow2 over.qcow2
# a progress file that says all of it
fresh
"$QCOW" rebase --progress=3 -b '' o.qcow2 3>progress
[[ $(tail -n 1 progress) == '4194304 4194304' ]] && ok progress || bad progress "$(tail -n 2 progress)"

# as_qemu WHICH ARGS…: QEMU prints the same, ends the same and leaves the same backing file
as_qemu() {
	local peer=$1 theirs_rc theirs_backing
	shift
	fresh
	(cd "$work" && "$peer" "$@" >theirs 2>theirs.err </dev/null)
	theirs_rc=$?
	theirs_backing=$(backing_of o.qcow2)
	fresh
	run "$QCOW_QEMU_IMG" "$@"
	sed -i '/^hint: /d' err
	if [[ $rc == "$theirs_rc" && $(backing_of o.qcow2) == "$theirs_backing" ]] && cmp -s theirs out && cmp -s theirs.err err; then ok "as QEMU: $*"
	else bad "as QEMU: $*" "QEMU, with status $theirs_rc: $(cat theirs theirs.err) $theirs_backing $(shown)"; fi
}
all_as_qemu() {
	local peer=$1
	as_qemu "$peer" rebase -b new.qcow2 -F qcow2 o.qcow2
	as_qemu "$peer" rebase -q -b new.qcow2 -F qcow2 o.qcow2
	as_qemu "$peer" rebase -u -b new.qcow2 -F qcow2 o.qcow2
	as_qemu "$peer" rebase -u -b '' o.qcow2
	as_qemu "$peer" rebase -b '' -F qcow2 o.qcow2
	as_qemu "$peer" rebase -b new.qcow2 o.qcow2
	as_qemu "$peer" rebase -u -b new.qcow2 o.qcow2
	as_qemu "$peer" rebase -b nofile -F raw o.qcow2
	as_qemu "$peer" rebase -u -b nofile -F raw o.qcow2
	as_qemu "$peer" rebase -u -b nofile -F host_device o.qcow2
	as_qemu "$peer" rebase -b new.qcow2 -F xyz o.qcow2
	as_qemu "$peer" rebase -b plain.raw -F qcow2 o.qcow2
	as_qemu "$peer" rebase -f raw -b new.qcow2 -F qcow2 plain.raw
	as_qemu "$peer" rebase -f raw -u -b new.qcow2 -F qcow2 plain.raw
	as_qemu "$peer" rebase -b new.qcow2 -F qcow2 nofile
	as_qemu "$peer" rebase -u -b "$(printf 'n%.0s' {1..1025})" -F raw o.qcow2
	as_qemu "$peer" rebase -u -b "$(printf 'n%.0s' {1..1023})" -F raw o.qcow2
	as_qemu "$peer" rebase -b old.qcow2 -F qcow2 o.qcow2
	as_qemu "$peer" rebase -b 'json:{"driver":"qcow2","file":{"driver":"file","filename":"new.qcow2"}}' -F qcow2 o.qcow2
}
all_as_qemu "$QEMU_IMG"
if have_new_qemu; then all_as_qemu "$QEMU_IMG_NEW"; fi
finish
