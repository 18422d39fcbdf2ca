/* SPDX-License-Identifier: MIT */
/*
 * space: the host clusters of an image that is open for writing: which are free, how often each is referenced,
 * and that no two structures ever share one.
 *
 *   space.c          life: the refcount table, open, recover, close
 *   space_blocks.c   the cache of refcount blocks, dirty by sector
 *   space_alloc.c    taking clusters, reservations, the end of the file
 *   space_count.c    raise, drop, give back, quarantine
 *   space_punch.c    giving clusters back to the file system
 *   space_table.c    new refcount blocks, growth of the refcount table, publication of both
 *   space_map.c	      which structure lies in which cluster
 *   space_overlap.c  overlap checks, the header, the corrupt bit
 *   space_prove.c    proof of free space: stored refcounts against counted references (invariant 6)
 *   space_rebuild.c  before the first write: autoclear bits, refcounts of a dirty image
 *
 * Life of a cluster: FREE, RESERVED (refcount 1 stored ahead of use), OWNED (taken), LINKED, UNLINKED (the
 * caller's; waits for its barrier), DEREFED (qk_space_drop), FREE.
 *
 * Refcounts change in memory and reach the disk by qk_space_publish_begin, or earlier. Every dirty block may be
 * written at any time: an increment written early is a leak after a crash, and a decrement enters the cache
 * only by qk_space_drop, after the barrier that made the unlinking stable.
 *
 * Any thread may call anything but new, free and close. One lock, `space` of doc/LOCKING.md, held across reads of
 * refcount blocks and while the cache is made smaller; publication writes without it.
 * Specification: "Host cluster management".
 */
#ifndef QK_ENGINE_SPACE_H
#define QK_ENGINE_SPACE_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "format/geometry.h"
#include "format/header.h"
#include "format/limits.h"

struct qk_space;
struct qk_refs_watch;

/* What a cluster is used for, or a write is meant for. */
enum qk_space_kind {
	QK_SPACE_DATA, /* guest data, compressed data, VM state */
	QK_SPACE_HEADER, /* cluster 0 */
	QK_SPACE_REFTABLE,
	QK_SPACE_REFBLOCK,
	QK_SPACE_L1, /* active */
	QK_SPACE_L2, /* of any tree */
	QK_SPACE_SNAPSHOTS, /* snapshot table, L1 tables of snapshots */
	QK_SPACE_BITMAPS, /* bitmap directory, tables and data */
	QK_SPACE_CRYPTO, /* encryption header */
	QK_SPACE_KINDS
};

struct qk_space_request {
	struct qcow_store *store;
	const struct qk_geometry *geometry; /* these three outlive the space and do not change */
	const struct qk_header
		*header; /* as on disk; its refcount table is followed from here on */
	const struct qk_extensions *ext;
	uint64_t file_size;
	uint64_t cache_bytes; /* budget of refcount blocks; 0: 4 MiB. At least 4 blocks are kept */
	enum qcow_prove prove;
	const struct qk_refs_watch
		*watch; /* NULL, or who is shown the L2 tables that the proof reads */
	uint32_t passes; /* QCOW_DISCARD_PASS_ bits */
};

/*
 * Before qk_space_new of an image whose refcounts or autoclear bits are not to be used as they are: clears the
 * autoclear bits that are not in `keep_autoclear` (one write of sector 0), and rebuilds the refcounts of a
 * dirty image, or refuses it. Flushes what it writes. *header is brought up to date. Where there is nothing to do
 * nothing is written.
 * QCOW_E_READONLY (dirty and refuse_dirty), QCOW_E_CORRUPT with a finding (what cannot be rebuilt), errors
 * of the store, QCOW_E_NOMEM. A failure leaves the dirty bit set.
 */
enum qcow_status qk_space_prepare(const struct qk_space_request *rq, struct qk_header *header,
	uint64_t keep_autoclear, bool refuse_dirty, struct qcow_error *err) QK_MUST_USE;

/*
 * Reads the refcount table (at most 8 MiB) and proves the free space as rq->prove says. Writes nothing.
 * QCOW_E_CORRUPT with a finding where metadata contradicts itself, QCOW_E_IO, QCOW_E_NOMEM.
 */
enum qcow_status qk_space_new(const struct qk_space_request *rq, struct qk_space **out,
	struct qcow_error *err) QK_MUST_USE;
/* Frees memory and writes nothing. NULL is allowed. */
void qk_space_free(struct qk_space *sp);

/* ---- taking and giving back ---- */

struct qk_space_want {
	uint64_t n; /* clusters, > 0 */
	uint64_t min_n; /* fewer than n are welcome down to this many; 0 = 1 */
	uint64_t near; /* host offset where the run goes on if it is free there; 0 = none */
	enum qk_space_kind kind;
};

struct qk_space_run {
	uint64_t off; /* host offset */
	uint64_t n; /* clusters */
	bool reads_zero; /* all of it reads as zeros: past whatever was written */
};

/* Take a contiguous run with refcount 1, the lowest that is free. The file is long enough for it afterwards, where
 * it can grow. QCOW_E_NOSPC: nothing was taken (where clusters wait for a barrier, publish and try again);
 * QCOW_E_CORRUPT, QCOW_E_IO, QCOW_E_NOMEM: as well. */
enum qcow_status qk_space_take(struct qk_space *sp, const struct qk_space_want *want,
	struct qk_space_run *out, struct qcow_error *err) QK_MUST_USE;

/* Clusters taken and never linked, to which no pointer was ever written: free again at once. What the data
 * write may have left in them is no longer known to be zeros. Does no I/O and cannot fail. */
void qk_space_give_back(struct qk_space *sp, uint64_t off, uint64_t n);

/* One reference more to each of `n` clusters from the one that holds byte `off`. QCOW_E_LIMIT where the width is
 * full, QCOW_E_CORRUPT where one of them is free, QCOW_E_IO, QCOW_E_NOMEM: nothing was changed. */
enum qcow_status qk_space_raise(
	struct qk_space *sp, uint64_t off, uint64_t n, struct qcow_error *err) QK_MUST_USE;

/* One reference less to each, after the barrier that made the unlinking stable and when no reader is left;
 * at 0 the cluster is FREE. QCOW_E_CORRUPT (REFCOUNT_TOO_LOW; the corrupt bit is set) where one is free
 * already, QCOW_E_IO, QCOW_E_NOMEM: nothing was changed, and calling again later is right. */
enum qcow_status qk_space_drop(
	struct qk_space *sp, uint64_t off, uint64_t n, struct qcow_error *err) QK_MUST_USE;

/* Why clusters lose a reference, and what is known of them. Less than a sector, so that it fits beside an offset. */
enum qk_freed {
	QK_FREED_OTHER = 0,
	QK_FREED_REQUEST = 1, /* the guest asked for it */
	QK_FREED_SNAPSHOT = 2,
	QK_FREED_CAUSES = 3,
	QK_FREED_OWNED = 4, /* COPIED said that there is one reference */
	QK_FREED_KEPT = 8, /* it is not lost: a zero cluster has them now */
	QK_FREED_DATA_FILE = 16, /* they lie in the data file (data_file.c) */
	QK_FREED_BITS = 31
};

/* Is space that became free for the cause in `freed` to go back, by QCOW_DISCARD_ bits? */
bool qk_space_is_passed(uint32_t discard, unsigned freed);

/* qk_space_drop, of QK_FREED_OTHER, for any cause. Where that is passed on, the clusters that become free go back to the
 * file system first: no pointer to them is left, and nobody can be given them yet. What the store says to
 * it is nobody's concern. */
enum qcow_status qk_space_drop_for(struct qk_space *sp, unsigned freed, uint64_t off, uint64_t n,
	struct qcow_error *err) QK_MUST_USE;

/* Give the content of clusters back that stay taken. The caller knows that it shows nowhere, now or after a crash, and that
 * nobody writes there. */
void qk_space_punch_kept(struct qk_space *sp, unsigned freed, uint64_t off, uint64_t n);

/* Never hand these clusters out again while the image is open, whatever happens to their refcounts: a failed
 * publication may have left pointers to them. Does no I/O. On QCOW_E_NOMEM nothing at all is handed out from
 * then on. */
enum qcow_status qk_space_quarantine(
	struct qk_space *sp, uint64_t off, uint64_t n, struct qcow_error *err) QK_MUST_USE;

/* The refcount of the cluster that holds byte `off`. QCOW_E_IO, QCOW_E_NOMEM. */
enum qcow_status qk_space_refcount(
	struct qk_space *sp, uint64_t off, uint64_t *out, struct qcow_error *err) QK_MUST_USE;

/* Were all references counted when the image was opened, and is a stored refcount of 1 therefore one reference? Where
 * not, COPIED may be believed and not be set. No lock. */
bool qk_space_is_proven(const struct qk_space *sp);

/* Bytes that the file has by now; offsets from there on are beyond it. No lock. */
uint64_t qk_space_file_size(const struct qk_space *sp);

/* ---- publishing: one publication at a time, under the caller's lock ----
 *
 *	begin		refcounts of everything taken or raised before the call
 *	  || flush
 *	link, || flush	only where *needs_link: refcount table entries, or header bytes 48-59
 *	  …		the caller's L2 and L1 entries, || flush
 *	done		new blocks are in use; a refcount table that was replaced is freed
 *
 * A failure anywhere, also of the caller's flush: stop, and begin anew later. begin writes again whatever the
 * last publication wrote without reaching done, so an fdatasync is never merely repeated. Only what was taken
 * before begin may be linked.
 */
enum qcow_status qk_space_publish_begin(
	struct qk_space *sp, bool *needs_link, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_space_publish_link(struct qk_space *sp, struct qcow_error *err) QK_MUST_USE;
void qk_space_publish_done(struct qk_space *sp);

/* More refcount blocks are in memory than the budget allows, and most wait for a publication: publish soon. Ask after
 * a number of drops, which change blocks far apart. */
bool qk_space_wants_publish(struct qk_space *sp);

/* Lift of the fence: reads the header again and compares the place of the refcount table with what was last
 * written; refcounts that are uncertain are written again by the next begin. QCOW_E_CORRUPT, QCOW_E_IO. */
enum qcow_status qk_space_recover(struct qk_space *sp, struct qcow_error *err) QK_MUST_USE;
/* Has a flush of the store failed in any call here since the last question? Under the publish lock. */
bool qk_space_flush_failed(struct qk_space *sp);

/* Nothing is in use any more: gives reservations back, writes every refcount, flushes, and cuts the file after
 * its last cluster in use. qk_space_free is still to be called. */
enum qcow_status qk_space_close(struct qk_space *sp, struct qcow_error *err) QK_MUST_USE;

/* `sp` was made anew and takes the place of `old`, of the same file: the close cuts what it would have cut. */
void qk_space_follow_cut(struct qk_space *sp, struct qk_space *old);

/* The close may make the file shorter than it was when it was opened, where all references were counted then: much was
 * given up. */
void qk_space_let_cut(struct qk_space *sp);

/* ---- overlap ---- */

/* Would a write of [off, off + len) as `kind` land on a structure of another kind, or metadata on what is not known
 * to be of its kind (header, refcount table, active L1)? QCOW_E_CORRUPT with METADATA_OVERLAP: the corrupt bit has
 * been set (version 3) and is stable, where that was possible, and nothing is taken or published from then on.
 * QCOW_E_IO of setting the bit is not reported. Fast for data: no lock unless a structure is near. */
enum qcow_status qk_space_check_overlap(struct qk_space *sp, enum qk_space_kind kind, uint64_t off,
	uint64_t len, struct qcow_error *err) QK_MUST_USE;

/* Change bytes of sector 0, in one write of the sector, after checking for overlap. Everybody who changes the header
 * of an open image comes this way. Not flushed. QCOW_E_IO: the disk may have either. */
struct qk_header_patch {
	uint32_t off; /* off + len <= 512 */
	uint32_t len;
	const uint8_t *bytes;
};
enum qcow_status qk_space_write_header(struct qk_space *sp, const struct qk_header_patch *patch,
	struct qcow_error *err) QK_MUST_USE;

/* Several patches in that one write. */
enum qcow_status qk_space_write_patches(struct qk_space *sp, const struct qk_header_patch *patches,
	unsigned n, struct qcow_error *err) QK_MUST_USE;

/* ---- operations that manage the image (control.h) ---- */

/* The reservation is free again, in memory. QCOW_E_IO, QCOW_E_NOMEM: it stays. */
enum qcow_status qk_space_unreserve_all(struct qk_space *sp, struct qcow_error *err) QK_MUST_USE;
/* Refcount blocks that the disk has as they are leave memory. */
void qk_space_shed(struct qk_space *sp);
/* Is some refcount in memory that the disk has not got for sure? */
bool qk_space_is_dirty(struct qk_space *sp);
/* The header on the disk, of which `header` was decoded, has changed; its refcount table has not. Errors of the store. */
enum qcow_status qk_space_follow(
	struct qk_space *sp, const struct qk_header *header, struct qcow_error *err) QK_MUST_USE;
/* Sector 0 as the disk has it, where no write of it is uncertain. */
void qk_space_sector0(struct qk_space *sp, uint8_t out[QK_SECTOR]);

/* The active L1 table lies at [off, off + bytes) from now on (bytes 36-47 of the header are the caller's). The
 * clusters of the old one are dropped by the caller. */
void qk_space_l1_moved(struct qk_space *sp, uint64_t off, uint64_t bytes);

/* A write path met damage that must not get worse: sets the corrupt bit (version 3), durably where that is
 * possible; nothing is taken or published from then on. */
void qk_space_mark_corrupt(struct qk_space *sp);

#endif
