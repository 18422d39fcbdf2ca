/* SPDX-License-Identifier: MIT */
/*
 * build: the writer of an image that nobody can see yet. Append-only: guest offsets come in order, host
 * clusters are handed out in order and never taken back, each table is filled in memory and written once,
 * and sector 0 is written last. No cache, no staging, no flush.
 *
 *   build.c          the builder's life: options to geometry, header, finish
 *   build_crypt.c    keys, the LUKS header, encryption of what is written
 *   build_luks.c     LUKS files, which have no tables
 *   build_options.c  which options go together
 *   build_refs.c     host clusters and their refcounts
 *   build_map.c      L1 and L2 tables
 *   build_bitmap.c   persistent bitmaps
 *   build_data.c     what the guest's clusters hold: data, compressed data, zeros, preallocation
 *
 *   host:  | header | refcount table | refcount block | L1 ... | L2 | data ... | L2 | data ...
 *
 * Memory: the refcount table (at most 8 MiB), two refcount blocks, one L2 table, 64 KiB of the L1 table, and
 * 2 MiB where compressed data is gathered. Nothing grows with the disk; the directory of bitmaps grows with them.
 * A builder belongs to one thread at a time.
 */
#ifndef QK_ENGINE_BUILD_H
#define QK_ENGINE_BUILD_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "crypto/luks1.h"
#include "format/geometry.h"
#include "format/header.h"

struct qk_crypt;

#define QK_BUILD_NONE UINT64_MAX /* no table is open */

/* ---- build_refs.c ---- */

struct qk_build_refs {
	struct qcow_store *store;
	const struct qk_geometry *g;
	uint64_t next; /* cluster index: everything from here on is free */
	uint64_t end_off; /* bytes that the file must have */
	uint64_t *blocks; /* host offset of each refcount block: the refcount table to be */
	uint64_t n_blocks; /* next <= n_blocks * rb_entries */
	uint64_t room; /* entries allocated in `blocks` */
	uint8_t *first; /* refcount block 0: it counts the first refcount table, which may move */
	uint8_t *open; /* refcount block open_idx, being filled; blocks before it are written */
	uint64_t open_idx; /* > 0, or QK_BUILD_NONE */
};

/* Clusters 0 (header) and 1 (refcount table) are taken, and 2 for refcount block 0. QCOW_E_NOMEM. */
enum qcow_status qk_build_refs_init(struct qk_build_refs *refs, struct qcow_store *store,
	const struct qk_geometry *g, struct qcow_error *err) QK_MUST_USE;
void qk_build_refs_release(struct qk_build_refs *refs);

/* Take `n` > 0 contiguous clusters with refcount 1; the refcount blocks that they need follow them.
 * QCOW_E_LIMIT (refcount table over 8 MiB, host offset over 56 bits), QCOW_E_NOMEM, errors of the store. */
enum qcow_status qk_build_refs_take(
	struct qk_build_refs *refs, uint64_t n, qk_hoff *out, struct qcow_error *err) QK_MUST_USE;

/* One more reference to a cluster taken before. False, and nothing done, where its refcount is the largest
 * that the width holds or its refcount block is written already: take a fresh cluster instead. */
bool qk_build_refs_raise(struct qk_build_refs *refs, qk_hoff cluster) QK_MUST_USE;

/* Write what is open and the refcount table: in cluster 1, or where it does not fit there at the end, and
 * cluster 1 is then free. No cluster may be taken afterwards. Errors of qk_build_refs_take. */
enum qcow_status qk_build_refs_finish(struct qk_build_refs *refs, qk_hoff *table_off,
	uint32_t *table_clusters, struct qcow_error *err) QK_MUST_USE;

/* ---- build_map.c ---- */

struct qk_build_map {
	struct qcow_store *store;
	const struct qk_geometry *g;
	struct qk_build_refs *refs;
	uint64_t l1_off, l1_entries; /* 0 and 0 for an empty disk */
	uint8_t *l1; /* a window of the L1 table */
	uint64_t l1_base; /* its first entry, or QK_BUILD_NONE */
	uint8_t *l2; /* the L2 table being filled */
	uint64_t l2_idx; /* its L1 index, or QK_BUILD_NONE */
	uint64_t l2_off;
};

/* Take the L1 table for a disk of `size` bytes. QCOW_E_LIMIT (over 32 MiB), errors of qk_build_refs_take. */
enum qcow_status qk_build_map_init(struct qk_build_map *map, struct qk_build_refs *refs,
	uint64_t size, struct qcow_error *err) QK_MUST_USE;
void qk_build_map_release(struct qk_build_map *map);

/* Make the L2 table of `off` the open one, writing the one before and taking a cluster where it is new.
 * *n_left: entries from the one of `off` to the end of the table. Offsets never decrease. */
enum qcow_status qk_build_map_open(struct qk_build_map *map, qk_goff off, uint64_t *n_left,
	struct qcow_error *err) QK_MUST_USE;

/* Entries for `n` clusters from `off` in the open L2 table: words `raw` + i * step and `bitmap`. */
struct qk_build_entries {
	qk_goff off;
	uint64_t n, raw, step, bitmap;
};
enum qcow_status qk_build_map_set(
	struct qk_build_map *map, const struct qk_build_entries *e) QK_MUST_USE;

/* Write what is open. */
enum qcow_status qk_build_map_finish(struct qk_build_map *map, struct qcow_error *err) QK_MUST_USE;

/* ---- build_bitmap.c ---- */

struct qk_build_bitmap_name {
	uint64_t hash;
	uint64_t at; /* of the entry in `directory` */
};

struct qk_build_bitmaps {
	uint8_t *directory;
	uint64_t directory_bytes, directory_room;
	struct qk_build_bitmap_name *names; /* n of them */
	uint32_t n, names_room;
	/* the bitmap that was begun last */
	bool is_open;
	uint32_t granularity_bits;
	uint64_t table_off, table_entries;
	uint8_t *table; /* a window of its table */
	uint64_t window; /* its first entry */
	bool window_is_dirty;
	uint8_t *data; /* a cluster of bits */
	uint64_t data_idx; /* its table entry, or QK_BUILD_NONE */
	uint64_t cursor; /* bits below it are decided */
};

void qk_build_bitmaps_release(struct qk_build_bitmaps *m);

/* ---- build.c ---- */

struct qcow_builder {
	struct qcow_store *store;
	struct qcow_store *data_store; /* or NULL */
	struct qk_geometry g;
	struct qcow_create_options options; /* the strings are ours */
	char *backing_name, *backing_format, *data_file_name;
	uint64_t size;
	bool zeroed; /* what nobody wrote in `store` reads as zeros */
	bool data_zeroed; /* the same of data_store */
	bool can_grow;
	struct qk_build_refs refs;
	struct qk_build_map map;
	uint64_t cursor; /* guest offset: everything below is decided */
	uint64_t
		tail_off; /* host byte after the last compressed extent, 0 = start a fresh cluster */
	uint8_t *gather; /* compressed bytes for gather_off */
	uint64_t gather_off;
	size_t gather_len;
	struct qk_crypt *crypt; /* NULL: guest data is plain */
	uint64_t crypto_off, crypto_bytes; /* of the LUKS header and its slots */
	bool is_luks; /* a LUKS file: no tables, and the fields below */
	uint64_t payload_off; /* of the disk */
	uint8_t luks_header[QK_LUKS_HEADER_BYTES]; /* written by finish */
	struct qk_build_bitmaps bitmaps;
	enum qcow_status failed; /* of the first call that failed: finish is then refused */
};

/* ---- build_options.c ---- */

/* As qcow_create_validate. */
enum qcow_status qk_build_options_validate(
	const struct qcow_create_options *o, struct qcow_error *err) QK_MUST_USE;
/* The geometry of validated options. */
void qk_build_options_geometry(const struct qcow_create_options *o, struct qk_geometry *g);
/* Encode header, extensions and backing name for `o` into cluster0 (cluster_size bytes). `h` comes with
 * the offsets and counts of the tables, `ext` with the place of the encryption header. QCOW_E_LIMIT where they
 * do not fit. */
enum qcow_status qk_build_options_encode(const struct qcow_create_options *o, struct qk_header *h,
	struct qk_extensions *ext, uint8_t *cluster0, struct qcow_error *err) QK_MUST_USE;

/* ---- build_crypt.c ---- */

/* For salts, keys and what keys are hidden in. QCOW_E_IO: the host has none. */
enum qcow_status qk_build_crypt_random(void *buf, size_t n, struct qcow_error *err) QK_MUST_USE;
struct qk_luks;
/* Iterations that take this machine `ms` for `key_bytes`, measured; QCOW_LUKS_ITER_LEAST: the least that LUKS allows. */
enum qcow_status qk_build_crypt_iterations(const struct qk_luks *luks, size_t key_bytes,
	uint64_t ms, uint32_t *out, struct qcow_error *err) QK_MUST_USE;

/* QCOW_E_KEY, QCOW_E_INVAL, QCOW_E_UNSUPPORTED: with a sentence. */
enum qcow_status qk_build_crypt_validate(
	const struct qcow_create_options *o, struct qcow_error *err) QK_MUST_USE;
/* As qcow_luks_header_bytes. */
enum qcow_status qk_build_crypt_bytes(
	const struct qcow_create_options *o, uint64_t *bytes, struct qcow_error *err) QK_MUST_USE;
/* A key; for LUKS its header in clusters of its own, written. Takes as long as the options say. */
enum qcow_status qk_build_crypt_init(struct qcow_builder *b, struct qcow_error *err) QK_MUST_USE;
/* What the image's header says of it. */
void qk_build_crypt_place(const struct qcow_create_options *o, uint64_t off, uint64_t bytes,
	struct qk_header *h, struct qk_extensions *ext);
/* As qcow_builder_write. */
enum qcow_status qk_build_crypt_write(struct qcow_builder *b, qk_goff off, qk_hoff host,
	struct qk_span data, struct qcow_error *err) QK_MUST_USE;
/* Zeros, encrypted. */
enum qcow_status qk_build_crypt_zeros(struct qcow_builder *b, qk_goff off, qk_hoff host,
	uint64_t len, struct qcow_error *err) QK_MUST_USE;

/* ---- build_luks.c: as the public calls, for options->format "luks" ---- */

bool qk_build_is_luks(const struct qcow_create_options *o);
enum qcow_status qk_build_luks_validate(
	const struct qcow_create_options *o, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_build_luks_new(struct qcow_store *store, struct qcow_store *data_store,
	const struct qcow_create_options *options, struct qcow_builder **out,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_build_luks_reserve(struct qcow_builder *b, qk_goff off, uint64_t len,
	qk_hoff *host_off, uint64_t *run_bytes, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_build_luks_zero(
	struct qcow_builder *b, qk_goff off, uint64_t len, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_build_luks_finish(struct qcow_builder *b, struct qcow_error *err) QK_MUST_USE;

/* ---- build.c, for the others ---- */

/* Forget what the store held. *zeroed: what nobody writes from here on reads as zeros. */
enum qcow_status qk_build_make_empty(
	struct qcow_store *store, bool *zeroed, struct qcow_error *err) QK_MUST_USE;
/* What was written so far is stable before anything that follows; nothing without options.durable. */
enum qcow_status qk_build_barrier(struct qcow_builder *b, struct qcow_error *err) QK_MUST_USE;

/* The public calls, arguments not NULL. */
enum qcow_status qk_build_new(struct qcow_store *store, struct qcow_store *data_store,
	const struct qcow_create_options *options, struct qcow_builder **out,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_build_finish(struct qcow_builder *b, struct qcow_error *err) QK_MUST_USE;
void qk_build_abandon(struct qcow_builder *b);

/* ---- build_data.c ---- */

enum qcow_status qk_build_data_reserve(struct qcow_builder *b, qk_goff off, uint64_t len,
	qk_hoff *host_off, uint64_t *run_bytes, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_build_data_compressed(struct qcow_builder *b, qk_goff off, struct qk_span data,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_build_data_zero(
	struct qcow_builder *b, qk_goff off, uint64_t len, struct qcow_error *err) QK_MUST_USE;
/* Decide what was never mentioned up to the end of the disk, and write what is gathered. */
enum qcow_status qk_build_data_finish(struct qcow_builder *b, struct qcow_error *err) QK_MUST_USE;

/* ---- build_bitmap.c, with a builder ---- */

/* As qcow_builder_bitmap and qcow_builder_bitmap_dirty. */
enum qcow_status qk_build_bitmap_begin(struct qcow_builder *b, const struct qcow_bitmap_options *o,
	struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_build_bitmap_dirty(
	struct qcow_builder *b, qk_goff off, uint64_t len, struct qcow_error *err) QK_MUST_USE;
/* Write what is open and the directory. *out stays as it is where there are no bitmaps. */
enum qcow_status qk_build_bitmaps_finish(
	struct qcow_builder *b, struct qk_bitmaps_ext *out, struct qcow_error *err) QK_MUST_USE;

#endif
