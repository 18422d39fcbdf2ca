# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# What the tests of the commands share. A test is a bash script that sources this file, calls `expect`,
# `same`, `has`… with a name each, and ends with `finish`. The environment names the programs:
#   QCOW           the program as qcow
#   QCOW_QEMU_IMG  the same program as qemu-img
#   QEMU_IMG       the distribution's qemu-img (default: that of PATH)
#   QEMU_IMG_NEW   QEMU 10 or later (default: the one that tools/peers/get fetched)
# Each script works in a folder of its own, which is removed.
set -u
export LC_ALL=C.UTF-8 TZ=UTC NO_COLOR=1
QCOW=${QCOW:?names the program} QCOW_QEMU_IMG=${QCOW_QEMU_IMG:?names the personality}
QEMU_IMG=${QEMU_IMG:-$(command -v qemu-img || true)}
QEMU_IO=${QEMU_IO:-$(command -v qemu-io || true)}
QEMU_IMG_NEW=${QEMU_IMG_NEW:-${HOME:-/root}/.cache/qcowkit-peers/bin/qemu-img}
[[ -x $QEMU_IMG_NEW ]] || QEMU_IMG_NEW=
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_root=$(cd "$here/../.." && pwd)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
n_bad=0 n_ok=0

ok() { n_ok=$((n_ok + 1)); echo "[       OK ] $1"; }
bad() { # NAME [WHY]
	n_bad=$((n_bad + 1))
	[[ -z ${2:-} ]] || echo "$2"
	echo "[  FAILED  ] $1"
}
skip_all() { echo "SKIP $1"; exit 77; }
need_qemu() {
	[[ -n $QEMU_IMG && -n $QEMU_IO ]] || skip_all "qemu-img and qemu-io are not there"
}
# Prints the reason once; the caller goes on without it.
have_new_qemu() {
	[[ -n $QEMU_IMG_NEW ]] && return 0
	[[ -n ${told:-} ]] || echo "SKIP the newest QEMU is not there (tools/peers/get fetches it)"
	told=1
	return 1
}

# run COMMAND…: into files out and err, status in $rc
run() { "$@" >out 2>err </dev/null; rc=$?; }
shown() { printf 'status %s\nstdout:\n' "$rc"; head -c 2000 out; echo 'stderr:'; head -c 2000 err; }

# expect NAME STATUS COMMAND…: the command ends so; with status 0 nothing is on stderr
expect() {
	local name=$1 status=$2
	shift 2
	run "$@"
	if [[ $rc != "$status" ]]; then bad "$name" "wanted status $status: $* $(shown)"
	elif [[ $rc == 0 && -s err ]]; then bad "$name" "stderr is not empty: $* $(shown)"
	else ok "$name"; fi
}
# says NAME STATUS PATTERN COMMAND…: ends with this status and the first line of stderr is like PATTERN
says() {
	local name=$1 status=$2 pattern=$3 first
	shift 3
	run "$@"
	IFS= read -r first <err
	# shellcheck disable=SC2053 # a pattern
	if [[ $rc == "$status" && $first == $pattern ]]; then ok "$name"
	else bad "$name" "wanted status $status and '$pattern': $* $(shown)"; fi
}
# prints NAME TEXT COMMAND…: succeeds and prints exactly TEXT and a newline
prints() {
	local name=$1 text=$2
	shift 2
	run "$@"
	if [[ $rc == 0 && $(<out) == "$text" && ! -s err ]]; then ok "$name"
	else bad "$name" "wanted '$text': $* $(shown)"; fi
}
# same NAME FILE FILE
same() {
	if cmp -s "$2" "$3"; then ok "$1"; else bad "$1" "$(diff "$2" "$3" | head -n 20)"; fi
}
finish() {
	echo "$n_ok passed, $n_bad failed"
	((n_ok > 0 && n_bad == 0))
	exit
}

create() { "$QEMU_IMG" create -q -f qcow2 "$@" >/dev/null || bad "create $*"; }
io() { "$QEMU_IO" "$@" >/dev/null || bad "qemu-io $*"; }

# patient COMMAND...: QEMU times its key derivation and gives up on a machine that is busy: then again, for a while
patient() {
	local try
	for try in {1..40}; do
		"$@" >patient.out 2>&1 && return 0
		grep -q 'accurate CPU' patient.out || return 1
	done
	return 1
}
create_luks() {
	patient "$QEMU_IMG" create -q -f qcow2 --object secret,id=s,data=abc \
		-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=20 "$@" || bad "create $*" "$(<patient.out)"
}

# Images of every kind that the commands look at, by the distribution's QEMU.
make_images() {
	mkdir sub
	create base.qcow2 3M
	io -c 'write -P 1 0 200k' -c 'write -z 1M 64k' base.qcow2
	create -b base.qcow2 -F qcow2 top.qcow2
	io -c 'write -P 2 100k 200k' top.qcow2
	create -b ../top.qcow2 -F qcow2 sub/third.qcow2 4M
	io -c 'write -P 3 3M 64k' sub/third.qcow2
	create -o compat=0.10,cluster_size=4k v2.qcow2 1M
	"$QEMU_IMG" snapshot -c 'snap one' v2.qcow2
	"$QEMU_IMG" snapshot -c 'a-very-long-snapshot-name-it-is' v2.qcow2
	create -o extended_l2=on,compression_type=zstd,lazy_refcounts=on bitmaps.qcow2 64M
	"$QEMU_IMG" bitmap --add bitmaps.qcow2 b1
	"$QEMU_IMG" bitmap --add -g 131072 bitmaps.qcow2 b2
	"$QEMU_IMG" bitmap --disable bitmaps.qcow2 b2
	io -c 'write 10k 70k' bitmaps.qcow2
	create -o data_file=data.raw,data_file_raw=on datafile.qcow2 4M
	io -c 'write 0 1M' -c 'write -z 1M 1M' datafile.qcow2
	create -o preallocation=metadata prealloc.qcow2 1M
	io -c 'write -P 1 0 256k' -c 'write -z 64k 64k' -c 'write -z -u 128k 64k' prealloc.qcow2
	"$QEMU_IMG" convert -c -O qcow2 base.qcow2 compressed.qcow2
	"$QEMU_IMG" convert -c -O qcow2 -o compression_type=zstd base.qcow2 zstd.qcow2
	create -o refcount_bits=1,cluster_size=512 small.qcow2 100k
	io -c 'write 0 50k' small.qcow2
	create short.qcow2 1M
	create -b short.qcow2 -F qcow2 long.qcow2 3M
	create -b long.qcow2 -F qcow2 long2.qcow2 2M
	create -b data.raw -F raw overraw.qcow2
	io -c 'write 64k 64k' overraw.qcow2
	"$QEMU_IMG" create -q -f raw plain.raw 1M
	io -f raw -c 'write 64k 64k' plain.raw
	: >empty.raw
	python3 "$here/patch.py" base.qcow2 dirty.qcow2 72:00000001:8
	python3 "$here/patch.py" base.qcow2 corrupt.qcow2 72:00000002:8
	images=(base.qcow2 top.qcow2 sub/third.qcow2 v2.qcow2 bitmaps.qcow2 datafile.qcow2
		prealloc.qcow2 compressed.qcow2 zstd.qcow2 small.qcow2 short.qcow2
		long.qcow2 long2.qcow2 overraw.qcow2 plain.raw empty.raw dirty.qcow2 corrupt.qcow2)
}
gone() { # PID: ends within some seconds
	local i
	for i in {1..600}; do
		kill -0 "$1" 2>/dev/null || return 0
		sleep 0.05
	done
	return 1
}
