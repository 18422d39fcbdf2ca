/* SPDX-License-Identifier: MIT */
#include "snapshot_lab.h"

#include <stdio.h>

static void open_again(struct lab *l)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qkt_image_open(&l->im, qkt_path("image"), &l->open, &err), err);
}

void lab_open(struct lab *l)
{
	open_again(l);
}

void lab_start(struct lab *l, const char *options, size_t cluster, size_t size, uint64_t seed)
{
	*l = (struct lab){.format = options, .size = size, .cluster = cluster};
	l->rng = qkt_rng_fixed(seed);
	l->disk = calloc(1, size);
	assert_non_null(l->disk);
	qkt_must("rm -f image && qemu-img create -q -f qcow2 -o cluster_size=%zu%s image %zu",
		cluster, options, size);
	open_again(l);
}

void lab_close(struct lab *l)
{
	qkt_image_close(&l->im);
}

static void drop_snap(struct lab *l, unsigned i)
{
	free(l->snaps[i].disk);
	memmove(&l->snaps[i], &l->snaps[i + 1], (LAB_SNAPS - i - 1) * sizeof(l->snaps[0]));
	l->n--;
}

void lab_free(struct lab *l)
{
	lab_close(l);
	while (l->n != 0)
		drop_snap(l, l->n - 1);
	free(l->disk);
}

/* ---- the disk ---- */

static void fill(struct lab *l, uint8_t *b, size_t n)
{
	uint64_t word = qkt_rng_next(&l->rng);
	for (size_t i = 0; i < n; i++)
		b[i] = (uint8_t)(word >> (i % 8 * 8));
}

void lab_write(struct lab *l)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t off = qkt_rng_below(&l->rng, l->size / 512) * 512;
	unsigned what = (unsigned)qkt_rng_below(&l->rng, 8);
	/* some fill whole rows of entries */
	size_t most = (what == 2 ? 40 : 3) * l->cluster;
	size_t len = (1 + qkt_rng_below(&l->rng, most / 512)) * 512;
	len = len < l->size - off ? len : l->size - off;
	if (what == 0) {
		assert_ok(qcow_zero(l->im.image, off, len, QCOW_IO_UNMAP, &err), err);
		memset(l->disk + off, 0, len);
		return;
	}
	if (what == 1 && l->compresses) {
		off = off / l->cluster * l->cluster;
		len = l->cluster < l->size - off ? l->cluster : l->size - off;
		/* most of it does not compress: streams cross host clusters */
		memset(l->disk + off, 0, len);
		qkt_rng_fill(&l->rng, l->disk + off, len * 5 / 8);
		assert_ok(
			qcow_write_compressed(l->im.image, l->disk + off, len, off, 0, &err), err);
		return;
	}
	fill(l, l->disk + off, len);
	assert_ok(qcow_pwrite(l->im.image, l->disk + off, len, off, 0, &err), err);
}

/* ---- snapshots ---- */

static void keep(struct lab *l, const char *id, const char *name)
{
	struct lab_snap *s = &l->snaps[l->n++];
	(void)snprintf(s->id, sizeof(s->id), "%s", id);
	(void)snprintf(s->name, sizeof(s->name), "%s", name);
	s->size = l->size;
	s->disk = malloc(l->size);
	assert_non_null(s->disk);
	memcpy(s->disk, l->disk, l->size);
}

static void restore(struct lab *l, unsigned i)
{
	l->disk = realloc(l->disk, l->snaps[i].size);
	assert_non_null(l->disk);
	l->size = l->snaps[i].size;
	memcpy(l->disk, l->snaps[i].disk, l->size);
}

void lab_create(struct lab *l, const char *name)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_snapshot_create_options o = QCOW_SNAPSHOT_CREATE_OPTIONS_INIT;
	struct qcow_snapshot made;
	assert_true(l->n < LAB_SNAPS);
	o.name = name;
	assert_ok(qcow_snapshot_create(l->im.image, &o, &err), err);
	assert_ok(qcow_get_snapshot(l->im.image, l->n, &made, &err), err);
	keep(l, made.id, name);
}

void lab_apply(struct lab *l, unsigned i)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_snapshot_apply(l->im.image, l->snaps[i].id, QCOW_SNAPSHOT_ID, NULL, &err),
		err);
	restore(l, i);
}

void lab_delete(struct lab *l, unsigned mask)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	const char *ids[LAB_SNAPS];
	size_t n = 0;
	for (unsigned i = 0; i < l->n; i++)
		if ((mask >> i & 1) != 0)
			ids[n++] = l->snaps[i].id;
	if (n == 0)
		return;
	assert_ok(qcow_snapshot_delete(l->im.image, ids, n, QCOW_SNAPSHOT_ID, NULL, &err), err);
	for (unsigned i = l->n; i-- != 0;)
		if ((mask >> i & 1) != 0)
			drop_snap(l, i);
}

void lab_rename(struct lab *l, unsigned i, const char *name)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_snapshot_rename(l->im.image, l->snaps[i].id, QCOW_SNAPSHOT_ID, name, &err),
		err);
	(void)snprintf(l->snaps[i].name, sizeof(l->snaps[i].name), "%s", name);
}

/* ---- judging ---- */

static void reads(struct qcow_image *image, const uint8_t *disk, size_t size)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *b = malloc(size + 1);
	assert_non_null(b);
	assert_int_equal(qcow_size(image), size);
	assert_ok(qcow_pread(image, b, size, 0, &err), err);
	assert_memory_equal(b, disk, size);
	free(b);
}

static void same_list(struct lab *l, const struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_info info;
	qcow_get_info(image, &info);
	assert_int_equal(info.n_snapshots, l->n);
	for (unsigned i = 0; i < l->n; i++) {
		struct qcow_snapshot s;
		assert_ok(qcow_get_snapshot(image, i, &s, &err), err);
		assert_string_equal(s.id, l->snaps[i].id);
		assert_string_equal(s.name, l->snaps[i].name);
		assert_int_equal(s.disk_size, l->snaps[i].size);
	}
}

void lab_check(struct lab *l)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_options options = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	reads(l->im.image, l->disk, l->size);
	same_list(l, l->im.image);
	assert_ok(qcow_flush(l->im.image, &err), err);
	assert_ok(qcow_check(l->im.image, &options, &result, &err), err);
	assert_int_equal(result.corruptions, 0);
}

static void read_view(struct lab *l, unsigned i)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *view = NULL;
	o.snapshot = l->snaps[i].id;
	o.snapshot_by_id = true;
	assert_ok(qcow_file_open(qkt_path("image"), 0, &store, &err), err);
	assert_ok(qcow_open(store, &o, &view, &err), err);
	reads(view, l->snaps[i].disk, l->snaps[i].size);
	qcow_close(view);
}

static void qemu_reads(const char *qemu, const char *from, const uint8_t *disk, size_t size)
{
	size_t n = 0;
	qkt_must("rm -f raw && %sqemu-img convert -f qcow2 %s -O raw image raw", qemu, from);
	uint8_t *b = qkt_slurp(qkt_path("raw"), &n);
	assert_int_equal(n, size);
	assert_memory_equal(b, disk, size);
	free(b);
}

void lab_turn(struct lab *l, const char *qemu, unsigned number)
{
	unsigned what = (unsigned)qkt_rng_below(&l->rng, 3), byte = number % 250 + 1;
	unsigned i = l->n != 0 ? (unsigned)qkt_rng_below(&l->rng, l->n) : 0;
	size_t off = qkt_rng_below(&l->rng, l->size / 512) * 512;
	size_t len = 512 + qkt_rng_below(&l->rng, (l->size - off) / 512) * 512;
	long most = 0;
	lab_close(l);
	if (l->n == 0 || (what == 0 && l->n < LAB_SNAPS)) {
		char id[24], name[16];
		for (unsigned k = 0; k < l->n; k++) {
			long number_of = strtol(l->snaps[k].id, NULL, 10);
			most = number_of > most ? number_of : most;
		}
		(void)snprintf(id, sizeof(id), "%ld", most + 1);
		(void)snprintf(name, sizeof(name), "q%u", number);
		qkt_must("%sqemu-img snapshot -c %s image", qemu, name);
		keep(l, id, name);
	} else if (what == 1) {
		qkt_must("%sqemu-img snapshot -d %s image", qemu, l->snaps[i].name);
		drop_snap(l, i);
	} else {
		qkt_must("%sqemu-img snapshot -a %s image", qemu, l->snaps[i].id);
		restore(l, i);
	}
	qkt_must("%sqemu-io -f qcow2 -c 'write -q -P %u %zu %zu' image", qemu, byte, off, len);
	memset(l->disk + off, (int)byte, len);
	open_again(l);
}

void lab_judge(struct lab *l, const char *qemu)
{
	lab_close(l);
	qkt_must("%sqemu-img check -q -f qcow2 image", qemu);
	qemu_reads(qemu, "", l->disk, l->size);
	for (unsigned i = 0; i < l->n; i++) {
		char from[64];
		(void)snprintf(from, sizeof(from), "-l snapshot.id=%s", l->snaps[i].id);
		/* of a snapshot it reads as much as the disk has now */
		if (l->snaps[i].size == l->size)
			qemu_reads(qemu, from, l->snaps[i].disk, l->snaps[i].size);
		read_view(l, i);
	}
	open_again(l);
}
