#!/bin/bash
# SPDX-License-Identifier: MIT
# Each allocation fails in turn: a command then either succeeds with its whole output or says why it failed.
source "$(dirname "$0")/lib.sh"
need_qemu
[[ -z ${QCOW_SANITIZED:-} ]] || { ok 'a sanitizer has its own allocator'; finish; }
create base.qcow2 1M
create -b base.qcow2 -F qcow2 top.qcow2
io -c 'write 0 128k' top.qcow2
"$QEMU_IMG" snapshot -c one top.qcow2
"$QEMU_IMG" bitmap --add top.qcow2 b

sweep() { # COMMAND…
	local i want status got_bad=0 untouched=0
	want=$("$QCOW" "$@" 2>&1)
	for ((i = 0; untouched < 12 && i < 2000; i++)); do
		FAIL_AT=$i LD_PRELOAD=${FAIL_NTH:?} "$QCOW" "$@" >out 2>err </dev/null
		status=$?
		if [[ $status == 0 && $(<out) == "$want" && ! -s err ]]; then
			untouched=$((untouched + 1))
			continue
		fi
		untouched=0
		[[ $status == 1 && -s err ]] && continue
		echo "allocation $i of $*: status $status, $(head -c 500 err)"
		got_bad=1
	done
	# far more allocations than those that may be done without
	if ((got_bad == 0 && i > 20)); then ok "$* ($i allocations)"; else bad "$*"; fi
}
sweep info top.qcow2
sweep info --output json --backing-chain top.qcow2
sweep snapshot -l top.qcow2
sweep map --output json top.qcow2
sweep map 'json:{"driver":"qcow2","file.filename":"top.qcow2","backing":{"driver":"qcow2","file.filename":"base.qcow2"}}' \
	--object secret,id=s,data=x
finish
