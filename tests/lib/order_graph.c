/* SPDX-License-Identifier: MIT */
/*
 * The order checker's picture of what a crash could leave reachable: tables with all possible contents
 * of their sectors, and for every cluster the slots that may name it. Specification: header, host cluster
 * management, cluster mapping, snapshots, bitmaps extension.
 */
#include "order_int.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_BYTES 4096u /* of cluster 0 that are looked at: fields and extensions */

bool qko_is_named(const struct qko_cluster *c)
{
	return c->table != NULL || c->n_refs != 0 || c->n_static != 0;
}

bool qko_has_ref(const struct qko_cluster *c, const struct qko_table *t, uint64_t slot)
{
	for (uint32_t i = 0; i < c->n_refs; i++)
		if (c->refs[i].t == t && c->refs[i].slot == slot)
			return true;
	return false;
}

static void add_ref(struct qko_cluster *c, struct qko_table *t, uint64_t slot)
{
	if (c->n_refs == c->room_refs) {
		c->room_refs = c->room_refs != 0 ? c->room_refs * 2 : 2;
		c->refs = qko_need(realloc(c->refs, c->room_refs * sizeof(*c->refs)));
	}
	c->refs[c->n_refs++] = (struct qko_ref){t, slot};
}

static void drop_ref(struct qko_cluster *c, const struct qko_table *t, uint64_t slot)
{
	for (uint32_t i = 0; i < c->n_refs; i++)
		if (c->refs[i].t == t && c->refs[i].slot == slot) {
			c->refs[i] = c->refs[--c->n_refs];
			return;
		}
}

/* ---- entries ---- */

unsigned qko_entry_bytes(const struct qkt_order *o, enum qko_role role)
{
	return role == QKO_L2 && o->is_extended ? 16 : 8;
}

const uint8_t *qko_version(const struct qko_table *t, uint64_t sector, unsigned n)
{
	const struct qko_version *v = t->older[sector];
	for (; v != NULL && n > 0; n--)
		v = v->newer;
	if (v != NULL)
		return v->bytes;
	return n == 0 ? t->cur + sector * QKO_SECTOR : NULL;
}

static struct qko_target decode_packed(const struct qkt_order *o, uint64_t v)
{
	unsigned x = 62 - (o->cluster_bits - 8);
	uint64_t off = v & ((UINT64_C(1) << x) - 1);
	uint64_t n = ((v & ~(QKO_COPIED | QKO_PACKED_FLAG)) >> x) + 1;
	struct qko_target target = {.kind = QKO_PACKED};
	if ((v & QKO_COPIED) != 0 || off >> 56 != 0)
		target.kind = QKO_BAD;
	target.off = off / QKO_SECTOR * QKO_SECTOR;
	target.len = n * QKO_SECTOR;
	return target;
}

static struct qko_target decode_l2(const struct qkt_order *o, const uint8_t *entry)
{
	uint64_t v = qko_be64(entry);
	if ((v & QKO_PACKED_FLAG) != 0)
		return decode_packed(o, v);
	struct qko_target target = {.kind = QKO_PLAIN, .off = v & QKO_OFFSET_MASK, .len = o->cs};
	target.is_copied = (v & QKO_COPIED) != 0;
	target.is_zero = (v & 1) != 0;
	if (o->is_extended)
		target.subclusters = qko_be32(entry + 12);
	if ((v & UINT64_C(0x3f000000000001fe)) != 0 || target.off % o->cs != 0 ||
		(target.is_zero && (o->version == 2 || o->is_extended)))
		target.kind = QKO_BAD;
	else if (o->has_data_file && (o->data == NULL || (target.off == 0 && !target.is_copied)))
		target.kind = QKO_NOTHING;
	else if (o->has_data_file)
		target.off += QKO_DATA;
	else if (target.off == 0)
		target.kind = target.is_copied ? QKO_BAD : QKO_NOTHING;
	return target;
}

struct qko_target qko_decode(const struct qkt_order *o, enum qko_role role, const uint8_t *entry)
{
	if (role == QKO_L2)
		return decode_l2(o, entry);
	struct qko_target target = {.kind = QKO_NOTHING, .len = o->cs};
	if (role != QKO_L1 && role != QKO_RT)
		return target;
	uint64_t v = qko_be64(entry);
	uint64_t reserved = role == QKO_L1 ? UINT64_C(0x7f000000000001ff)
					   : UINT64_C(0xff000000000001ff);
	target.off = v & QKO_OFFSET_MASK;
	target.is_copied = role == QKO_L1 && (v & QKO_COPIED) != 0;
	if (v != 0)
		target.kind = (v & reserved) != 0 || target.off == 0 || target.off % o->cs != 0
				      ? QKO_BAD
				      : QKO_TABLE;
	return target;
}

bool qko_slot(const struct qkt_order *o, const struct qko_table *t, uint64_t slot, unsigned n,
	struct qko_target *out)
{
	uint64_t at = slot * qko_entry_bytes(o, t->role);
	const uint8_t *sector = qko_version(t, at / QKO_SECTOR, n);
	if (sector == NULL)
		return false;
	*out = qko_decode(o, t->role, sector + at % QKO_SECTOR);
	return true;
}

bool qko_covers(const struct qko_target *target, uint64_t cs, uint64_t index)
{
	if (target->kind == QKO_NOTHING || target->kind == QKO_BAD)
		return false;
	return index >= target->off / cs && index <= (target->off + target->len - 1) / cs;
}

/* Does any version of the slot name the cluster? */
static bool names(
	const struct qkt_order *o, const struct qko_table *t, uint64_t slot, uint64_t index)
{
	struct qko_target target;
	for (unsigned n = 0; qko_slot(o, t, slot, n, &target); n++)
		if (qko_covers(&target, o->cs, index))
			return true;
	return false;
}

/* May the guest see what is written to it? Of extended entries and packed data every sector is tracked. */
static bool compute_visible(const struct qkt_order *o, const struct qko_cluster *c)
{
	struct qko_target target;
	for (uint32_t i = 0; !o->is_extended && i < c->n_refs; i++)
		for (unsigned n = 0; qko_slot(o, c->refs[i].t, c->refs[i].slot, n, &target); n++)
			if (target.kind == QKO_PLAIN && !target.is_zero &&
				target.off / o->cs == c->index)
				return true;
	return false;
}

/* ---- tables ---- */

static void judge_slot(struct qkt_order *o, struct qko_table *t, uint64_t slot);

static void claim(struct qkt_order *o, struct qko_table *t, uint64_t off, uint64_t len)
{
	for (uint64_t i = off / o->cs; i <= (off + len - 1) / o->cs; i++) {
		struct qko_cluster *c = qko_get(o, i);
		if (c->table != NULL || c->n_static != 0)
			qko_report(o, QKT_O10,
				"cluster 0x%" PRIx64 " becomes a table and is another", i * o->cs);
		c->table = t;
		qko_untrack(c);
	}
}

/* Read a table that becomes reachable. Its slots are not judged yet. */
struct qko_table *qko_load_table(
	struct qkt_order *o, enum qko_role role, uint64_t off, uint64_t len)
{
	struct qko_table *t = qko_need(calloc(1, sizeof(*t)));
	t->role = role;
	t->off = off;
	t->used = len;
	t->len = (len + QKO_SECTOR - 1) / QKO_SECTOR * QKO_SECTOR;
	t->cur = qko_need(malloc((size_t)t->len));
	t->cur_id = qko_need(calloc((size_t)(t->len / QKO_SECTOR), sizeof(*t->cur_id)));
	t->older = qko_need(calloc((size_t)(t->len / QKO_SECTOR), sizeof(struct qko_version *)));
	if (qcow_store_read_padded(o->peek, t->cur, (size_t)t->len, off, NULL) != QCOW_OK)
		abort();
	claim(o, t, off, t->len);
	return t;
}

static uint64_t n_slots(const struct qkt_order *o, const struct qko_table *t)
{
	return t->role == QKO_L1 || t->role == QKO_L2 || t->role == QKO_RT
		       ? t->used / qko_entry_bytes(o, t->role)
		       : 0;
}

static bool is_empty_slot(const struct qkt_order *o, const struct qko_table *t, uint64_t slot)
{
	static const uint8_t zeros[16];
	unsigned n = qko_entry_bytes(o, t->role);
	return memcmp(t->cur + slot * n, zeros, n) == 0;
}

void qko_judge_slots(struct qkt_order *o, struct qko_table *t)
{
	for (uint64_t slot = 0; slot < n_slots(o, t); slot++)
		if (!is_empty_slot(o, t, slot))
			judge_slot(o, t, slot);
}

/* A slot names a table: a new one is read, one that was there already gets another parent. */
static void judge_table_target(
	struct qkt_order *o, struct qko_table *t, uint64_t slot, const struct qko_target *target)
{
	enum qko_role role = t->role == QKO_L1 ? QKO_L2 : QKO_RB;
	struct qko_cluster *c = qko_get(o, target->off / o->cs);
	if (qko_has_ref(c, t, slot))
		return;
	bool is_new = c->table == NULL;
	if (is_new && c->n_refs != 0)
		qko_report(o, QKT_O10, "cluster 0x%" PRIx64 " becomes a table and holds data",
			target->off);
	if (!is_new && c->table->role != role)
		qko_report(o, QKT_O10, "cluster 0x%" PRIx64 " gets a second role", target->off);
	if (is_new)
		qko_judge_durable(
			o, target->off, o->cs, role == QKO_L2 ? "L2 table" : "refcount block");
	add_ref(c, t, slot);
	struct qko_table *child = is_new ? qko_load_table(o, role, target->off, o->cs) : c->table;
	qko_judge_refcount(o, c);
	if (is_new) {
		qko_judge_slots(o, child);
		return;
	}
	/* what it names has one more reference */
	for (uint64_t i = 0; !o->is_loading && i < n_slots(o, child); i++) {
		struct qko_target below;
		for (unsigned n = 0; qko_slot(o, child, i, n, &below); n++)
			if (below.kind == QKO_PLAIN || below.kind == QKO_PACKED)
				qko_judge_refcount(o, qko_get(o, below.off / o->cs));
	}
}

/* The subclusters of c that a slot shows in some state; not counting slot `but` of t. */
static uint32_t shown_subclusters(const struct qkt_order *o, const struct qko_cluster *c,
	const struct qko_table *t, uint64_t but)
{
	uint32_t shown = 0;
	for (uint32_t i = 0; i < c->n_refs; i++) {
		const struct qko_ref *r = &c->refs[i];
		struct qko_target target;
		for (unsigned n = 0;
			(r->t != t || r->slot != but) && qko_slot(o, r->t, r->slot, n, &target);
			n++)
			if (target.kind == QKO_PLAIN && target.off / o->cs == c->index)
				shown |= target.subclusters;
	}
	return shown;
}

/* The part of a subcluster entry that becomes visible by its newest version: bits no older one had. */
static uint32_t fresh_subclusters(
	const struct qkt_order *o, const struct qko_table *t, uint64_t slot, uint64_t off)
{
	struct qko_target target = {0};
	uint32_t before = 0, now = 0;
	for (unsigned n = 0; qko_slot(o, t, slot, n, &target); n++) {
		before |= now;
		now = target.off == off && target.kind == QKO_PLAIN ? target.subclusters : 0;
	}
	return now & ~before;
}

/* A data file may end with the disk, whose last cluster is then not written whole. */
static void judge_subcluster(struct qkt_order *o, struct qko_cluster *c, unsigned i, uint64_t end)
{
	uint64_t size = o->cs / 32, off = size * i;
	if (!qko_is_data(c->index * o->cs) || off + size <= end)
		qko_judge_data(o, c, off, size);
	else if (off < end)
		qko_judge_data(o, c, off, end - off);
}

static void judge_extended(
	struct qkt_order *o, struct qko_table *t, uint64_t slot, const struct qko_target *target)
{
	struct qko_cluster *c = qko_get(o, target->off / o->cs);
	uint32_t fresh = fresh_subclusters(o, t, slot, target->off) &
			 ~shown_subclusters(o, c, t, slot);
	c->shown |= fresh;
	for (unsigned i = 0; i < 32; i++)
		if ((fresh >> i & 1) != 0)
			judge_subcluster(o, c, i, qko_guest_len(o, t, slot));
}

/* One more reference to each host cluster that the entry touches. */
static void name_clusters(
	struct qkt_order *o, struct qko_table *t, uint64_t slot, const struct qko_target *target)
{
	for (uint64_t i = target->off / o->cs; i <= (target->off + target->len - 1) / o->cs; i++) {
		struct qko_cluster *c = qko_get(o, i);
		if (qko_has_ref(c, t, slot))
			continue;
		if (c->table != NULL || c->n_static != 0)
			qko_report(o, QKT_O10,
				"entry %" PRIu64 " of the L2 table 0x%" PRIx64
				" takes the table 0x%" PRIx64 " for data",
				slot, t->off, i * o->cs);
		add_ref(c, t, slot);
		qko_judge_refcount(o, c);
	}
}

static void judge_data_target(
	struct qkt_order *o, struct qko_table *t, uint64_t slot, const struct qko_target *target)
{
	struct qko_cluster *first = qko_get(o, target->off / o->cs);
	name_clusters(o, t, slot, target);
	if (target->kind == QKO_PACKED)
		qko_judge_packed(o, target->off, target->len);
	else if (o->is_extended)
		judge_extended(o, t, slot, target);
	else if (!target->is_zero && !first->is_visible) {
		if (!first->is_owned)
			qko_judge_data(o, first, 0, qko_guest_len(o, t, slot));
		first->is_visible = true;
		first->is_owned = false;
		qko_untrack(first);
	}
	if (target->is_copied)
		qko_judge_copied(o, first);
}

/* The newest version of a slot has just been issued. */
static void judge_slot(struct qkt_order *o, struct qko_table *t, uint64_t slot)
{
	unsigned bytes = qko_entry_bytes(o, t->role);
	struct qko_target target = qko_decode(o, t->role, t->cur + slot * bytes);
	o->n_judged += !o->is_loading && target.kind != QKO_NOTHING;
	if (t->role == QKO_L2 && o->data != NULL)
		qko_judge_beside_data(o, t, slot, &target);
	if (t->role == QKO_RT && target.kind == QKO_NOTHING)
		qko_judge_uncounted(o, t, slot);
	if (target.kind == QKO_BAD)
		qko_report(o, QKT_O8, "entry %" PRIu64 " of the table 0x%" PRIx64 " is 0x%" PRIx64,
			slot, t->off, qko_be64(t->cur + slot * bytes));
	else if (target.kind == QKO_TABLE) {
		judge_table_target(o, t, slot, &target);
		if (target.is_copied)
			qko_judge_copied(o, qko_get(o, target.off / o->cs));
	} else if (target.kind != QKO_NOTHING)
		judge_data_target(o, t, slot, &target);
}

/* ---- changes ---- */

static bool only_copied_cleared(const uint8_t *before, const uint8_t *now)
{
	for (unsigned i = 0; i < QKO_SECTOR; i += 8) {
		uint64_t a = qko_be64(before + i), b = qko_be64(now + i);
		if (a != b && (a & ~QKO_COPIED) != b)
			return false;
	}
	return true;
}

static void sector_written(
	struct qkt_order *o, struct qko_table *t, uint64_t sector, uint64_t id, const uint8_t *now)
{
	uint8_t *cur = t->cur + sector * QKO_SECTOR;
	bool is_same = memcmp(cur, now, QKO_SECTOR) == 0;
	if (is_same && t->older[sector] == NULL)
		return;
	bool is_entries = t->role == QKO_L1 || t->role == QKO_L2;
	if (!is_same && !o->is_looking && !(is_entries && only_copied_cleared(cur, now))) {
		if (!qko_reads_alike(o, t, sector, now))
			qko_judge_table_write(o, t);
		if (is_entries && qko_is_untracked(o) && qko_changes_disk(o, t, sector, now))
			qko_judge_tracked(o, t->off + sector * QKO_SECTOR);
	}
	struct qko_version *v = qko_need(malloc(sizeof(*v)));
	v->id = t->cur_id[sector];
	v->newer = NULL;
	memcpy(v->bytes, cur, QKO_SECTOR);
	struct qko_version **end = &t->older[sector];
	while (*end != NULL)
		end = &(*end)->newer;
	*end = v;
	memcpy(cur, now, QKO_SECTOR);
	t->cur_id[sector] = id;
	if (t->role == QKO_HEADER) {
		qko_header_written(o, id, sector, v->bytes);
		return;
	}
	if (t->role == QKO_RB)
		qko_judge_lowered(o, t, sector, v->bytes);
	unsigned n = qko_entry_bytes(o, t->role);
	for (unsigned i = 0; i < QKO_SECTOR && (sector * QKO_SECTOR + i) / n < n_slots(o, t);
		i += n)
		if (memcmp(v->bytes + i, now + i, n) != 0)
			judge_slot(o, t, (sector * QKO_SECTOR + i) / n);
}

void qko_table_write(struct qkt_order *o, struct qko_table *t, uint64_t id, uint64_t off,
	uint64_t len, const uint8_t *bytes)
{
	uint8_t now[QKO_SECTOR];
	while (len > 0) {
		uint64_t at = (off - t->off) % QKO_SECTOR, n = QKO_SECTOR - at;
		uint64_t sector = (off - t->off) / QKO_SECTOR;
		if (off - t->off >= t->len)
			return;
		if (n > len)
			n = len;
		memcpy(now, t->cur + sector * QKO_SECTOR, QKO_SECTOR);
		memcpy(now + at, bytes, (size_t)n);
		sector_written(o, t, sector, id, now);
		off += n;
		bytes += n;
		len -= n;
	}
}

/* What no state shows any more begins another life: it has to be written anew before it is shown. */
static void settle_subclusters(struct qkt_order *o, struct qko_cluster *c)
{
	uint32_t shown = shown_subclusters(o, c, NULL, 0), gone = c->shown & ~shown;
	uint64_t n = o->cs / 32 / QKO_SECTOR;
	c->shown = shown;
	for (uint64_t s = 0; c->alive != NULL && s < 32 * n && !o->opt.threads; s++)
		if ((gone >> (s / n) & 1) != 0)
			c->alive[s / 8] &= (uint8_t) ~(1u << (s % 8));
}

/* A slot no longer names the cluster, in any state. */
static void settle(struct qkt_order *o, struct qko_cluster *c)
{
	if (c->table != NULL) {
		bool is_child = c->table->role == QKO_L2 || c->table->role == QKO_RB;
		if (is_child && c->n_refs == 0)
			qko_release(o, c->table);
		return;
	}
	if (o->is_extended)
		settle_subclusters(o, c);
	bool was_visible = c->is_visible;
	c->is_visible = compute_visible(o, c);
	/* a thread that knows of a zero flag not issued yet may have written the whole cluster already; in a data file,
	 * whose clusters have one place, also one that knows of an unlinking */
	bool is_kept = o->opt.threads && qko_is_data(c->index * o->cs);
	c->is_owned = (c->n_refs != 0 || is_kept) &&
		      (c->is_owned || (was_visible && o->opt.threads));
	if (is_kept && o->is_extended)
		return;
	if ((was_visible && !c->is_visible && !c->is_owned) || (c->n_refs == 0 && !c->is_owned))
		qko_begin_life(o, c);
}

static void unname(
	struct qkt_order *o, struct qko_table *t, uint64_t slot, const struct qko_target *target)
{
	if (target->kind == QKO_NOTHING || target->kind == QKO_BAD)
		return;
	for (uint64_t i = target->off / o->cs; i <= (target->off + target->len - 1) / o->cs; i++) {
		struct qko_cluster *c = qko_find(o, i);
		if (c == NULL)
			continue;
		if (!names(o, t, slot, i))
			drop_ref(c, t, slot);
		settle(o, c);
	}
}

static void free_table(struct qko_table *t)
{
	for (uint64_t s = 0; s < t->len / QKO_SECTOR; s++)
		while (t->older[s] != NULL) {
			struct qko_version *v = t->older[s];
			t->older[s] = v->newer;
			free(v);
		}
	free(t->older);
	free(t->cur_id);
	free(t->cur);
	free(t);
}

/* No state reaches the table any more, nor by it what it names. */
void qko_release(struct qkt_order *o, struct qko_table *t)
{
	for (uint64_t i = t->off / o->cs; i <= (t->off + t->len - 1) / o->cs; i++) {
		struct qko_cluster *c = qko_get(o, i);
		if (c->table != t)
			continue;
		c->table = NULL;
		qko_begin_life(o, c);
	}
	struct qko_target target;
	for (uint64_t slot = 0; slot < n_slots(o, t); slot++)
		for (unsigned n = 0; qko_slot(o, t, slot, n, &target); n++) {
			if (target.kind == QKO_NOTHING || target.kind == QKO_BAD)
				continue;
			uint64_t last = (target.off + target.len - 1) / o->cs;
			for (uint64_t i = target.off / o->cs; i <= last; i++) {
				struct qko_cluster *c = qko_find(o, i);
				if (c == NULL || !qko_has_ref(c, t, slot))
					continue;
				drop_ref(c, t, slot);
				settle(o, c);
			}
		}
	free_table(t);
}

static void retire_sector(struct qkt_order *o, struct qko_table *t, uint64_t sector)
{
	if (t->older[sector] == NULL)
		return;
	/* the newest durable version is the base; those before it go */
	struct qko_version *base = NULL;
	bool is_cur = qko_retires(o, t->cur_id[sector]);
	for (struct qko_version *v = t->older[sector]->newer; v != NULL; v = v->newer)
		if (qko_retires(o, v->id))
			base = v;
	if (is_cur)
		base = NULL;
	else if (base == NULL)
		return;
	struct qko_version *gone = t->older[sector];
	t->older[sector] = base;
	if (base != NULL)
		base->id = 0;
	else
		t->cur_id[sector] = 0;
	size_t n_gone = 0;
	unsigned n = qko_entry_bytes(o, t->role);
	while (gone != base) {
		struct qko_version *v = gone;
		gone = v->newer;
		n_gone++;
		const uint8_t *kept = qko_version(t, sector, 0);
		for (unsigned i = 0;
			i < QKO_SECTOR && (sector * QKO_SECTOR + i) / n < n_slots(o, t); i += n) {
			if (memcmp(kept + i, v->bytes + i, n) == 0)
				continue;
			struct qko_target target = qko_decode(o, t->role, v->bytes + i);
			unname(o, t, (sector * QKO_SECTOR + i) / n, &target);
		}
		free(v);
	}
	if (t->role == QKO_HEADER)
		qko_retire_headers(o, sector, n_gone);
}

void qko_table_retire(struct qkt_order *o, struct qko_table *t, uint64_t off, uint64_t len)
{
	uint64_t end = off + len < t->off + t->len ? off + len : t->off + t->len;
	for (uint64_t s = (off - t->off) / QKO_SECTOR; t->off + s * QKO_SECTOR < end; s++)
		retire_sector(o, t, s);
}

/* ---- the start ---- */

void qko_load(struct qkt_order *o)
{
	uint8_t b[QKO_SECTOR];
	if (qcow_store_read_padded(o->peek, b, sizeof(b), 0, NULL) != QCOW_OK)
		abort();
	uint32_t bits = qko_be32(b + 20);
	if (memcmp(b, "QFI\xfb", 4) != 0 || bits < 9 || bits > 21)
		return;
	o->is_loading = o->has_geometry = true;
	o->version = qko_be32(b + 4);
	o->cluster_bits = bits;
	o->cs = UINT64_C(1) << bits;
	o->has_data_file = o->version >= 3 && (b[79] & 4) != 0;
	o->is_raw_data = o->has_data_file && (b[95] & 2) != 0;
	o->is_extended = o->version >= 3 && (b[79] & 16) != 0;
	o->header = qko_load_table(o, QKO_HEADER, 0, o->cs < HEADER_BYTES ? o->cs : HEADER_BYTES);
	qko_push_header(o, 0, 0);
	qko_crypto_load(o);
	o->is_loading = false;
}

void qko_unload(struct qkt_order *o)
{
	qko_bitmaps_drop(o, o->n_headers);
	for (size_t i = 0; i < o->n_hash; i++) {
		struct qko_cluster *c = o->hash[i];
		if (c == NULL)
			continue;
		bool is_child = c->table != NULL &&
				(c->table->role == QKO_L2 || c->table->role == QKO_RB);
		if (is_child && c->table->off / o->cs == c->index)
			free_table(c->table);
		qko_untrack(c);
		free(c->refs);
		free(c);
	}
	while (o->roots != NULL) {
		struct qko_table *t = o->roots;
		o->roots = t->next;
		free_table(t);
	}
	if (o->header != NULL)
		free_table(o->header);
	for (size_t i = 0; i < o->n_headers; i++)
		free(o->headers[i].snap_l1);
	free(o->headers);
	free(o->hash);
	o->header = NULL;
	o->headers = NULL;
	o->hash = NULL;
	o->n_headers = o->n_hash = o->n_clusters = 0;
	o->has_geometry = false;
}
