#!/bin/bash
# SPDX-License-Identifier: MIT
# The recipe of doc/BACKUP.md, run as it stands there: while a client writes and while nobody does. What each backup restores is the
# disk of its point, and each increment has little more than what was written.
. "$(dirname "$0")/lib.sh"
need_qemu
for tool in nbdinfo awk; do
	command -v "$tool" >/dev/null || skip_all "$tool is not there"
done
mkdir bin
ln -s "$(realpath "$QCOW")" bin/qcow
PATH=$PWD/bin:$PATH
sed -n '/^```sh$/,/^```$/{/^```/d;p}' "$source_root/doc/BACKUP.md" >recipe.sh
. ./recipe.sh
[[ $(type -t backup_more) == function && $(type -t backup_offline) == function ]] && ok the_recipe_is_read || bad the_recipe_is_read

writes() { # FIRST LAST: a pattern of its own for each number, at a place of its own in each round
	local i
	for ((i = $1; i <= $2; i++)); do
		echo "write -P $((i % 255 + 1)) $(((i * 7919 % 900) * 65536 + i % 3 * 4096)) $((4096 << i % 5))"
	done
}

create disk.qcow2 64M
writes 0 60 | "$QEMU_IO" -f qcow2 disk.qcow2 >/dev/null
run serve
server=$(<serve.pid)
# a client that never rests, until the file "enough" is there
{
	i=1000
	while [[ ! -e enough ]]; do
		writes $i $((i + 20))
		echo flush
		i=$((i + 21))
		sleep 0.05
	done
} | "$QEMU_IO" -f raw "nbd+unix:///?socket=$PWD/disk.sock" >client.out 2>&1 &
client=$!
for i in {1..200}; do [[ -s client.out ]] && break; sleep 0.05; done
# what each backup must have, read whole from its snapshot before the recipe deletes it
qcow() {
	if [[ ${3:-} == snapshot-delete ]]; then
		"$QEMU_IMG" convert -f raw -O raw "$(export_uri "@${4#name=}")" "${4#name=}.raw" || bad "read $4"
	fi
	command qcow "$@"
}
expect the_whole_disk 0 backup_full
for n in 1 2 3; do
	sleep 0.3
	expect "increment $n" 0 backup_more "$n"
done
touch enough
wait "$client" && ok the_client_noticed_nothing || bad the_client_noticed_nothing "$(tail -n 3 client.out)"
unset -f qcow
nbdinfo --map=qemu:dirty-bitmap:b3 "$(export_uri '')" | awk '$4 == "dirty" { print $1, $2 }' >dirty.nbdinfo
expect dirty_ranges 0 dirty_ranges 4
[[ -s out ]] && cmp -s out dirty.nbdinfo && ok they_are_those_of_nbdinfo || bad they_are_those_of_nbdinfo "$(diff out dirty.nbdinfo | head -n 5)"
qemu-img() { "$QCOW_QEMU_IMG" "$@"; }
expect dirty_ranges_by_ours 0 dirty_ranges 4
cmp -s out dirty.nbdinfo && ok they_are_the_same || bad they_are_the_same "$(diff out dirty.nbdinfo | head -n 5)"
unset -f qemu-img
server=$(<serve.pid)
end_server
for pair in full:0 inc1:1 inc2:2 inc3:3; do
	expect "restore ${pair%:*}" 0 restore "${pair%:*}.qcow2" restored.qcow2
	expect "it is the disk of point ${pair#*:}" 0 "$QEMU_IMG" compare -F raw restored.qcow2 "backup${pair#*:}.raw"
	sound "${pair%:*}.qcow2" 'a backup'
	cmp -s "backup${pair#*:}.raw" "backup$((${pair#*:} - 1)).raw" && bad "point ${pair#*:} differs from the one before"
done
sound disk.qcow2 'after live backups'
run "$QEMU_IMG" info --output json disk.qcow2
python3 -c 'import json
i = json.load(open("out"))
assert [b["name"] for b in i["format-specific"]["data"]["bitmaps"]] == ["b3"] and not i.get("snapshots"), i' 2>err &&
	ok nothing_but_the_next_bitmap_is_left || bad nothing_but_the_next_bitmap_is_left "$(shown)"

# ---- and when nobody writes ----
echo -e 'write -P 77 10M 64k\nwrite -P 78 30M 1M\nwrite -z 50M 128k\ndiscard 51M 64k' | "$QEMU_IO" -f qcow2 disk.qcow2 >/dev/null
"$QEMU_IMG" convert -O raw disk.qcow2 now.raw
expect offline 0 backup_offline 4 # what was written after point 3 is in it too
expect restore 0 restore inc4.qcow2 restored.qcow2
expect it_is_the_disk 0 "$QEMU_IMG" compare -F raw restored.qcow2 now.raw
expect little_is_written 0 "$QEMU_IO" -f qcow2 -c 'write -P 79 11M 64k' disk.qcow2
expect once_more 0 backup_offline 5
expect the_increment_has_that_alone 0 python3 -c '
import json, subprocess, sys
m = json.loads(subprocess.check_output([sys.argv[1], "map", "--output=json", "inc5.qcow2"]))
own = [(e["start"], e["length"]) for e in m if e["depth"] == 0]
assert own == [(11 << 20, 65536)], own' "$QEMU_IMG"
finish
