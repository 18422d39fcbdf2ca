/* SPDX-License-Identifier: MIT */
/* snaptab_test: snapshot table entries, built by hand and written by QEMU. */
#include "golden.h"

#include <inttypes.h>
#include <qcowkit/findings.h>

#include "format/snaptab.h"

static struct qk_geometry geometry(unsigned version)
{
	struct qk_geometry g;
	qk_geometry_init(&g, version, 16, 4, false);
	return g;
}

/* A good entry of version 3 with `extra_n` bytes of extra data. */
static struct qk_snapshot_entry entry(const uint8_t *extra, size_t extra_n)
{
	static const uint8_t BYTES[4096];
	struct qk_snapshot_entry e = {.l1_off = {0x10000}, .l1_entries = 1};
	e.extra = (struct qk_span){extra != NULL ? extra : BYTES, extra_n};
	e.id = (struct qk_span){(const uint8_t *)"1", 1};
	e.name = (struct qk_span){(const uint8_t *)"name", 4};
	return e;
}

/* Encode and decode, so that the derived fields are there. */
static struct qk_snapshot_entry again(struct qk_snapshot_entry e, uint8_t *buf, size_t n)
{
	struct qk_writer w = qk_writer_init(buf, n);
	struct qk_snapshot_entry out;
	qk_snapshot_encode(&w, &e);
	assert_false(w.bad);
	assert_int_equal(w.at, qk_snapshot_entry_bytes(e.extra.n, e.id.n, e.name.n));
	struct qk_reader r = qk_reader_init(buf, w.at);
	assert_true(qk_snapshot_decode(&r, &out));
	assert_int_equal(qk_reader_left(&r), 0);
	return out;
}

static unsigned judged(struct qk_snapshot_entry e, unsigned version)
{
	static uint8_t buf[1 << 18];
	struct qk_geometry g = geometry(version);
	struct qk_snapshot_entry out = again(e, buf, sizeof(buf));
	return qk_snapshot_judge(&g, &out);
}

/* The padding counts from the entry's start, wherever the writer stands. */
static void entries_are_padded_from_their_start(void **state)
{
	(void)state;
	uint8_t buf[256];
	struct qk_snapshot_entry e = entry(NULL, 16);
	struct qk_writer w = qk_writer_init(buf, sizeof(buf));
	w.at = 3;
	qk_snapshot_encode(&w, &e);
	assert_int_equal((w.at - 3) % 8, 0);
	struct qk_reader r = qk_reader_init(buf, w.at);
	r.at = 3;
	assert_true(qk_snapshot_decode(&r, &e));
	assert_int_equal(r.at, w.at);
}

static void entries_are_padded_to_8(void **state)
{
	(void)state;
	assert_int_equal(qk_snapshot_entry_bytes(0, 0, 0), 40);
	assert_int_equal(qk_snapshot_entry_bytes(16, 1, 4), 64);
	assert_int_equal(qk_snapshot_entry_bytes(16, 4, 4), 64);
	assert_int_equal(qk_snapshot_entry_bytes(16, 5, 4), 72);
	assert_true(qk_snapshot_entry_bytes(UINT32_MAX, UINT16_MAX, UINT16_MAX) > UINT32_MAX);
}

static void extra_fields_exist_from_their_last_byte_on(void **state)
{
	(void)state;
	uint8_t buf[256], extra[32];
	for (size_t i = 0; i < sizeof(extra); i++)
		extra[i] = (uint8_t)i;
	for (size_t n = 0; n <= sizeof(extra); n++) {
		struct qk_snapshot_entry e = again(entry(extra, n), buf, sizeof(buf));
		assert_int_equal(e.has_vm_state_size64, n >= 8);
		assert_int_equal(e.has_disk_size, n >= 16);
		assert_int_equal(e.has_icount, n >= 24);
		assert_true(!e.has_vm_state_size64 ||
			    e.vm_state_size64 == UINT64_C(0x0001020304050607));
		assert_true(!e.has_disk_size || e.disk_size == UINT64_C(0x08090a0b0c0d0e0f));
		assert_true(!e.has_icount || e.icount == UINT64_C(0x1011121314151617));
		assert_int_equal(e.extra.n, n);
		assert_memory_equal(e.extra.p, extra, n);
	}
}

static void the_64_bit_vm_state_size_wins(void **state)
{
	(void)state;
	struct qk_snapshot_entry e = {.vm_state_size32 = 7, .vm_state_size64 = 0};
	assert_int_equal(qk_snapshot_vm_state_bytes(&e), 7);
	e.has_vm_state_size64 = true;
	assert_int_equal(qk_snapshot_vm_state_bytes(&e), 0);
}

static void entries_cut_anywhere_are_refused(void **state)
{
	(void)state;
	uint8_t buf[256];
	struct qk_snapshot_entry e = entry(NULL, 16);
	struct qk_writer w = qk_writer_init(buf, sizeof(buf));
	qk_snapshot_encode(&w, &e);
	for (size_t n = 0; n < w.at; n++) {
		struct qk_reader r = qk_reader_init(buf, n);
		assert_false(qk_snapshot_decode(&r, &e));
		assert_true(r.bad);
	}
}

static void extra_data_of_4_gib_is_refused(void **state)
{
	(void)state;
	uint8_t buf[128] = {0};
	struct qk_snapshot_entry e;
	qk_store32(buf + 36, UINT32_MAX);
	struct qk_reader r = qk_reader_init(buf, sizeof(buf));
	assert_false(qk_snapshot_decode(&r, &e));
}

static void a_writer_without_room_goes_bad(void **state)
{
	(void)state;
	uint8_t buf[64];
	struct qk_snapshot_entry e = entry(NULL, 16);
	struct qk_writer w = qk_writer_init(buf, 63);
	qk_snapshot_encode(&w, &e);
	assert_true(w.bad);
}

static void each_bad_field_has_its_finding(void **state)
{
	(void)state;
	uint8_t disk[16] = {0};
	struct qk_snapshot_entry e = entry(disk, 16);
	assert_int_equal(judged(e, 3), 0);
	e.l1_off.v = 0x10200;
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_L1);
	e.l1_off.v = 0;
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_L1);
	e.l1_off.v = UINT64_C(1) << 63;
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_L1);
	e.l1_off.v = 0x10000;
	e.l1_entries = 0x400000; /* 32 MiB */
	assert_int_equal(judged(e, 3), 0);
	e.l1_entries++;
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_L1);
	e.l1_entries = UINT32_MAX;
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_L1);
}

static void disk_sizes_are_judged_with_the_l1_table(void **state)
{
	(void)state;
	uint8_t disk[16] = {0};
	struct qk_snapshot_entry e = entry(disk, 16);
	qk_store64(disk + 8, QK_MIB(512));
	assert_int_equal(judged(e, 3), 0);
	qk_store64(disk + 8, QK_MIB(512) + 1);
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_L1);
	qk_store64(disk + 8, UINT64_C(1) << 63);
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_TABLE);
	qk_store64(disk + 8, UINT64_MAX);
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_TABLE);
	qk_store64(disk + 8, 0);
	e.l1_entries = 0;
	e.l1_off.v = 0;
	assert_int_equal(judged(e, 3), 0);
}

static void extra_data_is_required_and_bounded(void **state)
{
	(void)state;
	struct qk_snapshot_entry e = entry(NULL, 0);
	assert_int_equal(judged(e, 2), 0);
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_EXTRA);
	e.extra.n = 15;
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_EXTRA);
	e.extra.n = 1024;
	assert_int_equal(judged(e, 3), 0);
	e.extra.n = 1025;
	assert_int_equal(judged(e, 3), QCOW_FINDING_SNAPSHOT_EXTRA);
	assert_int_equal(judged(e, 2), QCOW_FINDING_SNAPSHOT_EXTRA);
}

static void names_of_65535_bytes_fit(void **state)
{
	(void)state;
	static uint8_t name[65535], buf[1 << 18];
	struct qk_snapshot_entry e = entry(NULL, 16);
	memset(name, 0x1b, sizeof(name));
	e.id = e.name = (struct qk_span){name, sizeof(name)};
	struct qk_snapshot_entry out = again(e, buf, sizeof(buf));
	assert_int_equal(out.name.n, 65535);
	assert_memory_equal(out.name.p, name, sizeof(name));
	assert_int_equal(out.id.n, 65535);
}

static bool equals(struct qk_span s, const char *text)
{
	return s.n == strlen(text) && memcmp(s.p, text, s.n) == 0;
}

static void check_entry(
	const struct golden *golden, const struct qk_snapshot_entry *e, unsigned nth)
{
	char line[256], id[64], name[64];
	uint64_t vm_state = 0, sec = 0, nsec = 0, clock = 0;
	int64_t icount = 0;
	assert_non_null(golden_fact(golden, "snapshot", nth, line, sizeof(line)));
	assert_int_equal(
		sscanf(line, "%63s %63s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNd64,
			id, name, &vm_state, &sec, &nsec, &clock, &icount),
		7);
	assert_true(equals(e->id, id) && equals(e->name, name));
	assert_true(qk_snapshot_vm_state_bytes(e) == vm_state);
	assert_true(e->date_sec == sec && e->date_nsec == nsec && e->vm_clock_nsec == clock);
	assert_true(e->has_icount && (int64_t)e->icount == icount);
	assert_true(e->has_disk_size);
}

static void golden_snapshots(const struct golden *golden)
{
	struct qk_header h;
	struct qk_extensions ext;
	struct qk_geometry g;
	size_t n = 0;
	uint64_t off = 0;
	uint8_t *cluster0 = golden_header(golden, &h, &ext, &g);
	uint8_t *table = golden_section(golden, "snapshots", 0, &n, &off);
	assert_int_equal(h.n_snapshots != 0, table != NULL);
	uint8_t *copy = calloc(1, n + 1);
	struct qk_reader r = qk_reader_init(table, table != NULL ? n : 0);
	struct qk_writer w = qk_writer_init(copy, table != NULL ? n : 0);
	for (unsigned i = 0; i < h.n_snapshots; i++) {
		struct qk_snapshot_entry e;
		assert_true(qk_snapshot_decode(&r, &e));
		assert_int_equal(qk_snapshot_judge(&g, &e), 0);
		check_entry(golden, &e, i);
		qk_snapshot_encode(&w, &e);
	}
	if (table != NULL) {
		assert_int_equal(off, h.snapshots_off);
		assert_true(!w.bad && w.at == n && r.at == n);
		assert_memory_equal(table, copy, n);
	}
	free(copy);
	free(table);
	free(cluster0);
}

static void tables_of_qemu_are_understood_and_encode_back(void **state)
{
	(void)state;
	golden_each(golden_snapshots);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(entries_are_padded_from_their_start),
		cmocka_unit_test(entries_are_padded_to_8),
		cmocka_unit_test(extra_fields_exist_from_their_last_byte_on),
		cmocka_unit_test(the_64_bit_vm_state_size_wins),
		cmocka_unit_test(entries_cut_anywhere_are_refused),
		cmocka_unit_test(extra_data_of_4_gib_is_refused),
		cmocka_unit_test(a_writer_without_room_goes_bad),
		cmocka_unit_test(each_bad_field_has_its_finding),
		cmocka_unit_test(disk_sizes_are_judged_with_the_l1_table),
		cmocka_unit_test(extra_data_is_required_and_bounded),
		cmocka_unit_test(names_of_65535_bytes_fit),
		cmocka_unit_test(tables_of_qemu_are_understood_and_encode_back),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
