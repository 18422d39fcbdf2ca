/* SPDX-License-Identifier: MIT */
/*
 * Opening: what is refused, with which status and words; what an open tolerates; what it lists; and what
 * it must never do: write, open what nobody allowed, or take memory for a table that is not there.
 */
#include "cm.h"
#include "qemu.h"

#include <fcntl.h>
#include <time.h>

static enum qcow_status open_status(
	const char *name, const struct qcow_open_options *o, char *message)
{
	struct qcow_image *image = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = try_open(name, o, &image, &err);
	if (status != QCOW_OK)
		assert_null(image);
	if (message != NULL)
		(void)snprintf(message, QCOW_ERROR_MESSAGE_BYTES, "%s", err.message);
	qcow_close(image);
	return status;
}

static void expect_refusal(const char *name, const struct qcow_open_options *o,
	enum qcow_status expected, const char *words)
{
	char message[QCOW_ERROR_MESSAGE_BYTES];
	enum qcow_status status = open_status(name, o, message);
	if (status != expected)
		fail_msg("%s, not %s: %s", qcow_status_name(status), qcow_status_name(expected),
			message);
	if (strstr(message, words) == NULL)
		fail_msg("'%s' does not say '%s'", message, words);
}

/* ---- formats ---- */

static void a_file_with_the_magic_of_another_version_is_never_raw(void **state)
{
	(void)state;
	static const uint32_t versions[] = {0, 1, 4, UINT32_MAX};
	struct qcow_open_options raw = QCOW_OPEN_OPTIONS_INIT;
	raw.format = "raw";
	for (int i = 0; i < 4; i++) {
		sh("qemu-img create -q -f qcow2 t 1M");
		poke32("t", 4, versions[i]);
		expect_refusal("t", NULL, QCOW_E_NOT_QCOW2, "version");
		assert_int_equal(open_status("t", &raw, NULL), QCOW_OK);
	}
}

static void format_decides_over_the_probe(void **state)
{
	(void)state;
	struct qcow_info info;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	sh("qemu-img create -q -f qcow2 t 1M; truncate -s 1000 short; truncate -s 0 none");
	o.format = "raw";
	struct qcow_image *image = must_open("t", &o);
	qcow_get_info(image, &info);
	assert_string_equal(info.format, "raw");
	assert_int_equal(info.virtual_size, info.file_size);
	qcow_close(image);
	o.format = "qcow2";
	expect_refusal("short", &o, QCOW_E_NOT_QCOW2, "");
	o.format = "vmdk";
	expect_refusal("t", &o, QCOW_E_UNSUPPORTED, "vmdk");
	o.format = NULL;
	image = must_open("none", &o);
	assert_int_equal(qcow_size(image), 0);
	qcow_close(image);
}

static void files_cut_in_the_header_are_refused(void **state)
{
	(void)state;
	static const unsigned lengths[] = {8, 71, 72, 103, 104, 111};
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		sh("qemu-img create -q -f qcow2 t 1M; truncate -s %u t", lengths[i]);
		assert_int_not_equal(open_status("t", NULL, NULL), QCOW_OK);
	}
}

/* Callers may be built against another version of the struct. */
static void check_options_of_other_versions_are_understood(void **state)
{
	(void)state;
	struct {
		struct qcow_check_options o;
		uint64_t later;
	} longer = {.o = QCOW_CHECK_OPTIONS_INIT};
	struct qcow_check_result result;
	struct qcow_error err = QCOW_ERROR_INIT;
	sh("rm -f *; qemu-img create -q -f qcow2 t 1M");
	struct qcow_image *image = must_open("t", NULL);
	longer.o.struct_size = sizeof(longer);
	assert_int_equal(qcow_check(image, &longer.o, &result, &err), QCOW_OK);
	longer.later = 1;
	assert_int_equal(qcow_check(image, &longer.o, &result, &err), QCOW_E_UNSUPPORTED);
	longer.o.struct_size = offsetof(struct qcow_check_options, memory_bytes);
	longer.o.memory_bytes = 1; /* not looked at */
	assert_int_equal(qcow_check(image, &longer.o, &result, &err), QCOW_OK);
	longer.o.struct_size = 0;
	assert_int_equal(qcow_check(image, &longer.o, &result, &err), QCOW_E_INVAL);
	assert_int_equal(qcow_check(image, NULL, &result, &err), QCOW_OK);
	assert_int_equal(result.corruptions + result.leaks, 0);
	qcow_close(image);
}

/* ---- the log ---- */

struct told {
	char text[4096];
	unsigned notes, warnings;
};

static void tell(void *ctx, const struct qcow_log_entry *entry)
{
	struct told *told = ctx;
	size_t n = strlen(told->text);
	assert_true(entry->image[0] != '\0' && entry->text[0] != '\0');
	(void)snprintf(
		told->text + n, sizeof(told->text) - n, "%u %s\n", entry->finding, entry->text);
	told->notes += entry->level == QCOW_LOG_NOTE;
	told->warnings += entry->level == QCOW_LOG_WARNING;
}

static struct told told_at_open(const char *name, uint32_t flags, const char *format)
{
	struct told told = {.notes = 0};
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.flags = flags;
	o.format = format;
	o.log = tell;
	o.log_ctx = &told;
	qcow_close(must_open(name, &o));
	return told;
}

static void a_sound_image_has_nothing_to_log(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 base 1M; qemu-img create -q -f qcow2 -b base -F "
	   "qcow2 t; qemu-img snapshot -c one t; qemu-img bitmap --add t b");
	struct told told = told_at_open("t", 0, NULL);
	assert_string_equal(told.text, "");
	told = told_at_open("t", 0, "raw");
	assert_string_equal(told.text, "");
}

static void what_is_noticed_and_does_not_fail_is_logged(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 base 1M; qemu-img create -q -f qcow2 -b base -F "
	   "qcow2 t");
	poke32("base", 76, 1); /* dirty */
	poke32("base", 84, 0x80); /* a compatible and an autoclear feature */
	poke32("base", 92, 0x40);
	struct told told = told_at_open("t", 0, NULL); /* of a layer below as well */
	assert_non_null(strstr(told.text, "34 the dirty bit is set"));
	assert_non_null(strstr(told.text, "0 compatible_features has bits that nobody here knows: "
					  "0x80\n"));
	assert_non_null(strstr(told.text, "0 autoclear_features has bits that nobody here knows: "
					  "0x40;"));
	assert_true(told.notes == 2 && told.warnings == 1);
	poke32("base", 76, 3); /* corrupt too, and its tables beyond the file */
	poke32("base", 40, 1);
	poke32("base", 48, 1);
	told = told_at_open("base", 0, NULL);
	assert_non_null(strstr(told.text, "35 the corrupt bit is set"));
	assert_non_null(strstr(told.text, "1 the L1 table goes past the end"));
	assert_non_null(strstr(told.text, "23 the refcount table goes past the end"));
	poke32("base", 60, 9); /* snapshots that are not there */
	poke32("base", 64, 1);
	told = told_at_open("base", QCOW_OPEN_CHECK, NULL);
	assert_non_null(strstr(told.text, "27 the snapshots cannot be had: "));
	sh("truncate -s 1M raw");
	told = told_at_open("raw", 0, NULL);
	assert_true(told.warnings == 1 && strstr(told.text, "taken for raw by a probe") != NULL);
}

static void unknown_extensions_and_stale_bitmaps_are_logged(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 t 1M; qemu-img bitmap --add t b");
	poke32("t", 92, 0);
	struct told told = told_at_open("t", 0, NULL);
	assert_true(told.warnings == 1 && told.notes == 0);
	assert_non_null(strstr(told.text, "the bitmaps are not trusted"));
	poke32("t", 112, 0x12345678); /* the first extension after a header of 112 bytes */
	told = told_at_open("t", 0, NULL);
	assert_non_null(strstr(told.text, "extension of type 0x12345678"));
}

/* ---- chains and references ---- */

static void references_need_a_resolver(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f raw base 1M; qemu-img create -q -f qcow2 -b base -F raw "
	   "t");
	struct qcow_image *image = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_int_equal(qcow_open(open_file("t"), NULL, &image, &err), QCOW_E_POLICY);
	assert_non_null(strstr(err.message, "base"));
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	unsigned n_calls = 0;
	o.flags = QCOW_OPEN_NO_BACKING;
	o.resolve_ctx = &n_calls;
	image = must_open("t", &o);
	assert_int_equal(n_calls, 0);
	assert_null(qcow_backing(image));
	qcow_close(image);
	sh("rm base");
	o.flags = 0;
	expect_refusal("t", &o, QCOW_E_NOENT, "backing file 'base'");
	assert_int_equal(n_calls, 1);
}

/* Answers that fill nothing in: a failure, or success without a store. */
static enum qcow_status silent_resolver(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	const enum qcow_status *answer = ctx;
	(void)ref, (void)out, (void)err;
	return *answer;
}

static void a_resolver_that_says_nothing_still_makes_a_message(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f raw base 1M; qemu-img create -q -f qcow2 -b base -F raw "
	   "t");
	struct qcow_image *image = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	enum qcow_status answer = QCOW_E_ACCESS;
	o.resolve = silent_resolver;
	o.resolve_ctx = &answer;
	/* what an earlier call left in it is gone */
	err.status = QCOW_E_ACCESS;
	memcpy(err.message, "of another call", sizeof("of another call"));
	assert_int_equal(qcow_open(open_file("t"), &o, &image, &err), QCOW_E_ACCESS);
	assert_int_equal(err.status, QCOW_E_ACCESS);
	assert_non_null(strstr(err.message, "backing file 'base' of '"));
	assert_non_null(strstr(err.message, ": permission denied"));
	assert_null(strstr(err.message, "of another call"));
	answer = QCOW_OK;
	assert_int_equal(qcow_open(open_file("t"), &o, &image, &err), QCOW_E_INVAL);
	assert_non_null(strstr(err.message, "no store"));
	assert_int_equal(qcow_open(open_file("t"), &o, &image, NULL), QCOW_E_INVAL);
}

static void a_backing_file_without_a_recorded_format_is_not_guessed(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 base 1M; qemu-io -c 'write -P 5 0 64k' base; "
	   "qemu-img create -q -f qcow2 -b base -F qcow2 t");
	size_t n = 0;
	uint8_t *file = slurp("t", &n), *end = file + 4096, *p = file;
	while (p < end && memcmp(p, "\xe2\x79\x2a\xca", 4) != 0)
		p++;
	assert_true(p < end);
	/* an extension that nobody knows takes its place */
	poke32("t", (uint64_t)(p - file), 0x12345678);
	free(file);
	expect_refusal("t", NULL, QCOW_E_POLICY, "rebase -u -F");
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.flags = QCOW_OPEN_PROBE;
	struct qcow_image *image = must_open("t", &o);
	uint8_t byte = 0;
	assert_int_equal(qcow_pread(image, &byte, 1, 0, NULL), QCOW_OK);
	assert_int_equal(byte, 5);
	qcow_close(image);
}

static void loops_are_found_and_named(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -u -f qcow2 -b ./t -F qcow2 t 1M");
	expect_refusal("t", NULL, QCOW_E_LOOP, "loop");
	sh("for i in 0 1 2 3 4; do qemu-img create -q -u -f qcow2 -b l$(((i+1)%%5)) -F qcow2 l$i "
	   "1M; done");
	expect_refusal("l0", NULL, QCOW_E_LOOP, "loop");
	sh("ln l0 same; qemu-img create -q -u -f qcow2 -b same -F raw l0 1M");
	expect_refusal("l0", NULL, QCOW_E_LOOP, "loop");
	sh("rm -f d t; qemu-img create -q -f qcow2 -o data_file=d t 1M; ln -sf t d");
	expect_refusal("t", NULL, QCOW_E_LOOP, "loop");
}

static void a_data_file_that_was_not_opened_is_missed_by_name(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 -o data_file=d t 1M; qemu-io -c 'write -P 1 64k "
	   "64k' t; rm d");
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	expect_refusal("t", &o, QCOW_E_NOENT, "data file 'd'");
	o.flags = QCOW_OPEN_NO_DATA_FILE;
	struct qcow_image *image = must_open("t", &o);
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_extent e;
	uint8_t byte = 1;
	assert_null(qcow_image_data_store(image));
	assert_int_equal(qcow_pread(image, &byte, 1, 0, &err), QCOW_OK);
	assert_int_equal(byte, 0);
	assert_int_equal(qcow_pread(image, &byte, 1, 65536, &err), QCOW_E_POLICY);
	assert_non_null(strstr(err.message, "'d'"));
	assert_int_equal(err.guest_off, 65536);
	assert_int_equal(qcow_map(image, 65536, 65536, 0, &e, &err), QCOW_OK);
	assert_int_equal(e.host_off, 65536);
	qcow_close(image);
}

static void chains_of_256_open_and_of_257_do_not(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 -o cluster_size=512 l0 1M; "
	   "qemu-img create -q -u -f qcow2 -o cluster_size=512 -b l000 -F qcow2 x 1M; "
	   "mv l0 l000; i=1; while [ $i -le 256 ]; do n=$(printf l%%03d $i); "
	   "p=$(printf l%%03d $((i-1))); sed \"s/l000/$p/\" x >$n; i=$((i+1)); done");
	struct qcow_image *image = must_open("l255", NULL);
	uint32_t depth = 0;
	for (struct qcow_image *i = image; i != NULL; i = qcow_backing(i))
		depth++;
	assert_int_equal(depth, QCOW_MAX_CHAIN_DEPTH);
	uint8_t byte = 1;
	assert_int_equal(qcow_pread(image, &byte, 1, 77777, NULL), QCOW_OK);
	assert_int_equal(byte, 0);
	qcow_close(image);
	expect_refusal("l256", NULL, QCOW_E_LOOP, "deeper");
	sh("rm -f *");
}

static void a_given_backing_image_stands_in_for_the_named_one(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f raw other 1M; qemu-io -f raw -c 'write -P 9 0 1M' "
	   "other; "
	   "qemu-img create -q -u -f qcow2 -b missing -F raw t 2M");
	struct qcow_open_options raw = QCOW_OPEN_OPTIONS_INIT, o = QCOW_OPEN_OPTIONS_INIT;
	raw.format = "raw";
	o.backing = must_open("other", &raw);
	struct qcow_image *image = must_open("t", &o);
	uint8_t buf[2] = {0, 0};
	assert_int_equal(qcow_pread(image, buf, 2, (1 << 20) - 1, NULL), QCOW_OK);
	assert_int_equal(buf[0], 9);
	assert_int_equal(buf[1], 0);
	qcow_close(image);
	/* a failure leaves it to the caller */
	o.backing = must_open("other", &raw);
	o.snapshot = "none";
	assert_int_equal(open_status("t", &o, NULL), QCOW_E_NOENT);
	assert_int_equal(qcow_size(o.backing), 1 << 20);
	qcow_close(o.backing);
}

/* ---- lists ---- */

static void snapshots_are_listed_as_they_are_stored(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 t 1M; for i in 1 2 3 4 5 6 7; do "
	   "qemu-img snapshot -c name$i t; done; qemu-img snapshot -d name3 t; qemu-img resize -q "
	   "t 2M");
	struct qcow_image *image = must_open("t", NULL);
	struct qcow_info info;
	struct qcow_snapshot s, again;
	static const char *const names[] = {"name1", "name2", "name4", "name5", "name6", "name7"};
	qcow_get_info(image, &info);
	assert_int_equal(info.n_snapshots, 6);
	for (uint32_t i = 0; i < 6; i++) {
		assert_int_equal(qcow_get_snapshot(image, i, &s, NULL), QCOW_OK);
		assert_string_equal(s.name, names[i]);
		assert_int_equal(s.id[0], names[i][4]);
		assert_int_equal(s.id_bytes, 1);
		assert_true(s.has_disk_size);
		assert_int_equal(s.disk_size, 1 << 20);
	}
	assert_int_equal(qcow_get_snapshot(image, 5, &again, NULL), QCOW_OK);
	assert_ptr_equal(again.name, s.name);
	assert_int_equal(qcow_get_snapshot(image, 6, &s, NULL), QCOW_E_RANGE);
	qcow_close(image);
}

static void a_bad_snapshot_table_refuses_the_open_unless_checking(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 t 1M; qemu-img snapshot -c one t; cp t u; cp t v");
	poke64("t", 64, UINT64_C(1) << 40); /* the table lies beyond the file */
	poke32("u", 60, 60000); /* more entries than the file holds */
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	static const char *const files[] = {"t", "u"};
	for (int i = 0; i < 2; i++) {
		o.flags = 0;
		expect_refusal(files[i], &o, QCOW_E_CORRUPT, "snapshot table");
		o.flags = QCOW_OPEN_CHECK;
		struct qcow_image *image = must_open(files[i], &o);
		struct qcow_info info;
		struct qcow_snapshot s;
		struct qcow_error err = QCOW_ERROR_INIT;
		uint8_t byte = 1;
		qcow_get_info(image, &info);
		assert_true(info.read_only_at_most);
		assert_int_equal(qcow_get_snapshot(image, 0, &s, &err), QCOW_E_CORRUPT);
		assert_int_equal(err.finding, QCOW_FINDING_SNAPSHOT_TABLE);
		assert_int_equal(qcow_pread(image, &byte, 1, 0, &err), QCOW_OK);
		qcow_close(image);
	}
}

static void one_bad_snapshot_leaves_the_others_usable(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 t 1M; qemu-io -c 'write -P 3 0 64k' t; "
	   "qemu-img snapshot -c one t; qemu-img snapshot -c two t");
	size_t n = 0;
	uint8_t *file = slurp("t", &n);
	uint64_t table = 0;
	memcpy(&table, file + 64, 8);
	free(file);
	poke64("t", __builtin_bswap64(table), 0x12345); /* L1 of the first: unaligned */
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.snapshot = "one";
	expect_refusal("t", &o, QCOW_E_CORRUPT, "snapshot 'one'");
	o.snapshot = "two";
	struct qcow_image *image = must_open("t", &o);
	uint8_t byte = 0;
	assert_int_equal(qcow_pread(image, &byte, 1, 100, NULL), QCOW_OK);
	assert_int_equal(byte, 3);
	struct qcow_snapshot s;
	assert_int_equal(qcow_get_snapshot(image, 0, &s, NULL), QCOW_OK);
	assert_string_equal(s.name, "one");
	qcow_close(image);
}

static void bitmaps_are_listed_while_they_can_be_trusted(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 t 10M; qemu-img bitmap --add t b0; "
	   "qemu-img bitmap --add -g 4k t other; cp t u; cp t v");
	struct qcow_image *image = must_open("t", NULL);
	struct qcow_info info;
	struct qcow_bitmap b;
	qcow_get_info(image, &info);
	assert_int_equal(info.n_bitmaps, 2);
	assert_false(info.read_only_at_most);
	assert_int_equal(qcow_get_bitmap(image, 0, &b, NULL), QCOW_OK);
	assert_string_equal(b.name, "b0");
	assert_int_equal(b.granularity_bits, 16);
	assert_true(b.is_auto);
	assert_false(b.in_use);
	assert_int_equal(qcow_get_bitmap(image, 1, &b, NULL), QCOW_OK);
	assert_string_equal(b.name, "other");
	assert_int_equal(b.granularity_bits, 12);
	uint64_t directory = info.bitmap_directory_offset;
	qcow_close(image);
	/* without the autoclear bit nothing is trusted */
	poke64("u", 88, 0);
	image = must_open("u", NULL);
	qcow_get_info(image, &info);
	assert_int_equal(info.n_bitmaps, 0);
	qcow_close(image);
	/* a name as long as 65535 bytes overruns the directory: guest data stays readable */
	poke("v", directory + 18, "\xff\xff", 2);
	image = must_open("v", NULL);
	qcow_get_info(image, &info);
	assert_true(info.read_only_at_most);
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_int_equal(qcow_get_bitmap(image, 0, &b, &err), QCOW_E_CORRUPT);
	assert_int_equal(err.finding, QCOW_FINDING_BITMAP_DIRECTORY);
	uint8_t byte = 1;
	assert_int_equal(qcow_pread(image, &byte, 1, 0, NULL), QCOW_OK);
	qcow_close(image);
}

static void info_is_what_the_header_says(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f raw base 1M; qemu-img create -q -f qcow2 -o "
	   "cluster_size=32k,refcount_bits=8,lazy_refcounts=on,extended_l2=on,compression_type="
	   "zstd,"
	   "backing_file=base,backing_fmt=raw t 5M");
	struct qcow_image *image = must_open("t", NULL);
	struct qcow_info info;
	qcow_get_info(image, &info);
	assert_string_equal(info.format, "qcow2");
	assert_int_equal(info.virtual_size, 5 << 20);
	assert_int_equal(info.version, 3);
	assert_int_equal(info.cluster_size, 32768);
	assert_int_equal(info.refcount_bits, 8);
	assert_int_equal(info.compression, QCOW_COMPRESSION_ZSTD);
	assert_true(info.extended_l2);
	assert_int_equal(info.incompatible, QCOW_INCOMPAT_COMPRESSION | QCOW_INCOMPAT_EXTENDED_L2);
	assert_int_equal(info.compatible, QCOW_COMPAT_LAZY_REFCOUNTS);
	assert_string_equal(info.backing_name, "base");
	assert_string_equal(info.backing_format, "raw");
	assert_null(info.data_file_name);
	assert_false(info.read_only_at_most);
	assert_string_equal(qcow_feature_name(image, 0, 1), "corrupt bit");
	assert_null(qcow_feature_name(image, 2, 63));
	assert_null(qcow_feature_name(image, 3, 0));
	struct qcow_extension e;
	assert_int_equal(qcow_extension_count(image), 2);
	assert_int_equal(qcow_get_extension(image, 0, &e, NULL), QCOW_OK);
	assert_int_equal(e.type, 0xe2792aca);
	assert_int_equal(e.length, 3);
	assert_memory_equal(e.data, "raw", 3);
	assert_int_equal(qcow_get_extension(image, 2, &e, NULL), QCOW_E_RANGE);
	qcow_close(image);
}

/* ---- encryption, damage, options ---- */

static void an_encrypted_image_is_never_served(void **state)
{
	(void)state;
	/* qemu-img measures its CPU time and gives up where the machine is too busy for a short measure */
	sh("rm -f t; for i in $(seq 40); do "
	   "qemu-img create -q -f qcow2 --object secret,id=s,data=x -o "
	   "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=20 t 1M && break; done; "
	   "qemu-io --object secret,id=s,data=x --image-opts "
	   "driver=qcow2,file.filename=t,encrypt.key-secret=s -c 'write -P 1 0 64k'");
	expect_refusal("t", NULL, QCOW_E_KEY, "encrypted");
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.flags = QCOW_OPEN_CHECK;
	struct qcow_image *image = must_open("t", &o);
	struct qcow_info info;
	uint8_t buf[512];
	qcow_get_info(image, &info);
	assert_int_equal(info.encryption, QCOW_ENCRYPTION_LUKS);
	assert_true(info.crypto_length > 0);
	assert_int_equal(qcow_pread(image, buf, 512, 0, NULL), QCOW_E_KEY);
	assert_int_equal(qcow_pread(image, buf, 512, 512 << 10, NULL), QCOW_E_KEY);
	qcow_close(image);
	sh("qemu-img create -q -u -f qcow2 -b t -F qcow2 over 1M");
	expect_refusal("over", NULL, QCOW_E_KEY, "backing file 't'");
}

static void the_corrupt_bit_forbids_writing_and_nothing_else(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 t 1M; qemu-io -c 'write -P 1 0 64k' t");
	poke64("t", 72, QCOW_INCOMPAT_CORRUPT);
	struct qcow_image *image = must_open("t", NULL);
	struct qcow_info info;
	uint8_t byte = 0;
	qcow_get_info(image, &info);
	assert_true(info.read_only_at_most);
	assert_int_equal(qcow_pread(image, &byte, 1, 0, NULL), QCOW_OK);
	assert_int_equal(byte, 1);
	qcow_close(image);
}

static void unknown_features_are_refused_by_name(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 t 1M");
	poke64("t", 72, UINT64_C(1) << 33);
	expect_refusal("t", NULL, QCOW_E_UNSUPPORTED, "33");
}

static void options_of_other_versions_are_judged(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 t 1M");
	struct {
		struct qcow_open_options o;
		uint8_t later[16];
	} longer = {.o = QCOW_OPEN_OPTIONS_INIT};
	struct qcow_image *image = NULL;
	longer.o.struct_size = sizeof(longer);
	assert_int_equal(qcow_open(open_file("t"), &longer.o, &image, NULL), QCOW_OK);
	qcow_close(image);
	longer.later[3] = 1;
	assert_int_equal(qcow_open(open_file("t"), &longer.o, &image, NULL), QCOW_E_UNSUPPORTED);
	struct qcow_open_options o = {.struct_size = 0};
	assert_int_equal(open_status("t", &o, NULL), QCOW_E_INVAL);
	o = (struct qcow_open_options)QCOW_OPEN_OPTIONS_INIT;
	o.flags = 0x80000000;
	assert_int_equal(open_status("t", &o, NULL), QCOW_E_INVAL);
}

static void opening_and_reading_write_nothing(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 -o lazy_refcounts=on t 1M; "
	   "qemu-io -c 'write -P 1 0 64k' t; qemu-img snapshot -c s t");
	poke64("t", 72, QCOW_INCOMPAT_DIRTY);
	poke64("t", 88, UINT64_C(1) << 63);
	sh("sha256sum t >before");
	struct qcow_store *store = NULL;
	assert_int_equal(qcow_file_open(in_dir("t"), QCOW_FILE_WRITE, &store, NULL), QCOW_OK);
	struct qcow_image *image = NULL;
	assert_int_equal(qcow_open(store, NULL, &image, NULL), QCOW_OK);
	uint8_t buf[4096];
	assert_int_equal(qcow_pread(image, buf, sizeof(buf), 0, NULL), QCOW_OK);
	qcow_close(image);
	sh("sha256sum -c before");
}

/* ---- cost ---- */

static double seconds(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

#define MOST_KIB ((QKT_SANITIZED ? 40 : 8) << 10)

static long resident_kib(void)
{
	long pages = 0, resident = 0;
	FILE *f = fopen("/proc/self/statm", "r");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%ld %ld", &pages, &resident), 2);
	fclose(f);
	return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static void an_empty_pebibyte_opens_and_maps_at_once(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 -o cluster_size=2M base 1P; "
	   "qemu-img create -q -f qcow2 -o cluster_size=2M -b base -F qcow2 t 1P");
	double start = seconds();
	struct qcow_image *image = must_open("t", NULL);
	struct qcow_extent e;
	assert_int_equal(qcow_map(image, 0, qcow_size(image), UINT32_MAX, &e, NULL), QCOW_OK);
	assert_int_equal(e.len, UINT64_C(1) << 50);
	assert_int_equal(e.depth, 1);
	qcow_close(image);
	assert_true(seconds() - start < 1.0); /* it takes about a millisecond */
}

static void tables_that_are_only_claimed_take_no_memory(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 -o cluster_size=2M t 1M; cp t u");
	poke32("t", 36, 0x400000); /* 32 MiB of L1, */
	poke64("t", 40, UINT64_C(1) << 50); /* beyond the file */
	poke32("u", 60, 65536); /* the most snapshots, … */
	sh("truncate -s 1T u"); /* … all zeros */
	poke64("u", 64, UINT64_C(1) << 30);
	long before = resident_kib();
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.flags = QCOW_OPEN_CHECK;
	struct qcow_image *t = must_open("t", &o), *u = must_open("u", &o);
	assert_true(resident_kib() - before < MOST_KIB);
	uint8_t byte = 0;
	assert_int_equal(qcow_pread(t, &byte, 1, 0, NULL), QCOW_E_CORRUPT);
	assert_true(resident_kib() - before < MOST_KIB);
	qcow_close(t);
	qcow_close(u);
}

/* A busy layer under a hole: the work must follow the answers, not hole times answers. */
static void a_long_hole_above_a_busy_layer_is_not_walked_again_and_again(void **state)
{
	(void)state;
	sh("rm -f *; qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata base "
	   "64M; "
	   "qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata top 64M");
	/* the L2 tables of `top` say nothing; those of `base` say zero, zero with a cluster, by turns */
	size_t n = 0;
	uint8_t *file = slurp("top", &n);
	uint64_t l1 = 0;
	memcpy(&l1, file + 40, 8);
	l1 = __builtin_bswap64(l1);
	for (uint64_t i = 0; i < (64 << 20) / 512 / 64; i++) {
		uint64_t l2 = 0;
		memcpy(&l2, file + l1 + i * 8, 8);
		l2 = __builtin_bswap64(l2) & UINT64_C(0xfffffffffffe00);
		memset(file + l2, 0, 512);
	}
	poke("top", 0, file, n);
	free(file);
	file = slurp("base", &n);
	memcpy(&l1, file + 40, 8);
	l1 = __builtin_bswap64(l1);
	for (uint64_t i = 0; i < (64 << 20) / 512 / 64; i++) {
		uint64_t l2 = 0;
		memcpy(&l2, file + l1 + i * 8, 8);
		l2 = __builtin_bswap64(l2) & UINT64_C(0xfffffffffffe00);
		for (unsigned k = 0; k < 64; k += 2)
			memset(file + l2 + k * 8, 0, 8);
	}
	poke("base", 0, file, n);
	free(file);
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.backing = must_open("base", NULL);
	struct qcow_image *image = must_open("top", &o);
	double start = seconds();
	struct qcow_extent e;
	unsigned extents = 0;
	for (uint64_t off = 0; off < 64 << 20; off += e.len, extents++)
		assert_int_equal(
			qcow_map(image, off, (64 << 20) - off, UINT32_MAX, &e, NULL), QCOW_OK);
	assert_int_equal(extents, (64 << 20) / 512);
	/* 131,072 answers in a fraction of a second; walking the hole each time takes minutes */
	assert_true(seconds() - start < 20.0);
	qcow_close(image);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_with_the_magic_of_another_version_is_never_raw),
		cmocka_unit_test(format_decides_over_the_probe),
		cmocka_unit_test(files_cut_in_the_header_are_refused),
		cmocka_unit_test(check_options_of_other_versions_are_understood),
		cmocka_unit_test(a_sound_image_has_nothing_to_log),
		cmocka_unit_test(what_is_noticed_and_does_not_fail_is_logged),
		cmocka_unit_test(unknown_extensions_and_stale_bitmaps_are_logged),
		cmocka_unit_test(references_need_a_resolver),
		cmocka_unit_test(a_resolver_that_says_nothing_still_makes_a_message),
		cmocka_unit_test(a_backing_file_without_a_recorded_format_is_not_guessed),
		cmocka_unit_test(loops_are_found_and_named),
		cmocka_unit_test(a_data_file_that_was_not_opened_is_missed_by_name),
		cmocka_unit_test(chains_of_256_open_and_of_257_do_not),
		cmocka_unit_test(a_given_backing_image_stands_in_for_the_named_one),
		cmocka_unit_test(snapshots_are_listed_as_they_are_stored),
		cmocka_unit_test(a_bad_snapshot_table_refuses_the_open_unless_checking),
		cmocka_unit_test(one_bad_snapshot_leaves_the_others_usable),
		cmocka_unit_test(bitmaps_are_listed_while_they_can_be_trusted),
		cmocka_unit_test(info_is_what_the_header_says),
		cmocka_unit_test(an_encrypted_image_is_never_served),
		cmocka_unit_test(the_corrupt_bit_forbids_writing_and_nothing_else),
		cmocka_unit_test(unknown_features_are_refused_by_name),
		cmocka_unit_test(options_of_other_versions_are_judged),
		cmocka_unit_test(opening_and_reading_write_nothing),
		cmocka_unit_test(an_empty_pebibyte_opens_and_maps_at_once),
		cmocka_unit_test(tables_that_are_only_claimed_take_no_memory),
		cmocka_unit_test(a_long_hole_above_a_busy_layer_is_not_walked_again_and_again),
	};
	if (!has_qemu())
		return 77;
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
