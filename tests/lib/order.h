/* SPDX-License-Identifier: MIT */
/*
 * order: a store around any other one that reads every write to a qcow2 file as it passes and
 * stops the test where a crash could now show something it must not.
 *
 * It knows the specification and a model of disks (SAFETY: a sector of 512 bytes is old or new, any
 * subset of the sectors written since the last completed flush may be durable) and nothing of the
 * engine. For every sector of reachable metadata it keeps all contents that a crash could leave; a
 * pointer that stands in any of them counts as a reference.
 *
 * A write belongs to the disk when a flush succeeds that began after the write returned. What failed, and
 * what a failed flush was to make durable, stays uncertain until it is overwritten and flushed.
 */
#ifndef QKT_ORDER_H
#define QKT_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#include <qcowkit/store.h>

#include "fault.h"

enum qkt_order_rule {
	QKT_O_NONE,
	QKT_O1, /* a pointer is issued before what it points to is durable: data, tables, file size */
	QKT_O2, /* a crash could leave more references to a cluster than its stored refcount */
	QKT_O3, /* data is linked that shows bytes from before the cluster was taken */
	QKT_O4, /* overwritten while a crash could leave a pointer to it, and not data with one owner */
	QKT_O5, /* punched while a crash could leave a pointer to it that shows its content */
	QKT_O6, /* the file is cut below something reachable */
	QKT_O7, /* bytes 72 to 103 of a version 2 header are changed */
	QKT_O8, /* an entry that no reader would take: reserved bits, unaligned */
	QKT_O9, /* COPIED on a cluster that has several references */
	QKT_O10, /* one cluster in two roles */
	QKT_O11, /* the disk changes before its enabled bitmaps are in use, durably */
	QKT_O12 /* an entry says zeros, and a raw data file holds something else there */
};

struct qkt_order_options {
	bool report; /* keep the first violation for qkt_order_rule instead of aborting */
	bool threads; /* writes in place may overtake an unlinking that another thread issues */
};

struct qkt_order;

struct qkt_order *qkt_order_new(const struct qkt_order_options *options); /* NULL: all false */

/* After the store was closed. */
void qkt_order_free(struct qkt_order *o);

/*
 * A store that judges and passes on to `inner`, which it owns. What `inner` holds now is taken for
 * durable. The checker reads through `peek` (inner itself, or the store below it that counts no calls
 * and never fails), which must live as long. One store at a time; wrapping again starts anew.
 */
struct qcow_store *qkt_order_wrap(
	struct qkt_order *o, struct qcow_store *inner, struct qcow_store *peek);

/*
 * The data file of the image that is wrapped, before anything was written to either: it is judged with it, as O1, O3,
 * O5, O6, O8 and O12 say. A cluster of it has one place, so what was unlinked may be written again at once.
 */
struct qcow_store *qkt_order_wrap_data(
	struct qkt_order *o, struct qcow_store *inner, struct qcow_store *peek);

/* The usual stack of a test that writes: order over fault over `base`, which it owns. */
struct qcow_store *qkt_guard(
	struct qkt_fault *f, struct qkt_order *o, struct qcow_store *base, unsigned id);
/* The same for the data file. */
struct qcow_store *qkt_guard_data(
	struct qkt_fault *f, struct qkt_order *o, struct qcow_store *base, unsigned id);

/* With `report`: the first rule that was broken, how often any was, and the sentence. */
enum qkt_order_rule qkt_order_rule(const struct qkt_order *o);
uint64_t qkt_order_violations(const struct qkt_order *o);
const char *qkt_order_message(const struct qkt_order *o);

/* How much was judged: pointers that became possible. A test that expects some can say so. */
uint64_t qkt_order_judged(const struct qkt_order *o);

#endif
