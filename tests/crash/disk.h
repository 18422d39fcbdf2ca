/* SPDX-License-Identifier: MIT */
/*
 * disk: the bytes of an image in sectors of 512, the unit that a crash keeps or loses; and those of its data file, if it
 * has one, whose offsets begin at QKC_DATA_FILE.
 *
 * Every change is kept in a journal and can be taken back, and a hash of the whole content is kept up to
 * date with each changed sector. So thousands of states that differ in some sectors cost only those
 * sectors. One thread at a time.
 */
#ifndef QKC_DISK_H
#define QKC_DISK_H

#include <stddef.h>
#include <stdint.h>

#define QKC_SECTOR     512u
#define QKC_DATA_FILE  (UINT64_C(128) << 20) /* no image grows beyond this */
#define QKC_ROOM_BYTES (UINT64_C(160) << 20) /* and no data file beyond that */

struct qkc_disk;

/* A copy of `bytes`. */
struct qkc_disk *qkc_disk_new(const uint8_t *bytes, uint64_t n_bytes);
/* With the data file. The journal starts empty. */
struct qkc_disk *qkc_disk_copy(const struct qkc_disk *d);
void qkc_disk_free(struct qkc_disk *d);

/* Valid until the disk is freed; zeros from the size to the end of the last sector. */
const uint8_t *qkc_disk_bytes(const struct qkc_disk *d);
uint64_t qkc_disk_size(const struct qkc_disk *d);
/* Where the data file ends: QKC_DATA_FILE and its size; 0: there is none. */
uint64_t qkc_disk_data_end(const struct qkc_disk *d);
/* Of the file that the offset lies in: its size, or qkc_disk_data_end. */
uint64_t qkc_disk_end(const struct qkc_disk *d, uint64_t off);
/* Equal for equal bytes and size; different for others, but for a chance of 2^-64. */
uint64_t qkc_disk_hash(const struct qkc_disk *d);

/* Hash of a sector's bytes; 0 for zeros and for nothing else (but for chance). */
uint64_t qkc_sector_hash(const uint8_t *sector);
/* The same of `n` <= 512 bytes followed by zeros. */
uint64_t qkc_part_hash(const uint8_t *bytes, size_t n);
/* Of a sector of the disk, without looking at its bytes. */
uint64_t qkc_disk_sector_hash(const struct qkc_disk *d, uint64_t sector);

/* Replace a sector. `hash` is qkc_sector_hash of the bytes. The size is left as it is. */
void qkc_disk_put(struct qkc_disk *d, uint64_t sector, const uint8_t *bytes, uint64_t hash);
/* Any bytes anywhere; the disk grows to hold them. NULL: zeros. */
void qkc_disk_write(struct qkc_disk *d, const uint8_t *bytes, uint64_t len, uint64_t off);
/* What lies past a smaller size is zeros when the disk grows again. From QKC_DATA_FILE on it is the end of the data file. */
void qkc_disk_resize(struct qkc_disk *d, uint64_t end);
void qkc_disk_grow(struct qkc_disk *d, uint64_t end); /* never smaller */

/* The journal: take back everything since the mark was taken. Marks nest. */
size_t qkc_disk_mark(const struct qkc_disk *d);
void qkc_disk_undo(struct qkc_disk *d, size_t mark);
/* Take back what was done since the mark to the file that `off` lies in, as one more change: the other file stays as it
 * is, and so do all marks. */
void qkc_disk_drop(struct qkc_disk *d, size_t mark, uint64_t off);
/* Forget the journal; older marks are void. */
void qkc_disk_settle(struct qkc_disk *d);

/* calloc that ends the program where there is no memory. */
void *qkc_need(size_t n, size_t each);
void *qkc_more(void *p, size_t n, size_t each);

#endif
