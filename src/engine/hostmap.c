/* SPDX-License-Identifier: MIT */
/*
 * hostmap: see hostmap.h. Owns the remembered extents; whoever writes to the store through the engine
 * says so before. Locking: lock guards the slots, a leaf; the host is asked outside of it.
 */
#include "engine/hostmap.h"

#include <pthread.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "base/num.h"

/* As many as threads that may walk different places at once. */
#define N_SLOTS 16U

struct slot {
	uint64_t off, end; /* end 0: empty */
	bool is_hole;
};

struct qk_hostmap {
	pthread_mutex_t lock;
	enum qk_hostmap_use use; /* constant once there are threads */
	unsigned next; /* to replace */
	struct slot slots[N_SLOTS];
};

enum qcow_status qk_hostmap_new(struct qk_hostmap **out, struct qcow_error *err)
{
	struct qk_hostmap *map = qk_calloc(1, sizeof(*map));
	if (map == NULL)
		return QK_FAIL_NOMEM(err);
	if (pthread_mutex_init(&map->lock, NULL) != 0) {
		free(map);
		return QK_FAIL_NOMEM(err);
	}
	*out = map;
	return QCOW_OK;
}

void qk_hostmap_free(struct qk_hostmap *map)
{
	if (map == NULL)
		return;
	(void)pthread_mutex_destroy(&map->lock);
	free(map);
}

void qk_hostmap_set_use(struct qk_hostmap *map, enum qk_hostmap_use use)
{
	map->use = use;
}

void qk_hostmap_forget(struct qk_hostmap *map)
{
	(void)pthread_mutex_lock(&map->lock);
	memset(map->slots, 0, sizeof(map->slots));
	(void)pthread_mutex_unlock(&map->lock);
}

static bool recall(struct qk_hostmap *map, uint64_t off, struct slot *out)
{
	bool is_known = false;
	(void)pthread_mutex_lock(&map->lock);
	for (unsigned i = 0; i < N_SLOTS && !is_known; i++) {
		const struct slot *s = &map->slots[i];
		is_known = s->off <= off && off < s->end;
		if (is_known)
			*out = *s;
	}
	(void)pthread_mutex_unlock(&map->lock);
	return is_known;
}

static void remember(struct qk_hostmap *map, const struct slot *slot)
{
	(void)pthread_mutex_lock(&map->lock);
	map->slots[map->next] = *slot;
	map->next = (map->next + 1) % N_SLOTS;
	(void)pthread_mutex_unlock(&map->lock);
}

/* The host's extent at `off`, as long as it goes. */
static enum qcow_status ask_host(
	struct qcow_store *store, uint64_t off, struct slot *out, struct qcow_error *err)
{
	uint64_t size = 0;
	QK_TRY(qcow_store_size(store, &size, err));
	if (off >= size) {
		*out = (struct slot){.off = off, .end = UINT64_MAX, .is_hole = true};
		return QCOW_OK;
	}
	struct qcow_store_extent e = {0};
	QK_TRY(qcow_store_extents(store, off, size - off, &e, err));
	QK_ASSERT(H1, e.len != 0 && e.len <= size - off);
	*out = (struct slot){.off = off, .end = off + e.len, .is_hole = e.is_hole};
	return QCOW_OK;
}

enum qcow_status qk_hostmap_ask(struct qk_hostmap *map, struct qcow_store *store, uint64_t off,
	uint64_t *len, bool *is_hole, struct qcow_error *err)
{
	struct slot slot = {0};
	if (!recall(map, off, &slot)) {
		QK_TRY(ask_host(store, off, &slot, err));
		/* a hole may be filled at any time; data that is called data once it is none does no harm */
		if (map->use == QK_HOSTMAP_READ ||
			(map->use == QK_HOSTMAP_WRITTEN && !slot.is_hole))
			remember(map, &slot);
	}
	*len = qk_min(*len, slot.end - off);
	*is_hole = slot.is_hole;
	return QCOW_OK;
}
