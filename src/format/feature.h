/* SPDX-License-Identifier: MIT */
/*
 * feature: inside of format: the kinds of feature bits, and writing our feature name table. What
 * others use of it is declared in header.h.
 */
#ifndef QK_FORMAT_FEATURE_H
#define QK_FORMAT_FEATURE_H

#include "format/header.h"

#define QK_N_FEATURES	       8U
#define QK_FEATURE_TABLE_BYTES (QK_N_FEATURES * QK_FEATURE_ENTRY_BYTES) /* 384, as QEMU's */

/* Write our table, QK_FEATURE_TABLE_BYTES. */
void qk_feature_table_encode(struct qk_writer *w);

#endif
