#!/bin/bash
# SPDX-License-Identifier: MIT
# The man pages, --help, the completions and the parser agree: every option is in each of them.
source "$(dirname "$0")/lib.sh"
commands=$("$QCOW" --help | sed -n '/^Commands:/,/^Options:/s/^  \([a-z]*\)  *[A-Za-z].*/\1/p')
[[ -n $commands ]] || bad 'the program has commands'

# every -x and --name of the lines "  -f, --format FMT" and "*-f*, *--format* _FMT_"
of_help() { grep -E '^  -' "$1" | grep -oE '(^|[ ,])--?[[:alnum:]][a-z-]*' | tr -d ' ,' | sort -u; }
of_page() {
	sed -n '/^# OPTIONS/,/^# /p' "$1" | grep '^\*-' | grep -oE '\*--?[[:alnum:]][a-z-]*\*' | tr -d '*' | sort -u
}
for command in $commands; do
	page=$source_root/doc/man/qcow-$command.1.scd
	if [[ ! -f $page ]]; then bad "$command has a man page" "$page is missing"; continue; fi
	run "$QCOW" "$command" --help
	of_help out >a
	of_page "$page" >b
	[[ -s a ]] || bad "$command --help names options" "$(shown)"
	same "$command: the man page has the options of --help" a b
	grep -qF "_${command}_" "$source_root/doc/man/qcow.1.scd" && ok "qcow(1) names $command" ||
		bad "qcow(1) names $command"
done

# every option that --help names is known to the parser: it complains of the missing operand or argument,
# never of the option
for command in $commands; do
	run "$QCOW" "$command" --help
	for option in $(of_help out | grep -v -e '^-h$' -e '^--help$'); do
		run timeout 60 "$QCOW" "$command" "$option"
		if grep -q 'unrecognized' err; then bad "$command knows $option" "$(shown)"
		else ok "$command knows $option"; fi
	done
done

# completions: bash answers with what --help says
cat >complete.bash <<'EOS'
source <("$QCOW" completion bash)
COMP_WORDS=(qcow "$@") COMP_CWORD=$#
_qcow
printf '%s\n' "${COMPREPLY[@]}"
EOS
completes() { # NAME WANTED WORD…
	local name=$1 wanted=$2
	shift 2
	run env QCOW="$QCOW" bash complete.bash "$@"
	if grep -qxF -- "$wanted" out && [[ ! -s err ]]; then ok "$name"; else bad "$name" "$(shown)"; fi
}
completes bash_completes_commands info in
completes bash_completes_options --backing-chain info --back
completes bash_completes_words json info --output j
completes bash_completes_formats qcow2 map -f q
for shell in bash zsh fish; do
	expect "completion $shell" 0 "$QCOW" completion "$shell"
	cp out "script.$shell"
	for command in $commands; do
		grep -q -- "$command" out || bad "completion $shell names $command"
	done
	command -v "$shell" >/dev/null || continue
	expect "the $shell script parses" 0 "$shell" -n "script.$shell"
done
says an_unknown_shell 1 "qcow: no completions for 'tcsh'*" "$QCOW" completion tcsh
finish
