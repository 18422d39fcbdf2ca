/* SPDX-License-Identifier: MIT */
/*
 * wrap: what store.c and align.c share of a wrapped store.
 */
#ifndef QK_STORE_WRAP_H
#define QK_STORE_WRAP_H

#include <pthread.h>
#include <stdatomic.h>

#include <qcowkit/store.h>

struct qcow_store {
	const struct qcow_store_ops *ops;
	void *ctx;
	char *name; /* given by qcow_store_set_name, or NULL */
	struct qcow_store_caps caps;
	/* The store had at least this size when somebody last looked: reads below it need no look. */
	_Atomic uint64_t known_size;
	/* Where requests must be aligned: shared by whole-block writes, exclusive for those that rewrite
	 * a block's other bytes. */
	pthread_rwlock_t block_lock;
	_Atomic int nowait; /* what nowait.c knows of the descriptor */
};

/* preadv or pwritev of the implementation. */
typedef enum qcow_status (*qk_transfer_fn)(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err);

/* `n` buffers at `off`; the ranges have been checked. */
struct qk_vec {
	const struct iovec *iov;
	int n;
	uint64_t off;
	uint64_t len; /* their sum, not 0 */
};

/* Hand `v` to `fn` in pieces of at most IOV_MAX buffers. Errors: those of fn. */
enum qcow_status qk_wrap_transfer(const struct qcow_store *store, qk_transfer_fn fn,
	const struct qk_vec *v, struct qcow_error *err) __attribute__((warn_unused_result));

/* align.c: the same on a store that wants aligned requests. QCOW_E_NOMEM, those of the implementation. */
enum qcow_status qk_align_readv(struct qcow_store *store, const struct qk_vec *v,
	struct qcow_error *err) __attribute__((warn_unused_result));
enum qcow_status qk_align_writev(struct qcow_store *store, const struct qk_vec *v,
	struct qcow_error *err) __attribute__((warn_unused_result));

static inline bool qk_align_is_needed(const struct qcow_store *store)
{
	return store->caps.request_align > 1 || store->caps.memory_align > 1;
}

#endif
