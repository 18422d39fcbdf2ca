/* SPDX-License-Identifier: MIT */
/*
 * Locks against QEMU's own: each holder against each opener, both ways, with each QEMU that is there.
 * The image is qcow2, for QEMU shares raw ones with other writers.
 */
#include "cm.h"

#include <stdlib.h>
#include <unistd.h>

#include <qcowkit/store.h>

#include "host.h"

static struct qcow_error err;
static const char *qemus[2];
static size_t n_qemus;

/* The three ways of opening, QEMU's and ours. */
static const struct way {
	const char *qemu;
	unsigned ours;
} ways[] = {
	{"", QCOW_FILE_WRITE},
	{"-r", 0},
	{"-r -U", QCOW_FILE_SHARE},
};
#define N_WAYS 3

/* opens[holder][opener] */
static const bool opens[N_WAYS][N_WAYS] = {
	{false, false, true},
	{false, true, true},
	{true, true, true},
};

/* What QEMU says in the place of our opener, from "Failed" to the end of the line. */
static const char *words_of_qemu(const char *prefix, const struct way *opener)
{
	static char words[200];
	assert_int_equal(qkt_run("%sqemu-io -f qcow2 %s -c q img", prefix, opener->qemu), 1);
	const char *at = strstr(qkt_stderr(), "Failed");
	assert_non_null(at);
	(void)snprintf(words, sizeof(words), "%.*s", (int)strcspn(at, "\n"), at);
	return words;
}

static void try_ours(const char *prefix, pid_t pid, size_t holder, size_t opener)
{
	struct qcow_store *s = NULL;
	const char *path = qkt_path("img");
	char text[700];
	if (opens[holder][opener]) {
		assert_ok(qcow_file_open(path, ways[opener].ours, &s, &err), err);
		qcow_store_close(s);
		return;
	}
	assert_status(qcow_file_open(path, ways[opener].ours, &s, &err), QCOW_E_LOCKED, err);
	assert_null(s);
	assert_says(err, words_of_qemu(prefix, &ways[opener]));
	(void)snprintf(text, sizeof(text), "Is another process using the image [%s]?", path);
	assert_says(err, text);
	(void)snprintf(text, sizeof(text), "It is locked by process %d (", (int)pid);
	assert_says(err, text);
	assert_ok(qcow_file_open(path, ways[opener].ours | QCOW_FILE_NO_LOCK, &s, &err), err);
	qcow_store_close(s);
}

static void we_respect_what_qemu_holds(void **state)
{
	(void)state;
	for (size_t q = 0; q < n_qemus; q++)
		for (size_t holder = 0; holder < N_WAYS; holder++) {
			pid_t pid = qkt_start("read 512/512",
				"stdbuf -oL %sqemu-io -f qcow2 %s -c 'read 0 512' -c 'sleep "
				"100000' "
				"img",
				qemus[q], ways[holder].qemu);
			for (size_t opener = 0; opener < N_WAYS; opener++)
				try_ours(qemus[q], pid, holder, opener);
			qkt_stop(pid);
		}
}

static void qemu_respects_what_we_hold(void **state)
{
	(void)state;
	for (size_t q = 0; q < n_qemus; q++)
		for (size_t holder = 0; holder < N_WAYS; holder++) {
			struct qcow_store *s = NULL;
			assert_ok(
				qcow_file_open(qkt_path("img"), ways[holder].ours, &s, &err), err);
			for (size_t opener = 0; opener < N_WAYS; opener++) {
				int status = qkt_run("%sqemu-io -f qcow2 %s -c q img", qemus[q],
					ways[opener].qemu);
				assert_int_equal(status, opens[holder][opener] ? 0 : 1);
			}
			qcow_store_close(s);
		}
}

static void after_our_close_qemu_opens(void **state)
{
	(void)state;
	struct qcow_store *s = NULL;
	for (size_t q = 0; q < n_qemus; q++) {
		assert_ok(qcow_file_open(qkt_path("img"), QCOW_FILE_WRITE, &s, &err), err);
		int copy = dup(qcow_store_fd(s)); /* keeps the open file description */
		qcow_store_close(s);
		assert_int_equal(qkt_run("%sqemu-io -f qcow2 -c q img", qemus[q]), 0);
		assert_int_equal(close(copy), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(we_respect_what_qemu_holds),
		cmocka_unit_test(qemu_respects_what_we_hold),
		cmocka_unit_test(after_our_close_qemu_opens),
	};
	n_qemus = qkt_qemus(qemus);
	if (n_qemus == 0)
		qkt_skip("qemu-img and qemu-io are missing (package qemu-utils)");
	qkt_must("%sqemu-img create -q -f qcow2 img 1M", qemus[0]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
