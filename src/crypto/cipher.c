/* SPDX-License-Identifier: MIT */
/*
 * cipher: see cipher.h. Owns the contexts of the library of ciphers; keeps no key.
 *
 * Locking: none. A context belongs to one thread at a time.
 */
#include "crypto/cipher.h"

#include <gcrypt.h>
#include <string.h>

#include "base/mem.h"

#define MAX_BLOCK_BYTES 16U

struct qk_cipher {
	struct qk_cipher_spec spec;
	size_t block_bytes;
	gcry_cipher_hd_t data, essiv; /* essiv: NULL unless the vectors are encrypted */
};

/* What is known of a cipher by the length of one key. */
struct key_size {
	enum qk_cipher_alg alg;
	size_t key_bytes, block_bytes;
	int gcrypt_id;
};

static const struct key_size key_sizes[] = {
	{QK_CIPHER_AES, 16, 16, GCRY_CIPHER_AES128},
	{QK_CIPHER_AES, 24, 16, GCRY_CIPHER_AES192},
	{QK_CIPHER_AES, 32, 16, GCRY_CIPHER_AES256},
	{QK_CIPHER_SERPENT, 16, 16, GCRY_CIPHER_SERPENT128},
	{QK_CIPHER_SERPENT, 24, 16, GCRY_CIPHER_SERPENT192},
	{QK_CIPHER_SERPENT, 32, 16, GCRY_CIPHER_SERPENT256},
	{QK_CIPHER_TWOFISH, 16, 16, GCRY_CIPHER_TWOFISH128},
	{QK_CIPHER_TWOFISH, 32, 16, GCRY_CIPHER_TWOFISH},
	{QK_CIPHER_CAST5, 16, 8, GCRY_CIPHER_CAST5},
	{QK_CIPHER_SM4, 16, 16, GCRY_CIPHER_SM4},
};

static const char *const alg_names[] = {"", "aes", "serpent", "twofish", "cast5", "sm4"};
static const char *const mode_names[] = {"", "ecb", "cbc", "xts", "ctr"};
static const char *const ivgen_names[] = {"", "plain", "plain64", "essiv"};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static unsigned find_name(const char *const *names, size_t n, const char *name)
{
	for (unsigned i = 1; i < n; i++)
		if (strcmp(names[i], name) == 0)
			return i;
	return 0;
}

enum qk_cipher_alg qk_cipher_alg_find(const char *name)
{
	return (enum qk_cipher_alg)find_name(alg_names, COUNT(alg_names), name);
}

enum qk_cipher_mode qk_cipher_mode_find(const char *name)
{
	return (enum qk_cipher_mode)find_name(mode_names, COUNT(mode_names), name);
}

enum qk_ivgen qk_ivgen_find(const char *name)
{
	return (enum qk_ivgen)find_name(ivgen_names, COUNT(ivgen_names), name);
}

const char *qk_cipher_alg_name(enum qk_cipher_alg alg)
{
	return (size_t)alg < COUNT(alg_names) ? alg_names[alg] : "";
}

const char *qk_cipher_mode_name(enum qk_cipher_mode mode)
{
	return (size_t)mode < COUNT(mode_names) ? mode_names[mode] : "";
}

const char *qk_ivgen_name(enum qk_ivgen ivgen)
{
	return (size_t)ivgen < COUNT(ivgen_names) ? ivgen_names[ivgen] : "";
}

static const struct key_size *find_key_size(enum qk_cipher_alg alg, size_t key_bytes)
{
	for (size_t i = 0; i < COUNT(key_sizes); i++)
		if (key_sizes[i].alg == alg && key_sizes[i].key_bytes == key_bytes)
			return &key_sizes[i];
	return NULL;
}

/* The entry of the data cipher; xts keys are two of a kind. */
static const struct key_size *data_key_size(const struct qk_cipher_spec *spec)
{
	if (spec->mode != QK_MODE_XTS)
		return find_key_size(spec->alg, spec->key_bytes);
	return spec->key_bytes % 2 == 0 ? find_key_size(spec->alg, spec->key_bytes / 2) : NULL;
}

size_t qk_cipher_key_bytes(const struct qk_cipher_spec *spec, unsigned key_bits)
{
	return (size_t)key_bits / 8 * (spec->mode == QK_MODE_XTS ? 2 : 1);
}

/* Vectors are encrypted by the cipher of the same name whose key is as long as the hash. */
static enum qcow_status check_essiv(const struct qk_cipher_spec *spec, struct qcow_error *err)
{
	size_t digest = qk_hash_bytes(spec->ivhash);

	if (find_key_size(spec->alg, digest) != NULL)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_UNSUPPORTED,
		"essiv with hash '%s' needs keys of %zu bytes, and the cipher '%s' has none",
		qk_hash_name(spec->ivhash), digest, qk_cipher_alg_name(spec->alg));
}

enum qcow_status qk_cipher_check(const struct qk_cipher_spec *spec, struct qcow_error *err)
{
	const char *alg = qk_cipher_alg_name(spec->alg), *mode = qk_cipher_mode_name(spec->mode);
	const struct key_size *size = data_key_size(spec);

	if (alg[0] == '\0' || mode[0] == '\0')
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "the cipher or its mode is not known");
	size_t one_key = spec->mode == QK_MODE_XTS ? spec->key_bytes / 2 : spec->key_bytes;
	if (size == NULL && spec->alg == QK_CIPHER_TWOFISH && one_key == 24)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"twofish with keys of 192 bits is not built in: libgcrypt, which does the "
			"ciphers, has it with 128 and 256");
	if (size == NULL)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"the cipher '%s' in mode '%s' has no keys of %zu bytes", alg, mode,
			spec->key_bytes);
	if (spec->mode == QK_MODE_XTS && size->block_bytes != MAX_BLOCK_BYTES)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"mode 'xts' needs a cipher of 16-byte blocks: '%s' has %zu", alg,
			size->block_bytes);
	if (spec->ivgen == QK_IV_ESSIV)
		return check_essiv(spec, err);
	if (spec->ivgen == QK_IV_NONE && spec->mode != QK_MODE_ECB)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"mode '%s' needs a generator of initial vectors", mode);
	return QCOW_OK;
}

/* ---- contexts ---- */

static int gcrypt_mode(enum qk_cipher_mode mode)
{
	switch (mode) {
	case QK_MODE_CBC:
		return GCRY_CIPHER_MODE_CBC;
	case QK_MODE_XTS:
		return GCRY_CIPHER_MODE_XTS;
	case QK_MODE_CTR:
		return GCRY_CIPHER_MODE_CTR;
	case QK_MODE_ECB:
	default:
		return GCRY_CIPHER_MODE_ECB;
	}
}

static enum qcow_status open_context(
	int id, int mode, struct qk_span key, gcry_cipher_hd_t *out, struct qcow_error *err)
{
	gcry_error_t e = gcry_cipher_open(out, id, mode, 0);

	if (e != 0)
		return QK_FAIL(err,
			gcry_err_code(e) == GPG_ERR_ENOMEM ? QCOW_E_NOMEM : QCOW_E_UNSUPPORTED,
			"libgcrypt cannot open cipher %d in mode %d: %s", id, mode,
			gcry_strerror(e));
	e = gcry_cipher_setkey(*out, key.p, key.n);
	if (e != 0)
		return QK_FAIL(err, QCOW_E_KEY, "the cipher refuses the key: %s", gcry_strerror(e));
	return QCOW_OK;
}

static enum qcow_status open_essiv(struct qk_cipher *c, const uint8_t *key, struct qcow_error *err)
{
	uint8_t digest[QK_HASH_BYTES];
	struct qk_span parts[] = {{key, c->spec.key_bytes}};
	size_t n = qk_hash_bytes(c->spec.ivhash);
	enum qcow_status status = qk_hash(c->spec.ivhash, parts, COUNT(parts), digest, err);

	if (status == QCOW_OK)
		status = open_context(find_key_size(c->spec.alg, n)->gcrypt_id,
			GCRY_CIPHER_MODE_ECB, (struct qk_span){digest, n}, &c->essiv, err);
	explicit_bzero(digest, sizeof(digest));
	return status;
}

enum qcow_status qk_cipher_new(const struct qk_cipher_spec *spec, const uint8_t *key,
	struct qk_cipher **out, struct qcow_error *err)
{
	QK_TRY(qk_crypto_ready(err));
	QK_TRY(qk_cipher_check(spec, err));
	struct qk_cipher *c = qk_calloc(1, sizeof(*c));
	if (c == NULL)
		return QK_FAIL_NOMEM(err);
	const struct key_size *size = data_key_size(spec);
	c->spec = *spec;
	c->block_bytes = size->block_bytes;
	enum qcow_status status = open_context(size->gcrypt_id, gcrypt_mode(spec->mode),
		(struct qk_span){key, spec->key_bytes}, &c->data, err);
	if (status == QCOW_OK && spec->ivgen == QK_IV_ESSIV)
		status = open_essiv(c, key, err);
	if (status != QCOW_OK) {
		qk_cipher_free(c);
		return status;
	}
	*out = c;
	return QCOW_OK;
}

void qk_cipher_free(struct qk_cipher *cipher)
{
	if (cipher == NULL)
		return;
	gcry_cipher_close(cipher->data);
	gcry_cipher_close(cipher->essiv);
	free(cipher);
}

/* ---- sectors ---- */

static gcry_error_t set_vector(struct qk_cipher *c, uint64_t sector)
{
	uint8_t iv[MAX_BLOCK_BYTES] = {0};
	uint64_t number = c->spec.ivgen == QK_IV_PLAIN ? (uint32_t)sector : sector;

	if (c->spec.mode == QK_MODE_ECB)
		return 0;
	memcpy(iv, &number, sizeof(number)); /* little endian, as the host */
	if (c->essiv != NULL) {
		gcry_error_t e = gcry_cipher_encrypt(c->essiv, iv, c->block_bytes, NULL, 0);
		if (e != 0)
			return e;
	}
	if (c->spec.mode == QK_MODE_CTR)
		return gcry_cipher_setctr(c->data, iv, c->block_bytes);
	return gcry_cipher_setiv(c->data, iv, c->block_bytes);
}

static enum qcow_status crypt_sectors(struct qk_cipher *c, struct qk_span in, uint64_t sector,
	bool is_encrypting, struct qcow_error *err)
{
	QK_ASSERT(K1, in.n % QK_CRYPT_SECTOR == 0);
	uint8_t *at = (uint8_t *)in.p;
	for (size_t left = in.n; left != 0; left -= QK_CRYPT_SECTOR) {
		gcry_error_t e = set_vector(c, sector++);
		if (e == 0 && is_encrypting)
			e = gcry_cipher_encrypt(c->data, at, QK_CRYPT_SECTOR, NULL, 0);
		else if (e == 0)
			e = gcry_cipher_decrypt(c->data, at, QK_CRYPT_SECTOR, NULL, 0);
		if (e != 0)
			return QK_FAIL(err, QCOW_E_BUG, "the cipher failed: %s", gcry_strerror(e));
		at += QK_CRYPT_SECTOR;
	}
	return QCOW_OK;
}

enum qcow_status qk_cipher_encrypt(
	struct qk_cipher *cipher, uint8_t *buf, size_t len, uint64_t sector, struct qcow_error *err)
{
	return crypt_sectors(cipher, (struct qk_span){buf, len}, sector, true, err);
}

enum qcow_status qk_cipher_decrypt(
	struct qk_cipher *cipher, uint8_t *buf, size_t len, uint64_t sector, struct qcow_error *err)
{
	return crypt_sectors(cipher, (struct qk_span){buf, len}, sector, false, err);
}
