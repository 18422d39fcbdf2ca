/* SPDX-License-Identifier: MIT */
/*
 * turn: who reads the next request. Few threads do at a time, on a small machine one; the others sleep in a pile, and the one
 * on top is the next. The kernel would wake those that wait in a read in turns, each with cold caches and buffers, and on
 * another processor as often as not: with a turn a thread answers request after request as long as there are any.
 *
 * Who has a turn must not wait for anything but the medium under a write: another one would not be read, and what it waits
 * for may depend on that. So it gives its turn away before it does (qk_fuse_turn_give), and takes one anew for its next request.
 * Only what is known to be quick is answered with a turn in hand (is_quick, and in io.c what is at hand), and no write whose medium
 * is another host.
 */
#include <linux/fuse.h>

#include "base/num.h"
#include "serve/fuse/core.h"

/* Of the processors so many read at a time. */
#define CORES_A_TURN 4U

void qk_fuse_turns_init(struct qk_fuse *fs, unsigned n_cores)
{
	(void)pthread_mutex_init(&fs->turns.lock, NULL);
	fs->turns.n_free = n_cores < 2 * CORES_A_TURN ? 1 : n_cores / CORES_A_TURN;
}

void qk_fuse_turns_release(struct qk_fuse *fs)
{
	(void)pthread_mutex_destroy(&fs->turns.lock);
}

void qk_fuse_is_remote(struct qk_fuse *fs)
{
	atomic_store(&fs->is_remote, true);
}

void qk_fuse_turn_take(struct qk_fuse_worker *w)
{
	struct qk_fuse *fs = w->fs;
	if (w->has_turn)
		return;
	(void)pthread_mutex_lock(&fs->turns.lock);
	if (fs->turns.n_free > 0) {
		fs->turns.n_free--;
		w->has_turn = true;
	} else {
		w->below = fs->turns.top;
		fs->turns.top = w;
	}
	while (!w->has_turn)
		(void)pthread_cond_wait(&w->woken, &fs->turns.lock);
	(void)pthread_mutex_unlock(&fs->turns.lock);
}

void qk_fuse_turn_give(struct qk_fuse_worker *w)
{
	struct qk_fuse *fs = w->fs;
	if (!w->has_turn)
		return;
	w->has_turn = false;
	(void)pthread_mutex_lock(&fs->turns.lock);
	struct qk_fuse_worker *next = fs->turns.top;
	if (next != NULL) {
		fs->turns.top = next->below;
		next->has_turn = true;
		(void)pthread_cond_signal(&next->woken);
	} else {
		fs->turns.n_free++;
	}
	(void)pthread_mutex_unlock(&fs->turns.lock);
}

bool qk_fuse_is_quick(const struct fuse_buf *buf)
{
	const struct fuse_in_header *header = buf->mem;
	if ((buf->flags & FUSE_BUF_IS_FD) != 0 || buf->size < sizeof(*header))
		return false;
	return header->opcode == FUSE_READ || header->opcode == FUSE_WRITE ||
	       header->opcode == FUSE_FORGET || header->opcode == FUSE_BATCH_FORGET ||
	       header->opcode == FUSE_INTERRUPT;
}
