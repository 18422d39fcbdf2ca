/* SPDX-License-Identifier: MIT */
/*
 * foreign: the disk image formats of others that are known by how a file begins, so that none is taken for a raw disk.
 */
#ifndef QK_FORMAT_FOREIGN_H
#define QK_FORMAT_FOREIGN_H

#include "base/bytes.h"

/* The name by which QEMU calls the format that a file which begins so has, or NULL. Looks at the first 512 bytes at most. */
const char *qk_foreign_probe(struct qk_span first);

#endif
