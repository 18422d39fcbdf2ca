#!/bin/bash
# SPDX-License-Identifier: MIT
# Persistent bitmaps: what `qcow map --bitmap` says is what qemu-nbd exports of the same bitmap, for images that QEMU
# made and for those that convert --bitmaps made; and what is refused, as qemu-img refuses it.
source "$(dirname "$0")/lib.sh"
need_qemu
command -v nbdinfo >/dev/null || skip_all "nbdinfo is not there (package libnbd-bin)"
nbd=("$(command -v qemu-nbd || true)")
[[ -n ${nbd[0]} ]] || skip_all "qemu-nbd is not there"
have_new_qemu && nbd+=("${QEMU_IMG_NEW%/*}/qemu-nbd")

# theirs QEMU-NBD IMAGE BITMAP: the runs "START LENGTH DIRTY" that the export shows, neighbours joined
theirs() {
	local pid place
	place=$(mktemp -d "$work/nbd.XXXXXX")
	"$1" -r -t -f qcow2 -k "$place/nbd" -B "$3" --fork --pid-file="$place/pid" "$2" 2>theirs.err || return 1
	nbdinfo --map="qemu:dirty-bitmap:$3" "nbd+unix:///?socket=$place/nbd" >runs 2>theirs.err
	pid=$(<"$place/pid")
	kill "$pid"
	# its lock on the image ends with it
	while grep -qs '^State:[[:space:]][^ZX]' "/proc/$pid/status"; do sleep 0.01; done
	[[ -s runs ]] || return 1
	awk '$3 != d && n { put(); n = 0 } !n { s = $1 } { n += $2; d = $3 } END { put() }
		function put() { printf "%.0f %.0f %d\n", s, n, d }' runs
}
agree() { # NAME IMAGE BITMAP
	local peer
	python3 - "$QCOW" "$2" "$3" >ours <<-'END'
		import json, subprocess, sys
		out = subprocess.check_output([sys.argv[1], "map", "--bitmap", sys.argv[3], "--output", "json", sys.argv[2]])
		for e in json.loads(out):
		    print(e["start"], e["length"], int(e["dirty"]))
	END
	for peer in "${nbd[@]}"; do
		# a server of the peer's that does not come up on a busy machine is asked once more
		if ! theirs "$peer" "$2" "$3" >theirs && ! theirs "$peer" "$2" "$3" >theirs; then
			bad "$1" "$peer does not serve it: $(<theirs.err)"
			return
		fi
		same "$1 ($("$peer" --version | awk '{ print $2; exit }'))" theirs ours
	done
}

# ---- images with content, and their copies ----
make() { # NAME SIZE CREATE-OPTIONS
	create -o "$3" "$1" "$2"
	"$QEMU_IMG" bitmap --add "$1" plain
	"$QEMU_IMG" bitmap --add -g 512 "$1" fine
	"$QEMU_IMG" bitmap --add -g 2M "$1" coarse
	"$QEMU_IMG" bitmap --add -g 4k --disable "$1" off
	"$QEMU_IMG" bitmap --add "$1" 'odd name, with "words"'
	io -c 'write 10k 3k' -c 'write 1M 200k' -c 'write -z 4M 64k' -c "write $(($(numfmt --from=iec "$2") - 512)) 512" "$1"
	"$QEMU_IMG" bitmap --add -g 64k "$1" late
	io -c 'write 2M 1' -c 'discard 3M 64k' "$1"
}
make default.qcow2 67M cluster_size=65536
make small.qcow2 9M cluster_size=512
make large.qcow2 5G cluster_size=2M
make extl2.qcow2 33M extended_l2=on,compression_type=zstd,lazy_refcounts=on,refcount_bits=64
make datafile.qcow2 8M data_file=datafile.raw
names=(plain fine coarse off 'odd name, with "words"' late)
checked() { # NAME IMAGE
	local peer
	for peer in "$QEMU_IMG" ${QEMU_IMG_NEW:+"$QEMU_IMG_NEW"}; do expect "$1: $("$peer" --version | awk '{ print $3; exit }') finds it clean" 0 "$peer" check -q "$2"; done
	expect "$1: clean for us" 0 "$QCOW" check -q "$2"
}
listed() { "$QEMU_IMG" info --output json "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["format-specific"]["data"].get("bitmaps"))'; }
while read -r image options; do
	for name in "${names[@]}"; do agree "$image: $name" "$image" "$name"; done
	for program in "$QCOW" "$QCOW_QEMU_IMG"; do
		rm -f copy.qcow2 copy.raw
		# shellcheck disable=SC2086
		expect "$image: ${program##*/} convert --bitmaps $options" 0 "$program" convert --bitmaps -O qcow2 $options "$image" copy.qcow2
		listed "$image" >want; listed copy.qcow2 >got
		same "$image: names, flags and granularities ($options)" want got
		checked "$image: the copy ($options)" copy.qcow2
		expect "$image: the copy's disk" 0 "$QEMU_IMG" compare -q "$image" copy.qcow2
	done
	for name in "${names[@]}"; do
		"$QCOW" map --bitmap "$name" "$image" >want; "$QCOW" map --bitmap "$name" copy.qcow2 >got
		same "$image: the copy's $name ($options)" want got
		agree "$image: the copy's $name ($options)" copy.qcow2 "$name"
	done
	# QEMU writes into it, and it stays in order
	io -c 'write 5M 9k' copy.qcow2
	agree "$image: a copy that QEMU wrote to" copy.qcow2 fine
	checked "$image: a copy that QEMU wrote to" copy.qcow2
done <<-'END'
	default.qcow2 -o cluster_size=512
	default.qcow2 -c -o compression_type=zstd
	small.qcow2 -o cluster_size=2M,refcount_bits=1
	large.qcow2 -o extended_l2=on
	extl2.qcow2 -m 1
	datafile.qcow2 -o data_file=copy.raw,data_file_raw=on
END

# ---- a bitmap of ones: QEMU reads the entries without data ----
create all.qcow2 5G
"$QEMU_IMG" bitmap --add -g 512 all.qcow2 b
io -c 'write -z 0 1G' -c 'write -z 1G 1G' -c 'write -z 2G 1G' all.qcow2
expect 'ones: convert' 0 "$QCOW" convert --bitmaps -O qcow2 all.qcow2 ones.qcow2
agree 'ones' ones.qcow2 b
checked 'ones' ones.qcow2
prints 'ones: human' $'Offset          Length\n0               0xc0000000' "$QCOW" map --bitmap b ones.qcow2
prints 'one range' '[{ "start": 1048576, "length": 512, "dirty": true}]' "$QCOW" map --bitmap b -s 1M -l 512 --output json ones.qcow2

# ---- refusals ----
at=$(python3 - default.qcow2 <<-'END'
	import struct, sys
	d = open(sys.argv[1], "rb").read()
	o = struct.unpack(">I", d[100:104])[0]
	while struct.unpack(">I", d[o:o + 4])[0] != 0x23852875:
	    o += 8 + (struct.unpack(">I", d[o + 4:o + 8])[0] + 7) // 8 * 8
	print(struct.unpack(">Q", d[o + 24:o + 32])[0])
END
)
python3 - "$at" <<-'END'
	import sys
	d = bytearray(open("default.qcow2", "rb").read())
	d[int(sys.argv[1]) + 15] |= 1
	open("inuse.qcow2", "wb").write(d)
END
says 'in use: map' 1 "*in use*" "$QCOW" map --bitmap plain inuse.qcow2
says 'unknown: map' 1 "*bitmap 'nobody' not found*" "$QCOW" map --bitmap nobody default.qcow2
rm -f new.qcow2
for program in "$QCOW" "$QCOW_QEMU_IMG"; do
	says "${program##*/}: in use" 1 "*Cannot copy inconsistent bitmap 'plain'*" "$program" convert --bitmaps -O qcow2 inuse.qcow2 new.qcow2
	says "${program##*/}: raw target" 1 "*Format driver 'raw' does not support bitmaps" "$program" convert --bitmaps -O raw default.qcow2 new.qcow2
	says "${program##*/}: version 2 target" 1 "*Format driver 'qcow2' does not support bitmaps*" "$program" convert --bitmaps -O qcow2 -o compat=0.10 default.qcow2 new.qcow2
	says "${program##*/}: two sources" 1 '*Copying bitmaps only possible with single source' "$program" convert --bitmaps -O qcow2 default.qcow2 small.qcow2 new.qcow2
	says "${program##*/}: raw source" 1 '*Source lacks bitmap support' "$program" convert --bitmaps -f raw -O qcow2 default.qcow2 new.qcow2
	says "${program##*/}: skip alone" 1 '*Use of --skip-broken-bitmaps requires --bitmaps' "$program" convert --skip-broken-bitmaps -O qcow2 default.qcow2 new.qcow2
done
if [[ -e new.qcow2 ]]; then bad 'a refusal leaves nothing'; else ok 'a refusal leaves nothing'; fi
# several of them: which is named, and in which order, is QEMU's
"$QEMU_IMG" create -q -f qcow2 several.qcow2 1M
for name in one two three four; do "$QEMU_IMG" bitmap --add several.qcow2 $name; done
"$QEMU_IO" -f qcow2 -c 'write -q 0 64k' -c 'abort' several.qcow2 2>/dev/null || true
"$QEMU_IMG" bitmap --add several.qcow2 whole
for more in '' --skip-broken-bitmaps; do
	# shellcheck disable=SC2086 # a word or none
	{
		"$QEMU_IMG" convert --bitmaps $more -O qcow2 several.qcow2 peer.qcow2 2>want || true
		"$QCOW_QEMU_IMG" convert --bitmaps $more -O qcow2 several.qcow2 new.qcow2 2>got || true
	}
	same "in use, several of them $more" want got
done
[[ -s want ]] || bad 'bitmaps are in use'
rm -f new.qcow2 peer.qcow2
run "$QCOW" convert --bitmaps --skip-broken-bitmaps -O qcow2 inuse.qcow2 new.qcow2
if [[ $rc == 0 && $(<err) == "qcow: warning: Skipping inconsistent bitmap 'plain'" ]]; then ok 'broken ones are skipped'; else bad 'broken ones are skipped' "$(shown)"; fi
listed new.qcow2 >got; "$QEMU_IMG" convert --bitmaps --skip-broken-bitmaps -O qcow2 inuse.qcow2 peer.qcow2 2>/dev/null; listed peer.qcow2 >want
same 'broken ones are skipped as qemu-img skips them' want got
# -n: into an image that is there, in one step after the disk
size=$("$QEMU_IMG" info --output=json default.qcow2 | python3 -c 'import json, sys; print(json.load(sys.stdin)["virtual-size"])')
for program in "$QCOW" "$QCOW_QEMU_IMG"; do
	create there.qcow2 "$size"
	"$QEMU_IMG" bitmap --add there.qcow2 'its own'
	expect "${program##*/}: -n --bitmaps" 0 "$program" convert -n --bitmaps -O qcow2 default.qcow2 there.qcow2
	for name in "${names[@]}"; do
		"$QCOW" map --bitmap "$name" default.qcow2 >want; "$QCOW" map --bitmap "$name" there.qcow2 >got
		same "${program##*/}: -n: $name" want got
	done
	listed default.qcow2 >want; "$QEMU_IMG" bitmap --remove there.qcow2 'its own'; listed there.qcow2 >got
	same "${program##*/}: -n: flags and granularities" want got
	expect "${program##*/}: -n: the disk too" 0 "$QEMU_IMG" compare default.qcow2 there.qcow2
	expect "${program##*/}: -n: clean" 0 "$QEMU_IMG" check -q there.qcow2
	cp there.qcow2 before
	says "${program##*/}: a name that is there" 1 '*already exists*' "$program" convert -n --bitmaps -O qcow2 default.qcow2 there.qcow2
	same "${program##*/}: is found before anything is written" before there.qcow2
done
finish
