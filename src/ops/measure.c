/* SPDX-License-Identifier: MIT */
/*
 * measure: how large the file of a new image would be. Arithmetic over the options and one pass over the
 * map of the source; no data is read and nothing is kept for each extent.
 *
 * The figures are upper bounds in qemu-img's sense, to the byte: metadata is counted for a disk that is
 * full, for what is written later needs it too.
 */
#include <qcowkit/ops.h>

#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/num.h"
#include "base/options.h"

#define SECTOR_BYTES	     512U /* LUKS files hold whole ones */
#define BITMAP_ENTRY_BYTES   24U /* of the bitmap directory, before the name */
#define MAX_GRANULARITY_BITS 31U /* of a bitmap that is not broken */

/* Refcount blocks and table for n clusters, which they count in, until nothing changes: each round adds
 * clusters, and a block counts at least 64 of them, so it ends. */
static uint64_t count_refcounts(uint64_t n, const struct qcow_create_options *o)
{
	uint64_t per_block = o->cluster_size * 8 / o->refcount_bits;
	uint64_t total = 0;
	uint64_t before = 0;

	do {
		before = total;
		uint64_t blocks = qk_div_up(n + before, per_block);
		total = blocks + qk_div_up(blocks * 8, o->cluster_size);
	} while (total != before);
	return total;
}

/* Clusters of metadata for a full disk of n_data clusters. The sizes were validated: at most 2^63 / 512
 * clusters, so no sum here reaches 2^60. */
static uint64_t count_metadata(uint64_t n_data, const struct qcow_create_options *o)
{
	uint64_t per_table = o->cluster_size / (o->extended_l2 ? 16 : 8);
	uint64_t n_l2 = qk_div_up(n_data, per_table);
	uint64_t n_l1 = qk_div_up(n_l2 * 8, o->cluster_size);
	uint64_t n = 1 + n_l1 + n_l2;

	return n + count_refcounts(n + n_data, o);
}

/*
 * Are the holes of a qcow2 layer's file to be taken for zeros? As in qemu-img, only where most of it is
 * holes, as preallocation leaves it: elsewhere holes are an accident of the last copy, and a figure that
 * follows them would change with the next.
 */
static bool has_preallocated_holes(struct qcow_image *layer)
{
	struct qcow_info info;
	struct stat st;
	int fd = qcow_store_fd(qcow_image_store(layer));

	qcow_get_info(layer, &info);
	if (info.cluster_size == 0 || fd < 0 || fstat(fd, &st) != 0 || st.st_size < 0 ||
		st.st_blocks < 0)
		return false;
	uint64_t used = (uint64_t)st.st_blocks * 512 / info.cluster_size;
	return (uint64_t)st.st_size / info.cluster_size > qk_max(used / 9 * 10, used + 2);
}

static bool is_data(const struct qcow_extent *e)
{
	if ((e->flags & QCOW_EXTENT_DATA) == 0)
		return false;
	return (e->flags & QCOW_EXTENT_ZERO) == 0 || !has_preallocated_holes(e->layer);
}

/* Bytes of target clusters that hold data of the source. An extent that begins or ends inside a cluster
 * takes it whole; the next look is at the cluster after it. */
static enum qcow_status count_data(struct qcow_image *source, uint64_t size, uint64_t cluster_size,
	uint64_t *bytes, struct qcow_error *err)
{
	struct qcow_extent e;

	*bytes = 0;
	for (uint64_t off = 0; off < size;) {
		QK_TRY(qcow_map(source, off, size - off, UINT32_MAX, &e, err));
		QK_ASSERT(S1, e.len != 0 && e.len <= size - off);
		uint64_t end = off + e.len;
		if (is_data(&e)) {
			end = qk_div_up(end, cluster_size) * cluster_size;
			*bytes += end - qk_align_down(off, cluster_size);
		}
		off = end;
	}
	return QCOW_OK;
}

struct bitmap_count {
	uint64_t virtual_size, cluster_size;
	uint64_t directory, n_clusters;
};

static bool count_bitmap(void *ctx, uint32_t index, const struct qcow_bitmap *b)
{
	struct bitmap_count *c = ctx;

	(void)index;
	if (b->in_use || b->granularity_bits > MAX_GRANULARITY_BITS)
		return true;
	uint64_t bits = qk_div_up(c->virtual_size, UINT64_C(1) << b->granularity_bits);
	uint64_t n = qk_div_up(qk_div_up(bits, 8), c->cluster_size);
	c->n_clusters += n + qk_div_up(n * 8, c->cluster_size);
	c->directory += qk_div_up(BITMAP_ENTRY_BYTES + strlen(b->name), 8) * 8;
	return true;
}

/* Every bitmap full, with its table, and the directory. Those that cannot be trusted are not copied. */
static enum qcow_status count_bitmaps(struct qcow_image *source, const struct qcow_info *info,
	uint64_t cluster_size, uint64_t *bytes, struct qcow_error *err)
{
	struct bitmap_count c = {.virtual_size = info->virtual_size, .cluster_size = cluster_size};

	QK_TRY(qcow_each_bitmap(source, count_bitmap, &c, err));
	*bytes = (c.n_clusters + qk_div_up(c.directory, cluster_size)) * cluster_size;
	return QCOW_OK;
}

static enum qcow_status measure_qcow2(struct qcow_image *source,
	const struct qcow_create_options *o, struct qcow_measure_result *out,
	struct qcow_error *err)
{
	uint64_t luks = 0;

	QK_TRY(qcow_create_validate(o, err));
	if (o->encryption == QCOW_ENCRYPTION_LUKS)
		QK_TRY(qcow_luks_header_bytes(o, &luks, err));
	uint64_t n_data = qk_div_up(o->virtual_size, o->cluster_size);
	uint64_t full = n_data * o->cluster_size;
	uint64_t metadata = (count_metadata(n_data, o) + qk_div_up(luks, o->cluster_size)) *
			    o->cluster_size;
	uint64_t data = 0;

	if (o->preallocation >= QCOW_PREALLOC_FALLOC)
		data = full;
	else if (source != NULL && o->backing_name != NULL)
		data = full; /* what the backing file will answer is not known here */
	else if (source != NULL)
		QK_TRY(count_data(source, o->virtual_size, o->cluster_size, &data, err));
	out->required = metadata + data;
	out->fully_allocated = metadata + full;
	if (source == NULL)
		return QCOW_OK;

	struct qcow_info info;
	qcow_get_info(source, &info);
	out->has_bitmaps = o->version >= 3 && info.version >= 3;
	if (!out->has_bitmaps)
		return QCOW_OK;
	return count_bitmaps(source, &info, o->cluster_size, &out->bitmaps, err);
}

/* Header and slots, and behind them the disk, all of it: zeros are encrypted too. */
static enum qcow_status measure_luks(const struct qcow_create_options *o,
	struct qcow_measure_result *out, struct qcow_error *err)
{
	uint64_t bytes = 0;

	QK_TRY(qcow_create_validate(o, err));
	QK_TRY(qcow_luks_header_bytes(o, &bytes, err));
	uint64_t disk = qk_div_up(o->virtual_size, SECTOR_BYTES) * SECTOR_BYTES;
	out->required = bytes + (o->luks_detached_header ? 0 : disk);
	out->fully_allocated = out->required;
	return QCOW_OK;
}

QK_TAKE_OPTIONS(
	take_options, qcow_create_options, "create options", QCOW_CREATE_OPTIONS_INIT, progress)

static enum qcow_status read_options(struct qcow_image *source,
	const struct qcow_create_options *in, struct qcow_create_options *out,
	struct qcow_error *err)
{
	QK_TRY(take_options(in, out, err));
	if (source != NULL)
		out->virtual_size = qcow_size(source);
	/* how large it becomes does not depend on the passphrase */
	if (out->encryption != QCOW_ENCRYPTION_NONE && out->secret.data == NULL)
		out->secret.data = "";
	return QCOW_OK;
}

enum qcow_status qcow_measure(struct qcow_image *source, const char *format,
	const struct qcow_create_options *create, struct qcow_measure_result *out,
	struct qcow_error *err)
{
	struct qcow_create_options o;
	struct qcow_measure_result result = {0};

	if (format == NULL || out == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_measure: an argument is NULL");
	QK_TRY(read_options(source, create, &o, err));
	if (strcmp(format, "raw") == 0) {
		result.required = o.virtual_size;
		result.fully_allocated = o.virtual_size;
	} else if (strcmp(format, "luks") == 0) {
		o.format = format;
		o.secret.data = "";
		QK_TRY(measure_luks(&o, &result, err));
	} else if (strcmp(format, "qcow2") == 0) {
		QK_TRY(measure_qcow2(source, &o, &result, err));
	} else {
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"format '%s' cannot be measured: qcow2, raw and luks can", format);
	}
	*out = result;
	return QCOW_OK;
}
