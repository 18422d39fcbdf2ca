/* SPDX-License-Identifier: MIT */
/*
 * image: one open layer. Everything here is set by open.c (and chain.c, for backing and data_store)
 * before the image is visible to a second thread, and constant afterwards, but for qk_layer_reload, which runs while
 * nobody else uses the image (control.h). What changes in between lives behind meta, decode and the records of the
 * lists, each with a lock of its own (doc/LOCKING.md).
 */
#ifndef QK_ENGINE_IMAGE_H
#define QK_ENGINE_IMAGE_H

#include <stdatomic.h>
#include <qcowkit/qcowkit.h>

#include "engine/tablist.h"
#include "format/header.h"
#include "format/snaptab.h"

struct qk_meta;
struct qk_decode;
struct qk_hostmap;
struct qk_crypt;
struct qk_rw;

#define QK_FEATURE_KINDS 3U
#define QK_FEATURE_BITS	 64U

struct qcow_image {
	bool is_raw; /* the store is the disk, from raw_offset on: raw, and luks */
	bool is_luks; /* raw_offset is the payload's */
	struct qcow_store *store;
	struct qcow_store *data_store; /* external data file, or NULL */
	struct qcow_store *header_store; /* detached LUKS header, or NULL */
	uint64_t header_bytes; /* of header_store */
	struct qcow_image *backing; /* or NULL */
	_Atomic uint64_t
		file_size; /* of store, when it was opened; grows where the image is written */
	uint64_t size; /* of the disk, or of the snapshot viewed */
	uint64_t raw_offset; /* raw: where the disk starts in the store */
	uint64_t first_stretch; /* bytes: 128 of the smallest clusters from here down; see map.c */
	uint32_t flags; /* QCOW_OPEN_… */
	uint64_t cache_bytes; /* of the options */
	void (*log)(
		void *ctx, const struct qcow_log_entry *entry); /* the caller's, or NULL: log.h */
	void *log_ctx;
	struct qk_hostmap *hostmap; /* holes of the store that holds guest data */
	bool is_encrypted;
	bool is_locked; /* encrypted, and opened without its key: guest data is refused */
	struct qk_crypt *crypt; /* of guest data, NULL where it is plain or locked */

	/* qcow2 only */
	uint8_t *cluster0; /* what ext and header.tail point into */
	size_t cluster0_bytes;
	struct qk_header header;
	struct qk_extensions ext;
	struct qk_geometry geometry;

	/* The tree that reads go through: the active one, or that of the snapshot viewed. */
	uint64_t l1_off;
	uint32_t l1_entries;
	bool is_snapshot_view;

	bool read_only_at_most; /* damage was seen that forbids writing */

	char *backing_name, *backing_format, *data_file_name; /* NUL terminated copies, or NULL */
	char *feature_names[QK_FEATURE_KINDS]
			   [QK_FEATURE_BITS]; /* of the image's own table, or NULL */

	struct qk_tablist snapshots;
	struct qk_tablist bitmaps; /* empty where the autoclear bit says not to trust them */

	struct qk_meta *meta; /* L1 and the cache of L2 slices */
	struct qk_decode *decode; /* decoders and decoded clusters */

	struct qk_rw *rw; /* NULL: read-only */
};

/* Where plain guest data is stored. */
static inline struct qcow_store *qk_guest_store(const struct qcow_image *image)
{
	return image->geometry.data_file ? image->data_store : image->store;
}

#endif
