/* SPDX-License-Identifier: MIT */
/*
 * What people type and read: sizes, lists, escapes, JSON strings, near words. Expected values are written
 * out by hand.
 */
#include "cm.h"

#include <string.h>

#include "cli/cli.h"
#include "cli/utf8.h"

/* Tests link the room without a program's table of commands being used. */
static struct cli a_cli(void)
{
	const struct compat_traits *traits = qk_compat_traits("qcow");
	return (struct cli){.traits = traits, .prog = traits->program};
}

static void sizes_have_suffixes_in_powers_of_1024(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} cases[] = {{"0", 0}, {"1", 1}, {"123b", 123}, {"123B", 123}, {"1k", 1024}, {"1K", 1024},
		{"10M", 10485760}, {"1.5G", 1610612736}, {"2T", 2199023255552},
		{"3P", 3377699720527872}, {"7E", 8070450532247928832u}, {"0x200", 512},
		{"0.5k", 512}, {"0.999k", 1022}, {"1.000000001E", 1152921505759768480}, {" 2", 2},
		{"9223372036854775807", INT64_MAX}, {"0XfF", 255}, {"1.0M", 1048576}};
	struct cli cli = a_cli();
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t bytes = 0;
		assert_true(cli_parse_size(&cli, "size", cases[i].text, &bytes));
		assert_int_equal(bytes, cases[i].bytes);
	}
}

static void signs_are_told_apart(void **state)
{
	struct cli cli = a_cli();
	enum cli_sign sign = CLI_SIGN_NONE;
	uint64_t bytes = 0;
	(void)state;
	assert_true(cli_parse_size_signed(&cli, "size", "+1G", &sign, &bytes));
	assert_int_equal(sign, CLI_SIGN_PLUS);
	assert_int_equal(bytes, 1u << 30);
	assert_true(cli_parse_size_signed(&cli, "size", "-512", &sign, &bytes));
	assert_int_equal(sign, CLI_SIGN_MINUS);
	assert_int_equal(bytes, 512);
	assert_true(cli_parse_size_signed(&cli, "size", "64k", &sign, &bytes));
	assert_int_equal(sign, CLI_SIGN_NONE);
	assert_false(cli_parse_size_signed(&cli, "size", "+-1", &sign, &bytes));
}

static void numbers_keep_their_bounds(void **state)
{
	struct cli cli = a_cli();
	uint64_t v = 0;
	(void)state;
	assert_true(cli_parse_number(&cli, "number", "16", 1, 16, &v));
	assert_int_equal(v, 16);
	assert_true(cli_parse_number(&cli, "number", " 0x10", 1, 16, &v));
	assert_int_equal(v, 16);
	static const char *const wrong[] = {
		"17", "0", "-1", "", "1.5", "1k", "99999999999999999999"};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_false(cli_parse_number(&cli, "number", wrong[i], 1, 16, &v));
}

static void human_sizes_have_three_digits(void **state)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} cases[] = {{0, "0 B"}, {1, "1 B"}, {999, "999 B"}, {1000, "0.977 KiB"}, {1024, "1 KiB"},
		{221184, "216 KiB"}, {16777216, "16 MiB"}, {2297856, "2.19 MiB"},
		{1023999, "1e+03 KiB"}, {1024000, "0.977 MiB"}, {UINT64_MAX, "16 EiB"}};
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char buf[CLI_SIZE_BYTES];
		assert_string_equal(cli_human_size(cases[i].bytes, buf), cases[i].text);
	}
}

static void what_a_terminal_would_act_on_is_escaped(void **state)
{
	static const struct {
		const char *text, *escaped;
	} cases[] = {{"", ""}, {"plain name", "plain name"}, {"\033[31m", "\\x1b[31m"},
		{"a\nb\tc\x7f", "a\\x0ab\\x09c\\x7f"}, {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"},
		{"\xff\xc3", "\\xff\\xc3"}, {"\xc0\xaf", "\\xc0\\xaf"},
		{"\xed\xa0\x80", "\\xed\\xa0\\x80"},
		{"\xe2\x80\xae"
		 "gpj",
			"\\u202egpj"},
		{"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"}, {"\xf3\xa0\x80\x81", "\\U000e0001"},
		{"\xc2\x9b"
		 "31m",
			"\\u009b31m"},
		{"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"}};
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char *out = cli_escape(cases[i].text, strlen(cases[i].text));
		assert_non_null(out);
		assert_string_equal(out, cases[i].escaped);
		free(out);
	}
}

static void any_bytes_make_a_json_string(void **state)
{
	(void)state;
	json_t *o = cli_json_stringn("a\xff\0b\xe2\x82", 6);
	assert_non_null(o);
	assert_int_equal(json_string_length(o), 12);
	assert_memory_equal(json_string_value(o), "a\xef\xbf\xbd\0b\xef\xbf\xbd\xef\xbf\xbd", 12);
	json_decref(o);
}

static void lists_split_at_single_commas(void **state)
{
	struct cli cli = a_cli();
	struct cli_keyvals list = {0};
	(void)state;
	assert_true(cli_keyvals_add(&cli, &list, "size=1G,file=a,,b,lazy,empty=,size=2G"));
	assert_true(cli_keyvals_add(&cli, &list, "x=y=z,,,last=1"));
	assert_string_equal(cli_keyvals_get(&list, "size"), "2G");
	assert_string_equal(cli_keyvals_get(&list, "file"), "a,b");
	assert_null(cli_keyvals_get(&list, "lazy"));
	assert_string_equal(cli_keyvals_get(&list, "empty"), "");
	assert_string_equal(cli_keyvals_get(&list, "x"), "y=z,");
	assert_string_equal(cli_keyvals_get(&list, "last"), "1");
	assert_int_equal(list.n, 7);
	assert_false(cli_keyvals_add(&cli, &list, "=1"));
	assert_false(cli_keyvals_add(&cli, &list, "a=1,=2"));
	cli_keyvals_release(&list);
}

static void paths_join_like_those_of_qemu(void **state)
{
	static const struct {
		const char *from, *name, *path;
	} cases[] = {{"top.qcow2", "base", "base"}, {"d/top", "base", "d/base"},
		{"d/top", "../base", "d/../base"}, {"/a/b", "c/d", "/a/c/d"},
		{"d/top", "/base", "/base"}, {"/top", "x", "/x"}};
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char *path = cli_join_path(cases[i].from, cases[i].name);
		assert_non_null(path);
		assert_string_equal(path, cases[i].path);
		free(path);
	}
}

static void near_words_are_found_and_far_ones_are_not(void **state)
{
	static const char *const words[] = {"info", "convert", "snapshot", "map"};
	(void)state;
	assert_string_equal(cli_nearest("inof", words, 4), "info");
	assert_string_equal(cli_nearest("covnert", words, 4), "convert");
	assert_string_equal(cli_nearest("snapshots", words, 4), "snapshot");
	assert_null(cli_nearest("quux", words, 4));
	assert_null(cli_nearest("", words, 4));
	assert_null(cli_nearest("a-word-that-is-longer-than-thirty-two-letters", words, 4));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_have_suffixes_in_powers_of_1024),
		cmocka_unit_test(signs_are_told_apart),
		cmocka_unit_test(numbers_keep_their_bounds),
		cmocka_unit_test(human_sizes_have_three_digits),
		cmocka_unit_test(what_a_terminal_would_act_on_is_escaped),
		cmocka_unit_test(any_bytes_make_a_json_string),
		cmocka_unit_test(lists_split_at_single_commas),
		cmocka_unit_test(paths_join_like_those_of_qemu),
		cmocka_unit_test(near_words_are_found_and_far_ones_are_not),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
