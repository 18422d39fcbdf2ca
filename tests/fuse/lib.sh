# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# What the tests of `qcow mount` share: they mount on $work/m, and end what they started.
fuse=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
parts=$fuse/../nbd/serve_parts.py
source "$fuse/../cli/lib.sh"
need_qemu
PATH=$PATH:/usr/sbin:/sbin:$fuse
mkdir m n
# a look, before anything else: is there FUSE for us?
can_mount() {
	create probe.qcow2 1M
	"$QCOW" mount --fork --pid-file probe.pid probe.qcow2 m >probe.out 2>&1 || return 1
	kill "$(<probe.pid)"
	gone "$(<probe.pid)"
}
server=
# start [OPTION|FILE]…: in the background, on $m (m if not set); says nothing if it works
start() {
	if ! "$QCOW" mount --fork --pid-file pid "$@" "${m:-m}" >start.out 2>&1 || [[ -s start.out ]]; then
		bad "start $*" "$(<start.out)"
	fi
	server=$(cat pid 2>/dev/null)
}
end_server() {
	[[ -n ${server:-} ]] || return 0
	kill "$server" 2>/dev/null
	gone "$server" || bad "a server that ends at SIGTERM"
	server=
}
clean_up() {
	local point
	[[ -z ${server:-} ]] || kill "$server" 2>/dev/null
	[[ ! -s $work/below.pid ]] || kill "$(<"$work/below.pid")" 2>/dev/null
	for point in $(awk -v top="$work/" 'index($2, top) == 1 { print $2 }' /proc/mounts | tac); do
		umount -l "$point" 2>/dev/null || fusermount3 -u -z "$point" 2>/dev/null
	done
	rm -rf "$work"
}
trap clean_up EXIT
sound() { # IMAGE WHEN: no leaks, no corruption
	expect "$1 is sound ($2)" 0 "$QEMU_IMG" check -q "$1"
}
# what reads as zeros, 64 KiB at a time: the runs of data of a raw disk, as holes.py prints them
image_holes() { holes.py --content "$1"; }
can_mount || skip_all "there is no FUSE here: $(head -n 1 probe.out)"
