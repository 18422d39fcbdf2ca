#!/bin/bash
# SPDX-License-Identifier: MIT
# R12, R14, R31: qemu-img under the limits of its callers: memory, time, open files, sizes of files, space; one file that works wherever
# it lies and under whatever name it is called.
source "$(dirname "$0")/../cli/lib.sh"
need_qemu
img=$QCOW_QEMU_IMG

# ---- R12: info of 64 TiB over many layers ----
"$img" create -q -f qcow2 l0 64T
for i in {1..198}; do "$img" create -q -u -f qcow2 -b "l$((i - 1))" -F qcow2 "l$i" 64T; done
if [[ -z ${QCOW_SANITIZED:-} ]]; then # the sanitizers reserve address space of their own
	limited() { bash -c 'ulimit -v 1048576 -t 2; exec "$@"' - "$@"; }
	expect 'R12 info of the top' 0 limited "$img" info --output=json l198
	expect 'R12 info of all layers' 0 limited "$img" info --output=json --backing-chain l198
	if python3 -c 'import json; o = json.load(open("out")); assert len(o) == 199 and o[0]["virtual-size"] == 64 << 40, len(o)'
	then ok 'R12 all of them are told'; else bad 'R12 all of them are told' "$(head -c 500 out)"; fi
	expect 'R12 for people' 0 limited "$img" info --backing-chain l198
	# QEMU's -t 2 is enough for a map that has nothing to tell
	expect 'R12 map' 0 limited "$img" map --output=json l198
	# a refcount table that has a block for each 2 MiB of a file of 64 GiB with nothing in it; one speaks of all of it
	python3 - <<'PY'
import struct
C = 2 << 20
with open("blocks", "wb") as f:
    f.truncate(64 << 30)
    f.write(struct.pack(">4sIQIIQIIQQIIQQQQIIQ", b"QFI\xfb", 3, 0, 0, 21, 8 * C, 0, 1, 5 * C, C, 4, 0, 0, 0, 0, 0, 4, 104, 0))
    for at, entries in (C, range(32, (64 << 30) // C)), (5 * C, [6 | 1 << 42]), (6 * C, [i | 1 << 42 for i in range(8, 16)]):
        f.seek(at)
        f.write(b"".join(struct.pack(">Q", i * C) for i in entries))
PY
	expect 'R12 map of a table of many blocks' 0 limited "$img" map --output=json blocks
	rm -f blocks
fi

# ---- open files: an error that says so, and nothing left behind ----
says 'few open files' 1 'qemu-img: *Too many open files' bash -c 'ulimit -n 100; exec "$@"' - "$img" info --backing-chain l198
expect 'enough open files' 0 bash -c 'ulimit -n 256; exec "$@"' - "$img" info --backing-chain l198

# ---- files that may not grow: as QEMU ends, or by an error; the target goes away ----
head -c 3M /dev/urandom >data.raw
run bash -c 'ulimit -f 1024; exec "$@"' - "$img" convert -f raw -O qcow2 data.raw big.qcow2
if [[ $rc == 1 && $(<err) == 'qemu-img: '*'File too large'* && ! -e big.qcow2 ]]; then ok 'a file that may not grow'
else bad 'a file that may not grow' "$(shown; ls)"; fi

# ---- R31: space ----
if [[ -z ${QCOW_SANITIZED:-} ]]; then
	for line in 'convert -f raw -O qcow2 data.raw full.qcow2' 'convert -f raw -O raw -S 0 data.raw full.raw' 'snapshot -c x l0'; do
		# shellcheck disable=SC2086 # words
		says "R31 $line" 1 'qemu-img: *No space left on device' env LD_PRELOAD="$REFUSE_CALLS" REFUSE=space "$img" $line
	done
	[[ ! -e full.qcow2 && ! -e full.raw ]] && ok 'R31 targets are gone' || bad 'R31 targets are gone'
	expect 'R31 the image is what it was' 0 "$QEMU_IMG" check -q l0
fi

# ---- R14: a copy, a link, a link to a link, any folder, an empty environment ----
mkdir -p 'else where' x
for name in qemu-img qemu-io qemu-nbd qcow; do
	cp "$(realpath "$img")" "else where/$name"
	expect "R14 a copy called $name" 0 env -i "ASAN_OPTIONS=${ASAN_OPTIONS:-}" "else where/$name" --version
	[[ $(<out) == "$name "* ]] && ok "R14 it is $name" || bad "R14 it is $name" "$(shown)"
done
ln -s '../else where/qcow' x/qemu-img
ln -s x/qemu-img qemu-img
for path in x/qemu-img ./qemu-img "$work/x/qemu-img"; do
	prints "R14 the link ${path#"$work"/}" "$("$img" --version)" "$path" --version
done
PATH=$work/x:$PATH expect 'R14 found on PATH' 0 qemu-img create -q -f qcow2 here.qcow2 1M
expect 'R14 argv[0] alone tells' 0 bash -c 'exec -a qemu-img "$0" info here.qcow2' 'else where/qcow'
finish
