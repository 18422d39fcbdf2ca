/* SPDX-License-Identifier: MIT */
/*
 * api_build: the public calls that make images: argument checks, and the memory of a failure, so that no
 * builder finishes after one of its calls failed. A builder belongs to one thread at a time.
 */
#include <qcowkit/qcowkit.h>

#include <stddef.h>
#include <string.h>

#include "base/options.h"
#include "engine/build.h"

/* A caller of an older version gives a shorter struct: the rest has its defaults. */
QK_TAKE_OPTIONS(
	take_options, qcow_create_options, "create options", QCOW_CREATE_OPTIONS_INIT, progress)
QK_TAKE_OPTIONS(
	take_bitmap, qcow_bitmap_options, "bitmap options", QCOW_BITMAP_OPTIONS_INIT, is_auto)

/* There is no image of default size. */
static enum qcow_status take_create(const struct qcow_create_options *in,
	struct qcow_create_options *out, struct qcow_error *err)
{
	if (in == NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"the options are NULL: initialise them with QCOW_CREATE_OPTIONS_INIT");
	return take_options(in, out, err);
}

enum qcow_status qcow_create_validate(
	const struct qcow_create_options *options, struct qcow_error *err)
{
	struct qcow_create_options o;

	QK_TRY(take_create(options, &o, err));
	return qk_build_options_validate(&o, err);
}

enum qcow_status qcow_luks_header_bytes(
	const struct qcow_create_options *options, uint64_t *bytes, struct qcow_error *err)
{
	struct qcow_create_options o;

	if (bytes == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_luks_header_bytes: an argument is NULL");
	QK_TRY(take_create(options, &o, err));
	return qk_build_crypt_bytes(&o, bytes, err);
}

enum qcow_status qcow_builder_new(struct qcow_store *store, struct qcow_store *data_store,
	const struct qcow_create_options *options, struct qcow_builder **out,
	struct qcow_error *err)
{
	struct qcow_create_options o;

	if (store == NULL || out == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_builder_new: an argument is NULL");
	QK_TRY(take_create(options, &o, err));
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
	QK_TRY(take_create(options, &o, err));
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
	struct qcow_bitmap_options o;

	QK_TRY(take_bitmap(options, &o, err));
	if (builder == NULL || o.name == NULL)
		return QK_FAIL(
			err, QCOW_E_INVAL, "qcow_builder_bitmap: the builder or the name is NULL");
	return note(builder, qk_build_bitmap_begin(builder, &o, err));
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
