/* SPDX-License-Identifier: MIT */
/*
 * hostmap: which parts of a layer's file are holes. Remembers the last answers of the host, for a walk
 * over an image asks about many small runs of one large extent, and a host may take as long to answer
 * as the extent is long.
 */
#ifndef QK_ENGINE_HOSTMAP_H
#define QK_ENGINE_HOSTMAP_H

#include <qcowkit/store.h>

struct qk_hostmap;

enum qcow_status qk_hostmap_new(struct qk_hostmap **out, struct qcow_error *err);
void qk_hostmap_free(struct qk_hostmap *map);

/* What is done to the store. */
enum qk_hostmap_use {
	QK_HOSTMAP_READ,
	QK_HOSTMAP_WRITTEN, /* holes are not remembered */
	QK_HOSTMAP_PUNCHED /* … and data becomes a hole without a change of what refers to it: nothing is */
};
/* Before a second thread sees the map; QK_HOSTMAP_READ at first. */
void qk_hostmap_set_use(struct qk_hostmap *map, enum qk_hostmap_use use);
/* Ask again: the file was cut, or large parts of it were given back. */
void qk_hostmap_forget(struct qk_hostmap *map);

/* Is [off, off + *len) of `store` a hole? Of one that was made since the file was asked it may be said that it is none.
 * *len (> 0) is cut to the part with one answer. Past the end of the store is a hole. All calls on one map name the same
 * store. Any thread. */
enum qcow_status qk_hostmap_ask(struct qk_hostmap *map, struct qcow_store *store, uint64_t off,
	uint64_t *len, bool *is_hole, struct qcow_error *err);

#endif
