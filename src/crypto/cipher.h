/* SPDX-License-Identifier: MIT */
/*
 * cipher: 512-byte sectors, encrypted and decrypted in place. The cipher's number of a sector, from which
 * its initial vector is made, is the caller's to say.
 */
#ifndef QK_CRYPTO_CIPHER_H
#define QK_CRYPTO_CIPHER_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"
#include "crypto/kdf.h"

#define QK_CRYPT_SECTOR	    512U
#define QK_CIPHER_KEY_BYTES 64U /* the longest: xts with 256 bits */

enum qk_cipher_alg {
	QK_CIPHER_AES = 1,
	QK_CIPHER_SERPENT,
	QK_CIPHER_TWOFISH,
	QK_CIPHER_CAST5,
	QK_CIPHER_SM4
};

enum qk_cipher_mode {
	QK_MODE_ECB = 1,
	QK_MODE_CBC,
	QK_MODE_XTS,
	QK_MODE_CTR
};

enum qk_ivgen {
	QK_IV_NONE = 0, /* ecb needs none */
	QK_IV_PLAIN, /* the low 32 bits of the sector number, little endian */
	QK_IV_PLAIN64, /* all 64 */
	QK_IV_ESSIV /* plain64, encrypted with a hash of the key */
};

struct qk_cipher_spec {
	enum qk_cipher_alg alg;
	enum qk_cipher_mode mode;
	enum qk_ivgen ivgen;
	enum qk_hash ivhash; /* with QK_IV_ESSIV */
	size_t key_bytes; /* of the whole key: in xts both halves */
};

struct qk_cipher;

/* Do the parts go together? QCOW_E_UNSUPPORTED with a sentence that says what does not. */
enum qcow_status qk_cipher_check(
	const struct qk_cipher_spec *spec, struct qcow_error *err) QK_MUST_USE;

/* The key's length for `key_bits` of a cipher, of which xts takes two keys. */
size_t qk_cipher_key_bytes(const struct qk_cipher_spec *spec, unsigned key_bits);

/* A context for one thread. `key` (spec->key_bytes) is copied into the library of ciphers, not kept here.
 * Errors of qk_cipher_check, QCOW_E_NOMEM, QCOW_E_KEY (a key that the cipher refuses). */
enum qcow_status qk_cipher_new(const struct qk_cipher_spec *spec, const uint8_t *key,
	struct qk_cipher **out, struct qcow_error *err) QK_MUST_USE;
/* NULL is allowed. The key is wiped. */
void qk_cipher_free(struct qk_cipher *cipher);

/* `len` bytes at `buf`, whole sectors, the first of which has number `sector`. QCOW_E_BUG. */
enum qcow_status qk_cipher_encrypt(struct qk_cipher *cipher, uint8_t *buf, size_t len,
	uint64_t sector, struct qcow_error *err) QK_MUST_USE;
enum qcow_status qk_cipher_decrypt(struct qk_cipher *cipher, uint8_t *buf, size_t len,
	uint64_t sector, struct qcow_error *err) QK_MUST_USE;

/* Names as LUKS headers have them ("aes", "xts", "plain64"): 0 for an unknown one; NULL never. */
enum qk_cipher_alg qk_cipher_alg_find(const char *name);
enum qk_cipher_mode qk_cipher_mode_find(const char *name);
enum qk_ivgen qk_ivgen_find(const char *name);
const char *qk_cipher_alg_name(enum qk_cipher_alg alg);
const char *qk_cipher_mode_name(enum qk_cipher_mode mode);
const char *qk_ivgen_name(enum qk_ivgen ivgen);

#endif
