/* SPDX-License-Identifier: MIT */
/*
 * A whole image: opened, listed, mapped and read. Input: the file. Oracle: no invariant of ours breaks, a
 * failure says why, the map covers the disk, and what it calls zeros reads as zeros.
 */
#include "whole.h"

#define MAX_EXTENTS 300 /* an input is not worth more */
#define MAX_ENTRIES 50U

/* Whatever the image names is a short raw disk. */
static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	(void)ctx;
	FUZZ_CHECK(ref->name[0] != '\0' && ref->depth == 0);
	out->format = "raw";
	return qcow_memory_open(4096 + 512, &out->store, err);
}

static struct qcow_image *open_input(struct fuzz_input *input)
{
	struct qcow_store *store = fuzz_store_open(input);
	size_t n = input->n;
	struct qcow_image *image = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.resolve = resolve;
	if (n % 3 != 0)
		o.flags |= QCOW_OPEN_NO_BACKING | QCOW_OPEN_NO_DATA_FILE;
	if (n % 2 != 0)
		o.flags |= QCOW_OPEN_CHECK;
	if (n % 5 == 0)
		o.snapshot = "1";
	o.cache_bytes = 1; /* the smallest cache evicts most */
	fuzz_bounds_begin();
	enum qcow_status status = qcow_open(store, &o, &image, &err);
	fuzz_bounds_end("open", 8 * FUZZ_MIB);
	FUZZ_CHECK(input->bytes_read <= 4 * FUZZ_MIB + 2 * n);
	FUZZ_CHECK(status == err.status && status != QCOW_E_BUG);
	FUZZ_CHECK(status == QCOW_OK || (image == NULL && err.message[0] != '\0'));
	return image;
}

static void list(const struct qcow_image *image)
{
	struct qcow_info info;
	struct qcow_snapshot snapshot;
	struct qcow_bitmap bitmap;
	struct qcow_extension extension;
	qcow_get_info(image, &info);
	for (uint32_t i = 0; i < info.n_snapshots && i < MAX_ENTRIES; i++)
		if (qcow_get_snapshot(image, i, &snapshot, NULL) == QCOW_OK)
			FUZZ_CHECK(strlen(snapshot.id) <= snapshot.id_bytes &&
				   strlen(snapshot.name) <= snapshot.name_bytes);
	for (uint32_t i = 0; i < info.n_bitmaps && i < MAX_ENTRIES; i++)
		FUZZ_CHECK(qcow_get_bitmap(image, i, &bitmap, NULL) != QCOW_E_BUG);
	for (uint32_t i = 0; i < qcow_extension_count(image); i++)
		FUZZ_CHECK(qcow_get_extension(image, i, &extension, NULL) == QCOW_OK);
}

static void read_extent(struct qcow_image *image, const struct qcow_extent *e)
{
	static uint8_t buf[1 << 16];
	size_t len = (size_t)qk_min(e->len, sizeof(buf));
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = qcow_pread(image, buf, len, e->off, &err);
	FUZZ_CHECK(status != QCOW_E_BUG && status != QCOW_E_RANGE);
	FUZZ_CHECK(status == QCOW_OK || err.message[0] != '\0');
	if (status == QCOW_OK && (e->flags & QCOW_EXTENT_ZERO) != 0)
		FUZZ_CHECK(qk_is_zero(buf, len));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct fuzz_input input = {.data = data, .n = n};
	struct qcow_image *image = open_input(&input);
	if (image == NULL)
		return 0;
	fuzz_bounds_begin();
	list(image);
	fuzz_bounds_end("list", 8 * FUZZ_MIB);
	fuzz_bounds_begin();
	struct qcow_info info;
	qcow_get_info(image, &info);
	uint64_t step = info.cluster_size != 0 ? info.cluster_size : 512;
	uint64_t size = qcow_size(image), off = 0;
	for (int i = 0; off < size && i < MAX_EXTENTS; i++) {
		struct qcow_extent e;
		struct qcow_error err = QCOW_ERROR_INIT;
		enum qcow_status status = qcow_map(image, off, size - off, UINT32_MAX, &e, &err);
		if (status != QCOW_OK) {
			FUZZ_CHECK(status == QCOW_E_CORRUPT && err.finding != 0);
			off += step - off % step;
			continue;
		}
		FUZZ_CHECK(e.off == off && e.len != 0 && e.len <= size - off);
		read_extent(image, &e);
		off += e.len;
	}
	fuzz_bounds_end("map and read", 32 * FUZZ_MIB);
	qcow_close(image);
	return 0;
}
