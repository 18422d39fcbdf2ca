/* SPDX-License-Identifier: MIT */
/*
 * image: one open layer. Everything here is set by open.c before the image is visible to a second
 * thread and constant afterwards, except what a comment gives to another file.
 */
#ifndef QK_ENGINE_IMAGE_H
#define QK_ENGINE_IMAGE_H

#include <qcowkit/qcowkit.h>

#include "format/header.h"
#include "format/snaptab.h"

struct qcow_image {
	bool is_raw;
	struct qcow_store *store;
	struct qcow_store *data_store; /* external data file, or NULL */
	struct qcow_image *backing;    /* or NULL */
	uint64_t file_size;	       /* of store, when it was opened */
	uint64_t size;		       /* of the disk, or of the snapshot viewed */

	/* qcow2 only */
	uint8_t *cluster0; /* what ext and header.tail point into */
	size_t cluster0_bytes;
	struct qk_header header;
	struct qk_extensions ext;
	struct qk_geometry geometry;
};

#endif
