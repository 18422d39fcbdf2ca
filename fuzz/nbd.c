/* SPDX-License-Identifier: MIT */
#include "nbd.h"

uint8_t fuzz_disk[FUZZ_DISK_BYTES];

static void check_range(uint64_t off, uint64_t len)
{
	FUZZ_CHECK(len != 0 && off < FUZZ_DISK_BYTES && len <= FUZZ_DISK_BYTES - off);
}

static enum qcow_status disk_pread(
	void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	(void)ctx, (void)err;
	check_range(off, len);
	memcpy(buf, fuzz_disk + off, len);
	return QCOW_OK;
}

static enum qcow_status disk_pwrite(void *ctx, const void *buf, size_t len, uint64_t off,
	unsigned flags, struct qcow_error *err)
{
	(void)ctx, (void)err;
	FUZZ_CHECK((flags & ~(unsigned)QCOW_IO_FUA) == 0);
	check_range(off, len);
	memcpy(fuzz_disk + off, buf, len);
	return QCOW_OK;
}

static enum qcow_status disk_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	(void)ctx, (void)err;
	check_range(off, len);
	if ((flags & QCOW_IO_FAST) != 0 && len % 2 != 0)
		return QCOW_E_NOTSUP;
	memset(fuzz_disk + off, 0, len);
	return QCOW_OK;
}

static enum qcow_status disk_trim(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	(void)ctx, (void)flags, (void)err;
	check_range(off, len);
	return QCOW_OK;
}

static enum qcow_status disk_flush(void *ctx, struct qcow_error *err)
{
	(void)ctx, (void)err;
	return QCOW_OK;
}

static enum qcow_status disk_cache(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	(void)ctx, (void)err;
	check_range(off, len);
	return QCOW_OK;
}

/* Extents of odd lengths. */
static enum qcow_status disk_map(void *ctx, uint64_t off, uint64_t len, uint32_t max_depth,
	struct qcow_extent *out, struct qcow_error *err)
{
	(void)ctx, (void)max_depth, (void)err;
	check_range(off, len);
	uint64_t rest = 1000 - off % 1000;
	*out = (struct qcow_extent){.off = off,
		.len = rest < len ? rest : len,
		.depth = (uint32_t)(off / 1000 % 3),
		.flags = (uint32_t)(off / 1000 % 8)};
	return QCOW_OK;
}

static enum qcow_status disk_dirty(void *ctx, unsigned bitmap, uint64_t off, uint64_t len,
	struct qcow_bitmap_extent *out, struct qcow_error *err)
{
	(void)ctx, (void)err;
	FUZZ_CHECK(bitmap < 2);
	check_range(off, len);
	uint64_t rest = 65536 - off % 65536;
	*out = (struct qcow_bitmap_extent){off, rest < len ? rest : len, bitmap != 0};
	return QCOW_OK;
}

static const struct qk_nbd_export_ops ops = {disk_pread, disk_pread, disk_pwrite, disk_zero,
	disk_trim, disk_flush, disk_cache, disk_map, disk_dirty, NULL, NULL};

void fuzz_nbd_registry(struct qk_nbd_registry *r)
{
	static const char *const bitmaps[] = {"b0", "b1"};
	const struct qk_nbd_export disk = {.name = "disk",
		.description = "what it is",
		.size = FUZZ_DISK_BYTES,
		.has_depth = true,
		.min_block = 512,
		.bitmaps = bitmaps,
		.n_bitmaps = 2,
		.ops = &ops};
	const struct qk_nbd_export ro = {.name = "ro",
		.size = 4096,
		.read_only = true,
		.needs_tls = true,
		.max_connections = 1,
		.ops = &ops};
	FUZZ_CHECK(qk_nbd_registry_init(r, NULL) == QCOW_OK);
	FUZZ_CHECK(qk_nbd_registry_add(r, &disk, NULL) == QCOW_OK);
	FUZZ_CHECK(qk_nbd_registry_add(r, &ro, NULL) == QCOW_OK);
}

void fuzz_nbd_look_at_options(const uint8_t *p, size_t n)
{
	struct qk_reader r = qk_reader_init(p, n);
	while (qk_reader_left(&r) != 0) {
		FUZZ_CHECK(qk_read64(&r) == QK_NBD_REP_MAGIC);
		(void)qk_read32(&r);
		uint32_t type = qk_read32(&r), len = qk_read32(&r);
		FUZZ_CHECK(len <= 2 * QK_NBD_MAX_STRING + 4);
		FUZZ_CHECK(type != QK_NBD_REP_ACK || len == 0);
		qk_read_skip(&r, len);
		FUZZ_CHECK(!r.bad);
	}
}
