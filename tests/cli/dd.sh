#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow dd beside dd itself and, in the personality, beside both QEMUs.
# shellcheck source=tests/cli/lib.sh
source "$(dirname "$0")/lib.sh"
need_qemu
head -c 3000000 /dev/urandom >in.raw
truncate -s 5M in.raw
head -c 300000 /dev/urandom >>in.raw
create in.qcow2 4M
io -c 'write -P 5 100k 300k' in.qcow2
"$QEMU_IMG" create -q -f qcow2 -b in.qcow2 -F qcow2 over.qcow2
io -c 'write -P 6 300k 1M' over.qcow2
"$QEMU_IMG" convert -O raw over.qcow2 over.raw
head -c 2000000 /dev/urandom >old.raw

# as_dd OPERANDS…: the same file as dd makes of the same bytes
as_dd() {
	cp old.raw theirs.raw
	cp old.raw ours.raw
	dd if=in.raw of=theirs.raw status=none "$@"
	run "$QCOW" dd -f raw if=in.raw of=ours.raw "$@"
	[[ $rc == 0 && ! -s out && ! -s err ]] && cmp -s theirs.raw ours.raw && ok "as dd: $*" ||
		bad "as dd: $*" "$(shown) $(stat -c '%n %s' theirs.raw ours.raw)"
}
as_dd bs=1M
as_dd
as_dd bs=1000 count=7 skip=3
as_dd bs=64k count=10 skip=40
as_dd bs=64k count=10 seek=3 conv=notrunc
as_dd bs=64k count=100 seek=3 conv=notrunc
as_dd bs=777 seek=5 skip=1 conv=notrunc
as_dd bs=4k conv=sparse,notrunc
as_dd bs=64k conv=notrunc,sparse seek=1 skip=30
as_dd bs=1M count=0
# images on both sides
expect from_a_chain 0 "$QCOW" dd if=over.qcow2 of=out.raw bs=64k
same chain_is_read out.raw over.raw
expect to_qcow2 0 "$QCOW" dd -O qcow2 if=over.qcow2 of=new.qcow2 bs=64k
expect to_qcow2_is_the_disk 0 "$QEMU_IMG" compare -q new.qcow2 over.raw
expect to_qcow2_checks 0 "$QEMU_IMG" check -q new.qcow2
expect sparse_to_qcow2 0 "$QCOW" dd -O qcow2 conv=sparse if=over.qcow2 of=sparse.qcow2 bs=64k
expect sparse_is_the_disk 0 "$QEMU_IMG" compare -q sparse.qcow2 over.raw
(($(stat -c %s sparse.qcow2) < $(stat -c %s new.qcow2))) && ok sparse_is_smaller || bad sparse_is_smaller
expect into_an_image 0 "$QCOW" dd -O qcow2 -f raw if=in.raw of=new.qcow2 bs=1M count=1 skip=1 seek=3 conv=notrunc
dd if=in.raw of=over.raw bs=1M count=1 skip=1 seek=3 conv=notrunc status=none
expect into_an_image_is_right 0 "$QEMU_IMG" compare -q new.qcow2 over.raw
expect an_image_grows 0 "$QCOW" dd -O qcow2 -f raw if=in.raw of=new.qcow2 bs=1M count=1 seek=5 conv=notrunc
[[ $("$QEMU_IMG" info --output json new.qcow2) == *'"virtual-size": 6291456'* ]] && ok it_has_grown || bad it_has_grown
says onto_itself 1 "qcow: 'in.raw' and 'in.raw' are the same file" "$QCOW" dd -f raw if=in.raw of=in.raw
says no_conversion 1 "qcow: unknown conversion 'lcase'" "$QCOW" dd if=in.raw of=x conv=lcase
says no_output 1 'qcow: Must specify both input and output files' "$QCOW" dd if=in.raw
[[ ! -e x ]] && ok nothing_is_made || bad nothing_is_made
says huge_sparse_blocks 1 'qcow: error while copying*at most*' "$QCOW" dd -f raw if=in.raw of=x bs=1G conv=sparse
[[ ! -e x ]] && ok a_failed_target_is_removed || bad a_failed_target_is_removed

# a disk of qcow2 that ends inside a sector: every byte of it, as dd(1) copies it (QEMU drops the last sector)
create odd.qcow2 1000448
"$QCOW" io -c 'write -q -P 7 999000 1448' -c 'write -q -P 5 0 3000' odd.qcow2
printf '\0\0\0\0\0\017\102\101' | dd of=odd.qcow2 bs=1 seek=24 conv=notrunc 2>/dev/null # 1000001 bytes
"$QCOW" io -r -c 'read -q -P 7 999936 65' odd.qcow2 && ok the_odd_end_is_read || bad the_odd_end_is_read
{ head -c 3000 /dev/zero | tr '\0' '\005'; head -c 996000 /dev/zero; head -c 1001 /dev/zero | tr '\0' '\007'; } >odd.raw
for operands in '' bs=1000 'bs=64k count=16' 'bs=1000 skip=999' 'bs=333 count=2 skip=3003' 'bs=1 skip=1000000' 'bs=1M count=1'; do
	# shellcheck disable=SC2086 # words
	"$QCOW" dd if=odd.qcow2 of=odd.ours $operands && dd if=odd.raw of=odd.want $operands 2>/dev/null
	cmp -s odd.ours odd.want && ok "odd: dd $operands" || bad "odd: dd $operands"
	rm -f odd.ours odd.want
done

as_qemu() {
	local peer=$1 theirs_rc
	shift
	rm -f target theirs.target
	"$peer" "$@" >theirs 2>theirs.err </dev/null
	theirs_rc=$?
	[[ ! -e target ]] || "$QEMU_IMG" convert -O raw target theirs.target
	rm -f target target.raw
	run "$QCOW_QEMU_IMG" "$@"
	sed -i '/^hint: /d' err
	[[ ! -e target ]] || "$QEMU_IMG" convert -O raw target target.raw
	if [[ $rc == "$theirs_rc" ]] && cmp -s theirs out && cmp -s theirs.err err &&
		{ [[ ! -e theirs.target ]] || cmp -s theirs.target target.raw; }; then ok "as QEMU: $*"
	else bad "as QEMU: $*" "QEMU, with status $theirs_rc: $(cat theirs theirs.err) $(shown) $(stat -c '%n %s' theirs.target target.raw)"; fi
}
if have_new_qemu; then
	for operands in '' bs=1M 'bs=1M count=1' 'bs=1000 skip=3 count=2' 'bs=1000 skip=1 count=3' 'bs=512k skip=2 count=3' \
		'bs=1M skip=50' 'skip=1 bs=1M seek=2' conv=notrunc bs=0 bs=x count=x foo=1 foo bs=3G count=0 'bs=1M bs=2M' \
		'bs=64k count=10 skip=1k' 'bs=700k count=2 skip=1'; do
		# shellcheck disable=SC2086 # words
		as_qemu "$QEMU_IMG_NEW" dd -f raw if=in.raw of=target $operands
	done
	as_qemu "$QEMU_IMG_NEW" dd -O qcow2 if=over.qcow2 of=target bs=64k
	as_qemu "$QEMU_IMG_NEW" dd -O raw if=over.qcow2 of=target bs=1M count=2
	as_qemu "$QEMU_IMG_NEW" dd --image-opts if=driver=qcow2,file.filename=over.qcow2 of=target bs=1M
	as_qemu "$QEMU_IMG_NEW" dd if=nofile of=target
	as_qemu "$QEMU_IMG_NEW" dd -f raw if=in.raw of=/nowhere/target
	as_qemu "$QEMU_IMG_NEW" dd -f raw -O xyz if=in.raw of=target
	as_qemu "$QEMU_IMG_NEW" dd -f raw if=in.raw
	as_qemu "$QEMU_IMG_NEW" dd of=target
fi
finish
