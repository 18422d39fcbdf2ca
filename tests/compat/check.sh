#!/bin/bash
# SPDX-License-Identifier: MIT
# check beside the newest qemu-img: exit codes 0 to 3 and 63, the human lines and the JSON byte for byte, before and after a repair.
# Rules of doc/COMPAT.md: R23, R40, R47.
source "$(dirname "$0")/../cli/lib.sh"
need_qemu
have_new_qemu || skip_all 'the newest QEMU is not there (tools/peers/get fetches it)'
img=$QCOW_QEMU_IMG
create clean.qcow2 8M
io -c 'write -q 0 300k' -c 'write -q 4M 64k' clean.qcow2
"$QEMU_IMG" convert -c -O qcow2 clean.qcow2 packed.qcow2
"$QEMU_IMG" create -q -f raw disk.raw 1M
# the refcount of a data cluster: 0 where it should be 1; of a cluster past the end: 1 where it should be 0
read -r blocks data end <<<"$(python3 - <<'PY'
d = open("clean.qcow2", "rb").read()
be = lambda at: int.from_bytes(d[at:at + 8], "big")
l2 = be(be(40)) & ~(1 << 63)
print(be(be(48)), (be(l2) & ~(1 << 63)) >> 16, len(d) >> 16)
PY
)"
python3 "$here/patch.py" clean.qcow2 corrupt.qcow2 "$((blocks + 2 * data)):0:2"
python3 "$here/patch.py" clean.qcow2 leak.qcow2 "$((blocks + 2 * end)):1:2"
truncate -s $(((end + 1) << 16)) leak.qcow2
printf 'QFI\373\0\0\0\3' >short.qcow2
alike() { # NAME STATUS OPTIONS...: the same status and the same on stdout
	local name=$1 status=$2
	shift 2
	"$QEMU_IMG_NEW" check "$@" >want 2>/dev/null </dev/null
	[[ $? == "$status" ]] || bad "$name: QEMU ends with another status than $status"
	run "$img" check "$@"
	if [[ $rc == "$status" ]]; then ok "$name: status $status"; else bad "$name: status $status" "$(shown)"; fi
	same "$name: stdout" want out
}
for output in human json; do
	alike "clean, $output" 0 --output=$output clean.qcow2
	alike "compressed, $output" 0 --output=$output packed.qcow2
	alike "leak, $output" 3 --output=$output leak.qcow2
	alike "raw, $output" 63 --output=$output -f raw disk.raw
	alike "corrupt, $output" 2 --output=$output corrupt.qcow2
done
alike 'quiet' 3 -q leak.qcow2
alike 'too short to be opened' 1 short.qcow2
alike 'not there' 1 nothing.qcow2
# a repair that puts everything right ends with 0, and so does the next check; what is found goes to stderr
repairs() { # NAME IMAGE MODE
	cp "$2" theirs.qcow2 && cp "$2" r.qcow2
	"$QEMU_IMG_NEW" check -r "$3" theirs.qcow2 >want 2>/dev/null
	run "$img" check -r "$3" r.qcow2
	if [[ $rc == 0 ]]; then ok "$1: status 0"; else bad "$1: status 0" "$(shown)"; fi
	# QEMU may make a new refcount structure behind everything else
	sed -i '/^Image end offset/d' want out
	same "$1: stdout" want out
	alike "after it: $1" 0 r.qcow2
}
repairs 'leaks of a leak' leak.qcow2 leaks
repairs 'all of a leak' leak.qcow2 all
repairs 'all of a corruption' corrupt.qcow2 all
same 'its disk is what it was' <("$QEMU_IMG_NEW" convert -O raw clean.qcow2 a.raw; sha1sum <a.raw) <("$QEMU_IMG_NEW" convert -O raw r.qcow2 b.raw; sha1sum <b.raw)
finish
