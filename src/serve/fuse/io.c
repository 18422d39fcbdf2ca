/* SPDX-License-Identifier: MIT */
/*
 * io: requests about the bytes of files. What the kernel asks for goes to the export as it is: pages are the kernel's to
 * cache, and a write is in the image when it is answered.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/num.h"
#include "serve/fuse/core.h"

/* A look at where data and holes lie ends after so long; what was seen until then is told, or guessed from. */
#define LOOK_NS UINT64_C(20000000)

/* So much is copied at once where it is at hand. */
#define QUICK_BYTES ((size_t)64 << 10)

static uint64_t now_ns(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

int qk_fuse_errno(struct qk_fuse *fs, const struct qk_fuse_node *node, const char *what,
	enum qcow_status status, const struct qcow_error *err)
{
	if (status == QCOW_OK)
		return 0;
	char text[sizeof(err->message) + 128];
	(void)snprintf(text, sizeof(text), "%s: %.80s: %s", node->name, what,
		err->message[0] != '\0' ? err->message : qcow_status_text(status));
	if (fs->o.log != NULL)
		fs->o.log(fs->o.ctx, text);
	switch (status) {
	case QCOW_E_NOSPC:
		return ENOSPC;
	case QCOW_E_NOMEM:
		return ENOMEM;
	case QCOW_E_READONLY:
		return EROFS;
	case QCOW_E_NOTSUP:
	case QCOW_E_UNSUPPORTED:
		return EOPNOTSUPP;
	case QCOW_E_INVAL:
	case QCOW_E_RANGE:
		return EINVAL;
	case QCOW_E_NOENT:
		return ESTALE; /* it has been taken away */
	case QCOW_E_LIMIT:
		return EFBIG;
	default:
		return EIO;
	}
}

/* ---- one request ---- */

struct request {
	struct qk_fuse *fs;
	struct qk_fuse_node *node;
	const struct qk_nbd_export_ops *ops;
	enum qk_fuse_count count;
};

/* Through the gate: 0, then leave() ends it. */
static int enter(struct request *rq, fuse_req_t req, fuse_ino_t ino, enum qk_fuse_count count)
{
	rq->fs = qk_fuse_of(req);
	rq->node = qk_fuse_node(rq->fs, ino);
	rq->count = count;
	if (rq->node == NULL || rq->node->kind != QK_FUSE_FILE)
		return EIO;
	if (!qk_view_gate_enter(&rq->fs->gate, &rq->fs->is_over))
		return EIO;
	rq->ops = rq->node->ops;
	if (rq->ops != NULL)
		return 0;
	qk_view_gate_leave(&rq->fs->gate);
	return EIO; /* it was taken away */
}

static int leave(struct request *rq, uint64_t bytes, enum qcow_status status,
	const struct qcow_error *err, const char *what)
{
	qk_view_gate_leave(&rq->fs->gate);
	atomic_fetch_add_explicit(&rq->fs->counts[rq->count].requests, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&rq->fs->counts[rq->count].bytes, bytes, memory_order_relaxed);
	if (status != QCOW_OK)
		atomic_fetch_add_explicit(
			&rq->fs->counts[rq->count].errors, 1, memory_order_relaxed);
	return qk_fuse_errno(rq->fs, rq->node, what, status, err);
}

void qk_fuse_changed(struct qk_fuse *fs, struct qk_fuse_node *node, uint64_t off, uint64_t len)
{
	atomic_fetch_add(&node->blocks.n_changes, 1);
	atomic_fetch_add(&fs->n_changes, 1);
	(void)pthread_mutex_lock(&fs->lock);
	(void)clock_gettime(CLOCK_REALTIME, &node->changed);
	(void)pthread_mutex_unlock(&fs->lock);
	qk_fuse_make_stale(fs, node, node->off + off, node->off + off + len);
}

/* ---- reading ---- */

static void read_text(fuse_req_t req, const struct fuse_file_info *fi, size_t size, off_t off)
{
	const struct qk_fuse_text *text = (const struct qk_fuse_text *)(uintptr_t)fi->fh;
	size_t at = qk_min((uint64_t)off, text->n);
	size_t n = qk_min(qk_min(size, text->n - at), QK_FUSE_IO_BYTES);
	/* from the answer on the file may be closed, and the text go */
	memcpy(qk_fuse_me->buf, text->text + at, n);
	(void)fuse_reply_buf(req, qk_fuse_me->buf, n);
}

/* At once where it is at hand. */
static enum qcow_status read_from(
	struct request *rq, void *buf, size_t n, uint64_t off, struct qcow_error *err)
{
	if (n <= QUICK_BYTES && rq->ops->pread_nowait != NULL &&
		rq->ops->pread_nowait(rq->node->ctx, buf, n, off, NULL) == QCOW_OK)
		return QCOW_OK;
	return rq->ops->pread(rq->node->ctx, buf, n, off, err);
}

static void on_read(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct request rq;
	const struct qk_fuse_node *node = qk_fuse_node(qk_fuse_of(req), ino);
	if (node != NULL && node->kind == QK_FUSE_TEXT) {
		read_text(req, fi, size, off);
		return;
	}
	int error = enter(&rq, req, ino, QK_FUSE_COUNT_READ);
	size_t n = 0;
	if (error == 0) {
		uint64_t end = atomic_load(&rq.node->size), from = (uint64_t)off;
		n = from < end ? qk_min(qk_min(size, end - from), QK_FUSE_IO_BYTES) : 0;
		enum qcow_status status = QCOW_OK;
		if (n > 0)
			status = read_from(&rq, qk_fuse_me->buf, n, from, &err);
		error = leave(&rq, n, status, &err, "read");
	}
	if (error != 0)
		(void)fuse_reply_err(req, error);
	else
		(void)fuse_reply_buf(req, qk_fuse_me->buf, n);
}

/* ---- writing ---- */

/* Not every kernel has an fsync follow a write with O_DSYNC, so it is a flush here; for those that have, on_fsync is told that
 * it is done: where nothing else was written meanwhile. */
static enum qcow_status write_through(
	struct request *rq, const void *buf, size_t n, uint64_t off, struct qcow_error *err)
{
	uint64_t before = atomic_load(&rq->fs->n_changes);
	QK_TRY(rq->ops->pwrite(rq->node->ctx, buf, n, off, QCOW_IO_FUA, err));
	qk_fuse_changed(rq->fs, rq->node, off, n);
	if (atomic_load(&rq->fs->n_changes) == before + 1)
		atomic_store(&rq->fs->synced_at, before + 1);
	return QCOW_OK;
}

static enum qcow_status write_to(
	struct request *rq, const void *buf, size_t n, uint64_t off, struct qcow_error *err)
{
	QK_TRY(rq->ops->pwrite(rq->node->ctx, buf, n, off, 0, err));
	qk_fuse_changed(rq->fs, rq->node, off, n);
	return QCOW_OK;
}

static void on_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
	struct fuse_file_info *fi)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct request rq;
	size_t n = 0;
	int error = enter(&rq, req, ino, QK_FUSE_COUNT_WRITE);
	if (error == 0) {
		uint64_t end = atomic_load(&rq.node->size), from = (uint64_t)off;
		n = from < end ? qk_min(size, end - from) : 0;
		enum qcow_status status = QCOW_OK;
		if (rq.ops->pwrite == NULL)
			status = QK_FAIL(&err, QCOW_E_READONLY, "it is read-only");
		else if (n > 0)
			status = ((fi->flags & O_DSYNC) != 0 ? write_through : write_to)(
				&rq, buf, n, from, &err);
		error = leave(&rq, n, status, &err, "write");
	}
	if (error == 0 && n == 0 && size > 0)
		error = ENOSPC; /* the disk ends here */
	if (error != 0)
		(void)fuse_reply_err(req, error);
	else
		(void)fuse_reply_write(req, n);
}

static void on_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct request rq;
	const struct qk_fuse_node *node = qk_fuse_node(qk_fuse_of(req), ino);
	(void)datasync;
	(void)fi;
	if (node != NULL && (node->kind != QK_FUSE_FILE || node->read_only)) {
		(void)fuse_reply_err(req, 0);
		return;
	}
	int error = enter(&rq, req, ino, QK_FUSE_COUNT_FLUSH);
	if (error == 0) {
		uint64_t synced_at = atomic_exchange(&rq.fs->synced_at, 0);
		bool is_done = synced_at != 0 && synced_at == atomic_load(&rq.fs->n_changes);
		enum qcow_status status = is_done ? QCOW_OK : rq.ops->flush(rq.node->ctx, &err);
		error = leave(&rq, 0, status, &err, "flush");
	}
	(void)fuse_reply_err(req, error);
}

/* The part of [off, +len) that the file has. */
static uint64_t within(const struct qk_fuse_node *node, uint64_t off, uint64_t len)
{
	uint64_t end = atomic_load(&node->size);
	return off < end ? qk_min(len, end - off) : 0;
}

static void on_fallocate(
	fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len, struct fuse_file_info *fi)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct request rq;
	bool punches = mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
	bool keeps = (mode & FALLOC_FL_KEEP_SIZE) != 0;
	(void)fi;
	if (!punches && (mode & ~FALLOC_FL_KEEP_SIZE) != FALLOC_FL_ZERO_RANGE) {
		(void)fuse_reply_err(req, EOPNOTSUPP); /* space cannot be promised */
		return;
	}
	int error = enter(&rq, req, ino, QK_FUSE_COUNT_ZERO);
	if (error == 0) {
		uint64_t from = (uint64_t)off, n = within(rq.node, from, (uint64_t)len);
		enum qcow_status status = QCOW_OK;
		if (rq.ops->zero == NULL)
			status = QK_FAIL(&err, QCOW_E_READONLY, "it is read-only");
		else if (!keeps && n != (uint64_t)len)
			status = QK_FAIL(&err, QCOW_E_NOSPC, "the disk ends before that");
		else if (n > 0)
			status = rq.ops->zero(
				rq.node->ctx, from, n, punches ? (unsigned)QCOW_IO_UNMAP : 0, &err);
		if (status == QCOW_OK && n > 0)
			qk_fuse_changed(rq.fs, rq.node, from, n);
		error = leave(&rq, n, status, &err, punches ? "punch" : "zero");
	}
	(void)fuse_reply_err(req, error);
}

/* ---- holes ---- */

/* The first byte from `off` on that lies in data, or in a hole; *out == the size: there is none. */
static int seek(struct request *rq, fuse_req_t req, uint64_t off, bool to_data, uint64_t *out,
	struct qcow_error *err, enum qcow_status *status)
{
	uint64_t end = atomic_load(&rq->node->size);
	for (unsigned i = 0; off < end; i++) {
		struct qcow_extent e;
		*status = rq->ops->map(rq->node->ctx, off, end - off, UINT32_MAX, &e, err);
		if (*status != QCOW_OK)
			return 0;
		if (((e.flags & QCOW_EXTENT_ZERO) == 0) == to_data)
			break;
		off += e.len;
		if (i % 256 == 255 && fuse_req_interrupted(req) != 0)
			return EINTR;
	}
	*out = off;
	return 0;
}

static void on_lseek(
	fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct request rq;
	const struct qk_fuse_node *node = qk_fuse_node(qk_fuse_of(req), ino);
	uint64_t end = 0, found = (uint64_t)off;
	int error = 0;
	if (node != NULL && node->kind == QK_FUSE_TEXT) {
		end = ((const struct qk_fuse_text *)(uintptr_t)fi->fh)->n;
		found = whence == SEEK_DATA ? found : end;
	} else {
		error = enter(&rq, req, ino, QK_FUSE_COUNT_SEEK);
		if (error == 0) {
			enum qcow_status status = QCOW_OK;
			end = atomic_load(&rq.node->size);
			int cut = seek(&rq, req, (uint64_t)off, whence == SEEK_DATA, &found, &err,
				&status);
			error = leave(&rq, 0, status, &err, "seek");
			error = error != 0 ? error : cut;
		}
	}
	if (error == 0 && ((uint64_t)off >= end || (whence == SEEK_DATA && found >= end)))
		error = ENXIO;
	if (error != 0)
		(void)fuse_reply_err(req, error);
	else
		(void)fuse_reply_lseek(req, (off_t)found);
}

/* ---- st_blocks ---- */

/* Go on counting for a while. b->lock is held, and the gate passed. */
static void count_on(struct qk_fuse_node *node)
{
	struct qk_fuse_blocks *b = &node->blocks;
	uint64_t begin = now_ns(), size = atomic_load(&node->size);
	uint64_t changes = atomic_load(&b->n_changes);
	if (b->counted != changes && (b->at == 0 || b->at >= size)) {
		/* not more than a tenth of the time */
		if (b->answer != 0 && begin - b->ended_ns < 10 * b->took_ns)
			return;
		b->counted = changes;
		b->at = b->bytes = 0;
		b->is_whole = false;
	}
	if (b->is_whole)
		return;
	for (unsigned i = 1; b->at < size; i++) {
		struct qcow_extent e;
		if (node->ops->map(node->ctx, b->at, size - b->at, UINT32_MAX, &e, NULL) != QCOW_OK)
			e.flags = 0, e.len = qk_min(size - b->at, QK_FUSE_IO_BYTES);
		b->bytes += (e.flags & QCOW_EXTENT_ZERO) == 0 ? e.len : 0;
		b->at += e.len;
		if (i % 64 == 0 && now_ns() - begin > LOOK_NS)
			break;
	}
	b->is_whole = b->at >= size;
	b->ended_ns = now_ns();
	b->took_ns = b->ended_ns - begin;
	b->answer = b->is_whole ? b->bytes
				: (uint64_t)((double)b->bytes / (double)b->at * (double)size);
}

uint64_t qk_fuse_data_bytes(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	struct qk_fuse_blocks *b = &node->blocks;
	bool enters = qk_view_gate_try(&fs->gate);
	(void)pthread_mutex_lock(&b->lock);
	if (enters && node->ops != NULL)
		count_on(node);
	uint64_t bytes = b->answer;
	/* nothing but holes: once all was looked at */
	if (bytes == 0 && !(b->is_whole && b->counted == atomic_load(&b->n_changes)))
		bytes = atomic_load(&node->size);
	(void)pthread_mutex_unlock(&b->lock);
	if (enters)
		qk_view_gate_leave(&fs->gate);
	return bytes;
}

void qk_fuse_add_io(struct fuse_lowlevel_ops *ops)
{
	ops->read = on_read;
	ops->write = on_write;
	ops->fsync = on_fsync;
	ops->fallocate = on_fallocate;
	ops->lseek = on_lseek;
}
