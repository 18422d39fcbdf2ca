/* SPDX-License-Identifier: MIT */
/*
 * empty: an overlay gives up everything that it holds, and its disk comes from below.
 */
#ifndef QK_ENGINE_EMPTY_H
#define QK_ENGINE_EMPTY_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"

/*
 * qcow_empty, between qk_control_begin and qk_control_end; QK_RELOAD_HEADER has the L1 table read again. The active L1
 * table is zeroed where it is, in any order || then its tables and clusters lose a reference. Failures of
 * the first part fence; of the second they leak clusters, and the log tells. Of a data file holes are punched.
 * QCOW_E_CORRUPT with a finding, before anything was written, where a table cannot be followed.
 */
enum qcow_status qk_empty(struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;

#endif
