#!/bin/bash
# SPDX-License-Identifier: MIT
# File systems and fio on the disk of a mounted image: ext4 and XFS by loop devices, ext4 checked on the file itself, by an
# ordinary user too. Usage: filesystems.sh [MEGABYTES]
source "$(dirname "$0")/lib.sh"
size=${1:-320}

# what a file system is filled with, and what it must have afterwards
fill() { # FOLDER
	cp -r "$fuse/../cli" "$1/cli"
	head -c 3M /dev/urandom >"$1/random"
	truncate -s 50M "$1/sparse"
	dd if=/dev/urandom of="$1/sparse" bs=64k seek=77 count=3 conv=notrunc status=none
	rm "$1/cli/lib.sh"
	(cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$work/sums"
	sync -f "$1/random"
}
holds() { (cd "$1" && sha256sum --quiet -c "$work/sums"); }

# ---- on the file itself ----
create disk.qcow2 "${size}M"
start -w disk.qcow2
expect mkfs_on_the_file 0 mkfs.ext4 -q -F m/disk
run e2fsck -fn m/disk
((rc == 0)) && ok fsck_of_the_file || bad fsck_of_the_file "$(shown)"
expect written_without_mounting 0 bash -c 'debugfs -w -R "write $0 file" m/disk >/dev/null 2>&1' "$fuse/lib.sh"
run debugfs -R 'cat file' m/disk
same and_read_back "$fuse/lib.sh" out
end_server
sound disk.qcow2 'with a file system'

# ---- by loop devices ----
by_loop() { # NAME MKFS… : make, mount, fill, unmount, check, mount again from what the image has
	local name=$1 ro=
	shift
	rm -f "$name.qcow2"
	create "$name.qcow2" "${size}M"
	start -w "$name.qcow2"
	expect "$name: mkfs" 0 "$@" m/disk
	expect "$name: mount" 0 mount -o loop,discard m/disk n
	fill n
	expect "$name: it is there" 0 holds n
	rm -r n/cli
	grep -v ' ./cli/' sums >sums.new
	mv sums.new sums
	expect "$name: trimmed" 0 fstrim n
	expect "$name: umount" 0 umount n
	end_server
	sound "$name.qcow2" 'after a file system was used'
	start "$name.qcow2"
	[[ $name != xfs ]] || ro=,norecovery
	expect "$name: mount again" 0 mount -o "loop,ro$ro" m/disk n
	expect "$name: it is still there" 0 holds n
	expect "$name: umount again" 0 umount n
	if [[ $name == xfs ]]; then run xfs_repair -n m/disk; else run e2fsck -fn m/disk; fi
	((rc == 0)) && ok "$name is clean" || bad "$name is clean" "$(shown)"
	end_server
}
loops=1
if [[ $(id -u) != 0 ]]; then
	echo 'SKIP loop devices need root'
	loops=
elif create loop.qcow2 "${size}M" && start -w loop.qcow2 && mkfs.ext4 -q -F m/disk && mount -o loop m/disk n 2>/dev/null; then
	umount n
	end_server
else
	echo 'SKIP no loop device can be had here'
	end_server
	loops=
fi
if [[ -n $loops ]]; then
	by_loop ext4 mkfs.ext4 -q -F
	if grep -qw xfs /proc/filesystems || modprobe -q xfs 2>/dev/null; then by_loop xfs mkfs.xfs -q -f; else echo 'SKIP an XFS file system cannot be mounted: no such file system'; fi
fi

# ---- fio verifies what it wrote ----
create fio.qcow2 64M
start -w fio.qcow2
for how in '--rw=randrw --ioengine=psync --bs=4k' '--rw=randrw --ioengine=libaio --direct=1 --bs=4k --iodepth=16' '--rw=randrw --ioengine=mmap --bs=4k' '--rw=write --ioengine=psync --bs=512-20k --bs_unaligned --fsync=50'; do
	# shellcheck disable=SC2086
	run fio --name=x --filename=m/disk --size=32m --verify=crc32c --verify_fatal=1 --randseed="${QK_SEED:-1}" --allow_file_create=0 --output=fio.out --io_size=24m $how
	((rc == 0)) && ok "fio $how" || bad "fio $how" "$(shown) $(tail -n 20 fio.out)"
done
end_server
sound fio.qcow2 'after fio'

# ---- an ordinary user, where /dev/fuse is open to him ----
as_user() {
	touch of-another
	# root of a namespace of his own cannot either
	if ! chown nobody of-another 2>/dev/null || ! mknod -m 666 fuse c 10 229 2>/dev/null; then echo 'SKIP another user needs root'; return; fi
	command -v fusermount3 >/dev/null || { echo 'SKIP an ordinary user needs fusermount3'; return; }
	mkdir user user/m
	cp disk.qcow2 user/
	cp "$QCOW" user/qcow
	ldd "$QCOW" >/dev/null
	chmod 755 "$work"
	chown -R nobody user
	cat >user/do.sh <<'EOT'
set -e
cd "$1/user"
./qcow mount -w --fork --pid-file pid disk.qcow2 m
[[ $(stat -c %U m/disk) == "$(id -un)" ]]
dd if=/dev/urandom of=part bs=64k count=4 status=none
dd if=part of=m/disk bs=64k seek=3000 conv=notrunc,fsync status=none
cmp -n 262144 part <(dd if=m/disk bs=64k skip=3000 count=4 status=none)
echo written
./qcow mount --file --fork --pid-file pid2 disk.qcow2 part 2>/dev/null && exit 1 # somebody writes it
kill "$(<pid)"
while [[ -e pid ]]; do sleep 0.05; done
./qcow mount --fork disk.qcow2 m
fusermount3 -u m
EOT
	expect as_an_ordinary_user 0 unshare -m bash -c '
		set -e
		mount --bind "$1/fuse" /dev/fuse
		setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups bash user/do.sh "$1"' - "$work"
	grep -qx written out && ok he_has_written || bad he_has_written "$(shown)"
	sound user/disk.qcow2 'after an ordinary user wrote to it'
}
as_user
finish
