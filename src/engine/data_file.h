/* SPDX-License-Identifier: MIT */
/*
 * data_file: what is different for an image whose guest data lies in a file of its own. There the host offset of a cluster is
 * its guest offset, so it has one place for ever, and neither a refcount nor a second reference.
 * Specification: "external data file", "raw external data".
 */
#ifndef QK_ENGINE_DATA_FILE_H
#define QK_ENGINE_DATA_FILE_H

#include <pthread.h>
#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "engine/stage.h"

/* Of qk_rw: clusters that no entry names any more, durably. */
struct qk_data_file {
	pthread_mutex_t lock;
	_Atomic uint64_t n;
	uint64_t room;
	struct qk_pair *idle; /* a: offset in the data file, b: clusters */
};

void qk_data_file_init(struct qk_data_file *d);
void qk_data_file_release(struct qk_data_file *d);

/* May the image with its data file be written? QCOW_E_POLICY (it was not opened), QCOW_E_READONLY.
 * That there are no snapshots the header says. */
enum qcow_status qk_data_file_judge(struct qcow_image *image, struct qcow_error *err) QK_MUST_USE;

/* Is the data file the disk for whoever reads it alone? */
bool qk_data_file_is_raw(const struct qcow_image *image);

/* Make [off, off + len) of the disk zeros in a raw data file, where nothing below the image could show; `gives_up`: the
 * space may go. Errors of the store, the fence's. Any thread, in no epoch. */
enum qcow_status qk_data_file_zero(struct qcow_image *image, uint64_t off, uint64_t len,
	bool gives_up, struct qcow_error *err) QK_MUST_USE;

/* The pair that stands for the cluster at `off` among those that a change unlinks. */
struct qk_pair qk_data_file_unlinked(uint64_t off);

/* Take such pairs out of a list whose unlinking is durable and that no reader from before knows: their b becomes 0. */
void qk_data_file_take(struct qcow_image *image, struct qk_pairs *unlinked);

/* Give the space of what was taken back to the host, but for clusters that are in use again. Takes stripes: the caller
 * holds no lock and is in no epoch. What fails stays allocated, which is no harm. */
void qk_data_file_punch(struct qcow_image *image);

/* The same for a range of which nothing is named, durably, where nobody else reads or writes (control.h). */
void qk_data_file_give_back(struct qcow_image *image, uint64_t off, uint64_t len);

#endif
