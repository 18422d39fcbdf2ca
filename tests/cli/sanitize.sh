#!/bin/bash
# SPDX-License-Identifier: MIT
# sanitize: the disk comes across and nothing else; what vet refuses is refused unless it is left behind.
source "$(dirname "$0")/lib.sh"
need_qemu
# leak detection opens files at the end of the process, and --untrusted forbids it
[[ -z ${QCOW_SANITIZED:-} ]] || export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0
make_images

# clean NAME IN OPTION…: OUT has IN's disk, and nothing that is not the disk
clean() {
	local name=$1 in=$2 got
	shift 2
	rm -f out.qcow2
	expect "$name is written" 0 "$QCOW" sanitize "$@" "$in" out.qcow2
	if "$QEMU_IMG" compare -q "$in" out.qcow2; then ok "$name has the same disk"
	else bad "$name has the same disk"; fi
	"$QEMU_IMG" check -q out.qcow2 && ok "$name is sound" || bad "$name is sound"
	got=$("$QEMU_IMG" info --output json out.qcow2 | python3 -c '
import json, sys
o = json.load(sys.stdin)
data = o["format-specific"]["data"]
print([k for k in ("backing-filename", "snapshots", "encrypted") if k in o] +
      [k for k in ("bitmaps", "data-file") if k in data], data["compat"], data["corrupt"])')
	if [[ $got == '[] 1.1 False' ]]; then ok "$name names nothing"; else bad "$name names nothing" "$got"; fi
}
for image in base v2 bitmaps prealloc compressed zstd small short dirty; do
	clean $image $image.qcow2
	clean "$image --untrusted" $image.qcow2 --untrusted
	clean "$image -c" $image.qcow2 -c
done
clean an_overlay top.qcow2 --allow-backing
clean a_chain sub/third.qcow2 --allow-backing
clean a_data_file datafile.qcow2 --allow-data-file
clean what_would_be_denied bitmaps.qcow2 --deny-features bitmaps,zstd --max-bitmaps 0
python3 "$here/patch.py" base.qcow2 bits.qcow2 88:80000000:4
clean unknown_bits bits.qcow2 --deny-features unknown
# QEMU does not open a corrupt image for writing, and compares it all the same
clean the_corrupt_mark corrupt.qcow2
rm -f out.qcow2
expect raw_as_raw 0 "$QCOW" sanitize -f raw plain.raw out.qcow2
"$QEMU_IMG" compare -q -f raw -F qcow2 plain.raw out.qcow2 && ok raw_is_the_same || bad raw_is_the_same

# bytes that are not the disk stay behind: a snapshot's, and those after the end of what is mapped
create secret.qcow2 1M
io -c 'write -P 0x5a 0 64k' secret.qcow2
"$QEMU_IMG" snapshot -c old secret.qcow2
io -c 'write -P 1 0 64k' secret.qcow2
printf 'HIDDEN%.0s' {1..1000} >>secret.qcow2
clean hidden_bytes secret.qcow2
if grep -qE 'ZZZZZZZZ|HIDDEN' out.qcow2; then bad hidden_bytes_stay_behind; else ok hidden_bytes_stay_behind; fi
grep -qE 'ZZZZZZZZ' secret.qcow2 || bad 'the source has hidden bytes'

# refused NAME PATTERN ARGUMENT…: exit code 2, a line on stderr, no OUT
refused() {
	local name=$1 pattern=$2
	shift 2
	rm -f out.qcow2
	run "$QCOW" sanitize "$@" out.qcow2
	# shellcheck disable=SC2053
	if [[ $rc == 2 && $(<err) == $pattern && ! -e out.qcow2 ]]; then ok "$name"; else bad "$name" "$(shown)"; fi
}
refused a_backing_file '*refused: backing: *' top.qcow2
refused a_data_file '*refused: data-file: *' datafile.qcow2
refused a_disk_too_large '*refused: max-size: *' --max-size 1M base.qcow2
refused another_format '*refused: QCOW_E_NOT_QCOW2: *' plain.raw
refused an_image_for_raw '*refused: raw: *' -f raw base.qcow2
head -c 262144 base.qcow2 >cut.qcow2
refused damage '*refused: L1_ENTRY_BEYOND_FILE: *' cut.qcow2
create_luks luks.qcow2 1M
refused encryption '*refused: luks: *' luks.qcow2

# failures: nothing is left, and nothing is lost
python3 - <<'EOP'
import re
data = bytearray(open("zstd.qcow2", "rb").read())
at = data.find(b"\x28\xb5\x2f\xfd")
data[at:at + 16] = b"\xff" * 16
open("broken.qcow2", "wb").write(data)
EOP
rm -f out.qcow2
says a_broken_stream 1 '*error while converting*' "$QCOW" sanitize broken.qcow2 out.qcow2
[[ ! -e out.qcow2 ]] && ok a_failure_leaves_nothing || bad a_failure_leaves_nothing
echo mine >mine
says a_target_that_is_there 1 '*is there already*' "$QCOW" sanitize base.qcow2 mine
[[ $(<mine) == mine ]] && ok a_target_that_is_there_stays || bad a_target_that_is_there_stays
says no_source 1 'qcow: cannot open: none.qcow2: *' "$QCOW" sanitize none.qcow2 out.qcow2
says untrusted_opens_no_backing 1 '*does not go with*' "$QCOW" sanitize --untrusted --allow-backing top.qcow2 out.qcow2
# devices and FIFOs that an allowed backing name leads to are still refused
mkfifo fifo
create -u -b fifo -F raw trap.qcow2 1M
says an_allowed_name_is_no_fifo 1 '*' timeout 60 "$QCOW" sanitize --allow-backing trap.qcow2 out.qcow2
[[ ! -e out.qcow2 ]] && ok no_target_of_a_refused_name || bad no_target_of_a_refused_name
finish
