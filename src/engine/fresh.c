/* SPDX-License-Identifier: MIT */
/* fresh: see fresh.h. */
#include "engine/fresh.h"

#include "base/mem.h"
#include "base/num.h"
#include "engine/image.h"
#include "engine/rw.h"
#include "engine/table.h"

void qk_fresh_init(struct qk_fresh *f, struct qcow_image *image, enum qk_space_kind kind)
{
	*f = (struct qk_fresh){.image = image, .kind = kind};
}

void qk_fresh_release(struct qk_fresh *f)
{
	free(f->taken.v);
	free(f->spare.v);
	f->taken = f->spare = (struct qk_fresh_runs){0};
}

/* Room for one more run. */
static enum qcow_status grow(struct qk_fresh_runs *runs, struct qcow_error *err)
{
	if (runs->v != NULL && runs->n < runs->room)
		return QCOW_OK;
	uint32_t room = runs->room == 0 ? 64 : runs->room * 2;
	struct qk_space_run *v = qk_realloc(runs->v, room, sizeof(*v));
	if (v == NULL)
		return QK_FAIL_NOMEM(err);
	runs->v = v;
	runs->room = room;
	return QCOW_OK;
}

static void add(struct qk_fresh_runs *runs, const struct qk_space_run *run, uint64_t cluster_size)
{
	struct qk_space_run *last = runs->n != 0 ? &runs->v[runs->n - 1] : NULL;
	if (last != NULL && last->off + last->n * cluster_size == run->off)
		last->n += run->n;
	else
		runs->v[runs->n++] = *run;
}

enum qcow_status qk_fresh_take(
	struct qk_fresh *f, uint64_t n, uint64_t *off, struct qcow_error *err)
{
	const struct qk_space_want want = {.n = n, .min_n = n, .near = f->near, .kind = f->kind};
	uint64_t cluster_size = f->image->geometry.cluster_size;
	struct qk_space_run run = {0};
	QK_TRY(grow(&f->taken, err));
	QK_TRY(qk_table_take(f->image, &want, &run, err));
	add(&f->taken, &run, cluster_size);
	f->near = run.off + run.n * cluster_size;
	*off = run.off;
	return QCOW_OK;
}

enum qcow_status qk_fresh_write(
	struct qk_fresh *f, const void *bytes, uint64_t len, uint64_t off, struct qcow_error *err)
{
	QK_TRY(qk_space_check_overlap(f->image->rw->space, f->kind, off, len, err));
	return qcow_store_write(f->image->store, bytes, (size_t)len, off, err);
}

enum qcow_status qk_fresh_spare(
	struct qk_fresh *f, uint64_t off, uint64_t n, struct qcow_error *err)
{
	const struct qk_space_run run = {.off = off, .n = n};
	QK_TRY(grow(&f->spare, err));
	/* each for itself: a mark counts them */
	f->spare.v[f->spare.n++] = run;
	return QCOW_OK;
}

struct qk_fresh_mark qk_fresh_get_mark(const struct qk_fresh *f)
{
	const struct qk_fresh_runs *t = &f->taken;
	return (struct qk_fresh_mark){t->n, f->spare.n, t->n != 0 ? t->v[t->n - 1].n : 0};
}

void qk_fresh_give_back(struct qk_fresh *f, const struct qk_fresh_mark *mark)
{
	static const struct qk_fresh_mark start = {0};
	const struct qk_fresh_mark *to = mark != NULL ? mark : &start;
	struct qk_space *space = f->image->rw->space;
	struct qk_fresh_runs *t = &f->taken;
	uint64_t cluster_size = f->image->geometry.cluster_size;
	for (; t->n > to->n; t->n--)
		qk_space_give_back(space, t->v[t->n - 1].off, t->v[t->n - 1].n);
	f->spare.n = to->n_spare;
	f->near = 0;
	if (t->n == 0 || t->v[t->n - 1].n == to->n_last)
		return;
	struct qk_space_run *last = &t->v[t->n - 1];
	qk_space_give_back(space, last->off + to->n_last * cluster_size, last->n - to->n_last);
	last->n = to->n_last;
}

void qk_fresh_keep(struct qk_fresh *f)
{
	for (uint32_t i = 0; i < f->spare.n; i++)
		qk_space_give_back(f->image->rw->space, f->spare.v[i].off, f->spare.v[i].n);
	f->spare.n = f->taken.n = 0;
}
