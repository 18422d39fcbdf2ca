/* SPDX-License-Identifier: MIT */
/*
 * The oracle ends the thread that asks it where it refuses an image; so each judgement has a thread of its own.
 */
#include "judge.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <dirtymap.h>
#include <oracle.h>

#include "plan.h"

/* The snapshots as some operation left them. */
struct version {
	uint32_t step, n;
	char **ids;
	struct qkc_guest *
		*disks; /* a disk that several versions have belongs to the first of them */
};

struct qkc_expect {
	struct qkc_guest *guest;
	uint64_t disk_bytes, cluster_bytes, state_off;
	uint32_t version;
	unsigned tolerates;
	bool is_raw_data;
	struct version *versions;
	uint32_t n_versions;
	struct qkc_guest **made; /* of snapshots, to be freed */
	uint32_t n_made;
	uint64_t *backing; /* hashes */
	uint32_t n_bitmaps;
	bool **marks; /* a bitmap's: of each sector */
	uint64_t n_backing;
};

struct job {
	struct qkc_expect *make; /* to be filled, or NULL */
	const struct qkc_expect *e;
	const struct qkc_disk *d;
	struct qkc_rule rule;
	struct qkc_look *look;
	char *why;
	bool is_good, only_check;
	uint64_t n_leaks;
	unsigned tolerates;
};

static _Thread_local char *refusal; /* where refuse() says why */

_Noreturn void refuse(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	(void)vsnprintf(refusal, QKC_WHY_BYTES, format, args);
	va_end(args);
	pthread_exit(NULL);
}

/* ---- what was read ---- */

void qkc_look_free(struct qkc_look *look)
{
	if (look->raw != NULL)
		qkc_look_free(look->raw);
	free(look->raw);
	free(look->sectors);
	*look = (struct qkc_look){0};
}

size_t qkc_look_find(const struct qkc_look *look, uint64_t sector)
{
	size_t low = 0, high = look->n;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		if (look->sectors[mid].sector < sector)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

uint64_t qkc_look_at(const struct qkc_look *look, uint64_t sector)
{
	size_t i = qkc_look_find(look, sector);
	return i < look->n && look->sectors[i].sector == sector ? look->sectors[i].hash : 0;
}

static void note(struct qkc_look *look, uint64_t sector, uint64_t hash)
{
	if (look == NULL || hash == 0)
		return;
	if (look->n == look->room) {
		look->room = look->room != 0 ? look->room * 2 : 1024;
		look->sectors = qkc_more(look->sectors, look->room, sizeof(*look->sectors));
	}
	look->sectors[look->n++] = (struct qkc_looked){sector, hash};
}

static bool moment_allows(const void *ctx, uint64_t sector, uint64_t hash)
{
	const struct qkc_by_moment *m = ctx;
	return qkc_guest_allows(m->guest, m->at, sector, hash);
}

static uint64_t moment_next(const void *ctx, uint64_t sector, uint64_t past)
{
	const struct qkc_by_moment *m = ctx;
	return qkc_guest_next(m->guest, sector, past);
}

struct qkc_rule qkc_rule_at(const struct qkc_by_moment *ctx)
{
	return (struct qkc_rule){.allows = moment_allows, .next = moment_next, .ctx = ctx};
}

/* ---- the guest's disk ---- */

/* Where the values of one view go: to be judged, to be noted, or to be the start of a guest. */
struct taker {
	struct job *job;
	struct qkc_rule rule;
	struct qkc_look *look;
	struct qkc_guest *start;
	const char *view;
	bool is_disk; /* bitmaps speak of it */
	bool is_alone; /* nothing of the backing file shows in it */
};

/* What is not as it was at the start is marked in every enabled bitmap that is not in use. */
static void judge_bitmaps(const struct job *job, uint64_t sector, uint64_t hash)
{
	static const struct qkc_moment never = {0};
	struct qkt_dirtymap map;
	const uint8_t *bytes = qkc_disk_bytes(job->d);
	if (job->e->n_bitmaps == 0 || qkc_guest_allows(job->e->guest, &never, sector, hash))
		return;
	for (uint32_t i = 0; qkt_dirtymap_get(bytes, qkc_disk_size(job->d), i, &map); i++)
		if (map.is_auto && !map.in_use && !qkt_dirtymap_at(&map, sector * QKC_SECTOR))
			refuse("bitmap %" PRIu32
			       " is not in use and does not know that sector %" PRIu64
			       " was written",
				i, sector);
}

/* None is gone; what was marked at the start is, and those that are not enabled are as they were. */
static void judge_marks(const struct job *job)
{
	const struct qkc_expect *e = job->e;
	const uint8_t *bytes = qkc_disk_bytes(job->d);
	struct qkt_dirtymap map;
	for (uint32_t i = 0; i < e->n_bitmaps; i++) {
		if (!qkt_dirtymap_get(bytes, qkc_disk_size(job->d), i, &map))
			refuse("bitmap %" PRIu32 " is gone", i);
		if (!map.is_auto && map.in_use)
			refuse("bitmap %" PRIu32 " is disabled and in use", i);
		for (uint64_t s = 0; !map.in_use && s * QKC_SECTOR < e->disk_bytes; s++) {
			bool was = e->marks[i][s] != 0;
			bool is = qkt_dirtymap_at(&map, s * QKC_SECTOR);
			if (was != is && (was || !map.is_auto))
				refuse("bitmap %" PRIu32 " has changed at sector %" PRIu64, i, s);
		}
	}
}

static void take_value(struct taker *t, uint64_t sector, uint64_t hash)
{
	if (t->start != NULL)
		qkc_guest_start(t->start, sector, hash);
	else if (!t->rule.allows(t->rule.ctx, sector, hash))
		refuse("%s: sector %" PRIu64 " (offset %#" PRIx64 ") holds %s", t->view, sector,
			sector * QKC_SECTOR, hash != 0 ? "what it may not" : "zeros");
	else if (t->is_disk)
		judge_bitmaps(t->job, sector, hash);
	note(t->look, sector, hash);
}

static void take_zeros(struct taker *t, uint64_t first, uint64_t past)
{
	if (t->start != NULL)
		return;
	for (uint64_t s = t->rule.next(t->rule.ctx, first, past); s < past;
		s = t->rule.next(t->rule.ctx, s + 1, past))
		take_value(t, s, 0);
}

static void take_backing(struct taker *t, uint64_t first, uint64_t past)
{
	const struct qkc_expect *e = t->job->e;
	uint64_t end = past < e->n_backing ? past : e->n_backing;
	for (uint64_t s = first; s < end; s++)
		take_value(t, s, e->backing[s]);
	if (end < first)
		end = first;
	take_zeros(t, end, past);
}

static void take_bytes(
	struct taker *t, struct image *img, const struct run *run, uint64_t off, uint8_t *buf)
{
	const struct qkc_disk *d = t->job->d;
	if (run->kind == COMPRESSED || img->crypt_method != 0 || run->bytes % QKC_SECTOR != 0 ||
		run->host % QKC_SECTOR != 0) {
		read_run(img, run, buf, run->bytes);
		for (uint64_t at = 0; at < run->bytes; at += QKC_SECTOR) {
			uint64_t left = run->bytes - at;
			take_value(t, (off + at) / QKC_SECTOR,
				qkc_part_hash(
					buf + at, (size_t)(left < QKC_SECTOR ? left : QKC_SECTOR)));
		}
		return;
	}
	read_run(img, run, buf, 1); /* does the oracle let it be read? */
	uint64_t host = run->host + (img->has_data_file ? QKC_DATA_FILE : 0);
	for (uint64_t at = 0; at < run->bytes; at += QKC_SECTOR)
		take_value(t, (off + at) / QKC_SECTOR,
			qkc_disk_sector_hash(d, (host + at) / QKC_SECTOR));
}

static void take_from(struct taker *t, struct image *img, const struct view *view, uint64_t off)
{
	uint8_t *buf = take(img->cluster_bytes, 1);
	struct run run;
	for (; off < view->disk_bytes; off += run.bytes) {
		uint64_t first = off / QKC_SECTOR;
		run = resolve(img, view, off);
		uint64_t past = (off + run.bytes + QKC_SECTOR - 1) / QKC_SECTOR;
		if (run.kind == DATA || run.kind == COMPRESSED)
			take_bytes(t, img, &run, off, buf);
		else if ((run.kind == UNALLOCATED || run.kind == RESERVED) &&
			 t->job->e->n_backing != 0 && !t->is_alone)
			take_backing(t, first, past);
		else
			take_zeros(t, first, past);
	}
}

/* The disk, and the state of a machine behind it, as far as the L1 table goes. */
static void take_view(struct taker *t, struct image *img, const char *snapshot)
{
	const struct qkc_expect *e = t->job->e;
	struct view view = image_view(img, snapshot);
	uint64_t reach = view.n_l1 * img->n_l2 * img->cluster_bytes;
	uint64_t end = e->state_off + QKC_STATE_ROOM;
	take_from(t, img, &view, 0);
	if (img->has_data_file)
		return;
	t->is_disk = false;
	t->is_alone = true;
	view.disk_bytes = reach < end ? reach : end;
	if (reach > e->state_off)
		take_from(t, img, &view, e->state_off);
	take_zeros(t,
		(view.disk_bytes > e->state_off ? view.disk_bytes : e->state_off) / QKC_SECTOR,
		end / QKC_SECTOR);
}

/* For whoever reads a raw data file alone it is the disk. */
static void take_data_file(struct taker *t, const struct image *img)
{
	const uint8_t *bytes = qkc_disk_bytes(t->job->d) + QKC_DATA_FILE;
	uint64_t past = (img->disk_bytes + QKC_SECTOR - 1) / QKC_SECTOR;
	if (img->data.n_bytes < img->disk_bytes)
		refuse("the raw data file is shorter than the disk");
	for (uint64_t s = 0; s < past; s++) {
		uint64_t left = img->disk_bytes - s * QKC_SECTOR;
		uint64_t hash = qkc_part_hash(
			bytes + s * QKC_SECTOR, (size_t)(left < QKC_SECTOR ? left : QKC_SECTOR));
		if (hash != 0)
			take_value(t, s, hash);
		else
			take_zeros(t, s, s + 1);
	}
}

/* ---- a judgement ---- */

static uint64_t check_image(struct image *img, unsigned tolerates)
{
	struct verdict v;
	(void)check(img, &v, NULL);
	uint64_t n = v.n_overlaps + v.n_bad;
	if (!(tolerates & QKC_MAY_BE_DIRTY && img->incompatible & INCOMPAT_DIRTY)) {
		n += v.n_under + v.n_copied_set;
		n += tolerates & QKC_MAY_LACK_COPIED ? 0 : v.n_copied_missing;
	}
	if (n != 0)
		refuse("check: %s (under-counts %ju, COPIED set %ju, missing %ju, overlaps %ju, "
		       "bad "
		       "%ju)",
			v.first, (uintmax_t)v.n_under, (uintmax_t)v.n_copied_set,
			(uintmax_t)v.n_copied_missing, (uintmax_t)v.n_overlaps, (uintmax_t)v.n_bad);
	return v.n_leaks;
}

static void judge_views(struct job *job, struct image *img)
{
	static const struct qkc_moment never = {0};
	const struct qkc_expect *e = job->e;
	const struct version *v = &e->versions[job->rule.version];
	struct taker t = {
		.job = job, .rule = job->rule, .look = job->look, .view = "disk", .is_disk = true};
	if (img->disk_bytes != e->disk_bytes || img->version != e->version ||
		img->n_snapshots != v->n || img->snapshots_error != NULL)
		refuse("size, version or snapshots are not what they were");
	take_view(&t, img, NULL);
	if (img->autoclear & AUTOCLEAR_RAW_DATA) {
		struct taker raw = {.job = job, .rule = job->rule, .view = "raw data file"};
		raw.rule.ctx = raw.rule.raw_ctx != NULL ? raw.rule.raw_ctx : raw.rule.ctx;
		if (job->look != NULL) {
			if (job->look->raw == NULL)
				job->look->raw = qkc_need(1, sizeof(*job->look));
			job->look->raw->n = 0;
			raw.look = job->look->raw;
		}
		take_data_file(&raw, img);
	} else if (e->is_raw_data)
		refuse("the data file is not raw any more");
	judge_marks(job);
	for (uint32_t i = 0; i < v->n; i++) {
		struct qkc_by_moment by = {v->disks[i], &never};
		struct taker s = {.job = job, .rule = qkc_rule_at(&by), .view = "snapshot"};
		if (strcmp(img->snapshots[i].id, v->ids[i]) != 0)
			refuse("snapshot %" PRIu32 " has another id", i);
		take_view(&s, img, v->ids[i]);
	}
	if (job->look != NULL)
		job->look->version = job->rule.version;
}

/* The last version again. */
static struct version *new_version(struct qkc_expect *e, uint32_t step)
{
	e->versions = qkc_more(e->versions, e->n_versions + 1, sizeof(*e->versions));
	struct version *v = &e->versions[e->n_versions++];
	*v = (struct version){.step = step};
	if (e->n_versions == 1)
		return v;
	const struct version *last = v - 1;
	v->ids = qkc_need(last->n + 1, sizeof(*v->ids));
	v->disks = qkc_need(last->n + 1, sizeof(struct qkc_guest *));
	for (; v->n < last->n; v->n++) {
		v->ids[v->n] = strdup(last->ids[v->n]);
		v->disks[v->n] = last->disks[v->n];
	}
	return v;
}

/* A disk of zeros with that id, at the end. */
static struct qkc_guest *add_snapshot(
	struct qkc_expect *e, struct version *v, const char *id, uint64_t disk_bytes)
{
	struct qkc_guest *disk = qkc_guest_new(disk_bytes, e->state_off + QKC_STATE_ROOM);
	e->made = qkc_more(e->made, e->n_made + 1, sizeof(struct qkc_guest *));
	e->made[e->n_made++] = disk;
	v->ids = qkc_more(v->ids, v->n + 1, sizeof(*v->ids));
	v->disks = qkc_more(v->disks, v->n + 1, sizeof(struct qkc_guest *));
	v->ids[v->n] = strdup(id);
	v->disks[v->n++] = disk;
	return disk;
}

void qkc_expect_create(struct qkc_expect *e, uint32_t step)
{
	struct version *v = new_version(e, step);
	unsigned long most = 0;
	char id[24];
	for (uint32_t i = 0; i < v->n; i++)
		most = strtoul(v->ids[i], NULL, 10) > most ? strtoul(v->ids[i], NULL, 10) : most;
	(void)snprintf(id, sizeof(id), "%lu", most + 1);
	struct qkc_guest *disk = add_snapshot(e, v, id, e->disk_bytes);
	for (uint64_t s = qkc_guest_next(e->guest, 0, UINT64_MAX); s != UINT64_MAX;
		s = qkc_guest_next(e->guest, s + 1, UINT64_MAX))
		qkc_guest_start(disk, s, qkc_guest_now(e->guest, s));
}

void qkc_expect_apply(struct qkc_expect *e, uint32_t step, uint64_t index)
{
	const struct qkc_guest *disk = new_version(e, step)->disks[index];
	uint64_t s = 0;
	for (;;) {
		uint64_t ours = qkc_guest_next(e->guest, s, UINT64_MAX);
		uint64_t theirs = qkc_guest_next(disk, s, UINT64_MAX);
		s = ours < theirs ? ours : theirs;
		if (s == UINT64_MAX)
			return;
		qkc_guest_write(e->guest, step, QKC_FUA, s, qkc_guest_now(disk, s));
		s++;
	}
}

void qkc_expect_delete(struct qkc_expect *e, uint32_t step, uint64_t mask)
{
	struct version *v = new_version(e, step);
	uint32_t n = 0;
	for (uint32_t i = 0; i < v->n; i++) {
		if ((mask >> i & 1) != 0) {
			free(v->ids[i]);
			continue;
		}
		v->ids[n] = v->ids[i];
		v->disks[n++] = v->disks[i];
	}
	v->n = n;
}

uint32_t qkc_expect_version_at(const struct qkc_expect *e, uint32_t step)
{
	uint32_t i = e->n_versions - 1;
	while (i != 0 && e->versions[i].step > step)
		i--;
	return i;
}

static void take_marks(struct qkc_expect *e, const struct qkc_disk *d)
{
	struct qkt_dirtymap map;
	uint64_t n = (e->disk_bytes + QKC_SECTOR - 1) / QKC_SECTOR;
	for (; qkt_dirtymap_get(qkc_disk_bytes(d), qkc_disk_size(d), e->n_bitmaps, &map);
		e->n_bitmaps++) {
		e->marks = qkc_more(e->marks, e->n_bitmaps + 1, sizeof(*e->marks));
		bool *marks = e->marks[e->n_bitmaps] = qkc_need((size_t)n, sizeof(bool));
		for (uint64_t s = 0; s < n; s++)
			marks[s] = qkt_dirtymap_at(&map, s * QKC_SECTOR);
	}
}

static void take_start(struct job *job, struct image *img)
{
	struct qkc_expect *e = job->make;
	e->disk_bytes = img->disk_bytes;
	e->cluster_bytes = img->cluster_bytes;
	e->version = img->version;
	e->is_raw_data = (img->autoclear & AUTOCLEAR_RAW_DATA) != 0;
	uint64_t span = img->n_l2 * img->cluster_bytes;
	e->state_off = (img->disk_bytes + span - 1) / span * span;
	e->guest = qkc_guest_new(img->disk_bytes, e->state_off + QKC_STATE_ROOM);
	take_marks(e, job->d);
	struct taker t = {.job = job, .start = e->guest};
	take_view(&t, img, NULL);
	if (img->snapshots_error != NULL)
		refuse("snapshot table: %s", img->snapshots_error);
	struct version *v = new_version(e, 0);
	for (uint32_t i = 0; i < img->n_snapshots; i++) {
		struct qkc_guest *disk = add_snapshot(
			e, v, img->snapshots[i].id, img->snapshots[i].disk_bytes);
		struct taker s = {.job = job, .start = disk};
		take_view(&s, img, v->ids[i]);
	}
}

/* Most states have one header: its key is derived once. One judgement runs at a time. */
static void unlock(struct image *img)
{
	static struct image_key known;
	static uint8_t known_header[592];
	uint8_t header[sizeof(known_header)] = {0};
	if (img->crypt_method == 0)
		return;
	read_at(&img->file, header, sizeof(header), img->crypto_off);
	if (img->crypt_method == 2 && known.n_bytes != 0 &&
		memcmp(header, known_header, sizeof(header)) == 0) {
		img->key = known;
		return;
	}
	image_unlock(img, QKC_PASSPHRASE);
	known = img->key;
	memcpy(known_header, header, sizeof(header));
}

static void *run_job(void *ctx)
{
	struct job *job = ctx;
	refusal = job->why;
	struct image *img = image_open_bytes(qkc_disk_bytes(job->d), qkc_disk_size(job->d));
	if (qkc_disk_data_end(job->d) != 0)
		image_data_bytes(img, qkc_disk_bytes(job->d) + QKC_DATA_FILE,
			qkc_disk_data_end(job->d) - QKC_DATA_FILE);
	job->n_leaks = check_image(img, job->tolerates);
	unlock(img);
	if (job->make != NULL)
		take_start(job, img);
	else if (!job->only_check)
		judge_views(job, img);
	job->is_good = true;
	return NULL;
}

static bool run_in_thread(struct job *job)
{
	pthread_t thread;
	job->why[0] = '\0';
	if (job->look != NULL)
		job->look->n = 0;
	if (pthread_create(&thread, NULL, run_job, job) != 0) {
		(void)fprintf(stderr, "crash: no thread\n");
		abort();
	}
	(void)pthread_join(thread, NULL);
	forget();
	return job->is_good;
}

bool qkc_judge_disk(const struct qkc_expect *e, const struct qkc_disk *d, struct qkc_rule rule,
	struct qkc_look *look, char *why)
{
	struct job job = {
		.e = e, .d = d, .rule = rule, .look = look, .why = why, .tolerates = e->tolerates};
	return run_in_thread(&job);
}

uint64_t qkc_leaks(const struct qkc_disk *d, unsigned tolerates)
{
	char why[QKC_WHY_BYTES];
	struct job job = {.d = d, .why = why, .only_check = true, .tolerates = tolerates};
	return run_in_thread(&job) ? job.n_leaks : UINT64_MAX;
}

/* ---- expectations ---- */

struct qkc_expect *qkc_expect_new(const struct qkc_disk *d, const uint8_t *backing,
	uint64_t backing_bytes, unsigned tolerates, char *why)
{
	struct qkc_expect *e = qkc_need(1, sizeof(*e));
	e->tolerates = tolerates;
	e->n_backing = (backing_bytes + QKC_SECTOR - 1) / QKC_SECTOR;
	e->backing = qkc_need((size_t)e->n_backing, sizeof(uint64_t));
	for (uint64_t i = 0; i < e->n_backing; i++) {
		uint64_t left = backing_bytes - i * QKC_SECTOR;
		e->backing[i] = qkc_part_hash(
			backing + i * QKC_SECTOR, (size_t)(left < QKC_SECTOR ? left : QKC_SECTOR));
	}
	struct job job = {.make = e, .e = e, .d = d, .why = why, .tolerates = tolerates};
	if (run_in_thread(&job))
		return e;
	qkc_expect_free(e);
	return NULL;
}

void qkc_expect_free(struct qkc_expect *e)
{
	if (e == NULL)
		return;
	for (uint32_t k = 0; k < e->n_versions; k++) {
		for (uint32_t i = 0; i < e->versions[k].n; i++)
			free(e->versions[k].ids[i]);
		free(e->versions[k].ids);
		free(e->versions[k].disks);
	}
	for (uint32_t i = 0; i < e->n_made; i++)
		qkc_guest_free(e->made[i]);
	free(e->versions);
	free(e->made);
	for (uint32_t i = 0; i < e->n_bitmaps; i++)
		free(e->marks[i]);
	free(e->marks);
	qkc_guest_free(e->guest);
	free(e->backing);
	free(e);
}

const struct qkc_guest *qkc_expect_guest_const(const struct qkc_expect *e)
{
	return e->guest;
}

struct qkc_guest *qkc_expect_guest(struct qkc_expect *e)
{
	return e->guest;
}

uint64_t qkc_expect_cluster_bytes(const struct qkc_expect *e)
{
	return e->cluster_bytes;
}

uint64_t qkc_expect_state_off(const struct qkc_expect *e)
{
	return e->state_off;
}

uint32_t qkc_expect_version(const struct qkc_expect *e)
{
	return e->version;
}
