/* SPDX-License-Identifier: MIT */
/*
 * fuse: exports as plain files of a file system in user space, by libfuse3's low-level calls.
 *
 * Whoever embeds it fills in files, by the table of calls that the NBD server takes too, and mounts it. It knows no image
 * and no command line.
 *
 * Threads: every call may come from any thread, except that new, mount, start, stop and free are the owner's to order. The
 * calls of an export come from the file system's threads, several at once.
 */
#ifndef QK_SERVE_FUSE_FUSE_H
#define QK_SERVE_FUSE_FUSE_H

#include <sys/types.h>

#include "serve/nbd/server.h"

struct qk_fuse;

struct qk_fuse_options {
	const char *source; /* what mount(8) shows */
	const char *options; /* key,key=value,… for libfuse and the kernel, or NULL */
	const char *
		only; /* the mount point is a regular file and shows this file; NULL: a folder with all */
	unsigned n_threads; /* 0 = 8, and more cores */
	uid_t uid;
	gid_t gid;
	mode_t umask;
	/* Make file `name` longer, from a thread of the file system that is in no export. QCOW_E_NOTSUP: it never may be. NULL: none
	 * may be. */
	enum qcow_status (*grow)(
		void *ctx, const char *name, uint64_t new_size, struct qcow_error *err);
	/* Nobody has the file of this export open any more, which was added with `sleeps`. NULL: nobody wants to know. */
	void (*on_unused)(void *ctx, void *export_ctx);
	/* Once, where somebody else unmounted it. */
	void (*on_end)(void *ctx);
	/* What a request failed for. */
	void (*log)(void *ctx, const char *text);
	void *ctx;
};

/* Nothing is mounted yet. QCOW_E_NOMEM. */
enum qcow_status qk_fuse_new(const struct qk_fuse_options *options, struct qk_fuse **out,
	struct qcow_error *err) QCOW_MUST_USE;

/* A file "NAME" or "FOLDER/NAME" for an export whose name that is; `off`: where it begins on a disk that all exports which
 * can be written to share. `sleeps`: the export opens what it shows when it is first asked for, so it is not asked while nobody has
 * the file open. Each part is a file name of at most 255 bytes. On success ops->close is called once, some day; on
 * failure never. QCOW_E_EXIST, QCOW_E_INVAL, QCOW_E_NOMEM. */
enum qcow_status qk_fuse_add(struct qk_fuse *fs, const struct qk_nbd_export *export, uint64_t off,
	bool sleeps, struct qcow_error *err) QCOW_MUST_USE;
/* The file is gone, and the export closed. With `hard` also for who has it open (EIO), else QCOW_E_LOCKED then. QCOW_E_NOENT.
 * Not from a callback. */
enum qcow_status qk_fuse_remove(
	struct qk_fuse *fs, const char *name, bool hard, struct qcow_error *err) QCOW_MUST_USE;
/* Is there a file of that name? */
bool qk_fuse_has(struct qk_fuse *fs, const char *name);
/* QCOW_E_NOENT. */
enum qcow_status qk_fuse_resized(struct qk_fuse *fs, const char *name, uint64_t new_size,
	struct qcow_error *err) QCOW_MUST_USE;
/* The files of an export's bitmaps, which were there before or are now: files[i] "FOLDER/NAME" tells what the export's `dirty`
 * says of bitmap i, as JSON. QCOW_E_NOENT (the export), QCOW_E_INVAL, QCOW_E_NOMEM. */
enum qcow_status qk_fuse_set_bitmaps(struct qk_fuse *fs, const char *name, const char *const *files,
	unsigned n, struct qcow_error *err) QCOW_MUST_USE;

/* On an existing folder, or with `only` on an existing regular file. Who looks waits until it is started. QCOW_E_NOTSUP: the
 * options or the system do not allow it. */
enum qcow_status qk_fuse_mount(
	struct qk_fuse *fs, const char *mountpoint, struct qcow_error *err) QCOW_MUST_USE;
/* Make the threads; after any fork. QCOW_E_NOMEM. */
enum qcow_status qk_fuse_start(struct qk_fuse *fs, struct qcow_error *err) QCOW_MUST_USE;
/* Unmount, if need be below those who have files open: what has arrived is answered, they get errors from then on. Joins the
 * threads; what they had done is not flushed. Safe to call twice. */
void qk_fuse_stop(struct qk_fuse *fs);
/* Stops, closes the exports, frees. NULL is allowed. */
void qk_fuse_free(struct qk_fuse *fs);

/* As qk_nbd_server_quiesce and _resume. */
void qk_fuse_quiesce(struct qk_fuse *fs);
void qk_fuse_resume(struct qk_fuse *fs);

enum qk_fuse_count {
	QK_FUSE_COUNT_READ = 0,
	QK_FUSE_COUNT_WRITE,
	QK_FUSE_COUNT_FLUSH,
	QK_FUSE_COUNT_ZERO,
	QK_FUSE_COUNT_SEEK,
	QK_FUSE_COUNTS
};
struct qk_fuse_stats {
	unsigned n_files, n_open;
	struct qk_nbd_counter counts[QK_FUSE_COUNTS];
};
void qk_fuse_get_stats(struct qk_fuse *fs, struct qk_fuse_stats *out);

#endif
