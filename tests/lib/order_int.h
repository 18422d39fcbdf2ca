/* SPDX-License-Identifier: MIT */
/* What the files of the order checker share. Everything here is under the checker's lock. */
#ifndef QKT_ORDER_INT_H
#define QKT_ORDER_INT_H

#include <pthread.h>

#include "order.h"

#define QKO_MAX_TABLE (UINT64_C(1) << 28) /* bytes: longer ones are not read */

#define QKO_SECTOR 512u
/* The data file begins here: one space of offsets for both. */
#define QKO_DATA	(UINT64_C(1) << 60)
#define QKO_COPIED	(UINT64_C(1) << 63)
#define QKO_PACKED_FLAG (UINT64_C(1) << 62)
#define QKO_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

enum qko_role {
	QKO_HEADER,
	QKO_L1,
	QKO_L2,
	QKO_RT, /* refcount table */
	QKO_RB, /* refcount block */
	QKO_SNAPSHOTS
};

/* A content of a sector that a crash may leave although it was overwritten. */
struct qko_version {
	uint64_t id; /* of the write, 0: durable */
	struct qko_version *newer;
	uint8_t bytes[QKO_SECTOR];
};

/* Metadata that some state after a crash can reach. */
struct qko_table {
	enum qko_role role;
	uint64_t off, len; /* len: whole sectors */
	uint64_t used; /* bytes that hold entries: what lies behind them means nothing */
	uint8_t *cur; /* as last issued */
	uint64_t *cur_id; /* a sector's: the write that made it so */
	struct qko_version **older; /* a sector's: oldest first; NULL: `cur` is durable */
	struct qko_table *next; /* of those that a header or a snapshot names */
};

struct qko_ref {
	struct qko_table *t;
	uint64_t slot;
};

/* Bytes of a sector that partial writes covered. */
struct qko_mask {
	uint64_t sector;
	uint8_t bits[QKO_SECTOR / 8];
};

/* A host cluster of which something is known. */
struct qko_cluster {
	uint64_t index;
	struct qko_table *table; /* the metadata here */
	struct qko_ref *refs; /* slots that name it in some state */
	uint32_t n_refs, room_refs, n_masks;
	uint32_t n_static; /* references of bitmaps, in all headers, and of the encryption header */
	uint32_t n_crypto; /* of the latter alone */
	bool is_visible; /* named as plain data without the zero flag: what is written is not tracked */
	bool is_owned; /* with threads: plain data of the slot once, whose zero flag may go again */
	uint32_t shown; /* of extended entries: subclusters that some state shows */
	uint64_t life; /* writes from this id on belong to its present life */
	uint64_t *pending; /* a sector's: the last write that is not durable, 0: none. NULL: none */
	uint8_t *alive; /* a bit a sector: written in this life, and durable */
	uint8_t *blank; /* a bit a sector: held durable zeros before its pending write */
	struct qko_mask *masks;
};

enum qko_kind {
	QKO_NOTHING,
	QKO_TABLE,
	QKO_PLAIN,
	QKO_PACKED,
	QKO_BAD
};

struct qko_target {
	enum qko_kind kind;
	uint64_t off, len;
	bool is_copied, is_zero;
	uint32_t subclusters; /* allocated ones, extended L2 only */
};

struct qko_bitmaps;

/* A header that a crash may leave. */
struct qko_header {
	uint64_t id;
	uint64_t sector; /* that the write changed */
	uint8_t first[QKO_SECTOR]; /* what sector 0 is in it */
	bool is_durable; /* that write */
	bool is_valid;
	bool is_dirty; /* or said to be corrupt: its refcounts are not to be believed */
	uint32_t version, refcount_bits;
	uint64_t size, l1_off, l1_len, rt_off, rt_len, snap_off;
	uint32_t n_snaps;
	struct qko_table *l1, *rt, *snapshots;
	struct qko_table **snap_l1;
	uint32_t n_snap_l1;
	struct qko_bitmaps *bitmaps; /* or NULL; headers that name one directory share it */
};

struct qko_write {
	uint64_t id, done; /* done: the sequence number of its return; 0: not yet, or never */
	uint64_t off, len;
	uint64_t before; /* the pending write of its first sector before it, 0: none */
	bool is_size; /* the size of the file became `off` */
	bool retires;
};

struct qkt_order {
	struct qkt_order_options opt;
	pthread_mutex_t lock;
	struct qcow_store *inner, *peek;
	struct qcow_store *data, *data_peek; /* of the data file, or NULL */
	uint64_t data_size, data_written; /* its size, and up to where it holds something */
	bool is_loading; /* what is there already is not judged */
	bool is_deferring; /* refcounts are judged when all tables of a new header are read */
	bool is_looking; /* what a failed write left is read: nobody overwrites anything */
	/* geometry, from the first header; the version, of the last one */
	bool has_geometry, has_data_file, is_raw_data, is_extended;
	uint32_t version, cluster_bits;
	uint64_t cs;
	struct qko_cluster **hash;
	size_t n_hash, n_clusters;
	struct qko_table *header, *roots;
	struct qko_header *headers; /* oldest first, the last as issued */
	size_t n_headers;
	struct qko_write *writes; /* not durable, by id */
	size_t n_writes, room_writes;
	uint64_t seq, size, base_size;
	struct {
		uint64_t index;
		uint32_t n;
	} * acc; /* scratch of qko_paths */
	size_t room_acc;
	/* result */
	enum qkt_order_rule rule;
	uint64_t n_violations, n_judged;
	char message[400];
};

void *qko_need(void *p);
void qko_report(struct qkt_order *o, enum qkt_order_rule rule, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
uint64_t qko_be64(const uint8_t *p);
uint32_t qko_be32(const uint8_t *p);

static inline bool qko_is_data(uint64_t off)
{
	return off >= QKO_DATA;
}

/* ---- order.c ---- */

/* What was issued up to now; zeros past the end. */
void qko_peek(const struct qkt_order *o, void *buf, uint64_t len, uint64_t off);
uint64_t qko_judge_write(
	struct qkt_order *o, uint64_t off, uint64_t len, const uint8_t *bytes, bool is_punch);
uint8_t *qko_gather(const struct iovec *iov, int n_iov, uint64_t *len);
/* The call `id` returned. */
void qko_finish(struct qkt_order *o, uint64_t id, enum qcow_status st);
/* A flush of one of the stores, that began at `begin`, returned. */
void qko_flushed(struct qkt_order *o, bool of_data, uint64_t begin, enum qcow_status st);

/* ---- order_graph.c: what is reachable ---- */

struct qko_cluster *qko_find(const struct qkt_order *o, uint64_t index); /* or NULL */
struct qko_cluster *qko_get(struct qkt_order *o, uint64_t index);
bool qko_is_named(const struct qko_cluster *c); /* some state after a crash has a pointer to it */
bool qko_has_ref(const struct qko_cluster *c, const struct qko_table *t, uint64_t slot);
unsigned qko_entry_bytes(const struct qkt_order *o, enum qko_role role);
/* Version `n` of a sector, 0 the oldest, the last one `cur`; NULL behind that. */
const uint8_t *qko_version(const struct qko_table *t, uint64_t sector, unsigned n);
struct qko_target qko_decode(const struct qkt_order *o, enum qko_role role, const uint8_t *entry);
/* What version `n` of a slot says; false behind the last. */
bool qko_slot(const struct qkt_order *o, const struct qko_table *t, uint64_t slot, unsigned n,
	struct qko_target *out);
bool qko_covers(const struct qko_target *target, uint64_t cs, uint64_t index);
/* Bytes [off, off + len) of a table are issued as `bytes`: new versions, new references, judged. */
void qko_table_write(struct qkt_order *o, struct qko_table *t, uint64_t id, uint64_t off,
	uint64_t len, const uint8_t *bytes);
/* Writes marked `retires` are durable: versions of the sectors of [off, off + len) go. */
void qko_table_retire(struct qkt_order *o, struct qko_table *t, uint64_t off, uint64_t len);
/* Read a table that becomes reachable. Its slots are not judged yet. */
struct qko_table *qko_load_table(
	struct qkt_order *o, enum qko_role role, uint64_t off, uint64_t len);
void qko_judge_slots(struct qkt_order *o, struct qko_table *t);
/* No state reaches the table any more, nor by it what it names. */
void qko_release(struct qkt_order *o, struct qko_table *t);
/* Read everything that the durable header reaches. */
void qko_load(struct qkt_order *o);
void qko_unload(struct qkt_order *o);
void qko_untrack(struct qko_cluster *c);
/* What is written from now on is of another life. */
void qko_begin_life(struct qkt_order *o, struct qko_cluster *c);
bool qko_retires(const struct qkt_order *o, uint64_t id);

/* ---- order_header.c: headers ---- */

/* The header as it is now becomes one that a crash may leave: a write changed one of its sectors. */
void qko_push_header(struct qkt_order *o, uint64_t id, uint64_t sector);
void qko_header_written(struct qkt_order *o, uint64_t id, uint64_t sector, const uint8_t *before);
/* Of the writes of one of the header's sectors the next `n` are durable. */
void qko_retire_headers(struct qkt_order *o, uint64_t sector, size_t n);

/* ---- order_bitmap.c: persistent bitmaps ---- */

/* Of the header as issued; judged. */
void qko_bitmaps_load(struct qkt_order *o, struct qko_header *h);
/* Of the first n headers. */
void qko_bitmaps_drop(struct qkt_order *o, size_t n);
uint64_t qko_bitmap_refs(const struct qko_header *h, uint64_t index);
/* Does a write within the clusters of bitmaps only mark some of them in use? bytes NULL: zeros. */
bool qko_bitmaps_write(
	struct qkt_order *o, uint64_t id, uint64_t off, uint64_t len, const uint8_t *bytes);
/* Writes marked `retires` are durable. */
void qko_bitmaps_retire(struct qkt_order *o);
/* The clusters of the encryption header, of the header as it is. */
void qko_crypto_load(struct qkt_order *o);
/* Is an enabled bitmap not in use, durably? */
bool qko_is_untracked(const struct qkt_order *o);
/* O11: the write at `off` changes the disk. */
void qko_judge_tracked(struct qkt_order *o, uint64_t off);

/* ---- order_judge.c: the rules ---- */

uint64_t qko_refs(struct qkt_order *o, struct qko_cluster *c, const struct qko_header *h);
void qko_judge_refcount(struct qkt_order *o, struct qko_cluster *c); /* O2 */
void qko_judge_all(struct qkt_order *o); /* O2 and O9, every cluster, by the last header */
void qko_judge_copied(struct qkt_order *o, struct qko_cluster *c); /* O9 */
/* O1: is every sector of [off, off + len) durable, and the file so long? */
void qko_judge_durable(struct qkt_order *o, uint64_t off, uint64_t len, const char *what);
/* O1, O3: [off, off + len) of c becomes visible to the guest. */
void qko_judge_data(struct qkt_order *o, struct qko_cluster *c, uint64_t off, uint64_t len);
/* O1: the sectors of compressed data; the last of them may lie past the end. */
void qko_judge_packed(struct qkt_order *o, uint64_t off, uint64_t len);
void qko_judge_overwrite(struct qkt_order *o, struct qko_cluster *c, uint64_t off, uint64_t len);
/* Do all that name it, in every state, say that it reads as zeros? */
bool qko_is_zero(const struct qkt_order *o, const struct qko_cluster *c);
void qko_judge_table_write(struct qkt_order *o, struct qko_table *t); /* O4 */
/* O2 where the write lowered entries of a refcount block. */
void qko_judge_lowered(
	struct qkt_order *o, struct qko_table *t, uint64_t sector, const uint8_t *before);
/* O2 where the slot of a refcount table, which was just written, names no block. */
void qko_judge_uncounted(struct qkt_order *o, const struct qko_table *rt, uint64_t slot);
void qko_judge_truncate(struct qkt_order *o, uint64_t size);
uint64_t qko_size_min(const struct qkt_order *o);
uint64_t qko_guest_len(const struct qkt_order *o, const struct qko_table *t, uint64_t slot);
/* Guest offset of the entry; UINT64_MAX for tables that the active one does not reach. */
uint64_t qko_guest_off(const struct qkt_order *o, const struct qko_table *t, uint64_t slot);
/* Does what lies at `within` of the cluster belong to no disk, but to the state of a machine or to nothing? */
bool qko_is_behind(const struct qkt_order *o, const struct qko_cluster *c, uint64_t within);
/* Is one of the entries of a sector of an L1 or L2 table that become `now` one of the disk? */
bool qko_changes_disk(
	const struct qkt_order *o, const struct qko_table *t, uint64_t sector, const uint8_t *now);
/* Does what the sector of an L2 table maps stay the same to whoever reads it, zeros in another form? */
bool qko_reads_alike(
	const struct qkt_order *o, const struct qko_table *t, uint64_t sector, const uint8_t *now);
/* The longest disk that a crash may leave. */
uint64_t qko_longest_disk(const struct qkt_order *o);
/* O8, O12: an entry beside a data file, as issued. */
void qko_judge_beside_data(struct qkt_order *o, const struct qko_table *t, uint64_t slot,
	const struct qko_target *target);

#endif
