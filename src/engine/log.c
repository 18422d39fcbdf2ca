/* SPDX-License-Identifier: MIT */
/*
 * log: see log.h. Keeps nothing, takes no lock: the caller's function is called on the thread that noticed.
 */
#include "engine/log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "engine/image.h"
#include "base/num.h"
#include "format/feature.h"

void qk_log(const struct qcow_image *image, enum qcow_log_level level, unsigned finding,
	const char *fmt, ...)
{
	char text[QCOW_ERROR_MESSAGE_BYTES];
	if (image->log == NULL)
		return;
	va_list args;
	va_start(args, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	const struct qcow_log_entry entry = {.level = level,
		.finding = finding,
		.image = qcow_store_name(image->store),
		.text = text};
	image->log(image->log_ctx, &entry);
}

static void log_features(const struct qcow_image *image)
{
	const struct qk_header *h = &image->header;
	uint64_t compatible = h->compatible & ~qk_feature_known_mask(QK_FEATURE_COMPATIBLE);
	uint64_t autoclear = h->autoclear & ~qk_feature_known_mask(QK_FEATURE_AUTOCLEAR);
	if (compatible != 0)
		qk_log(image, QCOW_LOG_NOTE, 0,
			"compatible_features has bits that nobody here knows: 0x%" PRIx64,
			compatible);
	if (autoclear != 0)
		qk_log(image, QCOW_LOG_NOTE, 0,
			"autoclear_features has bits that nobody here knows: 0x%" PRIx64
			"; whoever writes clears them",
			autoclear);
	if ((h->incompatible & QCOW_INCOMPAT_DIRTY) != 0)
		qk_log(image, QCOW_LOG_WARNING, QCOW_FINDING_DIRTY,
			"the dirty bit is set: refcounts are not up to date");
	if ((h->incompatible & QCOW_INCOMPAT_CORRUPT) != 0)
		qk_log(image, QCOW_LOG_WARNING, QCOW_FINDING_CORRUPT_BIT,
			"the corrupt bit is set: the image opens read-only");
}

static void log_extensions(const struct qcow_image *image)
{
	static const uint32_t known[] = {QK_EXT_BACKING_FORMAT, QK_EXT_FEATURE_NAMES,
		QK_EXT_BITMAPS, QK_EXT_CRYPTO, QK_EXT_DATA_FILE};
	struct qk_ext ext;
	for (size_t at = 0; qk_ext_next(&image->ext, &at, &ext);) {
		bool is_known = false;
		for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
			is_known = is_known || known[i] == ext.type;
		if (!is_known)
			qk_log(image, QCOW_LOG_NOTE, 0,
				"a header extension of type 0x%08" PRIx32
				" that nobody here knows is left as it is",
				ext.type);
	}
	if (image->ext.has_bitmaps && (image->header.autoclear & QCOW_AUTOCLEAR_BITMAPS) == 0)
		qk_log(image, QCOW_LOG_WARNING, 0,
			"the bitmaps are not trusted: who wrote to the image last did not keep "
			"them");
}

static void log_tables(const struct qcow_image *image)
{
	const struct qk_header *h = &image->header;
	if (!qk_in_range(h->l1_off, (uint64_t)h->l1_entries * 8, image->file_size))
		qk_log(image, QCOW_LOG_WARNING, QCOW_FINDING_L1_BEYOND_FILE,
			"the L1 table goes past the end of the file: guest data is missing");
	if (!qk_in_range(h->rt_off, (uint64_t)h->rt_clusters * image->geometry.cluster_size,
		    image->file_size))
		qk_log(image, QCOW_LOG_WARNING, QCOW_FINDING_REFTABLE_BEYOND_FILE,
			"the refcount table goes past the end of the file");
	if (image->snapshots.is_bad)
		qk_log(image, QCOW_LOG_WARNING, QCOW_FINDING_SNAPSHOT_TABLE,
			"the snapshots cannot be had: %s", image->snapshots.why.message);
	if (image->bitmaps.is_bad)
		qk_log(image, QCOW_LOG_WARNING, QCOW_FINDING_BITMAP_DIRECTORY,
			"the bitmaps cannot be had: %s", image->bitmaps.why.message);
}

void qk_log_layer(const struct qcow_image *image, bool was_probed)
{
	if (image->log == NULL)
		return;
	if (was_probed && image->is_raw && !image->is_luks)
		qk_log(image, QCOW_LOG_WARNING, 0,
			"taken for raw by a probe: its guest can make it look like another format");
	if (image->is_raw)
		return;
	log_features(image);
	log_extensions(image);
	log_tables(image);
	if (image->is_locked)
		qk_log(image, QCOW_LOG_NOTE, 0,
			"the image is encrypted and opened without its key");
}
