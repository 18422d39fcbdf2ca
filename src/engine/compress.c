/* SPDX-License-Identifier: MIT */
/*
 * compress: see compress.h. The order: a place with its references (R + 1 for each cluster touched), the stream, then
 * the entry is staged; the publication makes refcounts and data stable before it writes the entry.
 *
 *	| cluster            | cluster            |
 *	| AAAAABBBBBBB|  CCCCCCCCC|DDD            |	the publication came after B: C starts a fresh sector
 *
 * Invariants: Z1 while the cursor names a cluster, a stream that is staged or linked, or being written, holds a reference
 * to it: whoever takes such a reference away makes the cursor forget the cluster first.
 * Z2 a sector is written only while no publication has begun since a stream was put into it. Locking: lock guards the
 * cursor; under it clusters are taken, references raised and streams written, one at a time. Compressing goes on beside it.
 */
#include "engine/compress.h"

#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "engine/decode.h"
#include "engine/group.h"
#include "engine/image.h"
#include "engine/locks.h"
#include "engine/publish.h"
#include "engine/rw.h"
#include "engine/space.h"
#include "engine/track.h"
#include "engine/write.h"

struct qk_compress {
	pthread_mutex_t lock;
	uint64_t at; /* where the next stream goes; 0: to a new cluster */
	uint64_t end; /* of the cluster of at */
};

enum qcow_status qk_compress_new(struct qk_compress **out, struct qcow_error *err)
{
	struct qk_compress *c = qk_calloc(1, sizeof(*c));
	if (c == NULL)
		return QK_FAIL_NOMEM(err);
	/* cannot fail with default attributes on the platforms that we build for */
	(void)pthread_mutex_init(&c->lock, NULL);
	*out = c;
	return QCOW_OK;
}

void qk_compress_free(struct qk_compress *c)
{
	if (c == NULL)
		return;
	(void)pthread_mutex_destroy(&c->lock);
	free(c);
}

void qk_compress_forget(struct qcow_image *image, uint64_t off, uint64_t n)
{
	struct qk_compress *c = image->rw->compress;
	uint64_t bytes = n << image->geometry.cluster_bits;
	qk_lock(&c->lock);
	/* at is behind what lies in its cluster, and may be its end */
	if (c->at != 0 && c->end > off && c->end - off <= bytes)
		c->at = 0;
	qk_unlock(&c->lock);
}

void qk_compress_seal(struct qcow_image *image)
{
	struct qk_compress *c = image->rw->compress;
	qk_lock(&c->lock);
	c->at = qk_div_up(c->at, QK_SECTOR) * QK_SECTOR;
	qk_unlock(&c->lock);
}

/* ---- places ---- */

/* Where a stream lies. */
struct place {
	uint64_t off;
	uint64_t first, n; /* host offset of its first cluster, clusters */
};

static enum qcow_status take_cluster(
	struct qcow_image *image, uint64_t near, uint64_t *off, struct qcow_error *err)
{
	const struct qk_space_want want = {.n = 1, .near = near, .kind = QK_SPACE_DATA};
	struct qk_space_run run = {0};
	QK_TRY(qk_space_take(image->rw->space, &want, &run, err));
	qk_rw_follow_size(image);
	qk_decode_forget(image->decode, run.off, image->geometry.cluster_size);
	*off = run.off;
	return QCOW_OK;
}

/* One reference more to the cluster of the cursor; false, and the cursor forgets it, where it can have no more. */
static enum qcow_status share(
	struct qcow_image *image, struct qk_compress *c, bool *is_shared, struct qcow_error *err)
{
	struct qcow_error own = QCOW_ERROR_INIT;
	enum qcow_status status = qk_space_raise(
		image->rw->space, c->end - image->geometry.cluster_size, 1, &own);
	*is_shared = status == QCOW_OK;
	if (status == QCOW_OK)
		return QCOW_OK;
	c->at = 0;
	if (status == QCOW_E_LIMIT)
		return QCOW_OK;
	if (err != NULL)
		*err = own;
	return status;
}

static struct place place_at(const struct qcow_image *image, uint64_t off, uint64_t len)
{
	uint64_t size = image->geometry.cluster_size;
	uint64_t first = qk_align_down(off, size);
	return (struct place){off, first, (off + len - first + size - 1) / size};
}

/* A place at the start of cluster `off`, which was taken for it. */
static struct place start_cluster(
	const struct qcow_image *image, struct qk_compress *c, uint64_t off, uint64_t len)
{
	c->at = off + len;
	c->end = off + image->geometry.cluster_size;
	return place_at(image, off, len);
}

/* `len` bytes do not fit into what is left of the cluster: they go on in the next one, if that is free. */
static enum qcow_status cross(struct qcow_image *image, struct qk_compress *c, uint64_t at,
	uint64_t len, struct place *out, struct qcow_error *err)
{
	bool is_shared = false;
	uint64_t next = 0;
	QK_TRY(take_cluster(image, c->end, &next, err));
	if (next == c->end) {
		enum qcow_status status = share(image, c, &is_shared, err);
		if (status != QCOW_OK) {
			qk_space_give_back(image->rw->space, next, 1);
			return status;
		}
	}
	if (!is_shared) {
		*out = start_cluster(image, c, next, len);
		return QCOW_OK;
	}
	c->at = at + len;
	c->end = next + image->geometry.cluster_size;
	*out = place_at(image, at, len);
	return QCOW_OK;
}

/* Under the lock. QCOW_E_NOSPC: nothing was changed. */
static enum qcow_status find_place(struct qcow_image *image, struct qk_compress *c, uint64_t len,
	struct place *out, struct qcow_error *err)
{
	bool is_shared = false;
	uint64_t at = c->at, new_off = 0;
	if (at != 0 && at < c->end && len > c->end - at)
		return cross(image, c, at, len, out, err);
	if (at != 0 && at < c->end)
		QK_TRY(share(image, c, &is_shared, err));
	if (is_shared) {
		c->at = at + len;
		*out = place_at(image, at, len);
		return QCOW_OK;
	}
	QK_TRY(take_cluster(image, c->end, &new_off, err));
	*out = start_cluster(image, c, new_off, len);
	return QCOW_OK;
}

/* Nothing was linked there. A failure leaks. */
static void give_place_back(struct qcow_image *image, const struct place *place)
{
	qk_compress_forget(image, place->first, place->n);
	enum qcow_status status = qk_space_drop(image->rw->space, place->first, place->n, NULL);
	(void)status;
}

/* ---- one cluster ---- */

/* A stream, and the guest cluster that it is for. */
struct stream {
	const uint8_t *bytes;
	size_t len;
	uint64_t guest;
};

static enum qcow_status link_stream(
	struct qk_group *group, const struct stream *stream, uint64_t raw, struct qcow_error *err)
{
	const struct qk_geometry *g = &group->image->geometry;
	struct qk_stage_change change;
	uint32_t i = (uint32_t)((stream->guest - group->guest.v) >> g->cluster_bits);
	struct qk_l2_entry old = qk_group_entry(group, i);
	struct qk_l2_entry now = qk_l2_decode(
		g, raw | QK_FLAG_COMPRESSED, 0, (qk_goff){stream->guest});
	struct qk_pair unlinked = qk_group_unlinked(group, &old);
	qk_group_change(group, &change, i, 1);
	qk_group_put(group, &change, i, &now);
	change.needs_barrier = true;
	if (unlinked.b != 0)
		change.unlinked[change.n_unlinked++] = unlinked;
	return qk_group_commit(group, &change, err);
}

/* Under the lock, so that it is through before the sectors at its ends are sealed. */
static enum qcow_status write_at(struct qcow_image *image, const struct stream *stream,
	const struct place *place, struct qcow_error *err)
{
	QK_TRY(qk_space_check_overlap(
		image->rw->space, QK_SPACE_DATA, place->off, stream->len, err));
	return qcow_store_write(image->store, stream->bytes, stream->len, place->off, err);
}

/* Find a place and write the stream there. place->n 0: there was none. */
static enum qcow_status put_stream(struct qcow_image *image, const struct stream *stream,
	struct place *place, struct qcow_error *err)
{
	struct qk_compress *c = image->rw->compress;
	place->n = 0;
	qk_lock(&c->lock);
	enum qcow_status status = find_place(image, c, stream->len, place, err);
	if (status == QCOW_OK)
		status = write_at(image, stream, place, err);
	qk_unlock(&c->lock);
	return status;
}

/* The same, once more after a publication where clusters wait for one. */
static enum qcow_status put_stream_somewhere(struct qcow_image *image, const struct stream *stream,
	struct place *place, struct qcow_error *err)
{
	struct qk_rw *rw = image->rw;
	enum qcow_status status = put_stream(image, stream, place, err);
	if (status != QCOW_E_NOSPC || place->n != 0 || !qk_stage_has_unlinked(rw->stage))
		return status;
	QK_TRY(qk_publish_flush(rw->publish, err));
	return put_stream(image, stream, place, err);
}

static enum qcow_status write_locked(
	struct qk_group *group, const struct stream *stream, struct qcow_error *err)
{
	struct qcow_image *image = group->image;
	unsigned bits = image->geometry.cluster_bits;
	struct place place;
	uint64_t raw = 0;
	QK_TRY(qk_group_judge(group, (uint32_t)((stream->guest - group->guest.v) >> bits), 1, err));
	enum qcow_status status = put_stream_somewhere(image, stream, &place, err);
	if (status == QCOW_OK &&
		!qk_l2_compressed_raw(&image->geometry, (qk_hoff){place.off}, stream->len, &raw))
		status = QK_FAIL(
			err, QCOW_E_LIMIT, "the file is too large for compressed clusters");
	if (status == QCOW_OK)
		status = link_stream(group, stream, raw, err);
	if (status != QCOW_OK && place.n != 0)
		give_place_back(image, &place);
	return status;
}

static enum qcow_status write_stream(
	struct qcow_image *image, const struct stream *stream, struct qcow_error *err)
{
	struct qk_group group;
	QK_TRY(qk_group_lock(image, (qk_goff){stream->guest}, &group, err));
	enum qcow_status status = write_locked(&group, stream, err);
	qk_group_unlock(&group);
	return status;
}

/* ---- the call ---- */

static enum qcow_status judge(const struct qcow_image *image, struct qcow_error *err)
{
	const char *why = NULL;
	if (image->is_raw)
		why = "a raw image has none";
	else if (image->is_encrypted)
		why = "the image is encrypted";
	else if (image->geometry.data_file)
		why = "the image has a data file";
	if (why == NULL)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_UNSUPPORTED, "no compressed clusters are written: %s", why);
}

static enum qcow_status write_plain(struct qcow_image *image, const uint8_t *buf, uint64_t len,
	uint64_t off, struct qcow_error *err)
{
	const struct iovec iov = {(void *)(uintptr_t)buf, (size_t)len};
	return qk_write(image, &iov, 1, off, err);
}

/* Buffers of one call. */
struct buffers {
	uint8_t *whole; /* of a last cluster that the disk cuts */
	uint8_t *out;
};

/* The cluster at `off`, of which the disk has `len` bytes. */
static enum qcow_status write_cluster(struct qcow_image *image, const struct buffers *b,
	const uint8_t *buf, uint64_t len, uint64_t off, struct qcow_error *err)
{
	const uint8_t *in = buf;
	struct stream stream = {.bytes = b->out, .guest = off};
	uint64_t size = image->geometry.cluster_size;
	if (len < size) {
		memcpy(b->whole, buf, (size_t)len);
		memset(b->whole + len, 0, (size_t)(size - len));
		in = b->whole;
	}
	QK_TRY(qk_decode_compress(image->decode, in, b->out, &stream.len, err));
	if (stream.len == 0)
		return write_plain(image, buf, len, off, err);
	struct qcow_error own = QCOW_ERROR_INIT;
	enum qcow_status status = write_stream(image, &stream, &own);
	if (status == QCOW_E_LIMIT)
		return write_plain(image, buf, len, off, err);
	if (status != QCOW_OK && err != NULL)
		*err = own;
	return status;
}

enum qcow_status qk_write_compressed(struct qcow_image *image, const uint8_t *buf, uint64_t len,
	uint64_t off, struct qcow_error *err)
{
	QK_TRY(judge(image, err));
	QK_TRY(qk_track_mark(image, off, len, err));
	size_t size = (size_t)image->geometry.cluster_size;
	uint8_t *whole QK_AUTO_FREE = qk_malloc(size, 1);
	uint8_t *out QK_AUTO_FREE = qk_malloc(size, 1);
	const struct buffers b = {whole, out};
	if (whole == NULL || out == NULL)
		return QK_FAIL_NOMEM(err);
	while (len != 0) {
		uint64_t n = qk_min(len, size);
		QK_TRY(write_cluster(image, &b, buf, n, off, err));
		buf += n;
		off += n;
		len -= n;
	}
	return QCOW_OK;
}
