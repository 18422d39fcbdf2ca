/* SPDX-License-Identifier: MIT */
/* sick: see sick.h. */
#include "sick.h"

#include "cm.h"

#include <stdlib.h>

#include <qcowkit/qcowkit.h>

#include "host.h"

#define DISK   (256U << 10)
#define COPIED (UINT64_C(1) << 63)

static uint64_t load(const uint8_t *p)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < 8; i++)
		v = v << 8 | p[i];
	return v;
}

static void store(uint8_t *p, uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		p[i] = (uint8_t)(v >> (56 - 8 * i));
}

/* ---- images ---- */

struct qcow_store *qkt_store_of(const uint8_t *bytes, size_t n)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *s = NULL;

	assert_ok(qcow_memory_open(n, &s, &err), err);
	assert_ok(qcow_store_write(s, bytes, n, 0, &err), err);
	return s;
}

void qkt_content_of(uint64_t guest, uint8_t *buf, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		buf[i] = (uint8_t)(guest * 7 + i * 13 + 1);
}

/* Where the clusters lie, read by the specification. */
static void learn(struct qkt_base *b)
{
	uint64_t per = b->cluster / 8;

	b->l1 = load(b->bytes + 40);
	b->rt = load(b->bytes + 48);
	b->host = calloc(b->n_guest, sizeof(*b->host));
	b->l2 = calloc(b->n_guest, sizeof(*b->l2));
	assert_true(b->host != NULL && b->l2 != NULL);
	for (uint64_t g = 0; g < b->n_guest; g++) {
		uint64_t l2 = load(b->bytes + b->l1 + g / per * 8) & ~COPIED;
		b->l2[g] = l2 / b->cluster;
		b->host[g] = l2 == 0 ? 0
				     : (load(b->bytes + l2 + g % per * 8) & ~COPIED) / b->cluster;
	}
}

void qkt_make_base(struct qkt_base *b, uint64_t cluster, unsigned bits, unsigned version)
{
	struct qcow_create_options c = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *s = NULL;
	struct qcow_image *image = NULL;
	uint8_t *buf = malloc(cluster);

	*b = (struct qkt_base){
		.cluster = cluster, .bits = bits, .version = version, .n_guest = DISK / cluster};
	c.cluster_size = cluster;
	c.refcount_bits = bits;
	c.version = version;
	c.virtual_size = DISK;
	assert_ok(qcow_file_open(qkt_path("base"), QCOW_FILE_WRITE | QCOW_FILE_CREATE, &s, &err),
		err);
	assert_ok(qcow_store_truncate(s, 0, &err), err);
	assert_ok(qcow_create(s, NULL, &c, &err), err);
	o.flags = QCOW_OPEN_WRITE;
	assert_ok(qcow_open(s, &o, &image, &err), err);
	for (uint64_t g = 0; g < b->n_guest; g++) {
		if (g % 5 == 3 || (g > 20 && g < 90))
			continue;
		qkt_content_of(g, buf, cluster);
		assert_ok(qcow_pwrite(image, buf, cluster, g * cluster, 0, &err), err);
	}
	assert_ok(qcow_flush(image, &err), err);
	qcow_close(image);
	free(buf);
	b->bytes = qkt_slurp(qkt_path("base"), &b->n);
	learn(b);
}

void qkt_drop_base(struct qkt_base *b)
{
	free(b->bytes);
	free(b->host);
	free(b->l2);
}

/* ---- damage ---- */

/* A word speaks of a host cluster: whatever lies there may change. */
static void speak_of(struct qkt_sick *s, uint64_t host)
{
	for (uint64_t g = 0; g < s->base->n_guest; g++) {
		if (host != 0 && (s->base->host[g] == host || s->base->l2[g] == host))
			s->is_free[g] = true;
	}
}

static uint64_t random_word(const struct qkt_sick *s, struct qkt_rng *rng)
{
	uint64_t n = s->n / s->base->cluster;
	uint64_t off = qkt_rng_below(rng, n + 3) * s->base->cluster;

	switch (qkt_rng_below(rng, 8)) {
	case 0:
		return 0;
	case 1:
		return off | COPIED | UINT64_C(1) << (1 + qkt_rng_below(rng, 8));
	case 2:
		return off | COPIED | UINT64_C(1) << (56 + qkt_rng_below(rng, 6));
	case 3:
		return off + 512 * qkt_rng_below(rng, 8);
	case 4:
		return off | 1;
	case 5:
		return off;
	default:
		return off | COPIED;
	}
}

static void hurt_l2(struct qkt_sick *s, struct qkt_rng *rng)
{
	const struct qkt_base *b = s->base;
	uint64_t per = b->cluster / 8;
	uint64_t g = qkt_rng_below(rng, b->n_guest);
	uint64_t word = random_word(s, rng);

	if (b->l2[g] == 0)
		return;
	s->is_free[g] = true;
	speak_of(s, (word & UINT64_C(0x00fffffffffffe00)) / b->cluster);
	store(s->bytes + b->l2[g] * b->cluster + g % per * 8, word);
}

static void hurt_l1(struct qkt_sick *s, struct qkt_rng *rng)
{
	const struct qkt_base *b = s->base;
	uint64_t per = b->cluster / 8;
	uint64_t i = qkt_rng_below(rng, (b->n_guest + per - 1) / per);
	uint64_t word = random_word(s, rng);

	for (uint64_t g = i * per; g < (i + 1) * per && g < b->n_guest; g++) {
		s->is_free[g] = true;
		speak_of(s, b->host[g]);
	}
	speak_of(s, (word & UINT64_C(0x00fffffffffffe00)) / b->cluster);
	store(s->bytes + b->l1 + i * 8, word);
}

static void hurt_refcounts(struct qkt_sick *s, struct qkt_rng *rng)
{
	/* the block that it was before anything was damaged */
	uint64_t block = load(s->base->bytes + s->base->rt);

	if (qkt_rng_below(rng, 4) == 0)
		memset(s->bytes + block, (int)qkt_rng_below(rng, 256), s->base->cluster);
	else
		s->bytes[block + qkt_rng_below(rng, s->base->cluster)] = (uint8_t)qkt_rng_below(
			rng, 256);
}

static void hurt(struct qkt_sick *s, struct qkt_rng *rng)
{
	switch (qkt_rng_below(rng, 6)) {
	case 0:
		hurt_l1(s, rng);
		break;
	case 1:
		store(s->bytes + s->base->rt + qkt_rng_below(rng, 3) * 8, random_word(s, rng));
		break;
	case 2:
		hurt_refcounts(s, rng);
		break;
	default:
		hurt_l2(s, rng);
	}
}

void qkt_fall_sick(struct qkt_sick *s, const struct qkt_base *b, struct qkt_rng *rng)
{
	*s = (struct qkt_sick){.base = b, .n = b->n, .fixed = qkt_rng_below(rng, 3) == 0};
	/* a device has room behind the image */
	if (s->fixed)
		s->n += 64 * b->cluster;
	s->bytes = calloc(1, s->n);
	s->is_free = calloc(b->n_guest, sizeof(*s->is_free));
	assert_true(s->bytes != NULL && s->is_free != NULL);
	memcpy(s->bytes, b->bytes, b->n);
	for (uint64_t n = 1 + qkt_rng_below(rng, 4); n != 0; n--)
		hurt(s, rng);
	if (b->version == 3 && qkt_rng_below(rng, 4) == 0)
		s->bytes[79] |= (uint8_t)(1 + qkt_rng_below(rng, 3));
}

void qkt_get_well(struct qkt_sick *s)
{
	free(s->bytes);
	free(s->is_free);
}
