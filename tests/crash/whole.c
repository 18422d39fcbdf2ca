/* SPDX-License-Identifier: MIT */
/* whole: see whole.h. The oracle ends the thread that asks it where it refuses an image, so each look has one. */
#include "whole.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cm.h>
#include <dirtymap.h>
#include <host.h>
#include <oracle.h>
#include <rng.h>

#include "base.h"
#include "disk.h"
#include "explore.h"
#include "log.h"
#include "plan.h"
#include "store.h"

#define AGAIN_ONE_IN 16u
#define OTHER	     "other.raw"
#define MAX_PARTS    2048u /* sectors of a disk that changes in parts */

struct below {
	uint8_t *bytes;
	uint64_t n;
};

/* What an image shows. */
struct face {
	bool is_good;
	uint64_t image; /* hash of all but the bitmaps */
	uint64_t bitmaps; /* of their bits */
	bool in_use; /* one that is enabled is in use: nothing it says counts */
	bool has_backing, is_other; /* the backing file it records: none, the first, the other */
	uint64_t base; /* hash of the base's disk */
	bool is_held; /* by the base: what the disk reads as */
	char why[200];
};

/* The hashes of a disk's sectors, where it may change in parts: then they are not in its face. A raw data file may be ahead
 * of the entries by what is not flushed. */
struct parts {
	uint64_t hashes[MAX_PARTS], raw[MAX_PARTS];
};

struct look {
	const struct qkc_operation *o;
	const struct qkc_disk *d;
	const struct below *files; /* the first, the other */
	struct below backing; /* what it records */
	struct below base; /* its disk */
	struct face *face;
	struct parts *parts; /* NULL: not asked for */
};

static const struct below nothing;
static _Thread_local char *refusal;

_Noreturn void refuse(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	(void)vsnprintf(refusal, sizeof(((struct face *)0)->why), format, args);
	va_end(args);
	pthread_exit(NULL);
}

/* ---- looking ---- */

static bool has_base(const struct qkc_operation *o)
{
	return (o->how & (QKC_OVER_BASE | QKC_OVER_RAW_BASE)) != 0;
}

static void mix(uint64_t *hash, uint64_t value)
{
	*hash = (*hash ^ value) * UINT64_C(0x9e3779b97f4a7c15);
	*hash ^= *hash >> 29;
}

static void mix_bytes(uint64_t *hash, uint64_t off, const uint8_t *p, uint64_t n)
{
	for (uint64_t at = 0; at < n; at += QKC_SECTOR) {
		uint64_t left = n - at < QKC_SECTOR ? n - at : QKC_SECTOR;
		uint64_t value = qkc_part_hash(p + at, (size_t)left);
		if (value != 0) {
			mix(hash, off + at);
			mix(hash, value);
		}
	}
}

static void mix_text(uint64_t *hash, const char *text)
{
	for (; text != NULL && *text != '\0'; text++)
		mix(hash, (uint8_t)*text);
}

/* Does something with bytes of a disk that may be other than zeros. */
typedef void (*each_run)(void *ctx, uint64_t off, const uint8_t *p, uint64_t n);

static void walk(struct image *img, const struct view *view, const struct below *below,
	each_run each, void *ctx)
{
	uint8_t *buf = take(img->cluster_bytes, 1);
	struct run run;
	for (uint64_t off = 0; off < view->disk_bytes; off += run.bytes) {
		run = resolve(img, view, off);
		if (run.kind == DATA || run.kind == COMPRESSED) {
			read_run(img, &run, buf, run.bytes);
			each(ctx, off, buf, run.bytes);
		} else if ((run.kind == UNALLOCATED || run.kind == RESERVED) && off < below->n) {
			uint64_t n = below->n - off;
			each(ctx, off, below->bytes + off, n < run.bytes ? n : run.bytes);
		}
	}
}

static void mix_run(void *ctx, uint64_t off, const uint8_t *p, uint64_t n)
{
	mix_bytes(ctx, off, p, n);
}

static void copy_run(void *ctx, uint64_t off, const uint8_t *p, uint64_t n)
{
	memcpy((uint8_t *)ctx + off, p, n);
}

static void note_parts(void *ctx, uint64_t off, const uint8_t *p, uint64_t n)
{
	uint64_t *hashes = ctx;
	for (uint64_t at = 0; at < n; at += QKC_SECTOR) {
		uint64_t left = n - at < QKC_SECTOR ? n - at : QKC_SECTOR;
		if ((off + at) / QKC_SECTOR >= MAX_PARTS)
			refuse("a disk of that size cannot be judged in parts");
		hashes[(off + at) / QKC_SECTOR] = qkc_part_hash(p + at, (size_t)left);
	}
}

static void mix_view(
	struct image *img, const char *snapshot, const struct below *below, uint64_t *hash)
{
	struct view view = image_view(img, snapshot);
	mix(hash, view.disk_bytes);
	walk(img, &view, below, mix_run, hash);
}

static void mix_snapshots(const struct look *l, struct image *img, const struct below *below)
{
	for (uint32_t i = 0; i < img->n_snapshots; i++) {
		mix_text(&l->face->image, img->snapshots[i].name);
		mix_view(img, img->snapshots[i].id, below, &l->face->image);
	}
}

/* What it reads as with `below` below it. */
static struct below disk_of(struct image *img, const struct below *below)
{
	struct view view = image_view(img, NULL);
	uint8_t *bytes = take(view.disk_bytes, 1);
	walk(img, &view, below, copy_run, bytes);
	return (struct below){bytes, view.disk_bytes};
}

static void look_at_bitmaps(const struct look *l, uint64_t disk_bytes)
{
	struct qkt_dirtymap map;
	for (uint32_t i = 0; qkt_dirtymap_get(qkc_disk_bytes(l->d), qkc_disk_size(l->d), i, &map);
		i++) {
		l->face->in_use = l->face->in_use || map.in_use;
		mix(&l->face->bitmaps, i);
		for (uint64_t off = 0; off < disk_bytes; off += UINT64_C(1) << map.granularity_bits)
			if (qkt_dirtymap_at(&map, off))
				mix(&l->face->bitmaps, off);
	}
}

static void need_sound(struct image *img, const char *whose)
{
	struct verdict v;
	if (check(img, &v, NULL) == 2)
		refuse("check%s: %s", whose, v.first);
	if (img->snapshots_error != NULL || img->bitmaps_error != NULL)
		refuse("%s",
			img->snapshots_error != NULL ? img->snapshots_error : img->bitmaps_error);
}

/* The base, which has a face of its own, and a layer between it and the image. */
static void look_at_base(struct look *l)
{
	struct below file = {(uint8_t *)(uintptr_t)qkc_disk_bytes(l->d) + QKC_DATA_FILE,
		qkc_disk_data_end(l->d) - QKC_DATA_FILE};
	l->base = file;
	if ((l->o->how & QKC_OVER_BASE) != 0) {
		struct image *img = image_open_bytes(file.bytes, file.n);
		need_sound(img, " of the base");
		mix_snapshots(l, img, &nothing);
		l->base = disk_of(img, &nothing);
	}
	mix(&l->face->base, l->base.n);
	mix_bytes(&l->face->base, 0, l->base.bytes, l->base.n);
	l->backing = l->base;
	if (l->o->backing != NULL)
		l->backing = disk_of(image_open_bytes(l->files[0].bytes, l->files[0].n), &l->base);
}

/* Does the base alone read as the disk does, as far as that goes? */
static bool is_held(const struct look *l, struct image *img)
{
	struct below disk = disk_of(img, &l->backing);
	return disk.n <= l->base.n && memcmp(disk.bytes, l->base.bytes, disk.n) == 0;
}

static void look_below(struct look *l, const struct image *img)
{
	if (has_base(l->o)) {
		look_at_base(l);
		return;
	}
	l->face->has_backing = img->backing != NULL;
	l->face->is_other = img->backing != NULL && strcmp(img->backing, OTHER) == 0;
	if (img->backing != NULL)
		l->backing = l->files[l->face->is_other];
	mix_text(&l->face->image, img->backing);
}

/* A raw data file is the disk for whoever reads it alone. */
static void judge_raw_data(const struct look *l, struct image *img)
{
	uint64_t disk = 0, file = 0;
	if ((img->autoclear & AUTOCLEAR_RAW_DATA) == 0)
		return;
	if (img->data.n_bytes < img->disk_bytes)
		refuse("the raw data file is shorter than the disk");
	if (l->parts != NULL) {
		note_parts(l->parts->raw, 0, img->data.bytes, img->disk_bytes);
		return;
	}
	mix_view(img, NULL, &l->backing, &disk);
	mix(&file, img->disk_bytes);
	mix_bytes(&file, 0, img->data.bytes, img->disk_bytes);
	if (disk != file)
		refuse("the raw data file is not the disk");
}

static void look_at_disk(const struct look *l, struct image *img)
{
	struct view view = image_view(img, NULL);
	if (l->parts != NULL)
		walk(img, &view, &l->backing, note_parts, l->parts->hashes);
	else
		mix_view(img, NULL, &l->backing, &l->face->image);
	if (has_base(l->o))
		l->face->is_held = is_held(l, img);
}

/* Which of the eight key slots are active. LUKS1: 48 bytes each from 208 on, that begin with a mark. */
static void mix_slots(const struct image *img, uint64_t *hash)
{
	uint8_t header[208 + 8 * 48];
	if (!img->has_crypto)
		return;
	read_at(&img->file, header, sizeof(header), img->crypto_off);
	for (unsigned i = 0; i < 8; i++)
		mix(hash, be(header + 208 + i * 48, 4) == 0x00ac71f3);
}

static void *look_in_thread(void *ctx)
{
	struct look *l = ctx;
	refusal = l->face->why;
	struct image *img = image_open_bytes(qkc_disk_bytes(l->d), qkc_disk_size(l->d));
	if (qkc_disk_data_end(l->d) != 0 && !has_base(l->o))
		image_data_bytes(img, qkc_disk_bytes(l->d) + QKC_DATA_FILE,
			qkc_disk_data_end(l->d) - QKC_DATA_FILE);
	if (l->o->passphrase != NULL)
		image_unlock(img, l->o->passphrase);
	need_sound(img, "");
	uint64_t *hash = &l->face->image;
	mix(hash, img->version);
	mix(hash, img->refcount_order);
	mix(hash, img->compatible);
	mix_slots(img, hash);
	look_below(l, img);
	look_at_disk(l, img);
	judge_raw_data(l, img);
	/* what shows through a snapshot changes with the base */
	mix_snapshots(l, img, has_base(l->o) ? &nothing : &l->backing);
	look_at_bitmaps(l, img->disk_bytes);
	l->face->is_good = true;
	return NULL;
}

/* ---- running ---- */

struct whole {
	const struct qkc_operation *o;
	struct below files[2];
	struct face before, after;
	struct parts old_parts, new_parts;
	struct qkc_fault fault; /* of all its files */
	struct qkc_whole_result result;
};

/* `parts`, which may be NULL, is filled where the operation changes the disk in parts. */
static struct face look(const struct whole *w, const struct qkc_disk *d, struct parts *parts)
{
	struct face face = {0};
	struct look l = {.o = w->o, .d = d, .files = w->files, .face = &face};
	pthread_t thread;
	if (parts != NULL)
		memset(parts, 0, sizeof(*parts));
	if ((w->o->how & QKC_IN_PARTS) != 0)
		l.parts = parts;
	if (pthread_create(&thread, NULL, look_in_thread, &l) != 0 ||
		pthread_join(thread, NULL) != 0)
		abort();
	forget();
	return face;
}

struct opening {
	struct whole *w;
	struct qkc_disk *d;
	struct qkc_log *log;
};

static enum qcow_status open_data_file(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	const struct opening *o = ctx;
	(void)ref;
	(void)err;
	out->store = qkc_disk_data_store(
		o->d, o->log, &o->w->fault, (o->w->o->how & QKC_ON_DEVICE) == 0);
	return QCOW_OK;
}

/* What lies below the image; NULL where the open fails. */
static struct qcow_image *open_below(struct whole *w, struct qkc_disk *d, const struct face *seen,
	struct qkc_log *log, struct qcow_error *err)
{
	const struct below *file = &w->files[seen->is_other];
	bool can_grow = (w->o->how & QKC_ON_DEVICE) == 0;
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	if (has_base(w->o)) {
		struct qcow_open_options base = QCOW_OPEN_OPTIONS_INIT;
		base.flags = QCOW_OPEN_WRITE;
		base.format = (w->o->how & QKC_OVER_BASE) != 0 ? "qcow2" : "raw";
		if (qcow_open(qkc_disk_data_store(d, log, &w->fault, can_grow), &base, &image,
			    err) != QCOW_OK ||
			w->o->backing == NULL)
			return image;
		options.backing = image;
	}
	options.format = options.backing != NULL ? "qcow2" : "raw";
	if (qcow_open(qkc_bytes_store(file->bytes, file->n), &options, &image, err) == QCOW_OK)
		return image;
	qcow_close(options.backing);
	return NULL;
}

static struct qcow_image *open_image(struct whole *w, struct qkc_disk *d, const struct face *seen,
	struct qkc_log *log, struct qcow_error *err)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	struct opening opening = {w, d, log};
	options.flags = QCOW_OPEN_WRITE;
	options.format = "qcow2";
	if (qkc_disk_data_end(d) != 0) {
		options.resolve = open_data_file;
		options.resolve_ctx = &opening;
	}
	if (w->o->passphrase != NULL)
		options.secret = (struct qcow_secret){w->o->passphrase, strlen(w->o->passphrase)};
	if (seen->has_backing || has_base(w->o)) {
		options.backing = open_below(w, d, seen, log, err);
		if (options.backing == NULL)
			return NULL;
	}
	if (qcow_open(qkc_disk_store(d, log, &w->fault, (w->o->how & QKC_ON_DEVICE) == 0), &options,
		    &image, err) == QCOW_OK)
		return image;
	qcow_close(options.backing);
	return NULL;
}

/* Open, do it, close. The log has it as a step that is durable when it is done. */
static bool run_logged(struct whole *w, struct qkc_disk *d, struct qkc_log *log)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = open_image(w, d, &w->before, log, &err);
	if (image == NULL) {
		(void)snprintf(w->result.first_bad, sizeof(w->result.first_bad), "open: %.200s",
			err.message);
		return false;
	}
	qkc_log_add(log, QKC_BEGIN, 1, 0, NULL);
	enum qcow_status status = w->o->run(image, &err);
	qkc_log_add(log, QKC_END, 1, status == QCOW_OK ? QKC_DONE | QKC_IS_FLUSH : 0, NULL);
	qcow_close(image);
	if (status != QCOW_OK)
		(void)snprintf(
			w->result.first_bad, sizeof(w->result.first_bad), "%.200s", err.message);
	return status == QCOW_OK;
}

/* ---- judging ---- */

static bool is_face(const struct face *seen, const struct face *want)
{
	return seen->image == want->image && (seen->in_use || seen->bitmaps == want->bitmaps);
}

/* Is every sector what it was or will be? */
static bool are_parts(const uint64_t *seen, const uint64_t *was, const uint64_t *will_be)
{
	for (size_t i = 0; i < MAX_PARTS; i++)
		if (seen[i] != was[i] && seen[i] != will_be[i])
			return false;
	return true;
}

/* The image before, and bitmaps that say too much. */
static bool is_marked(const struct whole *w, const struct face *seen)
{
	return (w->o->how & QKC_MARKS) != 0 && seen->image == w->before.image &&
	       seen->bitmaps == w->after.bitmaps;
}

static bool is_allowed(const struct whole *w, const struct face *seen, const struct parts *parts,
	bool may_be_before)
{
	bool in_parts = (w->o->how & QKC_IN_PARTS) != 0;
	const struct parts *was = &w->old_parts, *will_be = &w->new_parts;
	if (may_be_before)
		return (is_face(seen, &w->after) || is_face(seen, &w->before) ||
			       is_marked(w, seen)) &&
		       (!in_parts || (are_parts(parts->hashes, was->hashes, will_be->hashes) &&
					     are_parts(parts->raw, was->raw, will_be->raw)));
	return is_face(seen, &w->after) && seen->base == w->after.base &&
	       (!in_parts || memcmp(parts, will_be, sizeof(*parts)) == 0);
}

/* The library opens it and goes on. */
static bool goes_on(
	struct whole *w, struct qkc_disk *d, const struct face *seen, char *why, size_t room)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkc_log log = {0};
	struct qcow_image *image = open_image(w, d, seen, &log, &err);
	const char *wrong = image != NULL ? w->o->again(image) : err.message;
	(void)snprintf(why, room, "again: %.150s", wrong != NULL ? wrong : "");
	qcow_close(image);
	qkc_log_clear(&log);
	if (wrong != NULL)
		return false;
	/* a raw data file stays ahead of entries that the crash has taken */
	struct parts parts;
	struct face face = look(w, d, &parts);
	(void)snprintf(why, room, "after again: %.150s", face.why);
	return face.is_good;
}

static bool judge(void *ctx, struct qkc_disk *d, const struct qkc_state *s)
{
	struct whole *w = ctx;
	char why[220] = "";
	struct parts parts;
	struct face seen = look(w, d, &parts);
	bool is_good = seen.is_good;
	(void)snprintf(why, sizeof(why), "%s", seen.why);
	if (is_good) {
		bool may_be_before = s->at.floor == 0;
		is_good = is_allowed(w, &seen, &parts, may_be_before);
		(void)snprintf(why, sizeof(why), "neither before nor after%s",
			may_be_before ? "" : ", which is promised");
	}
	if (is_good && w->o->again != NULL && qkc_disk_hash(d) % AGAIN_ONE_IN == 0)
		is_good = goes_on(w, d, &seen, why, sizeof(why));
	if (!is_good && w->result.first_bad[0] == '\0') {
		(void)snprintf(w->result.first_bad, sizeof(w->result.first_bad),
			"%s state %" PRIu64 ": %.200s", s->kind, s->id, why);
		(void)printf("FAILED %s: %s\n", w->o->name, w->result.first_bad);
		qkc_story(s, stdout);
	}
	return is_good;
}

static void explore(
	struct whole *w, const struct qkc_disk *initial, const struct qkc_log *log, uint64_t seed)
{
	struct qkc_totals totals = {0};
	const struct qkc_explore x = {.initial = initial,
		.log = log,
		.seed = seed,
		.subset_bits = 9,
		.n_random = 24,
		.n_cuts = 12,
		.judge = judge,
		.ctx = w};
	qkc_explore(&x, &totals);
	w->result.n_distinct = totals.n_distinct;
	w->result.n_bad = totals.n_bad;
	qkc_set_free(&totals.contents);
}

static struct below slurp(const char *name)
{
	size_t n = 0;
	uint8_t *bytes = name != NULL && access(qkt_path(name), F_OK) == 0
				 ? qkt_slurp(qkt_path(name), &n)
				 : NULL;
	return (struct below){bytes, n};
}

/* What is wrong with the image before the run, or after it without a crash; NULL: nothing. */
static const char *wrong_ends(const struct whole *w, const struct qkc_disk *live)
{
	if (!w->before.is_good)
		return w->before.why;
	if (!w->after.is_good)
		return w->after.why;
	if (w->after.in_use)
		return "a bitmap stays in use";
	if (has_base(w->o) && w->after.image != w->before.image)
		return "the disk is another one";
	if (has_base(w->o) && !w->after.is_held)
		return "the base does not hold the disk";
	/* a raw data file is the disk again */
	return look(w, live, NULL).is_good ? NULL : "not whole after the run";
}

struct set {
	struct whole w;
	struct qkc_disk *initial, *live; /* live: after the run */
	struct qkc_log log;
	bool is_sound; /* it ran, and before and after are as they should be */
};

static void set_up(struct set *s, const struct qkc_operation *o)
{
	*s = (struct set){.w = {.o = o}};
	qkt_must("rm -f img data base back.raw " OTHER " && %s", o->setup);
	s->w.files[0] = slurp(o->backing);
	s->w.files[1] = slurp(OTHER);
	struct below img = slurp("img");
	s->initial = qkc_disk_new(img.bytes, img.n);
	free(img.bytes);
	const char *data = has_base(o) ? "base" : "data";
	if (access(qkt_path(data), F_OK) == 0)
		qkc_disk_load_data(s->initial, data);
	s->live = qkc_disk_copy(s->initial);
	s->w.before = look(&s->w, s->initial, &s->w.old_parts);
	if (!run_logged(&s->w, s->live, &s->log))
		return;
	s->w.after = look(&s->w, s->live, &s->w.new_parts);
	const char *wrong = wrong_ends(&s->w, s->live);
	s->is_sound = wrong == NULL;
	if (wrong != NULL)
		(void)snprintf(
			s->w.result.first_bad, sizeof(s->w.result.first_bad), "%.200s", wrong);
}

static void tear_down(struct set *s)
{
	qkc_log_clear(&s->log);
	qkc_disk_free(s->initial);
	qkc_disk_free(s->live);
	free(s->w.files[0].bytes);
	free(s->w.files[1].bytes);
}

struct qkc_whole_result qkc_whole_explore(const struct qkc_operation *o, uint64_t seed)
{
	struct set s;
	set_up(&s, o);
	if (s.is_sound)
		explore(&s.w, s.initial, &s.log, seed);
	tear_down(&s);
	return s.w.result;
}

uint64_t qkc_whole_explore_all(const struct qkc_operation *o, size_t n, uint64_t stream)
{
	struct qkt_rng rng = qkt_rng_init(stream);
	uint64_t n_states = 0, n_bad = 0;
	for (size_t i = 0; i < n; i++) {
		struct qkc_whole_result r = qkc_whole_explore(&o[i], qkt_rng_next(&rng));
		(void)printf("%-38s %6" PRIu64 " states, %" PRIu64 " bad%s%s\n", o[i].name,
			r.n_distinct, r.n_bad, r.first_bad[0] != '\0' ? ": " : "", r.first_bad);
		n_states += r.n_distinct;
		n_bad += r.n_bad + (r.n_distinct < o[i].min_states);
	}
	(void)printf("%" PRIu64 " states\n", n_states);
	return n_bad;
}

/* ---- calls that fail ---- */

/* False where there were fewer such calls. */
static bool fail_once(struct set *s, enum qkc_fail what, uint64_t nth)
{
	struct whole *w = &s->w;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkc_disk *d = qkc_disk_copy(s->initial);
	struct qkc_log log = {0};
	struct parts parts;
	struct qcow_image *image = open_image(w, d, &w->before, &log, &err);
	if (image == NULL)
		abort(); /* it could be opened before */
	w->fault = (struct qkc_fault){.what = what, .nth = nth};
	enum qcow_status status = w->o->run(image, &err);
	bool was_hit = w->fault.count >= nth;
	w->fault = (struct qkc_fault){0};
	qcow_close(image);
	struct face seen = look(w, d, &parts);
	const char *why = seen.why;
	if (seen.is_good && !is_allowed(w, &seen, &parts, status != QCOW_OK))
		why = "neither before nor after";
	/* nobody asks again for a flush that has failed */
	if (was_hit && what == QKC_FAIL_FLUSH && status == QCOW_OK && (w->o->how & QKC_TIDIES) == 0)
		why = "a flush has failed";
	if (why[0] != '\0') {
		w->result.n_bad++;
		(void)printf("FAILED %s: failure %u of call %" PRIu64 ", which answered %s: %s\n",
			w->o->name, what, nth, qcow_status_name(status), why);
	}
	w->result.n_distinct += was_hit;
	qkc_log_clear(&log);
	qkc_disk_free(d);
	return was_hit;
}

uint64_t qkc_whole_fail_all(const struct qkc_operation *o, size_t n)
{
	static const enum qkc_fail fails[] = {QKC_FAIL_WRITE, QKC_FAIL_FLUSH, QKC_FAIL_SPACE};
	uint64_t n_bad = 0, n_failures = 0;
	for (size_t i = 0; i < n; i++) {
		struct set s;
		set_up(&s, &o[i]);
		for (size_t f = 0; f < 3 && s.is_sound; f++)
			for (uint64_t nth = 1; fail_once(&s, fails[f], nth);)
				nth += 1 + nth / 12;
		(void)printf("%-46s %6" PRIu64 " failures, %" PRIu64 " bad\n", o[i].name,
			s.w.result.n_distinct, s.w.result.n_bad);
		n_failures += s.w.result.n_distinct;
		n_bad += s.w.result.n_bad + (s.w.result.n_distinct == 0);
		tear_down(&s);
	}
	(void)printf("%" PRIu64 " failures\n", n_failures);
	return n_bad;
}

/* ---- the program ---- */

struct claim {
	const struct qkc_operation *o;
	size_t n;
	uint64_t stream;
};

static void every_crash(void **state)
{
	const struct claim *c = *state;
	assert_int_equal(qkc_whole_explore_all(c->o, c->n, c->stream), 0);
}

static void every_call_may_fail(void **state)
{
	const struct claim *c = *state;
	assert_int_equal(qkc_whole_fail_all(c->o, c->n), 0);
}

int qkc_whole_main(const char *claim, const struct qkc_operation *o, size_t n, uint64_t stream)
{
	struct claim c = {o, n, stream};
	const struct CMUnitTest tests[] = {
		{claim, every_crash, NULL, NULL, &c},
		cmocka_unit_test_prestate(every_call_may_fail, &c),
	};
	qkt_need_program("qemu-io", "qemu-utils");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
