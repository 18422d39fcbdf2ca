#!/bin/bash
# SPDX-License-Identifier: MIT
# vet: every policy option refuses what it says and nothing else; nothing that the image names is opened.
source "$(dirname "$0")/lib.sh"
need_qemu
make_images
create -o encrypt.format=aes,encrypt.key-secret=s --object secret,id=s,data=abc aes.qcow2 1M 2>/dev/null || true
create_luks luks.qcow2 1M

# refuses NAME RULE,RULE… OPTION… FILE: exit code 2, and these rules in this order; no RULE: 0 and ok
refuses() {
	local name=$1 rules=$2 wanted=2 got
	shift 2
	[[ -n $rules ]] || wanted=0
	run "$QCOW" vet --output json "$@"
	got=$(python3 -c 'import json
o = json.load(open("out"))
assert o["ok"] == (not o["refused"])
print(",".join(r["rule"] for r in o["refused"]))' 2>&1)
	if [[ $rc == "$wanted" && $got == "$rules" && ! -s err ]]; then ok "$name"
	else bad "$name" "wanted '$rules': $* $(shown)"; fi
}

for image in base v2 bitmaps prealloc compressed zstd small dirty; do
	refuses "$image passes" '' "$image.qcow2"
done
refuses luks_passes '' luks.qcow2
refuses a_backing_file backing top.qcow2
refuses a_backing_file_that_is_allowed '' --allow-backing top.qcow2
refuses no_backing_is_stronger backing --allow-backing --no-backing top.qcow2
refuses a_data_file data-file datafile.qcow2
refuses a_data_file_that_is_allowed '' --allow-data-file datafile.qcow2
refuses no_data_file_is_stronger data-file --allow-data-file --no-data-file datafile.qcow2
refuses the_corrupt_mark corrupt corrupt.qcow2
refuses a_disk_of_the_largest_size '' --max-size 3M base.qcow2
refuses a_disk_over_the_largest_size max-size --max-size 3145727 base.qcow2
refuses no_snapshots max-snapshots --max-snapshots 1 v2.qcow2
refuses as_many_snapshots_as_allowed '' --max-snapshots 2 v2.qcow2
refuses no_bitmaps max-bitmaps --max-bitmaps 1 bitmaps.qcow2
refuses as_many_bitmaps_as_allowed '' --max-bitmaps 2 bitmaps.qcow2
refuses features_by_name extended-l2,zstd --deny-features zstd,extended-l2 bitmaps.qcow2
refuses only_listed_features lazy-refcounts,zstd,bitmaps --allow-features extended-l2 bitmaps.qcow2
refuses lists_that_add_up '' --allow-features extended-l2,bitmaps --allow-features zstd,lazy-refcounts bitmaps.qcow2
refuses a_list_and_a_flag '' --allow-features '' --allow-backing top.qcow2
refuses deny_is_stronger zstd --allow-features zstd,compressed --deny-features zstd zstd.qcow2
refuses compressed_clusters compressed --deny-features compressed compressed.qcow2
refuses encryption luks --deny-features aes,luks luks.qcow2
refuses several_reasons backing,max-size --max-size 1M top.qcow2

# a pattern compresses well: the file is far smaller than what it becomes
create -o cluster_size=2M bomb.src 256M
io -c 'write -P 1 0 256M' bomb.src
"$QEMU_IMG" convert -c -O qcow2 bomb.src bomb.qcow2
refuses a_bomb_that_nobody_bounds '' bomb.qcow2
refuses a_bomb max-data-ratio --max-data-ratio 10 bomb.qcow2
create empty.qcow2 1T
refuses an_empty_disk_is_no_bomb '' --max-data-ratio 10 empty.qcow2
refuses an_empty_disk_claims_much max-ratio --max-ratio 1000 empty.qcow2

# unknown bits and extensions: legal, and refused where the list says so
python3 "$here/patch.py" base.qcow2 bits.qcow2 88:80000000:4
refuses unknown_bits_pass '' bits.qcow2
refuses unknown_bits_by_policy unknown --deny-features unknown bits.qcow2

# what cannot be opened; the format is not guessed
refuses another_format QCOW_E_NOT_QCOW2 plain.raw
refuses raw_where_raw_is_wanted '' -f raw plain.raw
refuses an_image_in_place_of_a_raw_disk raw -f raw base.qcow2
refuses the_size_of_a_raw_disk max-size -f raw --max-size 512k plain.raw
refuses an_empty_file QCOW_E_NOT_QCOW2 empty.raw
python3 "$here/patch.py" base.qcow2 bad.qcow2 20:00000063:4
refuses a_bad_header QCOW_E_FORMAT bad.qcow2
head -c 262144 base.qcow2 >cut.qcow2
run "$QCOW" vet cut.qcow2
[[ $rc == 2 && $(<out) == *'refused: L1_'* ]] && ok damaged_tables || bad damaged_tables "$(shown)"

# no verdict
says a_file_that_is_not_there 1 "qcow: cannot open: none.qcow2: No such file*" "$QCOW" vet none.qcow2
says a_feature_that_nobody_knows 1 "qcow: option --deny-features: unknown feature 'zsdt'" \
	"$QCOW" vet --deny-features zsdt base.qcow2
says no_json_names 1 "qcow: cannot open: json:{}*" "$QCOW" vet 'json:{}'
says no_operand 1 'qcow: *' "$QCOW" vet
mkfifo fifo
says a_fifo_does_not_block 1 "qcow: cannot open: fifo*" timeout 60 "$QCOW" vet fifo
run "$QCOW" vet -q top.qcow2
[[ $rc == 2 && ! -s out && ! -s err ]] && ok quiet || bad quiet "$(shown)"

# names are escaped, and never opened: the backing file is a FIFO that would block
mkfifo $'trap\e[31m'
create -u -b $'trap\e[31m' -F raw evil.qcow2 1M
run timeout 60 "$QCOW" vet evil.qcow2
if [[ $rc == 2 && $(<out) == *'trap\x1b[31m'* && $(<out) != *$'\e'* ]]; then ok names_are_escaped
else bad names_are_escaped "$(shown)"; fi
finish
