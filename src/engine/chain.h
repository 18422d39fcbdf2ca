/* SPDX-License-Identifier: MIT */
/*
 * chain: an image and what it names: its data file and the backing images below it.
 */
#ifndef QK_ENGINE_CHAIN_H
#define QK_ENGINE_CHAIN_H

#include <qcowkit/qcowkit.h>

/* qcow_open with complete options. `store` passes to the library, on failure too; options->backing passes
 * on success only. */
enum qcow_status qk_chain_open(struct qcow_store *store, const struct qcow_open_options *options,
	struct qcow_image **out, struct qcow_error *err);

/* Close the image and every layer below. NULL is allowed. As qcow_close. */
enum qcow_status qk_chain_close(struct qcow_image *image);

#endif
