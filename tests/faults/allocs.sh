#!/bin/bash
# SPDX-License-Identifier: MIT
# Every Nth allocation of the program fails, by a library that is preloaded (FAILMALLOC names it): no crash,
# no hang, "out of memory" on stderr where the run fails, the right output where it does not, and no
# half-made target left behind.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/../cli/lib.sh"
need_qemu
FAILMALLOC=${FAILMALLOC:?names the library to preload}

# failing N EVER COMMAND…: run it so, into out, err, $rc and count
# (fresh: what makes the images anew before each run; after: what must be true of them when it has failed, whole: when not)
fresh=: after=: whole=:
failing() {
	rm -f target count
	$fresh
	QK_FAIL_MALLOC=$1 QK_FAIL_MALLOC_EVER=$2 QK_FAIL_MALLOC_COUNT=$PWD/count \
		LD_PRELOAD=$FAILMALLOC timeout 60 "${@:3}" >out 2>err </dev/null
	rc=$?
}

# judge: what is wrong with the run, in $why
judge() {
	why=
	# libgcrypt, when it starts, ends the process rather than do without
	((rc != 134)) || ! grep -qE '^FATAL: .* in libgcrypt|^Fatal error: Cannot allocate' err || return 0
	if ((rc >= 124)); then why="crashed or hung"
	elif ((rc != 0)); then
		if ! grep -qi memory err; then why="does not say that memory is out"
		elif [[ -e target ]]; then why="leaves a target"
		elif ! $after >/dev/null 2>&1; then why="changes what the disk reads, or damages it"
		fi
	elif ! cmp -s good out; then why="succeeds with another output"
	elif ! $whole >/dev/null 2>&1; then why="succeeds, and the image is not what it should be"
	elif [[ -e good-target ]] && ! cmp -s good-target target; then why="succeeds with another target"
	fi
}

# sweep NAME STEP COMMAND…: N = 1, 1 + STEP, … fails once, then "from N on" for every sixth
sweep() {
	local name=$1 step=$2 n ever total=0
	shift 2
	rm -f target good-target
	$fresh
	{ "$@" >good 2>err </dev/null && $whole; } || { bad "$name" "fails without faults: $(<err)"; return; }
	[[ ! -e target ]] || mv target good-target
	for ever in 0 1; do
		for ((n = 1; ; n += ever ? 6 : step)); do
			failing "$n" "$ever" "$@"
			[[ -e count ]] && (($(<count) < n)) && break
			total=$((total + 1))
			judge
			[[ -z $why ]] || { bad "$name" "allocation $n (for ever: $ever) $why: $* $(shown)"; return; }
		done
	done
	if ((total > 20)); then ok "$name"; else bad "$name" "only $total allocations"; fi
}

create base.qcow2 3M
io -c 'write -P 1 0 200k' -c 'write -c -P 7 1M 64k' base.qcow2
create -b base.qcow2 -F qcow2 top.qcow2
io -c 'write -P 2 100k 200k' top.qcow2
"$QEMU_IMG" snapshot -c one top.qcow2
create flat.qcow2 3M
io -c 'write -P 2 100k 200k' flat.qcow2

echo -n abc >key
"$QEMU_IMG" create -q --object secret,id=s,data=abc -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 3M
"$QEMU_IO" --object secret,id=s,data=abc --image-opts -c 'write -q -P 2 100k 200k' \
	driver=qcow2,encrypt.key-secret=s,file.filename=aes.qcow2

# those that build JSON have many allocations of one kind: every third
sweep info_is_right_or_fails 3 "$QCOW" info top.qcow2
sweep info_json_is_right_or_fails 3 "$QCOW" info --output=json --backing-chain top.qcow2
sweep map_is_right_or_fails 1 "$QCOW" map flat.qcow2
sweep map_json_is_right_or_fails 1 "$QCOW" map --output=json top.qcow2
sweep check_is_right_or_fails 1 "$QCOW" check top.qcow2
sweep check_json_is_right_or_fails 1 "$QCOW" check --output=json top.qcow2
sweep compare_is_right_or_fails 1 "$QCOW" compare top.qcow2 top.qcow2
sweep compare_json_is_right_or_fails 1 "$QCOW" compare --output=json flat.qcow2 flat.qcow2
sweep convert_to_raw_is_right_or_fails 1 "$QCOW" convert -O raw top.qcow2 target
sweep convert_compressed_is_right_or_fails 1 "$QCOW" convert -c -O qcow2 top.qcow2 target
sweep convert_of_aes_is_right_or_fails 1 "$QCOW" convert -O raw --secret-file key aes.qcow2 target
sweep rebase_counts_right_or_fails 2 "$QCOW" rebase --dry-run -b '' top.qcow2
sweep commit_counts_right_or_fails 2 "$QCOW" commit --dry-run top.qcow2
sweep dd_is_right_or_fails 2 "$QCOW" dd if=flat.qcow2 of=target bs=64k count=20 skip=1

# those that write: the overlay reads the same whatever becomes of it
"$QEMU_IMG" convert -O raw top.qcow2 want.raw
work() { cp base.qcow2 below.qcow2 && cp top.qcow2 work.qcow2 && "$QEMU_IMG" rebase -u -b below.qcow2 -F qcow2 work.qcow2; }
reads_the_same() {
	"$QEMU_IMG" compare -q work.qcow2 want.raw || return 1
	local image rc
	for image in work.qcow2 below.qcow2; do
		"$QEMU_IMG" check -q "$image"
		rc=$?
		((rc == 0 || rc == 3)) || return 1
	done
}
fresh=work after=reads_the_same whole=reads_the_same
sweep rebase_is_whole_or_fails 5 "$QCOW" rebase -b flat.qcow2 -F qcow2 work.qcow2
sweep commit_is_whole_or_fails 5 "$QCOW" commit work.qcow2

# those that write a disk: a part of it may be written, and nothing is damaged
disk() { cp base.qcow2 work.qcow2; }
is_sound() { "$QEMU_IMG" check -q work.qcow2 || (($? == 3)); }
is_written() { is_sound && "$QEMU_IMG" compare -q work.qcow2 "$written"; }
fresh=disk after=is_sound whole=is_written
cp base.qcow2 written.qcow2
"$QEMU_IMG" convert -n -O qcow2 flat.qcow2 written.qcow2
written=written.qcow2
sweep convert_to_what_exists_is_right_or_fails 5 "$QCOW" convert -n -O qcow2 flat.qcow2 work.qcow2
"$QEMU_IMG" convert -O raw base.qcow2 written.raw
dd if=want.raw of=written.raw bs=64k skip=1 seek=2 count=20 conv=notrunc status=none
written=written.raw
sweep dd_to_what_exists_is_right_or_fails 5 "$QCOW" dd -f raw -O qcow2 if=want.raw of=work.qcow2 bs=64k skip=1 \
	seek=2 count=20 conv=notrunc
finish
