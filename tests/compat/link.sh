#!/bin/bash
# SPDX-License-Identifier: MIT
# qcow compat: links under QEMU's names, which are these programs, and nothing of anybody else's is lost.
source "$(dirname "$0")/../cli/lib.sh"
mkdir d
prints 'what it then is' "$("$QCOW_QEMU_IMG" --version)
$("$QCOW_COMPAT/qemu-io" --version)
$("$QCOW_COMPAT/qemu-nbd" --version)" "$QCOW" compat
expect 'links' 0 "$QCOW" compat --link d
expect 'again' 0 "$QCOW" compat --link d
for name in qemu-img qemu-io qemu-nbd; do
	prints "$name is itself" "$("$QCOW_COMPAT/$name" --version)" "d/$name" --version
	[[ $(readlink "d/$name") == "$(realpath "$QCOW")" ]] && ok "$name is a link" || bad "$name is a link"
done
expect 'a disk is made' 0 d/qemu-img create -q -f qcow2 x.qcow2 1M
PATH=$PWD/d:$PATH expect 'found on PATH' 0 qemu-io -c 'write -q 0 64k' x.qcow2
ln -sf /bin/true d/qemu-io
says 'a link of others stays' 1 "*d/qemu-io' is a link to '/bin/true'*" "$QCOW" compat --link d
expect 'unless forced' 0 "$QCOW" compat --link d --force
rm d/qemu-nbd && echo mine >d/qemu-nbd
says 'a file stays' 1 "*d/qemu-nbd' is a file of its own*" "$QCOW" compat --link d --force
[[ $(<d/qemu-nbd) == mine ]] && ok 'what it held' || bad 'what it held'
says 'no folder' 1 "*nowhere/qemu-img*No such file*" "$QCOW" compat --link nowhere
[[ -z $(find d -name '.*' -type l) ]] && ok 'nothing else is there' || bad 'nothing else is there' "$(ls -a d)"
says 'not in the personality' 1 '*Command not found: compat' "$QCOW_QEMU_IMG" compat
finish
