/* SPDX-License-Identifier: MIT */
#include "scenario.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "rng.h"

static uint8_t *truth;

const uint8_t *scenario_truth(void)
{
	return truth;
}

static void forget_truth(void)
{
	free(truth);
}

/* Half noise, half text that repeats, and a hole. */
static void make_raw(const char *name, size_t size)
{
	struct qkt_rng rng = qkt_rng_fixed(size);
	static uint8_t piece[32768];
	FILE *f = fopen(qkt_path(name), "wb");
	for (size_t off = 0; f != NULL && off < size; off += sizeof(piece)) {
		qkt_rng_fill(&rng, piece, sizeof(piece) / 2);
		memset(piece + sizeof(piece) / 2, (int)(off >> 15), sizeof(piece) / 2);
		if (off >> 15 == 3)
			(void)fseek(f, sizeof(piece), SEEK_CUR);
		else
			(void)fwrite(piece, 1, sizeof(piece), f);
	}
	if (f == NULL || fclose(f) != 0)
		abort();
}

void scenario_make(void)
{
	const char *qemus[2] = {0};
	size_t n = qkt_qemus(qemus);
	if (n == 0)
		qkt_skip("qemu-img and qemu-io are missing (package qemu-utils)");
	const char *q = qemus[0];
	make_raw("base.raw", 700 * 1024);
	make_raw("noise.raw", 512 * 1024);
	qkt_must("%sqemu-img create -q -f qcow2 -o compat=0.10 -b base.raw -F raw low.qcow2 2M", q);
	qkt_must("%sqemu-io -c 'write -c -P 17 256k 64k' -c 'write -c -s noise.raw 640k 128k'"
		 " -c 'write -c -P 18 1M 64k' low.qcow2",
		q);
	qkt_must("%sqemu-img create -q -f qcow2 -o extended_l2=on,compression_type=zstd"
		 " -b low.qcow2 -F qcow2 mid.qcow2 2M",
		q);
	qkt_must("%sqemu-io -c 'write -P 33 10k 6k' -c 'write -z 300k 20k'"
		 " -c 'write -c -s noise.raw 1152k 192k' -c 'write -P 34 1536k 100k' mid.qcow2",
		q);
	qkt_must("%sqemu-img create -q -f qcow2 -o cluster_size=4k -b mid.qcow2 -F qcow2"
		 " top.qcow2 2M",
		q);
	qkt_must("%sqemu-io -c 'write -P 65 4k 40k' -c 'write -z 80k 8k' -c 'write -P 66 1800k 9k'"
		 " top.qcow2",
		q);
	qkt_must("%sqemu-img snapshot -c before top.qcow2", q);
	qkt_must("%sqemu-img bitmap --add -g 64k top.qcow2 dirty", q);
	qkt_must("%sqemu-io -c 'write -P 67 8k 8k' -c 'discard 100k 8k' -c 'write -P 68 2044k 4k'"
		 " top.qcow2",
		q);
	qkt_must("%sqemu-img convert -O raw top.qcow2 truth.raw", q);
	size_t size = 0;
	truth = qkt_slurp(qkt_path("truth.raw"), &size);
	(void)atexit(forget_truth);
	if (size != SCENARIO_BYTES)
		abort();
}

/* ---- opening ---- */

static enum qcow_status open_layer(struct qkt_fault *fault, const char *name, unsigned id,
	struct qcow_store **out, struct qcow_error *err)
{
	enum qcow_status st = qcow_file_open(qkt_path(name), 0, out, err);
	if (st == QCOW_OK && fault != NULL)
		*out = qkt_fault_wrap(fault, *out, id);
	return st;
}

static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	out->format = ref->format;
	return open_layer(ctx, ref->name, ref->depth + 1, &out->store, err);
}

enum qcow_status scenario_open(
	struct qkt_fault *fault, uint32_t flags, struct qcow_image **out, struct qcow_error *err)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	enum qcow_status st = open_layer(fault, "top.qcow2", 0, &store, err);
	if (st != QCOW_OK)
		return st;
	options.flags = flags;
	options.resolve = resolve;
	options.resolve_ctx = fault;
	return qcow_open(store, &options, out, err);
}

/* ---- asking ---- */

static bool note(
	struct outcome *o, enum qcow_status st, const struct qcow_error *err, const char *call)
{
	o->n_calls++;
	if (st == QCOW_OK)
		return true;
	if (o->n_failed++ == 0) {
		o->status = st;
		o->err = *err;
		o->call = call;
	}
	return false;
}

static void require(struct outcome *o, bool right, const char *what)
{
	if (!right && o->wrong == NULL)
		o->wrong = what;
}

static void ask(struct outcome *o, struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_info info;
	struct qcow_extension extension;
	struct qcow_snapshot snapshot;
	struct qcow_bitmap bitmap;
	qcow_get_info(image, &info);
	require(o, info.virtual_size == SCENARIO_BYTES, "info: size");
	require(o, strcmp(info.backing_name, "mid.qcow2") == 0, "info: backing name");
	for (uint32_t i = 0; i < qcow_extension_count(image); i++)
		(void)note(o, qcow_get_extension(image, i, &extension, &err), &err, "extension");
	require(o, info.n_snapshots == 1, "info: snapshots");
	if (note(o, qcow_get_snapshot(image, 0, &snapshot, &err), &err, "snapshot"))
		require(o, strcmp(snapshot.name, "before") == 0, "snapshot's name");
	if (info.n_bitmaps == 1 &&
		note(o, qcow_get_bitmap(image, 0, &bitmap, &err), &err, "bitmap"))
		require(o, strcmp(bitmap.name, "dirty") == 0, "bitmap's name");
}

/* The map covers the disk where no call fails, and zeros are zeros. */
static void map_all(struct outcome *o, struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t off = 0;
	while (off < SCENARIO_BYTES) {
		struct qcow_extent e;
		if (!note(o, qcow_map(image, off, SCENARIO_BYTES - off, UINT32_MAX, &e, &err), &err,
			    "map")) {
			off += 65536;
			continue;
		}
		require(o, e.off == off && e.len > 0 && e.len <= SCENARIO_BYTES - off, "extent");
		if (o->wrong != NULL)
			return;
		if ((e.flags & QCOW_EXTENT_ZERO) != 0)
			require(o,
				truth[off] == 0 && memcmp(truth + off, truth + off + 1,
							   (size_t)e.len - 1) == 0,
				"zero extent");
		off += e.len;
	}
}

static void read_all(struct outcome *o, struct qcow_image *image, size_t step)
{
	static uint8_t buf[262144];
	struct qcow_error err = QCOW_ERROR_INIT;
	for (size_t off = 0; off < SCENARIO_BYTES; off += step) {
		size_t len = SCENARIO_BYTES - off < step ? SCENARIO_BYTES - off : step;
		if (note(o, qcow_pread(image, buf, len, off, &err), &err, "pread"))
			require(o, memcmp(buf, truth + off, len) == 0, "bytes read");
	}
}

/* A table that could not be read is said so; whatever else is called corrupt is not. */
static void count_corruption(void *ctx, const struct qcow_finding *f)
{
	if (f->severity == QCOW_SEVERITY_CORRUPTION && f->id != QCOW_FINDING_TABLE_READ_FAILED)
		++*(uint64_t *)ctx;
}

static void check_all(struct outcome *o, struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_check_options options = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	uint64_t corruptions = 0;
	options.flags = QCOW_CHECK_DATA;
	options.on_finding = count_corruption;
	options.ctx = &corruptions;
	if (!note(o, qcow_check(image, &options, &result, &err), &err, "check"))
		return;
	o->check_errors += result.check_errors;
	require(o, corruptions == 0, "check: corruptions of a sound image");
	/* references in a table that could not be read are missing: space then looks unused */
	require(o, result.leaks == 0 || result.check_errors != 0, "check: leaks of a sound image");
}

struct walked {
	uint64_t n_items, n_unread;
	bool is_corrupt;
};

static bool count_item(void *ctx, const struct qcow_walk_item *item)
{
	struct walked *w = ctx;
	w->n_items++;
	w->n_unread += item->finding == QCOW_FINDING_TABLE_READ_FAILED;
	w->is_corrupt |= item->finding != 0 && item->finding != QCOW_FINDING_TABLE_READ_FAILED;
	return true;
}

static void walk_all(struct outcome *o, struct qcow_image *image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct walked w = {0};
	(void)note(o,
		qcow_walk(image, QCOW_WALK_REFCOUNTS | QCOW_WALK_ENTRIES, count_item, &w, &err),
		&err, "walk");
	o->check_errors += w.n_unread;
	require(o, !w.is_corrupt, "walk: findings in a sound image");
}

static void run_alone(struct qkt_fault *fault, struct outcome *o)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	uint32_t flags = QCOW_OPEN_NO_BACKING | QCOW_OPEN_CHECK;
	if (!note(o, scenario_open(fault, flags, &image, &err), &err, "open alone"))
		return;
	check_all(o, image);
	walk_all(o, image);
	qcow_close(image);
}

void scenario_run(struct qkt_fault *fault, struct outcome *out)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	memset(out, 0, sizeof(*out));
	if (note(out, scenario_open(fault, 0, &image, &err), &err, "open")) {
		ask(out, image);
		map_all(out, image);
		read_all(out, image, 98304);
		read_all(out, image, 262144);
		qcow_close(image);
	}
	out->hits_before_check = fault != NULL ? qkt_fault_hits(fault) : 0;
	run_alone(fault, out);
}
