/* SPDX-License-Identifier: MIT */
/*
 * decode: see decode.h. Owns decoders and decoded clusters; never looks at a table.
 *
 * Invariants: D1 an entry's buffer changes only while it is LOADING, by the thread that made it so;
 * D2 an entry with users > 0 is neither reused nor freed; D3 idle decoders are at most MAX_IDLE.
 * Locking: cache_lock guards the entries, pool_lock the idle decoders. Both are leaves; reads and decoding
 * happen under neither.
 */
#include "engine/decode.h"

#include <inttypes.h>
#include <limits.h>
#include <pthread.h>

#include "codec/codec.h"
#include "base/err.h"
#include "base/mem.h"
#include "engine/image.h"

#define MAX_IDLE    16U
#define MAX_CACHED  4096U
#define MIN_CACHED  4U
#define CACHE_BYTES QK_MIB(2) /* at least: 32 clusters of 64 KiB; 4 of 2 MiB take more */

enum entry_state {
	ENTRY_EMPTY,
	ENTRY_LOADING,
	ENTRY_READY
};

struct entry {
	enum entry_state state;
	unsigned users;
	uint64_t host_off; /* with compressed_bytes the key */
	uint32_t compressed_bytes;
	bool is_recent; /* used since the hand passed */
	unsigned next; /* of the same place in `heads`: a number, or NOBODY */
	uint8_t *data;
};
#define NOBODY UINT_MAX

/* What one thread needs to decode a cluster. */
struct decoder {
	struct decoder *next;
	struct qcow_codec *codec;
	size_t in_bytes;
	uint8_t *in;
};

struct qk_decode {
	enum qcow_compression compression;
	size_t cluster_size;
	pthread_mutex_t pool_lock;
	struct decoder *idle;
	unsigned n_idle;
	pthread_mutex_t cache_lock;
	pthread_cond_t loaded;
	unsigned n_entries,
		hand; /* the hand goes round and takes the first that was not used lately */
	unsigned *
		heads; /* of lists of entries that are not EMPTY, by a hash of host_off; a power of 2, at least n_entries */
	unsigned n_heads;
	struct entry *entries; /* with heads, made when the first part of a cluster is read */
};

enum qcow_status qk_decode_new(enum qcow_compression compression, size_t cluster_size,
	uint64_t cache_bytes, struct qk_decode **out, struct qcow_error *err)
{
	struct qk_decode *d = qk_calloc(1, sizeof(*d));
	if (d == NULL)
		return QK_FAIL_NOMEM(err);
	d->compression = compression;
	d->cluster_size = cluster_size;
	uint64_t fit = qk_max(cache_bytes, CACHE_BYTES) / cluster_size;
	d->n_entries = (unsigned)qk_max(MIN_CACHED, qk_min(fit, MAX_CACHED));
	/* none of these can fail with default attributes on the platforms that we build for */
	(void)pthread_mutex_init(&d->pool_lock, NULL);
	(void)pthread_mutex_init(&d->cache_lock, NULL);
	(void)pthread_cond_init(&d->loaded, NULL);
	*out = d;
	return QCOW_OK;
}

static void free_decoder(struct decoder *dec)
{
	if (dec == NULL)
		return;
	qk_codec_free(dec->codec);
	free(dec->in);
	free(dec);
}

void qk_decode_free(struct qk_decode *d)
{
	if (d == NULL)
		return;
	while (d->idle != NULL) {
		struct decoder *dec = d->idle;
		d->idle = dec->next;
		free_decoder(dec);
	}
	for (unsigned i = 0; d->entries != NULL && i < d->n_entries; i++)
		free(d->entries[i].data);
	free(d->entries);
	free(d->heads);
	(void)pthread_cond_destroy(&d->loaded);
	(void)pthread_mutex_destroy(&d->cache_lock);
	(void)pthread_mutex_destroy(&d->pool_lock);
	free(d);
}

static enum qcow_status make_decoder(
	const struct qk_decode *d, struct decoder **out, struct qcow_error *err)
{
	struct decoder *dec = qk_calloc(1, sizeof(*dec));
	if (dec == NULL)
		return QK_FAIL_NOMEM(err);
	/* the sectors field names at most two clusters */
	dec->in_bytes = d->cluster_size * 2;
	dec->in = qk_malloc(dec->in_bytes, 1);
	enum qcow_status status = dec->in == NULL ? QK_FAIL_NOMEM(err)
						  : qk_codec_new(d->compression, d->cluster_size,
							    -1, &dec->codec, err);
	if (status != QCOW_OK) {
		free_decoder(dec);
		return status;
	}
	*out = dec;
	return QCOW_OK;
}

static enum qcow_status get_decoder(
	struct qk_decode *d, struct decoder **out, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&d->pool_lock);
	struct decoder *dec = d->idle;
	if (dec != NULL) {
		d->idle = dec->next;
		d->n_idle--;
	}
	(void)pthread_mutex_unlock(&d->pool_lock);
	if (dec == NULL)
		return make_decoder(d, out, err);
	*out = dec;
	return QCOW_OK;
}

static void put_decoder(struct qk_decode *d, struct decoder *dec)
{
	(void)pthread_mutex_lock(&d->pool_lock);
	bool is_kept = d->n_idle < MAX_IDLE;
	if (is_kept) {
		dec->next = d->idle;
		d->idle = dec;
		d->n_idle++;
	}
	(void)pthread_mutex_unlock(&d->pool_lock);
	if (!is_kept)
		free_decoder(dec);
}

static enum qcow_status decode_with(const struct qk_decode *d, struct decoder *dec,
	const struct qk_run *run, void *out, struct qcow_error *err)
{
	size_t n = run->compressed_bytes;
	QK_ASSERT(D4, n <= dec->in_bytes);
	QK_TRY(qcow_store_read_padded(run->store, dec->in, n, run->host_off.v, err));
	enum qcow_status status = qk_codec_decompress(dec->codec, dec->in, n, out, err);
	if (status == QCOW_E_CORRUPT && err != NULL) {
		err->finding = QCOW_FINDING_COMPRESSED_STREAM;
		err->host_off = run->host_off.v;
		err->guest_off = qk_align_down(run->guest.v, d->cluster_size);
		qk_err_context(err, "compressed cluster at %" PRIu64 " for guest offset %" PRIu64,
			err->host_off, err->guest_off);
	}
	return status;
}

/* Decode the cluster of `run` into `out`, a whole cluster. */
static enum qcow_status decode_cluster(
	struct qk_decode *d, const struct qk_run *run, void *out, struct qcow_error *err)
{
	struct decoder *dec = NULL;
	QK_TRY(get_decoder(d, &dec, err));
	enum qcow_status status = decode_with(d, dec, run, out, err);
	put_decoder(d, dec);
	return status;
}

/* The functions below run under cache_lock. */

static unsigned *head_of(const struct qk_decode *d, uint64_t host_off)
{
	return &d->heads[(host_off * UINT64_C(0x9e3779b97f4a7c15)) >> 40 & (d->n_heads - 1)];
}

/* Room for all entries, without their clusters. */
static bool make_entries(struct qk_decode *d)
{
	if (d->entries != NULL)
		return true;
	for (d->n_heads = 1; d->n_heads < d->n_entries;)
		d->n_heads *= 2;
	struct entry *entries = qk_calloc(d->n_entries, sizeof(*entries));
	unsigned *heads = qk_malloc(d->n_heads, sizeof(*heads));
	if (entries == NULL || heads == NULL) {
		free(entries);
		free(heads);
		return false;
	}
	for (unsigned i = 0; i < d->n_heads; i++)
		heads[i] = NOBODY;
	d->entries = entries;
	d->heads = heads;
	return true;
}

static struct entry *find_entry(struct qk_decode *d, const struct qk_run *run)
{
	unsigned i = d->entries != NULL ? *head_of(d, run->host_off.v) : NOBODY;
	while (i != NOBODY) {
		struct entry *e = &d->entries[i];
		if (e->host_off == run->host_off.v && e->compressed_bytes == run->compressed_bytes)
			return e;
		i = e->next;
	}
	return NULL;
}

/* It holds nothing any more. */
static void empty_entry(struct qk_decode *d, struct entry *e)
{
	unsigned number = (unsigned)(e - d->entries), *at = head_of(d, e->host_off);
	if (e->state == ENTRY_EMPTY)
		return;
	while (*at != number)
		at = &d->entries[*at].next;
	*at = e->next;
	e->state = ENTRY_EMPTY;
}

/* One that nobody uses, and that was not used lately; NULL where all are in use. */
static struct entry *oldest_entry(struct qk_decode *d)
{
	for (unsigned i = 0; i < 2 * d->n_entries; i++) {
		struct entry *e = &d->entries[d->hand];
		d->hand = d->hand + 1 == d->n_entries ? 0 : d->hand + 1;
		if (e->users == 0 && !e->is_recent)
			return e;
		e->is_recent = false;
	}
	return NULL;
}

/* An entry to load, with one user, or NULL: then the caller decodes for itself. */
static struct entry *claim_entry(struct qk_decode *d, const struct qk_run *run)
{
	struct entry *e = make_entries(d) ? oldest_entry(d) : NULL;
	if (e == NULL)
		return NULL;
	empty_entry(d, e);
	if (e->data == NULL)
		e->data = qk_malloc(d->cluster_size, 1);
	if (e->data == NULL)
		return NULL;
	e->state = ENTRY_LOADING;
	e->host_off = run->host_off.v;
	e->compressed_bytes = run->compressed_bytes;
	e->users = 1;
	unsigned *head = head_of(d, e->host_off);
	e->next = *head;
	*head = (unsigned)(e - d->entries);
	return e;
}

/* The cluster's entry, loaded and pinned; or one to load (*is_mine); or NULL. */
static struct entry *pin_entry(struct qk_decode *d, const struct qk_run *run, bool *is_mine)
{
	for (;;) {
		struct entry *e = find_entry(d, run);
		*is_mine = e == NULL;
		if (e == NULL)
			return claim_entry(d, run);
		if (e->state == ENTRY_READY) {
			e->users++;
			e->is_recent = true;
			return e;
		}
		(void)pthread_cond_wait(&d->loaded, &d->cache_lock);
	}
}

static void unpin_entry(struct qk_decode *d, struct entry *e, bool is_good)
{
	(void)pthread_mutex_lock(&d->cache_lock);
	e->users--;
	if (e->state == ENTRY_LOADING) {
		if (is_good)
			e->state = ENTRY_READY;
		else
			empty_entry(d, e);
		(void)pthread_cond_broadcast(&d->loaded);
	}
	(void)pthread_mutex_unlock(&d->cache_lock);
}

/* End of the functions under cache_lock. */

static enum qcow_status read_uncached(
	struct qk_decode *d, const struct qk_run *run, void *buf, struct qcow_error *err)
{
	uint8_t *cluster QK_AUTO_FREE = qk_malloc(d->cluster_size, 1);
	if (cluster == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(decode_cluster(d, run, cluster, err));
	memcpy(buf, cluster + (run->guest.v & (d->cluster_size - 1)), (size_t)run->len);
	return QCOW_OK;
}

enum qcow_status qk_decode_read(
	struct qk_decode *d, const struct qk_run *run, void *buf, struct qcow_error *err)
{
	QK_ASSERT(D5, run->len <= d->cluster_size);
	if (run->len == d->cluster_size)
		return decode_cluster(d, run, buf, err);
	bool is_mine = false;
	(void)pthread_mutex_lock(&d->cache_lock);
	struct entry *e = pin_entry(d, run, &is_mine);
	(void)pthread_mutex_unlock(&d->cache_lock);
	if (e == NULL)
		return read_uncached(d, run, buf, err);
	enum qcow_status status = is_mine ? decode_cluster(d, run, e->data, err) : QCOW_OK;
	bool is_good = status == QCOW_OK;
	if (is_good && is_mine) {
		/* let the others go on before copying: the pin keeps the buffer */
		(void)pthread_mutex_lock(&d->cache_lock);
		e->state = ENTRY_READY;
		(void)pthread_cond_broadcast(&d->loaded);
		(void)pthread_mutex_unlock(&d->cache_lock);
	}
	if (is_good)
		memcpy(buf, e->data + (run->guest.v & (d->cluster_size - 1)), (size_t)run->len);
	unpin_entry(d, e, is_good);
	return status;
}

bool qk_decode_read_ready(struct qk_decode *d, const struct qk_run *run, void *buf)
{
	(void)pthread_mutex_lock(&d->cache_lock);
	struct entry *e = find_entry(d, run);
	bool is_ready = e != NULL && e->state == ENTRY_READY;
	if (is_ready) {
		e->users++;
		e->is_recent = true;
	}
	(void)pthread_mutex_unlock(&d->cache_lock);
	if (!is_ready)
		return false;
	memcpy(buf, e->data + (run->guest.v & (d->cluster_size - 1)), (size_t)run->len);
	unpin_entry(d, e, true);
	return true;
}

void qk_decode_forget(struct qk_decode *d, uint64_t host_off, uint64_t len)
{
	(void)pthread_mutex_lock(&d->cache_lock);
	for (unsigned i = 0; d->entries != NULL && i < d->n_entries; i++) {
		struct entry *e = &d->entries[i];
		/* what is being loaded was found after the last that is to be forgotten had gone */
		if (e->state == ENTRY_READY && e->host_off < host_off + len &&
			host_off < e->host_off + e->compressed_bytes)
			empty_entry(d, e);
	}
	(void)pthread_mutex_unlock(&d->cache_lock);
}

enum qcow_status qk_decode_compress(
	struct qk_decode *d, const void *in, void *out, size_t *out_len, struct qcow_error *err)
{
	struct decoder *dec = NULL;
	QK_TRY(get_decoder(d, &dec, err));
	enum qcow_status status = qk_codec_compress(dec->codec, in, out, out_len, err);
	put_decoder(d, dec);
	return status;
}
