/* SPDX-License-Identifier: MIT */
#include "image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a store that cannot grow ---- */

static enum qcow_status fixed_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	return qcow_store_readv(ctx, iov, n_iov, off, err);
}

static enum qcow_status fixed_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	return qcow_store_writev(ctx, iov, n_iov, off, err);
}

static enum qcow_status fixed_flush(void *ctx, struct qcow_error *err)
{
	return qcow_store_flush(ctx, err);
}

static enum qcow_status fixed_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	return qcow_store_size(ctx, size_bytes, err);
}

/* The wrapper asks for no other size than its own. */
static enum qcow_status fixed_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	return qcow_store_truncate(ctx, size_bytes, err);
}

static enum qcow_status fixed_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	return qcow_store_zero(ctx, off, len, flags, err);
}

static enum qcow_status fixed_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	return qcow_store_punch(ctx, off, len, err);
}

static enum qcow_status fixed_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	return qcow_store_extents(ctx, off, len, out, err);
}

static void fixed_caps(void *ctx, struct qcow_store_caps *out)
{
	qcow_store_caps(ctx, out);
	out->can_grow = false;
	out->can_clone = false;
	out->request_align = 1;
	out->memory_align = 1;
}

static void fixed_close(void *ctx)
{
	qcow_store_close(ctx);
}

static const struct qcow_store_ops fixed_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "fixed",
	.preadv = fixed_preadv,
	.pwritev = fixed_pwritev,
	.flush = fixed_flush,
	.size = fixed_size,
	.truncate = fixed_truncate,
	.zero = fixed_zero,
	.punch = fixed_punch,
	.extents = fixed_extents,
	.caps = fixed_caps,
	.close = fixed_close,
};

struct qcow_store *qkt_fixed_wrap(struct qcow_store *inner)
{
	struct qcow_store *store = NULL;
	if (qcow_store_new(&fixed_ops, inner, &store, NULL) != QCOW_OK ||
		qcow_store_set_name(store, qcow_store_name(inner), NULL) != QCOW_OK) {
		(void)fprintf(stderr, "fixed store: cannot wrap\n");
		abort();
	}
	return store;
}

/* ---- opening ---- */

struct opening {
	const struct qkt_image *im;
	const struct qkt_image_options *opt;
};

static enum qcow_status open_data_file(const struct opening *o, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	enum qcow_status st = qcow_file_open(
		ref->name, o->opt->read_only ? 0 : QCOW_FILE_WRITE, &out->store, err);
	if (st != QCOW_OK)
		return st;
	if (o->opt->is_fixed)
		out->store = qkt_fixed_wrap(out->store);
	out->store = o->im->order != NULL
			     ? qkt_guard_data(o->im->fault, o->im->order, out->store, 1)
			     : qkt_fault_wrap(o->im->fault, out->store, 1);
	return QCOW_OK;
}

static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	if (ref->kind == QCOW_REF_DATA_FILE)
		return open_data_file(ctx, ref, out, err);
	out->format = ref->format;
	return qcow_file_open(ref->name, 0, &out->store, err);
}

enum qcow_status qkt_image_open_store(struct qkt_image *im, struct qcow_store *store,
	const struct qkt_image_options *options, struct qcow_error *err)
{
	static const struct qkt_image_options none;
	const struct qkt_image_options *opt = options != NULL ? options : &none;
	struct qkt_order_options order = {.threads = opt->threads};
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	*im = (struct qkt_image){0};
	open.format = "qcow2";
	const struct opening opening = {im, opt};
	open.resolve = resolve;
	open.resolve_ctx = (void *)(uintptr_t)&opening;
	open.stage_bytes = opt->stage_bytes;
	open.discard = opt->discard;
	open.prove = opt->prove;
	if (opt->passphrase != NULL)
		open.secret = (struct qcow_secret){opt->passphrase, strlen(opt->passphrase)};
	open.flags = opt->read_only ? 0 : QCOW_OPEN_WRITE;
	open.flags |= opt->no_backing ? QCOW_OPEN_NO_BACKING : 0;
	if (opt->is_fixed)
		store = qkt_fixed_wrap(store);
	im->fault = qkt_fault_new();
	if (opt->read_only || opt->unjudged)
		store = qkt_fault_wrap(im->fault, store, 0);
	else {
		im->order = qkt_order_new(&order);
		store = qkt_guard(im->fault, im->order, store, 0);
	}
	enum qcow_status st = qcow_open(store, &open, &im->image, err);
	if (st != QCOW_OK)
		qkt_image_close(im);
	return st;
}

enum qcow_status qkt_image_open(struct qkt_image *im, const char *path,
	const struct qkt_image_options *options, struct qcow_error *err)
{
	struct qcow_store *store = NULL;
	bool writes = options == NULL || !options->read_only;
	*im = (struct qkt_image){0};
	enum qcow_status st = qcow_file_open(path, writes ? QCOW_FILE_WRITE : 0, &store, err);
	return st == QCOW_OK ? qkt_image_open_store(im, store, options, err) : st;
}

void qkt_image_close(struct qkt_image *im)
{
	qcow_close(im->image);
	if (im->order != NULL)
		qkt_order_free(im->order);
	if (im->fault != NULL)
		qkt_fault_free(im->fault);
	*im = (struct qkt_image){0};
}
