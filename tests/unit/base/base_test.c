/* SPDX-License-Identifier: MIT */
/* Checked arithmetic, cursors, errors and allocation. */
#include "cm.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/num.h"

/* ---- num ---- */

static void overflow_is_told_and_leaves_the_result_alone(void **state)
{
	(void)state;
	uint64_t v = 77;
	assert_false(qk_add(UINT64_MAX, 1, &v));
	assert_false(qk_mul(UINT64_C(1) << 32, UINT64_C(1) << 32, &v));
	assert_false(qk_align_up(UINT64_MAX - 5, 512, &v));
	assert_int_equal(v, 77);
	assert_true(qk_add(UINT64_MAX - 1, 1, &v) && v == UINT64_MAX);
	assert_true(qk_mul(UINT64_C(1) << 32, UINT32_MAX, &v) && v == UINT64_C(0xffffffff00000000));
	assert_true(qk_align_up(UINT64_MAX - 1023, 512, &v) && v == UINT64_MAX - 1023);
}

static void ranges_at_the_edges_are_judged_right(void **state)
{
	(void)state;
	assert_true(qk_in_range(0, 0, 0));
	assert_true(qk_in_range(10, 0, 10));
	assert_false(qk_in_range(11, 0, 10));
	assert_true(qk_in_range(3, 7, 10));
	assert_false(qk_in_range(3, 8, 10));
	assert_false(qk_in_range(8, UINT64_MAX, 10));
	assert_false(qk_in_range(UINT64_MAX, 2, 10));
	assert_true(qk_in_range(1, UINT64_MAX - 1, UINT64_MAX));
}

static void rounding_and_powers(void **state)
{
	(void)state;
	assert_int_equal(qk_div_up(0, 7), 0);
	assert_int_equal(qk_div_up(7, 7), 1);
	assert_int_equal(qk_div_up(8, 7), 2);
	assert_true(qk_div_up(UINT64_MAX, 2) == UINT64_C(1) << 63);
	assert_int_equal(qk_align_down(1023, 512), 512);
	assert_true(qk_is_aligned(1024, 512) && !qk_is_aligned(1025, 512));
	assert_true(qk_is_pow2(1) && qk_is_pow2(UINT64_C(1) << 63));
	assert_false(qk_is_pow2(0) || qk_is_pow2(3));
	assert_int_equal(qk_log2(65536), 16);
	assert_int_equal(qk_min(3, 5), 3);
	assert_int_equal(qk_max(3, 5), 5);
}

/* ---- bytes ---- */

static void a_cursor_that_overruns_stays_bad(void **state)
{
	(void)state;
	static const uint8_t bytes[] = {1, 2, 3, 4, 5, 6, 7};
	struct qk_reader r = qk_reader_init(bytes, sizeof(bytes));
	assert_int_equal(qk_read16(&r), 0x0102);
	assert_int_equal(qk_reader_left(&r), 5);
	assert_int_equal(qk_read64(&r), 0);
	assert_true(r.bad);
	assert_int_equal(qk_read8(&r), 0);
	assert_int_equal(qk_reader_left(&r), 0);
	assert_null(qk_read_span(&r, 0).p);
	r = qk_reader_init(bytes, sizeof(bytes));
	assert_null(qk_read_span(&r, SIZE_MAX).p);
	assert_true(r.bad);
}

static void a_cursor_reads_up_to_its_last_byte(void **state)
{
	(void)state;
	static const uint8_t bytes[] = {0xf1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
	struct qk_reader r = qk_reader_init(bytes, sizeof(bytes));
	assert_int_equal(qk_read8(&r), 0xf1);
	qk_read_skip(&r, 1);
	assert_int_equal(qk_read16(&r), 0x0304);
	assert_int_equal(qk_read32(&r), 0x05060708);
	assert_true(qk_read64(&r) == UINT64_C(0x090a0b0c0d0e0f10));
	assert_false(r.bad);
	assert_int_equal(qk_reader_left(&r), 0);
}

static void a_writer_never_leaves_its_room(void **state)
{
	(void)state;
	uint8_t bytes[16];
	memset(bytes, 0xee, sizeof(bytes));
	struct qk_writer w = qk_writer_init(bytes, 15);
	qk_write8(&w, 1);
	qk_write16(&w, 0x0203);
	qk_write32(&w, 0x04050607);
	qk_write64(&w, UINT64_C(0x08090a0b0c0d0e0f));
	assert_false(w.bad);
	for (uint8_t i = 0; i < 15; i++)
		assert_int_equal(bytes[i], i + 1);
	qk_write8(&w, 9);
	qk_write_zeros(&w, 0);
	assert_true(w.bad);
	assert_int_equal(bytes[15], 0xee);
	w = qk_writer_init(bytes, 4);
	qk_write_bytes(&w, "ab", 2);
	qk_write_zeros(&w, 3);
	qk_write_bytes(&w, "c", 1);
	assert_true(w.bad);
	assert_memory_equal(bytes, "ab\3\4", 4);
}

/* One byte that is not zero, at every place of every length around the step of the wide loop. */
static void one_byte_anywhere_is_not_zero(void **state)
{
	(void)state;
	uint8_t bytes[200] = {0};
	for (size_t n = 0; n <= 199; n++) {
		bytes[n] = 1; /* just past the end: must not count */
		assert_true(qk_is_zero(bytes, n));
		bytes[n] = 0;
		for (size_t i = 0; i < n; i++) {
			bytes[i] = 0x80;
			assert_false(qk_is_zero(bytes, n));
			bytes[i] = 0;
		}
	}
}

/* ---- err ---- */

static void the_first_failure_is_kept_and_context_added(void **state)
{
	(void)state;
	struct qcow_error e = QCOW_ERROR_INIT;
	qk_err_context(&e, "nothing happened yet");
	assert_string_equal(e.message, "");
	assert_int_equal(
		QK_FAIL_AT(&e, QCOW_E_CORRUPT, 5, 0x100, 0x200, "entry %d", 7), QCOW_E_CORRUPT);
	qk_err_context(&e, "%s", "disk");
	assert_string_equal(e.message, "disk: entry 7");
	assert_int_equal(e.finding, 5);
	assert_int_equal(e.host_off, 0x100);
	assert_int_equal(e.guest_off, 0x200);
	assert_non_null(strstr(e.site, "base_test.c:"));
	qk_err_clear(&e);
	assert_int_equal(e.status, QCOW_OK);
	assert_true(e.host_off == QCOW_NO_OFFSET && e.message[0] == '\0');
	assert_int_equal(QK_FAIL(NULL, QCOW_E_INVAL, "nobody asks"), QCOW_E_INVAL);
	assert_int_equal(QK_FAIL_OS(NULL, ENOENT, "nobody asks"), QCOW_E_NOENT);
	qk_err_context(NULL, "x");
	qk_err_clear(NULL);
}

static void host_errors_get_their_status(void **state)
{
	(void)state;
	static const struct {
		int os_errno;
		enum qcow_status status;
	} pairs[] = {{ENOSPC, QCOW_E_NOSPC}, {EDQUOT, QCOW_E_NOSPC}, {EFBIG, QCOW_E_NOSPC},
		{ENOENT, QCOW_E_NOENT}, {EEXIST, QCOW_E_EXIST}, {EROFS, QCOW_E_ACCESS},
		{EACCES, QCOW_E_ACCESS}, {ENOMEM, QCOW_E_NOMEM}, {EOPNOTSUPP, QCOW_E_NOTSUP},
		{EIO, QCOW_E_IO}, {EBADF, QCOW_E_IO}};
	struct qcow_error e;
	for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
		assert_int_equal(QK_FAIL_OS(&e, pairs[i].os_errno, "call"), pairs[i].status);
		assert_int_equal(e.os_errno, pairs[i].os_errno);
	}
	(void)QK_FAIL_OS(&e, ENOSPC, "writing");
	assert_string_equal(e.message, "writing: No space left on device");
}

static void long_messages_are_cut_not_overrun(void **state)
{
	(void)state;
	struct qcow_error e;
	char text[1000];
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	(void)QK_FAIL_OS(&e, EIO, "%s", text);
	assert_int_equal(strlen(e.message), QCOW_ERROR_MESSAGE_BYTES - 1);
	qk_err_context(&e, "%s", text);
	assert_int_equal(strlen(e.message), QCOW_ERROR_MESSAGE_BYTES - 1);
}

static void every_status_has_a_name_and_words(void **state)
{
	(void)state;
	for (int s = QCOW_E_WOULD_BLOCK; s <= QCOW_OK; s++) {
		assert_string_not_equal(qcow_status_name((enum qcow_status)s), "?");
		assert_string_not_equal(qcow_status_text((enum qcow_status)s), "?");
	}
	assert_string_equal(qcow_status_name((enum qcow_status)1), "?");
	assert_string_equal(qcow_status_text((enum qcow_status)(QCOW_E_WOULD_BLOCK - 1)), "?");
}

/* ---- mem ---- */

static void sizes_that_overflow_are_no_memory(void **state)
{
	(void)state;
	assert_null(qk_malloc(UINT64_MAX, 2));
	assert_null(qk_calloc(UINT64_C(1) << 40, (size_t)1 << 30));
	assert_null(qk_malloc_aligned(4096, UINT64_MAX));
	assert_null(qk_strndup("x", SIZE_MAX));
	char *kept = qk_strndup("kept", 4);
	assert_null(qk_realloc(kept, UINT64_MAX, 8));
	assert_string_equal(kept, "kept");
	free(kept);
}

static void empty_and_aligned_blocks_can_be_freed(void **state)
{
	(void)state;
	QK_AUTO_FREE void *none = qk_calloc(0, 8);
	QK_AUTO_FREE void *page = qk_malloc_aligned(4096, 100);
	QK_AUTO_FREE char *empty = qk_strndup(NULL, 0);
	assert_non_null(none);
	assert_int_equal((uintptr_t)page % 4096, 0);
	assert_string_equal(empty, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(overflow_is_told_and_leaves_the_result_alone),
		cmocka_unit_test(ranges_at_the_edges_are_judged_right),
		cmocka_unit_test(rounding_and_powers),
		cmocka_unit_test(a_cursor_that_overruns_stays_bad),
		cmocka_unit_test(a_cursor_reads_up_to_its_last_byte),
		cmocka_unit_test(a_writer_never_leaves_its_room),
		cmocka_unit_test(one_byte_anywhere_is_not_zero),
		cmocka_unit_test(the_first_failure_is_kept_and_context_added),
		cmocka_unit_test(host_errors_get_their_status),
		cmocka_unit_test(long_messages_are_cut_not_overrun),
		cmocka_unit_test(every_status_has_a_name_and_words),
		cmocka_unit_test(sizes_that_overflow_are_no_memory),
		cmocka_unit_test(empty_and_aligned_blocks_can_be_freed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
