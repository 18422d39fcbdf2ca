/* SPDX-License-Identifier: MIT */
#include "disk.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* the sector numbers of journal entries that are changes of a size */
#define RESIZED	     UINT64_MAX
#define RESIZED_DATA (UINT64_MAX - 1)

__extension__ typedef unsigned __int128 u128;

struct change {
	uint64_t sector, old; /* old: the hash, or the size */
	uint8_t bytes[QKC_SECTOR];
};

struct qkc_disk {
	uint8_t *bytes;
	uint64_t *hashes;
	uint64_t size, data_end, hash;
	struct change *journal;
	size_t n_journal, room;
};

void *qkc_more(void *p, size_t n, size_t each)
{
	void *q = reallocarray(p, n != 0 ? n : 1, each);
	if (q != NULL)
		return q;
	(void)fprintf(stderr, "crash: out of memory\n");
	abort();
}

void *qkc_need(size_t n, size_t each)
{
	void *p = qkc_more(NULL, n, each);
	memset(p, 0, n * each);
	return p;
}

/* ---- hashes ---- */

static uint64_t mix(uint64_t a, uint64_t b)
{
	u128 product = (u128)(a ^ UINT64_C(0x9e3779b97f4a7c15)) *
		       (b ^ UINT64_C(0xbf58476d1ce4e5b9));
	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t qkc_sector_hash(const uint8_t *sector)
{
	uint64_t words[QKC_SECTOR / 8], any = 0, h = 1, g = 2;
	memcpy(words, sector, sizeof(words));
	for (unsigned i = 0; i < QKC_SECTOR / 8; i++)
		any |= words[i];
	if (any == 0)
		return 0;
	for (unsigned i = 0; i < QKC_SECTOR / 8; i += 4) {
		h = mix(words[i] ^ h, words[i + 1]);
		g = mix(words[i + 2] ^ g, words[i + 3]);
	}
	return mix(h, g) | 1;
}

uint64_t qkc_part_hash(const uint8_t *bytes, size_t n)
{
	uint8_t sector[QKC_SECTOR] = {0};
	if (n == QKC_SECTOR)
		return qkc_sector_hash(bytes);
	memcpy(sector, bytes, n);
	return qkc_sector_hash(sector);
}

/* What a sector adds to the hash of the disk: nothing where it is zeros. */
static uint64_t share(uint64_t sector, uint64_t hash)
{
	return hash != 0 ? mix(hash, sector * UINT64_C(0xd6e8feb86659fd93) + 1) : 0;
}

/* ---- the disk ---- */

static void *map_room(uint64_t n)
{
	void *p = mmap(NULL, (size_t)n, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p != MAP_FAILED)
		return p;
	(void)fprintf(stderr, "crash: out of memory\n");
	abort();
}

struct qkc_disk *qkc_disk_new(const uint8_t *bytes, uint64_t n_bytes)
{
	struct qkc_disk *d = qkc_need(1, sizeof(*d));
	d->bytes = map_room(QKC_ROOM_BYTES);
	d->hashes = map_room(QKC_ROOM_BYTES / QKC_SECTOR * 8);
	qkc_disk_write(d, bytes, n_bytes, 0);
	qkc_disk_settle(d);
	return d;
}

struct qkc_disk *qkc_disk_copy(const struct qkc_disk *from)
{
	struct qkc_disk *d = qkc_disk_new(from->bytes, from->size);
	if (from->data_end != 0) {
		qkc_disk_grow(d, from->data_end);
		qkc_disk_write(d, from->bytes + QKC_DATA_FILE, from->data_end - QKC_DATA_FILE,
			QKC_DATA_FILE);
		qkc_disk_settle(d);
	}
	return d;
}

void qkc_disk_free(struct qkc_disk *d)
{
	if (d == NULL)
		return;
	(void)munmap(d->bytes, QKC_ROOM_BYTES);
	(void)munmap(d->hashes, QKC_ROOM_BYTES / QKC_SECTOR * 8);
	free(d->journal);
	free(d);
}

const uint8_t *qkc_disk_bytes(const struct qkc_disk *d)
{
	return d->bytes;
}

uint64_t qkc_disk_size(const struct qkc_disk *d)
{
	return d->size;
}

uint64_t qkc_disk_data_end(const struct qkc_disk *d)
{
	return d->data_end;
}

uint64_t qkc_disk_end(const struct qkc_disk *d, uint64_t off)
{
	return off < QKC_DATA_FILE ? d->size : d->data_end;
}

uint64_t qkc_disk_hash(const struct qkc_disk *d)
{
	return d->hash ^ mix(d->size, 7) ^ (d->data_end != 0 ? mix(d->data_end, 11) : 0);
}

uint64_t qkc_disk_sector_hash(const struct qkc_disk *d, uint64_t sector)
{
	return sector < QKC_ROOM_BYTES / QKC_SECTOR ? d->hashes[sector] : 0;
}

static struct change *remember(struct qkc_disk *d)
{
	if (d->n_journal == d->room) {
		d->room = d->room != 0 ? d->room * 2 : 256;
		d->journal = qkc_more(d->journal, d->room, sizeof(*d->journal));
	}
	return &d->journal[d->n_journal++];
}

static void set(struct qkc_disk *d, uint64_t sector, const uint8_t *bytes, uint64_t hash)
{
	d->hash += share(sector, hash) - share(sector, d->hashes[sector]);
	d->hashes[sector] = hash;
	memcpy(d->bytes + sector * QKC_SECTOR, bytes, QKC_SECTOR);
}

void qkc_disk_put(struct qkc_disk *d, uint64_t sector, const uint8_t *bytes, uint64_t hash)
{
	if (sector >= QKC_ROOM_BYTES / QKC_SECTOR) {
		(void)fprintf(stderr, "crash: a write at sector %ju is past the room of a disk\n",
			(uintmax_t)sector);
		abort();
	}
	if (d->hashes[sector] == hash)
		return;
	struct change *c = remember(d);
	c->sector = sector;
	c->old = d->hashes[sector];
	memcpy(c->bytes, d->bytes + sector * QKC_SECTOR, QKC_SECTOR);
	set(d, sector, bytes, hash);
}

static void set_size(struct qkc_disk *d, uint64_t end)
{
	uint64_t *size = end < QKC_DATA_FILE ? &d->size : &d->data_end;
	if (end == *size)
		return;
	struct change *c = remember(d);
	c->sector = end < QKC_DATA_FILE ? RESIZED : RESIZED_DATA;
	c->old = *size;
	*size = end;
}

void qkc_disk_grow(struct qkc_disk *d, uint64_t end)
{
	if (end > qkc_disk_end(d, end))
		set_size(d, end);
}

static void write_part(
	struct qkc_disk *d, const uint8_t *bytes, size_t n, uint64_t sector, size_t within)
{
	uint8_t whole[QKC_SECTOR];
	memcpy(whole, d->bytes + sector * QKC_SECTOR, QKC_SECTOR);
	if (bytes != NULL)
		memcpy(whole + within, bytes, n);
	else
		memset(whole + within, 0, n);
	qkc_disk_put(d, sector, whole, qkc_sector_hash(whole));
}

void qkc_disk_write(struct qkc_disk *d, const uint8_t *bytes, uint64_t len, uint64_t off)
{
	uint64_t room = off < QKC_DATA_FILE ? QKC_DATA_FILE - 1 : QKC_ROOM_BYTES;
	if (off > room || len > room - off) {
		(void)fprintf(stderr,
			"crash: a write of %ju bytes at %ju is past the room of a disk\n",
			(uintmax_t)len, (uintmax_t)off);
		abort();
	}
	for (uint64_t done = 0; done < len;) {
		uint64_t at = off + done, within = at % QKC_SECTOR;
		uint64_t n = QKC_SECTOR - within < len - done ? QKC_SECTOR - within : len - done;
		write_part(d, bytes != NULL ? bytes + done : NULL, (size_t)n, at / QKC_SECTOR,
			(size_t)within);
		done += n;
	}
	if (len != 0)
		qkc_disk_grow(d, off + len);
}

void qkc_disk_resize(struct qkc_disk *d, uint64_t end)
{
	uint64_t old = qkc_disk_end(d, end);
	uint8_t zeros[QKC_SECTOR] = {0};
	for (uint64_t s = (end + QKC_SECTOR - 1) / QKC_SECTOR; s * QKC_SECTOR < old; s++)
		qkc_disk_put(d, s, zeros, 0);
	if (end < old && end % QKC_SECTOR != 0)
		write_part(
			d, NULL, QKC_SECTOR - end % QKC_SECTOR, end / QKC_SECTOR, end % QKC_SECTOR);
	set_size(d, end);
}

/* ---- the journal ---- */

size_t qkc_disk_mark(const struct qkc_disk *d)
{
	return d->n_journal;
}

void qkc_disk_undo(struct qkc_disk *d, size_t mark)
{
	while (d->n_journal > mark) {
		const struct change *c = &d->journal[--d->n_journal];
		if (c->sector == RESIZED)
			d->size = c->old;
		else if (c->sector == RESIZED_DATA)
			d->data_end = c->old;
		else
			set(d, c->sector, c->bytes, c->old);
	}
}

void qkc_disk_drop(struct qkc_disk *d, size_t mark, uint64_t off)
{
	bool of_data = off >= QKC_DATA_FILE;
	for (size_t i = d->n_journal; i-- > mark;) {
		const struct change c = d->journal[i]; /* the journal grows, and may move */
		bool is_size = c.sector == RESIZED || c.sector == RESIZED_DATA;
		bool is_data = is_size ? c.sector == RESIZED_DATA
				       : c.sector * QKC_SECTOR >= QKC_DATA_FILE;
		if (is_data != of_data)
			continue;
		if (is_size)
			set_size(d, c.old);
		else
			qkc_disk_put(d, c.sector, c.bytes, c.old);
	}
}

void qkc_disk_settle(struct qkc_disk *d)
{
	d->n_journal = 0;
}
