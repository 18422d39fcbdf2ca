/* SPDX-License-Identifier: MIT */
/*
 * source: maps several images as one disk. Holes are followed on two levels: those of the images'
 * tables, and those of the files under qcow2 clusters (preallocated images).
 *
 * The walk (qk_source_segment) keeps the answer that it is in: a raw file's data run is asked for once,
 * for finding its end may cost the file system a walk over all its pages.
 */
#include "ops/source.h"

#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "base/num.h"

/* What cannot be mapped is handed to the reader in pieces of this size. */
#define SALVAGE_STEP_BYTES QK_KIB(64)

enum qcow_status qk_source_init(struct qk_source *source, struct qcow_image *const *images,
	unsigned n_images, uint64_t size, struct qcow_error *err)
{
	*source = (struct qk_source){.images = images, .n_images = n_images};
	source->starts = qk_calloc((uint64_t)n_images + 1, sizeof(*source->starts));
	if (source->starts == NULL)
		return QK_FAIL_NOMEM(err);
	for (unsigned i = 0; i < n_images; i++)
		if (!qk_add(source->starts[i], qcow_size(images[i]), &source->starts[i + 1]) ||
			!qk_align_up(
				source->starts[i + 1], QK_SOURCE_SECTOR, &source->starts[i + 1]) ||
			source->starts[i + 1] > INT64_MAX)
			return QK_FAIL(err, QCOW_E_RANGE, "the sources together exceed 2^63 bytes");
	/* nothing comes after the last: its own end counts, to the byte */
	uint64_t end = source->starts[n_images - 1] + qcow_size(images[n_images - 1]);
	source->size = size != 0 ? size : end;
	return QCOW_OK;
}

void qk_source_release(struct qk_source *source)
{
	free(source->starts);
	source->starts = NULL;
}

/* Do two stores name one file? Stores without a descriptor are never the same. */
static bool is_same_file(struct qcow_store *a, struct qcow_store *b)
{
	struct stat sa, sb;
	int fa = qcow_store_fd(a), fb = qcow_store_fd(b);
	if (a == b)
		return true;
	return fa >= 0 && fb >= 0 && fstat(fa, &sa) == 0 && fstat(fb, &sb) == 0 &&
	       sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

/* Do two chains hold the same files in the same formats? An operand may have cut or replaced what an image
 * names; what the target records is what its readers will find. */
static bool is_same_chain(const struct qcow_image *a, const struct qcow_image *b)
{
	for (; a != NULL && b != NULL; a = qcow_backing(a), b = qcow_backing(b)) {
		struct qcow_info info_a, info_b;
		qcow_get_info(a, &info_a);
		qcow_get_info(b, &info_b);
		if (!is_same_file(qcow_image_store(a), qcow_image_store(b)) ||
			strcmp(info_a.format, info_b.format) != 0 || qcow_size(a) != qcow_size(b))
			return false;
	}
	return a == NULL && b == NULL;
}

bool qk_source_find_backing(struct qk_source *source, const struct qcow_image *backing)
{
	/* A layer is visible no further than the shortest one between it and the top. */
	uint64_t limit = UINT64_MAX;
	unsigned depth = 0;
	for (struct qcow_image *layer = source->n_images > 0 ? source->images[0] : NULL;
		layer != NULL; layer = qcow_backing(layer), depth++) {
		limit = qk_min(limit, qcow_size(layer));
		if (depth > 0 && is_same_chain(layer, backing)) {
			source->backing_depth = depth;
			source->backing_limit = limit;
			return true;
		}
	}
	return false;
}

unsigned qk_source_find(const struct qk_source *source, uint64_t off)
{
	unsigned i = 0;
	while (i < source->n_images && off >= source->starts[i + 1])
		i++;
	return i;
}

enum qcow_status qk_source_read(const struct qk_source *source, void *buf, uint64_t len,
	uint64_t off, struct qcow_error *err)
{
	uint8_t *p = buf;
	for (unsigned i = qk_source_find(source, off); len > 0; i++) {
		if (i >= source->n_images) {
			memset(p, 0, len);
			return QCOW_OK;
		}
		uint64_t n = qk_min(len, source->starts[i + 1] - off);
		uint64_t at = off - source->starts[i], size = qcow_size(source->images[i]);
		if (n == 0)
			continue;
		/* of a last sector that the image does not fill, the rest is zeros */
		uint64_t held = at < size ? qk_min(n, size - at) : 0;
		QK_TRY(qcow_pread(source->images[i], p, held, at, err));
		memset(p + held, 0, n - held);
		p += n;
		off += n;
		len -= n;
	}
	return QCOW_OK;
}

/* What is remembered of a layer; a chain deeper than the table shares places. */
static struct qk_source_layer *find_layer(
	struct qk_source *source, struct qcow_image *image, uint32_t depth)
{
	struct qk_source_layer *layer = &source->layers[depth % QK_SOURCE_LAYERS];
	if (layer->image == image)
		return layer;
	*layer = (struct qk_source_layer){.image = image};
	struct qcow_info info;
	struct stat st;
	qcow_get_info(image, &info);
	struct qcow_store *data = qcow_image_data_store(image);
	layer->store = data != NULL ? data : qcow_image_store(image);
	int fd = qcow_store_fd(layer->store);
	bool is_raw = strcmp(info.format, "raw") == 0; /* there the map follows holes itself */
	if (!is_raw && fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
		layer->size = (uint64_t)st.st_size;
		layer->may_have_holes = (uint64_t)st.st_blocks * 512 < layer->size;
	}
	return layer;
}

/* Cut a plain segment where the file below changes between data and hole. */
static void follow_host_holes(struct qk_source_layer *layer, struct qk_segment *segment)
{
	if (!layer->may_have_holes || segment->host_off >= layer->size)
		return;
	if (segment->host_off - layer->known_off >= layer->known_len) {
		struct qcow_store_extent extent;
		if (qcow_store_extents(layer->store, segment->host_off,
			    layer->size - segment->host_off, &extent, NULL) != QCOW_OK) {
			layer->may_have_holes = false;
			return;
		}
		layer->known_off = segment->host_off;
		layer->known_len = extent.len;
		layer->known_hole = extent.is_hole;
	}
	segment->len = qk_min(
		segment->len, layer->known_off + layer->known_len - segment->host_off);
	if (layer->known_hole) {
		segment->kind = QK_SEGMENT_ZERO;
		segment->store = NULL;
	}
}

/* Turn the answer of a map into a segment; `start` is where the image begins in the disk. */
static struct qk_segment judge(struct qk_source *source, const struct qcow_extent *extent,
	uint64_t start, bool has_backing)
{
	struct qk_segment segment = {
		.off = start + extent->off, .len = extent->len, .kind = QK_SEGMENT_ZERO};
	if (has_backing && (extent->flags & QCOW_EXTENT_PRESENT) == 0) {
		if (segment.off >= source->backing_limit)
			return segment;
		segment.len = qk_min(segment.len, source->backing_limit - segment.off);
		segment.kind = QK_SEGMENT_BACKING;
		return segment;
	}
	bool is_zero = (extent->flags & QCOW_EXTENT_ZERO) != 0;
	if (is_zero || (extent->flags & QCOW_EXTENT_DATA) == 0)
		return segment;
	segment.kind = QK_SEGMENT_DATA;
	if ((extent->flags & QCOW_EXTENT_OFFSET) != 0) {
		struct qk_source_layer *layer = find_layer(source, extent->layer, extent->depth);
		segment.store = layer->store;
		segment.host_off = extent->host_off;
		follow_host_holes(layer, &segment);
	}
	return segment;
}

static enum qcow_status map_segment(
	struct qk_source *source, uint64_t off, struct qk_segment *out, struct qcow_error *err)
{
	unsigned i = qk_source_find(source, off);
	if (i >= source->n_images) {
		*out = (struct qk_segment){
			.off = off, .len = source->size - off, .kind = QK_SEGMENT_ZERO};
		return QCOW_OK;
	}
	uint64_t end = qk_min(source->starts[i + 1], source->size);
	uint64_t held = qk_min(source->starts[i] + qcow_size(source->images[i]), source->size);
	if (off >= held) {
		*out = (struct qk_segment){.off = off, .len = end - off, .kind = QK_SEGMENT_ZERO};
		return QCOW_OK;
	}
	end = held;
	bool has_backing = i == 0 && source->backing_depth != 0;
	uint32_t depth = has_backing ? source->backing_depth - 1 : UINT32_MAX;
	struct qcow_extent extent;
	enum qcow_status status = qcow_map(
		source->images[i], off - source->starts[i], end - off, depth, &extent, err);
	if (status == QCOW_OK) {
		QK_ASSERT(S1, extent.len > 0 && extent.len <= end - off);
		*out = judge(source, &extent, source->starts[i], has_backing);
		return QCOW_OK;
	}
	if (!source->salvage || status == QCOW_E_NOMEM)
		return status;
	uint64_t step = SALVAGE_STEP_BYTES - off % SALVAGE_STEP_BYTES;
	*out = (struct qk_segment){
		.off = off, .len = qk_min(end - off, step), .kind = QK_SEGMENT_DATA};
	return QCOW_OK;
}

enum qcow_status qk_source_segment(
	struct qk_source *source, uint64_t off, struct qk_segment *out, struct qcow_error *err)
{
	QK_ASSERT(S2, off < source->size);
	struct qk_segment *ahead = &source->ahead;
	if (ahead->len == 0 || off < ahead->off || off - ahead->off >= ahead->len)
		QK_TRY(map_segment(source, off, ahead, err));
	uint64_t skip = off - ahead->off;
	*out = *ahead;
	out->off = off;
	out->len -= skip;
	out->host_off += skip;
	return QCOW_OK;
}
