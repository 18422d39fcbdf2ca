#!/bin/bash
# SPDX-License-Identifier: MIT
# LUKS files as targets: create -f luks, convert -O luks, detached headers, measure; beside qemu-img, both versions,
# and cryptsetup. And the passphrases of backing files that their overlays name.
# Rules of doc/COMPAT.md: R52.
source "$(dirname "$0")/lib.sh"
need_qemu
printf abc >key
printf wrong >wrong
secret=(--object "secret,id=s,data=abc")
tools=("$QEMU_IMG")
have_new_qemu && tools+=("$QEMU_IMG_NEW")
node() { echo "driver=luks,key-secret=s,file.filename=$1${2:+,header.filename=$2}"; }
same_bytes() { if cmp "$2" "$3" >cmp.out 2>&1; then ok "$1"; else bad "$1" "$(<cmp.out)"; fi; }

head -c 1500000 /dev/urandom >source.raw
truncate -s 2M source.raw
printf 'the quick brown fox jumps over the lazy dog %.0s' {1..900} | dd of=source.raw bs=1k seek=1600 conv=notrunc status=none

# luksdump_says NAME FILE WORD…: cryptsetup takes the header, and every word is in what it prints; with -FILE nothing more
luksdump_says() {
	local name=$1 file=${2#-} only= word
	[[ $2 != -* ]] || only=header
	shift 2
	command -v cryptsetup >/dev/null || return 0
	run cryptsetup luksDump "$file"
	if [[ $rc != 0 ]]; then bad "$name: luksDump" "$(shown)"; return; fi
	for word in "$@"; do
		grep -q -- "$word" out || { bad "$name: luksDump says $word" "$(shown)"; return; }
	done
	ok "$name: luksDump"
	[[ $only == header ]] && return 0 # its own ciphers need a kernel that has device-mapper
	expect "$name: cryptsetup opens it" 0 cryptsetup open --test-passphrase --key-file key "$file"
	run cryptsetup open --test-passphrase --key-file wrong "$file"
	[[ $rc == 2 ]] && ok "$name: not with another" || bad "$name: not with another" "$(shown)"
}

# written NAME OPTIONS [SIZE_OF_HEADER]: convert, then read with every QEMU and with us
written() {
	local name="luks: $1" tool
	rm -f new.luks
	run "$QCOW_QEMU_IMG" convert "${secret[@]}" -O luks -o "key-secret=s,iter-time=0,$1" source.raw new.luks
	if [[ $rc != 0 || -s err ]]; then bad "$name" "$(shown)"; return; fi
	for tool in "${tools[@]}"; do
		run "$tool" convert "${secret[@]}" --image-opts "$(node new.luks)" -O raw back.raw
		if [[ $rc != 0 ]]; then bad "$name: ${#tool}" "$(shown)"
		else same_bytes "$name: ${#tool} reads" source.raw back.raw; fi
	done
	expect "$name: we convert" 0 "$QCOW" convert --secret-file key -O raw new.luks back.raw
	same_bytes "$name: we read" source.raw back.raw
	grep -q 'brown fox' new.luks && bad "$name hides" || ok "$name hides"
}
written cipher-alg=aes-256
luksdump_says 'xts' new.luks 'Payload offset:.4040$' 'xts-plain64' 'Hash spec: *.sha256' 'Key Slot 0: ENABLED' 'Key Slot 1: DISABLED' \
	'Iterations: *.1000$' 'MK iterations: *.1000$'
written cipher-alg=aes-128,hash-alg=sha1
luksdump_says 'aes-128' new.luks 'Payload offset:.2056$' 'MK bits: *.256'
written cipher-alg=aes-192,cipher-mode=xts,ivgen-alg=plain
written cipher-alg=serpent-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512
luksdump_says 'serpent' -new.luks 'cbc-essiv:sha256' 'Cipher name: *.serpent'
written cipher-alg=twofish-128,cipher-mode=ctr,hash-alg=ripemd160
written cipher-alg=cast5-128,cipher-mode=ecb,hash-alg=sha384
written preallocation=full
written preallocation=falloc

# the same options, the same header and the same length as by QEMU: slots, offsets and names
facts() { "$QCOW" info --output json "$1" | python3 -c '
import json, sys
d = json.load(sys.stdin)
f = d["format-specific"]["data"]
for s in f["slots"]:
    s.pop("iters", 0)
print(json.dumps([d["virtual-size"], d["children"][0]["info"]["virtual-size"], {k: v for k, v in f.items() if k not in ("uuid", "master-key-iters")}]))'; }
for options in cipher-alg=aes-256 cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv cipher-alg=serpent-192 \
	cipher-alg=twofish-256,cipher-mode=ctr cipher-alg=cast5-128,cipher-mode=cbc,hash-alg=sha512 cipher-alg=aes-256,cipher-mode=ecb; do
	rm -f theirs.luks
	patient "$QEMU_IMG" create -q -f luks "${secret[@]}" -o "key-secret=s,iter-time=10,$options" theirs.luks 3M ||
		bad "create by QEMU: $options" "$(<patient.out)"
	expect "create: $options" 0 "$QCOW_QEMU_IMG" create -q -f luks "${secret[@]}" -o "key-secret=s,iter-time=10,$options" ours.luks 3M
	facts theirs.luks >a
	facts ours.luks >b
	[[ -s a ]] && same "$options: as by QEMU" a b || bad "$options: as by QEMU"
done
for size in 0 1 511 512 513 1000000; do
	expect "a disk of $size" 0 "$QCOW" create -q -f luks --secret-file key -o iter-time=0 ours.luks $size
	want=$(((size + 511) / 512 * 512))
	[[ $("$QCOW" info --output json ours.luks | python3 -c 'import json, sys; print(json.load(sys.stdin)["virtual-size"])') == "$want" ]] &&
		ok "$size: whole sectors" || bad "$size: whole sectors"
	expect "$size as a source" 0 "$QCOW" convert -O luks --secret-file key -o iter-time=0 ours.luks again.luks
	expect "$size as a source: the same" 0 "$QCOW" compare -q --secret-file key ours.luks again.luks
done
# a file whose last sector is cut short, as QEMU makes it, has that sector
"$QCOW_QEMU_IMG" create -q -f luks "${secret[@]}" -o key-secret=s,iter-time=0 cut.luks 1024
truncate -s -24 cut.luks
if have_new_qemu; then
	"$QEMU_IMG_NEW" convert "${secret[@]}" --image-opts "$(node cut.luks)" -O raw theirs.raw
	"$QCOW_QEMU_IMG" convert "${secret[@]}" --image-opts "$(node cut.luks)" -O raw ours.raw
	same_bytes 'a last sector cut short' theirs.raw ours.raw
fi

# what is printed
prints 'Formatting…' "Formatting 'p.luks', fmt=luks size=1048576 key-secret=s cipher-alg=aes-128 iter-time=0 preallocation=falloc" \
	"$QCOW_QEMU_IMG" create -f luks "${secret[@]}" -o preallocation=falloc,size=1M,iter-time=0,cipher-alg=aes-128,key-secret=s p.luks
if have_new_qemu; then
	"$QEMU_IMG_NEW" create -f luks -o help p.luks | grep -v extent_size >a
	"$QCOW_QEMU_IMG" create -f luks -o help p.luks | grep -v extent_size | sed 's/off, metadata, falloc/off, falloc/' >b
	same 'the options are those of QEMU 11' a b
fi

# over a file that is there
"$QCOW" create -q -f luks --secret-file key -o iter-time=0 there.luks 2M
head -c 4096 there.luks >before
expect 'convert -n' 0 "$QCOW_QEMU_IMG" convert -n "${secret[@]}" source.raw --target-image-opts "$(node there.luks)"
head -c 4096 there.luks >after
same_bytes 'convert -n keeps the header' before after
expect 'convert -n: QEMU' 0 "$QEMU_IMG" convert "${secret[@]}" --image-opts "$(node there.luks)" -O raw back.raw
same_bytes 'convert -n: QEMU reads' source.raw back.raw
expect 'convert -n with --secret-file' 0 "$QCOW" convert -n -O luks --secret-file key -f raw source.raw there.luks
expect 'it is the same disk' 0 "$QCOW" compare -q --secret-file key source.raw there.luks
cp there.luks kept.luks
says 'convert -n with a wrong passphrase' 1 '*wrong passphrase*' "$QCOW" convert -n -O luks --secret-file wrong source.raw there.luks
says 'convert -n of too much' 1 '*No space left on device*' \
	bash -c "truncate -s 3M big.raw; '$QCOW' convert -n -O luks --secret-file key big.raw there.luks"
same_bytes 'neither wrote' kept.luks there.luks
says 'a qcow2 target by driver is none for raw bytes' 1 '*' "$QCOW" convert -n source.raw \
	--target-image-opts driver=qcow2,file.filename=there.luks
same_bytes 'nor did that' kept.luks there.luks

# detached headers
"$QCOW_QEMU_IMG" create -q -f luks "${secret[@]}" -o key-secret=s,iter-time=0,detached-header=on head.luks
[[ $(stat -c %s head.luks) == 2068480 ]] && ok 'a detached header has its length' || bad 'a detached header has its length'
luksdump_says 'detached' head.luks 'Payload offset:.0$'
truncate -s 2M disk.raw
expect 'its disk is written' 0 "$QCOW_QEMU_IMG" convert -n "${secret[@]}" source.raw --target-image-opts "$(node disk.raw head.luks)"
[[ $(stat -c %s disk.raw) == 2097152 ]] && ok 'the disk alone' || bad 'the disk alone'
expect 'its disk is read' 0 "$QCOW_QEMU_IMG" convert "${secret[@]}" --image-opts "$(node disk.raw head.luks)" -O raw back.raw
same_bytes 'its disk is the same' source.raw back.raw
expect 'by json:' 0 "$QCOW" convert "${secret[@]}" -O raw \
	'json:{"driver":"luks","key-secret":"s","file":{"driver":"file","filename":"disk.raw"},"header":{"driver":"file","filename":"head.luks"}}' back.raw
same_bytes 'by json: the same' source.raw back.raw
says 'the header alone is no disk' 1 '*detached LUKS header*' "$QCOW" convert --secret-file key -O raw head.luks back.raw
says 'the disk alone has no header' 1 '*' "$QCOW" convert -f luks --secret-file key -O raw disk.raw back.raw
says 'a header of a raw disk' 1 '*format luks only*' "$QCOW" info --image-opts driver=raw,file.filename=disk.raw,header.filename=head.luks
says 'a header that is not there' 1 '*nowhere*' "$QCOW" info --image-opts "driver=luks,file.filename=disk.raw,header.filename=nowhere"
if have_new_qemu; then
	expect 'QEMU reads header and disk' 0 "$QEMU_IMG_NEW" convert "${secret[@]}" --image-opts "$(node disk.raw head.luks)" -O raw back.raw
	same_bytes 'QEMU reads the same' source.raw back.raw
	for how in human json; do
		"$QEMU_IMG_NEW" info --output $how --image-opts "$(node disk.raw head.luks)" >a
		"$QCOW_QEMU_IMG" info --output $how --image-opts "$(node disk.raw head.luks)" >b
		same "info of both, $how" a b
	done
	patient "$QEMU_IMG_NEW" create -q -f luks "${secret[@]}" -o key-secret=s,iter-time=50,detached-header=true theirs.luks &&
		"$QEMU_IMG_NEW" convert -n "${secret[@]}" source.raw --target-image-opts "$(node disk.raw theirs.luks)" &&
		"$QCOW_QEMU_IMG" convert "${secret[@]}" --image-opts "$(node disk.raw theirs.luks)" -O raw back.raw &&
		same_bytes "QEMU's header and disk" source.raw back.raw || bad "QEMU's header and disk"
fi
if command -v cryptsetup >/dev/null; then
	rm -f cs.luks
	truncate -s 5M cs.raw
	# its disk need not begin where its file does
	cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 --header cs.luks --offset 4096 cs.raw key >out 2>&1 ||
		bad 'cryptsetup makes a detached header' "$(<out)"
	"$QCOW" convert -n "${secret[@]}" source.raw --target-image-opts "$(node cs.raw cs.luks)" >out 2>&1 ||
		bad "cryptsetup's header is written by" "$(<out)"
	expect "cryptsetup's header" 0 "$QCOW" convert "${secret[@]}" --image-opts "$(node cs.raw cs.luks)" -O raw back.raw
	truncate -s 2M back.raw
	same_bytes "cryptsetup's header: the disk at its offset" source.raw back.raw
	cmp -n 2097152 cs.raw /dev/zero >/dev/null && ok 'nothing before the offset' || bad 'nothing before the offset'
fi

# measure: the numbers of qemu-img
truncate -s 1000 odd.raw
measured() { # NAME ARGUMENTS…
	local name=$1
	shift
	have_new_qemu || return 0
	# it does derive a key, for as long as that says
	set -- "${@//encrypt.format=luks,encrypt.key-secret=s/encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=20}"
	set -- "${@/#key-secret=s/iter-time=20,key-secret=s}"
	"$QEMU_IMG_NEW" measure "${secret[@]}" "$@" >a 2>&1
	"$QCOW_QEMU_IMG" measure "${secret[@]}" "$@" >b 2>&1
	same "measure: $name" a b
}
# by QEMU 11.1.3, which derives a key for seconds to say so; luks of 10M, qcow2 of 1G
while read -r format cipher cluster required full; do
	if [[ $format == luks ]]; then
		run "$QCOW_QEMU_IMG" measure "${secret[@]}" -O luks -o key-secret=s,cipher-alg=$cipher --size 10M
	else
		run "$QCOW_QEMU_IMG" measure "${secret[@]}" -O qcow2 --size 1G \
			-o encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=$cipher,cluster_size=$cluster
	fi
	[[ $(<out) == "required size: $required"$'\n'"fully allocated size: $full" ]] && ok "measure: $format $cipher $cluster" ||
		bad "measure: $format $cipher $cluster" "$(shown)"
done <<-END
	luks aes-128 - 11538432 11538432
	qcow2 aes-128 512 22437888 1096179712
	qcow2 aes-128 4k 3690496 1077432320
	qcow2 aes-128 64k 1507328 1075249152
	qcow2 aes-128 2M 12582912 1086324736
	luks aes-256 - 12554240 12554240
	qcow2 aes-256 512 23453696 1097195520
	qcow2 aes-256 4k 4706304 1078448128
	qcow2 aes-256 64k 2490368 1076232192
	qcow2 aes-256 2M 12582912 1086324736
	luks serpent-192 - 12029952 12029952
	qcow2 serpent-192 512 22929408 1096671232
	qcow2 serpent-192 4k 4182016 1077923840
	qcow2 serpent-192 64k 1966080 1075707904
	qcow2 serpent-192 2M 12582912 1086324736
	luks twofish-256 - 12554240 12554240
	qcow2 twofish-256 512 23453696 1097195520
	qcow2 twofish-256 4k 4706304 1078448128
	qcow2 twofish-256 64k 2490368 1076232192
	qcow2 twofish-256 2M 12582912 1086324736
END
prints 'measure: cbc' "required size: 11014144"$'\n'"fully allocated size: 11014144" "$QCOW_QEMU_IMG" measure "${secret[@]}" -O luks -o key-secret=s,cipher-alg=cast5-128,cipher-mode=cbc --size 10M
measured 'an odd file' -O luks -o key-secret=s odd.raw
prints 'measure: refcounts' "required size: 41680896"$'\n'"fully allocated size: 107415863296" "$QCOW_QEMU_IMG" measure "${secret[@]}" -O qcow2 \
	-o encrypt.format=luks,encrypt.key-secret=s,refcount_bits=64,extended_l2=on --size 100G
prints 'measure: full' "required size: 12910592"$'\n'"fully allocated size: 12910592" "$QCOW_QEMU_IMG" measure "${secret[@]}" -O qcow2 \
	-o encrypt.format=luks,encrypt.key-secret=s,preallocation=full --size 10M
measured AES -O qcow2 -o encrypt.format=aes,encrypt.key-secret=s --size 10M
measured 'AES, no key' -O qcow2 -o encryption=on --size 10M
measured json --output json -O qcow2 -o encrypt.format=aes --size 10M
measured 'a LUKS source' -O qcow2 --image-opts "$(node new.luks)"
measured 'no key' -O luks --size 10M
measured 'no key in qcow2' -O qcow2 -o encrypt.format=luks --size 10M
measured 'no such key' -O luks -o key-secret=t --size 10M
measured 'detached' -O luks -o key-secret=s,detached-header=on --size 10M
expect 'qcow measures without a passphrase' 0 "$QCOW" measure -O luks --size 10M
"$QCOW" measure -O luks --size 10M >a
"$QCOW_QEMU_IMG" measure -O luks "${secret[@]}" -o key-secret=s --size 10M >b
same 'and to the same numbers' a b
[[ $(sed -n 's/required size: //p' a) == 12554240 ]] && ok 'the file is that long' || bad 'the file is that long'

# refusals leave nothing
refuses() { # NAME PATTERN COMMAND…
	local name=$1 pattern=$2
	shift 2
	rm -f none.luks
	says "$name" 1 "$pattern" "$@"
	[[ ! -e none.luks ]] && ok "$name: nothing is left" || bad "$name: nothing is left"
}
refuses 'no secret' "*'key-secret' is required*" "$QCOW" create -q -f luks none.luks 1M
refuses 'no such secret' "*No secret with id 't'" "$QCOW" create -q -f luks "${secret[@]}" -o key-secret=t none.luks 1M
refuses 'no size' '*needs a size*' "$QCOW" create -q -f luks --secret-file key none.luks
refuses 'a backing file' "*Backing file not supported for file format 'luks'" "$QCOW" create -q -f luks --secret-file key -b source.raw -F raw none.luks 1M
refuses 'an option of qcow2' "*Invalid parameter 'cluster_size'*" "$QCOW" create -q -f luks --secret-file key -o cluster_size=64k none.luks 1M
refuses 'an option of luks in qcow2' "*Invalid parameter 'key-secret'*" "$QCOW" create -q -f qcow2 -o key-secret=s none.luks 1M
refuses 'a cipher' "*cipher 'foo' is not known" "$QCOW" create -q -f luks --secret-file key -o cipher-alg=foo none.luks 1M
refuses 'a cipher, as QEMU says it' "*none.luks: Parameter 'cipher-alg' does not accept value 'foo'" \
	"$QCOW_QEMU_IMG" create -q -f luks "${secret[@]}" -o key-secret=s,cipher-alg=foo none.luks 1M
refuses 'a time' "*iter-time*" "$QCOW" create -q -f luks --secret-file key -o iter-time=x none.luks 1M
refuses 'twofish-192' '*twofish with keys of 192 bits is not built in: libgcrypt*' "$QCOW" create -q -f luks --secret-file key -o cipher-alg=twofish-192 none.luks 1M
refuses 'compressed' '*Compression not supported for this file format' "$QCOW" convert -c -O luks --secret-file key source.raw none.luks
refuses 'an overlay' "*Backing file not supported for file format 'luks'" "$QCOW" convert -O luks -b source.raw -F raw --secret-file key source.raw none.luks
refuses 'a detached header' '*is made by create*' "$QCOW" convert -O luks --secret-file key -o detached-header=on source.raw none.luks
refuses 'no secret for convert, as QEMU says it' "*none.luks: error while converting luks: Parameter 'key-secret' is required for cipher" \
	"$QCOW_QEMU_IMG" convert -O luks source.raw none.luks
# a run that is cut short leaves no LUKS file: the header comes last
expect 'workers and order' 0 "$QCOW" convert -m 8 -W -O luks --secret-file key -o iter-time=0 source.raw new.luks
expect 'many workers write the same disk' 0 "$QCOW" compare -q --secret-file key source.raw new.luks

# passphrases of backing files that their overlays name
luks_image() { # SECRET FILE OPTIONS…
	local id=$1 file=$2
	shift 2
	"$QCOW" create -q "${secret[@]}" --object secret,id=t,data=xyz --object secret,id=u,data=third \
		-o encrypt.format=luks,encrypt.iter-time=0,encrypt.key-secret="$id" "$@" "$file" 1M || bad "create $file"
}
mkdir deep
luks_image s deep/base.qcow2
luks_image t deep/mid.qcow2 -b base.qcow2 -F qcow2
luks_image u top.qcow2 -b deep/mid.qcow2 -F qcow2
three=("${secret[@]}" --object secret,id=t,data=xyz --object secret,id=u,data=third)
chain=driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=u,backing.encrypt.key-secret=t,backing.backing.encrypt.key-secret=s
base=driver=qcow2,file.filename=deep/base.qcow2,encrypt.key-secret=s
mid=driver=qcow2,file.filename=deep/mid.qcow2,encrypt.key-secret=t,backing.encrypt.key-secret=s
"${QEMU_IMG%img}io" "${three[@]}" --image-opts "$base" -c 'write -q -P 1 0 1M' >out 2>&1 || bad base "$(<out)"
"${QEMU_IMG%img}io" "${three[@]}" --image-opts "$mid" -c 'write -q -P 2 64k 100k' >out 2>&1 || bad mid "$(<out)"
"${QEMU_IMG%img}io" "${three[@]}" --image-opts "$chain" -c 'write -q -P 3 100k 10k' >out 2>&1 || bad top "$(<out)"
truncate -s 1M model.raw
io -f raw -c 'write -q -P 1 0 1M' -c 'write -q -P 2 64k 100k' -c 'write -q -P 3 100k 10k' model.raw
reads_chain() { # NAME OPERAND OPTIONS…
	local name=$1 operand=$2
	shift 2
	rm -f got.raw
	expect "$name" 0 "$QCOW_QEMU_IMG" convert "${three[@]}" "$@" -O raw "$operand" got.raw
	same_bytes "$name: the disk" model.raw got.raw
}
reads_chain 'three passphrases, no file named' "$chain" --image-opts
reads_chain 'by json:' 'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"},"encrypt":{"key-secret":"u"},"backing":{"encrypt":{"key-secret":"t"},"backing.encrypt.key-secret":"s"}}'
reads_chain 'a driver without a file' "$chain,backing.driver=qcow2" --image-opts
reads_chain 'the middle by name' "${chain/,backing.encrypt/,backing.driver=qcow2,backing.file.filename=deep/mid.qcow2,backing.encrypt}" --image-opts
reads_chain 'the last by name' "$chain,backing.backing.driver=qcow2,backing.backing.file.filename=deep/base.qcow2" --image-opts
"$QEMU_IMG" convert "${three[@]}" -O raw --image-opts "$chain" got.raw && same_bytes 'as QEMU does' model.raw got.raw || bad 'as QEMU does'
says 'a secret that is not there' 1 "*No secret with id 'v'*" "$QCOW" convert "${three[@]}" -O raw --image-opts "${chain%s}v" got.raw
says 'one for the wrong layer' 1 '*deep/mid.qcow2*wrong passphrase*' "$QCOW" convert "${three[@]}" -O raw --image-opts \
	"${chain/key-secret=t/key-secret=u}" got.raw
says 'more layers than there are' 1 '*backing file 3*there are 2*' "$QCOW" convert "${three[@]}" -O raw --image-opts \
	"$chain,backing.backing.backing.encrypt.key-secret=s" got.raw
says 'a layer below one that has none' 1 '*below an image that has none*' "$QCOW" convert "${three[@]}" -O raw --image-opts \
	"$chain,backing.backing.backing.driver=raw,backing.backing.backing.file.filename=model.raw" got.raw
says 'an offset without a file' 1 "*'offset' and 'size'*" "$QCOW" convert "${three[@]}" -O raw --image-opts "$chain,backing.offset=512" got.raw
# "backing": null in the middle: nothing lies below
expect 'null below the overlay' 0 "$QCOW" convert "${three[@]}" -O raw \
	'json:{"driver":"qcow2","file.filename":"top.qcow2","encrypt.key-secret":"u","backing":{"encrypt.key-secret":"t","backing":null}}' got.raw
truncate -s 1M null.raw
# the clusters that the middle copied from below when they were written stay whole
io -f raw -c 'write -q -P 1 64k 128k' -c 'write -q -P 2 64k 100k' -c 'write -q -P 3 100k 10k' null.raw
same_bytes 'null: zeros below' null.raw got.raw
# a data file of a layer in the middle, named in the operand
"$QCOW" create -q -o data_file=d1.raw df.qcow2 1M
"$QCOW" create -q -b df.qcow2 -F qcow2 over.qcow2 1M
io -c 'write -q -P 7 0 300k' df.qcow2
mv d1.raw moved.raw
expect 'a data file of the backing file' 0 "$QCOW" convert -O raw --image-opts \
	driver=qcow2,file.filename=over.qcow2,backing.data-file.driver=file,backing.data-file.filename=moved.raw got.raw
truncate -s 0 null.raw
truncate -s 1M null.raw
io -f raw -c 'write -q -P 7 0 300k' null.raw
same_bytes 'a data file of the backing file: the disk' null.raw got.raw
# what reads no guest data needs no passphrase
expect 'info of a chain' 0 "$QCOW" info --backing-chain top.qcow2
expect 'an encrypted backing file' 0 "$QCOW" create -q -b top.qcow2 -F qcow2 plain.qcow2
expect 'info names a secret that is not there' 0 "$QCOW_QEMU_IMG" info --image-opts driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=none
finish
