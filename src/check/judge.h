/* SPDX-License-Identifier: MIT */
/*
 * judge: compares the references that a walk counts with the refcounts that the image stores.
 */
#ifndef QK_CHECK_JUDGE_H
#define QK_CHECK_JUDGE_H

#include "audit/audit.h"

/*
 * Check the image that `audit` describes; its report callback is the judge's to set. Reads only.
 * QCOW_OK also where findings exist. QCOW_E_NOMEM, QCOW_E_CANCELLED; `result` is set on success only.
 */
enum qcow_status qk_judge_check(struct qk_audit *audit, const struct qcow_check_options *options,
	struct qcow_check_result *result, struct qcow_error *err) QK_MUST_USE;

#endif
