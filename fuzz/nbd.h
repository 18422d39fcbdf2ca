/* SPDX-License-Identifier: MIT */
/*
 * nbd: what the two NBD targets share: exports of an array of bytes, and a look at what the server says.
 */
#ifndef QK_FUZZ_NBD_H
#define QK_FUZZ_NBD_H

#include "fuzz.h"
#include "serve/nbd/exec.h"

#define FUZZ_DISK_BYTES (192 * 1024)

/* The array of both exports ("disk", writable, with bitmaps; "ro"). */
extern uint8_t fuzz_disk[FUZZ_DISK_BYTES];

void fuzz_nbd_registry(struct qk_nbd_registry *r);

/* Replies to options: whole, in order, strings bounded. */
void fuzz_nbd_look_at_options(const uint8_t *p, size_t n);

#endif
