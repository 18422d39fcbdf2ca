/* SPDX-License-Identifier: MIT */
/*
 * locks: the order in which the engine's locks are taken. While holding one, take only locks of larger
 * numbers, and none of the same number. doc/LOCKING.md says what each guards.
 *
 *	-  the gate		engine/gate.c	operations that manage the image, against all other calls
 *	0  track.lock		engine/track.c	setting the marks of bitmaps in use; held across I/O
 *	1  rw.stripes[i]	engine/group.c	remapping the clusters of one group; held across data I/O
 *	2  rw.tables_lock	engine/table.c	making an L2 table, growing L1; held across I/O
 *	3  publish lock		engine/publish.c one publication or flush at a time; held across I/O
 *	4  stage.lock		engine/stage.c	mappings that are not published; never across I/O
 *	5  compress.lock	engine/compress.c where the next compressed cluster goes; then
 *	   space lock		engine/space.c	refcounts and what is free
 *	6  tablist.lock, meta.l1_lock, meta.sets_lock, set.lock, decode.cache_lock, decode.pool_lock, hostmap.lock,
 *	   fence.lock, epoch.lock, gate.lock, rw.parts_lock, rw.data_file.lock: leaves among each other
 *	7  the locks of a store
 *
 * An epoch (engine/epoch.h) is no lock, but who waits for the epochs must be in none, and who is in one takes
 * no lock of 1 to 4.
 */
#ifndef QK_ENGINE_LOCKS_H
#define QK_ENGINE_LOCKS_H

#include <pthread.h>
#include <stdbool.h>

static inline void qk_lock(pthread_mutex_t *m)
{
	(void)pthread_mutex_lock(m);
}

/* False where somebody has it, the caller too. So it may be tried against the order. */
static inline bool qk_try_lock(pthread_mutex_t *m)
{
	return pthread_mutex_trylock(m) == 0;
}

static inline void qk_unlock(pthread_mutex_t *m)
{
	(void)pthread_mutex_unlock(m);
}

#endif
