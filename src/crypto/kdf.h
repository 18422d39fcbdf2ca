/* SPDX-License-Identifier: MIT */
/*
 * kdf: hashes, the derivation of keys from passphrases (PBKDF2, RFC 8018), and LUKS1's anti-forensic
 * splitter, which spreads a key over so many bytes that losing some of them destroys it.
 */
#ifndef QK_CRYPTO_KDF_H
#define QK_CRYPTO_KDF_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"

#define QK_HASH_BYTES 64U /* the longest digest */

enum qk_hash {
	QK_HASH_MD5 = 1,
	QK_HASH_SHA1,
	QK_HASH_SHA224,
	QK_HASH_SHA256,
	QK_HASH_SHA384,
	QK_HASH_SHA512,
	QK_HASH_RIPEMD160,
	QK_HASH_SM3
};

/* Does somebody want the work to end? Asked often; `cancelled` may be NULL. */
struct qk_cancel {
	bool (*cancelled)(void *ctx);
	void *ctx;
};

/* Make the library of ciphers usable, once a process; any thread. QCOW_E_UNSUPPORTED (too old). */
enum qcow_status qk_crypto_ready(struct qcow_error *err) QK_MUST_USE;

/* Names as LUKS headers have them, "sha256"; 0 for an unknown one, "" for an unknown number. */
enum qk_hash qk_hash_find(const char *name);
const char *qk_hash_name(enum qk_hash hash);
/* Bytes of a digest, 0 for an unknown hash. */
size_t qk_hash_bytes(enum qk_hash hash);

/* The digest of parts one after the other. QCOW_E_UNSUPPORTED, QCOW_E_NOMEM. */
enum qcow_status qk_hash(enum qk_hash hash, const struct qk_span *parts, size_t n_parts,
	uint8_t *digest, struct qcow_error *err) QK_MUST_USE;

struct qk_kdf_request {
	enum qk_hash hash;
	uint32_t iterations; /* > 0 */
	struct qk_span password, salt;
	struct qk_cancel cancel;
};
/* PBKDF2 with HMAC into out[0, n). QCOW_E_CANCELLED within milliseconds, QCOW_E_UNSUPPORTED, QCOW_E_NOMEM. */
enum qcow_status qk_kdf(const struct qk_kdf_request *rq, uint8_t *out, size_t n,
	struct qcow_error *err) QK_MUST_USE;

/* Iterations that one thread of this machine does in a second for `key_bytes`. Takes up to 0.1 s. */
enum qcow_status qk_kdf_speed(
	enum qk_hash hash, size_t key_bytes, uint64_t *per_sec, struct qcow_error *err) QK_MUST_USE;

/* `split` holds stripes times key_bytes. Splitting: all stripes but the last come filled with random bytes,
 * the last is computed. Merging leaves `split` as it is. Errors of qk_hash. */
enum qcow_status qk_af_split(enum qk_hash hash, const uint8_t *key, size_t key_bytes,
	uint8_t *split, uint32_t stripes) QK_MUST_USE;
enum qcow_status qk_af_merge(enum qk_hash hash, const uint8_t *split, uint32_t stripes,
	uint8_t *key, size_t key_bytes) QK_MUST_USE;

#endif
