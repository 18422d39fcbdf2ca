/* SPDX-License-Identifier: MIT */
/* What the order checker knows of single clusters: a hash table. */
#include "order_int.h"

#include <stdio.h>
#include <stdlib.h>

void *qko_need(void *p)
{
	if (p != NULL)
		return p;
	(void)fprintf(stderr, "order checker: out of memory\n");
	abort();
}

uint32_t qko_be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

uint64_t qko_be64(const uint8_t *p)
{
	return (uint64_t)qko_be32(p) << 32 | qko_be32(p + 4);
}

/* ---- clusters: a hash table, open addressing ---- */

static size_t hash_at(const struct qkt_order *o, uint64_t index)
{
	size_t at = (size_t)(index * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (o->n_hash - 1);
	while (o->hash[at] != NULL && o->hash[at]->index != index)
		at = (at + 1) & (o->n_hash - 1);
	return at;
}

struct qko_cluster *qko_find(const struct qkt_order *o, uint64_t index)
{
	return o->n_hash != 0 ? o->hash[hash_at(o, index)] : NULL;
}

static void grow_hash(struct qkt_order *o)
{
	struct qko_cluster **old = o->hash;
	size_t n_old = o->n_hash;
	o->n_hash = n_old != 0 ? n_old * 2 : 256;
	o->hash = qko_need(calloc(o->n_hash, sizeof(*o->hash)));
	for (size_t i = 0; i < n_old; i++)
		if (old[i] != NULL)
			o->hash[hash_at(o, old[i]->index)] = old[i];
	free(old);
}

struct qko_cluster *qko_get(struct qkt_order *o, uint64_t index)
{
	struct qko_cluster *c = qko_find(o, index);
	if (c != NULL)
		return c;
	if (o->n_clusters * 2 >= o->n_hash)
		grow_hash(o);
	c = qko_need(calloc(1, sizeof(*c)));
	c->index = index;
	o->hash[hash_at(o, index)] = c;
	o->n_clusters++;
	return c;
}

void qko_untrack(struct qko_cluster *c)
{
	free(c->pending);
	free(c->alive);
	free(c->blank);
	free(c->masks);
	c->pending = NULL;
	c->alive = NULL;
	c->blank = NULL;
	c->masks = NULL;
	c->n_masks = 0;
}

/* Nothing can reach it any more: what is written from now on is of another life. */
void qko_begin_life(struct qkt_order *o, struct qko_cluster *c)
{
	free(c->alive);
	free(c->blank);
	free(c->masks);
	c->alive = NULL;
	c->blank = NULL;
	c->masks = NULL;
	c->n_masks = 0;
	c->life = o->seq + 1;
}
