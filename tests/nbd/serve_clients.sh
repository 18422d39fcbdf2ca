#!/bin/bash
# SPDX-License-Identifier: MIT
# `qcow serve` and what other people's clients can do: nbdsh for each command and for bad ones, nbdinfo, nbdcopy over several
# connections, qemu-img, qemu-io, fio that verifies what it wrote, nbdkit on top of us, nbd-client's list.
script=$(realpath "$(dirname "$0")")/nbdsh.py
. "$(dirname "$0")/lib.sh"
need_qemu
for tool in nbdinfo nbdcopy nbdsh; do
	command -v "$tool" >/dev/null || skip_all "$tool is not there"
done
PATH=/usr/bin:$PATH # nbdsh's Python is the distribution's

# ---- nbdsh ----
"$QEMU_IMG" create -q -f raw first.raw 8M
"$QEMU_IO" -f raw -c 'write -P 0x61 0 1M' first.raw >/dev/null
for name in disk ro; do "$QEMU_IMG" convert -f raw -O qcow2 first.raw "$name"; done
"$QEMU_IMG" bitmap --add disk marks
start -x disk disk
expect a_read_only_one 0 "$QCOW" ctl "$ctl" export-add name=ro "file=$work/ro" format=qcow2 read-only
URI=$(of %s) nbdsh -c "exec(open('$script').read())" >out 2>err
if [[ $? == 0 && $(tail -n 1 out) == end ]]; then
	while IFS= read -r step; do ok "nbdsh: $step"; done <out
else
	bad "nbdsh: $(tail -n 1 out)" "$(<err)"
fi

# ---- nbdinfo ----
for ability in cache df fast-zero flush fua multi-conn trim zero read connect write; do
	expect "nbdinfo --can $ability" 0 nbdinfo --can "$ability" "$(of disk)"
done
for ability in trim zero write; do
	run nbdinfo --can "$ability" "$(of ro)"
	[[ $rc == 2 ]] && ok "not when read-only: $ability" || bad "not when read-only: $ability" "$(shown)"
done
expect it_is_read_only 0 nbdinfo --is read-only "$(of ro)"
run nbdinfo --is tls "$(of disk)"
[[ $rc == 2 ]] && ok it_is_no_tls || bad it_is_no_tls "$(shown)"
run nbdinfo --json "$(of disk)"
python3 -c 'import json, sys
e, = json.load(sys.stdin)["exports"]
assert e["export-size"] == 8 << 20 and not e["is_read_only"] and e["can_multi_conn"] and e["block_size_minimum"] == 1, e
assert set(e["contexts"]) >= {"base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:marks"}, e' <out 2>err &&
	ok nbdinfo_json || bad nbdinfo_json "$(shown)"
run nbdinfo --list --json "$uri"
python3 -c 'import json, sys
assert sorted(e["export-name"] for e in json.load(sys.stdin)["exports"]) == ["disk", "ro"]' <out 2>err && ok nbdinfo_list || bad nbdinfo_list "$(shown)"
prints nbdinfo_map "$(printf '%10d  %10d    0  data\n%10d  %10d    3  hole,zero' 0 1048576 1048576 7340032)" nbdinfo --map "$(of ro)"
prints nbdinfo_totals "$(printf '%10d  12.5%%   0 data\n%10d  87.5%%   3 hole,zero' 1048576 7340032)" nbdinfo --map --totals "$(of ro)"
run nbdinfo --content "$(of disk)"
[[ $rc == 0 && -s out ]] && ok nbdinfo_content || bad nbdinfo_content "$(shown)"
run nbdinfo --map=qemu:dirty-bitmap:nothing "$(of disk)"
[[ $rc != 0 ]] && ok nbdinfo_no_such_map || bad nbdinfo_no_such_map "$(shown)"
end_server
sound disk 'after nbdsh'

# ---- nbdcopy, qemu-img, qemu-io: several connections, all directions ----
python3 - <<'PY'
import random
r = random.Random(1)
with open("want.raw", "wb") as f:
    f.truncate(48 << 20)
    for i in range(40):
        f.seek(r.randrange(47 << 20))
        f.write(r.randbytes(r.choice((100, 4096, 65536, 700000))))
PY
create -o extended_l2=on one 48M
create -o cluster_size=4k two 48M
start -x one -x two one two
for way in '--connections=4 --requests=64' '--connections=1 --requests=1' '--synchronous --no-extents' '--flush --request-size=65536'; do
	# shellcheck disable=SC2086 # words
	expect "nbdcopy $way: there" 0 nbdcopy $way want.raw "$(of one)"
	# shellcheck disable=SC2086
	expect "nbdcopy $way: from one to the other" 0 nbdcopy $way "$(of one)" "$(of two)"
	# shellcheck disable=SC2086
	expect "nbdcopy $way: back" 0 nbdcopy $way "$(of two)" got.raw
	same "nbdcopy $way: the same" want.raw got.raw
done
expect qemu_img_compares 0 "$QEMU_IMG" compare -f raw -F raw "$(of one)" want.raw
expect qemu_img_copies 0 "$QEMU_IMG" convert -m 16 -W -f raw -O qcow2 "$(of two)" copy.qcow2
expect qemu_img_copies_into_it 0 "$QEMU_IMG" convert -n -m 16 -W -f qcow2 -O raw copy.qcow2 "$(of one)"
expect qemu_io_many_at_once 0 "$QEMU_IO" -f raw -c 'aio_write -P 1 0 1M' -c 'aio_write -P 2 1M 1M' -c 'aio_write -z 2M 1M' -c aio_flush \
	-c 'read -P 1 0 1M' -c 'read -P 2 1M 1M' -c 'read -P 0 2M 1M' -c 'writev -P 3 4M 4k 8k 512' -c 'readv -P 3 4M 4k 8k 512' "$(of two)"
expect an_overlay_over_it 0 "$QEMU_IMG" create -q -f qcow2 -b "$(of one)" -F raw over.qcow2
expect is_the_disk 0 "$QEMU_IMG" compare over.qcow2 want.raw

# ---- nbdkit with us below ----
if nbdkit nbd --version >/dev/null 2>&1; then
	for options in '' shared=true; do
		# shellcheck disable=SC2086 # words
		expect "nbdkit nbd $options" 0 nbdkit -U - nbd "uri=$(of one)" $options --run 'nbdcopy --connections=4 "$uri" got.raw && nbdcopy got.raw "$uri"'
		same "nbdkit nbd $options: the same" want.raw got.raw
	done
	expect nbdkit_with_a_filter 0 nbdkit -U - --filter=cow nbd "uri=$(of one)" \
		--run 'qemu-io -f raw -c "write -P 9 0 1M" -c "read -P 9 0 1M" "$uri" && nbdinfo --map "$uri"'
	expect qemu_img_says_that_nothing_changed 0 "$QEMU_IMG" compare -f raw -F raw "$(of one)" want.raw
else
	echo "SKIP nbdkit's plugin nbd is not there"
fi

# ---- fio ----
if fio --enghelp 2>/dev/null | grep -q nbd; then
	for job in randwrite:4k-4k:crc32c randrw:512-64k:xxhash; do
		IFS=: read -r rw size sum <<<"$job"
		expect "fio $job" 0 fio --name=j --ioengine=nbd "--uri=$(of two)" "--rw=$rw" "--bsrange=$size" --iodepth=16 --size=8m --offset=8m \
			--verify="$sum" --verify_fatal=1 --randseed=1 --numjobs=2 --offset_increment=8m --thread --output=fio.out
	done
else
	echo "SKIP fio has no engine for NBD"
fi
end_server
sound one 'after copies'
sound two 'after fio'

# ---- nbd-client, as far as it goes without a kernel's device ----
if command -v nbd-client >/dev/null || [[ -x /usr/sbin/nbd-client ]]; then
	PATH=$PATH:/usr/sbin
	expect nbd_client_lists 0 "$QCOW" serve -x one -x two one two --run "nbd-client -l -u \"\$unixsocket\" >names"
	[[ $(grep -c -x 'one\|two' names) == 2 ]] && ok all_of_them || bad all_of_them "$(<names)"
fi
finish
