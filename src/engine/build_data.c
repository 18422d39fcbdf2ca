/* SPDX-License-Identifier: MIT */
/*
 * build_data: what the clusters of a new disk hold, in guest order: plain data that the caller writes,
 * compressed data, zeros, and what preallocation puts where the caller mentions nothing.
 *
 * Invariants:
 *   G1  `cursor` never goes back; below it every guest cluster is decided
 *   G2  a host byte that nobody wrote reads as zeros
 * Specification: "Cluster mapping", "Extended L2 Entries", "Compressed Clusters Descriptor".
 */
#include "engine/build.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "format/l1l2.h"

#define GATHER_BYTES	  (2U << 20)
#define ZERO_BUFFER_BYTES (1U << 20)
#define ALL_ALLOCATED	  UINT64_C(0x00000000ffffffff)
#define ALL_ZERO	  UINT64_C(0xffffffff00000000)
#define SLICE_BYTES	  4096U

static enum qcow_status check_range(
	struct qcow_builder *b, qk_goff off, uint64_t len, struct qcow_error *err)
{
	uint64_t mask = b->g.cluster_size - 1;

	if (len == 0 || !qk_in_range(off.v, len, b->size))
		return QK_FAIL(err, QCOW_E_RANGE,
			"%" PRIu64 " bytes at %" PRIu64 " do not lie in a disk of %" PRIu64, len,
			off.v, b->size);
	if ((off.v & mask) != 0 || ((len & mask) != 0 && off.v + len != b->size))
		return QK_FAIL(err, QCOW_E_INVAL,
			"%" PRIu64 " bytes at %" PRIu64 " are not whole clusters of %" PRIu64, len,
			off.v, b->g.cluster_size);
	if (off.v < b->cursor)
		return QK_FAIL(err, QCOW_E_INVAL,
			"%" PRIu64 " bytes at %" PRIu64 " come after the clusters up to %" PRIu64,
			len, off.v, b->cursor);
	return QCOW_OK;
}

static uint64_t clusters_of(const struct qcow_builder *b, uint64_t len)
{
	return qk_div_up(len, b->g.cluster_size);
}

/* Host clusters for n guest clusters of the open L2 table. In a data file they lie where the guest has them. */
static enum qcow_status take_host(
	struct qcow_builder *b, qk_goff off, uint64_t n, qk_hoff *out, struct qcow_error *err)
{
	if (b->g.data_file) {
		out->v = off.v;
		return QCOW_OK;
	}
	return qk_build_refs_take(&b->refs, n, out, err);
}

static enum qcow_status map_host(
	struct qcow_builder *b, qk_goff off, uint64_t n, qk_hoff host, uint64_t bitmap)
{
	struct qk_build_entries e = {
		off, n, host.v | QK_FLAG_COPIED, b->g.cluster_size, b->g.extended_l2 ? bitmap : 0};

	return qk_build_map_set(&b->map, &e);
}

/* ---- zeros on the host ---- */

static enum qcow_status write_zeros(
	struct qcow_store *store, uint64_t off, uint64_t len, struct qcow_error *err)
{
	QK_AUTO_FREE uint8_t *zeros = qk_calloc(1, ZERO_BUFFER_BYTES);

	if (zeros == NULL)
		return QK_FAIL_NOMEM(err);
	while (len != 0) {
		uint64_t n = qk_min(len, ZERO_BUFFER_BYTES);
		QK_TRY(qcow_store_write(store, zeros, n, off, err));
		off += n;
		len -= n;
	}
	return QCOW_OK;
}

/* Zeros in the (data) store for n clusters at host, as the preallocation mode wants them. */
static enum qcow_status zero_host(
	struct qcow_builder *b, qk_hoff host, uint64_t n, struct qcow_error *err)
{
	bool zeroed = b->g.data_file ? b->data_zeroed : b->zeroed;
	struct qcow_store *store = b->g.data_file ? b->data_store : b->store;
	uint64_t len = n << b->g.cluster_bits;

	if (b->options.keep_data_file)
		return QCOW_OK;
	if (b->g.data_file)
		len = qk_min(len, b->size - host.v);
	if (b->options.preallocation == QCOW_PREALLOC_FULL)
		return write_zeros(store, host.v, len, err);
	if (b->options.preallocation == QCOW_PREALLOC_FALLOC)
		return qcow_store_zero(store, host.v, len, QCOW_ZERO_ALLOCATE, err);
	return zeroed ? QCOW_OK : qcow_store_zero(store, host.v, len, 0, err);
}

/* ---- what nobody mentions ---- */

static bool fills_gaps(const struct qcow_builder *b)
{
	return b->options.preallocation != QCOW_PREALLOC_OFF || b->options.data_file_raw;
}

static enum qcow_status report_progress(struct qcow_builder *b, struct qcow_error *err)
{
	const struct qcow_progress *p = &b->options.progress;

	if (p->cancelled != NULL && p->cancelled(p->ctx))
		return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
	if (p->report != NULL)
		p->report(p->ctx, b->cursor, b->size);
	return QCOW_OK;
}

/* The file need not hold the subclusters of the last cluster that lie past the end of the disk. */
static void trim_end(struct qcow_builder *b, qk_goff off, uint64_t n, qk_hoff host)
{
	uint64_t sub = b->g.subcluster_size;
	uint64_t run = n << b->g.cluster_bits;

	if (b->g.data_file || b->refs.end_off != host.v + run || b->size - off.v >= run)
		return;
	b->refs.end_off = host.v + qk_div_up(b->size - off.v, sub) * sub;
}

/* Entries for a gap. Zeros on the host are no zeros once they are decrypted: there the entries say that they
 * are, as far as they can (zero_gap). Extended ones stay unallocated: a backing file shows, and zeros where
 * there is none. */
static enum qcow_status map_gap(struct qcow_builder *b, qk_goff off, uint64_t n, qk_hoff host)
{
	if (b->crypt == NULL || b->g.extended_l2)
		return map_host(
			b, off, n, host, b->g.data_file && b->crypt == NULL ? ALL_ALLOCATED : 0);
	uint64_t zero = b->g.version >= 3 ? QK_FLAG_ZERO : 0;
	struct qk_build_entries e = {off, n, host.v | QK_FLAG_COPIED | zero, b->g.cluster_size, 0};
	return qk_build_map_set(&b->map, &e);
}

/* Zeros for clusters at `host` that version 2 can only store. */
static enum qcow_status zero_gap(
	struct qcow_builder *b, qk_goff off, qk_hoff host, uint64_t n, struct qcow_error *err)
{
	if (b->crypt != NULL && b->g.version < 3)
		return qk_build_crypt_zeros(b, off, host, n << b->g.cluster_bits, err);
	return zero_host(b, host, n, err);
}

/* Preallocation, and raw data files, map every cluster. Runs end with qemu-img's L2 slices of 4 KiB, so
 * that the refcount blocks fall where it puts them. */
static enum qcow_status fill_gap(struct qcow_builder *b, uint64_t end, struct qcow_error *err)
{
	uint64_t slice = qk_min(SLICE_BYTES / b->g.l2_entry_size, b->g.l2_entries);

	if (!fills_gaps(b))
		return QCOW_OK;
	while (b->cursor < end) {
		qk_goff off = {b->cursor};
		qk_hoff host = {0};
		uint64_t left = 0;

		QK_TRY(qk_build_map_open(&b->map, off, &left, err));
		uint64_t n = (left - 1) % slice + 1;
		n = qk_min(n, clusters_of(b, end - off.v));
		QK_TRY(take_host(b, off, n, &host, err));
		QK_TRY(map_gap(b, off, n, host));
		trim_end(b, off, n, host);
		QK_TRY(zero_gap(b, off, host, n, err));
		b->cursor = qk_min(off.v + (n << b->g.cluster_bits), b->size);
		QK_TRY(report_progress(b, err));
	}
	return QCOW_OK;
}

/* ---- plain data ---- */

/* The caller fills up to the end of the disk, a cluster on the host is whole. */
static enum qcow_status zero_tail(struct qcow_builder *b, qk_hoff host, uint64_t run_bytes,
	uint64_t n, struct qcow_error *err)
{
	uint64_t rest = (n << b->g.cluster_bits) - run_bytes;

	if (b->crypt != NULL)
		return QCOW_OK; /* the last sector is filled up when it is written, the rest is past the end */
	if (rest == 0 || b->zeroed || b->g.data_file)
		return QCOW_OK;
	return write_zeros(b->store, host.v + run_bytes, rest, err);
}

enum qcow_status qk_build_data_reserve(struct qcow_builder *b, qk_goff off, uint64_t len,
	qk_hoff *host_off, uint64_t *run_bytes, struct qcow_error *err)
{
	uint64_t left = 0;
	qk_hoff host = {0};

	if (b->is_luks)
		return qk_build_luks_reserve(b, off, len, host_off, run_bytes, err);
	QK_TRY(check_range(b, off, len, err));
	QK_TRY(fill_gap(b, off.v, err));
	QK_TRY(qk_build_map_open(&b->map, off, &left, err));
	uint64_t n = qk_min(left, clusters_of(b, len));
	uint64_t run = qk_min(n << b->g.cluster_bits, len);
	QK_TRY(take_host(b, off, n, &host, err));
	QK_TRY(map_host(b, off, n, host, ALL_ALLOCATED));
	QK_TRY(zero_tail(b, host, run, n, err));
	b->cursor = off.v + run;
	*host_off = host;
	*run_bytes = run;
	return QCOW_OK;
}

/* ---- compressed data ---- */

static enum qcow_status write_gathered(struct qcow_builder *b, struct qcow_error *err)
{
	if (b->gather_len == 0)
		return QCOW_OK;
	QK_TRY(qcow_store_write(b->store, b->gather, b->gather_len, b->gather_off, err));
	b->gather_len = 0;
	return QCOW_OK;
}

static enum qcow_status gather(
	struct qcow_builder *b, uint64_t off, struct qk_span data, struct qcow_error *err)
{
	if (b->gather == NULL)
		b->gather = qk_malloc(1, GATHER_BYTES);
	if (b->gather == NULL)
		return QK_FAIL_NOMEM(err);
	if (b->gather_off + b->gather_len != off || data.n > GATHER_BYTES - b->gather_len) {
		QK_TRY(write_gathered(b, err));
		b->gather_off = off;
	}
	memcpy(b->gather + b->gather_len, data.p, data.n);
	b->gather_len += data.n;
	return QCOW_OK;
}

/*
 * The host byte for an extent of `len` bytes: right behind the last one where its cluster has room and can
 * count one more reference, else the start of a fresh cluster.
 *
 *   | extent | exte|nt | extent |      |
 *   ^ cluster      ^ refcount 2 ^ tail_off
 */
static enum qcow_status place_extent(
	struct qcow_builder *b, uint64_t len, uint64_t *out, struct qcow_error *err)
{
	uint64_t cs = b->g.cluster_size;
	qk_hoff tail = {qk_align_down(b->tail_off, cs)};
	uint64_t room = b->tail_off != 0 ? cs - (b->tail_off - tail.v) : 0;
	bool is_next_free = b->refs.next << b->g.cluster_bits == tail.v + cs;
	qk_hoff fresh = {0};

	bool append = room != 0 && (len <= room || is_next_free) &&
		      qk_build_refs_raise(&b->refs, tail);
	if (!append || len > room)
		QK_TRY(qk_build_refs_take(&b->refs, 1, &fresh, err));
	QK_ASSERT(G2, !append || len <= room || fresh.v == tail.v + cs);
	*out = append ? b->tail_off : fresh.v;
	uint64_t end = *out + len;
	b->tail_off = qk_is_aligned(end, cs) ? 0 : end;
	if (end > (b->refs.next - 1) << b->g.cluster_bits)
		b->refs.end_off = qk_div_up(end, QK_SECTOR) * QK_SECTOR;
	return QCOW_OK;
}

enum qcow_status qk_build_data_compressed(
	struct qcow_builder *b, qk_goff off, struct qk_span data, struct qcow_error *err)
{
	uint64_t cluster = qk_min(b->g.cluster_size, b->size - qk_min(off.v, b->size));
	uint64_t left = 0;
	qk_hoff host = {0};
	uint64_t raw = 0;

	if (b->is_luks)
		return QK_FAIL(err, QCOW_E_INVAL, "a LUKS file holds no compressed clusters");
	QK_TRY(check_range(b, off, cluster, err));
	if (b->g.data_file)
		return QK_FAIL(err, QCOW_E_INVAL,
			"an image with an external data file holds no compressed clusters");
	if (b->crypt != NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"Compression and encryption not supported at the same time");
	if (data.n == 0 || data.n >= b->g.cluster_size)
		return QK_FAIL(err, QCOW_E_INVAL,
			"%zu bytes are no compressed cluster of %" PRIu64 ": store it plainly",
			data.n, b->g.cluster_size);
	QK_TRY(fill_gap(b, off.v, err));
	QK_TRY(qk_build_map_open(&b->map, off, &left, err));
	QK_TRY(place_extent(b, data.n, &host.v, err));
	if (!qk_l2_compressed_raw(&b->g, host, data.n, &raw))
		return QK_FAIL(err, QCOW_E_LIMIT,
			"compressed data at %" PRIu64
			" is past what an entry of a cluster size of %" PRIu64 " can address",
			host.v, b->g.cluster_size);
	struct qk_build_entries e = {off, 1, raw | QK_FLAG_COMPRESSED, 0, 0};
	QK_TRY(qk_build_map_set(&b->map, &e));
	QK_TRY(gather(b, host.v, data, err));
	b->cursor = off.v + cluster;
	return QCOW_OK;
}

/* ---- zeros ---- */

/* Zeros over a backing file where an entry can say so: version 3. With preallocation (extended L2 only)
 * the clusters are there as well. */
static enum qcow_status flag_zeros(
	struct qcow_builder *b, qk_goff off, uint64_t n, struct qcow_error *err)
{
	struct qk_build_entries e = {
		off, n, b->g.extended_l2 ? 0 : QK_FLAG_ZERO, 0, b->g.extended_l2 ? ALL_ZERO : 0};
	qk_hoff host = {0};

	if (!fills_gaps(b))
		return qk_build_map_set(&b->map, &e);
	QK_TRY(take_host(b, off, n, &host, err));
	QK_TRY(map_host(b, off, n, host, ALL_ZERO));
	return zero_host(b, host, n, err);
}

/* Version 2 has no zero flag: the zeros are stored. */
static enum qcow_status store_zeros(
	struct qcow_builder *b, qk_goff off, uint64_t n, struct qcow_error *err)
{
	qk_hoff host = {0};

	QK_TRY(take_host(b, off, n, &host, err));
	QK_TRY(map_host(b, off, n, host, 0));
	return zero_gap(b, off, host, n, err);
}

enum qcow_status qk_build_data_zero(
	struct qcow_builder *b, qk_goff off, uint64_t len, struct qcow_error *err)
{
	if (b->is_luks)
		return qk_build_luks_zero(b, off, len, err);
	QK_TRY(check_range(b, off, len, err));
	/* without a backing file, what nobody mentions reads as zeros */
	if (b->backing_name == NULL)
		return QCOW_OK;
	QK_TRY(fill_gap(b, off.v, err));
	uint64_t end = off.v + len;
	while (off.v < end) {
		uint64_t left = 0;
		QK_TRY(qk_build_map_open(&b->map, off, &left, err));
		uint64_t n = qk_min(left, clusters_of(b, end - off.v));
		if (b->g.version >= 3)
			QK_TRY(flag_zeros(b, off, n, err));
		else
			QK_TRY(store_zeros(b, off, n, err));
		off.v = qk_min(off.v + (n << b->g.cluster_bits), end);
		b->cursor = off.v;
		QK_TRY(report_progress(b, err));
	}
	return QCOW_OK;
}

enum qcow_status qk_build_data_finish(struct qcow_builder *b, struct qcow_error *err)
{
	QK_TRY(fill_gap(b, b->size, err));
	return write_gathered(b, err);
}
