/* SPDX-License-Identifier: MIT */
/* image_cm: what programs of cmocka do with an image of image.h in one line; what fails fails the test. */
#ifndef QKT_IMAGE_CM_H
#define QKT_IMAGE_CM_H

#include "cm.h"

#include <stdlib.h>

#include "image.h"

/* Write `len` bytes of `value` at `off`. */
static inline void qkt_image_write(struct qkt_image *im, size_t len, uint64_t off, int value)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *b = malloc(len);
	assert_non_null(b);
	memset(b, value, len);
	assert_ok(qcow_pwrite(im->image, b, len, off, 0, &err), err);
	free(b);
}

/* That is what is read there. */
static inline void qkt_image_reads(struct qkt_image *im, size_t len, uint64_t off, int value)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *b = malloc(len);
	assert_non_null(b);
	assert_ok(qcow_pread(im->image, b, len, off, &err), err);
	for (size_t i = 0; i < len; i++)
		assert_int_equal(b[i], value);
	free(b);
}

/* It is flushed, and a check finds no corruption. */
static inline void qkt_image_is_clean(struct qkt_image *im)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_options options = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	assert_ok(qcow_flush(im->image, &err), err);
	assert_ok(qcow_check(im->image, &options, &result, &err), err);
	assert_int_equal(result.corruptions, 0);
}

#endif
