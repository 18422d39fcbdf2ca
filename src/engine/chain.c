/* SPDX-License-Identifier: MIT */
/*
 * chain: see chain.h. Opens only what the caller's resolver hands out; walks iteratively, with a depth
 * limit, and knows a file again by device and inode. Writes nothing.
 */
#include "engine/chain.h"

#include <inttypes.h>
#include <sys/stat.h>

#include "base/err.h"
#include "engine/image.h"
#include "engine/open.h"
#include "engine/rw.h"

static bool stat_store(struct qcow_store *store, struct stat *out)
{
	int fd = qcow_store_fd(store);
	return fd >= 0 && fstat(fd, out) == 0;
}

static bool is_same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Does `store` hold a file that a layer from `top` down has open already? Stores without a descriptor
 * are known again by nothing: for them the depth limit ends a loop. */
static enum qcow_status check_loop(
	const struct qcow_image *top, struct qcow_store *store, struct qcow_error *err)
{
	struct stat mine, theirs;
	if (!stat_store(store, &mine))
		return QCOW_OK;
	for (const struct qcow_image *i = top; i != NULL; i = i->backing) {
		bool is_layer = i->store != store && stat_store(i->store, &theirs) &&
				is_same_file(&mine, &theirs);
		bool is_data = i->data_store != NULL && stat_store(i->data_store, &theirs) &&
			       is_same_file(&mine, &theirs);
		if (is_layer || is_data)
			return QK_FAIL(err, QCOW_E_LOOP,
				"loop: '%s' is part of the chain that names it",
				qcow_store_name(store));
	}
	return QCOW_OK;
}

static const char *kind_name(enum qcow_reference_kind kind)
{
	return kind == QCOW_REF_BACKING ? "backing file" : "data file";
}

/* Ask the caller for the file that `ref` names. */
static enum qcow_status resolve(const struct qcow_open_options *o, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	if (o->resolve == NULL)
		return QK_FAIL(err, QCOW_E_POLICY,
			"'%s' names the %s '%s', and opening what an image names is not allowed "
			"here",
			ref->from, kind_name(ref->kind), ref->name);
	qk_err_clear(err);
	enum qcow_status status = o->resolve(o->resolve_ctx, ref, out, err);
	bool is_answer = out->store != NULL ||
			 (ref->kind == QCOW_REF_BACKING && (out->image != NULL || out->is_none));
	if (status == QCOW_OK && !is_answer)
		status = QK_FAIL(err, QCOW_E_INVAL, "the resolver gives no store");
	if (status != QCOW_OK) {
		qk_err_complete(err, QK_SITE, status);
		qk_err_context(err, "%s '%s' of '%s'", kind_name(ref->kind), ref->name, ref->from);
		return status;
	}
	return QCOW_OK;
}

/* Open the data file of `layer`, the last of the chain that begins at `top`. */
static enum qcow_status open_data_file(struct qcow_image *top, struct qcow_image *layer,
	const struct qcow_open_options *o, uint32_t depth, struct qcow_error *err)
{
	if (layer->is_raw || (layer->header.incompatible & QCOW_INCOMPAT_DATA_FILE) == 0 ||
		(o->flags & QCOW_OPEN_NO_DATA_FILE) != 0)
		return QCOW_OK;
	if (layer->data_file_name == NULL || layer->data_file_name[0] == '\0')
		return QK_FAIL(err, QCOW_E_FORMAT,
			"'%s' keeps its data in a data file and names none",
			qcow_store_name(layer->store));
	struct qcow_reference ref = {.kind = QCOW_REF_DATA_FILE,
		.name = layer->data_file_name,
		.format = "raw",
		.from = qcow_store_name(layer->store),
		.depth = depth};
	struct qcow_resolved got = {0};
	QK_TRY(resolve(o, &ref, &got, err));
	enum qcow_status status = check_loop(top, got.store, err);
	if (status != QCOW_OK) {
		qcow_store_close(got.store);
		return status;
	}
	layer->data_store = got.store;
	return QCOW_OK;
}

/* Which format the backing file has: what the caller says, else what the image records, else a probe where
 * the caller allows that. */
static enum qcow_status choose_format(const struct qcow_open_options *o,
	const struct qcow_reference *ref, const struct qcow_resolved *got, const char **out,
	struct qcow_error *err)
{
	*out = got->format != NULL ? got->format : ref->format;
	if (*out == NULL && (o->flags & QCOW_OPEN_PROBE) == 0)
		return QK_FAIL(err, QCOW_E_POLICY,
			"'%s' does not record the format of its backing file '%s', and guessing it "
			"would let a guest choose: record it with `rebase -u -F qcow2` (or `-F "
			"raw`), "
			"or open with --probe",
			ref->from, ref->name);
	return QCOW_OK;
}

/* Put an open chain below `layer`, the last of the chain that begins at `top`. */
static enum qcow_status adopt(struct qcow_image *top, struct qcow_image *layer,
	struct qcow_image *backing, struct qcow_error *err)
{
	if (layer->is_raw)
		return QK_FAIL(err, QCOW_E_INVAL, "a raw image has no backing image");
	uint32_t n = 0;
	for (const struct qcow_image *above = top; above != NULL; above = above->backing) {
		n++;
		for (const struct qcow_image *i = backing; i != NULL; i = i->backing)
			QK_TRY(check_loop(i, above->store, err));
	}
	for (const struct qcow_image *i = backing; i != NULL; i = i->backing)
		n++;
	if (n > QCOW_MAX_CHAIN_DEPTH)
		return QK_FAIL(err, QCOW_E_LOOP, "the backing chain is deeper than %d images",
			QCOW_MAX_CHAIN_DEPTH);
	layer->backing = backing;
	return QCOW_OK;
}

/* The store that the resolver gave, as the layer below `layer`. */
static enum qcow_status open_resolved(struct qcow_image *top, struct qcow_image *layer,
	const struct qcow_open_options *o, const struct qcow_reference *ref,
	const struct qcow_resolved *got, struct qcow_error *err)
{
	const char *format = NULL;
	enum qcow_status status = choose_format(o, ref, got, &format, err);
	if (status == QCOW_OK)
		status = check_loop(top, got->store, err);
	if (status != QCOW_OK) {
		qcow_store_close(got->store);
		qcow_store_close(got->luks_header);
		return status;
	}
	struct qcow_open_options below = QCOW_OPEN_OPTIONS_INIT;
	below.flags = o->flags & ~(uint32_t)(got->writable ? 0 : QCOW_OPEN_WRITE);
	below.format = format;
	below.cache_bytes = o->cache_bytes;
	below.secret = got->secret;
	below.get_secret = o->get_secret;
	below.secret_ctx = o->secret_ctx;
	below.cancelled = o->cancelled;
	below.cancel_ctx = o->cancel_ctx;
	below.max_iterations = o->max_iterations;
	below.log = o->log;
	below.log_ctx = o->log_ctx;
	below.luks_header = got->luks_header;
	status = qk_layer_open(got->store, &below, &layer->backing, err);
	if (status != QCOW_OK)
		qk_err_context(err, "backing file '%s' of '%s'", ref->name, ref->from);
	return status;
}

/* Open the backing image that `layer` names. *ends: nothing below it is to be looked for. */
static enum qcow_status open_backing(struct qcow_image *top, struct qcow_image *layer,
	const struct qcow_open_options *o, uint32_t depth, bool *ends, struct qcow_error *err)
{
	if (depth + 1 >= QCOW_MAX_CHAIN_DEPTH)
		return QK_FAIL(err, QCOW_E_LOOP, "the backing chain is deeper than %d images",
			QCOW_MAX_CHAIN_DEPTH);
	struct qcow_reference ref = {.kind = QCOW_REF_BACKING,
		.name = layer->backing_name,
		.format = layer->backing_format,
		.from = qcow_store_name(layer->store),
		.depth = depth};
	struct qcow_resolved got = {0};
	QK_TRY(resolve(o, &ref, &got, err));
	*ends = got.store == NULL;
	if (got.image != NULL) {
		enum qcow_status status = adopt(top, layer, got.image, err);
		if (status != QCOW_OK)
			(void)qk_chain_close(got.image);
		return status;
	}
	return got.is_none ? QCOW_OK : open_resolved(top, layer, o, &ref, &got, err);
}

/* Open what the layers name, one after the other, until one names nothing. */
static enum qcow_status descend(
	struct qcow_image *top, const struct qcow_open_options *o, struct qcow_error *err)
{
	uint32_t depth = 0;
	for (struct qcow_image *layer = top; layer != NULL; layer = layer->backing) {
		QK_TRY(open_data_file(top, layer, o, depth, err));
		if (layer->is_raw || layer->backing_name == NULL || o->backing != NULL ||
			(o->flags & QCOW_OPEN_NO_BACKING) != 0)
			return QCOW_OK;
		bool ends = false;
		QK_TRY(open_backing(top, layer, o, depth, &ends, err));
		if (ends)
			return QCOW_OK;
		depth++;
	}
	return QCOW_OK;
}

/* Layers below that are to be written, when all is known that lies below them. From the lowest up: what one refuses
 * is refused before a layer above has been touched. */
static enum qcow_status open_for_writing(
	struct qcow_image *top, const struct qcow_open_options *o, struct qcow_error *err)
{
	struct qcow_image *layers[QCOW_MAX_CHAIN_DEPTH];
	uint32_t n = 0;
	for (struct qcow_image *i = top->backing; i != NULL && n < QCOW_MAX_CHAIN_DEPTH;
		i = i->backing)
		if ((i->flags & QCOW_OPEN_WRITE) != 0 && i->rw == NULL)
			layers[n++] = i;
	struct qcow_open_options below = *o;
	below.snapshot = NULL;
	while (n > 0) {
		enum qcow_status status = qk_rw_open(layers[--n], &below, err);
		if (status != QCOW_OK) {
			qk_err_context(err, "'%s'", qcow_store_name(layers[n]->store));
			return status;
		}
	}
	return qk_rw_open(top, o, err);
}

/* Clusters of the smallest size in the chain that a lookup walks before it looks further down. */
#define FIRST_STRETCH_CLUSTERS 128U

/* The stretch of each layer from `top` down, which the layers below it decide too. */
static void set_stretches(struct qcow_image *top)
{
	for (struct qcow_image *image = top; image != NULL; image = image->backing) {
		uint64_t smallest = QK_MIB(2);
		for (const struct qcow_image *i = image; i != NULL; i = i->backing)
			if (!i->is_raw)
				smallest = qk_min(smallest, i->geometry.cluster_size);
		image->first_stretch = smallest * FIRST_STRETCH_CLUSTERS;
	}
}

enum qcow_status qk_chain_open(struct qcow_store *store, const struct qcow_open_options *options,
	struct qcow_image **out, struct qcow_error *err)
{
	struct qcow_image *top = NULL;
	QK_TRY(qk_layer_open(store, options, &top, err));
	enum qcow_status status = descend(top, options, err);
	if (status == QCOW_OK && options->backing != NULL)
		status = adopt(top, top, options->backing, err);
	/* the caller's chain stays the caller's where this fails */
	if (status == QCOW_OK)
		status = open_for_writing(top, options, err);
	if (status != QCOW_OK) {
		if (options->backing != NULL)
			top->backing = NULL;
		(void)qk_chain_close(top);
		return status;
	}
	set_stretches(top);
	*out = top;
	return QCOW_OK;
}

enum qcow_status qk_chain_close(struct qcow_image *image)
{
	enum qcow_status first = QCOW_OK;
	while (image != NULL) {
		struct qcow_image *below = image->backing;
		enum qcow_status status = qk_layer_close(image);
		first = first != QCOW_OK ? first : status;
		image = below;
	}
	return first;
}
