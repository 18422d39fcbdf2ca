/* SPDX-License-Identifier: MIT */
/*
 * file: what the files of the file store share.
 *
 *   host.c   opening: which kinds of file, which flags, what the host can do
 *   lock.c   the locks that keep QEMU and qcowkit out of each other's way; holder.c: who has them
 *   file.c   the calls of store.h on the open file
 *   space.c  those about space: extents, zero, punch, clone
 */
#ifndef QK_STORE_FILE_H
#define QK_STORE_FILE_H

#include <stdatomic.h>
#include <stddef.h>
#include <sys/stat.h>

#include <qcowkit/store.h>

/* Everything but has_lost is set by host.c before the store is visible and constant afterwards. */
struct qk_file {
	int fd;
	bool writable;
	bool is_device; /* a block device: its size is fixed */
	bool is_direct; /* O_DIRECT */
	bool is_sync; /* every write is durable when it returns */
	bool skips_flush; /* QCOW_FILE_NO_FLUSH */
	bool has_locks;
	uint32_t request_align, memory_align;
	uint32_t logical_block; /* of a device: what zero and punch must be multiples of; else 1 */
	uint32_t physical_block; /* bytes that the medium writes atomically */
	_Atomic bool
		has_lost; /* a flush failed: the page cache may hold what the medium does not */
};

extern const struct qcow_store_ops qk_file_ops;

/* lock.c. Take QEMU's locks for a reader or writer and test them against those of others; `sharing`
 * takes byte 100 alone and tests nothing. QCOW_E_LOCKED, QCOW_E_NOTSUP, QCOW_E_IO; then none is held. */
enum qcow_status qk_lock_take(int fd, bool writer, bool sharing, const char *path,
	struct qcow_error *err) __attribute__((warn_unused_result));
void qk_lock_drop(int fd);

/* holder.c. Name a process that holds a lock on the file into `text`: "process 12 (qemu-io)", or
 * nothing where the system does not say. Never blocks on the file. */
void qk_holder_name(const struct stat *st, char *text, size_t text_bytes);

/* space.c: as in store.h. */
enum qcow_status qk_space_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err);
enum qcow_status qk_space_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err);
enum qcow_status qk_space_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err);
enum qcow_status qk_space_clone(void *ctx, uint64_t off, int src_fd, uint64_t src_off, uint64_t len,
	struct qcow_error *err);

/* file.c: the size of the file or device now. */
enum qcow_status qk_file_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err);
/* file.c: with QCOW_FILE_SYNC what was just changed becomes durable, else nothing. */
enum qcow_status qk_file_sync_change(struct qk_file *f, struct qcow_error *err);

#endif
