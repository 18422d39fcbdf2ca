/* SPDX-License-Identifier: MIT */
/*
 * open: one layer from its store. What it names is chain.h's.
 */
#ifndef QK_ENGINE_OPEN_H
#define QK_ENGINE_OPEN_H

#include <qcowkit/qcowkit.h>

#define QK_DEFAULT_CACHE_BYTES (UINT64_C(8) << 20)

/*
 * Open the layer in `store`, which passes to the image or is closed on failure. Of the options, those
 * about the layer alone are used (flags, format, snapshot…, raw_…, cache_bytes); options->resolve and
 * ->backing are not. Reads cluster 0 (at most 2 MiB), the snapshot table and the bitmap directory in a window.
 * Errors as qcow_open.
 */
enum qcow_status qk_layer_open(struct qcow_store *store, const struct qcow_open_options *options,
	struct qcow_image **out, struct qcow_error *err);

/* Read again what the header names: header, extensions, names, size, L1, both lists; the caches begin empty. On failure
 * everything is as it was. Nobody else uses the image meanwhile. The size, the key, and what lies below, stay the
 * caller's. Errors of the store, QCOW_E_NOMEM, QCOW_E_CORRUPT. */
enum qcow_status qk_layer_reload(struct qcow_image *image, struct qcow_error *err);

/* Close this layer and its stores, not the layers below. As qcow_close. */
enum qcow_status qk_layer_close(struct qcow_image *image);

#endif
