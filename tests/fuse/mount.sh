#!/bin/bash
# SPDX-License-Identifier: MIT
# `qcow mount` with other people's programs: each file of a mounted image is what qemu-img reads of it; file systems, fio, dd
# and cp on the disk; the control socket; processes; names that are no file names.
source "$(dirname "$0")/lib.sh"

# ---- an image with everything in it ----
create below.qcow2 64M
io -c 'write -P 1 0 2M' below.qcow2
create -b below.qcow2 -F qcow2 middle.qcow2
io -c 'write -P 5 30M 1M' -c 'write -z 1M 64k' middle.qcow2
create -b middle.qcow2 -F qcow2 disk.qcow2
io -c 'write -P 2 1M 2M' disk.qcow2
"$QEMU_IMG" snapshot -c first disk.qcow2
io -c 'write -P 3 8M 1M' -c 'write -z 9M 64k' disk.qcow2
"$QEMU_IMG" snapshot -c 'a/../b%' disk.qcow2
"$QEMU_IMG" bitmap --add disk.qcow2 marks
io -c 'write -P 4 12M 64k' disk.qcow2
"$QEMU_IMG" convert -O raw disk.qcow2 want.raw
"$QEMU_IMG" convert -l first -O raw disk.qcow2 first.raw
"$QEMU_IMG" convert -l 'a/../b%' -O raw disk.qcow2 second.raw
"$QEMU_IMG" convert -O raw middle.qcow2 middle.raw
"$QEMU_IMG" convert -O raw below.qcow2 below.raw

start disk.qcow2 --control ctl
for pair in disk:want snapshots/first:first snapshots/a%2F..%2Fb%25:second chain/1:middle chain/2:below; do
	same "${pair%%:*} is that disk" "${pair#*:}.raw" "m/${pair%%:*}"
	[[ $(holes.py "m/${pair%%:*}") == "$(image_holes "${pair#*:}.raw")" ]] && ok "${pair%%:*} has its holes" ||
		bad "${pair%%:*} has its holes" "$(holes.py "m/${pair%%:*}") $(image_holes "${pair#*:}.raw")"
done
[[ $(cd m && find . -type f | LC_ALL=C sort | tr '\n' ' ') == './bitmaps/marks.json ./chain/1 ./chain/2 ./disk ./snapshots/a%2F..%2Fb%25 ./snapshots/first ' ]] &&
	ok the_files_are_these || bad the_files_are_these "$(find m -type f)"
[[ $(stat -c '%s %a' m/disk) == '67108864 400' ]] && ok size_and_mode || bad size_and_mode "$(stat m/disk)"
(($(stat -c %b m/disk) == $(holes.py --blocks m/disk))) && ok st_blocks_is_what_is_data || bad st_blocks_is_what_is_data "$(stat m/disk)"
run "$QCOW" map -U --bitmap marks --output json disk.qcow2
python3 -c 'import json, sys; assert json.load(open("out")) == json.load(open("m/bitmaps/marks.json")), "differ"' &&
	ok the_bitmap_is_told || bad the_bitmap_is_told "$(cat m/bitmaps/marks.json) $(shown)"
(($(stat -c %s m/bitmaps/marks.json) == $(wc -c <m/bitmaps/marks.json))) && ok and_its_length || bad and_its_length
cat >by_qemu.py <<'PY'
import json
want = [[e["offset"], e["length"], e["type"] == 1] for e in json.load(open("told.json"))]
runs = want[:1]
for e in want[1:]:
    if e[2] == runs[-1][2]:
        runs[-1][1] += e[1]
    else:
        runs.append(e)
got = [[e["start"], e["length"], e["dirty"]] for e in json.load(open("m/bitmaps/marks.json"))]
assert got == runs, "%s, and QEMU says %s" % (got, runs)
PY
if command -v nbdinfo >/dev/null && command -v qemu-nbd >/dev/null; then
	run nbdinfo --json --map=qemu:dirty-bitmap:marks -- [ qemu-nbd -r -f qcow2 -B marks "$PWD/disk.qcow2" ]
	((rc == 0)) && mv out told.json && expect as_qemu_tells_it 0 python3 by_qemu.py || bad as_qemu_tells_it "$(shown)"
else
	echo 'SKIP nbdinfo is not there'
fi
for try in 'dd if=/dev/zero of=m/disk conv=notrunc count=1' 'dd if=/dev/zero of=m/snapshots/first conv=notrunc count=1' 'rm m/disk' 'touch m/new' 'mkdir m/d' 'truncate -s 1M m/disk' 'mv m/disk m/e'; do
	run $try
	((rc != 0)) && ok "read-only: $try" || bad "read-only: $try" "$(shown)"
done
run cp --sparse=always m/disk copy.raw
same cp_sparse want.raw copy.raw
run cp --sparse=auto m/disk copy.raw
same cp_auto want.raw copy.raw
(($(stat -c %b copy.raw) <= $(stat -c %b m/disk))) && ok and_it_is_sparse || bad and_it_is_sparse "$(stat copy.raw m/disk)"
expect qemu_reads_the_file 0 "$QEMU_IMG" compare -f raw -F raw m/disk want.raw
end_server
[[ ! -e ctl && ! -e pid ]] && ok nothing_is_left_behind || bad nothing_is_left_behind "$(ls)"
sound disk.qcow2 'after it was mounted read-only'
"$QEMU_IMG" compare -q disk.qcow2 want.raw && ok and_unchanged || bad and_unchanged

# held back before anybody looked: no file may seem to have nothing but holes, programs then read it no further
start disk.qcow2 --control ctl
{ echo '{"command": "quiesce"}'; sleep 2; } | "$QCOW" ctl ctl >/dev/null &
sleep 0.5
(($(stat -c %b m/disk) != 0)) && ok blocks_that_were_not_counted_are_not_holes || bad blocks_that_were_not_counted_are_not_holes "$(stat m/disk)"
wait
end_server
# no memory for the first thread, for some, for all: it works or it fails, and does not wait for itself
stuck=
for room in {15..26} {30..120..10}; do
	run timeout -s KILL 30 bash -c "ulimit -v ${room}000; exec '$QCOW' mount --fork --pid-file pid2 disk.qcow2 n"
	((rc != 137)) || stuck+=" $room"
	umount -l n 2>/dev/null
	[[ ! -s pid2 ]] || gone "$(cat pid2 2>/dev/null)" || stuck+=" $room"
done
[[ -z $stuck ]] && ok little_memory_for_threads || bad little_memory_for_threads "MB:$stuck $(shown)"

# ---- writing ----
start -w disk.qcow2 --control ctl
[[ $(stat -c %a m/disk) == 600 ]] && ok the_disk_is_writable || bad the_disk_is_writable
run dd if=/dev/urandom of=part bs=64k count=20 status=none
expect dd_writes 0 dd if=part of=m/disk bs=37k seek=7 conv=notrunc,fsync status=none
dd if=part of=want.raw bs=37k seek=7 conv=notrunc status=none
expect dd_writes_directly 0 dd if=part of=m/disk bs=64k seek=300 oflag=direct conv=notrunc status=none
dd if=part of=want.raw bs=64k seek=300 conv=notrunc status=none
before=$(stat -c %b disk.qcow2)
expect a_hole_is_punched 0 fallocate -p -o 1M -l 192k m/disk
run sync m/disk
((rc == 0 && $(stat -c %b disk.qcow2) < before)) && ok and_gives_up_space || bad and_gives_up_space "$before $(stat disk.qcow2)"
run holes.py m/disk
grep -q '1048576, 1245184\|(1114112\|(1179648' out && bad and_is_a_hole "$(shown)" || ok and_is_a_hole
expect zeros_are_stored 0 fallocate -z -n -o 30M -l 100k m/disk
for range in '1048576 196608' '31457280 102400'; do
	python3 -c 'import sys; f = open("want.raw", "r+b"); f.seek(int(sys.argv[1])); f.write(bytes(int(sys.argv[2])))' $range
done
same a_read_sees_all_of_it want.raw m/disk
says space_cannot_be_reserved 1 '*not supported*' fallocate -o 0 -l 1M m/disk
says the_disk_ends 1 '*No space left*' dd if=part of=m/disk bs=64k seek=1020 conv=notrunc status=none
dd if=part of=want.raw bs=64k seek=1020 count=4 conv=notrunc status=none
run truncate -s 65M m/disk
((rc != 0)) && ok without_grow_it_does_not || bad without_grow_it_does_not
# O_TRUNC is refused, and takes nothing from who has the disk mapped
python3 - <<'PY' && ok nor_is_it_emptied || bad nor_is_it_emptied "$(shown)"
import mmap, os
fd = os.open("m/disk", os.O_RDWR)
pages = mmap.mmap(fd, 1 << 20, offset=16 << 20)
old = pages[:5]
pages[:5] = b"dirty"
try:
    os.open("m/disk", os.O_WRONLY | os.O_TRUNC)
    raise SystemExit("the disk was opened with O_TRUNC")
except PermissionError:
    pass
pages.flush()
assert os.pread(fd, 5, 16 << 20) == b"dirty"
pages[:5] = old
pages.flush()
PY
same as_it_was_when_it_was_made first.raw m/snapshots/first
expect a_snapshot_by_the_socket 0 "$QCOW" ctl ctl snapshot-create name=live
expect a_bitmap_by_the_socket 0 "$QCOW" ctl ctl bitmap-add bitmap=fresh
sleep 1.1
same it_is_the_disk_of_that_moment want.raw m/snapshots/live
expect the_disk_goes_on 0 dd if=part of=m/disk bs=64k seek=500 conv=notrunc status=none
cp want.raw live.raw
dd if=part of=want.raw bs=64k seek=500 conv=notrunc status=none
same and_the_snapshot_stays live.raw m/snapshots/live
grep -q '"start": 32768000, "length": 1310720, "dirty": true' m/bitmaps/fresh.json && ok the_new_bitmap_records || bad the_new_bitmap_records "$(cat m/bitmaps/fresh.json)"
# who holds the disk back
python3 - <<'PY' >out 2>&1 && ok a_quiesce_holds_writers_back_and_nobody_who_looks || bad a_quiesce_holds_writers_back_and_nobody_who_looks "$(<out)"
import json, os, socket, threading, time
s = socket.socket(socket.AF_UNIX)
s.connect("ctl")
stream = s.makefile("rw")
def ask(command):
    stream.write(json.dumps({"command": command}) + "\n")
    stream.flush()
    reply = json.loads(stream.readline())
    assert reply["ok"], reply
def write(i, fd, data):
    os.pwrite(fd, data, 500 * 65536)
    written.append(i)
ask("quiesce")
fd, written = os.open("m/disk", os.O_WRONLY), []
with open("part", "rb") as f:
    data = f.read(65536)
threads = [threading.Thread(target=write, args=(i, fd, data)) for i in range(3)]
for thread in threads:
    thread.start()
time.sleep(0.3)
n = sum(os.stat(os.path.join(at, name)).st_size > 0 for at, _, names in os.walk("m") for name in names)
assert n >= 6, n
assert not written, "%d have written" % len(written)
ask("resume")
for thread in threads:
    thread.join()
assert len(written) == 3
PY
exec 8<m/snapshots/live
says an_open_snapshot_stays 1 '*is open*' "$QCOW" ctl ctl snapshot-delete name=live
expect or_goes_by_force 0 "$QCOW" ctl ctl snapshot-delete name=live hard
dd iflag=direct bs=4k count=1 status=none of=/dev/null <&8 2>/dev/null; rc=$?
((rc != 0)) && ok who_has_it_open_gets_an_error || bad who_has_it_open_gets_an_error "$(shown)"
exec 8<&-
sleep 1.1
[[ ! -e m/snapshots/live ]] && ok its_file_is_gone || bad its_file_is_gone
expect resized_by_the_socket 0 "$QCOW" ctl ctl resize size=80M
truncate -s 80M want.raw
for i in {1..40}; do (($(stat -c %s m/disk) == 83886080)) && break; sleep 0.1; done
same the_file_is_longer want.raw m/disk
says no_other_image 1 '*one image*' "$QCOW" ctl ctl export-add name=x file=below.qcow2
end_server
expect the_disk_is_what_was_written 0 "$QEMU_IMG" compare disk.qcow2 want.raw
sound disk.qcow2 'after it was written to'

# ---- growing; one file over a file; options; umount ----
touch over.raw
m=over.raw start -w --grow --file -o umask=022 disk.qcow2
[[ $(stat -c '%a %F' over.raw) == '644 regular file' ]] && ok a_file_over_a_file || bad a_file_over_a_file "$(stat over.raw)"
same with_that_content want.raw over.raw
expect it_grows 0 truncate -s 96M over.raw
run truncate -s 1M over.raw
((rc != 0)) && ok and_never_shrinks || bad and_never_shrinks
truncate -s 96M want.raw
same and_the_rest_is_zeros want.raw over.raw
expect qemu_writes_to_it 0 "$QEMU_IO" -f raw -c 'write -P 9 90M 1M' -c 'write -z -u 1M 64k' -c 'discard 8M 64k' -c flush over.raw
"$QEMU_IO" -f raw -c 'write -P 9 90M 1M' -c 'write -z 1M 64k' -c 'discard 8M 64k' want.raw >/dev/null
umount over.raw
gone "$server" && ok umount_ends_the_server || bad umount_ends_the_server
server=
expect all_of_it_is_there 0 "$QEMU_IMG" compare disk.qcow2 want.raw
sound disk.qcow2 'after an umount'
touch view.raw
m=view.raw start --file=chain/2 disk.qcow2
same another_view_over_a_file below.raw view.raw
end_server
# with a file open: who has it open gets errors, and the server ends
start disk.qcow2
exec 8<m/disk
end_server
dd iflag=direct bs=4k count=1 status=none of=/dev/null <&8 2>/dev/null; rc=$?
((rc != 0)) && ok the_server_ends_below_an_open_file || bad the_server_ends_below_an_open_file "$(shown)"
exec 8<&-
# as mount(8) runs it
ln -s "$QCOW" mount.qcow
others= # fuse.conf may forbid it to users
[[ $(id -u) != 0 ]] || others=,allow_other
expect mount_qcow 0 ./mount.qcow disk.qcow2 m -o "rw,noauto,x-some=thing,umask=000,fsname=ab,nodev$others"
[[ $(stat -c %a m/disk) == 666 ]] && grep -q " $PWD/m fuse.qcow .*nodev.*${others#,}" /proc/mounts && ok its_options || bad its_options "$(grep "$PWD/m" /proc/mounts) $(stat m/disk)"
expect umount 0 umount m
for i in {1..100}; do "$QEMU_IMG" info disk.qcow2 >/dev/null 2>&1 && break; sleep 0.1; done
says a_mount_point_must_be_there 1 '*No such file*' "$QCOW" mount disk.qcow2 nowhere
says and_a_folder 1 '*no folder*' "$QCOW" mount disk.qcow2 view.raw
says an_unknown_option 1 '*unknown option*' "$QCOW" mount -o nonsense disk.qcow2 m
says one_writer 1 '*' bash -c '"$QCOW" mount -w --fork --pid-file pid2 disk.qcow2 m && "$QCOW" mount -w disk.qcow2 n; rc=$?; kill $(<pid2); exit $rc'
rm -f pid2
umount m 2>/dev/null
# what mount(8) says to it, and what fstab(5) says to mount(8)
words=relatime,strictatime,lazytime,_netdev,nofail,x-systemd.automount,x-systemd.device-timeout=10,X-mount.mkdir
expect mount_qcow_fake 0 ./mount.qcow disk.qcow2 m -f -n -s -v -t fuse.qcow -o "rw,$words"
grep -q " $PWD/m " /proc/mounts && bad and_nothing_is_mounted || ok and_nothing_is_mounted
says but_wrong_options_are_seen 1 '*umask*' ./mount.qcow disk.qcow2 m -f -o umask=9
by_mount8() { # TYPE: in a namespace where the program is the helper of mount(8)
	mkdir -p sbin
	ln -sf "$QCOW" "sbin/mount.$1"
	expect "mount -t $1" 0 unshare -m bash -c '
		set -e
		mount --bind sbin /usr/sbin
		mount -f -t "$1" -o "ro,$2" disk.qcow2 "$PWD/m"
		[[ ! -e m/disk ]]
		mount -t "$1" -o "ro,umask=022,$2" disk.qcow2 "$PWD/m"
		[[ $(stat -c %a m/disk) == 444 ]]
		umount m' - "$1" "$words"
	rm -r sbin
	for i in {1..100}; do "$QEMU_IMG" info disk.qcow2 >/dev/null 2>&1 && break; sleep 0.1; done
}
if [[ $(id -u) == 0 ]]; then
	by_mount8 qcow
	by_mount8 fuse.qcow
else
	echo 'SKIP helpers of mount(8) need root'
fi

# ---- a write with O_DSYNC is a flush: it outlives a server that is killed ----
create dsync.qcow2 8M
start -w dsync.qcow2
expect written_with_dsync 0 dd if=part of=m/disk bs=64k count=16 oflag=dsync conv=notrunc status=none
kill -9 "$server"
gone "$server"
umount -l m 2>/dev/null || fusermount3 -u -z m
server=
same it_is_in_the_image <(head -c 1M part) <("$QEMU_IMG" dd -U -f qcow2 -O raw if=dsync.qcow2 of=dsync.raw bs=1M count=1 >/dev/null 2>&1; cat dsync.raw)

# ---- partitions, which overlap the disk ----
python3 "$parts" parts.raw gpt.raw
for at in 1 2 5 7; do io -f raw -c "write -P $at ${at}M 300k" parts.raw; done
"$QEMU_IMG" convert -f raw -O qcow2 parts.raw parts.qcow2
start -w parts.qcow2
[[ $(cd m/partitions && stat -c %n:%s p*) == $'p1:2097152\np2:10485760\np5:1048576\np6:2097152' ]] && ok partitions_are_files ||
	bad partitions_are_files "$(ls -l m/partitions)"
for part in p1:2048:4096 p2:8192:20480 p5:10240:2048 p6:14336:4096; do
	IFS=: read -r name first count <<<"$part"
	same "$name has its part of the disk" <(dd if=parts.raw bs=512 skip="$first" count="$count" status=none) "m/partitions/$name"
done
exec 7<>m/disk 8<>m/partitions/p1
head -c 4096 m/disk >/dev/null
dd if=m/disk bs=64k skip=16 count=1 status=none >/dev/null
dd if=part of=m/partitions/p1 bs=64k count=1 conv=notrunc status=none
for i in {1..50}; do cmp -s <(dd if=m/disk bs=64k skip=16 count=1 status=none) <(head -c 64k part) && break; sleep 0.02; done
same what_a_partition_gets_the_disk_shows <(head -c 64k part) <(dd if=m/disk bs=64k skip=16 count=1 status=none)
dd if=/dev/zero of=m/disk bs=64k seek=16 count=1 conv=notrunc status=none
for i in {1..50}; do cmp -s <(head -c 64k /dev/zero) <(head -c 64k m/partitions/p1) && break; sleep 0.02; done
same and_the_other_way_round <(head -c 64k /dev/zero) <(head -c 64k m/partitions/p1)
exec 7<&- 8<&-
end_server
sound parts.qcow2 'after its partitions were written to'

# ---- names that are no file names ----
create names.qcow2 1M
for name in x/y . .. 'with space' '%41' $'new\nline' $'\xff\xfe' twin $'\u202ertl'; do "$QEMU_IMG" snapshot -c "$name" names.qcow2; done
for name in ../up b. ''; do [[ -z $name ]] || "$QEMU_IMG" bitmap --add names.qcow2 "$name"; done
"$QEMU_IMG" snapshot -c aaaa names.qcow2
"$QEMU_IMG" snapshot -c bbbb names.qcow2
python3 - <<'PY'
image = open("names.qcow2", "r+b")
data = bytearray(image.read())
at = data.rindex(b"aaaa")
data[at:at + 4] = b"twin"  # a second one of that name
at = data.rindex(b"bbbb")
data[at:at + 4] = b"\0\0\0\0"  # an empty name
image.seek(0)
image.write(data)
PY
start names.qcow2
(cd m/snapshots && printf '%q\n' * | LC_ALL=C sort) >out
LC_ALL=C sort >names.want <<'EOT'
%2541
%2E
%2E.
%FF%FE
%id=11
new%0Aline
twin
twin%id=10
with\ space
x%2Fy
EOT
grep -v rtl out >names.got
same hostile_names_are_encoded names.want names.got
[[ $(ls m/bitmaps | tr '\n' ' ') == '%2E.%2Fup.json b..json ' ]] && ok and_those_of_bitmaps || bad and_those_of_bitmaps "$(ls m/bitmaps)"
for file in m/snapshots/*; do cmp -s -n 1048576 "$file" /dev/zero || bad "$file is read"; done
end_server

# ---- as many snapshots as there may be: none is open before it is read ----
create many.qcow2 1M
io -c 'write -P 6 0 64k' many.qcow2
"$QEMU_IMG" snapshot -c a many.qcow2
python3 - <<'PY'
import struct
data = bytearray(open("many.qcow2", "rb").read())
l1 = struct.unpack_from(">QI", data, struct.unpack_from(">Q", data, 64)[0])
end = -(-len(data) // 65536) * 65536
table = bytearray()
for i in range(65536):
    id, name = b"%d" % (i + 1), b"snap%d" % i
    entry = struct.pack(">QIHHIIQIIQQ", *l1, len(id), len(name), 0, 0, 0, 0, 16, 0, 1 << 20) + id + name
    table += entry + bytes(-len(entry) % 8)
struct.pack_into(">IQ", data, 60, 65536, end)
open("many.qcow2", "wb").write(data + bytes(end - len(data)) + table)
PY
start many.qcow2
(($(ls m/snapshots | wc -l) == 65536)) && ok all_snapshots_are_files || bad all_snapshots_are_files
find m/snapshots -type f -size 1048576c | wc -l >out
(($(<out) == 65536)) && ok each_has_its_length || bad each_has_its_length "$(<out)"
same one_is_read <(dd if=/dev/zero bs=64k count=1 status=none | tr '\0' '\6') <(head -c 65536 m/snapshots/snap65535)
for i in {1..100}; do (($(ls "/proc/$server/fd" | wc -l) < 16)) && break; sleep 0.05; done
(($(ls "/proc/$server/fd" | wc -l) < 16)) && ok and_closed || bad and_closed "$(ls -l "/proc/$server/fd")"
end_server

# ---- a bitmap with thousands of runs: what is told of it is held for who has it open, with a limit for all of them ----
create -o cluster_size=4k runs.qcow2 32M
"$QEMU_IMG" bitmap --add -g 512 runs.qcow2 marks
start -w runs.qcow2
python3 - "$server" <<'PY' >out 2>&1 && ok texts_have_a_limit || bad texts_have_a_limit "$(<out)"
import os, sys
fd = os.open("m/disk", os.O_WRONLY)
for i in range(20000):
    os.pwrite(fd, b"x" * 512, i * 1536)
os.close(fd)
size = os.stat("m/bitmaps/marks.json").st_size
assert size > 2 << 20, size
held = []
try:
    for i in range(400):
        held.append(os.open("m/bitmaps/marks.json", os.O_RDONLY))
except OSError as e:
    assert e.errno == 12, e
assert 128 // (1 + (size >> 20)) - 2 <= len(held) < 128 * 1048576 // size + 1, (len(held), size)
with open("/proc/%s/status" % sys.argv[1]) as f:
    rss = [int(line.split()[1]) for line in f if line.startswith("VmRSS")][0]
assert os.environ.get("QCOW_SANITIZED") or rss < 300 << 10, rss
for f in held:
    assert len(os.pread(f, 100, size - 100)) == 100
    os.close(f)
for _ in range(100):
    os.close(os.open("m/bitmaps/marks.json", os.O_RDONLY))
PY
end_server

# ---- an export that is not there for a while: who needs it waits, and nobody else ----
below() {
	rm -f below.pid below.sock
	"$QCOW" serve -t -f raw -k "$PWD/below.sock" --pid-file below.pid --fork below.raw
}
truncate -s 16M below.raw
below
start -w --image-opts "driver=raw,file.driver=nbd,file.path=$PWD/below.sock,file.reconnect-delay=600"
stat -f m >out
kill -9 "$(<below.pid)"
gone "$(<below.pid)"
rm below.pid
dd if=disk.qcow2 of=m/disk bs=4k count=1 conv=notrunc,fsync 2>dd.out &
writer=$!
sleep 0.5
expect others_do_not_wait_for_a_write_that_waits 0 timeout 60 stat -f m
kill -0 $writer 2>/dev/null && ok it_waits || bad it_waits "$(<dd.out)"
below
wait $writer && cmp -n 4096 disk.qcow2 below.raw && ok and_it_was_written || bad and_it_was_written "$(<dd.out)"
end_server
kill "$(<below.pid)" && rm -f below.pid
finish
