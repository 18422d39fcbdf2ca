#!/bin/bash
# SPDX-License-Identifier: MIT
# Commands on images with an external data file, raw and not, beside both QEMUs: the same ends, the same disks,
# images that both find clean, and a raw data file that is the disk, byte by byte and no byte longer.
# shellcheck source=tests/cli/lib.sh disable=SC2016,SC2034
source "$(dirname "$0")/lib.sh"
need_qemu
qemus=("$QEMU_IMG")
if have_new_qemu; then qemus+=("$QEMU_IMG_NEW"); fi

# below <- over (data file od), base (data file bd) <- top: in raw ones base is raw; an overlay can't be
prepare() { # ,data_file_raw=on or nothing
	local kind=$1
	rm -rf prep
	mkdir prep
	cd prep || exit 1
	create below 1M
	io -c 'write -P 1 0 1M' below
	create -b below -F qcow2 -o data_file=od over 1M
	io -c 'write -P 2 64k 200k' -c 'write -z 512k 64k' over
	create -o "data_file=bd$kind" base 1M
	io -c 'write -P 3 0 600k' -c 'write -z 128k 64k' base
	create -b base -F qcow2 top 1500k
	io -c 'write -P 4 64k 200k' -c 'write -z 512k 64k' -c 'write -P 5 1400k 10k' top
	cd ..
}
# Done by one program in a folder of its own: how it ended, what it had to say on file 3, the disks.
facts() ( # FOLDER QEMU_IMG QEMU_IO IMAGES COMMANDS
	P=$2 IO=$3 rc=0
	rm -rf "$1"
	cp -R --sparse=always prep "$1"
	cd "$1" || exit 1
	eval "$5" 3>said >out 2>err </dev/null || rc=1
	echo "ends with $rc"
	cat said
	for image in $4; do
		[[ ! -e $image ]] || "$QEMU_IMG" convert -O raw "$image" "$image.raw"
	done
	sha256sum ./*.raw 2>/dev/null
)
# beside NAME IMAGES COMMANDS: COMMANDS with $P as qemu-img, $IO as qemu-io and $new for a new data file leave the
# same disks. What is refused changes nothing. IMAGES: those that may have changed.
beside() {
	local name="${raw:+raw: }$1" touched=$2 commands=$3 image file qemu refused
	for qemu in "${qemus[@]}"; do
		facts "q${#qemu}" "$qemu" "${qemu%img}io" "$touched" "$commands" >"theirs${#qemu}" &
	done
	facts w "$QCOW_QEMU_IMG" "$QCOW_QEMU_IO" "$touched" "$commands" >ours
	wait
	for qemu in "${qemus[@]}"; do same "$name" "theirs${#qemu}" ours; done
	read -r _ _ refused <ours
	cd w || exit 1 # QEMU looks for data files where it runs
	for image in $touched; do
		[[ -e $image ]] || continue
		if ((refused)) && [[ -e ../prep/$image ]]; then same "$name: $image stays" "../prep/$image" "$image"; fi
		for qemu in "${qemus[@]}"; do expect "$name: $image is clean" 0 "$qemu" check -q "$image"; done
	done
	for file in base:bd new:nd; do
		image=${file%:*} file=${file#*:}
		[[ -n $raw && -e $image.raw && -e $file ]] || continue
		[[ $name != *data_file_raw=off* ]] || continue
		same "$name: the data file is the disk" "$image.raw" "$file"
	done
	cd ..
}
# prints_as NAME ARGUMENTS…: what reads only prints the same
prints_as() {
	local name="${raw:+raw: }$1" qemu
	shift
	for qemu in "${qemus[@]}"; do
		# its JSON has fields fewer, its info no children
		[[ $* != *json* && $1 != info || $qemu == "$QEMU_IMG_NEW" ]] || continue
		(cd prep && "$qemu" "$@") >theirs 2>&1
		(cd prep && "$QCOW_QEMU_IMG" "$@") >ours 2>&1
		same "$name" theirs ours
	done
}
for raw in '' ,data_file_raw=on; do
	prepare "$raw"
	new=data_file=nd$raw

	beside 'commit into a base with a data file' 'base top' '$P commit -q top'
	beside 'commit, keeping the overlay' 'base top' '$P commit -q -d top'
	beside 'rebase of its overlay to none' 'top' '$P rebase -b "" top'
	beside 'rebase of its overlay to another' 'top' '$P rebase -F qcow2 -b below top'

	beside 'convert' new '$P convert -O qcow2 -o $new top new'
	beside 'convert -S 0' new '$P convert -S 0 -O qcow2 -o $new,cluster_size=4k base new'
	beside 'convert, preallocation=full' new '$P convert -O qcow2 -o $new,preallocation=full top new'
	beside 'convert -n over old data' new \
		'$P create -q -f qcow2 -o $new new 1500k && $IO -c "write -q -P 9 0 1500k" new && $P convert -n -O qcow2 top new'
	beside 'convert -n -c' new '$P create -q -f qcow2 -o $new new 1500k && $P convert -n -c -O qcow2 top new'
	beside 'convert -c' '' '$P convert -c -O qcow2 -o $new top new'
	beside 'convert -B' new '$P convert -O qcow2 -o $new -B base -F qcow2 top new'
	beside 'convert --bitmaps' new '$P bitmap --add base b && $IO -c "write -q -P 7 128k 64k" base &&
		$P convert --bitmaps -O qcow2 -o $new base new && "$QCOW" map --bitmap b --output json new >&3'
	beside 'dd' new '$P dd -O qcow2 bs=64k skip=1 count=20 if=top of=new'

	beside 'amend data_file' base 'mv bd moved && $P amend -o data_file=moved base; cp moved bd; $P amend -o data_file=bd base'
	beside 'amend data_file_raw=on' base '$P amend -o data_file_raw=on base'
	beside 'amend data_file_raw=off, and writes' base \
		'$P amend -o data_file_raw=off base && $IO -c "write -q -z 64k 64k" -c "write -q -P 8 700k 1k" base'
	beside 'amend compat' base '$P amend -o compat=0.10 base'
	beside 'amend refcount_bits' base '$P amend -o refcount_bits=64,lazy_refcounts=on base'

	beside 'resize' base '$P resize -q base 1500k && $P resize -q --preallocation=full base 1700k && $IO -c "write -q -P 6 1600k 100k" base'
	beside 'resize --shrink' base '$P resize -q --shrink base 130k && $P resize -q base 1M'
	beside 'resize without --shrink' base '$P resize -q base 130k'
	beside 'bitmaps' base '$P bitmap --add -g 64k base b && $IO -c "write -q -P 7 128k 64k" -c "write -q -z 300k 1k" base &&
		$P bitmap --add --disable base c && $P bitmap --merge b base c && $P bitmap --clear --disable base b &&
		"$QCOW" map --bitmap c --output json base >&3 && "$QCOW" map --bitmap b --output json base >&3'
	beside 'snapshot -c' base '$P snapshot -c s base'
	beside 'snapshot -a' base '$P snapshot -a s base'
	beside 'snapshot -d' base '$P snapshot -d s base'

	looked_at=(base top)
	[[ -n $raw ]] || looked_at+=(over)
	for image in "${looked_at[@]}"; do
		prints_as "map $image" map "$image"
		prints_as "map --output json $image" map --output json "$image"
		prints_as "info $image" info "$image"
		prints_as "check $image" check "$image"
		prints_as "measure $image" measure -O qcow2 "$image"
	done
	prints_as 'snapshot -l' snapshot -l base
	prints_as 'measure for a data file' measure -O qcow2 -o "$new" base
	prints_as 'compare' compare base top
done

raw=
beside 'commit of an overlay with a data file' 'below over' '$P commit -q over'
beside 'the same, kept' 'below over' '$P commit -q -d over'
beside 'commit through one with a data file' 'base top new' '$P create -q -f qcow2 -o data_file=nd -b top -F qcow2 new &&
	$IO -c "write -q -P 9 100k 1k" new && $P commit -q -b base new'
beside 'rebase to none' over '$P rebase -b "" over'
beside 'rebase to one with a data file' over '$P rebase -F qcow2 -b base over'
beside 'rebase -u' over '$P rebase -u -b "" over'
beside 'amend data_file_raw=on' over '$P amend -o data_file_raw=on over'
raw=on
beside 'rebase of a raw one' base '$P rebase -F qcow2 -b below base'
cd prep || exit 1
# QEMU makes an image of it that nothing opens
says 'amend to no data file' 1 '*data file*name*' "$QCOW_QEMU_IMG" amend -o data_file= base
expect 'amend to no data file: it stays' 0 "$QEMU_IMG" check -q base
says 'snapshots say why not' 1 '*data file cannot have snapshots*' "$QCOW" snapshot -c s base
says 'and so does a dry run' 1 '*data file cannot have snapshots*' "$QCOW" snapshot --dry-run -c s base
# who writes the image needs its data file; who lists or checks does not
rm bd
expect 'no data file: list' 0 "$QCOW" snapshot -l base
expect 'no data file: check' 0 "$QCOW" check -q base
says 'no data file: bitmap' 1 '*bd*No such file*' "$QCOW" bitmap --add base x
says 'no data file: commit into it' 1 '*bd*No such file*' "$QCOW" commit top
finish
