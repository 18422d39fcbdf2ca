/* SPDX-License-Identifier: MIT */
/*
 * fit: see fit.h. Certain is: a file system that stores a byte for a byte (it neither compresses nor
 * shares blocks by itself), and more bytes of non-zero units than it has blocks left, with the blocks
 * that the target holds already counted as free. Or a device, which has its size and no more: there the
 * clusters of metadata count that no image can do without.
 */
#include "ops/fit.h"

#include <inttypes.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/num.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

static bool is_fixed(struct qcow_store *store)
{
	struct qcow_store_caps caps = {0};
	qcow_store_caps(store, &caps);
	return !caps.can_grow;
}

/* Free bytes for the target; false where that says nothing. */
static bool find_free(struct qcow_store *store, uint64_t *free_bytes)
{
	if (is_fixed(store))
		return qcow_store_size(store, free_bytes, NULL) == QCOW_OK;
	struct statfs fs;
	struct stat st;
	int fd = qcow_store_fd(store);
	if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || fstatfs(fd, &fs) != 0)
		return false;
	bool is_plain = fs.f_type == TMPFS_MAGIC || fs.f_type == EXT4_SUPER_MAGIC ||
			fs.f_type == XFS_SUPER_MAGIC;
	if (!is_plain || fs.f_blocks == 0 || fs.f_bsize <= 0)
		return false;
	uint64_t bytes = 0;
	return qk_mul(fs.f_bfree, (uint64_t)fs.f_bsize, &bytes) &&
	       qk_add(bytes, (uint64_t)st.st_blocks * 512, free_bytes);
}

static bool is_cancelled(const struct qk_copy *copy)
{
	return copy->progress.cancelled != NULL && copy->progress.cancelled(copy->progress.ctx);
}

/* Bytes of DATA segments, counted no further than `enough`. */
static enum qcow_status count_extents(
	struct qk_copy *copy, uint64_t enough, uint64_t *out, struct qcow_error *err)
{
	uint64_t sum = 0;
	for (uint64_t at = 0; at < copy->source.size && sum <= enough;) {
		struct qk_segment segment;
		QK_TRY(qk_source_segment(&copy->source, at, &segment, err));
		if (segment.kind == QK_SEGMENT_DATA)
			sum += segment.len;
		at += segment.len;
	}
	*out = sum;
	return QCOW_OK;
}

static uint64_t count_nonzero(const uint8_t *p, uint64_t len, uint64_t unit_bytes)
{
	uint64_t sum = 0;
	for (uint64_t at = 0; at < len;) {
		uint64_t n = qk_min(unit_bytes, len - at);
		sum += qk_is_zero(p + at, n) ? 0 : n;
		at += n;
	}
	return sum;
}

#define SEEN 256U

/* What was counted of a piece of a store. Tables of a few bytes can name one cluster a million times: it is
 * read once. */
struct seen {
	const struct qcow_store *store; /* NULL: nothing yet */
	uint64_t host_off, len, nonzero;
};

/* The place of `segment`'s first `len` bytes in `seen`, or NULL where they lie nowhere plainly. */
static struct seen *find_seen(struct seen *seen, const struct qk_segment *segment, uint64_t len)
{
	if (segment->store == NULL)
		return NULL;
	struct seen *s = &seen[(segment->host_off >> 12) % SEEN];
	if (s->store != segment->store || s->host_off != segment->host_off || s->len != len)
		*s = (struct seen){.host_off = segment->host_off, .len = len};
	return s;
}

/* Bytes of units that are not all zero, by reading; counted no further than `enough`. */
static enum qcow_status count_data(
	struct qk_copy *copy, uint64_t enough, uint64_t *out, struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *buf = qk_malloc(1, copy->policy.chunk_bytes);
	QK_AUTO_FREE struct seen *seen = qk_calloc(SEEN, sizeof(*seen));
	if (buf == NULL || seen == NULL)
		return QK_FAIL_NOMEM(err);
	uint64_t sum = 0;
	for (uint64_t at = 0; at < copy->source.size && sum <= enough;) {
		struct qk_segment segment;
		QK_TRY(qk_source_segment(&copy->source, at, &segment, err));
		uint64_t n = segment.len;
		if (segment.kind == QK_SEGMENT_DATA) {
			n = qk_min(n, copy->policy.chunk_bytes);
			struct seen *s = find_seen(seen, &segment, n);
			if (s == NULL || s->store == NULL) {
				QK_TRY(qk_source_read(&copy->source, buf, n, at, err));
				/* 512 bytes: where segments begin inside units, less is counted, never more */
				uint64_t nonzero = count_nonzero(buf, n, 512);
				if (s != NULL)
					*s = (struct seen){segment.store, s->host_off, n, nonzero};
				sum += nonzero;
			} else {
				sum += s->nonzero;
			}
		}
		at += n;
		if (is_cancelled(copy))
			return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
	}
	*out = sum;
	return QCOW_OK;
}

/* Clusters of metadata that come with so much data, in bytes. */
static uint64_t metadata_bytes(const struct qk_fit *fit, uint64_t data)
{
	if (fit->cluster_bytes == 0 || !is_fixed(fit->store))
		return 0;
	/* header, refcount table, refcount block, L1 table; and a table maps at most so many clusters */
	uint64_t n_tables = qk_div_up(data / fit->cluster_bytes, fit->cluster_bytes / 8);
	return (4 + n_tables) * fit->cluster_bytes;
}

static enum qcow_status refuse(
	struct qcow_store *store, uint64_t needed, uint64_t free_bytes, struct qcow_error *err)
{
	if (is_fixed(store))
		return QK_FAIL(err, QCOW_E_NOSPC,
			"%s: the image needs at least %" PRIu64 " bytes, the device has %" PRIu64
			": No space left on device",
			qcow_store_name(store), needed, free_bytes);
	return QK_FAIL(err, QCOW_E_NOSPC,
		"%s: the disk needs at least %" PRIu64 " bytes, its file system has %" PRIu64
		" free: No space left on device",
		qcow_store_name(store), needed, free_bytes);
}

enum qcow_status qk_fit_check(
	struct qk_copy *copy, const struct qk_fit *fit, struct qcow_error *err)
{
	uint64_t free_bytes = 0, needed = 0;
	if (!find_free(fit->store, &free_bytes))
		return QCOW_OK;
	if (fit->at_least > free_bytes)
		return refuse(fit->store, fit->at_least, free_bytes, err);
	bool is_open = copy->policy.compress || copy->clone_dev != 0 || copy->source.salvage ||
		       copy->rate_bytes_per_sec != 0 || copy->policy.compare != NULL;
	uint64_t reserved = metadata_bytes(fit, copy->source.size);
	if (is_open || (reserved <= free_bytes && copy->source.size <= free_bytes - reserved))
		return QCOW_OK;
	/* A source that cannot be read is the copy's to report. */
	if (count_extents(copy, free_bytes, &needed, NULL) != QCOW_OK ||
		needed + metadata_bytes(fit, needed) <= free_bytes)
		return QCOW_OK;
	enum qcow_status status = count_data(copy, free_bytes, &needed, err);
	if (status == QCOW_E_CANCELLED)
		return status;
	qk_err_clear(err);
	needed += metadata_bytes(fit, needed);
	if (status != QCOW_OK || needed <= free_bytes)
		return QCOW_OK;
	return refuse(fit->store, needed, free_bytes, err);
}
