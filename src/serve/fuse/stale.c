/* SPDX-License-Identifier: MIT */
/*
 * stale: the kernel caches pages of each file by itself. Where a file is written that overlaps another one (a partition and
 * its disk), the pages of the other are forgotten: by a thread of its own, since the kernel waits for pages that it is just
 * reading, and those who answer it must not wait for that. A file that is not open is remembered, and read anew when it is
 * opened.
 */
#include "base/num.h"
#include "serve/fuse/core.h"

void qk_fuse_make_stale(
	struct qk_fuse *fs, const struct qk_fuse_node *cause, uint64_t from, uint64_t to)
{
	(void)pthread_mutex_lock(&fs->lock);
	for (struct qk_fuse_node *node = fs->writable; node != NULL; node = node->next_writable) {
		if (node == cause)
			continue;
		uint64_t end = node->off + atomic_load(&node->size);
		if (to <= node->off || from >= end)
			continue;
		atomic_fetch_add(&node->blocks.n_changes, 1);
		if (node->n_open == 0) {
			node->is_stale = true;
			continue;
		}
		uint64_t a = from > node->off ? from - node->off : 0,
			 b = qk_min(to, end) - node->off;
		bool none = node->stale_from == node->stale_to;
		node->stale_from = none ? a : qk_min(a, node->stale_from);
		node->stale_to = none ? b : qk_max(b, node->stale_to);
		fs->has_stale = true;
		(void)pthread_cond_signal(&fs->something_stale);
	}
	(void)pthread_mutex_unlock(&fs->lock);
}

void qk_fuse_make_stale_size(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	node->has_new_size = true;
	fs->has_stale = true;
	(void)pthread_cond_signal(&fs->something_stale);
}

/* fs->lock is held, but not while the kernel is told. */
static void tell(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	fuse_ino_t ino = node->ino;
	off_t off = -1, n = 0;
	if (node->stale_from != node->stale_to) {
		off = (off_t)node->stale_from;
		n = (off_t)(node->stale_to - node->stale_from);
	}
	node->stale_from = node->stale_to = 0;
	node->has_new_size = false;
	(void)pthread_mutex_unlock(&fs->lock);
	/* what the kernel does not know needs not be forgotten */
	(void)fuse_lowlevel_notify_inval_inode(fs->session, ino, off, n);
	(void)pthread_mutex_lock(&fs->lock);
}

static void *forget(void *arg)
{
	struct qk_fuse *fs = arg;
	(void)pthread_mutex_lock(&fs->lock);
	while (!fs->forgetter_ends) {
		if (!fs->has_stale) {
			(void)pthread_cond_wait(&fs->something_stale, &fs->lock);
			continue;
		}
		fs->has_stale = false;
		for (size_t i = 0; i < fs->n_nodes; i++) {
			struct qk_fuse_node *node = fs->nodes[i];
			if (node != NULL &&
				(node->stale_from != node->stale_to || node->has_new_size))
				tell(fs, node);
		}
	}
	(void)pthread_mutex_unlock(&fs->lock);
	return NULL;
}

enum qcow_status qk_fuse_stale_start(struct qk_fuse *fs, struct qcow_error *err)
{
	int failed = pthread_create(&fs->forgetter, NULL, forget, fs);
	if (failed != 0)
		return QK_FAIL_OS(err, failed, "cannot make a thread");
	fs->forgetter_is_made = true;
	return QCOW_OK;
}

void qk_fuse_stale_stop(struct qk_fuse *fs)
{
	if (!fs->forgetter_is_made)
		return;
	(void)pthread_mutex_lock(&fs->lock);
	fs->forgetter_ends = true;
	(void)pthread_cond_signal(&fs->something_stale);
	(void)pthread_mutex_unlock(&fs->lock);
	(void)pthread_join(fs->forgetter, NULL);
	fs->forgetter_is_made = false;
}
