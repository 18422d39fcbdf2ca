#!/bin/bash
# SPDX-License-Identifier: MIT
# Programs that make images, and libnbd, from Debian's packages as they are, with our programs first on PATH: vmdb2, cloud-localds and
# genimage run whole, without a network; of diskimage-builder the function that writes the image, since what it would put into one comes
# from the network; nbdcopy, nbdinfo and libnbd's Python start qemu-nbd themselves. QEMU's tools judge what came of it.
# The environment as for tests/cli; QCOW_COMPAT names the folder with our programs.
source "$(dirname "$0")/../cli/lib.sh"
need_qemu
mkdir bin
for name in qemu-img qemu-nbd; do
	printf '#!/bin/bash\nprintf "%%s\\n" "%s $*" >>%s/calls\nexec -a %s %s/%s "$@"\n' $name "$work" $name "$QCOW_COMPAT" $name >bin/$name
done
chmod 755 bin/*
: >calls
export PATH=$work/bin:$PATH:/usr/sbin:/sbin
there() { # PROGRAM…
	local program
	for program; do
		command -v "$program" >/dev/null && continue
		echo "SKIP $program is not there (tools/packages callers)"
		return 1
	done
}
ours() { # NAME WORDS: a call that begins so
	if grep -q "^$2" calls; then ok "$1"; else bad "$1" "$(<calls)"; fi
}
is_disk() { # NAME RAW IMAGE FORMAT: clean, and the same bytes
	run "$QEMU_IMG" compare -f raw -F "$4" "$2" "$3"
	if [[ $rc == 0 ]]; then ok "$1: the disk"; else bad "$1: the disk" "$(shown)"; fi
	[[ $4 == qcow2 ]] || return 0
	run "$QEMU_IMG" check -q "$3"
	if [[ $rc == 0 ]]; then ok "$1: clean"; else bad "$1: clean" "$(shown)"; fi
}
head -c 3000000 /dev/urandom >noise
seq 300000 >numbers
cat noise numbers >raw
truncate -s 8M raw

if there vmdb2 parted; then
	printf 'steps:\n- mkimg: "{{ output }}"\n  size: 64M\n- mklabel: gpt\n  device: "{{ output }}"\n' >spec.vmdb
	printf -- '- mkpart: primary\n  device: "{{ output }}"\n  start: 10%%\n  end: 100%%\n  tag: root\n' >>spec.vmdb
	run vmdb2 spec.vmdb --output "$work/vmdb.img"
	if [[ $rc == 0 ]]; then ok 'vmdb2 makes an image'; else bad 'vmdb2 makes an image' "$(shown)"; fi
	ours 'vmdb2 ran qemu-img create' "qemu-img create -f raw $work/vmdb.img 64M"
	[[ $(stat -c %s vmdb.img) == 67108864 ]] && ok 'of its size' || bad 'of its size'
	grep -q 'gpt' <(parted -ms vmdb.img print) && ok 'with a partition table' || bad 'with a partition table'
fi

lib=/usr/lib/python3/dist-packages/diskimage_builder/lib
if [[ -f $lib/img-functions ]]; then
	for how in '-c:' ':' '-c:compat=0.10' ':preallocation=metadata'; do
		rm -f dib.qcow2*
		cp raw dib.raw
		expect "diskimage-builder writes an image: $how" 0 env IMAGE_TYPE=qcow2 IMAGE_NAME=dib TMP_IMAGE_PATH="$work/dib.raw" \
			COMPRESS_IMAGE="${how%%:*}" QEMU_IMG_OPTIONS="${how#*:}" \
			bash -c "source $lib/common-functions; source $lib/img-functions; compress_and_save_image dib.qcow2"
		is_disk "diskimage-builder $how" raw dib.qcow2 qcow2
	done
	ours 'diskimage-builder ran qemu-img convert' 'qemu-img convert -c -f raw -O qcow2'
else
	echo 'SKIP diskimage-builder is not there (tools/packages callers)'
fi

if there cloud-localds genisoimage; then
	printf '#cloud-config\npassword: x\n' >user-data
	expect 'cloud-localds' 0 cloud-localds seed.raw user-data
	: >calls
	expect 'cloud-localds -d qcow2' 0 cloud-localds -d qcow2 seed.qcow2 user-data
	ours 'cloud-localds ran qemu-img convert' 'qemu-img convert -f raw -O qcow2'
	run "$QEMU_IMG" check -q seed.qcow2
	[[ $rc == 0 ]] && ok 'its seed is clean' || bad 'its seed is clean' "$(shown)"
	"$QEMU_IMG" convert -O raw seed.qcow2 seed.out
	grep -qa 'cloud-config' seed.out && ok 'and has the data' || bad 'and has the data'
fi

if there genimage; then
	mkdir -p gen/root gen/in gen/out gen/tmp
	cp raw gen/in/part
	cat >gen/cfg <<-EOS
		image disk.qcow2 {
			qemu { format = "qcow2" extraargs = "-o compat=1.1,cluster_size=4k" }
			partition one { image = "part" partition-type = 0x83 }
			partition two { image = "part" partition-type = 0x83 }
		}
		image disk.raw { qemu { format = "raw" } partition one { image = "part" partition-type = 0x83 } }
	EOS
	run genimage --config gen/cfg --rootpath gen/root --inputpath gen/in --outputpath gen/out --tmppath gen/tmp/t
	if [[ $rc == 0 ]]; then ok 'genimage'; else bad 'genimage' "$(shown)"; fi
	ours 'genimage ran qemu-img' 'qemu-img '
	run "$QEMU_IMG" check -q gen/out/disk.qcow2
	[[ $rc == 0 ]] && ok 'its image is clean' || bad 'its image is clean' "$(shown)"
	"$QEMU_IMG" convert -O raw gen/out/disk.qcow2 gen/disk
	cmp -s gen/disk <(cat raw raw) && ok 'and has its parts' || bad 'and has its parts' "$(<calls)"
fi

"$QCOW_COMPAT/qemu-img" convert -c -f raw -O qcow2 raw src.qcow2
"$QCOW_COMPAT/qemu-img" bitmap --add src.qcow2 marks
io -c 'write -P 7 1M 64k' src.qcow2
"$QEMU_IMG" convert -O raw src.qcow2 now.raw
if there nbdcopy nbdinfo; then
	expect 'nbdcopy from qemu-nbd that it starts' 0 nbdcopy -- [ qemu-nbd -r -f qcow2 src.qcow2 ] copied.raw
	same 'nbdcopy: the disk' now.raw copied.raw
	create target.qcow2 8M
	expect 'nbdcopy to qemu-nbd' 0 nbdcopy -- now.raw [ qemu-nbd -f qcow2 --discard=unmap --detect-zeroes=unmap target.qcow2 ]
	is_disk 'nbdcopy to qemu-nbd' now.raw target.qcow2 qcow2
	create second.qcow2 8M
	expect 'nbdcopy from one to another' 0 nbdcopy --flush -- [ qemu-nbd -r -f qcow2 src.qcow2 ] [ qemu-nbd -f qcow2 second.qcow2 ]
	is_disk 'nbdcopy from one to another' now.raw second.qcow2 qcow2
	run nbdinfo --json -- [ qemu-nbd -r -f qcow2 -B marks src.qcow2 ]
	if [[ $rc == 0 && $(<out) == *'"export-size": 8388608'* && $(<out) == *'qemu:dirty-bitmap:marks'* ]]; then ok 'nbdinfo --json'
	else bad 'nbdinfo --json' "$(shown)"; fi
	expect 'nbdinfo --map' 0 nbdinfo --map -- [ qemu-nbd -r -f qcow2 src.qcow2 ]
	expect 'nbdinfo --map of a bitmap' 0 nbdinfo --map=qemu:dirty-bitmap:marks -- [ qemu-nbd -r -f qcow2 -B marks src.qcow2 ]
	grep -qE '^ *1048576 +65536 +1' out && ok 'it has what was written' || bad 'it has what was written' "$(shown)"
	ours 'qemu-nbd was ours' 'qemu-nbd -r -f qcow2 src.qcow2'
fi
if [[ ! -r /dev/fuse || ! -w /dev/fuse ]]; then
	echo 'SKIP there is no FUSE here'
elif there nbdfuse; then
	create fused.qcow2 8M
	mkdir mnt
	nbdfuse -P nbdfuse.pid mnt/disk [ qemu-nbd -f qcow2 fused.qcow2 ] 2>fuse.err &
	for _ in {1..400}; do
		[[ ! -s nbdfuse.pid ]] || break
		sleep 0.05
	done
	if [[ -s nbdfuse.pid ]]; then ok 'nbdfuse mounts'; else bad 'nbdfuse mounts' "$(<fuse.err)"; fi
	expect 'a file of nbdfuse is written' 0 dd if=now.raw of=mnt/disk bs=64k conv=notrunc,fsync status=none
	same 'and read' now.raw mnt/disk
	umount mnt 2>/dev/null || fusermount3 -u mnt
	gone $! && ok 'nbdfuse ends' || bad 'nbdfuse ends' "$(<fuse.err)"
	is_disk 'nbdfuse' now.raw fused.qcow2 qcow2
fi
cat >with_nbd.py <<'EOS'
import nbd
seen = []
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:dirty-bitmap:marks")
h.add_meta_context("qemu:allocation-depth")
h.connect_systemd_socket_activation(["qemu-nbd", "-f", "qcow2", "-A", "-B", "marks", "--discard=unmap", "src.qcow2"])
assert h.get_size() == 8 << 20 and h.can_trim() and h.can_flush() and h.can_zero() and h.can_multi_conn() is not None
assert h.pread(65536, 1 << 20) == b"\7" * 65536
h.pwrite(b"\5" * 100000, 3 << 20)
h.zero(1 << 20, 2 << 20)
h.trim(1 << 20, 5 << 20)
c = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"\6" * 512)), 7 << 20)
while not h.aio_command_completed(c):
    h.poll(-1)
h.flush()
h.block_status(8 << 20, 0, lambda name, off, extents, err: seen.append((name, off, extents)) or 0)
assert {s[0] for s in seen} == {"base:allocation", "qemu:dirty-bitmap:marks", "qemu:allocation-depth"}, seen
assert all(sum(s[2][::2]) >= 1 << 20 for s in seen), seen
h.shutdown()
with open("now.raw", "r+b") as f:
    for off, data in ((3 << 20, b"\5" * 100000), (2 << 20, bytes(1 << 20)), (5 << 20, bytes(1 << 20)), (7 << 20, b"\6" * 512)):
        f.seek(off)
        f.write(data)
EOS
if /usr/bin/python3 -c 'import nbd' 2>/dev/null; then
	expect "libnbd's Python with qemu-nbd" 0 /usr/bin/python3 with_nbd.py
	is_disk "libnbd's Python" now.raw src.qcow2 qcow2
else
	echo "SKIP libnbd's Python is not there (tools/packages callers)"
fi
finish
