/* SPDX-License-Identifier: MIT */
/*
 * Repairs that a crash cuts short: damaged images with snapshots, bitmaps and compressed clusters (hurt.h) are repaired, and
 * every state that a crash may leave (explore.h) of the image, and of the file for undoing beside it, is no worse than the
 * damaged image was:
 *
 *	- the oracle finds no error in it that it did not find before;
 *	- each cluster of the disk and of its snapshots that reads right in the damaged image reads so still, and what a
 *	  bitmap marked is marked;
 *	- where there is a file for undoing, undoing gives back the damaged image, byte for byte;
 *	- a second repair ends with what the oracle finds clean, and a third has nothing to do.
 *
 * Undoing is explored in the same way: cut short and done again, it ends with the damaged image.
 *
 * usage: crash_repair_test [--all] [--only NAME]; --all: every damage in every image, and pairs of them
 */
#include <cm.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <dirtymap.h>
#include <host.h>
#include <oracle.h>
#include <qcowkit/manage.h>
#include <rng.h>

#include "disk.h"
#include "explore.h"
#include "hurt.h"
#include "log.h"
#include "store.h"

#define AGAIN_ONE_IN 8u
#define SPARE	     96u /* clusters of a device behind its image */
#define BITMAP	     100u /* trees from here on are bitmaps */
#define MANY	     8u /* clusters of a run of nothing that are looked at */

#define MIN_STATES 3000u

static bool all;
static const char *only;

/* ---- looking: by the oracle, which ends the thread that asks it where it refuses ---- */

/* A cluster of a tree: 0 the disk, from 1 on a snapshot by its id, from BITMAP on a granule that a bitmap marks. */
struct item {
	unsigned tree;
	bool is_free; /* may be anything: damaged */
	uint64_t off, hash;
};

struct items {
	struct item *v;
	size_t n, room;
};

struct look {
	const struct qkc_disk *d;
	struct items *items;
	bool makes; /* the list is made, not compared with */
	size_t at; /* the item that is looked at */
	char *errors; /* of the check, or NULL */
	FILE *out; /* its lines go to, in memory */
	char *lines;
	size_t n_lines;
	char why[200];
};

static _Thread_local char *refusal;

_Noreturn void refuse(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	(void)vsnprintf(refusal, sizeof(((struct look *)0)->why), format, args);
	va_end(args);
	pthread_exit(NULL);
}

static struct image *open_oracle(const struct look *l)
{
	return image_open_bytes(qkc_disk_bytes(l->d), qkc_disk_size(l->d));
}

static uint64_t hash_of(struct image *img, const struct run *run, uint8_t *buf)
{
	uint64_t hash = 1;
	if (run->kind != DATA && run->kind != COMPRESSED)
		return 0;
	read_run(img, run, buf, run->bytes);
	for (uint64_t at = 0; at < run->bytes; at += QKC_SECTOR)
		hash = hash * UINT64_C(0x9e3779b97f4a7c15) + qkc_sector_hash(buf + at);
	return hash;
}

static void add_item(struct items *items, unsigned tree, uint64_t off, uint64_t hash)
{
	if (items->n == items->room) {
		items->room = items->room != 0 ? items->room * 2 : 256;
		items->v = qkc_more(items->v, items->room, sizeof(*items->v));
	}
	items->v[items->n++] = (struct item){.tree = tree, .off = off, .hash = hash};
}

static struct view view_of(const struct image *img, unsigned tree)
{
	char id[12];
	(void)snprintf(id, sizeof(id), "%u", tree);
	return image_view(img, tree != 0 ? id : NULL);
}

static void list_tree(struct look *l, struct image *img, unsigned tree)
{
	struct view view = view_of(img, tree);
	uint8_t *buf = take(img->cluster_bytes, 1);
	for (uint64_t off = 0; off < view.disk_bytes;) {
		struct run run = resolve(img, &view, off);
		uint64_t hash = hash_of(img, &run, buf);
		for (uint64_t k = 0; k < MANY && k * img->cluster_bytes < run.bytes; k++)
			add_item(l->items, tree, off + k * img->cluster_bytes, hash);
		off += run.bytes;
	}
}

static void list_bitmap(struct look *l, uint64_t disk_bytes, uint32_t index)
{
	struct qkt_dirtymap map;
	if (!qkt_dirtymap_get(qkc_disk_bytes(l->d), qkc_disk_size(l->d), index, &map) || map.in_use)
		return;
	for (uint64_t off = 0; off < disk_bytes; off += UINT64_C(1) << map.granularity_bits)
		if (qkt_dirtymap_at(&map, off))
			add_item(l->items, BITMAP + index, off, 1);
}

static void list(struct look *l, struct image *img)
{
	for (unsigned tree = 0; tree <= img->n_snapshots; tree++)
		list_tree(l, img, tree);
	for (uint32_t i = 0; i < img->n_bitmaps; i++)
		list_bitmap(l, img->disk_bytes, i);
}

/* A bitmap that is gone, or in use, says nothing wrong. */
static bool is_marked(const struct look *l, const struct item *item)
{
	struct qkt_dirtymap map;
	return !qkt_dirtymap_get(
		       qkc_disk_bytes(l->d), qkc_disk_size(l->d), item->tree - BITMAP, &map) ||
	       map.in_use || qkt_dirtymap_at(&map, item->off);
}

/* From item `at` on; stops at the first that is not as it was. */
static void compare(struct look *l, struct image *img)
{
	uint8_t *buf = take(img->cluster_bytes, 1);
	struct view view = {0};
	unsigned tree = UINT32_MAX;
	for (; l->at < l->items->n; l->at++) {
		const struct item *item = &l->items->v[l->at];
		if (item->is_free)
			continue;
		if (item->tree >= BITMAP) {
			if (!is_marked(l, item))
				refuse("bitmap %u lacks offset %#jx", item->tree - BITMAP,
					(uintmax_t)item->off);
			continue;
		}
		if (item->tree != tree)
			view = view_of(img, item->tree);
		tree = item->tree;
		struct run run = resolve(img, &view, item->off);
		if (hash_of(img, &run, buf) != item->hash)
			refuse("offset %#jx of tree %u reads differently", (uintmax_t)item->off,
				tree);
	}
}

/* "\n" KEY "\n" for each error: its line up to what may change without being worse. NULL: there are too many to compare. */
static char *keys_of(char *lines)
{
	static const char *const ends[] = {" stored ", " users ", ", refcount "};
	size_t room = strlen(lines) + 64;
	char *keys = qkc_need(room, 1), *to = keys;
	*to++ = '\n';
	if (strstr(lines, " lines more\n") != NULL) {
		free(keys);
		return NULL;
	}
	for (char *line = strtok(lines, "\n"); line != NULL; line = strtok(NULL, "\n")) {
		if (strncmp(line, "leak", 4) == 0 || strncmp(line, "past-end", 8) == 0 ||
			strncmp(line, "copied missing", 14) == 0 ||
			strncmp(line, "clusters ", 9) == 0)
			continue;
		for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
			if (strstr(line, ends[i]) != NULL)
				*strstr(line, ends[i]) = '\0';
		const char *entry = strstr(line, " entry ");
		/* what is mended of an entry is no other entry */
		if (strncmp(line, "copied set", 10) == 0 && entry != NULL)
			to += snprintf(to, room - (size_t)(to - keys), "copied set at %#jx\n",
				(uintmax_t)(strtoull(entry + 7, NULL, 16) & ENTRY_OFFSET));
		else
			to += snprintf(to, room - (size_t)(to - keys), "%s\n", line);
	}
	return keys;
}

static void *list_in_thread(void *ctx)
{
	struct look *l = ctx;
	refusal = l->why;
	list(l, open_oracle(l));
	return NULL;
}

static void *compare_in_thread(void *ctx)
{
	struct look *l = ctx;
	refusal = l->why;
	compare(l, open_oracle(l));
	return NULL;
}

static void *check_in_thread(void *ctx)
{
	struct look *l = ctx;
	struct verdict verdict;
	refusal = l->why;
	(void)check(open_oracle(l), &verdict, l->out);
	return NULL;
}

/* False: refused. */
static bool look(struct look *l, void *(*how)(void *))
{
	pthread_t thread;
	l->why[0] = '\0';
	if (pthread_create(&thread, NULL, how, l) != 0 || pthread_join(thread, NULL) != 0)
		abort();
	forget();
	return l->why[0] == '\0';
}

/* False: refused. */
static bool look_at_errors(struct look *l)
{
	l->out = open_memstream(&l->lines, &l->n_lines);
	bool is_good = look(l, check_in_thread);
	(void)fclose(l->out);
	l->errors = is_good ? keys_of(l->lines) : NULL;
	free(l->lines);
	return is_good;
}

/* ---- a case ---- */

struct sick {
	const struct qkc_hurt *hurts[2];
	bool has_undo, is_fixed, leaks_only;
	uint8_t marks; /* the dirty and the corrupt bit */
	struct items items;
	struct qkc_disk *start;
	char *errors; /* before the repair */
	uint64_t n_distinct, n_bad;
	char name[160];
};

/* What reads otherwise than before the damage is free. */
static void find_free(struct sick *s)
{
	struct look l = {.d = s->start, .items = &s->items};
	while (!look(&l, compare_in_thread) && l.at < s->items.n)
		s->items.v[l.at].is_free = true;
	for (size_t i = 0; i < s->items.n; i++) {
		struct item *item = &s->items.v[i];
		for (unsigned k = 0; k < 2; k++)
			if (s->hurts[k] != NULL && item->tree != 0 && item->tree < BITMAP &&
				s->hurts[k]->without >> (item->tree - 1) & 1)
				item->is_free = true;
	}
}

static struct qcow_store *image_store(const struct sick *s, struct qkc_disk *d, struct qkc_log *log)
{
	return qkc_disk_store(d, log, NULL, !s->is_fixed);
}

static enum qcow_status repair(const struct sick *s, struct qkc_disk *d, enum qcow_repair_mode mode,
	bool with_undo, struct qkc_log *log, struct qcow_repair_result *result,
	struct qcow_error *err)
{
	struct qcow_repair_options o = QCOW_REPAIR_OPTIONS_INIT;
	struct qcow_store *store = image_store(s, d, log);
	o.memory_bytes = 4 << 20;
	o.mode = mode;
	if (with_undo)
		o.undo = qkc_disk_data_store(d, log, NULL, true);
	enum qcow_status status = qcow_repair(store, &o, result, err);
	qcow_store_close(o.undo);
	qcow_store_close(store);
	return status;
}

static enum qcow_status undo(
	const struct sick *s, struct qkc_disk *d, struct qkc_log *log, struct qcow_error *err)
{
	struct qcow_store *store = image_store(s, d, log);
	struct qcow_store *saved = qkc_disk_data_store(d, log, NULL, true);
	enum qcow_status status = qcow_repair_undo(store, saved, err);
	qcow_store_close(saved);
	qcow_store_close(store);
	return status;
}

/* ---- judging ---- */

#define SAY(why, ...) (void)snprintf((why), 300, __VA_ARGS__)

static bool hides_counts(const struct sick *s)
{
	return s->hurts[0]->hides_counts || (s->hurts[1] != NULL && s->hurts[1]->hides_counts);
}

/* Refcounts cannot be compared in such an image, or those of a table that is not followed. */
static bool is_about_counts(const char *key)
{
	return strncmp(key, "under-count", 11) == 0 || strncmp(key, "copied set", 10) == 0;
}

/* NULL, or the first error that was not there before. */
static const char *new_error(const struct sick *s, char *errors, char *line, size_t room)
{
	for (char *key = strtok(errors, "\n"); key != NULL; key = strtok(NULL, "\n")) {
		(void)snprintf(line, room, "\n%s\n", key);
		if (strstr(s->errors, line) == NULL && !(hides_counts(s) && is_about_counts(key)))
			return key;
	}
	return NULL;
}

static uint8_t marks_of(const struct qkc_disk *d)
{
	const uint8_t *bytes = qkc_disk_bytes(d);
	return bytes[7] >= 3 ? bytes[79] & 3 : 0;
}

static bool is_no_worse(struct sick *s, struct qkc_disk *d, char *why)
{
	struct look l = {.d = d, .items = &s->items};
	char line[256];
	bool is_good = look_at_errors(&l) || s->errors == NULL;
	SAY(why, "check refuses: %s", l.why);
	if (is_good && s->errors != NULL && l.errors != NULL) {
		bool has_errors = strcmp(l.errors, "\n") != 0;
		const char *new = new_error(s, l.errors, line, sizeof(line));
		is_good = new == NULL && (!has_errors || marks_of(d) == s->marks);
		SAY(why, "%s%.200s", new != NULL ? "new: " : "damaged, and not marked so",
			new != NULL ? new : "");
	}
	free(l.errors);
	if (is_good && !look(&l, compare_in_thread)) {
		SAY(why, "%s", l.why);
		is_good = false;
	}
	return is_good;
}

static bool is_clean(struct sick *s, struct qkc_disk *d, char *why)
{
	struct look l = {.d = d, .items = &s->items};
	bool is_good = look_at_errors(&l) && l.errors != NULL && strcmp(l.errors, "\n") == 0 &&
		       marks_of(d) == 0;
	SAY(why, "not clean: %s%s", l.why, l.errors != NULL ? l.errors : "");
	free(l.errors);
	if (is_good && !look(&l, compare_in_thread)) {
		SAY(why, "clean, and %s", l.why);
		is_good = false;
	}
	return is_good;
}

static bool is_start(const struct sick *s, const struct qkc_disk *d)
{
	return qkc_disk_size(d) == qkc_disk_size(s->start) &&
	       memcmp(qkc_disk_bytes(d), qkc_disk_bytes(s->start), qkc_disk_size(d)) == 0;
}

/* Undoing gives the image back, whatever there is of the saved bytes. */
static bool can_be_undone(struct sick *s, struct qkc_disk *d, char *why)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkc_log log = {0};
	enum qcow_status status = undo(s, d, &log, &err);
	qkc_log_clear(&log);
	SAY(why, "undoing: %.200s", status != QCOW_OK ? err.message : "not as before");
	/* its head is not durable: then nothing was replaced */
	return (status == QCOW_OK || status == QCOW_E_FORMAT) && is_start(s, d);
}

static bool can_be_repaired(struct sick *s, struct qkc_disk *d, char *why)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_repair_result result;
	struct qkc_log log = {0};
	enum qcow_status status = repair(s, d, QCOW_REPAIR_ALL, false, &log, &result, &err);
	bool is_good = status == QCOW_OK;
	SAY(why, "again: %.200s", err.message);
	/* a crash may leave the room of a device taken: that ends as before */
	if (status == QCOW_E_NOSPC && s->is_fixed)
		is_good = is_no_worse(s, d, why);
	else if (is_good)
		is_good = is_clean(s, d, why);
	if (is_good && status == QCOW_OK) {
		is_good = repair(s, d, QCOW_REPAIR_ALL, false, &log, &result, &err) == QCOW_OK &&
			  result.n_steps == 0;
		SAY(why, "a third repair has something to do");
	}
	qkc_log_clear(&log);
	return is_good;
}

static bool tell(struct sick *s, const struct qkc_state *state, const char *why)
{
	if (s->n_bad++ == 0) {
		(void)printf("FAILED %s: %s state %" PRIu64 ": %s\n", s->name, state->kind,
			state->id, why);
		qkc_story(state, stdout);
	}
	return false;
}

static bool judge(void *ctx, struct qkc_disk *d, const struct qkc_state *state)
{
	struct sick *s = ctx;
	char why[300] = "";
	bool is_repaired = state->at.floor != 0 && !s->leaks_only;
	size_t mark = qkc_disk_mark(d);
	uint64_t hash = qkc_disk_hash(d);
	if (!(is_repaired ? is_clean(s, d, why) : is_no_worse(s, d, why)))
		return tell(s, state, why);
	if (hash % AGAIN_ONE_IN == 0 && !can_be_repaired(s, d, why))
		return tell(s, state, why);
	qkc_disk_undo(d, mark);
	if (s->has_undo && !can_be_undone(s, d, why))
		return tell(s, state, why);
	return true;
}

static bool judge_undoing(void *ctx, struct qkc_disk *d, const struct qkc_state *state)
{
	struct sick *s = ctx;
	char why[300] = "";
	if (state->at.floor != 0 && !is_start(s, d))
		return tell(s, state, "undone, and not as before");
	return can_be_undone(s, d, why) || tell(s, state, why);
}

/* ---- exploring ---- */

static void explore(struct sick *s, const struct qkc_disk *from, const struct qkc_log *log,
	qkc_judge judges, uint64_t seed)
{
	struct qkc_totals totals = {0};
	const struct qkc_explore x = {.initial = from,
		.log = log,
		.seed = seed,
		.subset_bits = 6,
		.n_random = 8,
		.n_cuts = 4,
		.judge = judges,
		.ctx = s};
	qkc_explore(&x, &totals);
	s->n_distinct += totals.n_distinct;
	qkc_set_free(&totals.contents);
}

static void end_step(struct qkc_log *log, enum qcow_status status)
{
	qkc_log_add(log, QKC_END, 1, status == QCOW_OK ? QKC_DONE | QKC_IS_FLUSH : 0, NULL);
}

static void went_wrong(struct sick *s, const char *what, const char *why)
{
	(void)printf("FAILED %s: %s: %s\n", s->name, what, why);
	s->n_bad++;
}

static void explore_undoing(struct sick *s, struct qkc_disk *live, uint64_t seed)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qkc_disk *from = qkc_disk_copy(live);
	struct qkc_log log = {0};
	qkc_log_add(&log, QKC_BEGIN, 1, 0, NULL);
	enum qcow_status status = undo(s, live, &log, &err);
	end_step(&log, status);
	if (status == QCOW_OK)
		explore(s, from, &log, judge_undoing, seed);
	else
		went_wrong(s, "undo", err.message);
	qkc_log_clear(&log);
	qkc_disk_free(from);
}

static void run(struct sick *s, uint64_t seed)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_repair_result result;
	struct qkc_log log = {0};
	if (s->has_undo)
		qkc_disk_grow(s->start, QKC_DATA_FILE);
	struct qkc_disk *live = qkc_disk_copy(s->start);
	qkc_log_add(&log, QKC_BEGIN, 1, 0, NULL);
	enum qcow_status status = repair(s, live,
		s->leaks_only ? QCOW_REPAIR_LEAKS : QCOW_REPAIR_ALL, s->has_undo, &log, &result,
		&err);
	end_step(&log, status);
	if (status != QCOW_OK)
		went_wrong(s, "repair", err.message);
	else
		explore(s, s->start, &log, judge, seed);
	if (status == QCOW_OK && s->has_undo)
		explore_undoing(s, live, seed);
	qkc_log_clear(&log);
	qkc_disk_free(live);
}

/* False: there is nothing to damage so. */
static bool fall_sick(struct sick *s, const struct qkc_patient *well)
{
	struct qkc_patient p;
	qkc_patient_copy(&p, well, s->is_fixed ? SPARE : 0);
	struct qkc_disk *before = qkc_disk_new(p.bytes, p.n);
	struct look l = {.d = before, .items = &s->items};
	bool is_hurt = s->hurts[0]->damage(&p) && (s->hurts[1] == NULL || s->hurts[1]->damage(&p));
	s->start = qkc_disk_new(p.bytes, p.n);
	if (!look(&l, list_in_thread))
		went_wrong(s, "well", l.why);
	l = (struct look){.d = s->start, .items = &s->items};
	(void)look_at_errors(&l);
	s->errors = l.errors;
	s->marks = marks_of(s->start);
	find_free(s);
	qkc_disk_free(before);
	free(p.bytes);
	return is_hurt;
}

struct totals {
	uint64_t n_cases, n_states, n_bad;
};

static void treat(
	const struct qkc_patient *well, struct sick *s, uint64_t seed, struct totals *totals)
{
	(void)snprintf(s->name, sizeof(s->name), "%s%s%s v%u %u%s%s%s", s->hurts[0]->name,
		s->hurts[1] != NULL ? "+" : "", s->hurts[1] != NULL ? s->hurts[1]->name : "",
		well->kind.version, 1u << well->kind.cluster_bits, s->has_undo ? " undo" : "",
		s->is_fixed ? " device" : "", s->leaks_only ? " leaks" : "");
	if ((only == NULL || strstr(s->name, only) != NULL) && fall_sick(s, well)) {
		run(s, seed);
		(void)printf("%-60s %6" PRIu64 " states, %" PRIu64 " bad\n", s->name, s->n_distinct,
			s->n_bad);
		totals->n_cases++;
	}
	totals->n_states += s->n_distinct;
	totals->n_bad += s->n_bad;
	qkc_disk_free(s->start);
	free(s->items.v);
	free(s->errors);
}

/* ---- what is tried ---- */

static const struct qkc_kind kinds[] = {{3, 9}, {2, 12}, {3, 16}, {2, 9}, {3, 12}, {2, 16}};
#define N_KINDS (sizeof(kinds) / sizeof(kinds[0]))

enum {
	WITH_UNDO = 1,
	ON_DEVICE = 2,
	LEAKS_ONLY = 4,
	N_WAYS = 8
};

/* Each damage in each image in one of three ways, and in one of three for leaks alone; all of it with --all. */
static void treat_singles(
	const struct qkc_patient *well, unsigned k, struct qkt_rng *rng, struct totals *totals)
{
	for (unsigned i = 0; i < qkc_n_hurts; i++) {
		for (unsigned way = 0; way < N_WAYS; way++) {
			struct sick s = {.hurts = {&qkc_hurts[i]},
				.has_undo = (way & WITH_UNDO) != 0,
				.is_fixed = (way & ON_DEVICE) != 0,
				.leaks_only = (way & LEAKS_ONLY) != 0};
			if (all || (k + i) % 3 == way ||
				(way == (LEAKS_ONLY | WITH_UNDO) && (k / 2 + i) % 3 == 0))
				treat(well, &s, qkt_rng_next(rng), totals);
		}
	}
}

static void treat_pairs(
	const struct qkc_patient *well, unsigned k, struct qkt_rng *rng, struct totals *totals)
{
	for (unsigned n = 0; n < (all ? 60 : 2); n++) {
		const struct qkc_hurt *one = &qkc_hurts[qkt_rng_below(rng, qkc_n_hurts)];
		struct sick s = {.hurts = {one, &qkc_hurts[qkt_rng_below(rng, qkc_n_hurts)]},
			.has_undo = (n + k) % 2 == 0,
			.is_fixed = n % 5 == 4};
		treat(well, &s, qkt_rng_next(rng), totals);
	}
}

static void no_crash_makes_a_damaged_image_worse(void **state)
{
	struct qkt_rng rng = qkt_rng_init(11);
	struct totals totals = {0};
	(void)state;
	for (unsigned k = 0; k < N_KINDS; k++) {
		struct qkc_patient well;
		qkc_patient_make(&well, kinds[k]);
		treat_singles(&well, k, &rng, &totals);
		treat_pairs(&well, k, &rng, &totals);
		free(well.bytes);
	}
	(void)printf("%" PRIu64 " images, %" PRIu64 " states, %" PRIu64 " bad\n", totals.n_cases,
		totals.n_states, totals.n_bad);
	assert_int_equal(totals.n_bad, 0);
	assert_true(only != NULL || totals.n_states > MIN_STATES);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_crash_makes_a_damaged_image_worse),
	};
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], "--all") == 0)
			all = true;
		else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
			only = argv[++i];
	qkt_need_program("qemu-io", "qemu-utils");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
