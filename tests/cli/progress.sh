#!/bin/bash
# SPDX-License-Identifier: MIT
# What -p, --progress=FD and SIGUSR1 write, byte for byte where QEMU's callers read it.
# Rules of doc/COMPAT.md: R2, R3.
source "$(dirname "$0")/lib.sh"
head -c 8M /dev/urandom >disk.raw

run "$QCOW_QEMU_IMG" convert -p -f raw -O qcow2 disk.raw disk.qcow2
if [[ $rc == 0 && ! -s err ]] && python3 - <<'PY'
import re
data = open("out", "rb").read()
assert data.endswith(b"    (100.00/100%)\r\n"), data[-60:]
assert data.startswith(b"    (0.00/100%)\r"), data[:60]
assert re.fullmatch(rb"(    \(\d{1,3}\.\d\d/100%\)\r)+\n", data), data[:200]
numbers = [float(x) for x in re.findall(rb"\((\d+\.\d\d)/", data)]
assert numbers == sorted(numbers), numbers
PY
then ok records_of_the_personality; else bad records_of_the_personality "$(shown)"; fi
run "$QCOW_QEMU_IMG" convert -p -q -f raw -O qcow2 disk.raw disk.qcow2
if [[ $rc == 0 && ! -s out && ! -s err ]]; then ok quiet_beats_progress; else bad quiet_beats_progress "$(shown)"; fi
run "$QCOW" convert -p -f raw -O qcow2 disk.raw disk.qcow2
if [[ $rc == 0 && ! -s out && ! -s err ]]; then ok no_line_without_a_terminal
else bad no_line_without_a_terminal "$(shown)"; fi
run bash -c '"$1" convert --progress=3 -f raw -O qcow2 disk.raw disk.qcow2 3>lines' - "$QCOW"
if [[ $rc == 0 && ! -s out && ! -s err && $(tail -n 1 lines) =~ ^([0-9]+)\ ([0-9]+)$ &&
	${BASH_REMATCH[1]} == "${BASH_REMATCH[2]}" ]] && ! grep -qvE '^[0-9]+ [0-9]+$' lines
then ok lines_for_programs; else bad lines_for_programs "$(shown) $(cat lines)"; fi
# SIGUSR1 without -p: records that end with a newline, on stdout, and nothing else
"$QCOW_QEMU_IMG" convert -r 4M -f raw -O qcow2 disk.raw disk.qcow2 >out 2>err &
convert_pid=$!
for _ in {1..40}; do
	sleep 0.05
	kill -USR1 $convert_pid 2>/dev/null || break
done
wait $convert_pid
rc=$?
if [[ $rc == 0 && -s out && ! -s err ]] && ! grep -qvE '^    \([0-9]{1,3}\.[0-9]{2}/100%\)$' out
then ok a_signal_asks_for_a_record; else bad a_signal_asks_for_a_record "$(shown)"; fi

# on a terminal: a line with rate and time left, wiped at the end
if command -v script >/dev/null; then
	script -qec "'$QCOW' convert -p -r 4M -f raw -O qcow2 disk.raw disk.qcow2" /dev/null </dev/null >out 2>err
	if grep -qE '[0-9.]+%  [0-9.]+ [KM]iB of 8 MiB, [0-9.]+ [KM]iB/s' out && tail -c 5 out | grep -q $'\e\[K'
	then ok a_line_on_a_terminal; else bad a_line_on_a_terminal "$(shown | cat -v)"; fi
fi
says a_descriptor_that_is_not_open 1 '*--progress=9: that descriptor is not open' \
	bash -c '"$1" convert --progress=9 -f raw -O qcow2 disk.raw disk.qcow2 9>&-' - "$QCOW"
finish
