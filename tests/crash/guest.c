/* SPDX-License-Identifier: MIT */
#include "guest.h"

#include <stdlib.h>

#include "disk.h"

#define PAGE_SECTORS 128u

struct value {
	uint64_t hash;
	uint32_t step; /* 0: before the first */
	enum qkc_write_kind kind;
};

/* Values of a sector, oldest first. */
struct history {
	struct value *values;
	uint32_t n;
};

struct page {
	struct history sectors[PAGE_SECTORS];
};

struct qkc_guest {
	uint64_t n_bytes, end_bytes, n_pages;
	struct page **pages; /* NULL: zeros, never written */
};

struct qkc_guest *qkc_guest_new(uint64_t disk_bytes, uint64_t end_bytes)
{
	struct qkc_guest *g = qkc_need(1, sizeof(*g));
	g->n_bytes = disk_bytes;
	g->end_bytes = end_bytes;
	g->n_pages = end_bytes / (PAGE_SECTORS * QKC_SECTOR) + 1;
	g->pages = qkc_need((size_t)g->n_pages, sizeof(struct page *));
	return g;
}

void qkc_guest_free(struct qkc_guest *g)
{
	if (g == NULL)
		return;
	for (uint64_t i = 0; i < g->n_pages; i++) {
		for (unsigned k = 0; g->pages[i] != NULL && k < PAGE_SECTORS; k++)
			free(g->pages[i]->sectors[k].values);
		free(g->pages[i]);
	}
	free(g->pages);
	free(g);
}

uint64_t qkc_guest_bytes(const struct qkc_guest *g)
{
	return g->n_bytes;
}

static void add(struct qkc_guest *g, uint64_t sector, struct value value)
{
	struct page **page = &g->pages[sector / PAGE_SECTORS];
	if (*page == NULL)
		*page = qkc_need(1, sizeof(**page));
	struct history *h = &(*page)->sectors[sector % PAGE_SECTORS];
	h->values = qkc_more(h->values, h->n + 1, sizeof(*h->values));
	h->values[h->n++] = value;
}

static const struct history *history_of(const struct qkc_guest *g, uint64_t sector)
{
	const struct page *page = g->pages[sector / PAGE_SECTORS];
	return page != NULL ? &page->sectors[sector % PAGE_SECTORS] : NULL;
}

void qkc_guest_start(struct qkc_guest *g, uint64_t sector, uint64_t hash)
{
	if (hash != 0)
		add(g, sector, (struct value){hash, 0, QKC_PLAIN});
}

void qkc_guest_write(struct qkc_guest *g, uint32_t step, enum qkc_write_kind kind, uint64_t sector,
	uint64_t hash)
{
	add(g, sector, (struct value){hash, step, kind});
}

void qkc_guest_doubt(struct qkc_guest *g, uint32_t from_step)
{
	for (uint64_t i = 0; i < g->n_pages; i++)
		for (unsigned k = 0; g->pages[i] != NULL && k < PAGE_SECTORS; k++) {
			struct history *h = &g->pages[i]->sectors[k];
			for (uint32_t v = 0; v < h->n; v++)
				if (h->values[v].step >= from_step)
					h->values[v].kind = QKC_MAYBE;
		}
}

uint64_t qkc_guest_now(const struct qkc_guest *g, uint64_t sector)
{
	const struct history *h = history_of(g, sector);
	return h != NULL && h->n != 0 ? h->values[h->n - 1].hash : 0;
}

static bool is_durable(const struct value *v, const struct qkc_moment *at)
{
	return v->kind != QKC_MAYBE &&
	       (v->step < at->floor || (v->kind == QKC_FUA && v->step <= at->ended));
}

bool qkc_guest_allows(
	const struct qkc_guest *g, const struct qkc_moment *at, uint64_t sector, uint64_t hash)
{
	const struct history *h = history_of(g, sector);
	for (uint32_t i = h != NULL ? h->n : 0; i-- > 0;) {
		const struct value *v = &h->values[i];
		if (v->step > at->started)
			continue;
		if (v->hash == hash)
			return true;
		if (is_durable(v, at))
			return false;
	}
	/* before all that: the zeros of a new disk, unless it started with something else */
	return hash == 0 && (h == NULL || h->n == 0 || h->values[0].step != 0);
}

bool qkc_guest_knows(const struct qkc_guest *g, uint64_t sector)
{
	const struct history *h = history_of(g, sector);
	return h != NULL && h->n != 0;
}

uint64_t qkc_guest_next(const struct qkc_guest *g, uint64_t sector, uint64_t past)
{
	uint64_t end = (g->end_bytes + QKC_SECTOR - 1) / QKC_SECTOR;
	end = past < end ? past : end;
	while (sector < end) {
		const struct history *h = history_of(g, sector);
		if (h == NULL)
			sector = (sector / PAGE_SECTORS + 1) * PAGE_SECTORS;
		else if (h->n != 0)
			return sector;
		else
			sector++;
	}
	return UINT64_MAX;
}
