/* SPDX-License-Identifier: MIT */
/*
 * NBD addresses: what they mean, and what is refused.
 */
#include "store_nbd/store_nbd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void check(const char *text, const char *path, const char *host, const char *port,
	const char *export_name)
{
	struct qk_nbd_address a;
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_true(qk_nbd_is_name(text));
	if (qk_nbd_address_parse(text, &a, &err) != QCOW_OK)
		fail_msg("%s: %s", text, err.message);
	if (path != NULL)
		assert_string_equal(a.path, path);
	else
		assert_null(a.path);
	if (host != NULL) {
		assert_string_equal(a.host, host);
		assert_string_equal(a.port, port);
	}
	assert_string_equal(a.export_name, export_name);
	qk_nbd_address_release(&a);
}

static void addresses_are_understood(void **state)
{
	(void)state;
	check("nbd://host", NULL, "host", "10809", "");
	check("nbd://host/", NULL, "host", "10809", "");
	check("nbd://host:1/x/y", NULL, "host", "1", "x/y");
	check("nbd://[::1]:2/x", NULL, "::1", "2", "x");
	check("nbd://[::1]", NULL, "::1", "10809", "");
	check("nbd:///x", NULL, "localhost", "10809", "x");
	check("nbd+tcp://h/%41%2f", NULL, "h", "10809", "A/");
	check("nbd+unix:///x?socket=/a%20b", "/a b", NULL, NULL, "x");
	check("nbd+unix://?socket=/s", "/s", NULL, NULL, "");
	check("nbds+unix:///?tls-username=u&socket=/s&tls-verify-peer=0", "/s", NULL, NULL, "");
	check("nbd:unix:/s", "/s", NULL, NULL, "");
	check("nbd:unix:/s:exportname=a:b", "/s", NULL, NULL, "a:b");
	check("nbd:h:3", NULL, "h", "3", "");
	check("nbd:[::1]:3:exportname=e", NULL, "::1", "3", "e");
}

static void parts_of_tls_are_kept(void **state)
{
	(void)state;
	struct qk_nbd_address a;
	assert_int_equal(qk_nbd_address_parse("nbds://u@h/?tls-certificates=/c&tls-psk-file=/p"
					      "&tls-verify-peer=false",
				 &a, NULL),
		QCOW_OK);
	assert_true(a.tls);
	assert_true(a.no_verify);
	assert_string_equal(a.tls_dir, "/c");
	assert_string_equal(a.tls_psk_file, "/p");
	assert_string_equal(a.tls_username, "u");
	qk_nbd_address_release(&a);
	assert_int_equal(
		qk_nbd_address_parse("nbds+unix://al%20ice@/e?socket=/s", &a, NULL), QCOW_OK);
	assert_string_equal(a.tls_username, "al ice");
	assert_string_equal(a.path, "/s");
	qk_nbd_address_release(&a);
}

static void what_is_no_address_is_refused(void **state)
{
	static const char *const bad[] = {"nbd+unix:///x", "nbd://h/?socket=/s", "nbd://h/?x=1",
		"nbd://h/%", "nbd://h/%4", "nbd://h/%zz", "nbd://h/%00", "nbd://[::1/", "nbd:h",
		"nbd:", "x://h", "nbd+unix://?socket=%4"};
	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct qk_nbd_address a;
		struct qcow_error err = QCOW_ERROR_INIT;
		if (qk_nbd_address_parse(bad[i], &a, &err) == QCOW_OK)
			fail_msg("%s was taken", bad[i]);
		assert_string_not_equal(err.message, "");
		qk_nbd_address_release(&a);
	}
}

static void text_of(const char *from, const char *want)
{
	struct qk_nbd_address a;
	assert_int_equal(qk_nbd_address_parse(from, &a, NULL), QCOW_OK);
	char *text = qk_nbd_address_text(&a);
	assert_string_equal(text, want);
	free(text);
	qk_nbd_address_release(&a);
}

static void one_text_stands_for_all_spellings(void **state)
{
	(void)state;
	text_of("nbd:unix:/s:exportname=e", "nbd+unix:///e?socket=/s");
	text_of("nbd+unix:///?socket=/s", "nbd+unix://?socket=/s");
	text_of("nbd:h:7", "nbd://h:7");
	text_of("nbd://h/e", "nbd://h:10809/e");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(addresses_are_understood),
		cmocka_unit_test(parts_of_tls_are_kept),
		cmocka_unit_test(what_is_no_address_is_refused),
		cmocka_unit_test(one_text_stands_for_all_spellings),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
