/* SPDX-License-Identifier: MIT */
/*
 * A store: bytes on a host, addressed by offset.
 *
 * qcowkit reads and writes images through this table of calls, so an image may live in a file, on a
 * block device, in memory, or behind anything a program implements itself. The library wraps each
 * implementation once: ranges are checked there, and a call succeeds whole or fails.
 *
 * Threads: every call except close may run on one store from any number of threads at once.
 */
#ifndef QCOWKIT_STORE_H
#define QCOWKIT_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include <qcowkit/error.h>

#ifdef __cplusplus
extern "C" {
#endif

struct qcow_store;

#define QCOW_STORE_ABI 1

/* What a store can do. Filled by the implementation's `caps`. */
struct qcow_store_caps {
	uint32_t request_align;	    /* what the implementation is asked for is a multiple of it (a power
				       of two; 1 = any); callers of the wrapped store need not care */
	uint32_t physical_block;    /* bytes written atomically by the medium; 512 where unknown */
	bool writable;
	bool can_grow;		    /* writes past the end extend it; block devices cannot */
	bool reads_zero_past_end;   /* what a truncate or a write past the end skips reads as zeros */
	bool can_punch;
	bool can_clone;		    /* may succeed; the file system decides at the call */
	uint32_t memory_align;	    /* of the buffers and their lengths, as request_align; 0 = any */
};

/* One answer of `extents`. */
struct qcow_store_extent {
	uint64_t off;	/* the offset asked for */
	uint64_t len;	/* bytes from there with the same answer, > 0 */
	bool is_hole;	/* reads as zeros without any I/O */
};

/*
 * Implementations fill `abi`, `name`, and what they have. `preadv`, `size` and `close` are required;
 * `pwritev`, `flush` and `truncate` too where caps.writable. The others may be NULL: zero is then
 * done by writing, extents answers data, punch and clone answer QCOW_E_NOTSUP, fd answers -1.
 * `iov` is never empty, its sum is never 0, and [off, off + sum) lies within [0, size) for preadv.
 * A call that cannot do all of its range fails; what it did is then unspecified within the range.
 *
 * Where caps.request_align is not 1 the wrapper does the bouncing and the read-modify-write under a
 * lock: preadv may then be asked for bytes up to the next multiple past the end (zeros), and a pwritev
 * that runs over the end by less than a block is followed by a truncate to the exact size.
 * zero and punch that answer QCOW_E_NOTSUP: zero is done by writing, punch's answer is passed on.
 */
struct qcow_store_ops {
	uint32_t abi;	  /* QCOW_STORE_ABI */
	const char *name; /* "file", "memory": for messages */
	enum qcow_status (*preadv)(void *ctx, const struct iovec *iov, int n_iov, uint64_t off,
		struct qcow_error *err);
	enum qcow_status (*pwritev)(void *ctx, const struct iovec *iov, int n_iov, uint64_t off,
		struct qcow_error *err);
	/* Everything written before the call is durable when it returns. */
	enum qcow_status (*flush)(void *ctx, struct qcow_error *err);
	enum qcow_status (*size)(void *ctx, uint64_t *size_bytes, struct qcow_error *err);
	enum qcow_status (*truncate)(void *ctx, uint64_t size_bytes, struct qcow_error *err);
	/* The range reads as zeros afterwards; allocated or not is the store's choice unless
	 * QCOW_ZERO_ALLOCATE. May extend a store that can grow. */
	enum qcow_status (*zero)(void *ctx, uint64_t off, uint64_t len, unsigned flags,
		struct qcow_error *err);
	/* The range is deallocated and reads as zeros. Never extends. */
	enum qcow_status (*punch)(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err);
	/* The extent at `off`, at most `len` bytes of it. */
	enum qcow_status (*extents)(void *ctx, uint64_t off, uint64_t len,
		struct qcow_store_extent *out, struct qcow_error *err);
	/* Share [src_off, +len) of `src_fd` as [off, +len) of this store without copying. */
	enum qcow_status (*clone)(void *ctx, uint64_t off, int src_fd, uint64_t src_off, uint64_t len,
		struct qcow_error *err);
	/* A descriptor whose offsets are the store's, or -1. It stays the store's. */
	int (*fd)(void *ctx);
	void (*caps)(void *ctx, struct qcow_store_caps *out);
	void (*close)(void *ctx);
};

enum {
	QCOW_ZERO_ALLOCATE = 1 /* the blocks must be allocated (preallocation=falloc) */
};

/* Wrap an implementation. On success the store owns `ctx` and ops->close is called once by
 * qcow_store_close; on failure `ctx` stays the caller's. `ops` must outlive the store.
 * QCOW_E_INVAL (a required call is missing, another abi), QCOW_E_NOMEM. */
QCOW_EXPORT enum qcow_status qcow_store_new(const struct qcow_store_ops *ops, void *ctx,
	struct qcow_store **out, struct qcow_error *err) QCOW_MUST_USE;

/* Close and free. NULL is allowed. Nothing is flushed: flush first. */
QCOW_EXPORT void qcow_store_close(struct qcow_store *store);

/* The calls on a wrapped store. Reads past the end fail with QCOW_E_RANGE, writes past the end of a
 * store that cannot grow with QCOW_E_NOSPC; the message of a failure names the store, and host_off of
 * the error is where the call began. A call for 0 bytes does nothing. Errors: those of the
 * implementation, QCOW_E_RANGE, QCOW_E_READONLY. */
QCOW_EXPORT enum qcow_status qcow_store_read(struct qcow_store *store, void *buf, size_t len,
	uint64_t off, struct qcow_error *err) QCOW_MUST_USE;
QCOW_EXPORT enum qcow_status qcow_store_readv(struct qcow_store *store, const struct iovec *iov,
	int n_iov, uint64_t off, struct qcow_error *err) QCOW_MUST_USE;
/* Like read, but what lies past the end reads as zeros. */
QCOW_EXPORT enum qcow_status qcow_store_read_padded(struct qcow_store *store, void *buf, size_t len,
	uint64_t off, struct qcow_error *err) QCOW_MUST_USE;
QCOW_EXPORT enum qcow_status qcow_store_write(struct qcow_store *store, const void *buf, size_t len,
	uint64_t off, struct qcow_error *err) QCOW_MUST_USE;
QCOW_EXPORT enum qcow_status qcow_store_writev(struct qcow_store *store, const struct iovec *iov,
	int n_iov, uint64_t off, struct qcow_error *err) QCOW_MUST_USE;
QCOW_EXPORT enum qcow_status qcow_store_flush(struct qcow_store *store,
	struct qcow_error *err) QCOW_MUST_USE;
QCOW_EXPORT enum qcow_status qcow_store_size(struct qcow_store *store, uint64_t *size_bytes,
	struct qcow_error *err) QCOW_MUST_USE;
/* A store that cannot grow accepts its own size only: QCOW_E_NOSPC for more, QCOW_E_NOTSUP for less. */
QCOW_EXPORT enum qcow_status qcow_store_truncate(struct qcow_store *store, uint64_t size_bytes,
	struct qcow_error *err) QCOW_MUST_USE;
QCOW_EXPORT enum qcow_status qcow_store_zero(struct qcow_store *store, uint64_t off, uint64_t len,
	unsigned flags, struct qcow_error *err) QCOW_MUST_USE;
QCOW_EXPORT enum qcow_status qcow_store_punch(struct qcow_store *store, uint64_t off, uint64_t len,
	struct qcow_error *err) QCOW_MUST_USE;
/* `len` is clamped to the end of the store. QCOW_E_RANGE where nothing is left. */
QCOW_EXPORT enum qcow_status qcow_store_extents(struct qcow_store *store, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err) QCOW_MUST_USE;
/* QCOW_E_NOTSUP where the two stores cannot share blocks: copy instead. */
QCOW_EXPORT enum qcow_status qcow_store_clone(struct qcow_store *store, uint64_t off,
	struct qcow_store *src, uint64_t src_off, uint64_t len, struct qcow_error *err) QCOW_MUST_USE;
QCOW_EXPORT int qcow_store_fd(struct qcow_store *store);
QCOW_EXPORT void qcow_store_caps(struct qcow_store *store, struct qcow_store_caps *out);
/* The name given by qcow_store_set_name, else the implementation's. Valid until the close or the next set. */
QCOW_EXPORT const char *qcow_store_name(const struct qcow_store *store);
/* Copies `name` (a path, for messages). QCOW_E_NOMEM. */
QCOW_EXPORT enum qcow_status qcow_store_set_name(struct qcow_store *store, const char *name,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- files and block devices ---- */

enum {
	QCOW_FILE_WRITE = 1,	/* for reading and writing; else reading only */
	QCOW_FILE_CREATE = 2,	/* make it if it is missing (with WRITE) */
	QCOW_FILE_EXCL = 4,	/* with CREATE: fail with QCOW_E_EXIST if it is there */
	QCOW_FILE_DIRECT = 8,	/* O_DIRECT: bypass the page cache; the store aligns by itself */
	QCOW_FILE_SHARE = 16,	/* -U, reading only: hold byte 100 alone and test nothing */
	QCOW_FILE_NO_LOCK = 32,	/* neither take nor test locks */
	QCOW_FILE_SYNC = 64,	/* every write is durable when it returns (cache=writethrough) */
	QCOW_FILE_NO_FLUSH = 128 /* flushing does nothing (cache=unsafe): a crash of the host may leave anything, one of
				    the program nothing worse than before */
};

/*
 * Open a regular file or block device. FIFOs, sockets, directories and character devices are refused
 * without blocking. Locks are open file description locks on the bytes that QEMU uses (100 + n:
 * permission n is held, 200 + n: permission n is not shared; a writer holds 100, 101, 103, 201, 203,
 * a reader 100, 201, 203), so QEMU and qcowkit keep each other out. They end with the close.
 * QCOW_E_NOENT, QCOW_E_EXIST, QCOW_E_ACCESS, QCOW_E_LOCKED, QCOW_E_INVAL (kind of file), QCOW_E_IO,
 * QCOW_E_NOTSUP (the file system knows no such locks; message says how to go on), QCOW_E_NOMEM.
 */
QCOW_EXPORT enum qcow_status qcow_file_open(const char *path, unsigned flags, struct qcow_store **out,
	struct qcow_error *err) QCOW_MUST_USE;

/* As qcow_file_open on an open descriptor, which the store owns on success. CREATE and EXCL are refused. */
QCOW_EXPORT enum qcow_status qcow_file_open_fd(int fd, unsigned flags, struct qcow_store **out,
	struct qcow_error *err) QCOW_MUST_USE;

/* ---- memory ---- */

/* A growing store in memory, `size_bytes` of zeros at first; unwritten 64 KiB pages cost nothing. */
QCOW_EXPORT enum qcow_status qcow_memory_open(uint64_t size_bytes, struct qcow_store **out,
	struct qcow_error *err) QCOW_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
