/* SPDX-License-Identifier: MIT */
/*
 * api_repair: qcow_repair and its undoing.
 */
#include <qcowkit/manage.h>

#include <stddef.h>

#include "base/options.h"
#include "check/repair.h"
#include "check/undo.h"

QK_TAKE_OPTIONS(
	take_options, qcow_repair_options, "repair options", QCOW_REPAIR_OPTIONS_INIT, memory_bytes)

enum qcow_status qcow_repair(struct qcow_store *store, const struct qcow_repair_options *options,
	struct qcow_repair_result *result, struct qcow_error *err)
{
	struct qcow_repair_options taken;
	struct qcow_repair_result none;

	if (store == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_repair needs a store");
	QK_TRY(take_options(options, &taken, err));
	if (taken.mode != QCOW_REPAIR_LEAKS && taken.mode != QCOW_REPAIR_ALL)
		return QK_FAIL(err, QCOW_E_INVAL, "mode %d of a repair", (int)taken.mode);
	return qk_repair(store, &taken, result != NULL ? result : &none, err);
}

enum qcow_status qcow_repair_undo(
	struct qcow_store *store, struct qcow_store *undo, struct qcow_error *err)
{
	if (store == NULL || undo == NULL)
		return QK_FAIL(
			err, QCOW_E_INVAL, "qcow_repair_undo needs an image and what was saved");
	return qk_undo_apply(store, undo, err);
}
