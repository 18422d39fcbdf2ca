#!/bin/bash
# SPDX-License-Identifier: MIT
# Exports of other people's NBD servers as source, target and backing file of the commands. What is read and written is
# compared by qemu-img.
. "$(dirname "$0")/../cli/lib.sh"
QCOW_QEMU_IO=${QCOW_QEMU_IO:?names the personality}
need_qemu
command -v nbdkit >/dev/null || skip_all "nbdkit is not there"
command -v qemu-nbd >/dev/null || skip_all "qemu-nbd is not there"
servers=()
end_servers() {
	local pid
	for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; done
	servers=()
}
trap 'end_servers; rm -rf "$work"' EXIT
# serve SOCKET COMMAND…: in the background, until it takes connections
serve() {
	local socket=$1 i
	shift
	"$@" >server.out 2>&1 &
	servers+=($!)
	for i in {1..200}; do
		[[ -S $socket ]] && return 0
		sleep 0.05
	done
	bad "start $*" "$(<server.out)"
}

create disk.qcow2 64M
io -c 'write -P 5 0 1M' -c 'write -P 6 10M 3M' -c 'write -P 7 60M 4M' disk.qcow2

# ---- one of four connections is lost, whichever: what comes then takes another ----
truncate -s 16M many.raw
cat >lose.py <<'PY'
import os, socket, subprocess, sys, threading, time
qcow, qemu_io, lost = sys.argv[1], sys.argv[2], int(sys.argv[3])
for name in "behind", "front":
    if os.path.exists(name):
        os.unlink(name)
server = subprocess.Popen([qcow, "serve", "-t", "-f", "raw", "-k", "behind", "many.raw"])
while not os.path.exists("behind"):
    time.sleep(0.05)
pairs = []
def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
        b.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
def accept():
    while True:
        pair = listener.accept()[0], socket.socket(socket.AF_UNIX)
        pair[1].connect("behind")
        pairs.append(pair)
        for a, b in pair, pair[::-1]:
            threading.Thread(target=pump, args=(a, b), daemon=True).start()
listener = socket.socket(socket.AF_UNIX)
listener.bind("front")
listener.listen()
threading.Thread(target=accept, daemon=True).start()
io = subprocess.Popen([qemu_io, "-f", "raw", "nbd+unix:///?socket=front"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def say(text):
    io.stdin.write(text + "\n")
    io.stdin.flush()
for turn in range(20):
    for i in range(8):
        say(f"aio_read {i}M 1M")
    say("aio_flush")
    time.sleep(0.5)
    if len(pairs) == 4:
        break
time.sleep(1)
for end in pairs[lost]:
    end.shutdown(socket.SHUT_RDWR)
time.sleep(1)
for command in "write -P 7 0 1M", "flush", "read -P 7 0 1M", "quit":
    say(command)
said = io.communicate(timeout=60)[0]
server.kill()
assert len(pairs) == 4 and io.returncode == 0 and "failed" not in said and "wrote 1048576" in said, said
PY
for i in {0..3}; do expect "connection $i is lost" 0 python3 lose.py "$QCOW" "$QCOW_QEMU_IO" $i; done

# ---- qemu-nbd: an export with a name, block status, read-only and writable ----
serve "$work/q" qemu-nbd -t -e 4 -f qcow2 -x 'a name' -k "$work/q" disk.qcow2
uri="nbd+unix:///a%20name?socket=$work/q"
expect an_export_is_copied 0 "$QCOW" convert -O qcow2 "$uri" copy.qcow2
expect and_the_copy_is_the_disk 0 "$QEMU_IMG" compare -U disk.qcow2 copy.qcow2
"$QCOW_QEMU_IMG" map --output json -f raw "$uri" >out 2>err
"$QEMU_IMG" map --output json -f raw "$uri" >theirs
sed -i 's/, "compressed": [a-z]*//' out
same its_holes_are_known theirs out
for operand in "json:{\"driver\":\"nbd\",\"path\":\"$work/q\",\"export\":\"a name\"}" "nbd:unix:$work/q:exportname=a name" \
	"json:{'driver':'raw','file':{'driver':'nbd','server':{'type':'unix','path':'$work/q'},'export':'a name'}}"; do
	expect "compared: ${operand:0:30}" 0 "$QCOW" compare "$operand" copy.qcow2
done
expect compared_by_options 0 "$QCOW" compare --image-opts \
	"driver=nbd,server.type=unix,server.path=$work/q,export=a name" driver=qcow2,file.filename=copy.qcow2
"$QEMU_IMG" create -q -f qcow2 -b "$uri" -F raw overlay.qcow2
says an_image_may_not_open_one 1 '*names a backing file that is no plain path*' "$QCOW" map overlay.qcow2
expect the_user_may 0 "$QCOW" compare --image-opts driver=qcow2,file.filename=overlay.qcow2,backing.file.driver=nbd,backing.driver=raw,backing.file.path="$work/q,backing.file.export=a name" driver=qcow2,file.filename=copy.qcow2
expect the_personality_does 0 "$QCOW_QEMU_IMG" compare overlay.qcow2 copy.qcow2
expect it_is_written 0 "$QCOW_QEMU_IO" -f raw -c 'write -P 9 20M 100k' -c 'write -z 1M 64k' -c 'discard 0 64k' -c flush "$uri"
expect what_was_written_is_there 0 "$QEMU_IO" -r -U -c 'read -P 9 20M 100k' -c 'read -P 0 1M 64k' -c 'read -P 0 0 64k' disk.qcow2
says no_such_export 1 "*Requested export not available" "$QCOW_QEMU_IMG" info "nbd+unix:///nothing?socket=$work/q"
end_servers
serve "$work/r" qemu-nbd -t -r -f qcow2 -k "$work/r" disk.qcow2
says read_only_is_refused 1 "*request for write access denied" "$QCOW_QEMU_IO" -f raw -c 'write 0 1k' "nbd+unix://?socket=$work/r"
end_servers
for tool in "$QCOW_QEMU_IMG" "$QEMU_IMG"; do
	run "$tool" info "nbd:unix:$work/none:exportname=x"
	printf '%s %s\n' "$rc" "$(sed 's/^[^:]*: //' err)" >"words.${#tool}"
	mv "words.${#tool}" "words.$([[ $tool == "$QEMU_IMG" ]] && echo theirs || echo ours)"
done
same nobody_listens words.theirs words.ours

# ---- nbdkit: memory, as a target of every kind ----
serve "$work/m" nbdkit -f -U "$work/m" memory 64M
uri="nbd+unix:///?socket=$work/m"
expect a_target_that_is_there 0 "$QCOW" convert -n -O raw disk.qcow2 "$uri"
expect it_has_the_disk 0 "$QEMU_IMG" compare -f raw "$uri" disk.qcow2
expect a_qcow2_image_in_an_export 0 "$QCOW" convert -O qcow2 disk.qcow2 "$uri"
expect it_is_whole 0 "$QEMU_IMG" check -f qcow2 "$uri"
expect and_has_the_disk 0 "$QEMU_IMG" compare -f qcow2 "$uri" disk.qcow2
expect it_is_managed 0 "$QCOW" snapshot -c one "$uri"
expect it_is_written_in_place 0 "$QCOW_QEMU_IO" -f qcow2 -c 'aio_write -P 3 20M 4M' -c 'aio_write -P 4 30M 4M' -c 'aio_write -P 8 1M 4M' \
	-c aio_flush -c 'read -P 4 30M 4M' "$uri"
expect it_is_whole_still 0 "$QEMU_IMG" check -f qcow2 "$uri"
expect and_has_what_was_written 0 "$QEMU_IO" -f qcow2 -c 'read -P 3 20M 4M' -c 'read -P 8 1M 4M' "$uri"
says it_cannot_grow 1 "*" "$QCOW" resize -f raw "$uri" 1G
end_servers

# ---- one that takes whole blocks of 4 KiB, and no more than 64 KiB of them ----
if nbdkit --filter=blocksize-policy --version >/dev/null 2>&1; then
	serve "$work/b" nbdkit -f -U "$work/b" --filter=blocksize-policy memory 64M blocksize-minimum=4096 \
		blocksize-preferred=4096 blocksize-maximum=65536 blocksize-error-policy=error
	uri="nbd+unix:///?socket=$work/b"
	expect within_its_limits 0 "$QCOW" convert -n -O raw disk.qcow2 "$uri"
	expect the_disk_is_there 0 "$QEMU_IMG" compare -f raw "$uri" disk.qcow2
	expect pieces_of_blocks 0 "$QCOW_QEMU_IO" -f raw -c 'write -P 4 100 5000' -c 'read -P 4 100 5000' -c 'write -z 5000 9000' \
		-c 'read -P 0 5100 1000' -c 'read -P 4 100 4900' "$uri"
	end_servers
fi

# ---- a server that goes away ----
serve "$work/d" nbdkit -f -U "$work/d" --filter=delay memory 8M rdelay=2
pid=${servers[0]}
(sleep 0.5; kill -KILL "$pid") &
says a_connection_that_breaks 1 '*' timeout 60 "$QCOW_QEMU_IO" -f raw -c 'read 0 1k' "nbd+unix:///?socket=$work/d"
wait
finish
