#!/bin/bash
# SPDX-License-Identifier: MIT
# libguestfs, unchanged, with our programs first on PATH: guestfish, virt-df, virt-cat, virt-sparsify, virt-resize and virt-make-fs make,
# copy and read disks in their small machine (by TCG, on the kernel that tools/peers/guest fetched). Half of it runs with QEMU's
# programs too: the same command lines reach them, and images of the same kind come of it. What was uploaded is read back from every
# disk. The environment as for tests/cli; QCOW_COMPAT names the folder with our programs.
source "$(dirname "$0")/../cli/lib.sh"
need_qemu
have_new_qemu || exit 77
for program in guestfish virt-df virt-cat virt-sparsify virt-resize virt-make-fs depmod; do
	command -v "$program" >/dev/null || skip_all "$program is not there (tools/packages callers)"
done
guest=${XDG_CACHE_HOME:-$HOME/.cache}/qcowkit-peers/guest
[[ -s $guest/vmlinuz ]] || skip_all "the guest's kernel is not there"
# supermin looks at this folder, whatever kernel it is told to take
[[ -d /lib/modules ]] || mkdir /lib/modules 2>/dev/null || skip_all "there is no /lib/modules"
version=$(strings "$guest/vmlinuz" | grep -oE '^[0-9]+\.[0-9.]+-[0-9]+-cloud-amd64' | head -n 1)
export SUPERMIN_KERNEL=$guest/vmlinuz SUPERMIN_KERNEL_VERSION=$version SUPERMIN_MODULES=$work/kernel/lib/modules/$version
export LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg LIBGUESTFS_CACHEDIR=$work/cache TMPDIR=$work/tmp
mkdir -p "$SUPERMIN_MODULES" cache tmp tree
ln -s "$guest/modules" "$SUPERMIN_MODULES/kernel"
depmod -b "$work/kernel" "$version" 2>/dev/null

# sides a (ours) and b (the QEMU that this libguestfs comes with): a folder, and a qemu-img that tells what it is called with
for side in a b; do
	mkdir -p $side/bin
	real=$QCOW_COMPAT/qemu-img
	[[ $side == a ]] || real=$QEMU_IMG
	cat >$side/bin/qemu-img <<-EOS
		#!/bin/bash
		printf '%s\n' "\$*" >>$work/$side/calls
		exec "$real" "\$@" 2> >(tee -a $work/$side/said >&2)
	EOS
	chmod 755 $side/bin/qemu-img
done
# on SIDE NAME COMMAND…: in its folder; the output is in $work/out
on() {
	local side=$1 name=$2
	shift 2
	run env -C "$work/$side" PATH="$work/$side/bin:$PATH" timeout 900 "$@"
	if [[ $rc == 0 ]]; then ok "$name ($side)"; else bad "$name ($side)" "$* $(shown)"; fi
}
has_out() { # NAME TEXT…
	local name=$1 text
	shift
	for text in "$@"; do
		grep -qF -- "$text" out || { bad "$name" "no '$text': $(shown)"; return; }
	done
	ok "$name"
}

head -c 3000000 /dev/urandom >tree/noise
seq 200000 >tree/numbers
sums=("$(sha256sum <tree/noise | cut -d ' ' -f 1)" "$(sha256sum <tree/numbers | cut -d ' ' -f 1)")
cat >made.fish <<EOS
disk-create base.qcow2 qcow2 256M compat:1.1 clustersize:65536 preallocation:off
disk-create top.qcow2 qcow2 -1 backingfile:base.qcow2 backingformat:qcow2
disk-create old.qcow2 qcow2 64M preallocation:metadata compat:0.10
disk-create small.qcow2 qcow2 64M clustersize:4096
disk-create full.img raw 16M preallocation:full
disk-create sparse.img raw 16M preallocation:sparse
add base.qcow2
add old.qcow2 format:qcow2
add small.qcow2
run
part-disk /dev/sda mbr
mkfs ext4 /dev/sda1
mount /dev/sda1 /
upload $work/tree/noise /noise
upload $work/tree/numbers /numbers
umount /
part-disk /dev/sdb gpt
mkfs ext2 /dev/sdb1
mount /dev/sdb1 /
upload $work/tree/numbers /numbers
umount /
pvcreate /dev/sdc
sync
shutdown
EOS
for side in a b; do
	on $side 'guestfish makes disks' guestfish -f "$work/made.fish"
	on $side 'virt-sparsify' virt-sparsify --compress --convert qcow2 base.qcow2 thin.qcow2
	on $side 'qemu-img create' qemu-img create -f qcow2 -o preallocation=metadata bigger.qcow2 320M
	on $side 'virt-resize' virt-resize --expand /dev/sda1 base.qcow2 bigger.qcow2
	on $side 'virt-make-fs' virt-make-fs --format=qcow2 --type=ext4 --size=+20M "$work/tree" fs.qcow2
done

# the same lines, but for names that are drawn
plain() { sed -E "s,$work/[ab],HERE,g; s,[^ =]*/(tmp|libguestfs)[^ ,]*,DRAWN,g; s,[0-9a-f-]{32\,},DRAWN,g; s,sparsify[A-Za-z0-9]*,DRAWN,g" "$1"; }
plain a/calls >a.calls
plain b/calls >b.calls
same 'the same command lines' a.calls b.calls
for command in create convert info; do
	if grep -q "^$command " a.calls; then ok "qemu-img $command was ours"; else bad "qemu-img $command was ours" "$(<a.calls)"; fi
done
[[ ! -s a/said ]] && ok 'nothing on stderr' || bad 'nothing on stderr' "$(<a/said)"
for image in base top old small thin bigger fs; do
	for side in a b; do
		"$QEMU_IMG_NEW" info --output=json $side/$image.qcow2 | python3 -c '
import json, sys
i = json.load(sys.stdin)
print({k: i.get(k) for k in ("virtual-size", "cluster-size", "backing-filename", "backing-filename-format", "format-specific")})' >$side.info
	done
	# how large virt-make-fs makes a disk is its own estimate
	[[ $image == fs ]] || same "$image.qcow2 is of the same kind" a.info b.info
	for img in "$QEMU_IMG_NEW" "$QCOW_COMPAT/qemu-img"; do
		run "$img" check -q a/$image.qcow2
		if [[ $rc == 0 ]]; then ok "$image.qcow2 is clean"; else bad "$image.qcow2 is clean" "$(shown)"; fi
	done
done
(($(stat -c %s a/thin.qcow2) < $(stat -c %s b/thin.qcow2) + 300000)) && ok 'as thin' || bad 'as thin' "$(stat -c '%n %s' ?/thin.qcow2)"

# everything that was made is read, with the disks of ours
cat >read.fish <<EOS
add thin.qcow2 readonly:true
add bigger.qcow2
add fs.qcow2 readonly:true format:qcow2
add top.qcow2
add old.qcow2 readonly:true
run
mount-ro /dev/sda1 /
checksum sha256 /noise
checksum sha256 /numbers
umount /
mount /dev/sdb1 /
checksum sha256 /noise
rm /noise
umount /
mount-ro /dev/sdc /
checksum sha256 /numbers
umount /
mount /dev/sdd1 /
checksum sha256 /noise
cp /numbers /more
umount /
mount-ro /dev/sde1 /
checksum sha256 /numbers
umount /
blockdev-getsize64 /dev/sdb
sync
shutdown
EOS
on a 'guestfish reads disks' guestfish -f "$work/read.fish"
printf '%s\n' "${sums[0]}" "${sums[1]}" "${sums[0]}" "${sums[1]}" "${sums[0]}" "${sums[1]}" 335544320 >want
same 'what was uploaded is on every disk' want out
on a 'virt-sparsify --in-place' virt-sparsify --in-place bigger.qcow2
on a 'virt-df' virt-df --csv -a top.qcow2
has_out 'virt-df sees the file system' 'top.qcow2,/dev/sda1,'
on a 'virt-cat' virt-cat -a top.qcow2 -m /dev/sda1 /more
same 'virt-cat prints the file' tree/numbers out
for image in top bigger; do
	run "$QEMU_IMG_NEW" check a/$image.qcow2
	if [[ $rc == 0 ]]; then ok "$image.qcow2 is clean in the end"; else bad "$image.qcow2 is clean in the end" "$(shown)"; fi
done
# without a machine: libguestfs asks qemu-img
cat >ask.fish <<EOS
disk-format top.qcow2
disk-virtual-size top.qcow2
disk-has-backing-file top.qcow2
disk-has-backing-file base.qcow2
disk-format full.img
disk-virtual-size small.qcow2
EOS
for side in a b; do
	on $side 'guestfish asks' guestfish -f "$work/ask.fish"
	cp out $side.asked
done
same 'the same answers' a.asked b.asked
finish
