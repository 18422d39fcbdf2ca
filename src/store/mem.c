/* SPDX-License-Identifier: MIT */
/*
 * mem: a store in memory, for tests and for programs that keep an image in RAM.
 *
 * Bytes live in pages of 64 KiB that exist from the first write on. A tree of fixed height finds
 * them, so that a store of any size (an image of 1 PiB, say) costs what was written:
 *
 *   byte offset  [ 15 bits 0 .. | 8 | 8 | 8 | 8 | 8 | 8 |  16 in the page ]
 *                                root ............ leaf
 *
 * Invariants:
 *   M1  bytes of a page at or past `size` are zero, so growing never shows old content
 *   M2  no page lies wholly at or past `size`
 * Locking: `lock` shared for reads, exclusive for everything that changes.
 */
#include <qcowkit/store.h>

#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "base/num.h"

#define PAGE_BITS  16
#define PAGE_BYTES (UINT64_C(1) << PAGE_BITS)
#define FAN_BITS   8
#define FAN	   (1u << FAN_BITS)
#define LEVELS	   6 /* 6 * 8 + 16 = 64 bits of offset */

struct node {
	void *slot[FAN]; /* struct node *, on the lowest level uint8_t[PAGE_BYTES] */
};

struct memory {
	pthread_rwlock_t lock;
	uint64_t size;
	struct node root;
};

static unsigned slot_of(uint64_t page, unsigned level)
{
	return (unsigned)(page >> (FAN_BITS * level)) & (FAN - 1);
}

/* The page, or NULL: it reads as zeros. */
static uint8_t *find_page(struct memory *m, uint64_t page)
{
	struct node *node = &m->root;
	for (unsigned level = LEVELS - 1; level > 0; level--) {
		node = node->slot[slot_of(page, level)];
		if (node == NULL)
			return NULL;
	}
	return node->slot[slot_of(page, 0)];
}

static uint8_t *make_page(struct memory *m, uint64_t page)
{
	struct node *node = &m->root;
	for (unsigned level = LEVELS - 1; level > 0; level--) {
		void **slot = &node->slot[slot_of(page, level)];
		if (*slot == NULL)
			*slot = qk_calloc(1, sizeof(struct node));
		if (*slot == NULL)
			return NULL;
		node = *slot;
	}
	void **slot = &node->slot[slot_of(page, 0)];
	if (*slot == NULL)
		*slot = qk_calloc(PAGE_BYTES, 1);
	return *slot;
}

/* The first page at or after `page` that exists; UINT64_MAX if none. At most LEVELS * FAN steps up
 * and down the tree. */
static uint64_t next_page(struct memory *m, uint64_t page)
{
	const uint64_t n_pages = UINT64_C(1) << (FAN_BITS * LEVELS);
	while (page < n_pages) {
		struct node *node = &m->root;
		unsigned level = LEVELS - 1;
		while (level > 0 && node->slot[slot_of(page, level)] != NULL)
			node = node->slot[slot_of(page, level--)];
		if (node->slot[slot_of(page, level)] != NULL)
			return page;
		/* nothing below this slot: on to the next one of this level, whole */
		page = qk_align_down(page, UINT64_C(1) << (FAN_BITS * level)) +
		       (UINT64_C(1) << (FAN_BITS * level));
	}
	return UINT64_MAX;
}

static void drop_page(struct memory *m, uint64_t page)
{
	struct node *node = &m->root;
	for (unsigned level = LEVELS - 1; level > 0; level--) {
		node = node->slot[slot_of(page, level)];
		if (node == NULL)
			return;
	}
	free(node->slot[slot_of(page, 0)]);
	node->slot[slot_of(page, 0)] = NULL;
}

/* Zero [off, end) in one page. */
static void clear_within(struct memory *m, uint64_t off, uint64_t end)
{
	uint8_t *page = find_page(m, off >> PAGE_BITS);
	if (page != NULL)
		memset(page + (off & (PAGE_BYTES - 1)), 0, (size_t)(end - off));
}

/* Zero [off, end); pages that lie wholly within go. */
static void clear(struct memory *m, uint64_t off, uint64_t end)
{
	while (off < end) {
		uint64_t page = next_page(m, off >> PAGE_BITS);
		if (page == UINT64_MAX || page << PAGE_BITS >= end)
			return;
		uint64_t begin = page << PAGE_BITS;
		uint64_t from = qk_max(off, begin), to = qk_min(end - begin, PAGE_BYTES) + begin;
		if (to - from == PAGE_BYTES)
			drop_page(m, page);
		else
			clear_within(m, from, to);
		off = to;
	}
}

static enum qcow_status memory_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct memory *m = ctx;
	enum qcow_status st = QCOW_OK;
	(void)pthread_rwlock_rdlock(&m->lock);
	for (int i = 0; i < n_iov && st == QCOW_OK; i++) {
		uint8_t *to = iov[i].iov_base;
		uint64_t left = iov[i].iov_len;
		if (!qk_in_range(off, left, m->size))
			st = QK_FAIL(err, QCOW_E_RANGE, "the end has moved to before the range");
		while (left != 0 && st == QCOW_OK) {
			uint64_t at = off & (PAGE_BYTES - 1);
			uint64_t n = qk_min(left, PAGE_BYTES - at);
			const uint8_t *page = find_page(m, off >> PAGE_BITS);
			if (page != NULL)
				memcpy(to, page + at, (size_t)n);
			else
				memset(to, 0, (size_t)n);
			to += n;
			off += n;
			left -= n;
		}
	}
	(void)pthread_rwlock_unlock(&m->lock);
	return st;
}

/* Copy n bytes in; n does not overflow off. Locked. */
static enum qcow_status put(
	struct memory *m, const uint8_t *from, uint64_t n, uint64_t off, struct qcow_error *err)
{
	while (n != 0) {
		uint64_t at = off & (PAGE_BYTES - 1);
		uint64_t step = qk_min(n, PAGE_BYTES - at);
		uint8_t *page = make_page(m, off >> PAGE_BITS);
		if (page == NULL)
			return QK_FAIL_NOMEM(err);
		memcpy(page + at, from, (size_t)step);
		from += step;
		off += step;
		n -= step;
		m->size = qk_max(m->size, off);
	}
	return QCOW_OK;
}

static enum qcow_status memory_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct memory *m = ctx;
	enum qcow_status st = QCOW_OK;
	(void)pthread_rwlock_wrlock(&m->lock);
	for (int i = 0; i < n_iov && st == QCOW_OK; i++) {
		st = put(m, iov[i].iov_base, iov[i].iov_len, off, err);
		off += iov[i].iov_len;
	}
	(void)pthread_rwlock_unlock(&m->lock);
	return st;
}

static enum qcow_status memory_flush(void *ctx, struct qcow_error *err)
{
	(void)ctx;
	(void)err;
	return QCOW_OK;
}

static enum qcow_status memory_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	struct memory *m = ctx;
	(void)err;
	(void)pthread_rwlock_rdlock(&m->lock);
	*size_bytes = m->size;
	(void)pthread_rwlock_unlock(&m->lock);
	return QCOW_OK;
}

static enum qcow_status memory_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct memory *m = ctx;
	(void)err;
	(void)pthread_rwlock_wrlock(&m->lock);
	if (size_bytes < m->size)
		clear(m, size_bytes, UINT64_MAX);
	m->size = size_bytes;
	(void)pthread_rwlock_unlock(&m->lock);
	return QCOW_OK;
}

static enum qcow_status allocate(
	struct memory *m, uint64_t off, uint64_t end, struct qcow_error *err)
{
	for (uint64_t page = off >> PAGE_BITS; page <= (end - 1) >> PAGE_BITS; page++)
		if (make_page(m, page) == NULL)
			return QK_FAIL_NOMEM(err);
	return QCOW_OK;
}

static enum qcow_status memory_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct memory *m = ctx;
	enum qcow_status st = QCOW_OK;
	uint64_t end = off + len;
	(void)pthread_rwlock_wrlock(&m->lock);
	clear(m, off, end);
	if ((flags & QCOW_ZERO_ALLOCATE) != 0)
		st = allocate(m, off, end, err);
	if (st == QCOW_OK)
		m->size = qk_max(m->size, end);
	else
		clear(m, qk_max(m->size, off), end);
	(void)pthread_rwlock_unlock(&m->lock);
	return st;
}

static enum qcow_status memory_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct memory *m = ctx;
	(void)err;
	(void)pthread_rwlock_wrlock(&m->lock);
	/* past the end nothing is stored: the page at the end may go whole */
	uint64_t end = off + len >= m->size ? UINT64_MAX : off + len;
	clear(m, off, end);
	(void)pthread_rwlock_unlock(&m->lock);
	return QCOW_OK;
}

static enum qcow_status memory_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	struct memory *m = ctx;
	(void)err;
	(void)pthread_rwlock_rdlock(&m->lock);
	uint64_t end = off + len, page = off >> PAGE_BITS;
	uint64_t next = next_page(m, page);
	bool is_hole = next != page;
	uint64_t stop = end;
	if (is_hole) {
		if (next != UINT64_MAX)
			stop = qk_min(end, next << PAGE_BITS);
	} else {
		while (page << PAGE_BITS < end && find_page(m, page) != NULL)
			page++;
		stop = qk_min(end, page << PAGE_BITS);
	}
	(void)pthread_rwlock_unlock(&m->lock);
	*out = (struct qcow_store_extent){off, stop - off, is_hole};
	return QCOW_OK;
}

static void memory_caps(void *ctx, struct qcow_store_caps *out)
{
	(void)ctx;
	*out = (struct qcow_store_caps){
		.request_align = 1,
		.physical_block = 512,
		.writable = true,
		.can_grow = true,
		.reads_zero_past_end = true,
		.can_punch = true,
	};
}

/* Free what hangs below a node of `level`; the height is fixed, so is the depth of the recursion. */
static void free_below(struct node *node, unsigned level)
{
	for (unsigned i = 0; i < FAN; i++) {
		if (level > 0 && node->slot[i] != NULL)
			free_below(node->slot[i], level - 1);
		free(node->slot[i]);
	}
}

static void memory_close(void *ctx)
{
	struct memory *m = ctx;
	free_below(&m->root, LEVELS - 1);
	(void)pthread_rwlock_destroy(&m->lock);
	free(m);
}

static const struct qcow_store_ops memory_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "memory",
	.preadv = memory_preadv,
	.pwritev = memory_pwritev,
	.flush = memory_flush,
	.size = memory_size,
	.truncate = memory_truncate,
	.zero = memory_zero,
	.punch = memory_punch,
	.extents = memory_extents,
	.caps = memory_caps,
	.close = memory_close,
};

enum qcow_status qcow_memory_open(
	uint64_t size_bytes, struct qcow_store **out, struct qcow_error *err)
{
	if (size_bytes > INT64_MAX)
		return QK_FAIL(err, QCOW_E_RANGE, "memory: a size past the largest offset");
	struct memory *m = qk_calloc(1, sizeof(*m));
	if (m == NULL)
		return QK_FAIL_NOMEM(err);
	m->size = size_bytes;
	if (pthread_rwlock_init(&m->lock, NULL) != 0) {
		free(m);
		return QK_FAIL_NOMEM(err);
	}
	enum qcow_status st = qcow_store_new(&memory_ops, m, out, err);
	if (st != QCOW_OK)
		memory_close(m);
	return st;
}
