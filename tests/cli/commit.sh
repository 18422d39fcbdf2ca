#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow commit: what it says and leaves, beside both QEMUs. What it copies is chains.py's.
# Rules of doc/COMPAT.md: R45.
# shellcheck source=tests/cli/lib.sh
source "$(dirname "$0")/lib.sh"
need_qemu
make_chain() {
	rm -f -- *.qcow2 *.raw
	"$QEMU_IMG" create -q -f raw r.raw 4M
	io -f raw -c 'write -P 1 0 1M' r.raw
	create -b r.raw -F raw a.qcow2 4M
	io -c 'write -P 2 512k 1M' a.qcow2
	create -b a.qcow2 -F qcow2 b.qcow2
	io -c 'write -P 3 1M 1M' -c 'write -z 3M 64k' b.qcow2
	create -b b.qcow2 -F qcow2 c.qcow2 5M
	io -c 'write -P 4 1536k 1M' -c 'write -z 0 64k' -c 'write -P 5 4608k 64k' c.qcow2
	"$QEMU_IMG" convert -O raw c.qcow2 ../want.raw
}
mkdir in
cd in || exit 1
reads_same() { expect "$1" 0 "$QEMU_IMG" compare -q "$2" ../want.raw; }
clean() { local f; for f in *.qcow2; do "$QEMU_IMG" check -q "$f" >/dev/null || { bad "$1" "$f"; return; }; done; ok "$1"; }

make_chain
prints next_layer 'Image committed.' "$QCOW" commit c.qcow2
reads_same the_overlay_reads_the_same c.qcow2
reads_same the_next_layer_reads_it_too b.qcow2
clean all_are_clean
(($(stat -c %s c.qcow2) < 400000)) && ok the_overlay_is_cut || bad the_overlay_is_cut "$(stat -c %s c.qcow2)"
run "$QEMU_IMG" map --output json c.qcow2
grep -q '"depth": 0' out && bad the_overlay_is_emptied "$(shown)" || ok the_overlay_is_emptied
make_chain
cp c.qcow2 before.c
expect quiet 0 "$QCOW" commit -q -d c.qcow2
[[ ! -s out ]] && ok quiet_is_quiet || bad quiet_is_quiet
same with_d_it_keeps_what_it_has c.qcow2 before.c
reads_same with_d_the_next_layer_reads_it b.qcow2
for base in a.qcow2 "$PWD/a.qcow2" ./a.qcow2; do
	make_chain
	cp c.qcow2 before.c
	cp b.qcow2 before.b
	prints "to $base" 'Image committed.' "$QCOW" commit -b "$base" c.qcow2
	reads_same "a deeper layer: $base" a.qcow2
	same "the overlay stays: $base" c.qcow2 before.c
	same "the layer between stays: $base" b.qcow2 before.b
	clean "clean: $base"
done
make_chain
expect to_raw 0 "$QCOW" commit -q -b r.raw c.qcow2
same raw_is_the_disk r.raw ../want.raw
make_chain
sha256sum -- *.qcow2 *.raw >../sums
run "$QCOW" commit --dry-run --output json c.qcow2
python3 -c 'import json
o = json.load(open("out"))
assert o["bytes-copied"] == (1 << 20) + 65536 and o["dry-run"] is True and o["emptied"] is False, o
assert 0 < o["bytes-zeroed"] <= 65536 and o["base"].endswith("b.qcow2"), o' && ok dry_run_json || bad dry_run_json "$(shown)"
sha256sum -c --quiet ../sums 2>&1 && ok dry_run_changes_nothing || bad dry_run_changes_nothing
start=$(date +%s%N)
expect slowly 0 "$QCOW" commit -q -r 1M c.qcow2
(($(date +%s%N) - start > 50000000)) && ok rate_is_kept || bad rate_is_kept
# a bitmap of the base records it
make_chain
"$QEMU_IMG" bitmap --add -g 65536 b.qcow2 track
expect with_a_bitmap 0 "$QCOW" commit -q c.qcow2
prints the_bitmap_has_it 'dirty' bash -c '"$0" map --bitmap track --output json b.qcow2 | grep -q "\"start\": 1572864" && echo dirty' "$QCOW"
# an encrypted base
rm -f -- *.qcow2
create_luks e.qcow2 1M
s=(--object 'secret,id=s,data=abc')
"$QEMU_IMG" create -q -f qcow2 -u -b e.qcow2 -F qcow2 o.qcow2 1M
printf abc >../pass
expect io_to_the_overlay 0 "$QCOW" io --secret-file ../pass -c 'write -P 7 64k 100k' o.qcow2
expect to_an_encrypted_base 0 "$QCOW" commit -q --secret-file ../pass o.qcow2
run "$QEMU_IO" "${s[@]}" --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=e.qcow2 -c 'read -P 7 64k 100k'
[[ $rc == 0 && $(<out) != *erification* ]] && ok the_encrypted_base_has_it || bad the_encrypted_base_has_it "$(shown)"

says no_backing_file 1 "qcow: 'e.qcow2' has no backing file" "$QCOW" commit --secret-file ../pass e.qcow2
as_qemu() {
	local peer=$1 theirs_rc theirs_disk
	shift
	make_chain
	"$peer" "$@" >theirs 2>theirs.err </dev/null
	theirs_rc=$?
	theirs_disk=$(for f in c.qcow2 b.qcow2 a.qcow2 r.raw; do "$QEMU_IMG" convert -O raw "$f" disk.tmp; sha256sum <disk.tmp; done)
	make_chain
	run "$QCOW_QEMU_IMG" "$@"
	sed -i '/^hint: /d' err
	ours_disk=$(for f in c.qcow2 b.qcow2 a.qcow2 r.raw; do "$QEMU_IMG" convert -O raw "$f" disk.tmp; sha256sum <disk.tmp; done)
	# QEMU warns of raw images without -f
	sed -i '/^WARNING/d;/^  /d' theirs.err
	if [[ $rc == "$theirs_rc" && $ours_disk == "$theirs_disk" ]] && cmp -s theirs out && cmp -s theirs.err err; then ok "as QEMU: $*"
	else bad "as QEMU: $*" "QEMU, with status $theirs_rc: $(cat theirs theirs.err) $(shown) $(diff <(echo "$theirs_disk") <(echo "$ours_disk"))"; fi
}
all_as_qemu() {
	local peer=$1
	as_qemu "$peer" commit c.qcow2
	as_qemu "$peer" commit -q c.qcow2
	as_qemu "$peer" commit -d c.qcow2
	as_qemu "$peer" commit -b a.qcow2 c.qcow2
	as_qemu "$peer" commit -b b.qcow2 c.qcow2
	as_qemu "$peer" commit -b r.raw c.qcow2
	as_qemu "$peer" commit -b "$PWD/b.qcow2" c.qcow2
	as_qemu "$peer" commit -b b.qcow2 ../"${PWD##*/}"/c.qcow2
	as_qemu "$peer" commit -b ../"${PWD##*/}"/b.qcow2 c.qcow2
	as_qemu "$peer" commit -b nofile c.qcow2
	as_qemu "$peer" commit -b c.qcow2 c.qcow2
	as_qemu "$peer" commit nofile
	as_qemu "$peer" commit r.raw
	as_qemu "$peer" commit -f qcow2 r.raw
	as_qemu "$peer" commit -r 100M b.qcow2
	as_qemu "$peer" commit a.qcow2
}
all_as_qemu "$QEMU_IMG"
if have_new_qemu; then all_as_qemu "$QEMU_IMG_NEW"; fi
finish
