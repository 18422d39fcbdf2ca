#!/bin/bash
# SPDX-License-Identifier: MIT
# The rules that break the programs which call qemu-img when they are missed, by their numbers in doc/COMPAT.md: what is on
# stderr, progress records, the order of options, probes of --help and --version, limits of memory and
# time, one program without helpers, defaults of new images, locks, and the words that are looked for.
source "$(dirname "$0")/lib.sh"
need_qemu
img=$QCOW_QEMU_IMG
create base.qcow2 64M
io -c 'write -P 1 0 20M' -c 'write -P 2 40M 1M' base.qcow2
create -b base.qcow2 -F qcow2 top.qcow2
io -c 'write -P 3 10M 1M' top.qcow2
"$QEMU_IMG" snapshot -c one top.qcow2
head -c 1000000 /dev/urandom >odd.raw

# R1. a run that succeeds writes nothing to stderr (expect looks at it)
for line in 'info top.qcow2' 'info --output=json --backing-chain top.qcow2' 'check top.qcow2' 'map top.qcow2' \
	'map --output=json top.qcow2' 'snapshot -l top.qcow2' 'measure -O qcow2 top.qcow2' \
	'create -f qcow2 new.qcow2 1G' 'create -f raw new.raw 1M' 'convert -O qcow2 top.qcow2 copy.qcow2' \
	'convert -c -O qcow2 odd.raw copy.qcow2' 'convert -O raw top.qcow2 copy.raw' 'info -U odd.raw'; do
	# shellcheck disable=SC2086 # words
	expect "R1 nothing on stderr: $line" 0 "$img" $line
done

# R2. -p: four spaces, two digits, a carriage return each, also into a pipe; a line end last
"$img" convert -p -O raw top.qcow2 copy.raw 2>err | cat >out
if python3 - <<'PY'
import re
data = open("out", "rb").read()
assert re.fullmatch(rb"    \(0\.00/100%\)\r(    \(\d{1,3}\.\d\d/100%\)\r)*    \(100\.00/100%\)\r\n", data), data
PY
then ok 'R2 progress records'; else bad 'R2 progress records' "$(cat -A out)"; fi

# R4 to R9. options behind operands, repeated ones, joined ones, -o in parts
expect 'R4 options behind operands' 0 "$img" create order.qcow2 1.5G -f raw -f qcow2 -o cluster_size=4k -o compat=v2
expect 'R7 an option and its argument in one word' 0 "$img" convert -f raw -O qcow2 '-m 4' '-S 8k' odd.raw order2.qcow2
"$img" info --output json order.qcow2 >a.json
"$img" info --output=json order.qcow2 >b.json
same 'R6 --output json and --output=json' a.json b.json
if python3 -c 'import json
o = json.load(open("a.json"))
assert o["format"] == "qcow2" and o["virtual-size"] == 3 << 29 and o["cluster-size"] == 4096, o
assert o["format-specific"]["data"]["compat"] == "0.10", o'; then ok 'R5 the last -f wins, -o adds up'
else bad 'R5 the last -f wins, -o adds up' "$(<a.json)"; fi
cp order2.qcow2 ./-dash
expect 'R4 -W is a permission, also with -c' 0 "$img" convert -c -W -O qcow2 top.qcow2 any-order.qcow2
run "$QEMU_IMG" compare top.qcow2 any-order.qcow2
[[ $rc == 0 ]] && ok 'R4 and the disk is the same' || bad 'R4 and the disk is the same' "$(shown)"
says 'R22 -o with -n' 1 'qemu-img: -o has no effect when skipping image creation' \
	"$img" convert -n -O raw -o cluster_size=4k odd.raw copy.raw
says 'R22 workers' 1 'qemu-img: Invalid number of coroutines specified. Must be between 1 and 16.' \
	"$img" convert -m 17 odd.raw copy.raw
says 'R22 cache mode' 1 'qemu-img: Invalid source cache option: foo' "$img" convert -T foo odd.raw copy.raw
expect 'R4 -- ends the options' 0 "$img" info -f qcow2 -- -dash
for list in 'help' '?'; do
	run "$img" create -f qcow2 -o "$list" x
	grep -q '^  cluster_size=<size>' out && ok "R9 -o $list" || bad "R9 -o $list" "$(shown)"
done

# R10, R11. probes
run "$img" --help
for probe in 'convert .*--target-is-zero' 'info .*\[-U\]' 'map .*\[-U\]' 'create .*\[-u\]' 'measure .*--size' \
	'check .*\[-r \[leaks | all\]\]'; do
	if grep -qE "^  ${probe}" <(sed 's/[[]leaks | all[]]/[leaks | all]/' out) || grep -q "^  $probe" out
	then ok "R10 --help: $probe"; else bad "R10 --help: $probe" "$(shown)"; fi
done
for option in --version -V; do
	run "$img" $option
	if [[ $(head -n 1 out) =~ ^qemu-img\ version\ [0-9]+\.[0-9]+\.[0-9]+([ ].*)?$ ]]; then ok "R11 $option"
	else bad "R11 $option" "$(shown)"; fi
done

# R12, R13. limits. The sanitizers reserve address space of their own.
if [[ -z ${QCOW_SANITIZED:-} ]]; then
	expect 'R12 info in 1 GiB and 2 s' 0 bash -c 'ulimit -v 1048576 -t 2; exec "$@"' - "$img" info --output=json --backing-chain top.qcow2
	for to in '-O raw' '-O qcow2' '-c -O qcow2'; do
		# shellcheck disable=SC2086
		expect "R13 convert $to in 2 GiB" 0 env MALLOC_ARENA_MAX=3 bash -c 'ulimit -v 2097152; exec "$@"' - \
			"$img" convert -m 16 $to top.qcow2 limited
	done
fi

# R14. one program: a copy of it alone, with nothing to run and no library of ours
mkdir alone
cp "$img" alone/qemu-img
if [[ -z ${QCOW_SANITIZED:-} ]]; then
	expect 'R14 the program alone' 0 env -i PATH=/nonexistent alone/qemu-img convert -O qcow2 odd.raw alone/out
	if grep -q libqcowkit <(ldd alone/qemu-img); then bad 'R14 our library is inside' "$(ldd alone/qemu-img)"
	else ok 'R14 our library is inside'; fi
fi

# R15, R16, R17, R18. defaults of a new image, its header packed in front, and what is there already
mkdir sub
cp base.qcow2 sub/relative.qcow2
expect 'R17 an overlay' 0 "$img" create -q -f qcow2 -b relative.qcow2 -F qcow2 sub/over.qcow2
if python3 - <<'PY'
import struct
data = open("sub/over.qcow2", "rb").read()
magic, version, name_off, name_len, bits = struct.unpack(">IIQII", data[:24])
incompatible, compatible, autoclear, order, length = struct.unpack(">QQQII", data[72:104])
assert (magic, version, bits, order) == (0x514649fb, 3, 16, 4), (version, bits, order)
assert (incompatible, compatible, autoclear) == (0, 0, 0), (incompatible, compatible, autoclear)
assert data[104] == 0, "compression"
assert data[name_off:name_off + name_len] == b"relative.qcow2", "the name is not as typed"
assert name_off + name_len <= 33 * 1024, name_off
at, kinds = length, {}
while at < name_off:
    kind, n = struct.unpack(">II", data[at:at + 8])
    if kind == 0:
        break
    kinds[kind] = data[at + 8:at + 8 + n]
    at += 8 + (n + 7) // 8 * 8
assert kinds[0xe2792aca] == b"qcow2", kinds
assert at + 8 == name_off, "the name does not follow the extensions: %d, %d" % (at, name_off)
PY
then ok 'R15, R16, R17 defaults, packed, the name as typed'; else bad 'R15, R16, R17 defaults, packed, the name as typed'; fi
for command in 'create -q -f qcow2 there 1M' 'create -q -f raw there 1M' 'convert -O qcow2 odd.raw there' \
	'convert -O raw top.qcow2 there'; do
	echo precious >there
	chmod 604 there
	[[ $(id -u) != 0 ]] || chown 12:34 there
	before=$(stat -c '%i %a %u %g' there)
	# shellcheck disable=SC2086
	expect "R18 onto a file that is there: $command" 0 "$img" $command
	if [[ $(stat -c '%i %a %u %g' there) == "$before" ]]; then ok "R18 inode, mode and owner: $command"
	else bad "R18 inode, mode and owner: $command" "$before, now $(stat -c '%i %a %u %g' there)"; fi
done

# R19. locks: we keep QEMU out while we write, and let it read what we read
"$img" convert -r 1M -O qcow2 base.qcow2 slow.qcow2 &
convert_pid=$!
for _ in {1..200}; do
	grep -q ' 101 101$\| 100 101$' /proc/locks && [[ -s slow.qcow2 || -e slow.qcow2 ]] && break
	sleep 0.02
done
says 'R19 a writer of ours keeps readers out' 1 '*Failed to get shared "write" lock*' "$QEMU_IMG" info -f qcow2 slow.qcow2
says 'R19 a writer of ours keeps writers out' 1 '*Failed to get * lock*' "$QEMU_IO" -c 'write 0 1k' base.qcow2
expect 'R19 a reader of ours lets readers in' 0 "$QEMU_IMG" info base.qcow2
kill $convert_pid
wait $convert_pid 2>/dev/null
[[ ! -e slow.qcow2 ]] && ok 'R19 the interrupted target is gone' || bad 'R19 the interrupted target is gone'

# the words, on the first line of stderr
says 'R27 no file' 1 'qemu-img: *No such file or directory' "$img" info nope
says 'R27 no backing file' 1 'qemu-img: *No such file or directory' "$img" create -f qcow2 -b nope -F qcow2 x
says 'R29 not qcow2' 1 '*: Image is not in qcow2 format' "$img" info -f qcow2 odd.raw
says 'R30 no snapshot' 1 "qemu-img: Failed to load snapshot: Can't find snapshot" \
	"$img" convert -l nope -O raw top.qcow2 x
stdbuf -oL "$QEMU_IO" -c length -c 'sleep 120000' base.qcow2 >opened 2>&1 &
io_pid=$!
for _ in {1..500}; do
	[[ ! -s opened ]] || break
	sleep 0.02
done
says 'R28 locked' 1 '*Failed to get shared "write" lock' "$img" info base.qcow2
if [[ $(sed -n 2p err) == 'Is another process using the image [base.qcow2]?' ]]; then ok 'R28 the question'
else bad 'R28 the question' "$(shown)"; fi
# an overlay over what is in use is made, as programs do before they take a snapshot; what writes to the disk itself is not
expect 'R28 an overlay over an image in use' 0 "$img" create -q -f qcow2 -b base.qcow2 -F qcow2 live.qcow2
create -u -b odd.raw -F raw moved.qcow2 1M
expect 'R28 rebase -U shares the files below' 0 "$img" rebase -U -b base.qcow2 -F qcow2 moved.qcow2
lock='Failed to get "write" lock'
says 'R28 create over an image in use' 1 "qemu-img: base.qcow2: $lock" "$img" create -q -f qcow2 base.qcow2 1M
says 'R28 convert over an image in use' 1 "qemu-img: base.qcow2: error while converting qcow2: $lock" "$img" convert -O qcow2 odd.raw base.qcow2
says 'R28 dd over an image in use' 1 "qemu-img: base.qcow2: error while creating output image: $lock" "$img" dd -O qcow2 if=odd.raw of=base.qcow2
says 'R28 convert into an image in use' 1 "qemu-img: Could not open 'base.qcow2': $lock" "$img" convert -n -O qcow2 odd.raw base.qcow2
says 'words: a folder that is not there' 1 "qemu-img: no/x: Could not create 'no/x': No such file or directory" "$img" create -q -f qcow2 no/x 1M
kill $io_pid
wait $io_pid 2>/dev/null
if [[ -z ${QCOW_SANITIZED:-} ]]; then
	n_said=0 n_failed=0
	for ((i = 20; i < 120; i += 7)); do
		FAIL_AT=$i LD_PRELOAD=${FAIL_NTH:?} "$img" convert -O qcow2 top.qcow2 x >out 2>err && continue
		n_failed=$((n_failed + 1))
		! grep -q '^qemu-img: .*Cannot allocate memory' err || n_said=$((n_said + 1))
	done
	if ((n_failed > 3 && n_said == n_failed)); then ok 'R32 out of memory'
	else bad 'R32 out of memory' "$n_said of $n_failed failures say so; the last: $(<err)"; fi
fi

# check's lines are QEMU's, damage by damage
if have_new_qemu; then
	create k.qcow2 1M
	io -c 'write 0 256k' k.qcow2
	n=0
	for damage in 131082:0000:2 131082:0002:2 131080:0000:2 131080:0002:2 131072:0000:2 262144:8000000000050002:8 \
		262144:8000000000060000:8 262144:8000000000050001:8; do
		python3 "$here/patch.py" k.qcow2 damaged.qcow2 "$damage"
		"$QEMU_IMG_NEW" check damaged.qcow2 >theirs 2>&1
		theirs_rc=$?
		run "$img" check damaged.qcow2
		# stdout and stderr each in order
		"$img" check damaged.qcow2 >ours 2>&1
		sort theirs -o theirs
		sort ours -o ours
		if [[ $rc == "$theirs_rc" ]] && cmp -s theirs ours; then n=$((n + 1))
		else bad "R41 check of $damage" "$(diff theirs ours) $(shown)"; fi
	done
	((n == 8)) && ok "R41 check says what QEMU says of $n kinds of damage"
	# unknown features, all of them, with the image's own names
	python3 - <<'PY'
import struct
data = bytearray(open("k.qcow2", "rb").read())
data[72:80] = struct.pack(">Q", 7 << 61)
at = data.index(struct.pack(">I", 0x6803f857))
data[at + 8:at + 10] = b"\0\x3d"
data[at + 10:at + 56] = b"my feature".ljust(46, b"\0")
open("unknown.qcow2", "wb").write(data)
PY
	want=$("$QEMU_IMG_NEW" info unknown.qcow2 2>&1)
	says 'R34 unknown features' 1 "$want" "$img" info unknown.qcow2
fi
finish
