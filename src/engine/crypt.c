/* SPDX-License-Identifier: MIT */
/*
 * crypt: see crypt.h. Owns the key of a disk and the contexts that threads use in turn.
 *
 * Invariants: Y1 host and guest offsets agree modulo a sector; Y2 idle contexts are at most MAX_IDLE; Y3 whole sectors are
 * written, and what stays in the buffer of an idle context is encrypted.
 * Locking: `lock` guards the idle contexts, a leaf; reads, writes and ciphers run without it.
 */
#include "engine/crypt.h"

#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "crypto/secmem.h"

#define MAX_IDLE     16U
#define BOUNCE_BYTES QK_KIB(256)
#define SECTOR_MASK  ((uint64_t)QK_CRYPT_SECTOR - 1)

/* What one thread needs. */
struct qk_crypt_context {
	struct qk_crypt_context *next;
	struct qk_cipher *cipher;
	uint8_t *bounce; /* BOUNCE_BYTES, made by the first write */
};

struct qk_crypt {
	struct qk_cipher_spec spec;
	bool by_guest;
	uint8_t *key; /* of secmem */
	pthread_mutex_t lock;
	struct qk_crypt_context *idle;
	unsigned n_idle;
};

static void free_context(struct qk_crypt_context *c)
{
	if (c == NULL)
		return;
	qk_cipher_free(c->cipher);
	if (c->bounce != NULL)
		explicit_bzero(c->bounce, BOUNCE_BYTES);
	free(c->bounce);
	free(c);
}

static enum qcow_status get_context(
	struct qk_crypt *crypt, struct qk_crypt_context **out, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&crypt->lock);
	struct qk_crypt_context *c = crypt->idle;
	if (c != NULL) {
		crypt->idle = c->next;
		crypt->n_idle--;
	}
	(void)pthread_mutex_unlock(&crypt->lock);
	if (c == NULL) {
		c = qk_calloc(1, sizeof(*c));
		if (c == NULL)
			return QK_FAIL_NOMEM(err);
		enum qcow_status status = qk_cipher_new(&crypt->spec, crypt->key, &c->cipher, err);
		if (status != QCOW_OK) {
			free(c);
			return status;
		}
	}
	*out = c;
	return QCOW_OK;
}

static void put_context(struct qk_crypt *crypt, struct qk_crypt_context *c)
{
	(void)pthread_mutex_lock(&crypt->lock);
	bool is_kept = crypt->n_idle < MAX_IDLE;
	if (is_kept) {
		c->next = crypt->idle;
		crypt->idle = c;
		crypt->n_idle++;
	}
	(void)pthread_mutex_unlock(&crypt->lock);
	if (!is_kept)
		free_context(c);
}

enum qcow_status qk_crypt_new(const struct qk_cipher_spec *spec, const uint8_t *key, bool by_guest,
	struct qk_crypt **out, struct qcow_error *err)
{
	struct qk_crypt *crypt = qk_calloc(1, sizeof(*crypt));
	struct qk_crypt_context *first = NULL;

	if (crypt == NULL)
		return QK_FAIL_NOMEM(err);
	crypt->spec = *spec;
	crypt->by_guest = by_guest;
	/* cannot fail with default attributes on the platforms that we build for */
	(void)pthread_mutex_init(&crypt->lock, NULL);
	crypt->key = qk_secmem_new(spec->key_bytes);
	enum qcow_status status = crypt->key != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
	if (status == QCOW_OK) {
		memcpy(crypt->key, key, spec->key_bytes);
		/* a key that the cipher refuses is told of here, not by the first read */
		status = get_context(crypt, &first, err);
	}
	if (status != QCOW_OK) {
		qk_crypt_free(crypt);
		return status;
	}
	put_context(crypt, first);
	*out = crypt;
	return QCOW_OK;
}

void qk_crypt_free(struct qk_crypt *crypt)
{
	if (crypt == NULL)
		return;
	while (crypt->idle != NULL) {
		struct qk_crypt_context *c = crypt->idle;
		crypt->idle = c->next;
		free_context(c);
	}
	qk_secmem_free(crypt->key, crypt->spec.key_bytes);
	(void)pthread_mutex_destroy(&crypt->lock);
	free(crypt);
}

const uint8_t *qk_crypt_key(const struct qk_crypt *crypt)
{
	return crypt->key;
}

static uint64_t sector_of(const struct qk_crypt *crypt, const struct qk_crypt_place *at)
{
	return (crypt->by_guest ? at->guest.v : at->host.v) / QK_CRYPT_SECTOR;
}

static struct qk_crypt_place advance(struct qk_crypt_place at, uint64_t n)
{
	at.host.v += n;
	at.guest.v += n;
	return at;
}

/* ---- reading ---- */

/* [into, into + len) of the one sector that starts at `at`. */
static enum qcow_status read_part(const struct qk_crypt *crypt, struct qk_crypt_context *c,
	const struct qk_crypt_place *at, struct qk_span out, uint64_t into, struct qcow_error *err)
{
	uint8_t sector[QK_CRYPT_SECTOR];

	QK_TRY(qcow_store_read_padded(at->store, sector, sizeof(sector), at->host.v, err));
	QK_TRY(qk_cipher_decrypt(c->cipher, sector, sizeof(sector), sector_of(crypt, at), err));
	memcpy((uint8_t *)out.p, sector + into, out.n);
	explicit_bzero(sector, sizeof(sector));
	return QCOW_OK;
}

static enum qcow_status read_with(const struct qk_crypt *crypt, struct qk_crypt_context *c,
	struct qk_crypt_place at, struct qk_span out, struct qcow_error *err)
{
	uint64_t into = at.host.v & SECTOR_MASK;

	if (into != 0) {
		struct qk_span part = {out.p, qk_min(out.n, QK_CRYPT_SECTOR - into)};
		struct qk_crypt_place start = at;
		start.host.v -= into;
		start.guest.v -= into;
		QK_TRY(read_part(crypt, c, &start, part, into, err));
		at = advance(at, part.n);
		out.p += part.n;
		out.n -= part.n;
	}
	size_t whole = (size_t)qk_align_down(out.n, QK_CRYPT_SECTOR);
	if (whole != 0) {
		uint8_t *buf = (uint8_t *)out.p;
		QK_TRY(qcow_store_read_padded(at.store, buf, whole, at.host.v, err));
		QK_TRY(qk_cipher_decrypt(c->cipher, buf, whole, sector_of(crypt, &at), err));
		at = advance(at, whole);
	}
	out.p += whole;
	out.n -= whole;
	return out.n == 0 ? QCOW_OK : read_part(crypt, c, &at, out, 0, err);
}

enum qcow_status qk_crypt_read(struct qk_crypt *crypt, const struct qk_crypt_place *at,
	uint8_t *buf, size_t len, struct qcow_error *err)
{
	struct qk_crypt_context *c = NULL;

	QK_ASSERT(Y1, ((at->host.v ^ at->guest.v) & SECTOR_MASK) == 0);
	QK_TRY(get_context(crypt, &c, err));
	enum qcow_status status = read_with(crypt, c, *at, (struct qk_span){buf, len}, err);
	put_context(crypt, c);
	return status;
}

/* ---- writing ---- */

static enum qcow_status write_bounce(struct qk_crypt_sink *sink, struct qcow_error *err)
{
	struct qk_crypt_context *c = sink->context;
	size_t n = sink->n;
	QK_ASSERT(Y3, qk_is_aligned(n, QK_CRYPT_SECTOR));
	if (n == 0)
		return QCOW_OK;
	sink->n = 0;
	QK_TRY(qk_cipher_encrypt(c->cipher, c->bounce, n, sector_of(sink->crypt, &sink->at), err));
	QK_TRY(qcow_store_write(sink->at.store, c->bounce, n, sink->at.host.v, err));
	sink->at = advance(sink->at, n);
	return QCOW_OK;
}

enum qcow_status qk_crypt_sink_open(struct qk_crypt *crypt, const struct qk_crypt_place *at,
	struct qk_crypt_sink *out, struct qcow_error *err)
{
	QK_ASSERT(Y1, (at->host.v & SECTOR_MASK) == 0 && (at->guest.v & SECTOR_MASK) == 0);
	*out = (struct qk_crypt_sink){.crypt = crypt, .at = *at};
	QK_TRY(get_context(crypt, &out->context, err));
	if (out->context->bounce == NULL)
		out->context->bounce = qk_malloc_aligned(4096, BOUNCE_BYTES);
	if (out->context->bounce != NULL)
		return QCOW_OK;
	put_context(crypt, out->context);
	return QK_FAIL_NOMEM(err);
}

enum qcow_status qk_crypt_sink_put(
	struct qk_crypt_sink *sink, struct qk_span in, struct qcow_error *err)
{
	while (in.n != 0) {
		size_t n = (size_t)qk_min(in.n, BOUNCE_BYTES - sink->n);
		memcpy(sink->context->bounce + sink->n, in.p, n);
		sink->n += n;
		in.p += n;
		in.n -= n;
		if (sink->n == BOUNCE_BYTES)
			QK_TRY(write_bounce(sink, err));
	}
	return QCOW_OK;
}

enum qcow_status qk_crypt_sink_close(
	struct qk_crypt_sink *sink, enum qcow_status status, struct qcow_error *err)
{
	if (status == QCOW_OK)
		status = write_bounce(sink, err);
	/* what failed may be plain still */
	if (status != QCOW_OK)
		explicit_bzero(sink->context->bounce, BOUNCE_BYTES);
	put_context(sink->crypt, sink->context);
	return status;
}

enum qcow_status qk_crypt_write(struct qk_crypt *crypt, const struct qk_crypt_place *at,
	const uint8_t *buf, size_t len, struct qcow_error *err)
{
	static const uint8_t zeros[QK_CRYPT_SECTOR];
	const struct qk_span fill = {zeros, (size_t)((0 - (uint64_t)len) & SECTOR_MASK)};
	struct qk_crypt_sink sink;

	QK_TRY(qk_crypt_sink_open(crypt, at, &sink, err));
	enum qcow_status status = qk_crypt_sink_put(&sink, (struct qk_span){buf, len}, err);
	if (status == QCOW_OK)
		status = qk_crypt_sink_put(&sink, fill, err);
	return qk_crypt_sink_close(&sink, status, err);
}
