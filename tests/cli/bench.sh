#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow bench: every request goes where it should, flushes come when they are asked for, and QEMU's lines are QEMU's.
source "$(dirname "$0")/lib.sh"
need_qemu
create a.qcow2 1M
io -c 'write -P 5 0 1M' a.qcow2
io_rules() { printf '[inject-error]\nevent = "%s"\nerrno = "5"\nonce = "off"\n' "$1" >rules; }

# what is written: an array of bytes beside it
written() { # NAME OFFSET SIZE STEP COUNT OPTION…
	local name=$1 off=$2 size=$3 step=$4 count=$5
	shift 5
	cp a.qcow2 w.qcow2
	expect "$name" 0 "$QCOW" bench -w --pattern 0x41 -o "$off" -s "$size" -S "$step" -c "$count" "$@" w.qcow2
	"$QEMU_IMG" convert -O raw w.qcow2 got.raw
	python3 - "$off" "$size" "$step" "$count" >want.raw <<'PY'
import sys
off, size, step, count = map(int, sys.argv[1:])
disk = bytearray(b"\5" * (1 << 20))
for _ in range(count):
    disk[off:off + size] = b"A" * size
    off += step or size
    if off + size > len(disk):
        off = 0
sys.stdout.buffer.write(disk)
PY
	same "$name: the bytes" want.raw got.raw
	"$QEMU_IMG" check -q w.qcow2 || bad "$name: qemu-img check"
}
written in_a_row 0 4096 0 100 -d 1
written apart 512 1000 4096 50 -d 16
written it_begins_again_at_0 1040000 4096 4096 5 -d 3
written up_to_the_end 983040 65536 65536 2
written with_flushes 0 4096 4096 64 -d 4 --flush-interval 8
written with_flushes_beside 0 4096 4096 64 -d 4 --flush-interval 4 --no-drain
written in_writethrough 0 4096 4096 8 -t writethrough

# flushes: the second one fails; what is written is there already, so that each is one of the file
printf '[set-state]\nevent = "flush_to_disk"\nstate = "1"\nnew_state = "2"\n' >rules
printf '[inject-error]\nevent = "flush_to_disk"\nstate = "2"\nerrno = "5"\nonce = "off"\n' >>rules
cp a.qcow2 f.qcow2
says a_flush_after_the_interval 1 '*a request failed*' "$QCOW" bench -w -c 9 -d 2 --flush-interval 4 blkdebug:rules:f.qcow2
cp a.qcow2 f.qcow2
says only_one_before_the_close 1 '*Failed to close*' "$QCOW" bench -w -c 9 -d 2 --flush-interval 10 blkdebug:rules:f.qcow2
expect unsafe_has_none 0 "$QCOW" bench -w -t unsafe -c 9 -d 2 --flush-interval 4 blkdebug:rules:f.qcow2
io_rules flush_to_disk
says a_flush_at_the_end 1 '*' "$QCOW" bench -w -c 9 -d 2 blkdebug:rules:f.qcow2

# reads
run "$QCOW" bench -c 20 -d 7 -s 8k a.qcow2
if [[ $rc == 0 && ! -s err ]] && grep -qx 'Sending 20 read requests, 8192 bytes each, 7 in parallel (starting at offset 0, step size 8192)' out &&
	grep -qE '^Run completed in [0-9]+\.[0-9]{3} seconds\.$' out && (($(wc -l <out) == 3)); then ok reads
else bad reads "$(shown)"; fi
io_rules read_aio
says a_failed_read 1 'qcow: a request failed*' "$QCOW" bench -c 20 blkdebug:rules:a.qcow2
"$QEMU_IMG" convert -O raw a.qcow2 before.raw
expect quiet 0 "$QCOW" bench -q -c 5 a.qcow2
[[ ! -s out ]] && ok quiet_says_nothing || bad quiet_says_nothing "$(shown)"
run "$QCOW" bench --output json -c 5 -s 64k a.qcow2
python3 -c 'import json
d = json.load(open("out"))
assert (d["requests"], d["bytes"]) == (5, 327680) and d["seconds"] > 0, d' && ok json || bad json "$(shown)"
expect a_deep_queue 0 "$QCOW" bench -c 2000 -d 2147483647 a.qcow2
expect null_co 0 "$QCOW" bench --image-opts -w -c 1000 driver=null-co
"$QEMU_IMG" convert -O raw a.qcow2 after.raw
same reading_changes_nothing before.raw after.raw

# as QEMU: lines without the time, standard error, status. QEMU's own hangs with some arguments.
as_qemu() { # WORD…
	timeout 20 "$QEMU_IMG_NEW" bench "$@" >theirs 2>theirs.err
	local theirs_rc=$?
	[[ $theirs_rc != 124 ]] || { ok "QEMU hangs: $*"; return; }
	run "$QCOW_QEMU_IMG" bench "$@"
	sed -i -E 's/in [0-9.]+ seconds/in T seconds/' out theirs
	if [[ $rc == "$theirs_rc" ]] && cmp -s theirs out && cmp -s theirs.err err; then ok "as QEMU: $*"
	else bad "as QEMU: $*" "QEMU, with status $theirs_rc: $(cat theirs theirs.err) $(shown)"; fi
}
if have_new_qemu; then
	as_qemu -c 100 -d 4 a.qcow2
	as_qemu -q -c 10 a.qcow2
	as_qemu -w -c 100 -d 4 --flush-interval 10 a.qcow2
	as_qemu -w -c 100 -d 4 --flush-interval 10 --no-drain --pattern 7 a.qcow2
	as_qemu -o 512 -S 8k -s 1k -c 3 a.qcow2
	as_qemu -S 0 -c 3 -i threads a.qcow2
	as_qemu -w -o 1040000 -c 30 a.qcow2
	as_qemu -o 2M -c 2 a.qcow2
	as_qemu -w -o 1M -c 2 a.qcow2
	as_qemu -s 2M -c 2 a.qcow2
	as_qemu -U -c 3 a.qcow2
	as_qemu -U -w -c 3 a.qcow2
	as_qemu -c 2 --image-opts driver=qcow2,file.filename=a.qcow2
	as_qemu -f raw -c 2 a.qcow2
	for wrong in '-c 0' '-c -1' '-c x' '-c 2147483648' '-d 0' '-d x' '-s 0' '-s 3G' '-w --pattern 256' '--flush-interval 5' \
		'-w --flush-interval 5 -d 8'; do
		# shellcheck disable=SC2086 # words
		as_qemu $wrong a.qcow2
	done
	as_qemu nofile
fi
finish
