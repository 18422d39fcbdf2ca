#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow amend: options as they are typed, and the words and exit codes of both QEMUs. What becomes of the image is
# engine_amend's.
source "$(dirname "$0")/lib.sh"
need_qemu

create a.qcow2 1M
io -c 'write -P 1 0 500k' -c 'write -z 64k 64k' a.qcow2
prints json "{
    \"filename\": \"a.qcow2\",
    \"dry-run\": false,
    \"compat\": \"0.10\",
    \"refcount-bits\": 16,
    \"lazy-refcounts\": false,
    \"virtual-size\": 2097152
}" "$QCOW" amend -o compat=0.10,size=2M --output json a.qcow2
expect several 0 "$QCOW" amend -o compat=1.1 -o refcount_bits=64,lazy_refcounts=on,size=1M -p a.qcow2
run "$QEMU_IMG" info a.qcow2
for words in 'compat: 1.1' 'refcount bits: 64' 'lazy refcounts: true' 'virtual size: 1 MiB'; do
	if grep -q "$words" out; then ok "$words"; else bad "$words" "$(shown)"; fi
done
expect check 0 "$QEMU_IMG" check -q a.qcow2
cp a.qcow2 before
expect dry_run 0 "$QCOW" amend --dry-run -o size=5M,lazy_refcounts=off a.qcow2
says no_width 1 'qcow: Refcount width must be *' "$QCOW" amend -o refcount_bits=3 a.qcow2
says no_version 1 'qcow: cannot amend: version 2 needs refcounts of 16 bits*' "$QCOW" amend -o compat=v2,size=5M a.qcow2
same refused_and_dry_runs_change_nothing before a.qcow2

# zeros of version 2 are data: encrypted ones over a backing file are not written
create_luks -b before -F qcow2 luks.qcow2 1M
says encrypted_zeros 1 'qcow: cannot amend: version 2 has no zero clusters*' \
	"$QCOW" amend --object secret,id=s,data=abc -o compat=0.10 \
	--image-opts driver=qcow2,encrypt.key-secret=s,file.filename=luks.qcow2
# how many trees have a table is not believed of its refcount: here of 2, that of the active tree alone
create shared.qcow2 1M
io -c 'write -P 7 0 64k' shared.qcow2
"$QEMU_IMG" snapshot -c s shared.qcow2
io -c 'write -z 0 64k' shared.qcow2
python3 - shared.qcow2 <<-'END'
	import sys
	be = lambda b: int.from_bytes(b, "big")
	f = open(sys.argv[1], "r+b")
	h = f.read(104)
	l1, rt = be(h[40:48]), be(h[48:56])
	f.seek(l1)
	l2 = be(f.read(8)) & ~(1 << 63)
	f.seek(rt)
	rb = be(f.read(8))
	f.seek(l1)
	f.write(l2.to_bytes(8, "big"))
	f.seek(rb + l2 // 65536 * 2)
	f.write(b"\0\2")
END
cp shared.qcow2 was
says a_refcount_too_high 1 'qcow: cannot amend: the L2 table at * has a refcount of 2 and 1 references*' \
	"$QCOW" amend -o compat=0.10 shared.qcow2
reads_as() { "$QCOW" convert -O raw "$@" one.raw && head -c 65536 one.raw | tr -d "\\7" | wc -c; }
[[ $(reads_as -l s shared.qcow2) == 0 ]] && ok the_snapshot_is_as_it_was || bad the_snapshot_is_as_it_was

create v2.qcow2 -o compat=0.10 1M
create v3.qcow2 1M
create sub.qcow2 -o extended_l2=on 1M
create snap.qcow2 1M
"$QEMU_IMG" snapshot -c s snap.qcow2
"$QEMU_IMG" resize -q snap.qcow2 2M
as_qemu() { # FILE OPTIONS: on copies, what it prints, its exit code, what the image is afterwards
	local name="$*" qemu
	for qemu in "$QCOW_QEMU_IMG" "$QEMU_IMG" ${QEMU_IMG_NEW:+"$QEMU_IMG_NEW"}; do
		mkdir files
		cp ./*.qcow2 files
		(cd files && run "$qemu" amend "${@:2}" "$1" && sed 's/qemu-img amend --help/qemu-img --help/' out err &&
			echo "$rc" && "$QEMU_IMG" check -q "$1" && "$QEMU_IMG" info "$1" | grep -v 'disk size') \
			>"words.$(basename "$(dirname "$qemu")")" 2>&1
		rm -r files
	done
	sed -i 's/qemu-img amend --help/qemu-img --help/' words.*
	same "$name" words.compat "words.$(basename "$(dirname "$QEMU_IMG")")"
	[[ -z $QEMU_IMG_NEW ]] || same "$name (newest)" words.compat "words.$(basename "$(dirname "$QEMU_IMG_NEW")")"
}
as_qemu v3.qcow2 -o compat=0.10
as_qemu v2.qcow2 -o compat=1.1
as_qemu v2.qcow2 -o compat=v3,refcount_bits=8
as_qemu v2.qcow2 -o refcount_bits=8
as_qemu v3.qcow2 -o compat=0.10,refcount_bits=8
as_qemu v3.qcow2 -o refcount_bits=64,lazy_refcounts=on
as_qemu v3.qcow2 -o refcount_bits=3
as_qemu v2.qcow2 -o lazy_refcounts=on
as_qemu v3.qcow2 -o size=3M
as_qemu v3.qcow2 -o size=512k
as_qemu v3.qcow2 -o compat=0.42
as_qemu v3.qcow2 -o cluster_size=4k
as_qemu v3.qcow2 -o preallocation=full
as_qemu v3.qcow2 -o data_file=x
as_qemu v3.qcow2 -o data_file_raw=on
as_qemu v3.qcow2 -o backing_file=b
as_qemu sub.qcow2 -o compat=0.10
as_qemu snap.qcow2 -o compat=0.10
as_qemu v3.qcow2 -q
as_qemu v3.qcow2 -f raw -o size=1M

# LUKS: passphrases; those who time their key derivation are asked again on a busy machine
secrets=(--object secret,id=a,data=one --object secret,id=b,data=two)
"$QCOW" create -q -f luks "${secrets[@]}" -o key-secret=a,iter-time=10 l.luks 1M
"$QCOW" create -q "${secrets[@]}" -o encrypt.format=luks,encrypt.key-secret=a,encrypt.iter-time=10 l.qcow2 1M
by() { printf 'driver=%s,file.filename=%s,%skey-secret=%s' "$1" "l.$1" "$2" "$3"; }
for format in luks qcow2; do
	e=$([[ $format == qcow2 ]] && echo encrypt.)
	expect "$format: add" 0 "$QCOW" amend "${secrets[@]}" --image-opts "$(by $format "$e" a)" \
		-o "${e}state=active,${e}new-secret=b,${e}iter-time=10"
	expect "$format: qemu-img opens it by the new one" 0 patient "$QEMU_IMG" compare "${secrets[@]}" --image-opts \
		"$(by $format "$e" b)" "$(by $format "$e" a)" -U
	says "$format: in use" 1 'qcow: cannot amend: Refusing to overwrite active keyslot 1*' "$QCOW" amend "${secrets[@]}" \
		--image-opts "$(by $format "$e" a)" -o "${e}state=active,${e}new-secret=b,${e}keyslot=1"
	expect "$format: erase" 0 "$QCOW" amend "${secrets[@]}" --image-opts "$(by $format "$e" b)" \
		-o "${e}state=inactive,${e}old-secret=a"
	says "$format: the last" 1 'qcow: cannot amend: Attempt to erase the only active keyslot 1 *' "$QCOW" amend \
		"${secrets[@]}" --image-opts "$(by $format "$e" b)" -o "${e}state=inactive,${e}keyslot=1"
	says "$format: what to do" 1 "qcow: Parameter '${e}state' is missing" "$QCOW" amend \
		"${secrets[@]}" --image-opts "$(by $format "$e" b)" -o "${e}keyslot=1"
	expect "$format: the last by force" 0 "$QCOW" amend --force "${secrets[@]}" --image-opts "$(by $format "$e" b)" \
		-o "${e}state=inactive,${e}keyslot=1"
done
finish
