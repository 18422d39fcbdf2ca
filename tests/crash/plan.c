/* SPDX-License-Identifier: MIT */
#include "plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"

static void append(struct qkc_step **list, size_t *n, enum qkc_act act, uint64_t off, uint64_t len)
{
	*list = qkc_more(*list, *n + 1, sizeof(**list));
	(*list)[(*n)++] = (struct qkc_step){act, off, len};
}

uint64_t qkc_plan_state_off(const struct qkc_plan *p)
{
	uint64_t cluster = UINT64_C(1) << p->config.cluster_bits;
	uint64_t span = cluster * (cluster / (p->is_extended ? 16 : 8));
	return (p->disk_bytes + span - 1) / span * span;
}

void qkc_plan_first(struct qkc_plan *p, enum qkc_act act, uint64_t off, uint64_t len)
{
	append(&p->first, &p->n_first, act, off, len);
}

void qkc_plan_between(struct qkc_plan *p, enum qkc_act act, uint64_t off, uint64_t len)
{
	append(&p->between, &p->n_between, act, off, len);
}

void qkc_plan_step(struct qkc_plan *p, enum qkc_act act, uint64_t off, uint64_t len)
{
	append(&p->steps, &p->n_steps, act, off, len);
}

void qkc_plan_clear(struct qkc_plan *p)
{
	free(p->first);
	free(p->between);
	free(p->steps);
	*p = (struct qkc_plan){0};
}

void qkc_step_print(const struct qkc_step *s, char *line, size_t n)
{
	static const char *const names[] = {"write", "write, FUA", "write state",
		"write compressed", "zero", "zero with unmap", "discard", "flush", "fail",
		"recover", "reopen", "snapshot", "apply", "delete"};
	static const char *const fails[] = {
		"nothing", "a flush", "a flush, cache dropped", "a write", "for want of space"};
	static const char *const files[] = {"", " of the image", " of the data file"};
	switch (s->act) {
	case QKC_DO_FLUSH:
	case QKC_DO_RECOVER:
	case QKC_DO_REOPEN:
	case QKC_DO_SNAPSHOT:
		(void)snprintf(line, n, "%s", names[s->act]);
		break;
	case QKC_DO_APPLY:
	case QKC_DO_DELETE:
		(void)snprintf(line, n, "%s %" PRIu64, names[s->act], s->off);
		break;
	case QKC_DO_FAIL:
		(void)snprintf(line, n, "fail %s, from call %" PRIu64 "%s on",
			fails[s->off & QKC_FAIL_KIND], s->len, files[s->off / QKC_ONLY_IMAGE]);
		break;
	default:
		(void)snprintf(line, n, "%s %" PRIu64 " +%" PRIu64, names[s->act], s->off, s->len);
	}
}

static uint64_t scramble(uint64_t z)
{
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

void qkc_content(uint32_t step, uint64_t off, uint8_t *buf, uint64_t len)
{
	for (uint64_t at = 0; at < len;) {
		uint64_t sector = (off + at) / QKC_SECTOR, within = (off + at) % 8;
		uint64_t word = scramble(((uint64_t)step << 36) + sector + 1) | 1;
		uint64_t n = len - at < 8 - within ? len - at : 8 - within;
		memcpy(buf + at, (const uint8_t *)&word + within, (size_t)n);
		at += n;
	}
}

struct qkc_step qkc_discarded(const struct qkc_plan *p, const struct qkc_step *s)
{
	uint64_t cluster = UINT64_C(1) << p->config.cluster_bits, end = s->off + s->len;
	struct qkc_step whole = *s;
	whole.off = (s->off + cluster - 1) / cluster * cluster;
	if (end != p->disk_bytes)
		end = end / cluster * cluster;
	whole.len = end > whole.off ? end - whole.off : 0;
	return whole;
}

static void apply(const struct qkc_plan *p, const struct qkc_step *step, uint32_t number,
	uint64_t sector, uint8_t *buf)
{
	uint64_t start = sector * QKC_SECTOR;
	struct qkc_step s = *step;
	if (s.act == QKC_DO_DISCARD)
		s = qkc_discarded(p, &s);
	uint64_t from = s.off > start ? s.off : start, end = s.off + s.len;
	end = end < start + QKC_SECTOR ? end : start + QKC_SECTOR;
	if (s.act >= QKC_DO_FLUSH || from >= end)
		return;
	if (s.act <= QKC_DO_WRITE_COMPRESSED)
		qkc_content(number, from, buf + (from - start), end - from);
	else
		memset(buf + (from - start), 0, (size_t)(end - from));
}

void qkc_sector_after(const struct qkc_plan *p, uint32_t n, uint64_t sector, uint8_t *buf)
{
	const struct qkc_step backing = {QKC_DO_WRITE, 0, p->backing_bytes};
	memset(buf, 0, QKC_SECTOR);
	apply(p, &backing, QKC_FIRST_STEP - 1, sector, buf);
	for (uint32_t i = 0; i < p->n_first; i++)
		apply(p, &p->first[i], QKC_FIRST_STEP + i, sector, buf);
	for (uint32_t i = 0; i < p->n_between; i++)
		apply(p, &p->between[i], QKC_FIRST_STEP + (uint32_t)p->n_first + i, sector, buf);
	for (uint32_t i = 0; i < n; i++)
		apply(p, &p->steps[i], i + 1, sector, buf);
}

/* Steps on whole clusters move together with those on parts of them; what would pass the end stays. */
static void shift(struct qkc_plan *p, struct qkc_step *steps, size_t n, uint64_t by)
{
	for (size_t i = 0; i < n; i++)
		if (steps[i].act < QKC_DO_FLUSH &&
			steps[i].off + steps[i].len + by <= p->disk_bytes)
			steps[i].off += by;
}

static void vary_lengths(struct qkc_plan *p)
{
	uint64_t cluster = UINT64_C(1) << p->config.cluster_bits;
	for (size_t i = 0; i < p->n_steps; i++) {
		struct qkc_step *s = &p->steps[i];
		uint64_t more = s->len / 2 / QKC_SECTOR * QKC_SECTOR;
		if (s->act >= QKC_DO_WRITE_COMPRESSED || qkt_rng_below(&p->rng, 3) != 0)
			continue;
		if (s->off % cluster + s->len + more <= cluster && s->len % QKC_SECTOR == 0)
			s->len += more;
		else if (more != 0)
			s->len = more;
	}
}

static void vary_flushes(struct qkc_plan *p)
{
	struct qkc_step *old = p->steps;
	size_t n = p->n_steps;
	p->steps = NULL;
	p->n_steps = 0;
	for (size_t i = 0; i < n; i++) {
		uint64_t chance = qkt_rng_below(&p->rng, 8);
		if (old[i].act != QKC_DO_FLUSH || chance > 1)
			qkc_plan_step(p, old[i].act, old[i].off, old[i].len);
		if (old[i].act < QKC_DO_FLUSH && chance == 0)
			qkc_plan_step(p, QKC_DO_FLUSH, 0, 0);
	}
	free(old);
}

static void vary(struct qkc_plan *p)
{
	uint64_t by = qkt_rng_below(&p->rng, 4) << p->config.cluster_bits;
	shift(p, p->first, p->n_first, by);
	shift(p, p->between, p->n_between, by);
	shift(p, p->steps, p->n_steps, by);
	vary_lengths(p);
	vary_flushes(p);
}

struct qkc_plan qkc_plan_make(
	const struct qkc_workload *w, const struct qkc_config *c, uint64_t seed, unsigned variant)
{
	struct qkc_plan p = {.config = *c};
	uint64_t cluster = UINT64_C(1) << c->cluster_bits;
	uint64_t name = c->version * 8192 + c->cluster_bits * 128 + c->refcount_bits;
	for (const char *s = w->name; *s != '\0'; s++)
		name = scramble(name + (unsigned char)*s);
	p.rng = qkt_rng_fixed(seed ^ scramble(name + variant));
	/* two L2 tables at least: each maps cluster / 8 clusters */
	p.disk_bytes = cluster / 8 * cluster * 2 + 4 * cluster;
	w->make(&p);
	if (variant != 0)
		vary(&p);
	return p;
}
