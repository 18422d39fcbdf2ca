/* SPDX-License-Identifier: MIT */
/*
 * header: the fixed header, bytes 0 to header_length: decode and encode. What the values must be is
 * header_validate.c's.
 *
 * Pure. Version 2 has 72 bytes: nothing of bytes 72-103 is read or written there. Bytes from 105 on
 * are unknown to us and kept as they are.
 */
#include "format/header.h"

#include <inttypes.h>

#define COMPRESSION_AT 104U
#define TAIL_AT	       105U

enum qk_probe qk_probe(const uint8_t *start, size_t n)
{
	struct qk_reader r = qk_reader_init(start, n);
	if (qk_read32(&r) != QK_MAGIC)
		return QK_PROBE_OTHER;
	uint32_t version = qk_read32(&r);
	return version == 2 || version == 3 ? QK_PROBE_QCOW2 : QK_PROBE_QCOW_OTHER;
}

static void read_common(struct qk_reader *r, struct qk_header *h)
{
	h->backing_off = qk_read64(r);
	h->backing_len = qk_read32(r);
	h->cluster_bits = qk_read32(r);
	h->size = qk_read64(r);
	h->crypt_method = qk_read32(r);
	h->l1_entries = qk_read32(r);
	h->l1_off = qk_read64(r);
	h->rt_off = qk_read64(r);
	h->rt_clusters = qk_read32(r);
	h->n_snapshots = qk_read32(r);
	h->snapshots_off = qk_read64(r);
}

static enum qcow_status fail_truncated(size_t have, uint32_t need, struct qcow_error *err)
{
	return QK_FAIL(err, QCOW_E_FORMAT,
		"the file ends after %zu bytes: the header needs %" PRIu32, have, need);
}

/* Bytes 72 and up. `in` may end within the tail where the caller has not read all of it yet. */
static enum qcow_status read_version3(
	struct qk_reader *r, struct qk_header *h, struct qcow_error *err)
{
	h->incompatible = qk_read64(r);
	h->compatible = qk_read64(r);
	h->autoclear = qk_read64(r);
	h->refcount_order = qk_read32(r);
	h->header_length = qk_read32(r);
	if (r->bad)
		return fail_truncated(r->n, QK_V3_HEADER_MIN_BYTES, err);
	if (h->header_length < QK_V3_HEADER_MIN_BYTES || h->header_length > QK_MAX_HEADER_BYTES ||
		h->header_length % 8 != 0)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"header_length is %" PRIu32 ": must be a multiple of 8 between %u and %u",
			h->header_length, QK_V3_HEADER_MIN_BYTES, QK_MAX_HEADER_BYTES);
	if (r->n < qk_min(h->header_length, QK_V3_HEADER_BYTES))
		return fail_truncated(r->n, h->header_length, err);
	if (h->header_length == QK_V3_HEADER_MIN_BYTES)
		return QCOW_OK;
	h->compression_type = qk_read8(r);
	h->tail = qk_read_span(r, (size_t)qk_min(h->header_length - TAIL_AT, qk_reader_left(r)));
	return QCOW_OK;
}

enum qcow_status qk_header_decode(struct qk_span in, struct qk_header *out, struct qcow_error *err)
{
	*out = (struct qk_header){.refcount_order = 4, .header_length = QK_V2_HEADER_BYTES};
	struct qk_reader r = qk_reader_init(in.p, in.n);
	if (qk_read32(&r) != QK_MAGIC)
		return QK_FAIL(err, QCOW_E_NOT_QCOW2,
			"the file does not begin with the qcow2 magic \"QFI\\xfb\"");
	out->version = qk_read32(&r);
	if (r.bad)
		return fail_truncated(in.n, QK_V2_HEADER_BYTES, err);
	if (out->version != 2 && out->version != 3)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "version is %" PRIu32 ": must be 2 or 3",
			out->version);
	read_common(&r, out);
	if (r.bad)
		return fail_truncated(in.n, QK_V2_HEADER_BYTES, err);
	return out->version == 2 ? QCOW_OK : read_version3(&r, out, err);
}

enum qcow_status qk_header_cluster_size(
	const struct qk_header *h, uint64_t *cluster_size, struct qcow_error *err)
{
	if (h->cluster_bits < QK_MIN_CLUSTER_BITS || h->cluster_bits > QK_MAX_CLUSTER_BITS)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"cluster_bits is %" PRIu32 ": must be between %u and %u", h->cluster_bits,
			QK_MIN_CLUSTER_BITS, QK_MAX_CLUSTER_BITS);
	*cluster_size = UINT64_C(1) << h->cluster_bits;
	return QCOW_OK;
}

enum qcow_status qk_header_area_decode(struct qk_span cluster0, struct qk_header *h,
	struct qk_extensions *ext, struct qcow_error *err)
{
	QK_TRY(qk_header_decode(cluster0, h, err));
	enum qcow_status status = qk_extensions_decode(cluster0, h, ext, err);
	if (status == QCOW_OK)
		return qk_header_validate(h, ext, err);
	/* An unknown feature explains an unreadable extension area better than its first bad
	 * byte. */
	if ((h->incompatible & ~qk_feature_known_mask(QK_FEATURE_INCOMPATIBLE)) != 0)
		return qk_header_validate(h, NULL, err);
	return status;
}

void qk_header_geometry(const struct qk_header *h, struct qk_geometry *g)
{
	qk_geometry_init(g, h->version, h->cluster_bits, h->refcount_order,
		(h->incompatible & QK_INCOMPAT_EXTENDED_L2) != 0);
	g->data_file = (h->incompatible & QK_INCOMPAT_DATA_FILE) != 0;
}

static void write_version3(const struct qk_header *h, struct qk_writer *w)
{
	qk_write64(w, h->incompatible);
	qk_write64(w, h->compatible);
	qk_write64(w, h->autoclear);
	qk_write32(w, h->refcount_order);
	qk_write32(w, h->header_length);
	if (h->header_length == QK_V3_HEADER_MIN_BYTES)
		return;
	size_t room = h->header_length - TAIL_AT;
	size_t known = (size_t)qk_min(room, h->tail.n);
	qk_write8(w, h->compression_type);
	qk_write_bytes(w, h->tail.p, known);
	qk_write_zeros(w, room - known);
}

enum qcow_status qk_header_encode(
	const struct qk_header *h, struct qk_writer *w, struct qcow_error *err)
{
	(void)err;
	QK_ASSERT(F1, h->version == 2 || h->header_length >= QK_V3_HEADER_MIN_BYTES);
	qk_write32(w, QK_MAGIC);
	qk_write32(w, h->version);
	qk_write64(w, h->backing_off);
	qk_write32(w, h->backing_len);
	qk_write32(w, h->cluster_bits);
	qk_write64(w, h->size);
	qk_write32(w, h->crypt_method);
	qk_write32(w, h->l1_entries);
	qk_write64(w, h->l1_off);
	qk_write64(w, h->rt_off);
	qk_write32(w, h->rt_clusters);
	qk_write32(w, h->n_snapshots);
	qk_write64(w, h->snapshots_off);
	if (h->version >= 3)
		write_version3(h, w);
	QK_ASSERT(F7, !w->bad);
	return QCOW_OK;
}
