#!/bin/bash
# SPDX-License-Identifier: MIT
# Encrypted images: what QEMU writes with every cipher, mode, IV generator and hash that it has is read, with
# every source of a passphrase; what has no key or a wrong one is refused.
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

# made TOOL FORMAT FILE OPTIONS: QEMU times its key derivation, gives up on a busy machine, and some versions
# fall over their own configurations: a configuration that it cannot make is none of ours.
made() {
	local tool=$1 format=$2 file=$3 options=$4 prefix=encrypt. try
	[[ $format == luks ]] && prefix=
	for try in 1 2 3 4 5 6 7 8 9 10 11 12; do
		rm -f "$file"
		"$tool" create -q -f "$format" "${secret[@]}" \
			-o "${prefix}key-secret=s,${prefix}iter-time=$((try * 10)),$options" "$file" 2M \
			>made.out 2>&1 && return 0
		grep -q 'accurate CPU' made.out || break
	done
	return 1
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
		says "$name is refused by name" 1 "*the cipher 'twofish' * has no keys of *" \
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
made "$QEMU_IMG" luks plain.luks cipher-alg=aes-256 || bad 'a LUKS file was made' "$(<made.out)"
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
if command -v expect >/dev/null; then
	cat >typed.exp <<-EOS
	log_user 1
	spawn "$QCOW" convert -q -O raw disk.qcow2 typed.raw
	expect "Passphrase for disk.qcow2: "
	send "abc\r"
	expect eof
	exit [lindex [wait] 3]
	EOS
	run command expect typed.exp
	[[ $rc == 0 ]] && ! grep -q abc out && ok 'a passphrase is typed and not shown' ||
		bad 'a passphrase is typed and not shown' "$(shown)"
	same_bytes 'by typing' want.raw typed.raw
fi

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
made "$QEMU_IMG" qcow2 df.qcow2 "encrypt.format=luks,data_file=df.raw" || bad 'a data file was made' "$(<made.out)"
fill "$QEMU_IMG" df.qcow2 qcow2 encrypt.key-secret || bad 'a data file' "$(<fill.out)"
reads 'a data file is decrypted' df.qcow2
finish
