/* SPDX-License-Identifier: MIT */
/*
 * repair: rounds of checking, planning and writing, until nothing is found or nothing can be done. See qcow_repair.
 */
#ifndef QK_CHECK_REPAIR_H
#define QK_CHECK_REPAIR_H

#include <qcowkit/manage.h>

#include "base/err.h"

/* As qcow_repair; `options` is whole. */
enum qcow_status qk_repair(struct qcow_store *store, const struct qcow_repair_options *options,
	struct qcow_repair_result *result, struct qcow_error *err) QK_MUST_USE;

#endif
