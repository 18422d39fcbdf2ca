/* SPDX-License-Identifier: MIT */
/*
 * A mutator that knows what a qcow2 image is made of, written from the specification alone
 * (docs/interop/qcow2.rst of QEMU); it links nothing of the library, so that it can test it. It is used by
 * libFuzzer's targets of whole images and by the runner that compares readers.
 */
#ifndef QK_FUZZ_MUTATE_H
#define QK_FUZZ_MUTATE_H

#include <stddef.h>
#include <stdint.h>

/* Change 1 to 4 fields of the image in `data`, or a whole cluster, or its length (at most `max`); in half of
 * the cases make refcounts and COPIED bits right again, so that what lies behind them is reached. Gives the
 * new length. Bytes that are no qcow2 image are changed as bytes. The same arguments do the same. */
size_t mutate_image(uint8_t *data, size_t n, size_t max, uint64_t seed);

/* Make the stored refcounts of every cluster that has a refcount block, and the COPIED bits of the active
 * tables, agree with the references in the image. Reference counts that do not fit stay as they are. */
void mutate_fix_refcounts(uint8_t *data, size_t n);

#endif
