#!/bin/bash
# SPDX-License-Identifier: MIT
# Snapshots of encrypted images, LUKS and the old AES: made, applied and deleted here and by both QEMUs in turn, on one
# image; after each step both read the disk and the snapshots, and nothing of the plain text is in the file.
# shellcheck source=tests/cli/lib.sh
source "$(dirname "$0")/lib.sh"
need_qemu
secret=(--object "secret,id=s,data=abc")
node=driver=qcow2,file.filename=img,encrypt.key-secret=s
qemus=("$QEMU_IMG")
if have_new_qemu; then qemus+=("$QEMU_IMG_NEW"); fi

# written PROGRAM COMMAND…: by a qemu-io. The plain text is the byte w throughout.
written() {
	local io=$1 command args=()
	shift
	for command; do args+=(-c "$command"); done
	"$io" "${secret[@]}" --image-opts "${args[@]}" "$node" >written.out 2>&1 && ! grep -q failed written.out ||
		bad "written: $*" "$(<written.out)"
}
# disk STATE: what it is, as a raw file model.STATE
disk() { cp now.raw "model.$1"; }
draw() { io -f raw "$@" now.raw; }
reads() { # NAME MODEL PROGRAM OPTIONS…
	rm -f got.raw
	"$3" convert "${secret[@]}" --image-opts "${@:4}" -O raw "$node" got.raw
	same "$1" "$2" got.raw
}
# is NAME STATE SNAPSHOT=STATE…: the disk and its snapshots for every program, and no snapshot more
is() {
	local name="$format: $1" disk=$2 pair tool
	shift 2
	for tool in "${qemus[@]}" "$QCOW_QEMU_IMG"; do
		expect "$name: clean" 0 "$tool" check -q "${secret[@]}" --image-opts "$node"
		reads "$name: the disk" "model.$disk" "$tool"
		for pair; do
			reads "$name: ${pair%=*}" "model.${pair#*=}" "$tool" -l "snapshot.name=${pair%=*}"
		done
		"$tool" snapshot "${secret[@]}" --image-opts -l "$node" >out 2>err || bad "$name: listed" "$(shown)"
		[[ $(grep -c ' 20[0-9][0-9]-' out) == "$#" ]] && ok "$name: as many" || bad "$name: as many" "$(shown)"
	done
	if grep -q wwwwwwww img; then bad "$name: hidden"; else ok "$name: hidden"; fi
}
# by PROGRAM ACTION…
by() { expect "$format: ${1##*/} snapshot ${*:2}" 0 "$1" snapshot "${secret[@]}" --image-opts "${@:2}" "$node"; }

all_of() { # CREATE_OPTIONS
	local qemu
	format=$1
	for qemu in "${qemus[@]}"; do
		rm -f img
		"$QCOW" create -q "${secret[@]}" -o "$1,encrypt.key-secret=s" img 1M || bad "create $1"
		truncate -s 0 now.raw
		truncate -s 1M now.raw
		# ours, over its own snapshot; QEMU applies and deletes
		written "$QCOW_QEMU_IO" 'write -q -P 119 0 300k' 'write -q -P 119 1000001 70'
		draw -c 'write -q -P 119 0 300k' -c 'write -q -P 119 1000001 70'
		disk a
		by "$QCOW_QEMU_IMG" -c one
		written "$QCOW_QEMU_IO" 'write -q -P 120 100k 1k' 'write -q -z 200k 64k' 'write -q -P 121 600k 64k'
		draw -c 'write -q -P 120 100k 1k' -c 'write -q -z 200k 64k' -c 'write -q -P 121 600k 64k'
		disk b
		is 'a snapshot of ours' b one=a
		by "$qemu" -a one
		# QEMU's, which we apply
		written "${qemu%img}io" 'write -q -P 122 50k 100k'
		cp model.a now.raw
		draw -c 'write -q -P 122 50k 100k'
		disk c
		by "$qemu" -c two
		written "$QCOW_QEMU_IO" 'write -q -P 123 0 1M'
		draw -c 'write -q -P 123 0 1M'
		disk d
		by "$QCOW_QEMU_IMG" -c three
		is 'theirs between two of ours' d one=a two=c three=d
		by "$QCOW_QEMU_IMG" -a two
		written "$QCOW_QEMU_IO" 'write -q -P 124 70k 3'
		cp model.c now.raw
		draw -c 'write -q -P 124 70k 3'
		disk e
		is 'theirs applied' e one=a two=c three=d
		# each deletes what the other made
		by "$QCOW_QEMU_IMG" -d two
		by "$qemu" -d one
		is 'the others deleted' e three=d
		by "$QCOW_QEMU_IMG" -a three
		by "$QCOW_QEMU_IMG" -d three
		is 'none is left' d
	done
}
all_of encrypt.format=luks,encrypt.iter-time=0
all_of encrypt.format=aes
qemus=("${qemus[-1]}")
all_of encrypt.format=luks,encrypt.iter-time=0,extended_l2=on,cluster_size=16k
finish
