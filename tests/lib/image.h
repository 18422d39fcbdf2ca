/* SPDX-License-Identifier: MIT */
/*
 * image: an image file open for writing the way tests want it: every write passes the order checker
 * (order.h) and the fault store (fault.h), backing files and the data file are opened by their names, and a file may be
 * one that cannot grow. Calls to the data file pass both too, as those of store 1.
 */
#ifndef QKT_IMAGE_H
#define QKT_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include <qcowkit/qcowkit.h>

#include "fault.h"
#include "order.h"

struct qkt_image_options {
	bool read_only; /* no QCOW_OPEN_WRITE, nothing is judged */
	bool is_fixed; /* the stores cannot grow, as block devices */
	bool threads; /* several threads will write (order.h) */
	bool unjudged; /* without the order checker */
	const char *passphrase; /* or NULL */
	bool no_backing; /* QCOW_OPEN_NO_BACKING */
	uint64_t stage_bytes;
	uint32_t discard; /* QCOW_DISCARD_ bits */
	enum qcow_prove prove;
};

struct qkt_image {
	struct qcow_image *image;
	struct qkt_fault *fault;
	struct qkt_order *order; /* NULL where nothing is judged */
};

/* QCOW_OK, or what the open answered; the struct is then empty. options NULL: all false. */
enum qcow_status qkt_image_open(struct qkt_image *im, const char *path,
	const struct qkt_image_options *options, struct qcow_error *err);

/* The same for a store, which passes to the image. */
enum qcow_status qkt_image_open_store(struct qkt_image *im, struct qcow_store *store,
	const struct qkt_image_options *options, struct qcow_error *err);

void qkt_image_close(struct qkt_image *im);

/* A store like `inner`, which it owns, that keeps its size. */
struct qcow_store *qkt_fixed_wrap(struct qcow_store *inner);

#endif
