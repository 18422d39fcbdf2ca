/* SPDX-License-Identifier: MIT */
/*
 * amend: options of an image that were chosen when it was made are changed.
 *
 *   amend.c          what may be changed, and in what order
 *   amend_width.c    the width of refcounts
 *   amend_version.c  the version of the header, lazy refcounts, the data file's name
 *   amend_zeros.c    zero clusters, which version 2 has not
 */
#ifndef QK_ENGINE_AMEND_H
#define QK_ENGINE_AMEND_H

#include <qcowkit/manage.h>

#include "base/err.h"

/* qcow_amend; the options are whole. */
enum qcow_status qk_amend(struct qcow_image *image, const struct qcow_amend_options *options,
	struct qcow_error *err) QK_MUST_USE;

/* The steps of it. Each is alone (engine/control.h), and wholly done or not at all. */

enum qcow_status qk_amend_width(struct qcow_image *image, unsigned refcount_bits,
	const struct qcow_progress *progress, struct qcow_error *err) QK_MUST_USE;

/* Would that come to its end? Changes nothing; the image may be open read-only. */
enum qcow_status qk_amend_width_judge(struct qcow_image *image, unsigned refcount_bits,
	const struct qcow_progress *progress, struct qcow_error *err) QK_MUST_USE;

/* To version 3; snapshots say from then on how large their disks are. */
enum qcow_status qk_amend_upgrade(struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;
/* To version 2: nothing is there that it cannot hold but zero clusters and lazy refcounts. */
enum qcow_status qk_amend_downgrade(struct qcow_image *image, const struct qcow_progress *progress,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_amend_lazy(
	struct qcow_image *image, bool is_on, struct qcow_error *err) QK_MUST_USE;
/* name NULL: stays; raw_off: the data file need not be a raw disk any more. */
enum qcow_status qk_amend_data_file(struct qcow_image *image, const char *name, bool raw_off,
	struct qcow_error *err) QK_MUST_USE;

/* Inside a section: no entry of any tree has the zero flag afterwards, and each reads what it read. What was done is
 * right in itself, also where it fails half way. QCOW_E_CORRUPT with finding, QCOW_E_NOSPC, QCOW_E_CANCELLED, … */
enum qcow_status qk_amend_zeros(struct qcow_image *image, const struct qcow_progress *progress,
	struct qcow_error *err) QK_MUST_USE;

/* Would that be refused as a whole? Changes nothing; the image may be open read-only. */
enum qcow_status qk_amend_zeros_judge(struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;

#endif
