#!/bin/bash
# SPDX-License-Identifier: MIT
# The grammar of the command line, help, suggestions, exit codes, and the personality by argv[0].
source "$(dirname "$0")/lib.sh"
head -c 65536 /dev/zero >disk.raw
"$QCOW" map --output json disk.raw >json

# where options may stand and how they may be written
run "$QCOW" map disk.raw --output json
same options_follow_operands json out
run "$QCOW" map --output=json disk.raw
same an_argument_after_an_equals_sign json out
run "$QCOW" map --outp json disk.raw
same a_long_name_cut_short json out
run "$QCOW" map --output human --output json disk.raw
same the_last_mention_wins json out
run "$QCOW" map -f qcow2 -fraw --output json disk.raw
same the_last_format_wins_and_may_be_attached json out
run "$QCOW" map -Uf raw --output json disk.raw
same short_options_join json out
run "$QCOW" map '-s 0' --output json disk.raw
same a_short_option_with_its_argument_in_one_word json out
run "$QCOW" map --output json -- disk.raw
same two_dashes_end_the_options json out
cp disk.raw ./-U
expect an_operand_that_looks_like_an_option 0 "$QCOW" map -- -U
for size in 32k 32768 32768b 0x8000 0.03125M '32K'; do
	run "$QCOW" map --output json -s "$size" disk.raw
	if [[ $(<out) == *'"start": 32768, "length": 32768,'* ]]; then ok "the size $size"
	else bad "the size $size" "$(shown)"; fi
done
for size in '' x 1x 1.5 1.k -1 +1 1kk 0x 0x1k 9223372036854775808 8E 99999999999999999999 '1 k'; do
	says "no size: '$size'" 1 "qcow: invalid start offset '$size': *" "$QCOW" map -s "$size" disk.raw
done

# mistakes
says an_unknown_command_is_guessed 1 "qcow: unknown command 'inof'; did you mean 'info'?" "$QCOW" inof disk.raw
says an_unknown_option_is_guessed 1 "qcow: unrecognized option '--outptu'; did you mean '--output'?" \
	"$QCOW" info --outptu json disk.raw
says an_unknown_letter 1 "qcow: unrecognized option '-Z'" "$QCOW" info -Z disk.raw
says a_missing_argument 1 "qcow: option '--output' needs an argument*" "$QCOW" info disk.raw --output
says an_argument_too_many 1 "qcow: option '--limits' takes no argument" "$QCOW" info --limits=1 disk.raw
says an_ambiguous_name 1 "qcow: option '--target' is ambiguous" "$QCOW" convert --target
says a_word_that_is_no_choice 1 "qcow: --output expects 'human' or 'json', not 'yaml'" \
	"$QCOW" info --output yaml disk.raw
says a_missing_operand 1 'qcow: Expecting one image file name' "$QCOW" info
says too_many_operands 1 'qcow: Expecting one image file name' "$QCOW" info disk.raw disk.raw
says no_command 1 'qcow: no command given' "$QCOW"
says a_missing_file 1 "qcow: cannot open 'nx': No such file or directory" "$QCOW" info nx
says a_folder 1 "qcow: cannot open '.': it is a directory*" "$QCOW" info .
mkfifo fifo
says a_fifo_does_not_block 1 "qcow: cannot open 'fifo': it is a FIFO*" timeout 60 "$QCOW" info fifo
says names_in_errors_are_escaped 1 "qcow: cannot open 'a\\\\x1b\[31m'*" "$QCOW" info $'a\e[31m'
says a_full_output_is_an_error 1 'qcow: cannot write to standard output: No space left on device' \
	bash -c '"$1" info disk.raw >/dev/full' - "$QCOW"
run bash -c '"$1" map --output json disk.raw | true; exit 0' - "$QCOW"
if [[ ! -s err ]]; then ok a_closed_pipe_is_quiet; else bad a_closed_pipe_is_quiet "$(shown)"; fi

# help
for command in '' $("$QCOW" --help | sed -n 's/^  \([a-z]*\)  *[A-Za-z].*/\1/p'); do
	expect "$command --help" 0 "$QCOW" $command --help
	[[ -s out ]] || bad "$command --help says something"
	expect "$command -h" 0 "$QCOW" $command -h
done
prints version "qcow $("$QCOW" --version | cut -d' ' -f2)" "$QCOW" -V
if [[ $("$QCOW" --version) =~ ^qcow\ [0-9]+\.[0-9]+\.[0-9]+$ ]]; then ok version_is_numbers
else bad version_is_numbers; fi

# colours only on a terminal, and not with NO_COLOR
on_terminal() { script -qec "$1" /dev/null </dev/null >out 2>err; }
if command -v script >/dev/null; then
	NO_COLOR='' on_terminal "'$QCOW' info nx"
	if grep -q $'\e\[' out; then ok colours_on_a_terminal; else bad colours_on_a_terminal "$(shown)"; fi
	NO_COLOR=1 on_terminal "'$QCOW' info nx"
	if grep -q $'\e\[' out; then bad no_colours_with_NO_COLOR; else ok no_colours_with_NO_COLOR; fi
fi

# the personality
run "$QCOW_QEMU_IMG" --version
if [[ $(<out) =~ ^qemu-img\ version\ 10\.0\.0\ \(qcowkit\ [0-9.]+\)$ ]]; then ok version_of_the_personality
else bad version_of_the_personality "$(shown)"; fi
run "$QCOW_QEMU_IMG" --help
for line in 'info * \[-U\] *' 'map * filename' 'convert * --target-is-zero*' 'snapshot *'; do
	grep -qE "^  ${line// \* / .* }" <(sed 's/\[--target-is-zero\]/--target-is-zero/' out) &&
		ok "the synopsis of ${line%% *}" || bad "the synopsis of ${line%% *}" "$(shown)"
done
if grep -qE '^  (completion|dump) ' out; then bad no_commands_that_qemu_does_not_have "$(shown)"
else ok no_commands_that_qemu_does_not_have; fi
says an_unknown_command_of_the_personality 1 'qemu-img: Command not found: dump' "$QCOW_QEMU_IMG" dump disk.raw
says the_personality_lacks_our_options 1 "qemu-img: unrecognized option '--untrusted'*" \
	"$QCOW_QEMU_IMG" info --untrusted disk.raw
says a_missing_file_in_the_personality 1 \
	"qemu-img: Could not open 'nx': Could not open 'nx': No such file or directory" "$QCOW_QEMU_IMG" info nx
says another_format_in_the_personality 1 "qemu-img: Could not open 'disk.raw': Image is not in qcow2 format" \
	"$QCOW_QEMU_IMG" info -f qcow2 disk.raw
ln -s "$QCOW" qemu-img
prints a_link_is_enough "$("$QCOW_QEMU_IMG" --version)" ./qemu-img --version
expect trace_is_accepted 0 "$QCOW_QEMU_IMG" -T foo info disk.raw
finish
