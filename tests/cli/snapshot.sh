#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow snapshot lists as qemu-img does, and refuses what it cannot do.
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
cp v2.qcow2 before
says create_is_refused 1 "qcow: cannot create snapshot 'x' of 'v2.qcow2': *" "$QCOW" snapshot -c x v2.qcow2
says apply_is_refused 1 "qcow: cannot apply snapshot *" "$QCOW" snapshot -a 1 v2.qcow2
says delete_is_refused 1 "qemu-img: cannot delete snapshot *" "$QCOW_QEMU_IMG" snapshot -d 1 v2.qcow2
same a_refused_command_changes_nothing before v2.qcow2
says actions_exclude_each_other 1 "qemu-img: Cannot mix '-l', '-a', '-c', '-d'" \
	"$QCOW_QEMU_IMG" snapshot -l -c x v2.qcow2
run "$QCOW" snapshot --output json v2.qcow2
if python3 -c 'import json
a = json.load(open("out"))
assert [s["name"] for s in a] == ["snap one", "a-very-long-snapshot-name-it-is"], a
assert set(a[0]) == {"icount", "vm-clock-nsec", "name", "date-sec", "date-nsec", "vm-clock-sec", "id", "vm-state-size"}'
then ok snapshots_as_json; else bad snapshots_as_json "$(shown)"; fi
finish
