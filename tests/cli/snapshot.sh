#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow snapshot lists, makes, applies and deletes as qemu-img does.
# Rules of doc/COMPAT.md: R36.
source "$(dirname "$0")/lib.sh"
need_qemu
make_images

# the table of QEMU 7.2 with the columns of QEMU 10: same words
words() { tr -s ' ' <"$1" | sed 's/VM SIZE/VM_SIZE/; s/VM CLOCK/VM_CLOCK/; s/ \(..:..:..\....\) / 00\1 /'; }
for image in v2.qcow2 base.qcow2 plain.raw sub/third.qcow2; do
	expect "snapshot -l $image" 0 "$QCOW" snapshot -l "$image"
	cp out ours
	run "$QEMU_IMG" snapshot -l "$image"
	words out >a
	words ours >b
	same "snapshot -l $image has the words of QEMU 7.2" a b
	have_new_qemu || continue
	run "$QEMU_IMG_NEW" snapshot -l "$image"
	same "snapshot -l $image is that of the newest QEMU" out ours
done
# with both QEMUs: the same actions on copies of one image leave the same disks and lists
peers=("$QEMU_IMG")
have_new_qemu && peers+=("$QEMU_IMG_NEW")
listed() { "$QEMU_IMG" snapshot -l "$1" | sed -E 's/[0-9]{4}-[0-9-]+ [0-9:]+//' | tr -s ' '; }
for version in 0.10 1.1; do
	rm -f start.qcow2
	"$QEMU_IMG" create -q -f qcow2 -o compat="$version" start.qcow2 4M
	"$QEMU_IO" -c 'write -P 1 0 1M' -c 'write -c -P 2 2M 64k' start.qcow2 >/dev/null
	for peer in "${peers[@]}"; do
		cp start.qcow2 ours.qcow2
		cp start.qcow2 theirs.qcow2
		for action in '-c one' '-c two' '-c 1' '-a 1' '-d 1' '-d nope' '-a nope' '-c' '-d 2' '-a 3' '-d two' '-d 1'; do
			# shellcheck disable=SC2086
			run "$peer" snapshot $action theirs.qcow2
			cp err theirs.err
			wanted=$rc
			# shellcheck disable=SC2086
			expect "$version: snapshot $action as $("$peer" --version | head -1)" "$wanted" \
				"$QCOW_QEMU_IMG" snapshot $action ours.qcow2
			[[ $action == -c ]] || same "$version: snapshot $action: the words" theirs.err err
			listed theirs.qcow2 >a
			listed ours.qcow2 >b
			same "$version: snapshot $action: the list" a b
			expect "$version: snapshot $action: clean" 0 "$peer" check -q ours.qcow2
			expect "$version: snapshot $action: the disk" 0 "$peer" compare -q ours.qcow2 theirs.qcow2
			"$QEMU_IO" -c "write -P 77 64k 192k" ours.qcow2 >/dev/null
			"$QEMU_IO" -c "write -P 77 64k 192k" theirs.qcow2 >/dev/null
		done
	done
done
cp start.qcow2 many.qcow2
for name in a b c d; do "$QCOW" snapshot -c $name many.qcow2; done
cp many.qcow2 before
expect dry_run 0 "$QCOW" snapshot --dry-run -d a -d 3 many.qcow2
printf "would delete snapshot 1 'a'\nwould delete snapshot 3 'c'\n" >wanted
same dry_run_says_what wanted out
same dry_run_changes_nothing before many.qcow2
says one_missing_deletes_none 1 "qcow: Could not delete snapshot 'x' of 'many.qcow2': *" "$QCOW" snapshot -d a -d x many.qcow2
same one_missing_changes_nothing before many.qcow2
says twice_the_same 1 "qcow: Could not delete *two of the 2 names*" "$QCOW" snapshot -d a -d 1 many.qcow2
expect several_at_once 0 "$QCOW" snapshot -d a -d 3 --output json many.qcow2
python3 -c 'import json
assert [s["id"] for s in json.load(open("out"))["snapshots"]] == ["1", "3"]' && ok several_as_json || bad several_as_json "$(shown)"
expect rename 0 "$QCOW" snapshot --rename d --name "new name" many.qcow2
run "$QEMU_IMG" snapshot -l many.qcow2
grep -q '^4 *new name' out && ! grep -q '^3 ' out && ok renamed || bad renamed "$(shown)"
expect clean_after_all 0 "$QEMU_IMG" check -q many.qcow2
says rename_needs_a_name 1 'qcow: --rename needs --name NEW*' "$QCOW" snapshot --rename d many.qcow2
says share_is_for_readers 1 "qcow: Could not open 'many.qcow2': force-share=on *" "$QCOW" snapshot -U -c x many.qcow2
rm -f narrow.qcow2
"$QEMU_IMG" create -q -f qcow2 -o refcount_bits=1 narrow.qcow2 1M
"$QEMU_IO" -c 'write 0 64k' narrow.qcow2 >/dev/null
cp narrow.qcow2 before
says no_room_in_a_refcount 1 "qcow: Could not create snapshot 'x' of 'narrow.qcow2': *1-bit refcounts*" \
	"$QCOW" snapshot -c x narrow.qcow2
same a_refused_one_changes_nothing before narrow.qcow2
"$QEMU_IMG" create -q -f raw some.raw 1M
says raw_has_none 1 "qemu-img: Could not create snapshot 'x': Operation not supported" \
	"$QCOW_QEMU_IMG" snapshot -c x some.raw
says raw_goes_nowhere 1 "qemu-img: Could not apply snapshot 'x': Block driver does not support snapshots" \
	"$QCOW_QEMU_IMG" snapshot -a x some.raw
says actions_exclude_each_other 1 "qemu-img: Cannot mix '-l', '-a', '-c', '-d'" \
	"$QCOW_QEMU_IMG" snapshot -l -c x v2.qcow2
run "$QCOW" snapshot --output json v2.qcow2
if python3 -c 'import json
a = json.load(open("out"))
assert [s["name"] for s in a] == ["snap one", "a-very-long-snapshot-name-it-is"], a
assert set(a[0]) == {"icount", "vm-clock-nsec", "name", "date-sec", "date-nsec", "vm-clock-sec", "id", "vm-state-size"}'
then ok snapshots_as_json; else bad snapshots_as_json "$(shown)"; fi
finish
