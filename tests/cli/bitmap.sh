#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow bitmap: actions as they are typed, what is refused, and QEMU's words and exit codes. What becomes of the bits is
# engine_bitmap_edit's.
# QEMU flushes after every action
# Rules of doc/COMPAT.md: R60.
[[ -n ${TMPDIR:-} || ! -w /dev/shm ]] || export TMPDIR=/dev/shm
source "$(dirname "$0")/lib.sh"
need_qemu

# bitmaps FILE: "name granularity flags", a line each, as QEMU has them
bitmaps() {
	"$QEMU_IMG" info --output json "$1" | python3 -c 'import json, sys
for b in json.load(sys.stdin)["format-specific"]["data"].get("bitmaps", []):
    print(b["name"], b["granularity"], *sorted(b["flags"]))'
}
has() { # NAME FILE TEXT: the file has these bitmaps, and is clean
	if [[ $(bitmaps "$2") == "$3" ]] && "$QEMU_IMG" check -q "$2" >check.out 2>&1; then ok "$1"
	else bad "$1" "wanted '$3', got '$(bitmaps "$2")' $(<check.out)"; fi
}
create a.qcow2 10M
expect add 0 "$QCOW" bitmap --add a.qcow2 one
expect add_granularity 0 "$QCOW" bitmap -g 4k --add --disable a.qcow2 two
has what_was_added a.qcow2 $'one 65536 auto\ntwo 4096'
io -c 'write 1M 100k' a.qcow2
expect several_in_order 0 "$QCOW" bitmap --disable --clear --merge one --enable a.qcow2 two
has what_was_merged a.qcow2 $'one 65536 auto\ntwo 4096 auto'
run "$QCOW" map --bitmap two --output json a.qcow2
if [[ $(grep -c '"dirty": true' out) == 1 ]] && grep -q '"start": 1048576, "length": 131072, "dirty": true' out; then ok bits; else bad bits "$(shown)"; fi
create -o cluster_size=4k b.qcow2 10M
expect from_another_image 0 "$QCOW" bitmap --add -g 512 --merge two -b a.qcow2 -F qcow2 b.qcow2 copy
run "$QCOW" map --bitmap copy --output json b.qcow2
if grep -q '"start": 1048576, "length": 131072, "dirty": true' out; then ok bits_across_images; else bad bits_across_images "$(shown)"; fi
expect image_opts 0 "$QCOW" bitmap --image-opts --add driver=qcow2,file.filename=b.qcow2 more
has image_opts_bitmaps b.qcow2 $'copy 512 auto\nmore 4096 auto'
cp a.qcow2 before
prints json '{
    "filename": "a.qcow2",
    "actions": [
        {
            "action": "remove",
            "bitmap": "two"
        },
        {
            "action": "add",
            "bitmap": "two"
        },
        {
            "action": "merge",
            "bitmap": "two",
            "source": "one"
        }
    ],
    "dry-run": true
}' "$QCOW" bitmap --remove --add --merge one --dry-run --output json a.qcow2 two
prints dry_run 'It can be done.' "$QCOW" bitmap --remove-all --dry-run a.qcow2
prints dry_run_quietly '' "$QCOW" bitmap --remove-all --dry-run -q a.qcow2
says all_or_none 1 "qcow: Operation merge on bitmap two failed: Dirty bitmap 'three' not found" \
	"$QCOW" bitmap --clear --disable --merge three a.qcow2 two
says no_action 1 'qcow: Need at least one of --add, *' "$QCOW" bitmap a.qcow2 one
says no_size 1 'qcow: invalid granularity *' "$QCOW" bitmap --add -g x a.qcow2 three
says no_power 1 'qcow: Operation add on bitmap three failed: Granularity must be *' "$QCOW" bitmap --add -g 3k a.qcow2 three
same refused_and_dry_runs_change_nothing before a.qcow2
expect remove_all 0 "$QCOW" bitmap --remove-all a.qcow2
has nothing_is_left a.qcow2 ''
expect remove_all_of_none 0 "$QCOW" bitmap --remove-all a.qcow2
prints progress '' "$QCOW" bitmap --add --progress=3 a.qcow2 shown 3>lines
if grep -qx '2 2' lines; then ok progress_lines; else bad progress_lines "$(<lines)"; fi

# the words and exit codes of both QEMUs
create c.qcow2 10M
"$QEMU_IMG" bitmap --add c.qcow2 b0
create d.qcow2 20M
"$QEMU_IMG" bitmap --add d.qcow2 big
create -o compat=0.10 v2.qcow2 1M
truncate -s 1M plain.raw
create broken.qcow2 10M
"$QEMU_IMG" bitmap --add broken.qcow2 bad
{ (ulimit -c 0; exec "$QEMU_IO" -c 'write 0 64k' -c abort broken.qcow2); } >/dev/null 2>&1
"$QEMU_IMG" bitmap --add broken.qcow2 good
as_qemu() { # ARGUMENTS…: on copies of the files, what it prints, its exit code, the bitmaps afterwards
	local name="$*" qemu
	for qemu in "$QCOW_QEMU_IMG" "$QEMU_IMG" ${QEMU_IMG_NEW:+"$QEMU_IMG_NEW"}; do
		# the older one has no --remove-all
		[[ $qemu == "$QEMU_IMG" && $name == *remove-all* ]] && continue
		mkdir files
		cp c.qcow2 d.qcow2 v2.qcow2 plain.raw broken.qcow2 files
		(cd files && run "$qemu" "$@"
			cat out; sed "s/in '[^']*': Cannot/in NODE: Cannot/; s/in '[^']*': Name/in NODE: Name/; s/bitmaps to [^:]*:/bitmaps to NODE:/" err
			echo "$rc"
			for file in c.qcow2 broken.qcow2; do bitmaps "$file"; done) >"words.$(basename "$(dirname "$qemu")")" 2>&1
		rm -r files
		if [[ $qemu == "$QCOW_QEMU_IMG" ]]; then mv "words.$(basename "$(dirname "$qemu")")" ours
		else same "as_qemu: ${name:0:80} ($("$qemu" --version | awk '{ print $3; exit }'))" "words.$(basename "$(dirname "$qemu")")" ours; fi
	done
}
as_qemu bitmap --add c.qcow2 b0
as_qemu bitmap --remove c.qcow2 nope
as_qemu bitmap --disable c.qcow2 nope
as_qemu bitmap --clear broken.qcow2 bad
as_qemu bitmap --merge nope broken.qcow2 bad
as_qemu bitmap --merge nope c.qcow2 b0
as_qemu bitmap --merge bad broken.qcow2 good
as_qemu bitmap --merge b0 c.qcow2 b0
as_qemu bitmap --add -g 100 c.qcow2 b1
as_qemu bitmap --add -g 2G c.qcow2 b1
as_qemu bitmap --add --granularity 512 --disable c.qcow2 b1
as_qemu bitmap -g 64k --remove c.qcow2 b0
as_qemu bitmap --add c.qcow2
as_qemu bitmap --add v2.qcow2 x
as_qemu bitmap --add -f raw plain.raw x
as_qemu bitmap --add c.qcow2 ''
as_qemu bitmap --add c.qcow2 "$(printf 'a%.0s' {1..1023})"
as_qemu bitmap --merge big -b d.qcow2 -F qcow2 c.qcow2 b0
says merge_from_the_same_file 1 "qemu-img: Could not open 'c.qcow2': Failed to get *" "$QCOW_QEMU_IMG" bitmap --merge b0 -b c.qcow2 c.qcow2 b0
as_qemu bitmap --merge b0 -F qcow2 c.qcow2 b0
as_qemu bitmap -b d.qcow2 --add c.qcow2 b7
as_qemu bitmap --remove --add c.qcow2 b0
as_qemu bitmap --remove broken.qcow2 bad
as_qemu bitmap --remove-all broken.qcow2
as_qemu bitmap --add --remove-all c.qcow2 b5
# QEMU takes a disk for its whole sectors, and would not open these
"$QCOW" create -q -o cluster_size=512 odd.qcow2 2M
expect a_byte_more 0 "$QCOW" resize -q odd.qcow2 2097153
says no_bitmap_that_qemu_cannot_open 1 'qcow: *QEMU could not open the image*' "$QCOW" bitmap --add -g 512 odd.qcow2 b
"$QCOW" create -q odd.qcow2 1M
expect an_odd_size_that_qemu_opens 0 "$QCOW" bitmap --add odd.qcow2 b
says no_size_that_qemu_cannot_open 1 'qcow: *QEMU could not open the image*' "$QCOW" resize --shrink odd.qcow2 300
expect qemu_opens_it 0 "$QEMU_IMG" check -q odd.qcow2
finish
