/* SPDX-License-Identifier: MIT */
/*
 * serve_lazy: a snapshot whose image is opened when it is first read, and closed when nobody wants it any more: an image may
 * have 65,536 of them.
 *
 * Locking: `in_use` keeps the view while it is read. It is taken before the lock of opening (serve_open.c).
 */
#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "cli/object.h"
#include "cli/serve.h"

struct serve_lazy {
	struct serve *s;
	struct serve_image *owner;
	char *key; /* snapshot.id=… */
	uint64_t size;
	pthread_rwlock_t in_use;
	struct qk_view *view; /* NULL: not open */
};

static enum qcow_status open_view(struct serve_lazy *lazy, struct qcow_error *err)
{
	struct qk_view_image *shared = NULL;
	struct qk_view_options options = {.size = lazy->size, .read_only = true};
	cli_passphrase_ask_no_more(true); /* the image was opened with what was typed */
	enum qcow_status status = serve_open_snapshot(
		lazy->s, &lazy->owner->operand, lazy->key, &shared, err);
	cli_passphrase_ask_no_more(false);
	if (status == QCOW_OK)
		status = qk_view_new(shared, &options, &lazy->view, err);
	(void)qk_view_image_drop(shared); /* nothing was written */
	return status;
}

/* Held for reading from here on; to be let go. */
static enum qcow_status hold(struct serve_lazy *lazy, struct qcow_error *err)
{
	for (;;) {
		(void)pthread_rwlock_rdlock(&lazy->in_use);
		if (lazy->view != NULL)
			return QCOW_OK;
		(void)pthread_rwlock_unlock(&lazy->in_use);
		(void)pthread_rwlock_wrlock(&lazy->in_use);
		enum qcow_status status = lazy->view == NULL ? open_view(lazy, err) : QCOW_OK;
		(void)pthread_rwlock_unlock(&lazy->in_use);
		QK_TRY(status);
	}
}

static enum qcow_status lazy_pread(
	void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	struct serve_lazy *lazy = ctx;
	QK_TRY(hold(lazy, err));
	enum qcow_status status = qk_view_ops(lazy->view)->pread(lazy->view, buf, len, off, err);
	(void)pthread_rwlock_unlock(&lazy->in_use);
	return status;
}

/* Opening has to wait, so it is a worker's. */
static enum qcow_status lazy_pread_nowait(
	void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	struct serve_lazy *lazy = ctx;
	enum qcow_status status = QCOW_E_WOULD_BLOCK;
	if (pthread_rwlock_tryrdlock(&lazy->in_use) != 0)
		return QK_FAIL(err, status, "the snapshot is being opened");
	if (lazy->view != NULL)
		status = qk_view_ops(lazy->view)->pread_nowait(lazy->view, buf, len, off, err);
	(void)pthread_rwlock_unlock(&lazy->in_use);
	return status;
}

static enum qcow_status lazy_flush(void *ctx, struct qcow_error *err)
{
	(void)ctx, (void)err;
	return QCOW_OK; /* nothing is written */
}

static enum qcow_status lazy_cache(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct serve_lazy *lazy = ctx;
	QK_TRY(hold(lazy, err));
	enum qcow_status status = qk_view_ops(lazy->view)->cache(lazy->view, off, len, err);
	(void)pthread_rwlock_unlock(&lazy->in_use);
	return status;
}

static enum qcow_status lazy_map(void *ctx, uint64_t off, uint64_t len, uint32_t max_depth,
	struct qcow_extent *out, struct qcow_error *err)
{
	struct serve_lazy *lazy = ctx;
	QK_TRY(hold(lazy, err));
	enum qcow_status status =
		qk_view_ops(lazy->view)->map(lazy->view, off, len, max_depth, out, err);
	(void)pthread_rwlock_unlock(&lazy->in_use);
	return status;
}

/* in_use is held for writing, and let go. */
static void close_view(struct serve_lazy *lazy)
{
	struct qk_view *view = lazy->view;
	lazy->view = NULL;
	(void)pthread_rwlock_unlock(&lazy->in_use);
	if (view != NULL)
		qk_view_ops(view)->close(view);
}

void serve_lazy_close(struct serve_lazy *lazy)
{
	(void)pthread_rwlock_wrlock(&lazy->in_use);
	close_view(lazy);
}

/* Whoever uses it is another client, whose end closes it. */
static void lazy_unused(void *ctx)
{
	struct serve_lazy *lazy = ctx;
	if (pthread_rwlock_trywrlock(&lazy->in_use) == 0)
		close_view(lazy);
}

static void lazy_free(void *ctx)
{
	struct serve_lazy *lazy = ctx;
	serve_lazy_close(lazy);
	(void)pthread_rwlock_destroy(&lazy->in_use);
	free(lazy->key);
	free(lazy);
}

const struct qk_nbd_export_ops serve_lazy_ops = {.pread = lazy_pread,
	.pread_nowait = lazy_pread_nowait,
	.flush = lazy_flush,
	.cache = lazy_cache,
	.map = lazy_map,
	.close = lazy_free,
	.unused = lazy_unused};

enum qcow_status serve_lazy_new(struct serve *s, struct serve_image *owner, const char *id,
	uint64_t size, struct serve_lazy **out, struct qcow_error *err)
{
	struct serve_lazy *lazy = qk_calloc(1, sizeof(*lazy));
	if (lazy == NULL || asprintf(&lazy->key, "snapshot.id=%s", id) < 0) {
		free(lazy);
		return QK_FAIL_NOMEM(err);
	}
	lazy->s = s;
	lazy->owner = owner;
	lazy->size = size;
	(void)pthread_rwlock_init(&lazy->in_use, NULL);
	*out = lazy;
	return QCOW_OK;
}
