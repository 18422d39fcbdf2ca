/* SPDX-License-Identifier: MIT */
/*
 * convert: judges the options of qcow_convert, chooses how to copy, and makes the target.
 *
 * Nothing is written before the options are judged and the room is counted. Never removes a file:
 * who made it does.
 */
#include <qcowkit/ops.h>

#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/num.h"
#include "ops/bitmaps.h"
#include "ops/copy.h"
#include "ops/fit.h"

/* A read and a write of this size are near the cost of the bytes alone, and stay in a core's cache. */
#define PLAIN_CHUNK_BYTES QK_KIB(512)
/* Small enough that all workers end together. */
#define PACKED_CHUNK_BYTES QK_KIB(512)
#define RAW_UNIT_BYTES	   QK_KIB(4)
#define MAX_SPARSE_BYTES   QK_MIB(1)

struct request {
	const struct qcow_convert_options *options;
	struct qcow_store *target, *target_data;
	struct qcow_create_options create; /* with the size filled in */
	bool is_raw, is_luks;
};

static enum qcow_status check_raw(const struct request *request, struct qcow_error *err)
{
	const struct qcow_convert_options *options = request->options;
	if (options->compress)
		return QK_FAIL(err, QCOW_E_INVAL,
			"compression not supported for format raw: a raw "
			"disk holds no compressed clusters");
	if (options->backing != NULL || options->create.backing_name != NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "a raw disk has no backing file");
	if (options->create.data_file_name != NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "a raw disk has no data file");
	if (options->create.preallocation == QCOW_PREALLOC_METADATA)
		return QK_FAIL(err, QCOW_E_INVAL, "a raw disk has no metadata to preallocate");
	if (options->keep_target && options->create.preallocation != QCOW_PREALLOC_OFF)
		return QK_FAIL(err, QCOW_E_INVAL, "preallocation is for new targets, not with -n");
	return QCOW_OK;
}

static enum qcow_status check_qcow2(const struct request *request, struct qcow_error *err)
{
	const struct qcow_convert_options *options = request->options;
	if (options->keep_target && options->target_image == NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"an existing qcow2 image is written through target_image");
	if (options->target_image != NULL)
		return QCOW_OK;
	if (options->compress && request->create.data_file_name != NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"an image with a data file holds no compressed clusters");
	if (options->compress && options->create.encryption != QCOW_ENCRYPTION_NONE)
		return QK_FAIL(err, QCOW_E_INVAL,
			"Compression and encryption not supported at the same time");
	if (options->backing != NULL && options->create.backing_name == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "a backing image without a name to record");
	return qcow_create_validate(&request->create, err);
}

static enum qcow_status check_luks(const struct request *request, struct qcow_error *err)
{
	const struct qcow_convert_options *options = request->options;
	if (options->compress)
		return QK_FAIL(err, QCOW_E_INVAL,
			"compression not supported for format luks: its disk lies there as it is");
	if (options->backing != NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "a LUKS file has no backing file");
	if (request->create.luks_detached_header && request->target_data == NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"a detached LUKS header needs a second target for the disk");
	return qcow_create_validate(&request->create, err);
}

static enum qcow_status check_format(const struct request *request, struct qcow_error *err)
{
	if (request->is_raw)
		return check_raw(request, err);
	return request->is_luks ? check_luks(request, err) : check_qcow2(request, err);
}

/* What everything else relies on. Sets the format. */
static enum qcow_status check_request(struct request *request, struct qcow_error *err)
{
	const struct qcow_convert_options *options = request->options;
	if (options->struct_size != sizeof(*options) || options->format == NULL ||
		options->n_sources == 0 || options->sources == NULL ||
		(request->target == NULL) != (options->target_image != NULL))
		return QK_FAIL(err, QCOW_E_INVAL,
			"convert needs initialised options, a source, a target and a format");
	if (options->n_workers > QK_PIPE_MAX_WORKERS)
		return QK_FAIL(
			err, QCOW_E_INVAL, "the number of workers is 1 to %d", QK_PIPE_MAX_WORKERS);
	request->is_raw = strcmp(options->format, "raw") == 0;
	request->is_luks = strcmp(options->format, "luks") == 0;
	if (!request->is_raw && !request->is_luks && strcmp(options->format, "qcow2") != 0)
		return QK_FAIL(
			err, QCOW_E_UNSUPPORTED, "unknown target format '%s'", options->format);
	request->create.format = request->is_raw ? NULL : options->format;
	if (options->target_image != NULL) {
		struct qcow_info info;
		if (request->is_raw || request->is_luks || request->target_data != NULL)
			return QK_FAIL(err, QCOW_E_INVAL, "target_image is a qcow2 image");
		qcow_get_info(options->target_image, &info);
		request->create.cluster_size = info.cluster_size;
		request->create.data_file_name = NULL;
		request->create.preallocation = QCOW_PREALLOC_OFF;
		request->target = qcow_image_store(options->target_image);
	}
	request->create.luks_keep = request->is_luks && options->keep_target;
	return QCOW_OK;
}

/* ---- sharing blocks ---- */

static bool find_dev(struct qcow_store *store, uint64_t *dev)
{
	struct stat st;
	int fd = qcow_store_fd(store);
	if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
		return false;
	*dev = st.st_dev;
	return true;
}

/* Does the file system share a block of this source with the (still meaningless) target? */
static bool try_clone(struct qcow_store *target, uint64_t target_dev, struct qcow_store *source)
{
	uint64_t dev = 0, size = 0;
	struct qcow_store_caps caps;
	if (source == NULL || !find_dev(source, &dev) || dev != target_dev)
		return false;
	qcow_store_caps(source, &caps);
	return qcow_store_size(source, &size, NULL) == QCOW_OK && size >= QK_CLONE_GRAIN_BYTES &&
	       qcow_store_clone(target, 0, source, 0, QK_CLONE_GRAIN_BYTES, NULL) == QCOW_OK;
}

/* The device whose stores may share blocks with the target, or 0. Writes to the target. */
static uint64_t probe_clone(const struct request *request, struct qcow_store *target)
{
	const struct qcow_convert_options *options = request->options;
	struct qcow_store_caps caps;
	uint64_t dev = 0;
	qcow_store_caps(target, &caps);
	bool is_out = options->no_clone || options->compress || options->keep_target ||
		      options->target_image != NULL || options->sparse_bytes != UINT64_MAX ||
		      options->rate_bytes_per_sec != 0 ||
		      options->create.preallocation > QCOW_PREALLOC_METADATA ||
		      options->create.encryption != QCOW_ENCRYPTION_NONE || request->is_luks;
	if (is_out || !caps.can_clone || !caps.can_grow || !find_dev(target, &dev))
		return 0;
	if (!request->is_raw && request->create.cluster_size < QK_CLONE_GRAIN_BYTES)
		return 0;
	for (unsigned i = 0; i < options->n_sources; i++)
		for (struct qcow_image *layer = options->sources[i]; layer != NULL;
			layer = qcow_backing(layer))
			if (try_clone(target, dev, qcow_image_data_store(layer)) ||
				try_clone(target, dev, qcow_image_store(layer)))
				return dev;
	return 0;
}

/* ---- choosing ---- */

/* A power of two of at least `bytes`, at most MAX_SPARSE_BYTES. */
static uint64_t round_sparse(uint64_t bytes)
{
	uint64_t p = 512;
	while (p < bytes && p < MAX_SPARSE_BYTES)
		p <<= 1;
	return p;
}

static struct qk_policy choose_policy(const struct request *request)
{
	const struct qcow_convert_options *options = request->options;
	/* an image that is there compresses by itself */
	bool packs = options->compress && options->target_image == NULL;
	struct qk_policy policy = {.compress = packs, .sparse_bytes = RAW_UNIT_BYTES};
	if (options->sparse_bytes != UINT64_MAX)
		policy.sparse_bytes = options->sparse_bytes;
	if (request->is_raw && options->create.preallocation == QCOW_PREALLOC_FULL)
		policy.sparse_bytes = 0;
	if (request->is_luks) /* a hole there is no zeros */
		policy.sparse_bytes = 0;
	uint64_t sparse = round_sparse(policy.sparse_bytes);
	policy.unit_bytes = request->create.cluster_size;
	if (request->is_raw)
		policy.unit_bytes = qk_min(RAW_UNIT_BYTES, sparse);
	else if (request->is_luks)
		policy.unit_bytes = RAW_UNIT_BYTES;
	policy.chunk_bytes = options->compress ? PACKED_CHUNK_BYTES : PLAIN_CHUNK_BYTES;
	policy.chunk_bytes = qk_max(policy.chunk_bytes, qk_max(policy.unit_bytes, sparse));
	return policy;
}

/* Does the target's file hold a new qcow2 image, data and all? */
static bool makes_qcow2(const struct request *request)
{
	return !request->is_raw && !request->is_luks && request->target_data == NULL &&
	       request->options->target_image == NULL;
}

/* Bytes that the target must have room for whatever the source holds. */
static uint64_t least_bytes(const struct request *request, const struct qk_copy *copy)
{
	struct qcow_measure_result measured = {0};
	enum qcow_preallocation prealloc = request->options->create.preallocation;
	bool is_full = prealloc == QCOW_PREALLOC_FALLOC || prealloc == QCOW_PREALLOC_FULL;
	bool stores_zeros = copy->policy.sparse_bytes == 0 && !copy->policy.compress &&
			    request->options->backing == NULL;
	if (!is_full && !stores_zeros)
		return 0;
	if (makes_qcow2(request) &&
		qcow_measure(NULL, "qcow2", &request->create, &measured, NULL) == QCOW_OK)
		return measured.fully_allocated;
	return copy->source.size;
}

/* Refuse a target that is certainly too small, before anything is written to it. A raw one is refused where it
 * is opened. */
static enum qcow_status check_fit(
	const struct request *request, struct qk_copy *copy, struct qcow_error *err)
{
	struct qk_fit fit = {
		.store = request->target_data != NULL ? request->target_data : request->target,
		.at_least = least_bytes(request, copy),
		.cluster_bytes = makes_qcow2(request) ? request->create.cluster_size : 0,
	};
	struct qcow_store_caps caps;
	if (fit.store == NULL)
		return QCOW_OK;
	qcow_store_caps(fit.store, &caps);
	return request->is_raw && !caps.can_grow ? QCOW_OK : qk_fit_check(copy, &fit, err);
}

/* Can the file be that long at all? Only where nothing is lost by asking: an empty one. */
static enum qcow_status try_length(
	const struct request *request, uint64_t size, struct qcow_error *err)
{
	struct qcow_store_caps caps;
	uint64_t have = 0;
	qcow_store_caps(request->target, &caps);
	if (!request->is_raw || request->options->keep_target || !caps.can_grow)
		return QCOW_OK;
	QK_TRY(qcow_store_size(request->target, &have, err));
	if (have != 0)
		return QCOW_OK;
	QK_TRY(qcow_store_truncate(request->target, size, err));
	return qcow_store_truncate(request->target, 0, err);
}

static enum qcow_status open_sink(
	struct request *request, struct qk_copy *copy, struct qcow_error *err)
{
	const struct qcow_convert_options *options = request->options;
	if (request->is_raw) {
		QK_TRY(qk_sink_open_raw(
			&copy->sink, request->target, options, copy->source.size, err));
		copy->sink.unit_bytes = copy->policy.unit_bytes;
		return QCOW_OK;
	}
	if (options->target_image != NULL) {
		QK_TRY(qk_sink_open_image(&copy->sink, options, copy->source.size, err));
		copy->sink.unit_bytes = copy->policy.unit_bytes;
		return QCOW_OK;
	}
	QK_TRY(qk_sink_open_qcow2(
		&copy->sink, request->target, request->target_data, &request->create, err));
	copy->sink.unit_bytes = copy->policy.unit_bytes;
	/* A backing file that is only named may hold anything, at any length. */
	if (options->backing != NULL)
		copy->sink.explicit_zero_bytes = qcow_size(options->backing);
	else if (request->create.backing_name != NULL)
		copy->sink.explicit_zero_bytes = UINT64_MAX;
	return QCOW_OK;
}

/* QEMU counts disks in sectors and would not see the rest of the last one: a raw disk is filled up to it. An
 * image that has an odd size already keeps it. */
static bool fills_last_sector(const struct request *request)
{
	const struct qcow_convert_options *options = request->options;
	struct qcow_info info;
	qcow_get_info(options->sources[options->n_sources - 1], &info);
	bool is_wanted = options->whole_sectors ||
			 (!request->is_raw && strcmp(info.format, "raw") == 0);
	return is_wanted && options->create.virtual_size == 0;
}

static enum qcow_status choose_size(
	struct request *request, struct qk_copy *copy, struct qcow_error *err)
{
	const struct qcow_convert_options *options = request->options;
	QK_TRY(qk_source_init(&copy->source, options->sources, options->n_sources,
		options->create.virtual_size, err));
	if (fills_last_sector(request))
		copy->source.size = copy->source.starts[options->n_sources];
	request->create.virtual_size = copy->source.size;
	return QCOW_OK;
}

static enum qcow_status run(struct request *request, struct qk_copy *copy, struct qcow_error *err)
{
	const struct qcow_convert_options *options = request->options;
	QK_TRY(check_request(request, err));
	QK_TRY(choose_size(request, copy, err));
	QK_TRY(check_format(request, err));
	QK_TRY(qk_bitmaps_check(options, request->is_raw || request->is_luks, err));
	copy->source.salvage = options->salvage;
	copy->policy = choose_policy(request);
	if (options->backing != NULL && !qk_source_find_backing(&copy->source, options->backing))
		copy->policy.compare = options->backing;
	struct qcow_store *data = request->target_data != NULL ? request->target_data
							       : request->target;
	copy->clone_dev = probe_clone(request, data);
	QK_TRY(try_length(request, copy->source.size, err));
	QK_TRY(check_fit(request, copy, err));
	QK_TRY(open_sink(request, copy, err));
	enum qcow_status status = qk_copy_run(copy, err);
	if (status == QCOW_OK)
		status = qk_bitmaps_copy(options, copy->source.size, copy->sink.builder, err);
	if (status == QCOW_OK)
		return qk_sink_finish(&copy->sink, err);
	qk_sink_abandon(&copy->sink);
	return status;
}

/* ---- the caller's callbacks, one at a time: the pipe asks, and the builder where it fills long gaps ---- */

struct turn {
	pthread_mutex_t lock;
	struct qcow_progress theirs;
	void (*on_salvage)(void *ctx, uint64_t off, uint64_t len, const struct qcow_error *why);
	void *salvage_ctx;
};

static void salvage_in_turn(void *ctx, uint64_t off, uint64_t len, const struct qcow_error *why)
{
	struct turn *turn = ctx;
	(void)pthread_mutex_lock(&turn->lock);
	turn->on_salvage(turn->salvage_ctx, off, len, why);
	(void)pthread_mutex_unlock(&turn->lock);
}

static void report_in_turn(void *ctx, uint64_t done, uint64_t total)
{
	struct turn *turn = ctx;
	(void)pthread_mutex_lock(&turn->lock);
	turn->theirs.report(turn->theirs.ctx, done, total);
	(void)pthread_mutex_unlock(&turn->lock);
}

static bool cancelled_in_turn(void *ctx)
{
	struct turn *turn = ctx;
	(void)pthread_mutex_lock(&turn->lock);
	bool is_cancelled = turn->theirs.cancelled(turn->theirs.ctx);
	(void)pthread_mutex_unlock(&turn->lock);
	return is_cancelled;
}

static struct qcow_progress take_turns(struct turn *turn)
{
	struct qcow_progress ours = {.ctx = turn};
	if (turn->theirs.report != NULL)
		ours.report = report_in_turn;
	if (turn->theirs.cancelled != NULL)
		ours.cancelled = cancelled_in_turn;
	return ours;
}

enum qcow_status qcow_convert(struct qcow_store *target, struct qcow_store *target_data,
	const struct qcow_convert_options *options, struct qcow_convert_result *result,
	struct qcow_error *err)
{
	if (options == NULL || options->sources == NULL || options->n_sources == 0 ||
		options->format == NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"convert needs options, at least one source and a format");
	struct turn turn = {.theirs = options->progress,
		.on_salvage = options->on_salvage,
		.salvage_ctx = options->salvage_ctx};
	if (pthread_mutex_init(&turn.lock, NULL) != 0)
		return QK_FAIL_NOMEM(err);
	struct request request = {.options = options,
		.target = target,
		.target_data = target_data,
		.create = options->create};
	struct qk_copy copy = {
		.compression = options->create.compression,
		.level = options->level,
		.n_workers = options->n_workers,
		.any_order = options->out_of_order && strcmp(options->format, "raw") == 0,
		.rate_bytes_per_sec = options->rate_bytes_per_sec,
		.on_salvage = options->on_salvage != NULL ? salvage_in_turn : NULL,
		.salvage_ctx = &turn,
		.progress = take_turns(&turn),
	};
	request.create.progress = copy.progress;
	enum qcow_status status = run(&request, &copy, err);
	qk_source_release(&copy.source);
	(void)pthread_mutex_destroy(&turn.lock);
	if (status == QCOW_OK && result != NULL)
		*result = copy.result;
	return status;
}
