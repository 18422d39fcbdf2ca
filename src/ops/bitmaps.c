/* SPDX-License-Identifier: MIT */
/*
 * bitmaps: see bitmaps.h. Which ones are broken is found out before the target is touched, so that a refusal
 * leaves nothing behind; an image that is there gets them in one step, after its disk; content that turns out to be damaged later fails the whole.
 */
#include "ops/bitmaps.h"

#include <qcowkit/manage.h>

#include "base/mem.h"
#include "base/num.h"

#define MIN_GRANULARITY_BITS 9U /* that can be written */
#define MAX_GRANULARITY_BITS 31U

/* Begin to read bitmap `index` where it is whole and can be written again: else *out is NULL and *why says. */
static enum qcow_status begin(struct qcow_image *source, uint32_t index,
	const struct qcow_bitmap *bitmap, struct qcow_bitmap_reader **out, struct qcow_error *why,
	struct qcow_error *err)
{
	*out = NULL;
	if (!bitmap->in_use && (bitmap->granularity_bits < MIN_GRANULARITY_BITS ||
				       bitmap->granularity_bits > MAX_GRANULARITY_BITS)) {
		(void)QK_FAIL(why, QCOW_E_UNSUPPORTED,
			"a granularity of 2^%u bytes cannot be written", bitmap->granularity_bits);
		return QCOW_OK;
	}
	enum qcow_status status = qcow_bitmap_open(source, index, out, why);
	if (status == QCOW_OK || status == QCOW_E_CORRUPT || status == QCOW_E_UNSUPPORTED)
		return QCOW_OK;
	if (err != NULL)
		*err = *why;
	return status;
}

static enum qcow_status check_one(const struct qcow_convert_options *options, uint32_t index,
	const struct qcow_bitmap *bitmap, struct qcow_error *err)
{
	struct qcow_error why = QCOW_ERROR_INIT;
	struct qcow_bitmap_reader *reader = NULL;

	QK_TRY(begin(options->sources[0], index, bitmap, &reader, &why, err));
	bool is_broken = reader == NULL;
	qcow_bitmap_close(reader);
	if (!is_broken || options->skip_broken_bitmaps)
		return QCOW_OK;
	if (bitmap->in_use)
		return QK_FAIL_AT(err, why.status, why.finding, QCOW_NO_OFFSET, QCOW_NO_OFFSET,
			"Cannot copy inconsistent bitmap '%s'", bitmap->name);
	return QK_FAIL_AT(err, why.status, why.finding, why.host_off, QCOW_NO_OFFSET,
		"Cannot copy bitmap '%s': %s", bitmap->name, why.message);
}

/* A walk over the bitmaps, which ends with the first failure; while it checks, with the last bitmap, and tells of the last that is
 * broken, which is the one that QEMU names. */
struct walk {
	const struct qcow_convert_options *options;
	uint64_t size;
	struct qcow_builder *builder; /* NULL: only check */
	enum qcow_status status;
	struct qcow_error *err;
};

static bool visit(void *ctx, uint32_t index, const struct qcow_bitmap *bitmap);

/* ---- into an image that is there ---- */

struct actions {
	struct qcow_bitmap_action *v;
	size_t n;
};

static void add_action(struct actions *a, struct qcow_bitmap_action action)
{
	a->v[a->n++] = action;
}

/* What makes the bitmap in the target; nothing where it is broken, which is told unless the run is dry. */
static enum qcow_status list_one(const struct qcow_convert_options *options, uint32_t index,
	bool is_dry, struct actions *a, struct qcow_error *err)
{
	struct qcow_bitmap bitmap;
	struct qcow_error why = QCOW_ERROR_INIT;
	struct qcow_bitmap_reader *reader = NULL;

	QK_TRY(qcow_get_bitmap(options->sources[0], index, &bitmap, err));
	QK_TRY(begin(options->sources[0], index, &bitmap, &reader, &why, err));
	if (reader == NULL) {
		if (!is_dry && options->on_skipped_bitmap != NULL)
			options->on_skipped_bitmap(options->bitmap_ctx, bitmap.name, &why);
		return QCOW_OK;
	}
	qcow_bitmap_close(reader);
	add_action(a, (struct qcow_bitmap_action){.act = QCOW_BITMAP_ADD,
			      .name = bitmap.name,
			      .granularity_bits = bitmap.granularity_bits});
	add_action(a, (struct qcow_bitmap_action){.act = QCOW_BITMAP_MERGE,
			      .name = bitmap.name,
			      .source = bitmap.name,
			      .source_image = options->sources[0]});
	if (!bitmap.is_auto)
		add_action(a, (struct qcow_bitmap_action){
				      .act = QCOW_BITMAP_DISABLE, .name = bitmap.name});
	return QCOW_OK;
}

/* All of them in one step, which is done or not done. */
static enum qcow_status edit_target(
	const struct qcow_convert_options *options, bool is_dry, struct qcow_error *err)
{
	struct qcow_bitmap_edit_options how = QCOW_BITMAP_EDIT_OPTIONS_INIT;
	struct qcow_info info;
	struct actions a = {0};
	enum qcow_status status = QCOW_OK;

	qcow_get_info(options->sources[0], &info);
	struct qcow_bitmap_action *v QK_AUTO_FREE = qk_calloc(
		(uint64_t)info.n_bitmaps * 3 + 1, sizeof(*v));
	if (v == NULL)
		return QK_FAIL_NOMEM(err);
	a.v = v;
	for (uint32_t i = 0; i < info.n_bitmaps && status == QCOW_OK; i++)
		status = list_one(options, i, is_dry, &a, err);
	how.dry_run = is_dry;
	how.progress.cancelled = options->progress.cancelled;
	how.progress.ctx = options->progress.ctx;
	if (status == QCOW_OK && a.n != 0)
		status = qcow_bitmap_edit(options->target_image, a.v, a.n, &how, NULL, err);
	return status;
}

/* ---- into a new image ---- */

enum qcow_status qk_bitmaps_check(
	const struct qcow_convert_options *options, bool is_raw, struct qcow_error *err)
{
	struct qcow_info info;

	if (!options->bitmaps)
		return QCOW_OK;
	if (options->n_sources != 1)
		return QK_FAIL(
			err, QCOW_E_INVAL, "Copying bitmaps only possible with single source");
	qcow_get_info(options->sources[0], &info);
	if (info.version < 3)
		return QK_FAIL(err, QCOW_E_INVAL, "Source lacks bitmap support");
	uint32_t version = options->create.version;
	if (options->target_image != NULL) {
		qcow_get_info(options->target_image, &info);
		version = info.version;
	}
	if (is_raw || version < 3)
		return QK_FAIL(err, QCOW_E_INVAL, "Format driver '%s' does not support bitmaps%s",
			options->format, is_raw ? "" : " in version 2");
	struct walk walk = {.options = options, .err = err};
	QK_TRY(qcow_each_bitmap(options->sources[0], visit, &walk, err));
	if (walk.status == QCOW_OK && options->target_image != NULL)
		return edit_target(options, true, err);
	return walk.status;
}

static enum qcow_status copy_content(struct qcow_bitmap_reader *reader, uint64_t size,
	const struct qcow_progress *progress, struct qcow_builder *builder, struct qcow_error *err)
{
	struct qcow_bitmap_extent e;

	for (uint64_t off = 0; off < size; off += e.len) {
		if (progress->cancelled != NULL && progress->cancelled(progress->ctx))
			return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
		QK_TRY(qcow_bitmap_read(reader, off, size - off, &e, err));
		if (e.dirty)
			QK_TRY(qcow_builder_bitmap_dirty(builder, e.off, e.len, err));
	}
	return QCOW_OK;
}

static enum qcow_status copy_one(
	const struct walk *walk, uint32_t index, const struct qcow_bitmap *bitmap)
{
	const struct qcow_convert_options *options = walk->options;
	struct qcow_bitmap_options made = QCOW_BITMAP_OPTIONS_INIT;
	struct qcow_error why = QCOW_ERROR_INIT;
	struct qcow_bitmap_reader *reader = NULL;

	QK_TRY(begin(options->sources[0], index, bitmap, &reader, &why, walk->err));
	if (reader == NULL) {
		if (options->on_skipped_bitmap != NULL)
			options->on_skipped_bitmap(options->bitmap_ctx, bitmap->name, &why);
		return QCOW_OK;
	}
	made.name = bitmap->name;
	made.granularity_bits = bitmap->granularity_bits;
	made.is_auto = bitmap->is_auto;
	enum qcow_status status = qcow_builder_bitmap(walk->builder, &made, walk->err);
	if (status == QCOW_OK)
		status = copy_content(
			reader, walk->size, &options->progress, walk->builder, walk->err);
	qcow_bitmap_close(reader);
	return status;
}

static bool visit(void *ctx, uint32_t index, const struct qcow_bitmap *bitmap)
{
	struct walk *walk = ctx;

	if (walk->builder != NULL) {
		walk->status = copy_one(walk, index, bitmap);
		return walk->status == QCOW_OK;
	}
	enum qcow_status status = check_one(walk->options, index, bitmap, walk->err);
	if (status != QCOW_OK)
		walk->status = status;
	return status == QCOW_OK || status == QCOW_E_CORRUPT || status == QCOW_E_UNSUPPORTED;
}

enum qcow_status qk_bitmaps_copy(const struct qcow_convert_options *options, uint64_t size,
	struct qcow_builder *builder, struct qcow_error *err)
{
	struct walk walk = {.options = options, .builder = builder, .err = err};

	if (!options->bitmaps)
		return QCOW_OK;
	if (options->target_image != NULL)
		return edit_target(options, false, err);
	walk.size = qk_min(size, qcow_size(options->sources[0]));
	QK_TRY(qcow_each_bitmap(options->sources[0], visit, &walk, err));
	return walk.status;
}
