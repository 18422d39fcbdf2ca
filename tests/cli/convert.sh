#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow convert, seen from outside: round trips judged by qemu-img, the same bytes for 1 and 8 workers,
# streams, targets that stay, refusals, interruptions, reflinks.
# Usage: QCOW=build/bin/qcow [QCOW_QEMU_IMG=build/compat/qemu-img] tests/cli/convert.sh [TEST]...
# Last line "N passed, N failed, N skipped"; exit status 1 where a test failed. No network. Root and
# mkfs.xfs where file systems are mounted, else those tests are skipped.
set -u
self=$(realpath "$0")
qcow=$(realpath "${QCOW:?the qcow program}")
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
dir=$(mktemp -d "${TMPDIR:-/tmp}/qcow-convert.XXXXXX")
mounts=()
trap 'for m in "${mounts[@]}"; do umount -l "$m"; done; rm -rf "$dir"' EXIT
cd "$dir" || exit 1

peers=(qemu-img)
newest=${QK_PEERS:-$HOME/.cache/qcowkit-peers/bin}/qemu-img
[[ -x $newest ]] && peers+=("$newest")

# ---- words ----

fail() { echo "    $*"; return 1; }
skip() { reason=$*; return 77; }

# run it; it must succeed and write nothing to stderr
ok() {
	"$@" 2>stderr || { fail "failed: $*: $(cat stderr)"; return 1; }
	[[ ! -s stderr ]] || fail "wrote to stderr: $*: $(cat stderr)"
}

# refused WORDS COMMAND...: it must fail with those words and leave nothing called out*
refused() {
	local words=$1
	shift
	if "$@" >stdout 2>stderr; then fail "not refused: $*"; return 1; fi
	grep -qiF -- "$words" stderr || { fail "no '$words' in: $(cat stderr)"; return 1; }
	[[ -z $(ls | grep '^out') ]] || fail "left behind: $(ls | grep '^out')"
}

# an image that every QEMU finds clean and equal to the raw disk $1
image_is() {
	local peer
	for peer in "${peers[@]}"; do
		"$peer" check -q -f qcow2 "$2" >peer.log 2>&1 || { fail "$peer check $2: $(cat peer.log)"; return 1; }
		"$peer" compare -f raw -F qcow2 "$1" "$2" >peer.log 2>&1 ||
			{ fail "$peer compare $2: $(cat peer.log)"; return 1; }
	done
}

# $1 MiB of a disk with text, random bytes, zeros that are stored and holes, ending oddly $3 bytes later
make_disk() {
	local mib=$1 name=$2 odd=${3:-0}
	truncate -s "$((mib * 1048576 + odd))" "$name"
	seq 1 200000 | dd of="$name" bs=64k conv=notrunc status=none
	dd if=/dev/urandom of="$name" bs=64k count=20 seek=40 conv=notrunc status=none
	dd if=/dev/zero of="$name" bs=64k count=10 seek=70 conv=notrunc status=none
	dd if=/dev/urandom of="$name" bs=4k count=3 seek=1601 conv=notrunc status=none
	seq 1 3000 | dd of="$name" bs=1 seek=$((mib * 1048576 + odd - 13893)) conv=notrunc status=none
}

mount_image() { # FSTYPE MIB FOLDER MKFS-OPTION...
	local fs=$1 mib=$2 folder=$3
	shift 3
	truncate -s "${mib}M" "$folder.img"
	mkdir "$folder"
	"mkfs.$fs" -q "$@" "$folder.img" >mkfs.log 2>&1 || { fail "$(cat mkfs.log)"; return 1; }
	mount -o loop "$folder.img" "$folder" || return 1
	mounts+=("$dir/$folder")
}

can_mount() { [[ $(id -u) == 0 ]] && [[ -e /dev/loop-control ]] && command -v "mkfs.$1" >/dev/null; }

# ---- tests ----

round_trip_in_every_mode_is_the_same_for_1_and_8_workers() {
	local mode
	make_disk 24 d.raw
	while read -r mode; do
		# shellcheck disable=SC2086
		rm -f one.qcow2 eight.qcow2 df.raw df1.raw
		# shellcheck disable=SC2086
		ok "$qcow" convert -m 1 -O qcow2 $mode d.raw one.qcow2 || return 1
		[[ ! -f df.raw ]] || cp --sparse=always df.raw df1.raw
		rm -f df.raw
		# shellcheck disable=SC2086
		ok "$qcow" convert -m 8 -O qcow2 $mode d.raw eight.qcow2 || return 1
		cmp one.qcow2 eight.qcow2 || { fail "$mode"; return 1; }
		[[ ! -f df.raw ]] || cmp df.raw df1.raw || { fail "$mode: data file"; return 1; }
		image_is d.raw eight.qcow2 || { fail "$mode"; return 1; }
		ok "$qcow" convert -O raw eight.qcow2 back.raw || return 1
		cmp d.raw back.raw || { fail "$mode: back"; return 1; }
	done <<'MODES'

-c
-c --level 1
-c --level 12 -o cluster_size=4k
-c -o compression_type=zstd
-c --level 9 -o compression_type=zstd
-o compat=0.10
-o cluster_size=512
-o cluster_size=2M
-c -o cluster_size=2M
-c -o cluster_size=512
-o extended_l2=on
-c -o extended_l2=on,cluster_size=32k
-o refcount_bits=1
-c -o refcount_bits=1
-c -o refcount_bits=64
-S 0
-c -S 0
-S 64k
-S 512k
-o preallocation=metadata
-o preallocation=falloc
-o preallocation=full
-o data_file=df.raw
-o data_file=df.raw,data_file_raw=on
-o lazy_refcounts=on
MODES
}

odd_sizes_keep_every_byte() {
	local size
	for size in 1 511 512 513 65535 65536 65537 1000001; do
		head -c "$size" /dev/urandom >d.raw
		ok "$qcow" convert -O qcow2 d.raw i.qcow2 || return 1
		ok "$qcow" convert -c -O qcow2 d.raw c.qcow2 || return 1
		# QEMU counts whole sectors, so the disk of the image ends at one
		cp d.raw padded.raw
		truncate -s %512 padded.raw
		image_is padded.raw i.qcow2 && image_is padded.raw c.qcow2 || return 1
		ok "$qcow" convert -O raw d.raw back.raw && cmp d.raw back.raw || return 1
		ok "$qcow" convert -O raw c.qcow2 back.raw && cmp padded.raw back.raw || return 1
		# an image whose size is odd already, which only we make, keeps it
		python3 -c 'import struct, sys; f = open("c.qcow2", "r+b"); f.seek(24); f.write(struct.pack(">Q", int(sys.argv[1])))' "$size"
		ok "$qcow" convert -O qcow2 c.qcow2 i.qcow2 || return 1
		ok "$qcow" convert -O raw i.qcow2 back.raw && cmp d.raw back.raw || return 1
	done
	: >empty.raw
	ok "$qcow" convert -O qcow2 empty.raw i.qcow2 || return 1
	"${peers[-1]}" check -q i.qcow2 || fail "an empty disk"
}

several_sources_follow_each_other() {
	make_disk 9 a.raw
	make_disk 8 b.raw 12800 # ends within a cluster
	make_disk 8 c.raw
	ok "$qcow" convert -O qcow2 b.raw b.qcow2 || return 1
	cat a.raw b.raw c.raw >want.raw
	ok "$qcow" convert -O qcow2 a.raw b.raw c.raw all.qcow2 && image_is want.raw all.qcow2 || return 1
	ok "$qcow" convert -O raw a.raw b.qcow2 c.raw all.raw && cmp want.raw all.raw || return 1
	ok "$qcow" convert -c -m 3 -O qcow2 a.raw b.qcow2 c.raw all.qcow2 && image_is want.raw all.qcow2
}

overlay_holds_only_what_differs() {
	make_disk 16 base.raw
	ok "$qcow" convert -O qcow2 base.raw base.qcow2 || return 1
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	qemu-io -c 'write -P 7 1M 64k' -c 'write -z 2621440 128k' -c 'write -z 3M 64k' top.qcow2 >/dev/null
	qemu-img convert -O raw top.qcow2 want.raw
	ok "$qcow" convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 new.qcow2 && image_is want.raw new.qcow2 || return 1
	(($(stat -c %s new.qcow2) < 1048576)) || { fail "more than the difference was copied"; return 1; }
	# the base by another name and another layout: compared, not believed
	ok "$qcow" convert -c -O qcow2 base.raw other.qcow2 || return 1
	ok "$qcow" convert -m 8 -O qcow2 -b other.qcow2 -F qcow2 top.qcow2 new.qcow2 && image_is want.raw new.qcow2 || return 1
	(($(stat -c %s new.qcow2) < 1048576)) || { fail "equal clusters were copied"; return 1; }
	# a base with other content must not show through
	make_disk 16 wrong.raw
	ok "$qcow" convert -O qcow2 -B wrong.raw -F raw top.qcow2 new.qcow2 && image_is want.raw new.qcow2 || return 1
	# a base that is shorter, and one that is longer, than the disk
	head -c 5000000 base.raw >short.raw
	ok "$qcow" convert -O qcow2 -B short.raw -F raw top.qcow2 new.qcow2 && image_is want.raw new.qcow2 || return 1
	# three layers: the middle one is copied too
	qemu-img create -q -f qcow2 -b top.qcow2 -F qcow2 third.qcow2
	qemu-io -c 'write -P 9 5M 64k' third.qcow2 >/dev/null
	qemu-img convert -O raw third.qcow2 want.raw
	ok "$qcow" convert -O qcow2 -B base.qcow2 -F qcow2 third.qcow2 new.qcow2 && image_is want.raw new.qcow2 || return 1
	"${peers[-1]}" info new.qcow2 | grep -q '^backing file: base.qcow2' || fail "no backing file recorded"
}

overlay_knows_a_chain_that_the_operand_cut() {
	head -c 1M /dev/urandom >base.raw
	qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2
	qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2
	qemu-io -c 'write -P 7 128k 64k' top.qcow2 >/dev/null
	# without the base, mid reads as zeros; as the backing file of a new image it does not
	local mid='{"driver":"qcow2","file":{"driver":"file","filename":"mid.qcow2"},"backing":null}'
	local cut='json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"},"backing":'$mid'}'
	qemu-img convert -O raw "$cut" want.raw
	ok "$qcow" convert -O qcow2 -B mid.qcow2 -F qcow2 "$cut" new.qcow2 && image_is want.raw new.qcow2
}

sparse_size_decides_what_is_stored() {
	dd if=/dev/zero of=d.raw bs=1M count=1 status=none
	printf x | dd of=d.raw bs=1 seek=0 conv=notrunc status=none
	printf x | dd of=d.raw bs=1 seek=65536 conv=notrunc status=none
	ok "$qcow" convert -O raw d.raw out.raw && cmp d.raw out.raw || return 1
	(($(stat -c %b out.raw) == 16)) || { fail "default: $(stat -c %b out.raw) blocks"; return 1; }
	ok "$qcow" convert -S 64k -O raw d.raw out.raw && cmp d.raw out.raw || return 1
	# 60 KiB of zeros between the two bytes are too few to leave out
	(($(stat -c %b out.raw) == 136)) || { fail "64k: $(stat -c %b out.raw) blocks"; return 1; }
	ok "$qcow" convert -S 0 -O raw d.raw out.raw && cmp d.raw out.raw || return 1
	(($(stat -c %b out.raw) >= 2048)) || { fail "0: $(stat -c %b out.raw) blocks"; return 1; }
	ok "$qcow" convert -S 0 -O qcow2 d.raw out.qcow2 || return 1
	(($("${peers[-1]}" check --output=json out.qcow2 | sed -n 's/.*"allocated-clusters": \([0-9]*\).*/\1/p') == 16)) ||
		fail "-S 0 leaves clusters out"
}

streams_in_and_out() {
	make_disk 11 d.raw 777
	cp d.raw padded.raw
	truncate -s %512 padded.raw
	ok "$qcow" convert -O raw - out.raw <d.raw && cmp d.raw out.raw || return 1
	# shellcheck disable=SC2002 # it has to be a pipe
	cat d.raw | ok "$qcow" convert -O qcow2 - i.qcow2 || return 1
	image_is padded.raw i.qcow2 || return 1
	"$qcow" convert -O raw i.qcow2 - 2>stderr | cmp - padded.raw || return 1
	[[ ! -s stderr ]] || { fail "$(cat stderr)"; return 1; }
	cat i.qcow2 | ok "$qcow" convert -f qcow2 -O raw - out.raw && cmp padded.raw out.raw || return 1
	rm -f out.raw
	refused 'standard output' "$qcow" convert -O qcow2 d.raw - || return 1
	# a reader that goes away ends the run with an error, not a hang
	timeout 60 "$qcow" convert -O raw i.qcow2 - 2>stderr | head -c 1000 >/dev/null
	[[ ${PIPESTATUS[0]} == 1 ]] || fail "a closed pipe"
}

kept_targets_are_zeroed_where_the_source_is() {
	make_disk 10 d.raw
	head -c 16000000 /dev/urandom >kept.raw
	cp kept.raw tail.raw
	ok "$qcow" convert -n -O raw d.raw kept.raw || return 1
	cmp -n 10485760 d.raw kept.raw || return 1
	(($(stat -c %s kept.raw) == 16000000)) || { fail "the length changed"; return 1; }
	cmp -i 10485760 tail.raw kept.raw || { fail "bytes behind the disk changed"; return 1; }
	truncate -s 0 zero.raw
	truncate -s 10M zero.raw
	ok "$qcow" convert -n --target-is-zero -W -O raw d.raw zero.raw && cmp d.raw zero.raw || return 1
	truncate -s 1M small.raw
	if "$qcow" convert -n -O raw d.raw small.raw 2>stderr; then fail "a smaller target"; return 1; fi
	if "$qcow" convert -n -O raw d.raw missing.raw 2>stderr; then fail "a missing target"; return 1; fi
	[[ ! -e missing.raw ]] || fail "-n made a file"
}

no_create_writes_into_a_qcow2_image() {
	local options peer
	head -c 3000000 /dev/urandom >n.raw && truncate -s 5M n.raw && head -c 700000 /dev/urandom >>n.raw
	truncate -s 6M n.raw
	qemu-img create -q -f raw nbase.raw 4M && qemu-io -f raw -c 'write -q -P 9 0 4M' nbase.raw || return 1
	for options in compat=0.10 cluster_size=4k,refcount_bits=1 cluster_size=2M backing_file=nbase.raw,backing_fmt=raw \
		compat=0.10,backing_file=nbase.raw,backing_fmt=raw data_file=n.data,cluster_size=4k \
		data_file=n.data,extended_l2=on data_file=n.data,data_file_raw=on; do
		rm -f kept.qcow2 n.data
		qemu-img create -q -f qcow2 -o "$options" kept.qcow2 8M &&
			qemu-io -c 'write -q -P 5 1M 3M' -c 'write -q -P 6 7M 1M' kept.qcow2 || return 1
		[[ $options == *refcount_bits=1 || $options == data_file* ]] || qemu-img snapshot -c s kept.qcow2 || return 1
		ok "$qcow" convert -n -f raw -O qcow2 n.raw kept.qcow2 || return 1
		for peer in "${peers[@]}"; do
			"$peer" check -q kept.qcow2 || { fail "$peer check: $options"; return 1; }
			"$peer" convert -O raw kept.qcow2 got.raw || return 1
			cmp -n 6291456 n.raw got.raw || { fail "$options"; return 1; }
			cmp -n 1048576 -i 7340032:0 got.raw <(head -c 1048576 /dev/zero | tr '\0' '\6') ||
				{ fail "past the end of the source: $options"; return 1; }
		done
		[[ $options != *raw=on ]] || cmp n.data got.raw || { fail "$options"; return 1; }
	done
	qemu-img create -q -f qcow2 zero.qcow2 6M || return 1
	ok "$qcow" convert -n --target-is-zero -f raw -O qcow2 n.raw zero.qcow2 || return 1
	qemu-img compare -q -f raw -F qcow2 n.raw zero.qcow2 || { fail "--target-is-zero"; return 1; }
	(($(qemu-img map --output=json zero.qcow2 | grep -c '"zero": true, "data": false') > 0)) || return 1
	qemu-img create -q -f qcow2 small.qcow2 2M || return 1
	if "$qcow" convert -n -f raw -O qcow2 n.raw small.qcow2 2>stderr; then fail "a smaller image"; return 1; fi
	grep -q 'No space left' stderr || return 1
	if "$qcow" convert -n -f raw -O qcow2 n.raw missing.qcow2 2>stderr; then fail "a missing image"; return 1; fi
	[[ ! -e missing.qcow2 ]] || fail "-n made an image"
}

compressed_into_an_image_that_is_there() {
	local options peer
	head -c 1000000 /dev/zero | tr '\0' '\7' >c.raw && head -c 300000 /dev/urandom >>c.raw && truncate -s 2M c.raw
	for options in cluster_size=4k compat=0.10 compression_type=zstd,extended_l2=on cluster_size=2M; do
		rm -f kept.qcow2
		qemu-img create -q -f qcow2 -o "$options" kept.qcow2 3000k && qemu-io -c 'write -q -P 5 0 3000k' kept.qcow2 &&
			qemu-img snapshot -c s kept.qcow2 || return 1
		ok "$qcow" convert -c -n -f raw -O qcow2 c.raw kept.qcow2 || return 1
		for peer in "${peers[@]}"; do
			"$peer" check -q kept.qcow2 || { fail "$peer check: $options"; return 1; }
			"$peer" convert -O raw kept.qcow2 got.raw || return 1
			cmp -n 2097152 c.raw got.raw || { fail "$options"; return 1; }
			cmp -n 974848 -i 2097152:0 got.raw <(head -c 974848 /dev/zero | tr '\0' '\5') || { fail "behind: $options"; return 1; }
		done
		[[ $options == cluster_size=2M ]] || ! "${peers[0]}" check kept.qcow2 | grep -q ' 0.00% compressed' ||
			{ fail "nothing is compressed: $options"; return 1; }
	done
	rm -f kept.qcow2 && qemu-img create -q -f qcow2 kept.qcow2 2M || return 1
	ok "$qcow" convert -n --target-image-opts -f raw c.raw driver=compress,file.driver=qcow2,file.file.filename=kept.qcow2 || return 1
	qemu-img compare -q -f raw -F qcow2 c.raw kept.qcow2 || { fail 'driver=compress'; return 1; }
	"${peers[0]}" check kept.qcow2 | grep -q ' 0.00% compressed' && { fail 'driver=compress compresses nothing'; return 1; }
	refused 'level' "$qcow" convert -c -n --level 3 -f raw -O qcow2 c.raw kept.qcow2
}

existing_files_keep_mode_owner_and_inode() {
	make_disk 8 d.raw
	head -c 5000000 /dev/urandom >i.qcow2
	chmod 0640 i.qcow2
	local before
	before=$(stat -c '%i %a %U' i.qcow2)
	ok "$qcow" convert -O qcow2 d.raw i.qcow2 && image_is d.raw i.qcow2 || return 1
	[[ $(stat -c '%i %a %U' i.qcow2) == "$before" ]] || fail "$(stat -c '%i %a %U' i.qcow2), was $before"
}

snapshots_are_read_by_id_and_name() {
	make_disk 10 d.raw
	ok "$qcow" convert -O qcow2 d.raw i.qcow2 || return 1
	qemu-img snapshot -c first i.qcow2
	qemu-io -c 'write -P 5 0 1M' i.qcow2 >/dev/null
	local form
	for form in first 1 snapshot.id=1 snapshot.name=first; do
		ok "$qcow" convert -l "$form" -O raw i.qcow2 out.raw && cmp d.raw out.raw || { fail "$form"; return 1; }
	done
	rm -f out.raw
	refused 'snapshot' "$qcow" convert -l nothing -O raw i.qcow2 out.raw
}

salvage_reads_around_a_bad_entry() {
	make_disk 10 d.raw
	ok "$qcow" convert -O qcow2 d.raw i.qcow2 || return 1
	# L2 entry 3 names a cluster that is not aligned: guest bytes 192k to 256k
	printf '\x80\x00\x00\x00\x00\x05\x02\x00' | dd of=i.qcow2 bs=1 seek=$((0x40000 + 24)) conv=notrunc status=none
	refused 'error while converting' "$qcow" convert -O raw i.qcow2 out.raw || return 1
	local m
	for m in 1 8; do
		"$qcow" convert -m $m --salvage -O raw i.qcow2 out.raw 2>stderr || { fail "$(cat stderr)"; return 1; }
		grep -q '65536 bytes at offset 196608' stderr || { fail "$(cat stderr)"; return 1; }
		cmp -n 196608 d.raw out.raw && cmp -i 262144 d.raw out.raw || return 1
		cmp -n 65536 -i 196608:0 out.raw /dev/zero || return 1
	done
	ok "$qcow" convert -q --salvage -c -O qcow2 i.qcow2 s.qcow2 && image_is out.raw s.qcow2
}

refusals_name_the_reason_and_leave_nothing() {
	make_disk 7 d.raw
	ok "$qcow" convert -O qcow2 d.raw i.qcow2 || return 1
	local before
	before=$(sha256sum d.raw i.qcow2)
	refused 'single source' "$qcow" convert --bitmaps -O qcow2 i.qcow2 d.raw out.qcow2 &&
	refused 'Compression not supported' "$qcow" convert -c -O raw i.qcow2 out.raw &&
	refused 'Compression and preallocation' "$qcow" convert -c -o preallocation=full -O qcow2 d.raw out.qcow2 &&
	refused '1 to 16' "$qcow" convert -m 17 -O qcow2 d.raw out.qcow2 &&
	refused 'requires use of -n' "$qcow" convert --target-is-zero -O raw d.raw out.raw &&
	refused "Invalid parameter 'clustersize'" "$qcow" convert -O qcow2 -o clustersize=4k d.raw out.qcow2 &&
	refused 'cluster' "$qcow" convert -O qcow2 -o cluster_size=100 d.raw out.qcow2 &&
	refused 'No such file or directory' "$qcow" convert -O qcow2 missing.raw out.qcow2 &&
	refused 'Unknown file format' "$qcow" convert -O vmdk d.raw out.vmdk &&
	refused 'write" lock' "$qcow" convert -O qcow2 d.raw d.raw &&
	refused 'write" lock' "$qcow" convert -O raw i.qcow2 ./i.qcow2 &&
	refused 'multiple' "$qcow" convert -l a -O raw i.qcow2 i.qcow2 out.raw || return 1
	ln -s d.raw link.raw
	refused 'write" lock' "$qcow" convert -O raw d.raw link.raw || return 1
	qemu-img create -q -f qcow2 -b i.qcow2 -F qcow2 top.qcow2
	refused 'write" lock' "$qcow" convert -O raw top.qcow2 i.qcow2 || return 1
	[[ $(sha256sum d.raw i.qcow2) == "$before" ]] || fail "a source changed"
}

interrupted_convert_removes_only_what_it_made() {
	local signal pid i
	head -c 20000256 /dev/urandom >d.raw
	for signal in INT TERM HUP; do
		rm -f out.qcow2
		set -m # else a shell's background jobs ignore SIGINT
		env --default-signal=HUP "$qcow" convert -r 2M -O qcow2 d.raw out.qcow2 2>stderr & # nohup ignores it
		pid=$!
		set +m
		for ((i = 0; i < 600; i++)); do [[ -e out.qcow2 ]] && break; sleep 0.05; done
		sleep 0.2
		[[ -e out.qcow2 ]] || { fail "too fast to interrupt"; return 1; }
		kill "-$signal" $pid
		wait $pid && { fail "SIG$signal: success"; return 1; }
		[[ ! -e out.qcow2 ]] || { fail "SIG$signal left a file"; return 1; }
	done
	echo precious >old.qcow2
	"$qcow" convert -r 2M -O qcow2 d.raw old.qcow2 2>stderr &
	pid=$!
	sleep 0.7
	kill -TERM $pid
	wait $pid
	[[ -e old.qcow2 ]] || fail "a file that was there before is gone"
}

a_signal_ends_a_stream_whose_reader_waits() {
	local pid i
	truncate -s 200M d.raw
	mkfifo pipe
	sleep 100 <pipe &
	local reader=$!
	"$qcow" convert -f raw d.raw - >pipe 2>stderr &
	pid=$!
	sleep 0.5
	kill -TERM $pid
	for ((i = 0; i < 600; i++)); do
		kill -0 $pid 2>/dev/null || break
		sleep 0.1
	done
	kill -KILL $pid 2>/dev/null && { kill $reader; fail "SIGTERM did not end it"; return 1; }
	kill $reader
}

sources_of_odd_sizes_are_joined_as_by_qemu() {
	head -c 1000 /dev/urandom >a.raw
	head -c 700 /dev/urandom >b.raw
	qemu-img convert -f raw -O raw a.raw b.raw want.raw
	local img=${QCOW_QEMU_IMG:-$(dirname "$(dirname "$qcow")")/compat/qemu-img}
	ok "$img" convert -f raw -O raw a.raw b.raw out.raw && cmp want.raw out.raw || return 1
	# ours ends with the last byte that there is
	ok "$qcow" convert -f raw -O raw a.raw b.raw out.raw || return 1
	(($(stat -c %s out.raw) == 1724)) && cmp -n 1724 want.raw out.raw || return 1
	ok "$qcow" convert -f raw -O qcow2 a.raw b.raw out.qcow2 && image_is want.raw out.qcow2
}

messages_never_land_in_an_image() {
	head -c 3M /dev/urandom >d.raw
	# the next files opened would be descriptors 0 and 1, and the personality prints progress
	(exec -a qemu-img "$qcow" convert -p -f raw -O raw d.raw out.raw <&- >&- 2>stderr)
	cmp d.raw out.raw || { fail "standard output is in the image"; return 1; }
	ok "$qcow" convert -f raw -O raw d.raw out.raw <&- && cmp d.raw out.raw || return 1
	"$qcow" convert -f raw -O raw d.raw - >&- 2>stderr && { fail "a closed standard output"; return 1; }
	"$qcow" convert -f raw -O raw - out.raw <&- 2>stderr && { fail "a closed standard input"; return 1; }
	"$qcow" info out.raw >&- 2>stderr && fail "info without standard output"
	return 0
}

rate_limit_holds() {
	head -c 3000320 /dev/urandom >d.raw
	local start=$EPOCHREALTIME took
	ok "$qcow" convert -r 2M -O raw d.raw out.raw && cmp d.raw out.raw || return 1
	took=$((${EPOCHREALTIME/./} - ${start/./}))
	((took > 900000 && took < 6000000)) || fail "3 MB at 2 MiB/s took $took us"
}

progress_is_qemus_in_the_personality() {
	local img=${QCOW_QEMU_IMG:-$(dirname "$(dirname "$qcow")")/compat/qemu-img}
	[[ -x $img ]] || { skip "build/compat/qemu-img is not built"; return; }
	make_disk 8 d.raw
	ok "$img" convert -p -O qcow2 d.raw i.qcow2 >stdout || return 1
	tr '\r' '\n' <stdout | head -n 1 | grep -qx '    (0.00/100%)' || { fail "$(od -c stdout | head)"; return 1; }
	[[ $(tail -c 15 stdout | od -An -c | tr -d ' ') == '(100.00/100%)\r\n' ]] || { fail "$(tail -c 40 stdout | od -c)"; return 1; }
	refused 'qemu-img: Use of backing file requires explicit backing format' \
		"$img" convert -B d.raw -O qcow2 i.qcow2 out.qcow2 || return 1
	image_is d.raw i.qcow2
}

small_address_space_is_enough() {
	[[ -z ${QCOW_SANITIZED:-} ]] || return 0 # sanitizers reserve terabytes
	make_disk 24 d.raw
	(ulimit -v 2097152; MALLOC_ARENA_MAX=3 ok "$qcow" convert -m 16 -c -O qcow2 d.raw i.qcow2) || return 1
	image_is d.raw i.qcow2 || return 1
	# with room for few threads it goes on with fewer
	(ulimit -v 120000; ok "$qcow" convert -m 16 -O qcow2 d.raw i.qcow2) && image_is d.raw i.qcow2 || return 1
	/usr/bin/time -f %M -o rss "$qcow" convert -m 16 -c -o cluster_size=2M -O qcow2 d.raw i.qcow2 2>/dev/null ||
		{ [[ -x /usr/bin/time ]] || return 0; fail "2M clusters"; return 1; }
	(($(cat rss) < (64 + 2 * 2 * 16 + 16) * 1024)) || fail "$(cat rss) KiB resident"
}

huge_empty_disks_take_no_time() {
	truncate -s 8E huge.raw 2>/dev/null || truncate -s 15T huge.raw
	qemu-img create -q -f qcow2 -o cluster_size=2M huge.qcow2 1P || return 1
	timeout 60 "$qcow" convert -O qcow2 -o cluster_size=2M huge.qcow2 i.qcow2 2>stderr || { fail "$(cat stderr)"; return 1; }
	(($(stat -c %s i.qcow2) < 300000000)) || fail "$(stat -c %s i.qcow2) bytes"
	# allocated, but holes in the file: not read either
	qemu-img create -q -f qcow2 -o preallocation=metadata meta.qcow2 40G || return 1
	timeout 60 "$qcow" convert -O qcow2 meta.qcow2 i.qcow2 2>stderr || { fail "$(cat stderr)"; return 1; }
	(($(stat -c %b i.qcow2) < 4096)) || fail "$(stat -c %b i.qcow2) blocks"
}

full_targets_are_refused_at_the_start() {
	can_mount ext4 || { skip "needs root, loop devices and mkfs.ext4"; return; }
	mount_image ext4 32 small || return 1
	head -c 60000256 /dev/urandom >d.raw
	refused 'No space left on device' "$qcow" convert -O qcow2 d.raw small/out.qcow2 || return 1
	[[ ! -e small/out.qcow2 ]] || { fail "left a file"; return 1; }
	refused 'No space left on device' "$qcow" convert -S 0 -O raw d.raw small/out.raw || return 1
	grep -q 'its file system has' stderr || { fail "not refused at the start: $(cat stderr)"; return 1; }
	# many stored zeros are no reason to refuse
	dd if=/dev/zero of=zeros.raw bs=1M count=100 status=none
	seq 1 100000 | dd of=zeros.raw conv=notrunc status=none
	ok "$qcow" convert -O qcow2 zeros.raw small/i.qcow2 && image_is zeros.raw small/i.qcow2 || return 1
	# compressed data may fit: it is tried, and what was made is removed when it does not
	refused 'No space left on device' "$qcow" convert -c -O qcow2 d.raw small/out.qcow2 || return 1
	[[ ! -e small/out.qcow2 ]] || fail "left a file"
}

block_devices_are_targets_and_sources() {
	[[ $(id -u) == 0 && -e /dev/loop-control ]] || { skip "needs root and loop devices"; return; }
	make_disk 8 d.raw
	head -c 12582912 /dev/urandom >dev.img
	local loop rc=0
	loop=$(losetup -f --show dev.img 2>losetup.log) || { skip "needs root and loop devices"; return; }
	{
		ok "$qcow" convert -n -O raw d.raw "$loop" && cmp -n 8388608 d.raw "$loop" &&
		ok "$qcow" convert -O raw d.raw "$loop" && cmp -n 8388608 d.raw "$loop" &&
		ok "$qcow" convert -O qcow2 d.raw "$loop" && image_is d.raw "$loop" &&
		ok "$qcow" convert -f qcow2 -O raw "$loop" back.raw && cmp d.raw back.raw &&
		truncate -s 20M large.raw && refused 'No space left' "$qcow" convert -O raw large.raw "$loop" &&
		ok "$qcow" convert -O qcow2 d.raw "$loop" && peers_read d.raw "$loop" &&
		ok "$qcow" create -q -f qcow2 "$loop" 8M && ok "$qcow" check -q "$loop" &&
		ok "$qcow" convert -n -O qcow2 d.raw "$loop" && image_is d.raw "$loop" &&
		ok "$qcow" convert -c -O qcow2 d.raw "$loop" && peers_read d.raw "$loop" &&
		qemu-img create -q -f qcow2 -o data_file="$loop" data.qcow2 12000768 &&
		ok "$qcow" convert -n --target-image-opts d.raw \
			"driver=qcow2,file.filename=data.qcow2,data-file.driver=host_device,data-file.filename=$loop" &&
		qemu-img check -q data.qcow2 && qemu-img convert -O raw data.qcow2 back.raw &&
		cmp -n 8388608 d.raw back.raw &&
		ok "$qcow" create -q -f qcow2 -o preallocation=full "$loop" 8M && truncate -s 8M zeros.raw &&
		image_is zeros.raw "$loop"
	} || rc=1
	losetup -d "$loop"
	return $rc
}

# what every QEMU reads from image $2 is the raw disk $1
peers_read() {
	local peer
	image_is "$1" "$2" || return 1
	for peer in "${peers[@]}"; do
		"$peer" convert -f qcow2 -O raw "$2" theirs.raw && cmp "$1" theirs.raw || { fail "$peer reads $2"; return 1; }
	done
}

too_small_devices_are_refused_before_anything_is_written() {
	[[ $(id -u) == 0 && -e /dev/loop-control ]] || { skip "needs root and loop devices"; return; }
	head -c 12582912 /dev/zero >dev.img
	local loop rc=0
	loop=$(losetup -f --show dev.img 2>losetup.log) || { skip "needs root and loop devices"; return; }
	printf 'what was there' | dd of="$loop" conv=notrunc,fsync status=none
	head -c 12582912 /dev/urandom >same.raw
	head -c 12255232 /dev/urandom >fits.raw # 187 clusters, and 5 of metadata: the device to the byte
	head -c 12320768 /dev/urandom >over.raw # one more
	local needs='the image needs at least 12910592 bytes, the device has 12582912: No space left on device'
	{
		refused 'the device has 12582912 bytes, the image needs 67436544: No space left on device' \
			"$qcow" create -q -f qcow2 -o preallocation=full "$loop" 64M &&
		refused 'the image needs 67436544' "$qcow" create -q -f qcow2 -o preallocation=metadata "$loop" 64M &&
		refused "$needs" "$qcow" convert -O qcow2 same.raw "$loop" &&
		refused "$needs" "$qcow" convert -S 0 -O qcow2 same.raw "$loop" &&
		refused "$needs" "$qcow" convert -O qcow2 -o preallocation=full same.raw "$loop" &&
		refused 'needs at least 12648448 bytes' "$qcow" convert -O qcow2 over.raw "$loop" &&
		[[ $(head -c 14 "$loop") == 'what was there' ]] &&
		ok "$qcow" convert -O qcow2 fits.raw "$loop" && image_is fits.raw "$loop" &&
		# a disk of the same length that is mostly zeros fits
		truncate -s 64M sparse.raw && ok "$qcow" convert -O qcow2 sparse.raw "$loop" && image_is sparse.raw "$loop"
	} || rc=1
	losetup -d "$loop"
	return $rc
}

new_files_and_their_names_are_synced() {
	command -v strace >/dev/null && strace -o /dev/null true 2>/dev/null || { skip "strace cannot trace here"; return; }
	make_disk 2 d.raw
	mkdir new
	synced() { # COMMAND...: what it syncs, in order: d the folder, f the file
		# no process is traced twice: leaks are looked for elsewhere
		ok env "ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0" strace -f -y -o trace -e trace=fsync,fdatasync "$@" || return 1
		grep -oE 'f(data)?sync\([0-9]+<[^>]*' trace | sed -E "s|.*/new\$|d|; s|.*/new/.*|f|" | tr -d '\n'
	}
	is() { [[ $1 == $2 ]] || fail "synced '$1', not '$2': $(cat trace)"; }
	is "$(synced "$qcow" convert -O raw d.raw new/a.raw)" df || return 1
	is "$(synced "$qcow" convert -O raw d.raw new/a.raw)" f || return 1
	# the file emptied, all but the header, the header: each once
	is "$(synced "$qcow" convert -O qcow2 d.raw new/a.qcow2)" dfff || return 1
	is "$(synced "$qcow" convert -t unsafe -O qcow2 d.raw new/b.qcow2)" '' || return 1
	is "$(synced "$qcow" sanitize new/a.qcow2 new/c.qcow2)" dfff || return 1
	is "$(synced "$qcow" create -q -f qcow2 new/d.qcow2 1M)" dfff
}

reflinks_share_blocks_on_xfs() {
	can_mount xfs || { skip "needs root, loop devices and mkfs.xfs"; return; }
	mount_image xfs 512 xfs -m reflink=1 || { skip "needs a kernel that mounts XFS"; return; }
	(
		cd xfs || exit 1
		truncate -s 150M d.raw
		dd if=/dev/urandom of=d.raw bs=1M count=40 conv=notrunc status=none
		dd if=/dev/urandom of=d.raw bs=1M count=30 seek=100 conv=notrunc status=none
		printf tail | dd of=d.raw bs=1 seek=157286000 conv=notrunc status=none
		sync -f .
		used() { df --output=used -k . | tail -n 1; }
		before=$(used)
		for m in 1 8; do ok "$qcow" convert -m $m -O qcow2 d.raw i$m.qcow2 || exit 1; done
		cmp i1.qcow2 i8.qcow2 || exit 1
		ok "$qcow" convert -O raw i1.qcow2 back.raw && cmp d.raw back.raw || exit 1
		ok "$qcow" convert -O qcow2 -o cluster_size=1M i1.qcow2 again.qcow2 || exit 1
		image_is d.raw i1.qcow2 && image_is d.raw again.qcow2 || exit 1
		sync -f .
		(($(used) - before < 12 * 1024)) || { fail "4 copies of 70 MiB took $(($(used) - before)) KiB"; exit 1; }
		filefrag -v i1.qcow2 | grep -q shared || { fail "no shared extent"; exit 1; }
		filefrag -v back.raw | grep -q shared || { fail "no shared extent in the raw disk"; exit 1; }
		# sharing is no alias
		ok "$qcow" convert -O qcow2 d.raw i8.qcow2 && qemu-io -c 'write -P 1 0 1M' i8.qcow2 >/dev/null
		cmp d.raw back.raw
	)
}

# ---- run ----

tests=("$@")
((${#tests[@]})) || mapfile -t tests < <(sed -n 's/^\([a-z][a-z0-9_]*\)() {$/\1/p' "$self" |
	grep -vxE 'fail|skip|ok|refused|image_is|peers_read|make_disk|mount_image|can_mount')
passed=0 failed=0 skipped=0
for t in "${tests[@]}"; do
	mkdir "$dir/$t" && cd "$dir/$t" || exit 1
	dir_was=$dir
	dir=$dir/$t
	reason=
	"$t"
	case $? in
	0) passed=$((passed + 1)) ;;
	77) skipped=$((skipped + 1)); echo "SKIP $t: $reason" ;;
	*) failed=$((failed + 1)); echo "FAILED $t"; echo "  again: QCOW=$qcow tests/cli/convert.sh $t" ;;
	esac
	for m in "${mounts[@]}"; do umount -l "$m"; done
	mounts=()
	dir=$dir_was
	cd "$dir" && rm -rf "${dir:?}/$t"
done
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))
