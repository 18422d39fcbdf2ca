#!/bin/bash
# SPDX-License-Identifier: MIT
# Encrypted images: what we write is read by QEMU, and its headers by cryptsetup; what QEMU writes with every cipher, mode, IV generator and hash that it has is read, with
# every source of a passphrase; what has no key or a wrong one is refused.
# Rules of doc/COMPAT.md: R53.
source "$(dirname "$0")/lib.sh"
need_qemu
printf abc >key
printf 'abc\n' >key-line
printf wrong >wrong
secret=(--object "secret,id=s,data=abc")

# The disk as an array of bytes: the same writes on a raw file.
writes=(-c 'write -q -P 17 0 64k' -c 'write -q -P 3 100000 70001' -c 'write -q -P 9 1048000 1000'
	-c 'write -q -z 600k 64k' -c 'write -q -P 5 2097100 52')
truncate -s 2M want.raw
io -f raw "${writes[@]}" want.raw

# made TOOL FORMAT FILE OPTIONS: some versions fall over their own configurations: one that QEMU cannot make is none of ours.
made() {
	local tool=$1 format=$2 file=$3 options=$4 prefix=encrypt.
	[[ $format == luks ]] && prefix=
	rm -f "$file"
	patient "$tool" create -q -f "$format" "${secret[@]}" -o "${prefix}key-secret=s,${prefix}iter-time=10,$options" "$file" 2M
}
# fill TOOL FILE DRIVER KEY: do the writes with QEMU
fill() { "${1%img}io" "${secret[@]}" --image-opts "driver=$3,file.filename=$2,$4=s" "${writes[@]}" >fill.out 2>&1; }

same_bytes() { if cmp "$2" "$3" >cmp.out 2>&1; then ok "$1"; else bad "$1" "$(<cmp.out)"; fi; }

# reads NAME FILE: the disk is the model's
reads() {
	local name=$1 file=$2
	run "$QCOW" convert -q --secret-file key -O raw "$file" got.raw
	if [[ $rc != 0 ]]; then bad "$name" "$(shown)"; else same_bytes "$name" want.raw got.raw; fi
}

n_made=0 n_none=0
tools=("$QEMU_IMG")
have_new_qemu && tools+=("$QEMU_IMG_NEW")
read_one() { # TOOL OPTIONS
	local name="read ${1##*/} ${#1} $2"
	if ! made "$1" qcow2 one.qcow2 "encrypt.format=luks,$2"; then
		n_none=$((n_none + 1))
		return
	fi
	if [[ $2 == *twofish-192* ]]; then
		says "$name is refused by name" 1 '*twofish with keys of 192 bits is not built in: libgcrypt*' \
			"$QCOW" convert --secret-file key -O raw one.qcow2 got.raw
		return
	fi
	fill "$1" one.qcow2 qcow2 encrypt.key-secret || bad "$name" "$(<fill.out)"
	reads "$name" one.qcow2
	n_made=$((n_made + 1))
}
# Every value of every option at least once; with ENCRYPT_MATRIX=full all that go together, which takes long.
some=(aes-128:xts:plain64 aes-192:xts:plain aes-256:cbc:essiv,encrypt.ivgen-hash-alg=sha256 cast5-128:cbc:plain64
	serpent-128:cbc:plain serpent-192:xts:plain64 serpent-256:cbc:essiv,encrypt.ivgen-hash-alg=sha256
	twofish-128:ctr:plain64 twofish-192:xts:plain64 twofish-256:xts:plain64 aes-256:ecb:plain64)
hashes=(sha1 sha512 ripemd160)
[[ ${ENCRYPT_MATRIX:-} != full ]] || {
	some=()
	for cipher in aes-{128,192,256} cast5-128 serpent-{128,192,256} twofish-{128,192,256}; do
		for mode in xts cbc ctr ecb; do
			for ivgen in plain plain64 essiv,encrypt.ivgen-hash-alg={sha256,md5}; do
				some+=("$cipher:$mode:$ivgen")
			done
		done
	done
	hashes=(md5 sha1 sha224 sha256 sha384 sha512 ripemd160 sm3)
}
for tool in "${tools[@]}"; do
	for row in "${some[@]}"; do
		IFS=: read -r cipher mode ivgen <<<"$row"
		read_one "$tool" "encrypt.cipher-alg=$cipher,encrypt.cipher-mode=$mode,encrypt.ivgen-alg=$ivgen"
	done
	for hash in "${hashes[@]}"; do
		read_one "$tool" "encrypt.hash-alg=$hash"
	done
	[[ ${ENCRYPT_MATRIX:-} == full ]] && continue
	some=(aes-256:xts:plain64 serpent-256:cbc:plain64) # the newest QEMU writes the same
	hashes=(sha256)
done
echo "$n_made configurations made by QEMU and read, $n_none that it does not make"
((n_made >= 10)) && ok 'most configurations were made' || bad 'most configurations were made'

# the old encryption; passphrases longer and shorter than its key
for passphrase in abc 0123456789abcdef 0123456789abcdefgh; do
	secret=(--object "secret,id=s,data=$passphrase")
	printf %s "$passphrase" >key
	create "${secret[@]}" -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 2M
	fill "$QEMU_IMG" aes.qcow2 qcow2 encrypt.key-secret || bad aes "$(<fill.out)"
	reads "aes, passphrase of ${#passphrase} bytes" aes.qcow2
done
printf abc >key
secret=(--object "secret,id=s,data=abc")

# files that are LUKS and nothing else
made "$QEMU_IMG" luks plain.luks cipher-alg=aes-256 || bad 'a LUKS file was made' "$(<patient.out)"
# what nobody wrote is no zeros there
"$QEMU_IO" "${secret[@]}" --image-opts driver=luks,file.filename=plain.luks,key-secret=s -c 'write -q -P 0 0 2M' >out 2>&1
fill "$QEMU_IMG" plain.luks luks key-secret || bad 'a LUKS file' "$(<fill.out)"
reads 'a LUKS file is probed and read' plain.luks
expect 'a LUKS file by name' 0 "$QCOW" convert -f luks --secret-file key -O raw plain.luks got.raw
same_bytes 'a LUKS file by name is read' want.raw got.raw
expect 'a LUKS file by description' 0 "$QCOW_QEMU_IMG" convert "${secret[@]}" --image-opts \
	driver=luks,file.filename=plain.luks,key-secret=s -O raw got.raw
same_bytes 'a LUKS file by description is read' want.raw got.raw
if have_new_qemu; then
	"$QEMU_IMG_NEW" info plain.luks | sed 's/disk size.*//' >a
	"$QCOW_QEMU_IMG" info plain.luks | sed 's/disk size.*//' >b
	same 'info of a LUKS file is that of QEMU' a b
fi
expect 'a LUKS file as raw' 0 "$QCOW" convert -f raw -O raw plain.luks got.raw
same_bytes 'a LUKS file as raw is its bytes' plain.luks got.raw
if command -v cryptsetup >/dev/null; then
	truncate -s 4M crypt.luks
	for pass in first second; do
		printf $pass >"$pass"
	done
	cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 crypt.luks first >out 2>&1 ||
		bad 'cryptsetup makes a LUKS file' "$(<out)"
	cryptsetup luksAddKey -q --pbkdf-force-iterations 1000 --key-file first crypt.luks second >out 2>&1 ||
		bad 'cryptsetup adds a key' "$(<out)"
	for pass in first second; do
		expect "cryptsetup's key slot: $pass" 0 "$QCOW" convert --secret-file $pass -O raw crypt.luks $pass.raw
	done
	same_bytes 'both passphrases open the same disk' first.raw second.raw
	says 'a third opens nothing' 1 '*none of the 2 active LUKS key slots*' \
		"$QCOW" convert --secret-file key -O raw crypt.luks got.raw
	expect 'the first slot is removed' 0 cryptsetup luksKillSlot -q --key-file second crypt.luks 0
	expect 'the second still opens' 0 "$QCOW" convert --secret-file second -O raw crypt.luks got.raw
	says 'the first no more' 1 '*none of the 1 active LUKS key slots*' \
		"$QCOW" convert --secret-file first -O raw crypt.luks got.raw
fi

# where passphrases come from
create_luks disk.qcow2 2M
fill "$QEMU_IMG" disk.qcow2 qcow2 encrypt.key-secret || bad fill "$(<fill.out)"
reads 'a file' disk.qcow2
expect 'a newline at the end is none of it' 0 "$QCOW" convert --secret-file key-line -O raw disk.qcow2 got.raw
same_bytes 'a file with a newline' want.raw got.raw
expect 'a descriptor' 0 bash -c "exec 7<key; '$QCOW' convert --secret-file /dev/fd/7 -O raw disk.qcow2 got.raw"
same_bytes 'by a descriptor' want.raw got.raw
for how in data=abc file=key data=YWJj,format=base64; do
	rm -f got.raw
	expect "a secret by $how" 0 "$QCOW_QEMU_IMG" convert --object "secret,id=s,$how" --image-opts \
		driver=qcow2,file.filename=disk.qcow2,encrypt.key-secret=s -O raw got.raw
	same_bytes "by $how" want.raw got.raw
done
expect 'json:' 0 "$QCOW_QEMU_IMG" convert "${secret[@]}" -O raw \
	'json:{"driver":"qcow2","file":{"driver":"file","filename":"disk.qcow2"},"encrypt":{"key-secret":"s"}}' got.raw
same_bytes 'by json:' want.raw got.raw
# on a terminal of its own: the prompt comes, the passphrase is typed, and the terminal never shows it
cat >typed.py <<-'EOS'
	import os, pty, sys
	pid, terminal = pty.fork()
	if pid == 0:
	    os.execv(sys.argv[1], [sys.argv[1], "convert", "-q", "-O", "raw", "disk.qcow2", "typed.raw"])
	shown, typed = b"", False
	while True:
	    try:
	        part = os.read(terminal, 4096)
	    except OSError:
	        break
	    if not part:
	        break
	    shown += part
	    if not typed and b"Passphrase for disk.qcow2: " in shown:
	        os.write(terminal, b"abc\r")
	        typed = True
	sys.stdout.buffer.write(shown)
	sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if typed else 9)
EOS
run python3 typed.py "$QCOW"
[[ $rc == 0 ]] && ! grep -q abc out && ok 'a passphrase is typed and not shown' ||
	bad 'a passphrase is typed and not shown' "$(shown)"
same_bytes 'by typing' want.raw typed.raw

# refusals
says 'no passphrase' 1 '*disk.qcow2*encrypted*--secret-file*' "$QCOW" convert -O raw disk.qcow2 got.raw
says 'a wrong one' 1 "*disk.qcow2*wrong passphrase: it opens none of the 1 active LUKS key slots" \
	"$QCOW" convert --secret-file wrong -O raw disk.qcow2 got.raw
says 'no passphrase, as QEMU says it' 1 "qemu-img: Could not open 'disk.qcow2': Parameter 'encrypt.key-secret' is required for cipher" \
	"$QCOW_QEMU_IMG" convert -O raw disk.qcow2 got.raw
says 'a wrong one, as QEMU says it' 1 '*Invalid password, cannot unlock any keyslot' "$QCOW_QEMU_IMG" convert \
	--object secret,id=s,data=x --image-opts driver=qcow2,file.filename=disk.qcow2,encrypt.key-secret=s -O raw got.raw
says 'a secret that is not there' 1 "*No secret with id 't'" "$QCOW" map --image-opts \
	driver=qcow2,file.filename=disk.qcow2,encrypt.key-secret=t
says 'a file that is not there' 1 '*nowhere*' "$QCOW" map --secret-file nowhere disk.qcow2
expect 'info needs none' 0 "$QCOW" info disk.qcow2
expect 'check needs none' 0 "$QCOW" check -q disk.qcow2

# chains: every layer has its own passphrase
expect 'an overlay' 0 "$QEMU_IMG" create -q -f qcow2 -b disk.qcow2 -F qcow2 -u over.qcow2 2M
create_luks --object secret,id=t,data=xyz -o encrypt.key-secret=t -b disk.qcow2 -F qcow2 -u over.qcow2 2M
chain=driver=qcow2,file.filename=over.qcow2,encrypt.key-secret=t
chain+=,backing.driver=qcow2,backing.file.filename=disk.qcow2,backing.encrypt.key-secret=s
"$QEMU_IO" "${secret[@]}" --object secret,id=t,data=xyz --image-opts "$chain" -c 'write -q -P 77 30000 5' >out 2>&1 ||
	bad 'QEMU writes the overlay' "$(<out)"
cp want.raw chain.raw
io -f raw -c 'write -q -P 77 30000 5' chain.raw
expect 'a chain of two passphrases' 0 "$QCOW" convert "${secret[@]}" --object secret,id=t,data=xyz \
	--image-opts "$chain" -O raw got.raw
same_bytes 'a chain of two passphrases is read' chain.raw got.raw
says 'one of them is not for the other' 1 '*disk.qcow2*wrong passphrase*' "$QCOW" convert \
	--object secret,id=t,data=xyz --secret-file wrong \
	--image-opts driver=qcow2,file.filename=over.qcow2,encrypt.key-secret=t -O raw got.raw

# snapshots, and clusters of every size
expect 'QEMU takes a snapshot' 0 "$QEMU_IMG" snapshot "${secret[@]}" --image-opts -c one \
	driver=qcow2,file.filename=disk.qcow2,encrypt.key-secret=s
"${QEMU_IMG%img}io" "${secret[@]}" --image-opts driver=qcow2,file.filename=disk.qcow2,encrypt.key-secret=s \
	-c 'write -q -P 1 0 2M' >out 2>&1 || bad 'QEMU writes over a snapshot' "$(<out)"
expect 'a snapshot' 0 "$QCOW" convert --secret-file key -l one -O raw disk.qcow2 got.raw
same_bytes 'a snapshot is decrypted' want.raw got.raw
for cluster in 512 4096 2M; do
	made "$QEMU_IMG" qcow2 size.qcow2 "encrypt.format=luks,cluster_size=$cluster" || continue
	fill "$QEMU_IMG" size.qcow2 qcow2 encrypt.key-secret || bad "clusters of $cluster" "$(<fill.out)"
	reads "clusters of $cluster" size.qcow2
done
made "$QEMU_IMG" qcow2 df.qcow2 "encrypt.format=luks,data_file=df.raw" || bad 'a data file was made' "$(<patient.out)"
fill "$QEMU_IMG" df.qcow2 qcow2 encrypt.key-secret || bad 'a data file' "$(<fill.out)"
reads 'a data file is decrypted' df.qcow2

# ---- what we write ----

# written NAME OPTIONS: convert, then check and read with every QEMU and with us
head -c 1500000 /dev/urandom >source.raw
truncate -s 3M source.raw
written() {
	local name="written: $1" tool node=driver=qcow2,file.filename=new.qcow2,encrypt.key-secret=s
	rm -f new.qcow2 new.data
	run "$QCOW" convert -q -O qcow2 "${secret[@]}" -o "encrypt.key-secret=s,$1" source.raw new.qcow2
	if [[ $rc != 0 ]]; then bad "$name" "$(shown)"; return; fi
	for tool in "${tools[@]}"; do
		expect "$name: ${#tool} checks" 0 "$tool" check -q "${secret[@]}" --image-opts "$node"
		run "$tool" convert -O raw "${secret[@]}" --image-opts "$node" back.raw
		if [[ $rc != 0 ]]; then bad "$name: ${#tool}" "$(shown)"
		else same_bytes "$name: ${#tool} reads" source.raw back.raw; fi
	done
	expect "$name: we check" 0 "$QCOW" check -q new.qcow2
	expect "$name: we convert" 0 "$QCOW" convert --secret-file key -O raw new.qcow2 back.raw
	same_bytes "$name: we read" source.raw back.raw
}
fast=encrypt.format=luks,encrypt.iter-time=10
written "$fast"
written encrypt.format=aes
written encryption=on,compat=0.10
written "$fast,cluster_size=512,encrypt.cipher-alg=aes-192,encrypt.ivgen-alg=plain"
written "$fast,encrypt.cipher-alg=serpent-256,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.hash-alg=sha1"
written "$fast,encrypt.cipher-alg=twofish-128,encrypt.cipher-mode=ctr,encrypt.hash-alg=ripemd160,cluster_size=2M"
written "$fast,encrypt.cipher-alg=cast5-128,encrypt.cipher-mode=ecb,encrypt.hash-alg=sha512"
# what is allocated and never written must still read as zeros
for more in preallocation=metadata preallocation=full preallocation=metadata,compat=0.10 \
	preallocation=falloc,extended_l2=on data_file=new.data data_file=new.data,preallocation=metadata \
	data_file=new.data,preallocation=metadata,extended_l2=on; do
	written "$fast,$more"
done
# a last sector in part, and an overlay of version 2, which stores its zeros
head -c 1000000 source.raw >odd.raw
expect 'odd: convert' 0 "$QCOW" convert -q --secret-file key -O qcow2 -o "$fast" odd.raw new.qcow2
expect 'odd: back' 0 "$QCOW" convert --secret-file key -O raw new.qcow2 back.raw
cmp -n 1000000 odd.raw back.raw >cmp.out 2>&1 && ok 'odd: the same bytes' || bad 'odd: the same bytes' "$(<cmp.out)"
create -o compat=0.10 v2base.qcow2 3M
io -c 'write -q -P 8 0 3M' v2base.qcow2
expect 'an encrypted overlay' 0 "$QCOW" convert -q --secret-file key -O qcow2 -b v2base.qcow2 -F qcow2 \
	-o "$fast,compat=0.10" source.raw new.qcow2
expect 'an encrypted overlay: QEMU' 0 "$QEMU_IMG" convert -O raw "${secret[@]}" --image-opts \
	driver=qcow2,file.filename=new.qcow2,encrypt.key-secret=s back.raw
same_bytes 'an encrypted overlay hides its backing file' source.raw back.raw
# no byte of the disk is on the host in clear
printf 'the quick brown fox jumps over the lazy dog %.0s' {1..9000} >clear.raw
truncate -s 512k clear.raw
for how in $fast encrypt.format=aes; do
	rm -f new.qcow2
	expect "hidden: $how" 0 "$QCOW" convert -q --secret-file key -O qcow2 -o "$how" clear.raw new.qcow2
	grep -q 'brown fox' new.qcow2 && bad "$how hides" || ok "$how hides"
done
# empty images, and what QEMU writes into them
expect create 0 "$QCOW" create -q --secret-file key -o "$fast" new.qcow2 2M
fill "$QEMU_IMG" new.qcow2 qcow2 encrypt.key-secret || bad 'QEMU writes into ours' "$(<fill.out)"
reads 'QEMU writes into ours' new.qcow2
expect 'and finds it sound' 0 "$QEMU_IMG" check -q "${secret[@]}" --image-opts \
	driver=qcow2,file.filename=new.qcow2,encrypt.key-secret=s
if command -v cryptsetup >/dev/null; then
	read -r at bytes < <("$QCOW" dump new.qcow2 | python3 -c '
import json, sys
d = json.load(sys.stdin)
find = lambda o, k: o[k] if k in o else next((r for v in o.values() if isinstance(v, dict) for r in [find(v, k)] if r), None)
print(find(d, "encryption-header-offset"), find(d, "encryption-header-length"))')
	dd if=new.qcow2 of=header.luks bs=512 skip=$((at / 512)) count=$((bytes / 512)) status=none
	truncate -s +1M header.luks
	run cryptsetup luksDump header.luks
	[[ $rc == 0 ]] && grep -q 'xts-plain64' out && grep -q 'Key Slot 0: ENABLED' out && ok luksDump || bad luksDump "$(shown)"
	run cryptsetup luksDump -q --dump-volume-key --key-file key header.luks
	[[ $rc == 0 ]] && grep -q 'MK dump' out && ok 'luksDump of the key' || bad 'luksDump of the key' "$(shown)"
	expect 'cryptsetup opens it' 0 cryptsetup open --test-passphrase --key-file key header.luks
	run cryptsetup open --test-passphrase --key-file wrong header.luks
	[[ $rc == 2 ]] && ok 'and not with another' || bad 'and not with another' "$(shown)"
fi
refuses() { # NAME PATTERN OPTIONS…
	local name=$1 pattern=$2
	shift 2
	says "$name" 1 "$pattern" "$QCOW" create -q "$@" none.qcow2 1M
	[[ ! -e none.qcow2 ]] || bad "$name leaves nothing"
}
refuses 'no secret' "*'encrypt.key-secret' is required*" -o encrypt.format=luks
refuses 'no format' "*'encrypt.format' is missing" "${secret[@]}" -o encrypt.key-secret=s
refuses 'no such secret' "*No secret with id 't'" "${secret[@]}" -o encrypt.format=luks,encrypt.key-secret=t
refuses 'a cipher' "*cipher 'foo' is not known" --secret-file key -o encrypt.format=luks,encrypt.cipher-alg=foo
refuses 'a mode' "*cipher mode 'lrw' is not known" --secret-file key -o encrypt.format=luks,encrypt.cipher-mode=lrw
refuses 'a generator' "*generator 'x' is not known" --secret-file key -o encrypt.format=luks,encrypt.ivgen-alg=x
refuses 'a hash' "*hash 'x' is not known" --secret-file key -o encrypt.format=luks,encrypt.hash-alg=x
refuses 'essiv of sha1' '*needs keys of 20 bytes*' --secret-file key \
	-o encrypt.format=luks,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha1
refuses 'cast5 with xts' '*16-byte blocks*' --secret-file key -o encrypt.format=luks,encrypt.cipher-alg=cast5-128
refuses 'aes-192 with cbc' '*no whole sectors*' --secret-file key \
	-o encrypt.format=luks,encrypt.cipher-alg=aes-192,encrypt.cipher-mode=cbc
refuses 'options of LUKS for AES' '*the old AES has none' --secret-file key -o encrypt.format=aes,encrypt.iter-time=1
refuses 'a raw data file' '*data_file_raw and encryption*' --secret-file key \
	-o encrypt.format=aes,data_file=none.data,data_file_raw=on
says 'compressed' 1 '*Compression and encryption not supported at the same time' "$QCOW" convert -c \
	--secret-file key -O qcow2 -o encrypt.format=aes odd.raw none.qcow2
finish
