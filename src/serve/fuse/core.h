/* SPDX-License-Identifier: MIT */
/*
 * core: what the files of this room share.
 *
 *   fuse.c    made, mounted, ended; the threads
 *   tree.c    nodes: folders and files by name and number
 *   meta.c    requests about names and attributes
 *   io.c      requests about the bytes of files
 *   text.c    files that tell of bitmaps
 *   stale.c   what the kernel has cached of a file and another one changed
 *
 * Nodes: the number of a node is its place in `nodes` and one, so 1 is the root. A node lives while the tree names it, the
 * kernel knows it (lookups less what it forgot) or somebody has it open; a request only names nodes that the kernel knows.
 *
 * Locking: fs->lock guards the tree and everything in a node but what is atomic or said to be otherwise. A node's ops and ctx
 * change while the gate is closed, so who is inside may use them without it. Order: gate, node->blocks.lock, fs->lock.
 */
#ifndef QK_SERVE_FUSE_CORE_H
#define QK_SERVE_FUSE_CORE_H

#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 312
#endif
#include <fuse_lowlevel.h>
#include <time.h>

#include "base/mem.h"
#include "serve/fuse/fuse.h"
#include "serve/view/gate.h"

#define QK_FUSE_ROOT	   1U
#define QK_FUSE_NAME_BYTES 255U
/* The largest read or write of one request. */
#define QK_FUSE_IO_BYTES (1U << 20)

enum qk_fuse_kind {
	QK_FUSE_FOLDER = 0,
	QK_FUSE_FILE,
	QK_FUSE_TEXT
};

/* How much of a file is data: counted from its start on, in steps. */
struct qk_fuse_blocks {
	pthread_mutex_t lock; /* for all but n_changes */
	_Atomic uint64_t n_changes; /* of the file's content */
	uint64_t counted; /* n_changes when this count began */
	uint64_t at, bytes; /* counted so far */
	uint64_t answer; /* bytes, of the last count that came to an end, or an estimate */
	uint64_t took_ns, ended_ns; /* the last whole count */
	bool is_whole; /* `answer` is what was counted at `counted` */
};

struct qk_fuse_node {
	fuse_ino_t ino;
	uint64_t generation;
	struct qk_fuse_node *parent; /* NULL: the root, or taken out */
	struct qk_fuse_node *same_hash; /* the next with this hash of parent and name */
	struct qk_fuse_node *next_writable;
	size_t n_children; /* of a folder */
	char *name; /* the last part */
	char *path; /* files: all of it, the export's name */
	enum qk_fuse_kind kind;
	uint64_t n_lookups;
	unsigned n_open;
	bool is_gone; /* the tree does not name it any more */
	struct timespec changed; /* mtime and ctime */
	/* files and texts: the export, or of which export the bitmap is; NULL when that is gone */
	const struct qk_nbd_export_ops *ops;
	void *ctx;
	/* files */
	bool read_only, sleeps;
	uint64_t off;
	_Atomic uint64_t size;
	struct qk_fuse_blocks blocks;
	bool is_stale; /* pages that the kernel may have of it are old; it is not open */
	uint64_t stale_from,
		stale_to; /* to be forgotten by the kernel while it is open; from == to: nothing */
	bool has_new_size;
	/* texts */
	struct qk_fuse_node *of; /* whose bitmap */
	unsigned bitmap;
	_Atomic uint64_t text_bytes; /* when that was last asked */
};

struct qk_fuse_worker {
	pthread_t thread;
	struct qk_fuse *fs;
	void *buf; /* QK_FUSE_IO_BYTES */
	bool is_made;
};

struct qk_fuse {
	struct qk_fuse_options o; /* strings are ours */
	struct qk_view_gate gate;
	pthread_mutex_t lock;
	struct qk_fuse_node **nodes; /* NULL: free */
	size_t n_nodes, room, n_free; /* n_free: holes in it */
	struct qk_fuse_node **hashed; /* by parent and name; a power of two of them */
	size_t n_hashed, n_named;
	struct qk_fuse_node *writable; /* files that can be written to */
	uint64_t generation;
	struct fuse_session *session;
	char *mountpoint; /* NULL: not mounted */
	struct qk_fuse_worker *workers;
	unsigned n_workers;
	bool is_started; /* with all that it needs */
	_Atomic bool is_over; /* nobody waits at the gate any more */
	_Atomic bool told_end;
	_Atomic unsigned n_alive, n_busy; /* workers; those with a request */
	_Atomic uint64_t text_bytes; /* of texts that are open, or being made */
	_Atomic uint64_t n_changes; /* of all files */
	_Atomic uint64_t
		synced_at; /* n_changes when a write that was a flush ended; 0: see on_fsync */
	/* stale.c */
	pthread_t forgetter;
	bool forgetter_is_made, forgetter_ends;
	bool has_stale;
	pthread_cond_t something_stale;
	struct {
		_Atomic uint64_t requests, bytes, errors;
	} counts[QK_FUSE_COUNTS];
};

/* The worker that runs. */
extern _Thread_local struct qk_fuse_worker *qk_fuse_me;

/* ---- tree.c; all with fs->lock held, unless said otherwise ---- */

enum qcow_status qk_fuse_tree_init(struct qk_fuse *fs, struct qcow_error *err);
void qk_fuse_tree_release(struct qk_fuse *fs);
/* A node at `path`, with its folder where it is the first there. */
enum qcow_status qk_fuse_tree_add(struct qk_fuse *fs, const char *path, enum qk_fuse_kind kind,
	struct qk_fuse_node **out, struct qcow_error *err);
/* The file or text of this path, or NULL. */
struct qk_fuse_node *qk_fuse_tree_find(struct qk_fuse *fs, const char *path);
struct qk_fuse_node *qk_fuse_tree_child(
	struct qk_fuse *fs, const struct qk_fuse_node *folder, const char *name);
/* Not named any more; its folder neither where it was the last there. */
void qk_fuse_tree_remove(struct qk_fuse *fs, struct qk_fuse_node *node);
/* Frees it where nothing holds it. */
void qk_fuse_tree_let_go(struct qk_fuse *fs, struct qk_fuse_node *node);
/* The node of a request; takes and leaves fs->lock. Never NULL for what the kernel knows. */
struct qk_fuse_node *qk_fuse_node(struct qk_fuse *fs, fuse_ino_t ino);

/* ---- meta.c, io.c ---- */

struct qk_fuse *qk_fuse_of(fuse_req_t req);
void qk_fuse_add_meta(struct fuse_lowlevel_ops *ops);
void qk_fuse_add_io(struct fuse_lowlevel_ops *ops);
/* Bytes of data in the file, counted or estimated. */
uint64_t qk_fuse_data_bytes(struct qk_fuse *fs, struct qk_fuse_node *node);
/* The errno for a failure, which is told to the log. 0 for QCOW_OK. */
int qk_fuse_errno(struct qk_fuse *fs, const struct qk_fuse_node *node, const char *what,
	enum qcow_status status, const struct qcow_error *err);
/* The content of [off, +len) changed. */
void qk_fuse_changed(struct qk_fuse *fs, struct qk_fuse_node *node, uint64_t off, uint64_t len);

/* ---- text.c ---- */

struct qk_fuse_text {
	size_t n;
	size_t room; /* what it is charged for */
	char text[];
};
/* What there is to tell; qk_fuse_text_free. QCOW_E_NOMEM also where those that are open are too large together. Not inside the
 * gate. */
enum qcow_status qk_fuse_text_make(struct qk_fuse *fs, struct qk_fuse_node *node,
	struct qk_fuse_text **out, struct qcow_error *err);
/* NULL is allowed. */
void qk_fuse_text_free(struct qk_fuse *fs, struct qk_fuse_text *text);
/* How long it would be, without making it; while the gate is closed what it was when it was last asked. 0: it cannot be told. */
uint64_t qk_fuse_text_bytes(struct qk_fuse *fs, struct qk_fuse_node *node);

/* ---- stale.c ---- */

/* Other files show [from, to) of the shared disk: the kernel forgets it, soon. */
void qk_fuse_make_stale(
	struct qk_fuse *fs, const struct qk_fuse_node *cause, uint64_t from, uint64_t to);
/* The kernel asks again how long it is. fs->lock is held. */
void qk_fuse_make_stale_size(struct qk_fuse *fs, struct qk_fuse_node *node);
enum qcow_status qk_fuse_stale_start(struct qk_fuse *fs, struct qcow_error *err);
void qk_fuse_stale_stop(struct qk_fuse *fs);

#endif
