/* SPDX-License-Identifier: MIT */
/*
 * crypt: guest data on its way between a store and a buffer: decrypted when it is read, encrypted when it is
 * written. One for each encrypted layer or builder. Specification: "Data encryption".
 */
#ifndef QK_ENGINE_CRYPT_H
#define QK_ENGINE_CRYPT_H

#include <qcowkit/qcowkit.h>

#include "base/num.h"
#include "crypto/cipher.h"
#include "crypto/luks1.h"

struct qk_crypt;

/* Where bytes lie. host and guest agree modulo QK_CRYPT_SECTOR. */
struct qk_crypt_place {
	struct qcow_store *store;
	qk_hoff host;
	qk_goff guest;
};

/* `key` (spec->key_bytes) is copied. by_guest: the vectors come from guest offsets (crypt_method 1, plain LUKS
 * files), else from host offsets (LUKS in qcow2). Errors of qk_cipher_new. */
enum qcow_status qk_crypt_new(const struct qk_cipher_spec *spec, const uint8_t *key, bool by_guest,
	struct qk_crypt **out, struct qcow_error *err) QK_MUST_USE;
/* NULL is allowed. Keys are wiped. */
void qk_crypt_free(struct qk_crypt *crypt);

/* Read `len` plain bytes; what lies past the end of the store is decrypted zeros. Any thread. Errors of the
 * store, QCOW_E_NOMEM. */
enum qcow_status qk_crypt_read(struct qk_crypt *crypt, const struct qk_crypt_place *at,
	uint8_t *buf, size_t len, struct qcow_error *err) QK_MUST_USE;

/* Encrypt and write `len` bytes from a sector's start; a last part of a sector is filled up with zeros.
 * Any thread; `buf` stays as it is. Errors of the store, QCOW_E_NOMEM. */
enum qcow_status qk_crypt_write(struct qk_crypt *crypt, const struct qk_crypt_place *at,
	const uint8_t *buf, size_t len, struct qcow_error *err) QK_MUST_USE;

/* Writing in pieces of any length, which are gathered in a bounded buffer that is wiped. In all they are whole sectors,
 * from a sector's start. One thread; errors as qk_crypt_write. */
struct qk_crypt_context;
struct qk_crypt_sink {
	struct qk_crypt *crypt;
	struct qk_crypt_context *context;
	struct qk_crypt_place at; /* of the first byte in the buffer */
	size_t n; /* bytes in it */
};
enum qcow_status qk_crypt_sink_open(struct qk_crypt *crypt, const struct qk_crypt_place *at,
	struct qk_crypt_sink *out, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_crypt_sink_put(
	struct qk_crypt_sink *sink, struct qk_span in, struct qcow_error *err) QK_MUST_USE;
/* Write what is left, where `status` is QCOW_OK; its answer, or `status`. */
enum qcow_status qk_crypt_sink_close(
	struct qk_crypt_sink *sink, enum qcow_status status, struct qcow_error *err) QK_MUST_USE;

/* The key of the disk, of as many bytes as its cipher takes. It is `crypt`'s. */
const uint8_t *qk_crypt_key(const struct qk_crypt *crypt);

/* ---- crypt_luks.c ---- */

/* Where a LUKS header is, and who wants to open it. */
struct qk_crypt_luks_request {
	struct qcow_store *store;
	uint64_t off, len; /* of the header and its slots */
	struct qk_span passphrase;
	struct qk_cancel cancel;
	uint32_t max_iterations; /* 0 = QK_LUKS_MAX_ITERATIONS */
	bool by_guest;
	bool detached; /* the store holds the header alone */
};

/* Read and judge the header alone. Errors of qk_luks_decode and of the store. */
enum qcow_status qk_crypt_luks_header(const struct qk_crypt_luks_request *rq, struct qk_luks *out,
	struct qcow_error *err) QK_MUST_USE;

/* Does the passphrase open this active slot? Errors of qk_luks_unlock. */
enum qcow_status qk_crypt_luks_fits(const struct qk_crypt_luks_request *rq, struct qk_luks *luks,
	unsigned slot, bool *fits, struct qcow_error *err) QK_MUST_USE;

/* Try every active slot. QCOW_E_KEY where none opens; errors of qk_luks_unlock. */
enum qcow_status qk_crypt_luks_unlock(const struct qk_crypt_luks_request *rq,
	const struct qk_luks *luks, struct qk_crypt **out, struct qcow_error *err) QK_MUST_USE;

#endif
