#!/bin/bash
# SPDX-License-Identifier: MIT
# --untrusted: the same results from inside the sandbox, and no system call in it that could open anything.
source "$(dirname "$0")/lib.sh"
need_qemu
# leak detection opens files and traces the process, at its end
[[ -z ${QCOW_SANITIZED:-} ]] || export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0
make_images
alone=(base v2 bitmaps prealloc compressed zstd small short dirty corrupt)

# same_result NAME COMMAND OPTION… FILE: with --untrusted nothing changes
same_result() {
	local name=$1 command=$2 plain
	shift 2
	run "$QCOW" "$command" "$@"
	cp out out.plain
	cp err err.plain
	plain=$rc
	run "$QCOW" "$command" --untrusted "$@"
	if [[ $rc == "$plain" ]] && cmp -s out out.plain && cmp -s err err.plain; then ok "$name"
	else bad "$name" "without: status $plain, $(head -c 300 err.plain) with: $(shown)"; fi
}
for image in "${alone[@]}"; do
	for command in info check map vet; do
		same_result "$command of $image" $command --output json $image.qcow2
		same_result "$command of $image for people" $command $image.qcow2
	done
	for options in '-O raw' '-O qcow2' '-O qcow2 -c' '-O qcow2 -m 16' '-O qcow2 -o data_file=out.data'; do
		rm -f one two out.data
		# shellcheck disable=SC2086 # options are words
		expect "convert $options of $image" 0 "$QCOW" convert $options $image.qcow2 one
		[[ ! -e out.data ]] || mv out.data out.data.1
		# shellcheck disable=SC2086
		expect "convert --untrusted $options of $image" 0 "$QCOW" convert --untrusted $options $image.qcow2 two
		same "convert $options of $image writes the same" one two
		[[ ! -e out.data ]] || same "convert $options of $image writes the same data" out.data out.data.1
	done
done
for image in top datafile; do
	for command in info check vet; do
		same_result "$command of $image" $command --output json $image.qcow2
	done
	says "map opens nothing for $image" 1 '*--untrusted does not open*' "$QCOW" map --untrusted $image.qcow2
	says "convert opens nothing for $image" 1 '*--untrusted does not open*' \
		"$QCOW" convert --untrusted -O raw $image.qcow2 none.raw
	[[ ! -e none.raw ]] && ok "convert of $image leaves nothing" || bad "convert of $image leaves nothing"
done
same_result map_of_raw map -f raw plain.raw
run "$QCOW" convert --untrusted -O raw base.qcow2 -
cp out stream
"$QCOW" convert -O raw base.qcow2 base.raw
same a_stream stream base.raw

# a file that was there stays, one that was made goes
head -c 20000 zstd.qcow2 >cut.qcow2
run "$QCOW" convert --untrusted -f qcow2 -O qcow2 cut.qcow2 made.qcow2
if [[ $rc == 1 && ! -e made.qcow2 ]]; then ok a_failure_removes_the_target
else bad a_failure_removes_the_target "$(shown)"; fi
echo mine >mine
run "$QCOW" convert --untrusted -f qcow2 -O qcow2 -o data_file=d.raw cut.qcow2 mine
[[ $rc == 1 && -e mine && ! -e d.raw ]] && ok a_failure_leaves_what_was_there ||
	bad a_failure_leaves_what_was_there "$(shown)"
says the_source_is_no_target 1 '*it is a source too*' "$QCOW" convert -U --untrusted -O raw base.qcow2 base.qcow2
says no_overlay 1 '*no backing file*' "$QCOW" convert --untrusted -O qcow2 -b base.qcow2 -F qcow2 base.qcow2 n.qcow2
says one_source 1 '*one source*' "$QCOW" convert --untrusted -O raw base.qcow2 base.qcow2 n.raw
says no_chain_in_the_operand 1 '*one file is opened*' "$QCOW" map --untrusted \
	--image-opts driver=qcow2,file.filename=top.qcow2,backing.file.filename=base.qcow2

# signals: the process that holds the files passes them on, the target goes
create -o cluster_size=2M slow.qcow2 64M
io -c 'write -P 1 0 64M' slow.qcow2
for signal in INT TERM; do
	# a shell without job control starts what runs beside it with SIGINT ignored
	python3 -c 'import signal, os, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])' "$QCOW" convert --untrusted -r 1M -O raw slow.qcow2 slow.raw &
	pid=$!
	for _ in {1..100}; do [[ -e slow.raw ]] && break; sleep 0.05; done
	sleep 0.2
	kill -$signal $pid
	wait $pid
	status=$?
	if [[ $status == $((128 + $(kill -l $signal))) && ! -e slow.raw ]]; then ok "SIG$signal removes the target"
	else bad "SIG$signal removes the target" "status $status, $(ls slow.raw 2>&1)"; fi
done

# -v says what is in force
run "$QCOW" info --untrusted -v base.qcow2
[[ $rc == 0 && $(<err) == 'qcow: sandbox: no new privileges, no new files'* ]] && ok verbose || bad verbose "$(shown)"
run "$QCOW" info -v base.qcow2
[[ $rc == 0 && ! -s err ]] && ok verbose_alone_says_nothing || bad verbose_alone_says_nothing "$(shown)"

# by strace: after the lockdown no file is opened, none connected to, no process started. Before it only
# the operands and what the program itself needs.
if [[ -n ${QCOW_SANITIZED:-} ]]; then
	ok 'a sanitizer opens files of its own'
elif ! command -v strace >/dev/null || ! strace -o /dev/null true 2>/dev/null; then
	echo 'SKIP strace cannot trace here'
else
	# locked_down NAME COMMAND…: what it does after no_new_privs, but for what the lockdown itself does
	locked_down() {
		local name=$1
		shift
		run strace -f -o trace -e 'trace=%file,%network,process,dup,dup2,dup3,memfd_create,prctl' "$@"
		awk '/PR_SET_NO_NEW_PRIVS/ { inside = 1; pid = $1; next }
			inside && $1 == pid || inside && threads[$1] { print }
			inside && /clone\(.*CLONE_THREAD/ { threads[$NF] = 1 }' trace >inside
		if ! grep -q 'PR_SET_NO_NEW_PRIVS' trace; then
			bad "$name" "no lockdown: $(shown)"
			return
		fi
		# what is tried must fail; fstat of an open descriptor and threads are the exceptions
		grep -vE 'newfstatat\([0-9]+, "", |= -1 (EPERM|EACCES|EMFILE|ENOSYS)|CLONE_THREAD|exit(_group)?\(|\+\+\+|prctl\(PR_SET_(SECCOMP|NO_NEW_PRIVS)|^[0-9]+ +--- |resumed>|prctl\(PR_SET_NAME|wait4\(' \
			inside >left
		if [[ -s left ]]; then bad "$name" "$(head -n 5 left)"; else ok "$name"; fi
	}
	for command in 'info' 'check' 'map' 'vet' 'convert -O qcow2 -c -m 4' 'convert -O raw' 'sanitize -c'; do
		target=
		[[ $command != convert* && $command != sanitize* ]] || target=traced
		for image in base compressed bitmaps v2; do
			rm -f traced
			# shellcheck disable=SC2086
			locked_down "$command of $image opens nothing inside" "$QCOW" $command --untrusted $image.qcow2 $target
		done
		# what the image names is not opened at any time
		rm -f traced
		# shellcheck disable=SC2086
		locked_down "$command of an overlay opens nothing inside" "$QCOW" $command --untrusted top.qcow2 $target
		if grep -q '"base.qcow2"' trace; then bad "$command never opens the backing file" "$(grep base.qcow2 trace)"
		else ok "$command never opens the backing file"; fi
	done
	# the test can fail: without the option files are opened where this looks
	strace -f -o trace -e 'trace=%file' "$QCOW" map top.qcow2 >out
	grep -q '"base.qcow2"' trace && ok 'a trace shows what is opened' || bad 'a trace shows what is opened'
fi
finish
