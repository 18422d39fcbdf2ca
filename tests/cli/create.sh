#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow create: the line it prints, what it makes, and what it leaves alone.
# Rules of doc/COMPAT.md: R44, R59.
. "$(dirname "$0")/lib.sh"

# same_as_qemu NAME ARGS…: the personality prints and makes what the newest qemu-img does
same_as_qemu() {
	local name=$1 want
	shift
	rm -f disk theirs
	want=$("$QEMU_IMG_NEW" create "$@" 2>&1) || bad "$name: qemu-img create $*" "$want"
	mv disk theirs
	prints "$name" "$want" "$QCOW_QEMU_IMG" create "$@"
	same "$name, the file" disk theirs
}

# fails_as_qemu NAME ARGS…: the personality fails with QEMU's words, our hints aside
fails_as_qemu() {
	local name=$1 want want_rc
	shift
	want=$("$QEMU_IMG_NEW" create "$@" 2>&1)
	want_rc=$?
	rm -f disk
	run "$QCOW_QEMU_IMG" create "$@"
	cat out err | grep -v '^hint: ' >said
	if [[ $rc == "$want_rc" && $rc != 0 && $(<said) == "$want" ]]; then ok "$name"
	else bad "$name" "QEMU says, with status $want_rc: $want $(shown)"; fi
	rm -f disk
}

if have_new_qemu; then
	truncate -s 3000000 base
	"$QEMU_IMG_NEW" create -q -f qcow2 mid.qcow2 1M
	truncate -s 1M data.raw
	same_as_qemu plain -f qcow2 disk 1G
	same_as_qemu odd_size -f qcow2 disk 1000001
	same_as_qemu fraction -f qcow2 disk 1.5M
	same_as_qemu options -f qcow2 -o cluster_size=128k,lazy_refcounts=on -o refcount_bits=8 disk 10G
	same_as_qemu version_2 -f qcow2 -o compat=0.10 disk 1M
	same_as_qemu version_3 -f qcow2 -o compat=v3,compression_type=zstd disk 1M
	same_as_qemu size_option -f qcow2 -o size=3M disk
	same_as_qemu backing -f qcow2 -b base -F raw disk
	same_as_qemu backing_and_size -f qcow2 -b mid.qcow2 -B qcow2 disk 7M
	same_as_qemu backing_option -f qcow2 -o backing_file=mid.qcow2,backing_fmt=qcow2 disk
	same_as_qemu unsafe -u -f qcow2 -b 'not,there' -F raw disk 1M
	same_as_qemu preallocated -f qcow2 -o preallocation=metadata,extended_l2=on disk 300M
	same_as_qemu preallocated_overlay -f qcow2 -o preallocation=metadata,extended_l2=on -b mid.qcow2 -F qcow2 disk
	same_as_qemu data_file -f qcow2 -o data_file=data.raw,data_file_raw=on disk 2M
	same_as_qemu kept_data_file -f qcow2 -o data_file=data.raw,data_file_raw=on,keep_data_file=on disk 2M
	same_as_qemu options_after_operands disk 1M -f qcow2
	same_as_qemu raw disk 1000
	same_as_qemu raw_full -f raw -o preallocation=full disk 1M
	same_as_qemu quiet -q -f qcow2 disk 1M
	same_as_qemu not_encrypted -f qcow2 -o encryption=off disk 1M
	same_as_qemu whole_with_a_point -f qcow2 -o cluster_size=1024.0b disk 1.0M

	fails_as_qemu backing_without_format -f qcow2 -b mid.qcow2 disk
	fails_as_qemu raw_backing_without_format -f qcow2 -b base disk
	fails_as_qemu backing_is_not_there -f qcow2 -b nope disk
	fails_as_qemu backing_is_not_qcow2 -f qcow2 -b base -F qcow2 disk
	fails_as_qemu backing_of_unknown_format -f qcow2 -b base -F foo disk
	fails_as_qemu backing_without_name -f qcow2 -b '' disk
	fails_as_qemu two_sizes -f qcow2 disk 1M 2M
	fails_as_qemu too_large -f qcow2 disk 1048576T
	for option in cluster_size=1T cluster_size=foo refcount_bits=99 refcount_bits=foo compat=x \
		compression_type=lz preallocation=x lazy_refcounts=maybe nocow=x foo=bar \
		extended_l2=on,cluster_size=4k lazy_refcounts=on,compat=0.10 \
		refcount_bits=8,compat=0.10 compression_type=zstd,compat=0.10 data_file_raw=on \
		data_file=x,compat=0.10 backing_fmt=qcow2 size=-1024 size=-1k size=foobar \
		preallocation=full,backing_file=base,backing_fmt=raw; do
		fails_as_qemu "option $option" -f qcow2 -o "$option" disk 1M
	done
fi

for form in 3000P abc 8E; do
	says "size_$form" 1 'qemu-img: *' "$QCOW_QEMU_IMG" create -f qcow2 none "$form"
done
says no_name 1 'qemu-img: Expecting image file name*' "$QCOW_QEMU_IMG" create -f qcow2
says no_size 1 'qemu-img: none: Image creation needs a size parameter' "$QCOW_QEMU_IMG" create -f qcow2 none
says size_twice 1 '*size must be specified only once' "$QCOW_QEMU_IMG" create -f qcow2 -o size=1M none 2M
says no_format 1 '*Backing file specified without backing format' "$QCOW_QEMU_IMG" create -u -f qcow2 -b x none 1M
says no_backing 1 '*No such file or directory*' "$QCOW_QEMU_IMG" create -f qcow2 -b x -F raw none
says itself 1 '*same filename as the backing file' "$QCOW_QEMU_IMG" create -u -f qcow2 -b none -F raw none 1M
says raw_backing 1 '*Backing file not supported*' "$QCOW_QEMU_IMG" create -f raw -b x none 1M
says unknown_format 1 "*Unknown file format 'vmdk'" "$QCOW" create -f vmdk none 1M
says unknown_option 1 "*Invalid parameter 'cluster_sise'*" "$QCOW" create -o cluster_sise=1k none 1M
says encrypted 1 "*'encrypt.key-secret' is required*" "$QCOW" create -o encrypt.format=luks none 1M
says bad_cluster_size 1 '*power of two*' "$QCOW" create -o cluster_size=3k none 1M
says together 1 '*extended_l2*' "$QCOW" create -o preallocation=full -u -b x -F raw none 1M
[[ ! -e none ]] && ok nothing_was_made || bad nothing_was_made

# qcow: qcow2 is the default, and the format of a backing file is found and recorded
expect default_is_qcow2 0 "$QCOW" create -q first 5M
expect backing_is_probed 0 "$QCOW" create -q -b first second
if [[ -n $QEMU_IMG ]]; then
	"$QEMU_IMG" info second >out 2>&1
	grep -q 'backing file format: qcow2' out && ok format_is_recorded || bad format_is_recorded "$(<out)"
	expect clean 0 "$QEMU_IMG" check -q second
fi

# relative names are looked for from the image's folder
mkdir sub
truncate -s 2M sub/base
expect relative_backing 0 "$QCOW" create -q -b base -F raw sub/over
expect relative_data_file 0 "$QCOW" create -q -o data_file=data sub/df 1M
[[ -e sub/data ]] && ok data_file_beside || bad data_file_beside

# a file that was there keeps its inode and mode, and stays when the run fails
echo precious >there
chmod 640 there
before=$(stat -c '%i %a %U' there)
says busy_data_file 1 '*' "$QCOW" create -q -o data_file=there there 1M
[[ $(<there) == precious ]] && ok refused_before_it_is_emptied || bad refused_before_it_is_emptied
expect emptied 0 "$QCOW" create -q there 1M
[[ $(stat -c '%i %a %U' there) == "$before" ]] && ok inode_stays || bad inode_stays
says missing_folder 1 '*No such file or directory*' "$QCOW" create -q nowhere/x 1M
mkfifo pipe
says fifo 1 '*FIFO*' timeout 60 "$QCOW" create -q pipe 1M
if [[ -n $QEMU_IO ]]; then
	# a writer holds it
	mkfifo go
	stdbuf -oL "$QEMU_IO" -f qcow2 first <go >opened 2>&1 &
	exec 9>go
	echo length >&9
	for _ in {1..1500}; do
		[[ ! -s opened ]] || break
		sleep 0.02
	done
	says locked 1 '*lock*' "$QCOW" create -q first 1M
	exec 9>&-
	wait
fi

# for programs
run "$QCOW" create --output json -o cluster_size=4k,compression_type=zstd json 3M
python3 -c 'import json, sys; d = json.load(open("out"))
assert (d["filename"], d["format"], d["virtual-size"], d["cluster-size"], d["compression-type"]) == ("json", "qcow2", 3 << 20, 4096, "zstd"), d' &&
	ok create_json || bad create_json "$(shown)"
head -c 300000 /dev/urandom >plain
truncate -s 3M plain
run "$QCOW" convert --output json plain converted
python3 -c 'import json; d = json.load(open("out"))
assert d["bytes-written"] >= 300000 and d["bytes-salvaged"] == 0 and d["bytes-zero"] + d["bytes-written"] + d["bytes-cloned"] >= 3 << 20, d' &&
	ok convert_json || bad convert_json "$(shown)"
rm -f json plain converted

# interrupted: it dies of the signal, removes what it made, and nothing else
for format in raw qcow2; do
	for target in new old; do
		rm -f new
		echo precious >old
		set -m # else a background job ignores SIGINT
		"$QCOW" create -q -f "$format" -o preallocation=full "$target" 3G 2>err &
		pid=$!
		set +m
		for ((i = 0; i < 100; i++)); do
			(($(stat -c %s "$target" 2>/dev/null || echo 0) > 1000)) && break
			sleep 0.01
		done
		kill -INT "$pid"
		wait "$pid"
		rc=$?
		if [[ $rc == 130 && ! -e new && -e old && ! -s err ]]; then ok "interrupted_${format}_$target"
		else bad "interrupted_${format}_$target" "status $rc, $(ls -l new old 2>&1), $(<err)"; fi
	done
done
rm -f old
finish
