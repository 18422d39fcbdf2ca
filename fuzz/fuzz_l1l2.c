/* SPDX-License-Identifier: MIT */
/*
 * Entries of L1, L2 and refcount tables. Input: 3 bytes of geometry, guest offset, then pairs of
 * words. Oracle: what has no finding encodes back to the same words.
 */
#include "fuzz.h"

#include "format/l1l2.h"

static void check_l2(const struct qk_geometry *g, uint64_t raw, uint64_t bitmap, qk_goff guest)
{
	uint64_t raw2 = 0, bitmap2 = 0;
	struct qk_l2_entry e = qk_l2_decode(g, raw, g->extended_l2 ? bitmap : 0, guest);
	if (e.type == QK_L2_COMPRESSED) {
		FUZZ_CHECK(e.compressed_bytes != 0 && e.compressed_bytes <= 2 * g->cluster_size);
		FUZZ_CHECK((e.host_off.v + e.compressed_bytes) % QK_SECTOR == 0);
	}
	if (e.finding != 0)
		return;
	if (qk_l2_has_host(&e))
		FUZZ_CHECK(e.host_off.v != 0 || g->data_file);
	for (unsigned i = 0; i < g->subclusters; i++) {
		if (qk_l2_subcluster(g, &e, i) == QK_L2_NORMAL)
			FUZZ_CHECK(qk_l2_has_host(&e));
	}
	qk_l2_encode(g, &e, &raw2, &bitmap2);
	FUZZ_CHECK(raw2 == raw && (!g->extended_l2 || bitmap2 == bitmap));
}

static void check_compressed(const struct qk_geometry *g, uint64_t off, uint64_t any)
{
	uint64_t raw = 0, len = 1 + any % g->cluster_size;
	if (!qk_l2_compressed_raw(g, (qk_hoff){off}, len, &raw)) {
		FUZZ_CHECK(off > g->coffset_mask);
		return;
	}
	struct qk_geometry plain = *g;
	plain.data_file = false;
	struct qk_l2_entry e = qk_l2_decode(&plain, raw | QK_FLAG_COMPRESSED, 0, (qk_goff){0});
	FUZZ_CHECK(e.type == QK_L2_COMPRESSED && e.finding == 0 && e.host_off.v == off);
	FUZZ_CHECK(e.compressed_bytes >= len && e.compressed_bytes < len + QK_SECTOR);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct qk_reader r = qk_reader_init(data, n);
	struct qk_geometry g = fuzz_geometry(&r);
	qk_goff guest = {qk_read64(&r)};
	struct qk_guest_pos pos = qk_guest_pos(&g, guest);
	FUZZ_CHECK(pos.l2_index < g.l2_entries && pos.in_cluster < g.cluster_size);
	FUZZ_CHECK(pos.l1_index * g.l2_span + (uint64_t)pos.l2_index * g.cluster_size +
			   pos.in_cluster ==
		   guest.v);
	while (qk_reader_left(&r) >= 16) {
		uint64_t raw = qk_read64(&r), second = qk_read64(&r);
		struct qk_l1_entry l1 = qk_l1_decode(&g, raw);
		FUZZ_CHECK(l1.finding != 0 || qk_l1_encode(l1.l2_off, l1.copied) == raw);
		struct qk_rt_entry rt = qk_rt_decode(&g, raw);
		FUZZ_CHECK(rt.finding != 0 || rt.block_off.v == raw);
		check_l2(&g, raw, second, guest);
		check_compressed(&g, raw, second);
	}
	return 0;
}
