/* SPDX-License-Identifier: MIT */
/*
 * nowait: bytes of a store that are in memory already.
 */
#ifndef QK_STORE_NOWAIT_H
#define QK_STORE_NOWAIT_H

#include <qcowkit/store.h>

/* [off, off + len) of a store that has a descriptor and needs no alignment, from the page cache or from a file system that is
 * memory. false: it would have to wait, or cannot know; buf is then unspecified. */
bool qk_store_read_nowait(struct qcow_store *store, void *buf, size_t len, uint64_t off);

#endif
