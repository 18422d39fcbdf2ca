#!/bin/bash
# SPDX-License-Identifier: MIT
# `qcow serve` and the qemu-nbd personality with other people's clients: what they see of an image, sockets and processes,
# and the control socket. QEMU's own tools look at the images afterwards.
parts=$(realpath "$(dirname "$0")")/serve_parts.py
. "$(dirname "$0")/lib.sh"
QCOW_QEMU_NBD=${QCOW_QEMU_NBD:?names the personality}
need_qemu
for tool in nbdinfo nbdcopy python3; do
	command -v "$tool" >/dev/null || skip_all "$tool is not there"
done
# ---- an image with everything in it ----
create below.qcow2 64M
io -c 'write -P 1 0 2M' below.qcow2
create -b below.qcow2 -F qcow2 disk.qcow2
io -c 'write -P 2 1M 2M' disk.qcow2
"$QEMU_IMG" snapshot -c first disk.qcow2
io -c 'write -P 3 8M 1M' -c 'write -z 9M 64k' disk.qcow2
"$QEMU_IMG" bitmap --add disk.qcow2 marks
io -c 'write -P 4 12M 64k' disk.qcow2

start --snapshots --layers disk.qcow2
"$QEMU_IMG" convert -U -O raw disk.qcow2 want.raw
"$QEMU_IMG" convert -U -l first -O raw disk.qcow2 first.raw
"$QEMU_IMG" convert -U -O raw below.qcow2 below.raw
for pair in ":want" "@first:first" "~1:below"; do
	expect "nbdcopy '${pair%%:*}'" 0 nbdcopy "$(of "${pair%%:*}")" got.raw
	same "export '${pair%%:*}' is that disk" "${pair#*:}.raw" got.raw
done
run nbdinfo --json --no-content --list "$uri"
names=$(python3 -c 'import json,sys; print(*sorted(e["export-name"] for e in json.load(sys.stdin)["exports"]))' <out)
[[ $names == ' @first ~1' ]] && ok the_exports_are_listed || bad the_exports_are_listed "'$names' $(shown)"
prints the_bitmap_is_seen "$(printf '%10s  %10s    0  clean\n%10s  %10s    1  dirty\n%10s  %10s    0  clean' 0 12582912 12582912 65536 12648448 54460416)" \
	nbdinfo --map=qemu:dirty-bitmap:marks "$uri"
run nbdinfo --map "$uri"
grep -q '^ *0 *3145728 *0 *data' out && ok its_allocation_is_seen || bad its_allocation_is_seen "$(shown)"
[[ $(stat -c %a "$s" "$ctl") == $'600\n600' ]] && ok sockets_are_the_users_own || bad sockets_are_the_users_own "$(stat -c %a "$s" "$ctl")"
expect clients_write 0 "$QEMU_IO" -f raw -c 'write -P 7 20M 1M' -c 'write -z 1M 64k' -c 'write -z -u 2M 64k' -c 'discard 8M 64k' \
	-c 'write -P 9 100 1000' -c 'flush' -c 'read -P 7 20M 1M' -c 'read -P 9 100 1000' -c 'read -P 1 2k 1k' "$uri"
says a_snapshot_is_read_only 1 '*' "$QEMU_IO" -f raw -c 'write 0 1k' "$(of @first)"
expect four_clients_copy_at_once 0 nbdcopy --connections=4 want.raw "$uri"
end_server
[[ ! -e $s && ! -e $ctl && ! -e pid ]] && ok nothing_is_left_behind || bad nothing_is_left_behind "$(ls)"
expect the_disk_is_what_was_copied 0 "$QEMU_IMG" compare disk.qcow2 want.raw
sound disk.qcow2 'after clients wrote'

# ---- partitions, several images, names ----
python3 "$parts" parts.raw gpt.raw
"$QEMU_IO" -f raw -c 'write -P 5 1M 2M' parts.raw >/dev/null
start -f raw -x mbr -x gpt --partitions parts.raw gpt.raw
for part in mbr/p1:2097152 mbr/p2:10485760 mbr/p5:1048576 mbr/p6:2097152 gpt/p1:2097152 gpt/p2:51200; do
	prints "the size of ${part%:*}" "${part#*:}" nbdinfo --size "$(of "${part%:*}")"
done
expect a_partition_is_read_and_written 0 "$QEMU_IO" -f raw -c 'read -P 5 0 2M' -c 'write -P 6 4k 4k' "$(of mbr/p1)"
end_server
expect it_is_where_the_partition_is 0 "$QEMU_IO" -f raw -r -c 'read -P 5 1M 4k' -c 'read -P 6 1028k 4k' parts.raw

# ---- a temporary overlay; an offset; discards that are ignored; zeros that are found ----
start -s disk.qcow2
expect an_overlay_is_written 0 "$QEMU_IO" -f raw -c 'write -P 8 0 4M' -c 'read -P 8 0 4M' "$uri"
end_server
expect and_the_image_is_not 0 "$QEMU_IMG" compare disk.qcow2 want.raw
start -o 1M -r disk.qcow2
prints the_rest_from_an_offset 66060288 nbdinfo --size "$uri"
end_server
create zeroes.qcow2 16M
io -c 'write -P 1 0 4M' zeroes.qcow2
start --detect-zeroes=on --discard=ignore zeroes.qcow2
expect zeros_are_found 0 "$QEMU_IO" -f raw -c 'write -P 0 0 1M' -c 'discard 1M 1M' -c 'read -P 1 1M 1M' "$uri"
end_server
run "$QEMU_IMG" map --output json zeroes.qcow2
grep -q '"start": 0, "length": 1048576, "depth": 0, "present": true, "zero": true' out && ok and_stored_as_zeros || bad and_stored_as_zeros "$(shown)"

# ---- processes and sockets ----
run "$QCOW" serve disk.qcow2 --run 'nbdinfo --size "$uri"; exit 3'
[[ $rc == 3 && $(<out) == 67108864 ]] && ok run_ends_with_the_status_of_its_command || bad run_ends_with_the_status_of_its_command "$(shown)"
prints its_command_has_the_limits_that_were_set 100 bash -c "ulimit -Sn 100; exec '$QCOW' serve -r disk.qcow2 --run 'ulimit -Sn'"
python3 - many.qcow2 <<'PY'
import struct, sys
# 1,001 snapshots of nothing: version 2, an L1 table that holds no table
entries = b""
for i in range(1001):
    name = b"%d" % (i + 1)
    entries += struct.pack(">QIHHIIQII", 4096 * 2, 1, len(name), len(name), 0, 0, 0, 0, 0) + name * 2
    entries += bytes(-len(entries) % 8)
with open(sys.argv[1], "wb") as f:
    f.write(struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 12, 1 << 20, 0, 1, 4096 * 2, 4096 * 3, 1, 1001, 4096 * 8))
    f.truncate(4096 * 8)
    f.seek(4096 * 3)
    f.write(struct.pack(">Q", 4096 * 4))
    f.seek(4096 * 4)
    f.write(struct.pack(">H", 1) * 40)
    f.seek(4096 * 8)
    f.write(entries)
PY
prints more_snapshots_than_files_may_be_open '1048576 1002' bash -c "ulimit -n 60; exec '$QCOW' serve --snapshots -r -k '$s' many.qcow2 --run \"
	nbdinfo --size 'nbd+unix:///@777?socket=$s' | tr '\n' ' '; nbdinfo --list --no-content '$uri' | grep -c ^export=\""
start -r --snapshots many.qcow2
before=$(find "/proc/$server/fd" | wc -l)
for i in {1..20}; do nbdcopy "$(of "@$i")" null: || bad "snapshot $i is read"; done
for i in {1..100}; do (($(find "/proc/$server/fd" | wc -l) <= before)) && break; sleep 0.1; done
(($(find "/proc/$server/fd" | wc -l) <= before)) && ok snapshots_that_nobody_reads_are_closed || bad snapshots_that_nobody_reads_are_closed "$(ls -l "/proc/$server/fd")"
end_server
cat >activate.py <<'PY'
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
PY
python3 activate.py "$work/passed" "$QCOW" serve -r --pid-file passed.pid disk.qcow2 &
server=$!
for i in {1..400}; do [[ -s passed.pid ]] && break; sleep 0.05; done
prints a_socket_of_a_service_manager 67108864 nbdinfo --size "nbd+unix:///?socket=$work/passed"
wait "$server" && ok the_last_client_ends_it || bad the_last_client_ends_it
server=
cat >stdio.py <<'PY'
import socket, struct, subprocess, sys
ours, theirs = socket.socketpair()
p = subprocess.Popen(sys.argv[1:], stdin=theirs, stdout=theirs)
theirs.close()
def get(n):
    b = b""
    while len(b) < n:
        more = ours.recv(n - len(b))
        if not more:
            raise SystemExit("the server went away")
        b += more
    return b
assert get(16) == b"NBDMAGICIHAVEOPT"
get(2)
ours.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))  # EXPORT_NAME, the default; no zeroes
size, flags = struct.unpack(">QH", get(10))
ours.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 1 << 20, 4))
assert get(16) == struct.pack(">IIQ", 0x67446698, 0, 7)
assert get(4) == b"\2" * 4
ours.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 8, 0, 0))
ours.close()
print(size, p.wait(timeout=60))
PY
prints one_client_at_standard_input '67108864 0' python3 stdio.py "$QCOW" serve - -r disk.qcow2
python3 -c '
import struct, sys
sys.stdout.buffer.write(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0) + struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 1 << 20, 256) * 20000)' >session
timeout 60 "$QCOW" serve - -r disk.qcow2 <session | wc -c >count
[[ $(<count) == $((28 + 20000 * (16 + 256))) ]] && ok a_session_in_a_file || bad a_session_in_a_file "$(<count)"
timeout 60 "$QCOW" serve - -r disk.qcow2 <session >answers
[[ $(stat -c %s answers) == "$(<count)" ]] && ok and_answers_in_one || bad and_answers_in_one "$(stat -c %s answers)"
cat >notify.py <<'PY'
import os, socket, subprocess, sys
here = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
here.bind("notify")
here.settimeout(60)
p = subprocess.Popen(sys.argv[1:], env=dict(os.environ, NOTIFY_SOCKET=os.path.abspath("notify")))
first = here.recv(100)
p.terminate()
print(first.decode(), here.recv(100).decode(), p.wait(timeout=60))
PY
prints a_service_manager_is_told 'READY=1 STOPPING=1 0' python3 notify.py "$QCOW" serve -t -k "$s" disk.qcow2
python3 -c 'import socket,sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$s"
start disk.qcow2
ok a_socket_that_nobody_listens_at_is_replaced
says one_that_somebody_listens_at_stays 1 "*Failed to bind socket to $s: Address already in use" "$QCOW" serve -k "$s" -r zeroes.qcow2
says an_image_that_is_written_is_locked 1 '*lock*' "$QCOW" serve -k "$s.2" disk.qcow2
rm "$s" "$ctl"
python3 -c 'import socket,sys
for path in sys.argv[1:]: socket.socket(socket.AF_UNIX).bind(path)' "$s" "$ctl"
end_server
[[ -S $s && -S $ctl ]] && ok sockets_of_a_successor_stay || bad sockets_of_a_successor_stay "$(ls)"
rm -f "$s" "$ctl"
cat >busy.py <<'PY'
import socket, subprocess, sys
path = sys.argv[2]
here = socket.socket(socket.AF_UNIX, getattr(socket, sys.argv[1]))
here.bind(path)
clients = []
if here.type == socket.SOCK_STREAM:
    here.listen(0)
    while not clients or clients[-1].connect_ex(path) == 0:
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].setblocking(False)
sys.exit(subprocess.run(sys.argv[3:], timeout=60).returncode)
PY
for type in SOCK_DGRAM SOCK_STREAM; do
	says "a busy $type stays" 1 '*Failed to bind socket to *: Address already in use' python3 busy.py $type "$work/$type" \
		timeout 20 "$QCOW" serve -k "$work/$type" -r zeroes.qcow2
done
python3 - "$QCOW" "$s" >parent.out <<'PY' &
import subprocess, sys, time
p = subprocess.Popen([sys.argv[1], "serve", "--exit-with-parent", "-t", "-k", sys.argv[2], "--pid-file", "follows", "-r", "disk.qcow2"])
print("ready", flush=True)
time.sleep(600)
PY
parent=$!
for i in {1..400}; do [[ -s follows ]] && break; sleep 0.05; done
kill -KILL "$parent"
gone "$(<follows)" && ok it_ends_with_its_parent || bad it_ends_with_its_parent
wait "$parent" 2>/dev/null
says a_file_that_is_not_there 1 '*No such file or directory' "$QCOW" serve --fork -k "$s" nothing.qcow2
says no_image 1 '*no image given' "$QCOW" serve

# ---- TLS with a shared key, both ends ----
mkdir psk
echo 'alice:00112233445566778899aabbccddeeff' >psk/keys.psk
server_creds=(--object "tls-creds-psk,id=t,dir=$work/psk,endpoint=server" --tls-creds t)
if "$QCOW" serve "${server_creds[@]}" -r disk.qcow2 --run true 2>err; then
	start "${server_creds[@]}" disk.qcow2
	tls="nbds+unix://alice@/?socket=$s&tls-psk-file=$work/psk/keys.psk"
	prints a_client_with_the_key 67108864 nbdinfo --size "$tls"
	says a_client_without_tls 1 '*TLS*' nbdinfo --size "$uri"
	run "$QCOW_QEMU_NBD" -L -k "$s" --object "tls-creds-psk,id=t,dir=$work/psk,endpoint=client,username=alice" --tls-creds t
	[[ $(<err) == *libnbd.so* || $(<err) == *"needs libnbd"* || $(head -n 3 out) == "exports available: 1
 export: ''
  size:  67108864" ]] && ok exports_are_listed_by_tls || bad exports_are_listed_by_tls "$(shown)"
	expect qemu_with_the_key 0 "$QEMU_IMG" info --object "tls-creds-psk,id=t,dir=$work/psk,endpoint=client,username=alice" \
		--image-opts "driver=nbd,path=$s,tls-creds=t"
	run "$QCOW" info "$tls"
	if [[ $(<err) != *libnbd.so* && $(<err) != *"not built in"* ]]; then
		expect our_own_client 0 "$QCOW" compare "$tls" disk.qcow2 -U
		expect our_own_client_by_an_object 0 "$QCOW" info --object "tls-creds-psk,id=t,dir=$work/psk,endpoint=client,username=alice" \
			--image-opts "driver=nbd,path=$s,tls-creds=t"
	fi
	end_server
else
	echo "SKIP TLS is not built in: $(<err)"
fi

# ---- a passphrase that was typed: not asked for again by who reads a snapshot ----
printf secret >typed.key
"$QCOW" create -o encrypt.format=luks,encrypt.iter-time=10 --secret-file typed.key typed.qcow2 8M >/dev/null
"$QEMU_IMG" snapshot --object secret,id=s,file=typed.key --image-opts driver=qcow2,file.filename=typed.qcow2,encrypt.key-secret=s -c first
cat >typed.py <<'PY'
import os, pty, subprocess, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], [sys.argv[1], "serve", "-r", "-t", "-k", sys.argv[2], "--pid-file", "typed.pid", "--snapshots", "typed.qcow2"])
said = b""
while b"Passphrase" not in said:
    said += os.read(fd, 1000)
os.write(fd, b"secret\n")
for i in range(400):
    if not os.path.exists("typed.pid"):
        time.sleep(0.05)
for i in range(2):
    subprocess.run(["timeout", "30", "nbdcopy", "nbd+unix:///@first?socket=" + sys.argv[2], "null:"], check=True)
os.kill(pid, 15)
os.waitpid(pid, 0)
PY
expect a_passphrase_is_typed_once 0 python3 typed.py "$QCOW" "$work/typed.sock"

# ---- the control socket ----
start --snapshots disk.qcow2
do_ctl() { expect "ctl $*" 0 "$QCOW" ctl "$ctl" "$@"; }
do_ctl snapshot-create name=second
prints a_new_snapshot_is_served 67108864 nbdinfo --size "$(of @second)"
do_ctl export-add name=more "file=$work/want.raw" format=raw read-only
prints a_new_export_is_served 67108864 nbdinfo --size "$(of more)"
do_ctl export-remove name=more
says it_is_gone 1 '*' nbdinfo --size "$(of more)"
do_ctl resize size=80M
prints the_new_size_is_seen 83886080 nbdinfo --size "$uri"
says no_such_bitmap 1 '*' "$QCOW" ctl "$ctl" bitmap-clear bitmap=none
says no_such_command 1 "*unknown command 'nonsense'" "$QCOW" ctl "$ctl" nonsense
do_ctl snapshot-delete name=second
do_ctl bitmap-add bitmap=other granularity=4096
expect both_bitmaps_record 0 "$QEMU_IO" -f raw -c 'write -P 5 30M 64k' "$uri"
for name in marks other; do
	run nbdinfo --map="qemu:dirty-bitmap:$name" "$uri"
	grep -q '^ *\(31457280 *65536\|0 *83886080\) *1 *dirty' out && ok "bitmap $name has the write" || bad "bitmap $name has the write" "$(shown)"
done
do_ctl bitmap-merge bitmap=other source=marks
do_ctl bitmap-disable bitmap=other
do_ctl bitmap-remove bitmap=marks
prints status_is_json '1 True' python3 -c '
import json, subprocess, sys
s = json.loads(subprocess.check_output(sys.argv[1:]))
print(s["requests"]["write"]["requests"], s["requests"]["write"]["bytes"] == 65536)' "$QCOW" ctl "$ctl" status
printf '{"command": "quiesce"}\n{"command": "status"}\n{"command": "resume"}\n' >lines
"$QCOW" ctl "$ctl" <lines >out 2>err && grep -q '"quiesced": true' out && ok lines_are_one_after_the_other ||
	bad lines_are_one_after_the_other "$(shown)"
mkfifo hold
"$QCOW" ctl "$ctl" <hold >held 2>&1 &
holder=$!
exec 8>hold
printf '{"command": "quiesce"}\n{"command": "status"}\n' >&8
for i in {1..400}; do grep -q '"quiesced": true' held && break; sleep 0.05; done
expect a_snapshot_while_somebody_holds 0 "$QCOW" ctl "$ctl" snapshot-create name=third
expect and_goes_again 0 "$QCOW" ctl "$ctl" snapshot-delete name=third
exec 8>&-
wait "$holder"
(echo '{"command": "quiesce"}'; sleep 0.3) | "$QCOW" ctl "$ctl"
prints who_goes_away_holds_nothing_back 83886080 timeout 60 nbdinfo --size "$uri"
expect and_clients_go_on 0 timeout 60 "$QEMU_IO" -f raw -c 'write -P 5 30M 64k' "$uri"
do_ctl stop
gone "$server" && ok it_ends_when_told || bad it_ends_when_told
server=
sound disk.qcow2 'after the control socket'
run "$QEMU_IMG" info --output json disk.qcow2
python3 -c '
import json
i = json.load(open("out"))
b = i["format-specific"]["data"]["bitmaps"]
assert [s["name"] for s in i["snapshots"]] == ["first"] and i["virtual-size"] == 80 << 20, i
assert [x["name"] for x in b] == ["other"] and not b[0]["flags"], b' && ok what_was_told_is_stored || bad what_was_told_is_stored "$(shown)"

# ---- a snapshot comes back; a hold at the end; no descriptors; damage ----
create back.qcow2 8M
io -c 'write -P 1 0 1M' back.qcow2
"$QEMU_IMG" snapshot -c small back.qcow2
start --snapshots back.qcow2
do_ctl resize size=12M
expect back_is_written 0 "$QEMU_IO" -f raw -c 'write -P 2 0 64k' -c 'write -P 3 9M 64k' "$uri"
cat >stay.py <<'PY'
import os, socket, struct, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))
s.settimeout(60)
n = 0
while n < 28:
    n += len(s.recv(28 - n))
for what in sys.argv[2:]:
    if what == "write":
        s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 7, 0, 512) + bytes(512))
print("here", flush=True)
print("gone" if s.recv(1) == b"" else "answered", flush=True)
PY
python3 stay.py "$s" >stayed &
stays=$!
for i in {1..400}; do [[ -s stayed ]] && break; sleep 0.05; done
says no_disk_turns_into_another_under_a_client 1 "*export '' has clients*" "$QCOW" ctl "$ctl" snapshot-apply name=small
says nor_into_one_that_is_not_there 1 '*' "$QCOW" ctl "$ctl" snapshot-apply name=none hard
wait "$stays"
[[ $(<stayed) == $'here\ngone' ]] && ok hard_cuts_it_off || bad hard_cuts_it_off "$(<stayed)"
do_ctl snapshot-apply name=small
prints it_has_its_old_size 8388608 nbdinfo --size "$uri"
expect and_its_old_bytes 0 "$QEMU_IO" -f raw -c 'read -P 1 0 1M' -c 'write -P 4 0 64k' "$uri"
mkfifo hold2
"$QCOW" ctl "$ctl" <hold2 >held 2>&1 &
holder=$!
exec 8>hold2
printf '{"command": "quiesce"}\n{"command": "status"}\n' >&8
for i in {1..400}; do grep -q '"quiesced": true' held && break; sleep 0.05; done
python3 stay.py "$s" write >held_back &
stays=$!
for i in {1..400}; do [[ -s held_back ]] && break; sleep 0.05; done
SECONDS=0
end_server
((SECONDS < 8)) && ok a_hold_does_not_hold_up_the_end || bad a_hold_does_not_hold_up_the_end "$SECONDS s"
exec 8>&-
wait "$holder" "$stays"
[[ $(<held_back) == $'here\nanswered' ]] && ok and_who_was_held_back_is_answered || bad and_who_was_held_back_is_answered "$(<held_back)"
sound back.qcow2 'after a snapshot was applied'
(ulimit -n 40; exec "$QCOW" serve -t -e 100 -k "$s" --pid-file few -r back.qcow2 2>few.err) &
server=$!
for i in {1..400}; do [[ -s few ]] && break; sleep 0.05; done
cat >crowd.py <<'PY'
import os, socket, sys, time
def ticks():
    with open("/proc/%s/stat" % sys.argv[2]) as f:
        return sum(int(x) for x in f.read().rsplit(")", 1)[1].split()[11:13])
crowd = []
for _ in range(60):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    crowd.append(s)
time.sleep(0.3)
before = ticks()
time.sleep(1)
used = (ticks() - before) / os.sysconf("SC_CLK_TCK")
for s in crowd:
    s.close()
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
print("idle" if used < 0.5 else "busy %.2f s" % used, len(s.recv(18)))
PY
prints without_descriptors_it_rests 'idle 18' python3 crowd.py "$s" "$(<few)"
n=$(grep -c 'cannot accept clients: Too many open files' few.err)
((n > 0 && n < 5)) && ok and_says_so_now_and_then || bad and_says_so_now_and_then "$(<few.err)"
end_server
create hurt.qcow2 1M
io -c 'write -P 1 0 64k' hurt.qcow2
python3 - hurt.qcow2 <<'PY'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    f.seek(40)
    f.seek(struct.unpack(">Q", f.read(8))[0])
    f.seek(struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00)
    f.write(struct.pack(">Q", 0x8000000000000200))  # no cluster begins there
PY
"$QCOW" serve -t -r -k "$s" --pid-file hurt.pid hurt.qcow2 2>hurt.err &
server=$!
for i in {1..400}; do [[ -s hurt.pid ]] && break; sleep 0.05; done
run "$QEMU_IO" -r -f raw -c 'read 0 512' "$uri"
[[ $(<out)$(<err) == *'read failed: Input/output error'* ]] && ok damage_is_told_of || bad damage_is_told_of "$(shown)"
for i in {1..100}; do grep -q 'a request of client' hurt.err && break; sleep 0.05; done
grep -q 'a request of client .* failed: ' hurt.err && ok the_log_has_the_reason || bad the_log_has_the_reason "$(<hurt.err)"
end_server

# ---- several images, and what is refused ----
for name in x y z; do
	create $name.qcow2 4M
	io -c 'write -P 1 0 64k' $name.qcow2
done
for name in x y; do "$QEMU_IMG" snapshot -c one $name.qcow2; done
"$QEMU_IMG" snapshot -c two x.qcow2
create -b z.qcow2 -F qcow2 over.qcow2
start --snapshots --layers -x x -x y -x over~1 x.qcow2 y.qcow2 zeroes.qcow2
do_ctl snapshot-delete export=x name=2
says an_export_goes_with_its_snapshot 1 '*' nbdinfo --size "$(of x@two)"
do_ctl snapshot-delete export=x name=one
says and_another 1 '*' nbdinfo --size "$(of x@one)"
prints but_not_that_of_another_image 4194304 nbdinfo --size "$(of y@one)"
says a_layer_whose_name_is_taken 1 '*over~1*' "$QCOW" ctl "$ctl" export-add name=over "file=$work/over.qcow2"
says nothing_of_it_is_left 1 '*' nbdinfo --size "$(of over)"
expect nor_locked 0 "$QEMU_IMG" bitmap --add over.qcow2 b
prints what_had_the_name_stays 16777216 nbdinfo --size "$(of over~1)"
do_ctl export-add name=z "file=$work/z.qcow2" format=qcow2
do_ctl snapshot-create export=z name=late
prints a_snapshot_of_a_new_image 4194304 nbdinfo --size "$(of z@late)"
do_ctl export-remove name=z
says its_snapshot_keeps_it_locked 1 '*lock*' "$QEMU_IMG" snapshot -d late z.qcow2
do_ctl export-remove name=z@late
expect and_then_no_more 0 "$QEMU_IMG" snapshot -d late z.qcow2
end_server
"$QEMU_IMG" snapshot -c only x.qcow2
"$QEMU_IMG" bitmap --add x.qcow2 bm
start --snapshots -B bm x.qcow2
says no_such_bitmap_in_a_new_image 1 "*Bitmap 'bm' is not found" "$QCOW" ctl "$ctl" export-add name=z "file=$work/z.qcow2"
expect which_is_closed 0 "$QEMU_IMG" bitmap --add z.qcow2 b
do_ctl bitmap-remove bitmap=bm
do_ctl bitmap-add bitmap=else
do_ctl export-remove name=
says a_disk_that_nobody_shows_stays 1 "*there is no export ''" "$QCOW" ctl "$ctl" snapshot-delete name=only
end_server
start -s x.qcow2
says a_snapshot_of_an_overlay_is_not_exported 1 '*temporary overlay*' "$QCOW" ctl "$ctl" snapshot-create name=n export-it
do_ctl snapshot-create name=n
end_server

# ---- incremental backup of a disk that is written, with public tools ----
for way in live offline; do
	create "$way.qcow2" 32M
	io -c 'write -P 1 0 6M' "$way.qcow2"
	start "$way.qcow2"
	do_ctl bitmap-add bitmap=b0
	expect "$way: the whole disk" 0 nbdcopy "$uri" "$way.full"
	expect "$way: writes" 0 "$QEMU_IO" -f raw -c 'write -P 2 1M 192k' -c 'write -P 3 20M 64k' -c 'write -z 3M 128k' -c 'discard 4M 64k' "$uri"
	do_ctl bitmap-disable bitmap=b0
	do_ctl snapshot-create name=point export-it
	if [[ $way == live ]]; then
		expect "$way: writes after the point" 0 "$QEMU_IO" -f raw -c 'write -P 9 0 8M' "$uri"
		from=$(of @point)
	else
		end_server
		start -r "$way.qcow2"
		from=$uri
	fi
	python3 - "$uri" "$from" "$way.full" <<'PY' || bad "$way: copy of what is dirty"
import json, subprocess, sys
bitmap_uri, data_uri, target = sys.argv[1:]
ranges = json.loads(subprocess.check_output(["nbdinfo", "--json", "--map=qemu:dirty-bitmap:b0", bitmap_uri]))
assert any(r["type"] & 1 for r in ranges) and not all(r["type"] & 1 for r in ranges), ranges
subprocess.check_call(["nbdcopy", data_uri, "whole"])
with open(target, "r+b") as f, open("whole", "rb") as g:
    for r in ranges:
        if r["type"] & 1:
            f.seek(r["offset"])
            g.seek(r["offset"])
            f.write(g.read(r["length"]))
PY
	end_server
	"$QEMU_IMG" convert -l point -O raw "$way.qcow2" want.raw
	same "$way: the restored disk is that of the point" want.raw "$way.full"
	sound "$way.qcow2" "$way backup"
done

# ---- the personality ----
nbd() { "$QCOW_QEMU_NBD" "$@"; }
prints its_version_line "qemu-nbd 10.0.0 (qcowkit $("$QCOW" --version | sed 's/.* //'))" "$QCOW_QEMU_NBD" --version
expect it_forks 0 "$QCOW_QEMU_NBD" -t -f qcow2 -x exp -D 'a disk' -A -k "$s" --fork --pid-file pid --discard=unmap --detect-zeroes=unmap \
	--cache=none --aio=threads -e 2 disk.qcow2
server=$(<pid)
run nbdinfo --json --no-content "$(of exp)"
grep -q '"description": "a disk"' out && grep -q '"qemu:allocation-depth"' out && ok its_options_are_kept || bad its_options_are_kept "$(shown)"
expect it_is_written 0 "$QEMU_IO" -f raw -c 'write -P 4 2M 64k' -c 'read -P 4 2M 64k' "$(of exp)"
end_server
expect it_shows_a_bitmap 0 "$QCOW_QEMU_NBD" -r -t -f qcow2 -k "$s" -B other --fork --pid-file pid disk.qcow2
server=$(<pid)
run nbdinfo --map=qemu:dirty-bitmap:other "$uri"
[[ $rc == 0 && -s out ]] && ok and_its_ranges || bad and_its_ranges "$(shown)"
end_server
expect another_server 0 "$QCOW_QEMU_NBD" -r -t -f qcow2 -k "$s" -x exp -D 'a disk' -A --fork --pid-file pid disk.qcow2
server=$(<pid)
run "$QCOW_QEMU_NBD" -L -k "$s"
if [[ $(<err) == *libnbd* ]]; then echo "SKIP $(<err)"
elif [[ $(head -n 4 out) == "exports available: 1
 export: 'exp'
  description: a disk
  size:  83886080" ]] && grep -q '^  flags: 0x[0-9a-f]* ( readonly flush' out && grep -q '^   qemu:allocation-depth$' out; then ok it_lists_exports
else bad it_lists_exports "$(shown)"; fi
end_server
create -b disk.qcow2 -F qcow2 above.qcow2
expect it_shows_a_bitmap_of_a_layer_below 0 "$QCOW_QEMU_NBD" -r -t -f qcow2 -k "$s" -B other --fork --pid-file pid above.qcow2
server=$(<pid)
run nbdinfo --map=qemu:dirty-bitmap:other "$uri"
[[ $rc == 0 && -s out ]] && ok and_its_ranges_too || bad and_its_ranges_too "$(shown)"
end_server
create -b disk.qcow2 -F qcow2 longer.qcow2 1G
says but_not_one_of_another_length 1 "*another length*" "$QCOW_QEMU_NBD" -r -f qcow2 -k "$s" -B other longer.qcow2
says it_has_no_such_bitmap 1 "qemu-nbd: Bitmap 'none' is not found" "$QCOW_QEMU_NBD" -r -f qcow2 -k "$s" -B none disk.qcow2
expect it_shows_a_snapshot 0 "$QCOW_QEMU_NBD" -t -l first -f qcow2 -k "$s" --fork --pid-file pid disk.qcow2
server=$(<pid)
prints with_its_size 67108864 nbdinfo --size "$uri"
end_server
says it_has_no_such_snapshot 1 "qemu-nbd: Failed to load snapshot: Can't find snapshot" "$QCOW_QEMU_NBD" -l none -f qcow2 -k "$s" disk.qcow2
expect it_shows_a_disk_of_nothing 0 "$QCOW_QEMU_NBD" -t -f raw -k "$s" --fork --pid-file pid null-co://
server=$(<pid)
prints of_a_gigabyte 1073741824 nbdinfo --size "$uri"
end_server
says no_kernel_device 1 '*Failed to open /dev/nbd-none: No such file or directory' "$QCOW_QEMU_NBD" -c /dev/nbd-none disk.qcow2
"$QCOW_QEMU_NBD" -f qcow2 -k "$s" --pid-file pid disk.qcow2 &
server=$!
for i in {1..400}; do [[ -s pid ]] && break; sleep 0.05; done
prints one_client_is_served 83886080 nbdinfo --size "$uri"
wait "$server" && ok and_then_it_ends || bad and_then_it_ends
server=
finish
