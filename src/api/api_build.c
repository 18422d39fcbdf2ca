/* SPDX-License-Identifier: MIT */
/*
 * api_build: the public calls that make images: argument checks, and the memory of a failure, so that no
 * builder finishes after one of its calls failed. A builder belongs to one thread at a time.
 */
#include <qcowkit/qcowkit.h>

#include <stddef.h>
#include <string.h>

#include "engine/build.h"

/* A caller of an older version gives a shorter struct: the rest has its defaults. */
static enum qcow_status take_options(const struct qcow_create_options *in,
	struct qcow_create_options *out, struct qcow_error *err)
{
	static const struct qcow_create_options defaults = QCOW_CREATE_OPTIONS_INIT;

	if (in == NULL || in->struct_size < offsetof(struct qcow_create_options, progress))
		return QK_FAIL(err, QCOW_E_INVAL,
			"the options are NULL or not initialised by QCOW_CREATE_OPTIONS_INIT");
	*out = defaults;
	size_t n = in->struct_size < sizeof(*out) ? in->struct_size : sizeof(*out);
	memcpy(out, in, n);
	return QCOW_OK;
}

enum qcow_status qcow_create_validate(
	const struct qcow_create_options *options, struct qcow_error *err)
{
	struct qcow_create_options o;

	QK_TRY(take_options(options, &o, err));
	return qk_build_options_validate(&o, err);
}

enum qcow_status qcow_luks_header_bytes(
	const struct qcow_create_options *options, uint64_t *bytes, struct qcow_error *err)
{
	struct qcow_create_options o;

	if (bytes == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_luks_header_bytes: an argument is NULL");
	QK_TRY(take_options(options, &o, err));
	return qk_build_crypt_bytes(&o, bytes, err);
}

enum qcow_status qcow_builder_new(struct qcow_store *store, struct qcow_store *data_store,
	const struct qcow_create_options *options, struct qcow_builder **out,
	struct qcow_error *err)
{
	struct qcow_create_options o;

	if (store == NULL || out == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_builder_new: an argument is NULL");
	QK_TRY(take_options(options, &o, err));
	/* how far a builder is only its caller knows */
	o.progress.report = NULL;
	return qk_build_new(store, data_store, &o, out, err);
}

enum qcow_status qcow_create(struct qcow_store *store, struct qcow_store *data_store,
	const struct qcow_create_options *options, struct qcow_error *err)
{
	struct qcow_create_options o;
	struct qcow_builder *builder = NULL;

	if (store == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_create: the store is NULL");
	QK_TRY(take_options(options, &o, err));
	QK_TRY(qk_build_new(store, data_store, &o, &builder, err));
	return qk_build_finish(builder, err);
}

static enum qcow_status note(struct qcow_builder *builder, enum qcow_status status)
{
	if (builder->failed == QCOW_OK)
		builder->failed = status;
	return status;
}

enum qcow_status qcow_builder_reserve(struct qcow_builder *builder, uint64_t off, uint64_t len,
	uint64_t *host_off, uint64_t *run_bytes, struct qcow_error *err)
{
	qk_hoff host = {0};
	uint64_t run = 0;

	if (builder == NULL || host_off == NULL || run_bytes == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_builder_reserve: an argument is NULL");
	QK_TRY(note(
		builder, qk_build_data_reserve(builder, (qk_goff){off}, len, &host, &run, err)));
	*host_off = host.v;
	*run_bytes = run;
	return QCOW_OK;
}

enum qcow_status qcow_builder_write(struct qcow_builder *builder, uint64_t off, uint64_t host_off,
	const void *buf, size_t len, struct qcow_error *err)
{
	/* any thread: the builder's memory of failures is its owner's, who sees this one */
	if (builder == NULL || buf == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_builder_write: an argument is NULL");
	return qk_build_crypt_write(
		builder, (qk_goff){off}, (qk_hoff){host_off}, (struct qk_span){buf, len}, err);
}

enum qcow_status qcow_builder_compressed(struct qcow_builder *builder, uint64_t off,
	const void *data, size_t len, struct qcow_error *err)
{
	struct qk_span span = {data, len};

	if (builder == NULL || data == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_builder_compressed: an argument is NULL");
	return note(builder, qk_build_data_compressed(builder, (qk_goff){off}, span, err));
}

enum qcow_status qcow_builder_zero(
	struct qcow_builder *builder, uint64_t off, uint64_t len, struct qcow_error *err)
{
	if (builder == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_builder_zero: the builder is NULL");
	return note(builder, qk_build_data_zero(builder, (qk_goff){off}, len, err));
}

enum qcow_status qcow_builder_bitmap(struct qcow_builder *builder,
	const struct qcow_bitmap_options *options, struct qcow_error *err)
{
	if (builder == NULL || options == NULL || options->name == NULL ||
		options->struct_size != sizeof(*options))
		return QK_FAIL(err, QCOW_E_INVAL,
			"qcow_builder_bitmap: an argument is NULL, or not initialised by "
			"QCOW_BITMAP_OPTIONS_INIT");
	return note(builder, qk_build_bitmap_begin(builder, options, err));
}

enum qcow_status qcow_builder_bitmap_dirty(
	struct qcow_builder *builder, uint64_t off, uint64_t len, struct qcow_error *err)
{
	if (builder == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_builder_bitmap_dirty: the builder is NULL");
	return note(builder, qk_build_bitmap_dirty(builder, (qk_goff){off}, len, err));
}

enum qcow_status qcow_builder_finish(struct qcow_builder *builder, struct qcow_error *err)
{
	if (builder == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_builder_finish: the builder is NULL");
	return qk_build_finish(builder, err);
}

void qcow_builder_abandon(struct qcow_builder *builder)
{
	qk_build_abandon(builder);
}
