/* SPDX-License-Identifier: MIT */
/*
 * luks1: the LUKS version 1 header: decoded and judged before any value of it is used, encoded, and its
 * eight key slots, each of which holds the key of the disk, encrypted with a passphrase.
 *
 *   | header 592 | … | slot 0: key_bytes * stripes | … | slot 7 | … | payload (not inside qcow2)
 *
 * Specification: "LUKS On-Disk Format Specification", version 1.2.3.
 */
#ifndef QK_CRYPTO_LUKS1_H
#define QK_CRYPTO_LUKS1_H

#include "crypto/cipher.h"

#define QK_LUKS_HEADER_BYTES   592U
#define QK_LUKS_SLOTS	       8U
#define QK_LUKS_SALT_BYTES     32U
#define QK_LUKS_DIGEST_BYTES   20U
#define QK_LUKS_UUID_BYTES     40U
#define QK_LUKS_STRIPES	       4000U /* of slots that are written */
#define QK_LUKS_MAX_STRIPES    16384U /* of slots that are read */
#define QK_LUKS_MAX_ITERATIONS UINT32_C(100000000)
#define QK_LUKS_MIN_ITERATIONS 1000U /* that are written */

struct qk_luks_slot {
	bool is_active;
	uint32_t iterations, stripes;
	uint8_t salt[QK_LUKS_SALT_BYTES];
	uint64_t key_off; /* bytes from the start of the header */
};

struct qk_luks {
	struct qk_cipher_spec spec;
	enum qk_hash hash; /* of the key derivation and of the splitter */
	uint64_t payload_off; /* bytes from the start of the header */
	uint8_t digest[QK_LUKS_DIGEST_BYTES]; /* of the key */
	uint8_t salt[QK_LUKS_SALT_BYTES];
	uint32_t iterations; /* of the digest */
	char uuid[QK_LUKS_UUID_BYTES + 1];
	struct qk_luks_slot slots[QK_LUKS_SLOTS];
};

/* Are these the first bytes of a LUKS header, of whatever version? */
bool qk_luks_probe(struct qk_span start);

/* Decode and judge a header (at least QK_LUKS_HEADER_BYTES) in front of an area of `area_bytes`, in which
 * the key slots lie. `detached`: the payload is in a file of its own, at any offset there. QCOW_E_FORMAT with a
 * sentence, QCOW_E_UNSUPPORTED (version 2, ciphers, hashes). */
enum qcow_status qk_luks_decode(struct qk_span bytes, uint64_t area_bytes, bool detached,
	struct qk_luks *out, struct qcow_error *err) QK_MUST_USE;

/* Bytes of a slot's key material, whole sectors. */
size_t qk_luks_material_bytes(const struct qk_luks *luks, unsigned slot);

struct qk_luks_slot_request {
	struct qk_luks *luks;
	unsigned slot;
	uint8_t *material; /* qk_luks_material_bytes, changed */
	struct qk_span passphrase;
	struct qk_cancel cancel;
	uint32_t max_iterations;
};

/* Try the passphrase on an active slot. *found: it fits, and `key` (spec.key_bytes) is the disk's; else
 * `key` is wiped. QCOW_E_LIMIT (iterations), QCOW_E_CANCELLED, QCOW_E_FORMAT, QCOW_E_NOMEM. */
enum qcow_status qk_luks_unlock(const struct qk_luks_slot_request *rq, uint8_t *key, bool *found,
	struct qcow_error *err) QK_MUST_USE;

/* ---- new headers ---- */

/* Layout and sizes of a new header for luks->spec and ->hash, which are set and checked here: slots
 * without keys, payload_off the bytes that header and slots take. Errors of qk_cipher_check. */
enum qcow_status qk_luks_layout(struct qk_luks *luks, struct qcow_error *err) QK_MUST_USE;

/* Set the digest of `key`; salt and iterations are the caller's to have set. Errors of qk_kdf. */
enum qcow_status qk_luks_set_digest(struct qk_luks *luks, const uint8_t *key,
	const struct qk_cancel *cancel, struct qcow_error *err) QK_MUST_USE;

/* Put `key` into a slot whose salt and iterations are set. rq->material comes filled with random bytes and
 * becomes what belongs at key_off. Errors of qk_kdf. */
enum qcow_status qk_luks_seal(const struct qk_luks_slot_request *rq, const uint8_t *key,
	struct qcow_error *err) QK_MUST_USE;

/* QK_LUKS_HEADER_BYTES of header. */
void qk_luks_encode(const struct qk_luks *luks, uint8_t *bytes);

#endif
