/* SPDX-License-Identifier: MIT */
/*
 * kdf: see kdf.h. PBKDF2 is our own loop over the library's HMAC, for the library's cannot be stopped.
 *
 * Owns the one variable of the process: whether the library of ciphers has been initialised, which is a
 * fact about the process and not about any image.
 */
#include "crypto/kdf.h"

#include <gcrypt.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/num.h"

#define MIN_GCRYPT	 "1.9.0"
#define CANCEL_INTERVAL	 1024U /* iterations: about a millisecond */
#define SPEED_START	 1000U
#define SPEED_ENOUGH_NS	 UINT64_C(50000000)
#define SPEED_MAX_ROUNDS (UINT32_C(1) << 24)

static const struct {
	const char *name;
	int id;
	size_t bytes;
} hashes[] = {
	{"", 0, 0},
	{"md5", GCRY_MD_MD5, 16},
	{"sha1", GCRY_MD_SHA1, 20},
	{"sha224", GCRY_MD_SHA224, 28},
	{"sha256", GCRY_MD_SHA256, 32},
	{"sha384", GCRY_MD_SHA384, 48},
	{"sha512", GCRY_MD_SHA512, 64},
	{"ripemd160", GCRY_MD_RMD160, 20},
	{"sm3", GCRY_MD_SM3, 32},
};
#define N_HASHES (sizeof(hashes) / sizeof(hashes[0]))

/* An application that uses the library itself has done this, with the settings that it wants. */
static void initialise(void)
{
	if (gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P) != 0 ||
		gcry_check_version(MIN_GCRYPT) == NULL)
		return;
	(void)gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
	(void)gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

enum qcow_status qk_crypto_ready(struct qcow_error *err)
{
	static pthread_once_t qk_crypto_once = PTHREAD_ONCE_INIT;

	(void)pthread_once(&qk_crypto_once, initialise);
	if (gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P) != 0)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_UNSUPPORTED, "libgcrypt is older than " MIN_GCRYPT);
}

/* ---- hashes ---- */

enum qk_hash qk_hash_find(const char *name)
{
	for (unsigned i = 1; i < N_HASHES; i++)
		if (strcmp(hashes[i].name, name) == 0)
			return (enum qk_hash)i;
	return (enum qk_hash)0;
}

const char *qk_hash_name(enum qk_hash hash)
{
	return (size_t)hash < N_HASHES ? hashes[hash].name : "";
}

size_t qk_hash_bytes(enum qk_hash hash)
{
	return (size_t)hash < N_HASHES ? hashes[hash].bytes : 0;
}

static enum qcow_status open_hash(
	enum qk_hash hash, unsigned flags, gcry_md_hd_t *out, struct qcow_error *err)
{
	QK_TRY(qk_crypto_ready(err));
	if (qk_hash_bytes(hash) == 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "hash %u is not known", (unsigned)hash);
	gcry_error_t e = gcry_md_open(out, hashes[hash].id, flags);
	if (e == 0)
		return QCOW_OK;
	return QK_FAIL(err, gcry_err_code(e) == GPG_ERR_ENOMEM ? QCOW_E_NOMEM : QCOW_E_UNSUPPORTED,
		"libgcrypt cannot make the hash '%s': %s", hashes[hash].name, gcry_strerror(e));
}

enum qcow_status qk_hash(enum qk_hash hash, const struct qk_span *parts, size_t n_parts,
	uint8_t *digest, struct qcow_error *err)
{
	gcry_md_hd_t md = NULL;

	QK_TRY(open_hash(hash, 0, &md, err));
	for (size_t i = 0; i < n_parts; i++)
		gcry_md_write(md, parts[i].p, parts[i].n);
	memcpy(digest, gcry_md_read(md, 0), hashes[hash].bytes);
	gcry_md_close(md);
	return QCOW_OK;
}

/* ---- PBKDF2 ---- */

static void xor_into(uint8_t *out, const uint8_t *in, size_t n)
{
	for (size_t i = 0; i < n; i++)
		out[i] ^= in[i];
}

static bool is_cancelled(const struct qk_cancel *cancel)
{
	return cancel->cancelled != NULL && cancel->cancelled(cancel->ctx);
}

/* Block `number` of the key: U1 ^ U2 ^ … */
static enum qcow_status derive_block(gcry_md_hd_t md, const struct qk_kdf_request *rq,
	uint32_t number, uint8_t *block, struct qcow_error *err)
{
	uint8_t be[4], u[QK_HASH_BYTES];
	size_t n = qk_hash_bytes(rq->hash);

	qk_store32(be, number);
	gcry_md_reset(md);
	gcry_md_write(md, rq->salt.p, rq->salt.n);
	gcry_md_write(md, be, sizeof(be));
	memcpy(u, gcry_md_read(md, 0), n);
	memcpy(block, u, n);
	bool stops = false;
	for (uint32_t i = 1; i < rq->iterations && !stops; i++) {
		stops = i % CANCEL_INTERVAL == 0 && is_cancelled(&rq->cancel);
		gcry_md_reset(md);
		gcry_md_write(md, u, n);
		memcpy(u, gcry_md_read(md, 0), n);
		xor_into(block, u, n);
	}
	explicit_bzero(u, sizeof(u));
	return stops ? QK_FAIL(err, QCOW_E_CANCELLED, "cancelled") : QCOW_OK;
}

static enum qcow_status derive_blocks(gcry_md_hd_t md, const struct qk_kdf_request *rq,
	uint8_t *out, size_t n, struct qcow_error *err)
{
	uint8_t block[QK_HASH_BYTES];
	enum qcow_status status = QCOW_OK;
	size_t digest = qk_hash_bytes(rq->hash);

	for (uint32_t number = 1; n != 0 && status == QCOW_OK; number++) {
		size_t take = qk_min(n, digest);
		status = derive_block(md, rq, number, block, err);
		if (status == QCOW_OK)
			memcpy(out, block, take);
		out += take;
		n -= take;
	}
	explicit_bzero(block, sizeof(block));
	return status;
}

enum qcow_status qk_kdf(
	const struct qk_kdf_request *rq, uint8_t *out, size_t n, struct qcow_error *err)
{
	gcry_md_hd_t md = NULL;

	QK_ASSERT(K2, rq->iterations != 0);
	if (is_cancelled(&rq->cancel))
		return QK_FAIL(err, QCOW_E_CANCELLED, "cancelled");
	QK_TRY(open_hash(rq->hash, GCRY_MD_FLAG_HMAC, &md, err));
	gcry_error_t e = gcry_md_setkey(
		md, rq->password.n != 0 ? rq->password.p : (const uint8_t *)"", rq->password.n);
	enum qcow_status status = e == 0 ? derive_blocks(md, rq, out, n, err)
					 : QK_FAIL(err, QCOW_E_KEY,
						   "the passphrase cannot be used: %s",
						   gcry_strerror(e));
	gcry_md_close(md);
	return status;
}

static uint64_t cpu_ns(void)
{
	struct timespec t = {0};

	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

enum qcow_status qk_kdf_speed(
	enum qk_hash hash, size_t key_bytes, uint64_t *per_sec, struct qcow_error *err)
{
	static const uint8_t text[32] = "the speed does not depend on it";
	uint8_t out[QK_HASH_BYTES];
	struct qk_kdf_request rq = {.hash = hash,
		.iterations = SPEED_START,
		.password = {text, sizeof(text)},
		.salt = {text, sizeof(text)}};

	QK_ASSERT(K3, key_bytes <= sizeof(out));
	for (;;) {
		uint64_t begin = cpu_ns();
		QK_TRY(qk_kdf(&rq, out, key_bytes, err));
		uint64_t ns = qk_max(cpu_ns() - begin, 1);
		if (ns >= SPEED_ENOUGH_NS || rq.iterations >= SPEED_MAX_ROUNDS) {
			*per_sec = (uint64_t)rq.iterations * 1000000000 / ns;
			return QCOW_OK;
		}
		rq.iterations *= 2;
	}
}

/* ---- the anti-forensic splitter ---- */

/* Replace every digest-sized piece of `block` by the hash of its number and itself. */
static enum qcow_status diffuse(enum qk_hash hash, uint8_t *block, size_t n)
{
	size_t size = qk_hash_bytes(hash);
	uint8_t be[4], digest[QK_HASH_BYTES];

	for (uint32_t number = 0; n != 0; number++) {
		size_t take = qk_min(n, size);
		qk_store32(be, number);
		struct qk_span parts[] = {{be, sizeof(be)}, {block, take}};
		QK_TRY(qk_hash(hash, parts, 2, digest, NULL));
		memcpy(block, digest, take);
		block += take;
		n -= take;
	}
	explicit_bzero(digest, sizeof(digest));
	return QCOW_OK;
}

/* All stripes but the last, xored and diffused one after the other, into `out`. */
static enum qcow_status fold(
	enum qk_hash hash, const uint8_t *split, uint32_t stripes, uint8_t *out, size_t key_bytes)
{
	memset(out, 0, key_bytes);
	for (uint32_t i = 0; i + 1 < stripes; i++) {
		xor_into(out, split + (size_t)i * key_bytes, key_bytes);
		QK_TRY(diffuse(hash, out, key_bytes));
	}
	return QCOW_OK;
}

enum qcow_status qk_af_split(
	enum qk_hash hash, const uint8_t *key, size_t key_bytes, uint8_t *split, uint32_t stripes)
{
	QK_ASSERT(K4, stripes != 0 && qk_hash_bytes(hash) != 0);
	uint8_t *last = split + (size_t)(stripes - 1) * key_bytes;
	QK_TRY(fold(hash, split, stripes, last, key_bytes));
	xor_into(last, key, key_bytes);
	return QCOW_OK;
}

enum qcow_status qk_af_merge(
	enum qk_hash hash, const uint8_t *split, uint32_t stripes, uint8_t *key, size_t key_bytes)
{
	QK_ASSERT(K4, stripes != 0 && qk_hash_bytes(hash) != 0);
	QK_TRY(fold(hash, split, stripes, key, key_bytes));
	xor_into(key, split + (size_t)(stripes - 1) * key_bytes, key_bytes);
	return QCOW_OK;
}
