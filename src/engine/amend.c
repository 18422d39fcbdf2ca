/* SPDX-License-Identifier: MIT */
/*
 * amend: see amend.h. Everything is judged before the first step; then, in an order in which each needs no later one: to
 * version 3, lazy refcounts, the data file, the width of refcounts, to version 2.
 */
#include "engine/amend.h"

#include <inttypes.h>

#include "engine/image.h"

static bool is_width(uint32_t bits)
{
	return bits != 0 && bits <= 64 && (bits & (bits - 1)) == 0;
}

/* What is to be: of what the options leave alone, as it is. */
struct plan {
	unsigned version;
	uint32_t refcount_bits;
	bool is_lazy;
};

static enum qcow_status judge_plan(
	const struct qcow_amend_options *o, const struct plan *plan, struct qcow_error *err)
{
	if (plan->version != 2 && plan->version != 3)
		return QK_FAIL(err, QCOW_E_INVAL, "version %u is not known: 2 or 3", plan->version);
	if (!is_width(plan->refcount_bits))
		return QK_FAIL(err, QCOW_E_INVAL,
			"Refcount width must be a power of two and at most 64 bits, not %" PRIu32,
			plan->refcount_bits);
	if (plan->version == 2 && plan->refcount_bits != 16 && o->refcount_bits != 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"refcounts of %" PRIu32 " bits need version 3", plan->refcount_bits);
	if (plan->version == 2 && plan->refcount_bits != 16)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"version 2 needs refcounts of 16 bits, and the image has %" PRIu32,
			plan->refcount_bits);
	if (plan->version == 2 && o->lazy_refcounts == QCOW_AMEND_ON)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "lazy refcounts need version 3");
	return QCOW_OK;
}

static enum qcow_status judge_data_file(
	const struct qcow_image *image, const struct qcow_amend_options *o, struct qcow_error *err)
{
	if (o->data_file_name != NULL && !image->geometry.data_file)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"data-file can only be set for images that use an external data file");
	if (o->data_file_name != NULL && o->data_file_name[0] == '\0')
		return QK_FAIL(err, QCOW_E_INVAL, "a data file needs a name");
	bool is_raw = image->geometry.data_file &&
		      (image->header.autoclear & QK_AUTOCLEAR_RAW_DATA) != 0;
	if (o->data_file_raw == QCOW_AMEND_ON && !is_raw)
		return QK_FAIL(
			err, QCOW_E_UNSUPPORTED, "data-file-raw cannot be set on existing images");
	return QCOW_OK;
}

/* ---- to version 2 ---- */

struct judging {
	const struct qcow_image *image;
	enum qcow_status status;
	struct qcow_error *err;
};

static bool judge_snapshot(
	void *ctx, uint32_t index, const struct qcow_snapshot *s, unsigned finding)
{
	struct judging *j = ctx;
	(void)index;
	(void)finding;
	if (s->disk_size != j->image->size || s->vm_state_size > UINT32_MAX)
		j->status = QK_FAIL(j->err, QCOW_E_UNSUPPORTED,
			"version 2 cannot hold what snapshot '%s' has: a disk or a machine state "
			"of another size",
			s->name);
	return j->status == QCOW_OK;
}

static enum qcow_status judge_snapshot_sizes(struct qcow_image *image, struct qcow_error *err)
{
	struct judging j = {.image = image, .err = err};
	if (image->header.n_snapshots == 0)
		return QCOW_OK;
	QK_TRY(qk_snapshots_each(image, judge_snapshot, &j, err));
	return j.status;
}

static enum qcow_status judge_downgrade(struct qcow_image *image, struct qcow_error *err)
{
	uint64_t other = image->header.incompatible & ~QK_INCOMPAT_DIRTY;
	if (image->geometry.data_file)
		return QK_FAIL(
			err, QCOW_E_UNSUPPORTED, "Cannot downgrade an image with a data file");
	if (other != 0 || image->header.compression_type != 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"Cannot downgrade an image with incompatible features 0x%" PRIx64 " set",
			other);
	if (image->header.crypt_method != 0 &&
		(image->backing != NULL || image->backing_name != NULL))
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"version 2 has no zero clusters, and those of an encrypted image with a "
			"backing file would have to be encrypted: this version cannot do that");
	if (image->bitmaps.n != 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"version 2 has no bitmaps, and the image has %" PRIu32
			": remove them first",
			image->bitmaps.n);
	return judge_snapshot_sizes(image, err);
}

/* ---- all of it ---- */

static enum qcow_status judge(struct qcow_image *image, const struct qcow_amend_options *o,
	const struct plan *plan, struct qcow_error *err)
{
	if (image->is_raw)
		return QK_FAIL(err, QCOW_E_NOTSUP, "'%s' is not a qcow2 image",
			qcow_store_name(image->store));
	if (image->is_snapshot_view)
		return QK_FAIL(err, QCOW_E_READONLY, "a snapshot is viewed read-only");
	QK_TRY(judge_plan(o, plan, err));
	QK_TRY(judge_data_file(image, o, err));
	if (plan->version == 2 && image->geometry.version == 3)
		return judge_downgrade(image, err);
	return QCOW_OK;
}

static enum qcow_status carry_out(struct qcow_image *image, const struct qcow_amend_options *o,
	const struct plan *plan, struct qcow_error *err)
{
	bool raw_off = o->data_file_raw == QCOW_AMEND_OFF &&
		       (image->header.autoclear & QK_AUTOCLEAR_RAW_DATA) != 0;
	bool was_lazy = (image->header.compatible & QK_COMPAT_LAZY_REFCOUNTS) != 0;
	if (plan->version == 3 && image->geometry.version == 2)
		QK_TRY(qk_amend_upgrade(image, err));
	if (plan->version == 3 && plan->is_lazy != was_lazy)
		QK_TRY(qk_amend_lazy(image, plan->is_lazy, err));
	if (o->data_file_name != NULL || raw_off)
		QK_TRY(qk_amend_data_file(image, o->data_file_name, raw_off, err));
	if (plan->refcount_bits != image->geometry.refcount_bits)
		QK_TRY(qk_amend_width(image, plan->refcount_bits, &o->progress, err));
	if (plan->version == 2 && image->geometry.version == 3)
		QK_TRY(qk_amend_downgrade(image, &o->progress, err));
	return QCOW_OK;
}

enum qcow_status qk_amend(
	struct qcow_image *image, const struct qcow_amend_options *o, struct qcow_error *err)
{
	struct plan plan = {.version = o->version != 0 ? o->version : image->geometry.version,
		.refcount_bits = o->refcount_bits != 0 ? o->refcount_bits
						       : image->geometry.refcount_bits,
		.is_lazy = o->lazy_refcounts == QCOW_AMEND_KEEP
				   ? (image->header.compatible & QK_COMPAT_LAZY_REFCOUNTS) != 0
				   : o->lazy_refcounts == QCOW_AMEND_ON};
	QK_TRY(judge(image, o, &plan, err));
	if (plan.refcount_bits != image->geometry.refcount_bits)
		QK_TRY(qk_amend_width_judge(image, plan.refcount_bits, NULL, err));
	if (plan.version == 2 && image->geometry.version == 3)
		QK_TRY(qk_amend_zeros_judge(image, err));
	return o->dry_run ? QCOW_OK : carry_out(image, o, &plan, err);
}
