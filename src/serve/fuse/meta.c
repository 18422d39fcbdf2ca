/* SPDX-License-Identifier: MIT */
/*
 * meta: requests about names and attributes. Nothing here can be made, renamed or removed by who looks at it; a file gets
 * longer where the embedder lets it, and never shorter.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/num.h"
#include "serve/fuse/core.h"

#define BLOCK_BYTES 512U
/* The kernel asks again after that: names come and go, lengths change, by other ways than by it. */
#define KNOWN_SECONDS 1.0

struct qk_fuse *qk_fuse_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

/* ---- attributes ---- */

static mode_t mode_of(const struct qk_fuse *fs, const struct qk_fuse_node *node)
{
	if (node->kind == QK_FUSE_FOLDER)
		return S_IFDIR | (0555 & ~fs->o.umask);
	if (node->kind == QK_FUSE_TEXT || node->read_only)
		return S_IFREG | (0444 & ~fs->o.umask);
	return S_IFREG | (0666 & ~fs->o.umask);
}

static bool is_asleep(struct qk_fuse *fs, const struct qk_fuse_node *node)
{
	(void)pthread_mutex_lock(&fs->lock);
	bool yes = node->sleeps && node->n_open == 0;
	(void)pthread_mutex_unlock(&fs->lock);
	return yes;
}

static void fill(struct qk_fuse *fs, struct qk_fuse_node *node, struct stat *st)
{
	*st = (struct stat){.st_ino = node->ino,
		.st_nlink = node->kind == QK_FUSE_FOLDER ? 2 : 1,
		.st_uid = fs->o.uid,
		.st_gid = fs->o.gid,
		.st_blksize = QK_FUSE_IO_BYTES};
	uint64_t bytes = 0, data = 0;
	if (node->kind == QK_FUSE_TEXT)
		bytes = data = qk_fuse_text_bytes(fs, node);
	if (node->kind == QK_FUSE_FILE) {
		bytes = atomic_load(&node->size);
		/* no file may seem to have nothing but holes: programs then read it no further */
		data = is_asleep(fs, node) ? bytes : qk_fuse_data_bytes(fs, node);
	}
	st->st_size = (off_t)bytes;
	st->st_blocks = (blkcnt_t)((data + BLOCK_BYTES - 1) / BLOCK_BYTES);
	(void)pthread_mutex_lock(&fs->lock);
	st->st_mode = mode_of(fs, node);
	st->st_atim = st->st_mtim = st->st_ctim = node->changed;
	(void)pthread_mutex_unlock(&fs->lock);
}

static void on_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct qk_fuse *fs = qk_fuse_of(req);
	struct qk_fuse_node *node = qk_fuse_node(fs, ino);
	struct stat st;
	(void)fi;
	if (node == NULL) {
		(void)fuse_reply_err(req, ESTALE);
		return;
	}
	fill(fs, node, &st);
	(void)fuse_reply_attr(req, &st, KNOWN_SECONDS);
}

/* 0, or what truncate(2) fails with. */
static int set_size(struct qk_fuse *fs, struct qk_fuse_node *node, off_t size)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (node->kind != QK_FUSE_FILE)
		return node->kind == QK_FUSE_FOLDER ? EISDIR : EPERM;
	uint64_t old = atomic_load(&node->size);
	if (size < 0)
		return EINVAL;
	if ((uint64_t)size == old)
		return 0;
	if (node->read_only)
		return EROFS;
	if ((uint64_t)size < old || fs->o.grow == NULL)
		return EPERM;
	enum qcow_status status = fs->o.grow(fs->o.ctx, node->path, (uint64_t)size, &err);
	if (status == QCOW_E_NOTSUP)
		return EPERM;
	return qk_fuse_errno(fs, node, "truncate", status, &err);
}

/* Modes and owners are those of the options. Times are let be. */
static int set_attr(struct qk_fuse *fs, struct qk_fuse_node *node, const struct stat *to, int which)
{
	(void)pthread_mutex_lock(&fs->lock);
	mode_t mode = mode_of(fs, node);
	(void)pthread_mutex_unlock(&fs->lock);
	if (((which & FUSE_SET_ATTR_MODE) != 0 && ((mode ^ to->st_mode) & 07777) != 0) ||
		((which & FUSE_SET_ATTR_UID) != 0 && to->st_uid != fs->o.uid) ||
		((which & FUSE_SET_ATTR_GID) != 0 && to->st_gid != fs->o.gid))
		return EPERM;
	return (which & FUSE_SET_ATTR_SIZE) != 0 ? set_size(fs, node, to->st_size) : 0;
}

static void on_setattr(
	fuse_req_t req, fuse_ino_t ino, struct stat *to, int which, struct fuse_file_info *fi)
{
	struct qk_fuse *fs = qk_fuse_of(req);
	struct qk_fuse_node *node = qk_fuse_node(fs, ino);
	struct stat st;
	(void)fi;
	int error = node != NULL ? set_attr(fs, node, to, which) : ESTALE;
	if (error != 0) {
		(void)fuse_reply_err(req, error);
		return;
	}
	fill(fs, node, &st);
	(void)fuse_reply_attr(req, &st, KNOWN_SECONDS);
}

static void on_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct qk_fuse *fs = qk_fuse_of(req);
	struct statvfs st = {
		.f_bsize = BLOCK_BYTES, .f_frsize = BLOCK_BYTES, .f_namemax = QK_FUSE_NAME_BYTES};
	(void)ino;
	(void)pthread_mutex_lock(&fs->lock);
	for (size_t i = 0; i < fs->n_nodes; i++)
		if (fs->nodes[i] != NULL && fs->nodes[i]->kind == QK_FUSE_FILE)
			st.f_blocks += atomic_load(&fs->nodes[i]->size) / BLOCK_BYTES;
	(void)pthread_mutex_unlock(&fs->lock);
	(void)fuse_reply_statfs(req, &st);
}

/* ---- names ---- */

static void forget_one(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	(void)pthread_mutex_lock(&fs->lock);
	node->n_lookups--;
	qk_fuse_tree_let_go(fs, node);
	(void)pthread_mutex_unlock(&fs->lock);
}

static void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct qk_fuse *fs = qk_fuse_of(req);
	struct fuse_entry_param e = {.attr_timeout = KNOWN_SECONDS, .entry_timeout = KNOWN_SECONDS};
	struct qk_fuse_node *folder = qk_fuse_node(fs, parent);
	(void)pthread_mutex_lock(&fs->lock);
	struct qk_fuse_node *node = folder != NULL ? qk_fuse_tree_child(fs, folder, name) : NULL;
	if (node != NULL)
		node->n_lookups++;
	(void)pthread_mutex_unlock(&fs->lock);
	if (node == NULL) {
		(void)fuse_reply_err(req, ENOENT);
		return;
	}
	fill(fs, node, &e.attr);
	e.ino = node->ino;
	e.generation = node->generation;
	if (fuse_reply_entry(req, &e) == 0)
		return;
	forget_one(fs, node);
}

static void on_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n)
{
	struct qk_fuse *fs = qk_fuse_of(req);
	struct qk_fuse_node *node = qk_fuse_node(fs, ino);
	(void)pthread_mutex_lock(&fs->lock);
	if (node != NULL) {
		node->n_lookups -= qk_min(n, node->n_lookups);
		qk_fuse_tree_let_go(fs, node);
	}
	(void)pthread_mutex_unlock(&fs->lock);
	fuse_reply_none(req);
}

/* Entries in the order of their numbers; the position is the number behind the last that was told. */
static size_t behind(off_t position)
{
	return position > 2 ? (size_t)position - 2 : 0;
}

struct listing {
	fuse_req_t req;
	char *buf;
	size_t used, room;
};

/* False: no room for it. */
static bool list(struct listing *l, const char *name, fuse_ino_t ino, mode_t type, off_t next)
{
	const struct stat st = {.st_ino = ino, .st_mode = type};
	size_t n = fuse_add_direntry(l->req, l->buf + l->used, l->room - l->used, name, &st, next);
	if (n > l->room - l->used)
		return false;
	l->used += n;
	return true;
}

/* The next node of `folder` from number *i on, or NULL. fs->lock is held. */
static struct qk_fuse_node *next_in(
	const struct qk_fuse *fs, const struct qk_fuse_node *folder, size_t *i)
{
	for (; *i < fs->n_nodes; ++*i) {
		struct qk_fuse_node *node = fs->nodes[*i];
		if (node != NULL && node->parent == folder && !node->is_gone)
			return node;
	}
	return NULL;
}

static void on_readdir(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct qk_fuse *fs = qk_fuse_of(req);
	struct qk_fuse_node *folder = qk_fuse_node(fs, ino);
	struct listing l = {
		.req = req, .buf = qk_fuse_me->buf, .room = qk_min(size, QK_FUSE_IO_BYTES)};
	(void)fi;
	(void)pthread_mutex_lock(&fs->lock);
	bool more = folder != NULL;
	if (more && off < 1)
		more = list(&l, ".", ino, S_IFDIR, 1);
	if (more && off < 2)
		more = list(&l, "..", QK_FUSE_ROOT, S_IFDIR, 2);
	const struct qk_fuse_node *node = NULL;
	for (size_t i = behind(off); more && (node = next_in(fs, folder, &i)) != NULL; i++)
		more = list(&l, node->name, node->ino,
			node->kind == QK_FUSE_FOLDER ? S_IFDIR : S_IFREG, (off_t)i + 3);
	(void)pthread_mutex_unlock(&fs->lock);
	(void)fuse_reply_buf(req, l.buf, l.used);
}

/* ---- names with their attributes: who lists a folder with thousands of snapshots does not ask for each ---- */

struct full_listing {
	struct listing l;
	fuse_ino_t *told; /* the kernel knows these from here on, if it gets the answer */
	size_t n_told;
};

/* Somebody holds `node`. False: no room for it. */
static bool list_full(
	struct qk_fuse *fs, struct full_listing *f, struct qk_fuse_node *node, off_t next)
{
	struct fuse_entry_param e = {.attr_timeout = KNOWN_SECONDS, .entry_timeout = KNOWN_SECONDS};
	struct listing *l = &f->l;
	size_t room = l->room - l->used;
	/* nobody may want to know how long a text is: the kernel asks for it then */
	bool tells = node->kind != QK_FUSE_TEXT;
	e.attr.st_ino = node->ino;
	e.attr.st_mode = S_IFREG;
	if (tells) {
		fill(fs, node, &e.attr);
		e.ino = node->ino;
		e.generation = node->generation;
	}
	size_t n = fuse_add_direntry_plus(l->req, l->buf + l->used, room, node->name, &e, next);
	if (n > room)
		return false;
	l->used += n;
	if (tells)
		f->told[f->n_told++] = node->ino;
	else
		forget_one(fs, node);
	return true;
}

static bool list_dot(struct full_listing *f, const char *name, fuse_ino_t ino, off_t next)
{
	const struct fuse_entry_param e = {.attr = {.st_ino = ino, .st_mode = S_IFDIR}};
	struct listing *l = &f->l;
	size_t room = l->room - l->used;
	size_t n = fuse_add_direntry_plus(l->req, l->buf + l->used, room, name, &e, next);
	l->used += n > room ? 0 : n;
	return n <= room;
}

static void list_all_full(
	struct qk_fuse *fs, struct full_listing *f, const struct qk_fuse_node *folder, size_t i)
{
	for (bool more = true; more; i++) {
		(void)pthread_mutex_lock(&fs->lock);
		struct qk_fuse_node *node = next_in(fs, folder, &i);
		if (node != NULL)
			node->n_lookups++;
		(void)pthread_mutex_unlock(&fs->lock);
		if (node == NULL)
			return;
		more = list_full(fs, f, node, (off_t)i + 3);
		if (!more)
			forget_one(fs, node);
	}
}

static void on_readdirplus(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct qk_fuse *fs = qk_fuse_of(req);
	const struct qk_fuse_node *folder = qk_fuse_node(fs, ino);
	const size_t half = QK_FUSE_IO_BYTES / 2; /* an entry has more bytes than its number */
	struct full_listing f = {
		.l = {.req = req, .buf = qk_fuse_me->buf, .room = qk_min(size, half)},
		.told = (fuse_ino_t *)((char *)qk_fuse_me->buf + half)};
	(void)fi;
	bool more = folder != NULL;
	if (more && off < 1)
		more = list_dot(&f, ".", ino, 1);
	if (more && off < 2)
		more = list_dot(&f, "..", QK_FUSE_ROOT, 2);
	if (more)
		list_all_full(fs, &f, folder, behind(off));
	if (fuse_reply_buf(req, f.l.buf, f.l.used) == 0)
		return;
	for (size_t i = 0; i < f.n_told; i++)
		forget_one(fs, qk_fuse_node(fs, f.told[i]));
}

/* ---- open files ---- */

static int open_text(struct qk_fuse *fs, struct qk_fuse_node *node, struct fuse_file_info *fi)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_fuse_text *text = NULL;
	int error = qk_fuse_errno(fs, node, "read", qk_fuse_text_make(fs, node, &text, &err), &err);
	fi->fh = (uint64_t)(uintptr_t)text;
	fi->direct_io = 1; /* it may have another length by now */
	return error;
}

static void on_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct qk_fuse *fs = qk_fuse_of(req);
	struct qk_fuse_node *node = qk_fuse_node(fs, ino);
	int error = node == NULL ? ESTALE : 0;
	if (error == 0 && (fi->flags & O_ACCMODE) != O_RDONLY &&
		(node->kind != QK_FUSE_FILE || node->read_only))
		error = EROFS;
	if (error == 0 && node->kind == QK_FUSE_TEXT)
		error = open_text(fs, node, fi);
	if (error != 0) {
		(void)fuse_reply_err(req, error);
		return;
	}
	(void)pthread_mutex_lock(&fs->lock);
	fi->keep_cache = !node->is_stale;
	node->is_stale = false;
	node->n_open++;
	(void)pthread_mutex_unlock(&fs->lock);
	if (fuse_reply_open(req, fi) == 0)
		return;
	if (node->kind == QK_FUSE_TEXT)
		qk_fuse_text_free(fs, (struct qk_fuse_text *)(uintptr_t)fi->fh);
	(void)pthread_mutex_lock(&fs->lock);
	node->is_stale = true;
	node->n_open--;
	qk_fuse_tree_let_go(fs, node);
	(void)pthread_mutex_unlock(&fs->lock);
}

/* The kernel knows the node while it waits for the answer. */
static void put_to_sleep(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	if (fs->o.on_unused == NULL || !qk_view_gate_enter(&fs->gate, &fs->is_over))
		return;
	if (node->ops != NULL)
		fs->o.on_unused(fs->o.ctx, node->ctx);
	qk_view_gate_leave(&fs->gate);
}

static void on_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct qk_fuse *fs = qk_fuse_of(req);
	struct qk_fuse_node *node = qk_fuse_node(fs, ino);
	if (node != NULL && node->kind == QK_FUSE_TEXT)
		qk_fuse_text_free(fs, (struct qk_fuse_text *)(uintptr_t)fi->fh);
	(void)pthread_mutex_lock(&fs->lock);
	bool is_last = false;
	if (node != NULL) {
		node->n_open -= node->n_open > 0;
		is_last = node->n_open == 0 && node->sleeps && !node->is_gone;
		if (!is_last)
			qk_fuse_tree_let_go(fs, node);
	}
	(void)pthread_mutex_unlock(&fs->lock);
	if (is_last)
		put_to_sleep(fs, node);
	(void)fuse_reply_err(req, 0);
}

static void on_init(void *ctx, struct fuse_conn_info *conn)
{
	(void)ctx;
	/* the content changes by us alone, and what else changes it tells the kernel so (stale.c) */
	conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
	/* write(2) that returned is in the image: a snapshot by the control socket has it */
	conn->want &= ~(unsigned)FUSE_CAP_WRITEBACK_CACHE;
	/* O_TRUNC is a truncate to be refused: else the kernel drops what mappings hold and asks nobody */
	conn->want &= ~(unsigned)FUSE_CAP_ATOMIC_O_TRUNC;
	conn->max_write = QK_FUSE_IO_BYTES;
	conn->max_readahead = QK_FUSE_IO_BYTES;
	conn->max_background = 128; /* reads ahead, and direct requests that do not wait */
	conn->congestion_threshold = 96;
}

void qk_fuse_add_meta(struct fuse_lowlevel_ops *ops)
{
	ops->init = on_init;
	ops->lookup = on_lookup;
	ops->forget = on_forget;
	ops->getattr = on_getattr;
	ops->setattr = on_setattr;
	ops->readdir = on_readdir;
	ops->readdirplus = on_readdirplus;
	ops->statfs = on_statfs;
	ops->open = on_open;
	ops->release = on_release;
}
