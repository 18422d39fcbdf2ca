/* SPDX-License-Identifier: MIT */
/*
 * Partition tables: the input is the disk. Every read and every partition lies within it, and the reads are bounded.
 */
#include "fuzz.h"

#include "serve/view/parts.h"

struct disk {
	const uint8_t *data;
	size_t size, n_reads;
};

static enum qcow_status read_disk(
	void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	struct disk *d = ctx;
	(void)err;
	FUZZ_CHECK(off <= d->size && len <= d->size - off);
	memcpy(buf, d->data + off, len);
	d->n_reads++;
	return QCOW_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct disk d = {data, size, 0};
	static struct qk_parts parts;
	FUZZ_CHECK(qk_parts_find(read_disk, &d, size, &parts, NULL) == QCOW_OK);
	FUZZ_CHECK(parts.n <= QK_PARTS_MAX && d.n_reads <= 2 * QK_PARTS_MAX + 8);
	for (unsigned i = 0; i < parts.n; i++) {
		const struct qk_part *p = &parts.part[i];
		FUZZ_CHECK(p->number > 0 && p->size > 0);
		FUZZ_CHECK(p->off <= size && p->size <= size - p->off);
	}
	return 0;
}
