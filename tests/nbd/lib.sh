# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# What the tests of `qcow serve` share, on top of what those of the commands do: one server in the background at socket $s,
# with a control socket $ctl. It ends with the test.
# shellcheck disable=SC1091 # beside this file
. "$(dirname "${BASH_SOURCE[0]}")/../cli/lib.sh"
trap 'end_server; rm -rf "$work"' EXIT
s=$work/s ctl=$work/ctl
uri="nbd+unix:///?socket=$s"
of() { echo "nbd+unix:///$1?socket=$s"; } # EXPORT
# start [OPTION|FILE]…: in the background, at socket $s; says nothing if it works
start() {
	if ! "$QCOW" serve --fork -t -k "$s" --control "$ctl" --pid-file pid "$@" >start.out 2>&1 || [[ -s start.out ]]; then
		bad "start $*" "$(<start.out)"
	fi
	server=$(<pid)
}
end_server() {
	[[ -n ${server:-} ]] || return 0
	kill "$server" 2>/dev/null
	gone "$server" || bad "a server that ends at SIGTERM"
	server=
}
sound() { # IMAGE: no leaks, no corruption
	expect "$1 is sound ($2)" 0 "$QEMU_IMG" check -q "$1"
}
