/* SPDX-License-Identifier: MIT */
/*
 * read: see read.h. Moves bytes for the runs that map found. Owns no state; allocates nothing itself.
 */
#include "engine/read.h"

#include <inttypes.h>
#include <string.h>

#include "base/err.h"
#include "engine/decode.h"
#include "engine/image.h"
#include "engine/map.h"
#include "engine/put.h"
#include "engine/rw.h"
#include "store/nowait.h"

static enum qcow_status read_plain(const struct qk_run *run, uint8_t *buf, struct qcow_error *err)
{
	const struct qcow_image *layer = run->layer;
	if (run->store == NULL)
		return QK_FAIL_AT(err, QCOW_E_POLICY, 0, QCOW_NO_OFFSET, run->guest.v,
			"guest offset %" PRIu64
			" is stored in the data file '%s', which was not opened",
			run->guest.v, layer->data_file_name != NULL ? layer->data_file_name : "");
	if (layer->crypt != NULL) {
		const struct qk_crypt_place at = {run->store, run->host_off, run->guest};
		return qk_put_read(run->layer, &at, buf, (size_t)run->len, err);
	}
	/* the end of a file may cut its last cluster short, a data file may end anywhere */
	bool is_inside = run->store == layer->store &&
			 qk_in_range(run->host_off.v, run->len, layer->file_size);
	if (QK_LIKELY(is_inside))
		return qcow_store_read(run->store, buf, (size_t)run->len, run->host_off.v, err);
	return qcow_store_read_padded(run->store, buf, (size_t)run->len, run->host_off.v, err);
}

static enum qcow_status read_run(const struct qk_run *run, uint8_t *buf, struct qcow_error *err)
{
	if (QK_UNLIKELY(run->layer->is_locked))
		return QK_FAIL_AT(err, QCOW_E_KEY, 0, QCOW_NO_OFFSET, run->guest.v,
			"the image is encrypted and was opened without its key");
	switch (run->kind) {
	case QK_RUN_PLAIN:
		return read_plain(run, buf, err);
	case QK_RUN_COMPRESSED:
		return qk_decode_read(run->layer->decode, run, buf, err);
	case QK_RUN_ZERO:
	case QK_RUN_UNALLOCATED:
		memset(buf, 0, (size_t)run->len);
		return QCOW_OK;
	case QK_RUN_BLOCKED:
	default:
		QK_ASSERT(R1, run->kind != QK_RUN_BLOCKED);
		return QCOW_E_BUG;
	}
}

static enum qcow_status read_runs(const struct qk_read *read, uint8_t *buf, struct qcow_error *err)
{
	for (unsigned i = 0; i < read->n; i++) {
		QK_TRY(read_run(&read->runs[i], buf, err));
		buf += read->runs[i].len;
	}
	return QCOW_OK;
}

enum qcow_status qk_read(
	struct qcow_image *image, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	struct qk_map_request rq = {.image = image,
		.off.v = off,
		.len = len,
		.max_depth = UINT32_MAX,
		.may_block = true};
	uint8_t *at = buf;
	while (rq.len != 0) {
		struct qk_read read;
		QK_TRY(qk_read_begin(&rq, &read, err));
		QK_ASSERT(R2, read.covered != 0 && read.covered <= rq.len);
		enum qcow_status status = read_runs(&read, at, err);
		at += read.covered;
		rq.off.v += read.covered;
		rq.len -= read.covered;
		qk_read_end(&read);
		QK_TRY(status);
	}
	return QCOW_OK;
}

/* ---- of what is at hand ---- */

static enum qcow_status would_block(struct qcow_error *err)
{
	return QK_FAIL(err, QCOW_E_WOULD_BLOCK, "the data is not at hand");
}

static bool is_at_hand(const struct qk_run *run)
{
	if (run->layer->is_locked)
		return false;
	if (run->kind == QK_RUN_PLAIN)
		return run->store != NULL && run->layer->crypt == NULL;
	return run->kind == QK_RUN_ZERO || run->kind == QK_RUN_UNALLOCATED;
}

static bool read_runs_nowait(const struct qk_read *read, uint8_t *buf)
{
	for (unsigned i = 0; i < read->n; i++) {
		const struct qk_run *run = &read->runs[i];
		bool is_compressed = run->kind == QK_RUN_COMPRESSED && !run->layer->is_locked;
		if (is_compressed ? !qk_decode_read_ready(run->layer->decode, run, buf)
				  : !is_at_hand(run))
			return false;
		if (is_compressed) {
			buf += run->len;
			continue;
		}
		if (run->kind != QK_RUN_PLAIN)
			memset(buf, 0, (size_t)run->len);
		else if (!qk_store_read_nowait(run->store, buf, (size_t)run->len, run->host_off.v))
			return false;
		buf += run->len;
	}
	return true;
}

enum qcow_status qk_read_nowait(
	struct qcow_image *image, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	struct qk_map_request rq = {
		.image = image, .off.v = off, .len = len, .max_depth = UINT32_MAX};
	uint8_t *at = buf;
	while (rq.len != 0) {
		struct qk_read read;
		if (qk_read_begin(&rq, &read, NULL) != QCOW_OK)
			return would_block(err);
		bool is_done = read.covered != 0 && read_runs_nowait(&read, at);
		at += read.covered;
		rq.off.v += read.covered;
		rq.len -= read.covered;
		qk_read_end(&read);
		if (!is_done)
			return would_block(err);
	}
	return QCOW_OK;
}

enum qcow_status qk_read_past(
	struct qcow_image *image, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	uint8_t *at = buf;
	while (len != 0) {
		struct qk_run run = {0};
		unsigned epoch = rw != NULL ? qk_epoch_enter(rw->epoch) : 0;
		enum qcow_status status = qk_lookup_past(image, (qk_goff){off}, len, &run, err);
		if (status == QCOW_OK)
			status = read_run(&run, at, err);
		if (rw != NULL)
			qk_epoch_leave(rw->epoch, epoch);
		QK_TRY(status);
		at += run.len;
		off += run.len;
		len -= (size_t)run.len;
	}
	return QCOW_OK;
}
