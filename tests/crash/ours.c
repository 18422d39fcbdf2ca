/* SPDX-License-Identifier: MIT */
#include "ours.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qcowkit/manage.h>

#include "explore.h"
#include "peer.h"
#include "store.h"

#define AGAIN_STEP    2000000u /* numbers the content of what is written after a crash */
#define AGAIN_WRITES  3u
#define NESTED_ONE_IN 16u
#define CHUNK_SECTORS 512u

static bool say(char *why, const char *what, const struct qcow_error *err)
{
	(void)snprintf(why, QKC_WHY_BYTES, "%s: %.150s", what, err->message);
	return false;
}

/* A disk that the library works on. log NULL: it is only read. */
struct at_work {
	const struct qkc_base *base;
	struct qkc_disk *disk;
	struct qkc_log *log;
	struct qkc_fault *fault;
};

static struct qcow_store *store_on(const struct at_work *w)
{
	return qkc_disk_store(w->disk, w->log, w->fault, w->base->plan->fixed_spare == 0);
}

static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	const struct at_work *w = ctx;
	(void)ref;
	(void)err;
	out->store = qkc_disk_data_store(
		w->disk, w->log, w->fault, w->base->plan->fixed_spare == 0);
	return QCOW_OK;
}

static struct qcow_image *open_image(
	const struct at_work *w, uint32_t flags, struct qcow_error *err)
{
	const struct qkc_base *base = w->base;
	struct qcow_store *store = store_on(w);
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	options.flags = flags;
	options.format = "qcow2";
	options.discard = base->plan->discard;
	options.stage_bytes = base->plan->stage_bytes;
	options.cache_bytes = base->plan->cache_bytes;
	if (base->plan->has_data_file) {
		options.resolve = resolve;
		options.resolve_ctx = (void *)(uintptr_t)w;
	}
	if (base->plan->crypt != NULL)
		options.secret = (struct qcow_secret){QKC_PASSPHRASE, strlen(QKC_PASSPHRASE)};
	if (base->backing != NULL) {
		struct qcow_open_options raw = QCOW_OPEN_OPTIONS_INIT;
		raw.format = "raw";
		if (qcow_open(qkc_bytes_store(base->backing, base->backing_bytes), &raw,
			    &options.backing, err) != QCOW_OK) {
			qcow_store_close(store);
			return NULL;
		}
	}
	if (qcow_open(store, &options, &image, err) == QCOW_OK)
		return image;
	qcow_close(options.backing);
	return NULL;
}

/* ---- steps ---- */

static enum qcow_status put(struct qcow_image *image, const struct qkc_step *s, const uint8_t *buf,
	uint64_t state_off, struct qcow_error *err)
{
	size_t len = (size_t)s->len;
	if (s->act == QKC_DO_WRITE_STATE)
		return qcow_write_vm_state(image, buf, len, s->off - state_off, err);
	if (s->act == QKC_DO_WRITE_COMPRESSED)
		return qcow_write_compressed(image, buf, len, s->off, 0, err);
	return qcow_pwrite(
		image, buf, len, s->off, s->act == QKC_DO_WRITE_FUA ? QCOW_IO_FUA : 0, err);
}

static enum qcow_status write_step(struct qcow_image *image, const struct qkc_step *s,
	uint32_t number, uint64_t state_off, struct qcow_error *err)
{
	uint8_t *buf = qkc_need((size_t)s->len, 1);
	qkc_content(number, s->off, buf, s->len);
	enum qcow_status st = put(image, s, buf, state_off, err);
	free(buf);
	return st;
}

/* Of the disk, or of the state behind it. */
static enum qcow_status get(struct qcow_image *image, uint8_t *buf, uint64_t len, uint64_t off,
	uint64_t state_off, struct qcow_error *err)
{
	return off >= state_off ? qcow_read_vm_state(image, buf, (size_t)len, off - state_off, err)
				: qcow_pread(image, buf, (size_t)len, off, err);
}

static enum qcow_status snapshot_step(
	struct qcow_image *image, const struct qkc_step *s, struct qcow_error *err)
{
	struct qcow_snapshot_create_options o = QCOW_SNAPSHOT_CREATE_OPTIONS_INIT;
	char ids[64][24];
	const char *keys[64];
	size_t n = 0;
	uint64_t mask = s->act == QKC_DO_APPLY ? UINT64_C(1) << s->off : s->off;
	o.name = "made";
	o.has_date = true;
	if (s->act == QKC_DO_SNAPSHOT)
		return qcow_snapshot_create(image, &o, err);
	for (uint32_t i = 0; i < 64; i++) {
		struct qcow_snapshot known;
		if ((mask >> i & 1) == 0)
			continue;
		enum qcow_status st = qcow_get_snapshot(image, i, &known, err);
		if (st != QCOW_OK)
			return st;
		(void)snprintf(ids[n], sizeof(ids[n]), "%s", known.id);
		keys[n] = ids[n];
		n++;
	}
	if (s->act == QKC_DO_APPLY)
		return qcow_snapshot_apply(image, keys[0], QCOW_SNAPSHOT_ID, NULL, err);
	return qcow_snapshot_delete(image, keys, n, QCOW_SNAPSHOT_ID, NULL, err);
}

static enum qcow_status do_step(
	const struct qkc_plan *p, struct qcow_image *image, uint32_t number, struct qcow_error *err)
{
	const struct qkc_step *s = &p->steps[number - 1];
	switch (s->act) {
	case QKC_DO_WRITE:
	case QKC_DO_WRITE_FUA:
	case QKC_DO_WRITE_STATE:
	case QKC_DO_WRITE_COMPRESSED:
		return write_step(image, s, number, qkc_plan_state_off(p), err);
	case QKC_DO_ZERO:
		return qcow_zero(image, s->off, s->len, 0, err);
	case QKC_DO_ZERO_UNMAP:
		return qcow_zero(image, s->off, s->len, QCOW_IO_UNMAP, err);
	case QKC_DO_DISCARD:
		return qcow_discard(image, s->off, s->len, 0, err);
	case QKC_DO_FLUSH:
		return qcow_flush(image, err);
	case QKC_DO_RECOVER:
		return qcow_recover(image, err);
	case QKC_DO_SNAPSHOT:
	case QKC_DO_APPLY:
	case QKC_DO_DELETE:
		return snapshot_step(image, s, err);
	default:
		return QCOW_OK;
	}
}

/* What a step has written is read at once, long before it is durable. */
static bool reads_back(
	const struct qkc_plan *p, struct qcow_image *image, uint32_t number, char *why)
{
	const struct qkc_step *s = &p->steps[number - 1];
	struct qcow_error err = QCOW_ERROR_INIT;
	if (s->act >= QKC_DO_DISCARD || s->len > UINT64_C(16) << 20)
		return true;
	uint8_t *got = qkc_need((size_t)s->len, 1), *want = qkc_need((size_t)s->len, 1);
	if (s->act <= QKC_DO_WRITE_COMPRESSED)
		qkc_content(number, s->off, want, s->len);
	enum qcow_status st = get(image, got, s->len, s->off, qkc_plan_state_off(p), &err);
	bool same = st == QCOW_OK && memcmp(got, want, (size_t)s->len) == 0;
	free(got);
	free(want);
	if (st != QCOW_OK)
		return say(why, "reading what was just written", &err);
	if (!same)
		(void)snprintf(why, QKC_WHY_BYTES, "step %u is not read back as written", number);
	return same;
}

unsigned qkc_tolerance(const struct qkc_plan *p)
{
	return (p->is_dirty ? QKC_MAY_BE_DIRTY : 0) | (p->lacks_copied ? QKC_MAY_LACK_COPIED : 0);
}

struct running {
	const struct qkc_plan *plan;
	const struct qkc_base *base;
	struct qkc_disk *disk;
	struct qkc_log *log;
	struct qkc_fault fault;
	bool has_failed;
	bool is_fenced; /* or may be: steps may fail until a recovery is through */
	struct qcow_image *image;
};

static bool reopen(struct running *r, char *why)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	qcow_close(r->image);
	const struct at_work w = {r->base, r->disk, r->log, &r->fault};
	r->image = open_image(&w, QCOW_OPEN_WRITE, &err);
	return r->image != NULL || say(why, "opening for writing", &err);
}

static enum qkc_outcome run_step(struct running *r, uint32_t number, char *why)
{
	const struct qkc_step *s = &r->plan->steps[number - 1];
	struct qcow_error err = QCOW_ERROR_INIT;
	if (s->act == QKC_DO_FAIL) {
		r->fault = (struct qkc_fault){.what = (enum qkc_fail)(s->off & QKC_FAIL_KIND),
			.file = (enum qkc_only_file)(s->off & ~(uint64_t)QKC_FAIL_KIND),
			.nth = s->len};
		return QKC_STEP_DONE;
	}
	if (s->act == QKC_DO_REOPEN) {
		r->is_fenced = false;
		return reopen(r, why) ? QKC_STEP_DONE : QKC_STEP_FAILED;
	}
	enum qcow_status st = do_step(r->plan, r->image, number, &err);
	if (st == QCOW_OK) {
		r->is_fenced = r->is_fenced && s->act != QKC_DO_RECOVER;
		return reads_back(r->plan, r->image, number, why) ? QKC_STEP_DONE : QKC_STEP_FAILED;
	}
	r->has_failed = true;
	/* once there is room again it goes on by itself */
	if (!r->is_fenced && r->fault.what == QKC_FAIL_NONE) {
		char line[80];
		qkc_step_print(s, line, sizeof(line));
		return say(why, line, &err) ? QKC_STEP_DONE : QKC_STEP_FAILED;
	}
	r->is_fenced = r->is_fenced || st != QCOW_E_NOSPC;
	return st == QCOW_E_NOSPC ? QKC_STEP_NO_SPACE : QKC_STEP_FAILED;
}

static bool run_steps(struct running *r, enum qkc_outcome *outcomes, char *why)
{
	if (!reopen(r, why))
		return false;
	for (uint32_t i = 1; i <= r->plan->n_steps && why[0] == '\0'; i++) {
		qkc_log_add(r->log, QKC_BEGIN, i, 0, NULL);
		outcomes[i - 1] = run_step(r, i, why);
		qkc_log_add(r->log, QKC_END, i,
			qkc_end_flags(r->plan->steps[i - 1].act, outcomes[i - 1] == QKC_STEP_DONE),
			NULL);
	}
	/* a call of the close fails: that is no clean close */
	const struct qkc_step *last = &r->plan->steps[r->plan->n_steps - 1];
	r->has_failed = r->has_failed || (last->act == QKC_DO_FAIL && last->off != QKC_FAIL_NONE);
	qcow_close(r->image);
	return why[0] == '\0';
}

bool qkc_ours_run(const struct qkc_plan *p, const struct qkc_base *base, struct qkc_log *log,
	enum qkc_outcome *outcomes, char *why)
{
	struct running r = {.plan = p, .base = base, .log = log};
	why[0] = '\0';
	r.disk = qkc_disk_copy(base->image);
	bool ran = run_steps(&r, outcomes, why);
	uint64_t leaks = ran && !r.has_failed ? qkc_leaks(r.disk, qkc_tolerance(p)) : 0;
	qkc_disk_free(r.disk);
	if (leaks != 0)
		(void)snprintf(
			why, QKC_WHY_BYTES, "%" PRIu64 " clusters leak after a clean close", leaks);
	return ran && leaks == 0;
}

/* ---- reading a state ---- */

static bool compare_run(
	const struct qkc_again *a, struct qcow_image *image, uint64_t first, uint64_t n, char *why)
{
	static uint8_t buf[CHUNK_SECTORS * QKC_SECTOR];
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t disk = qkc_guest_bytes(qkc_expect_guest_const(a->expect));
	uint64_t state = qkc_expect_state_off(a->expect);
	uint64_t off = first * QKC_SECTOR, len = n * QKC_SECTOR;
	if (off < state && len > disk - off)
		len = disk - off;
	if (get(image, buf, len, off, state, &err) != QCOW_OK)
		return say(why, "the library cannot read it", &err);
	size_t at = qkc_look_find(a->look, first);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t left = len - i * QKC_SECTOR;
		uint64_t hash = qkc_part_hash(
			buf + i * QKC_SECTOR, (size_t)(left < QKC_SECTOR ? left : QKC_SECTOR));
		bool is_known = at < a->look->n && a->look->sectors[at].sector == first + i;
		if (hash == (is_known ? a->look->sectors[at++].hash : 0))
			continue;
		(void)snprintf(why, QKC_WHY_BYTES,
			"the library reads sector %" PRIu64 " not as the oracle does", first + i);
		return false;
	}
	return true;
}

/* The sectors that hold something or ever held it, asked for in ascending order; *at: where the last one was found. */
static uint64_t next_sector(const struct qkc_again *a, uint64_t sector, size_t *at)
{
	while (*at < a->look->n && a->look->sectors[*at].sector < sector)
		++*at;
	uint64_t looked = *at < a->look->n ? a->look->sectors[*at].sector : UINT64_MAX;
	uint64_t known = qkc_guest_next(qkc_expect_guest_const(a->expect), sector, looked);
	return looked < known ? looked : known;
}

static bool reads_alike(const struct qkc_again *a, struct qkc_disk *d, char *why)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	const struct at_work w = {a->base, d, NULL, NULL};
	struct qcow_image *image = open_image(&w, 0, &err);
	if (image == NULL)
		return say(why, "the library cannot open it", &err);
	bool good = true;
	size_t at = 0;
	uint64_t s = next_sector(a, 0, &at), state = qkc_expect_state_off(a->expect);
	while (good && s != UINT64_MAX) {
		uint64_t n = 1, next = next_sector(a, s + 1, &at);
		for (; next == s + n && n < CHUNK_SECTORS && next * QKC_SECTOR != state; n++)
			next = next_sector(a, s + n + 1, &at);
		good = compare_run(a, image, s, n, why);
		s = next;
	}
	qcow_close(image);
	return good;
}

/* ---- writing after a crash ---- */

/* What was read of a view before: of the image, or of a raw data file alone. */
struct later_view {
	const struct later *later;
	const struct qkc_look *look;
};

/* The state as it was read, and what is written to it then. */
struct later {
	struct later_view disk, raw;
	const struct qkc_again *a;
	struct qkc_step writes[AGAIN_WRITES];
	bool is_done[AGAIN_WRITES]; /* else there was no room for it on a device */
	const struct qkc_moment *at; /* NULL: all is done */
	char *why;
};

static bool covers(const struct qkc_step *s, uint64_t sector)
{
	return sector >= s->off / QKC_SECTOR && sector < (s->off + s->len) / QKC_SECTOR;
}

static bool later_allows(const void *ctx, uint64_t sector, uint64_t hash)
{
	const struct later_view *view = ctx;
	const struct later *l = view->later;
	uint8_t bytes[QKC_SECTOR];
	bool is_durable = l->at == NULL || l->at->floor != 0;
	for (uint32_t i = AGAIN_WRITES; i-- > 0;) {
		if (!covers(&l->writes[i], sector))
			continue;
		qkc_content(AGAIN_STEP + i, sector * QKC_SECTOR, bytes, sizeof(bytes));
		if (hash == qkc_sector_hash(bytes))
			return true;
		if (is_durable && l->is_done[i])
			return false;
	}
	/* who writes a part of a zero cluster may make the rest of a raw data file the zeros that the disk has there */
	return hash == qkc_look_at(view->look, sector) || hash == qkc_look_at(l->disk.look, sector);
}

static uint64_t later_next(const void *ctx, uint64_t sector, uint64_t past)
{
	const struct later_view *view = ctx;
	const struct later *l = view->later;
	size_t at = qkc_look_find(view->look, sector);
	uint64_t next = at < view->look->n ? view->look->sectors[at].sector : UINT64_MAX;
	for (uint32_t i = 0; i < AGAIN_WRITES; i++) {
		uint64_t first = l->writes[i].off / QKC_SECTOR;
		uint64_t from = first > sector ? first : sector;
		if (covers(&l->writes[i], from) && from < next)
			next = from;
	}
	return next < past ? next : UINT64_MAX;
}

static struct qkc_rule later_rule(const struct later *l)
{
	return (struct qkc_rule){later_allows, later_next, &l->disk, l->a->look->version, &l->raw};
}

static void choose_writes(struct later *l)
{
	const struct qkc_again *a = l->a;
	struct qkt_rng rng = qkt_rng_fixed(a->seed);
	uint64_t cluster = qkc_expect_cluster_bytes(a->expect);
	uint64_t n = qkc_guest_bytes(qkc_expect_guest_const(a->expect)) / cluster;
	for (uint32_t i = 0; i < AGAIN_WRITES; i++) {
		uint64_t at = qkt_rng_below(&rng, n < 20 ? n : 20);
		bool whole = cluster <= 4096 || qkt_rng_below(&rng, 4) == 0;
		l->writes[i] = (struct qkc_step){
			QKC_DO_WRITE, at * cluster, whole ? cluster : 4096};
	}
}

/* What happens is in the log. */
static bool write_again(struct later *l, struct qkc_disk *d, struct qkc_log *log)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	const struct at_work w = {l->a->base, d, log, NULL};
	struct qcow_image *image = open_image(&w, QCOW_OPEN_WRITE, &err);
	if (image == NULL)
		return say(l->why, "after the crash, opening for writing", &err);
	enum qcow_status st = QCOW_OK;
	for (uint32_t i = 0; i < AGAIN_WRITES && st == QCOW_OK; i++) {
		qkc_log_add(log, QKC_BEGIN, i + 1, 0, NULL);
		st = write_step(image, &l->writes[i], AGAIN_STEP + i, 0, &err);
		l->is_done[i] = st == QCOW_OK;
		if (st == QCOW_E_NOSPC && l->a->base->plan->fixed_spare != 0)
			st = QCOW_OK;
		qkc_log_add(log, QKC_END, i + 1, QKC_DONE, NULL);
	}
	qkc_log_add(log, QKC_BEGIN, AGAIN_WRITES + 1, 0, NULL);
	if (st == QCOW_OK)
		st = qcow_flush(image, &err);
	qkc_log_add(log, QKC_END, AGAIN_WRITES + 1, QKC_DONE | QKC_IS_FLUSH, NULL);
	qcow_close(image);
	return st == QCOW_OK || say(l->why, "after the crash, writing", &err);
}

static void prefix(char *why, const char *what)
{
	char text[QKC_WHY_BYTES];
	(void)snprintf(text, sizeof(text), "%s: %.*s", what, (int)(QKC_WHY_BYTES - 64), why);
	memcpy(why, text, sizeof(text));
}

static bool judge_nested(void *ctx, struct qkc_disk *d, const struct qkc_state *s)
{
	struct later *l = ctx;
	if (l->why[0] != '\0')
		return false;
	l->at = &s->at;
	if (qkc_judge_disk(l->a->expect, d, later_rule(l), NULL, l->why))
		return true;
	prefix(l->why, "after a second crash");
	return false;
}

static bool crash_again(struct later *l, struct qkc_disk *d, const struct qkc_log *log)
{
	struct qkc_totals totals = {0};
	struct qkc_explore x = {.initial = d,
		.log = log,
		.seed = l->a->seed,
		.subset_bits = 5,
		.n_random = 6,
		.n_cuts = 2,
		.judge = judge_nested,
		.ctx = l};
	qkc_explore(&x, &totals);
	((struct qkc_again *)(uintptr_t)l->a)->n_nested += totals.n_distinct;
	qkc_set_free(&totals.contents);
	return totals.n_bad == 0;
}

static bool goes_on(struct qkc_again *a, struct qkc_disk *d, char *why)
{
	struct later l = {.a = a, .why = why};
	struct qkc_log log = {0};
	size_t mark = qkc_disk_mark(d);
	l.disk = (struct later_view){&l, a->look};
	l.raw = (struct later_view){&l, a->look->raw};
	choose_writes(&l);
	a->n_again++;
	bool good = write_again(&l, d, &log);
	if (good && !qkc_judge_disk(a->expect, d, later_rule(&l), NULL, why)) {
		prefix(why, "written to after the crash");
		good = false;
	}
	if (good && a->seed / a->one_in % NESTED_ONE_IN == 0) {
		qkc_disk_undo(d, mark);
		good = crash_again(&l, d, &log);
	}
	qkc_log_clear(&log);
	return good;
}

bool qkc_ours_judge(struct qkc_again *a, struct qkc_disk *d, char *why)
{
	if (!reads_alike(a, d, why))
		return false;
	return a->one_in == 0 || a->seed % a->one_in != 0 || goes_on(a, d, why);
}
