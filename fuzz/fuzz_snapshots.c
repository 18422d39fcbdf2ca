/* SPDX-License-Identifier: MIT */
/*
 * The snapshot table. Input: 3 bytes of geometry, then entries. Oracle: an entry encodes back to
 * the same bytes, its padding aside; a judged one has an L1 table within the limits.
 */
#include "fuzz.h"

#include "format/snaptab.h"

static void check_encode(const struct qk_snapshot_entry *e, const uint8_t *stored)
{
	static uint8_t out[1 << 20];
	size_t used = QK_SNAPSHOT_FIXED_BYTES + e->extra.n + e->id.n + e->name.n;
	struct qk_writer w = qk_writer_init(out, sizeof(out));
	qk_snapshot_encode(&w, e);
	FUZZ_CHECK(!w.bad && w.at == qk_snapshot_entry_bytes(e->extra.n, e->id.n, e->name.n));
	FUZZ_CHECK(memcmp(out, stored, used) == 0);
	while (used < w.at)
		FUZZ_CHECK(out[used++] == 0);
	FUZZ_CHECK(used % 8 == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct qk_reader geometry = qk_reader_init(data, n);
	struct qk_geometry g = fuzz_geometry(&geometry);
	struct qk_reader r = qk_reader_init(data + geometry.at, n - geometry.at);
	struct qk_snapshot_entry e;
	for (;;) {
		size_t at = r.at;
		if (!qk_snapshot_decode(&r, &e))
			break;
		check_encode(&e, r.p + at);
		(void)qk_snapshot_vm_state_bytes(&e);
		if (qk_snapshot_judge(&g, &e) != 0)
			continue;
		FUZZ_CHECK((uint64_t)e.l1_entries * 8 <= QK_MAX_L1_BYTES);
		FUZZ_CHECK(!e.has_disk_size || e.disk_size <= e.l1_entries * g.l2_span);
		FUZZ_CHECK(e.l1_off.v % g.cluster_size == 0);
	}
	FUZZ_CHECK(r.bad);
	return 0;
}
