#!/bin/bash
# SPDX-License-Identifier: MIT
# How images are named, and what an image may name: nothing is opened that the policy forbids.
# Rules of doc/COMPAT.md: R48, R49, R50, R52, R54.
source "$(dirname "$0")/lib.sh"
need_qemu
create base.qcow2 1M
io -c 'write -P 1 0 128k' base.qcow2
create -b base.qcow2 -F qcow2 top.qcow2
"$QEMU_IMG" create -q -f raw disk.raw 1M
io -f raw -c 'write -P 7 64k 64k' disk.raw

# the same image in every notation
"$QCOW" map --output json top.qcow2 >map
i=0
for operand in './top.qcow2' "$PWD/top.qcow2" 'file:top.qcow2' \
	'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}' \
	'json: {"driver": "qcow2", "file.driver": "file", "file.filename": "top.qcow2"}' \
	'json:{"file":{"filename":"top.qcow2","locking":"off"},"driver":"qcow2","node-name":"x"}' \
	'json:{"driver":"qcow2","file.filename":"top.qcow2","backing":{"driver":"qcow2","file":{"filename":"base.qcow2"}}}'; do
	run "$QCOW" map --output json "$operand"
	same "operand $((++i)): $operand" map out
done
for operand in 'driver=qcow2,file.filename=top.qcow2' 'file.driver=file,file.filename=top.qcow2' \
	'driver=qcow2,file.driver=file,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=base.qcow2'; do
	run "$QCOW" map --output json --image-opts "$operand"
	same "image-opts $operand" map out
done
cp top.qcow2 'a,b.qcow2'
run "$QCOW" map --output json --image-opts 'driver=qcow2,file.filename=a,,b.qcow2'
same two_commas_are_one map out
cp top.qcow2 'a:b.qcow2'
cp top.qcow2 $'n\xffm.qcow2'
cp top.qcow2 $'a:\xff.qcow2'
for name in $'n\xffm.qcow2' $'file:a:\xff.qcow2'; do
	run "$QCOW" map --output json "$name"
	same "a name that is not UTF-8: $name" map out
done
run "$QCOW" map --output json --image-opts $'driver=qcow2,file.filename=n\xffm.qcow2'
same a_name_that_is_not_utf8_in_options map out
says an_option_that_is_not_utf8 1 '*option * is not built in' "$QCOW" map --image-opts $'driver=qcow2,file.\xff.x=1'
run "$QCOW" map --output json ./a:b.qcow2
same a_colon_behind_a_slash map out
says a_colon_is_a_protocol 1 "*the protocol 'a' is not built in; a file of that name is './a:b.qcow2'" \
	"$QCOW" map a:b.qcow2
prints a_part_of_a_raw_disk \
	'[{ "start": 0, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 65536}]' \
	"$QCOW" map --output json 'json:{"driver":"raw","offset":65536,"size":65536,"file":{"driver":"file","filename":"disk.raw"}}'
run "$QCOW" map --output json --image-opts driver=qcow2,file.filename=top.qcow2 \
	--object secret,id=s,data=x
same a_secret_is_accepted map out
run "$QCOW" map --output json 'json:{"driver":"qcow2","backing":null,"file.filename":"top.qcow2"}'
if [[ $(<out) == *'"depth": 0, "present": false, "zero": true'* ]]; then ok backing_null_is_without_a_backing_file
else bad backing_null_is_without_a_backing_file "$(shown)"; fi

# what is not built in is refused by name
for operand in http://host/x rbd:x ssh://x fat:x; do
	says "refused: $operand" 1 "qcow: cannot open '*': the protocol '${operand%%:*}' is not built in*" \
		"$QCOW" info "$operand"
done
for driver in vdi vmdk quorum; do
	says "refused: driver $driver" 1 "*the driver '$driver' is not built in*" \
		"$QCOW" info "json:{\"driver\":\"$driver\",\"file\":{\"filename\":\"disk.raw\"}}"
done
run "$QCOW" map --output json --image-opts driver=compress,file.driver=qcow2,file.file.filename=top.qcow2
same a_filter_is_looked_through map out
says a_filter_is_not_written_through 1 "*nothing is written through a filter here*'compress'*" \
	"$QCOW" resize --image-opts driver=compress,file.driver=qcow2,file.file.filename=top.qcow2 2M
says a_filter_over_nothing 1 '*must be specified for "file"*' "$QCOW" info --image-opts driver=compress
says a_filter_with_more 1 "*'bottom' is not built in*" \
	"$QCOW" info --image-opts driver=copy-on-read,bottom=x,file.driver=qcow2,file.file.filename=top.qcow2
prints null_co 'Images are identical.' "$QCOW" compare --image-opts driver=null-co,size=1M driver=null-co,size=1048576
says refused_unknown_format 1 "*the driver 'vdi' is not built in*" "$QCOW" info -f vdi disk.raw
says refused_unknown_format_by_the_personality 1 "*Unknown driver 'vdi'" "$QCOW_QEMU_IMG" info -f vdi disk.raw
says refused_unknown_key 1 "*option 'filter' is not built in" "$QCOW" info --image-opts driver=raw,filter=x,file.filename=disk.raw
says refused_node_reference 1 "*references to other nodes are not built in" "$QCOW" info 'json:{"driver":"raw","file":"node0"}'
says refused_object 1 "*--object 'throttle-group': this type of object is not built in*" \
	"$QCOW" info --object throttle-group,id=x disk.raw
says refused_secret_without_id 1 '*needs an id=*' "$QCOW" info --object secret,data=x disk.raw
says refused_secret_file 1 "*cannot read the secret 's' from 'nx': No such file*" "$QCOW" info --object secret,id=s,file=nx disk.raw
says refused_base64 1 "*'s' is not base64" "$QCOW" info --object 'secret,id=s,data=a?b=,format=base64' disk.raw
says a_secret_that_is_not_defined 1 "*No secret with id 's'" "$QCOW" map --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=top.qcow2
says bad_json 1 '*Could not parse the JSON options*' "$QCOW" info 'json:{x}'
expect json_in_single_quotes 0 "$QCOW" info "json:{'driver':'qcow2','file':{'driver':'file','filename':'top.qcow2'}}"
says an_escaped_quote_in_single_quotes 1 "*a'b\"c: No such file*" "$QCOW" info "json:{'file.filename':'a\\'b\"c'}"
says a_single_quote_that_does_not_end 1 '*Could not parse the JSON options*' "$QCOW" info "json:{'a"
says json_of_a_list 1 '*JSON object*' "$QCOW" info 'json:[1]'
says deep_json 1 '*nested*deep*' "$QCOW" info "json:$(printf '{"a":%.0s' {1..40})1$(printf '}%.0s' {1..40})"
says format_and_image_opts 1 '*mutually exclusive' "$QCOW" info -f raw --image-opts driver=raw,file.filename=disk.raw

# what an image names: canaries are never opened (their access time would tell, so would a hang)
name_backing() { # IMAGE NAME [FORMAT]
	cp top.qcow2 "$1"
	"$QEMU_IMG" rebase -u -b "$2" -F "${3:-raw}" "$1" || bad "rebase $*"
}
name_backing json.qcow2 'json:{"driver":"raw","file":{"driver":"file","filename":"disk.raw"}}'
name_backing nbd.qcow2 'nbd://127.0.0.1:1/x'
name_backing proto.qcow2 'file:disk.raw'
name_backing rbd.qcow2 'rbd:pool/x'
cp top.qcow2 jsonmore.qcow2
"$QEMU_IMG" rebase -u -F qcow2 -b 'json:{"driver":"qcow2","backing":null,"file":{"filename":"base.qcow2"}}' jsonmore.qcow2
says the_personality_refuses_what_it_would_ignore 1 "*'backing' in the recorded name of a backing file is not built in" \
	"$QCOW_QEMU_IMG" map jsonmore.qcow2
mkfifo canary
name_backing fifo.qcow2 canary
name_backing null.qcow2 /dev/null
for image in json nbd rbd proto; do
	says "the policy refuses $image" 1 "*names a backing file that is no plain path*" "$QCOW" map "$image.qcow2"
done
says the_policy_refuses_a_fifo 1 '*FIFO*' timeout 60 "$QCOW" map fifo.qcow2
says the_policy_refuses_a_character_device 1 '*character device*' "$QCOW" map null.qcow2
for image in json nbd rbd proto fifo null; do
	expect "info opens nothing that $image names" 0 timeout 60 "$QCOW" info "$image.qcow2"
	expect "snapshot -l opens nothing that $image names" 0 timeout 60 "$QCOW" snapshot -l "$image.qcow2"
done
expect what_the_user_names_is_opened 0 "$QCOW" map --image-opts \
	driver=qcow2,file.filename=json.qcow2,backing.driver=raw,backing.file.filename=disk.raw
"$QCOW_QEMU_IMG" map --output json json.qcow2 >out 2>err
"$QEMU_IMG" map --output json json.qcow2 >theirs
sed -i 's/, "compressed": [a-z]*//' out
same the_personality_opens_json_backing_names theirs out
"$QCOW_QEMU_IMG" map --output json proto.qcow2 >out 2>err
"$QEMU_IMG" map --output json proto.qcow2 >theirs
sed -i 's/, "compressed": [a-z]*//' out
same the_personality_opens_file_backing_names theirs out
says the_personality_refuses_rbd_by_name 1 "*protocol that is not built in: 'rbd'" "$QCOW_QEMU_IMG" map rbd.qcow2

# a backing file without a recorded format: the extension's type becomes one that nobody knows
python3 - top.qcow2 noformat.qcow2 <<'PY'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
at = data.index(b"\xe2\x79\x2a\xca", 104)
data[at:at + 4] = b"\x12\x34\x56\x78"
open(sys.argv[2], "wb").write(data)
PY
says no_recorded_format_is_refused_with_the_fix 1 '*rebase -u*-F*--probe*' "$QCOW" map noformat.qcow2
run "$QCOW" map --probe --output json noformat.qcow2
same probe_allows_it map out
run "$QCOW_QEMU_IMG" map --output json noformat.qcow2
same the_personality_probes map out
says untrusted_opens_nothing 1 '*--untrusted does not open*' \
	env "ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0" "$QCOW" map --untrusted top.qcow2
expect untrusted_info 0 env "ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0" "$QCOW" info --untrusted top.qcow2
cp top.qcow2 vmdk.qcow2
"$QEMU_IMG" rebase -u -b disk.raw -F vmdk vmdk.qcow2
says a_recorded_format_that_is_not_built_in 1 "*the driver 'vmdk' is not built in*" "$QCOW" map vmdk.qcow2
name_backing loop.qcow2 loop.qcow2 qcow2
says a_loop_is_refused 1 '*loop*' timeout 60 "$QCOW" map loop.qcow2

# locks, against QEMU
# (asking by a reader whether the lock is there could keep the writer out: it says so itself)
stdbuf -oL "$QEMU_IO" -c length -c 'sleep 120000' base.qcow2 >opened 2>&1 &
io_pid=$!
for _ in {1..500}; do
	[[ ! -s opened ]] || break
	sleep 0.02
done
says a_writer_locks_us_out 1 'qcow: cannot open *Failed to get shared "write" lock' "$QCOW" info base.qcow2
if grep -qx 'Is another process using the image \[base.qcow2\]?' err; then ok the_question_of_qemu
else bad the_question_of_qemu "$(shown)"; fi
says a_writer_of_the_backing_file_locks_us_out 1 '*Failed to get shared "write" lock' "$QCOW" map top.qcow2
says not_even_as_raw 1 '*Failed to get shared "write" lock' "$QCOW" info -f raw base.qcow2
says the_personality_wants_tables_that_stay 1 '*Failed to get shared "write" lock' "$QCOW_QEMU_IMG" info base.qcow2
expect the_personality_shares_raw_disks 0 "$QCOW_QEMU_IMG" info -f raw base.qcow2
says but_does_not_convert_them 1 '*Failed to get shared "write" lock' "$QCOW_QEMU_IMG" convert -f raw -O raw base.qcow2 none
says and_leaves_what_lies_below_it_alone 1 '*Failed to get shared "write" lock*' "$QCOW_QEMU_IMG" map --image-opts \
	driver=qcow2,file.filename=base.qcow2,backing.driver=raw,backing.file.filename=disk.raw
expect force_share_reads_all_the_same 0 "$QCOW" info -U base.qcow2
expect force_share_reads_the_chain 0 "$QCOW" map -U top.qcow2
kill $io_pid 2>/dev/null
wait $io_pid 2>/dev/null
expect the_lock_is_gone 0 "$QCOW" info base.qcow2
finish
