/* SPDX-License-Identifier: MIT */
/* workloads_bitmap: workloads on images with persistent bitmaps, for the table of workloads.c. */
#ifndef QKC_WORKLOADS_BITMAP_H
#define QKC_WORKLOADS_BITMAP_H

#include "plan.h"

void qkc_bitmaps(struct qkc_plan *p);
void qkc_bitmaps_reopened(struct qkc_plan *p);
void qkc_bitmaps_snapshot(struct qkc_plan *p);
void qkc_bitmaps_device(struct qkc_plan *p);
void qkc_bitmaps_flush_fails(struct qkc_plan *p);
void qkc_bitmaps_first_flush_fails(struct qkc_plan *p); /* the one that makes the marks stable */
void qkc_bitmaps_close_fails(struct qkc_plan *p);

#endif
