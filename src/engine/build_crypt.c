/* SPDX-License-Identifier: MIT */
/*
 * build_crypt: the encryption of a new image: which options go together, a fresh key, the LUKS header with
 * the caller's passphrase in slot 0, and guest data on its way to the store.
 *
 * The key and all salts are the kernel's random bytes. Clusters that the caller never fills are no zeros
 * once decrypted: where they must read as zeros, build_data says so in their entries.
 */
#include "engine/build.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/mem.h"
#include "crypto/aes_legacy.h"
#include "crypto/secmem.h"
#include "engine/crypt.h"

#define DEFAULT_ITER_TIME_MS 2000U
#define DIGEST_SHARE	     8U /* of the time: a wrong passphrase costs both */
#define ZERO_BYTES	     QK_KIB(64)

/* ---- options ---- */

static const char *or_default(const char *text, const char *fallback)
{
	return text != NULL ? text : fallback;
}

static enum qcow_status refuse_name(const char *what, const char *name, struct qcow_error *err)
{
	return QK_FAIL(err, QCOW_E_UNSUPPORTED, "the %s '%s' is not known", what, name);
}

/* "aes-256" in its two parts. */
static bool parse_cipher(const char *text, struct qk_cipher_spec *spec, unsigned *key_bits)
{
	static const struct {
		const char *name;
		enum qk_cipher_alg alg;
		unsigned bits;
	} known[] = {
		{"aes-128", QK_CIPHER_AES, 128},
		{"aes-192", QK_CIPHER_AES, 192},
		{"aes-256", QK_CIPHER_AES, 256},
		{"cast5-128", QK_CIPHER_CAST5, 128},
		{"serpent-128", QK_CIPHER_SERPENT, 128},
		{"serpent-192", QK_CIPHER_SERPENT, 192},
		{"serpent-256", QK_CIPHER_SERPENT, 256},
		{"sm4", QK_CIPHER_SM4, 128},
		{"twofish-128", QK_CIPHER_TWOFISH, 128},
		{"twofish-192", QK_CIPHER_TWOFISH, 192},
		{"twofish-256", QK_CIPHER_TWOFISH, 256},
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (strcmp(known[i].name, text) != 0)
			continue;
		spec->alg = known[i].alg;
		*key_bits = known[i].bits;
		return true;
	}
	return false;
}

static enum qcow_status parse_ivgen(
	const struct qcow_create_options *o, struct qk_luks *luks, struct qcow_error *err)
{
	const char *ivgen = or_default(o->luks_ivgen, "plain64");

	luks->spec.ivgen = qk_ivgen_find(ivgen);
	if (luks->spec.ivgen == QK_IV_NONE)
		return refuse_name("IV generator", ivgen, err);
	if (luks->spec.ivgen != QK_IV_ESSIV)
		return QCOW_OK; /* a hash is allowed and without meaning, as in QEMU */
	const char *hash = or_default(o->luks_ivgen_hash, "sha256");
	luks->spec.ivhash = qk_hash_find(hash);
	return luks->spec.ivhash != 0 ? QCOW_OK : refuse_name("IV hash", hash, err);
}

/* Names to a layout. */
static enum qcow_status parse_luks(
	const struct qcow_create_options *o, struct qk_luks *luks, struct qcow_error *err)
{
	const char *cipher = or_default(o->luks_cipher, "aes-256");
	const char *mode = or_default(o->luks_mode, "xts");
	const char *hash = or_default(o->luks_hash, "sha256");
	unsigned key_bits = 0;

	*luks = (struct qk_luks){.hash = qk_hash_find(hash)};
	if (luks->hash == 0)
		return refuse_name("hash", hash, err);
	if (!parse_cipher(cipher, &luks->spec, &key_bits))
		return refuse_name("cipher", cipher, err);
	luks->spec.mode = qk_cipher_mode_find(mode);
	if (luks->spec.mode == 0)
		return refuse_name("cipher mode", mode, err);
	QK_TRY(parse_ivgen(o, luks, err));
	luks->spec.key_bytes = qk_cipher_key_bytes(&luks->spec, key_bits);
	QK_TRY(qk_luks_layout(luks, err));
	/* QEMU aborts on slots that end within a sector */
	if (luks->spec.key_bytes * QK_LUKS_STRIPES % QK_CRYPT_SECTOR != 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"the cipher '%s' in mode '%s' is not written: its key slots are no whole "
			"sectors, which other readers do not take",
			cipher, mode);
	return QCOW_OK;
}

static bool names_luks_options(const struct qcow_create_options *o)
{
	return o->luks_cipher != NULL || o->luks_mode != NULL || o->luks_ivgen != NULL ||
	       o->luks_ivgen_hash != NULL || o->luks_hash != NULL || o->luks_iter_time_ms != 0;
}

enum qcow_status qk_build_crypt_validate(
	const struct qcow_create_options *o, struct qcow_error *err)
{
	struct qk_luks luks;

	if (o->encryption == QCOW_ENCRYPTION_NONE)
		return !names_luks_options(o) && o->secret.data == NULL
			       ? QCOW_OK
			       : QK_FAIL(err, QCOW_E_INVAL,
					 "options of an encryption are given and no encryption");
	if (o->encryption != QCOW_ENCRYPTION_AES && o->encryption != QCOW_ENCRYPTION_LUKS)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "encryption method %u is not known",
			(unsigned)o->encryption);
	if (o->secret.data == NULL)
		return QK_FAIL(err, QCOW_E_KEY, "an encrypted image needs a passphrase");
	if (o->data_file_raw || o->keep_data_file)
		return QK_FAIL(err, QCOW_E_INVAL,
			"data_file_raw and encryption cannot be used at the same time: the data "
			"file "
			"would not hold the disk");
	if (o->encryption == QCOW_ENCRYPTION_LUKS)
		return parse_luks(o, &luks, err);
	if (names_luks_options(o))
		return QK_FAIL(err, QCOW_E_INVAL,
			"ciphers, hashes and times are options of LUKS: the old AES has none");
	return QCOW_OK;
}

enum qcow_status qk_build_crypt_bytes(
	const struct qcow_create_options *o, uint64_t *bytes, struct qcow_error *err)
{
	struct qk_luks luks;

	QK_TRY(parse_luks(o, &luks, err));
	*bytes = luks.payload_off;
	return QCOW_OK;
}

/* ---- keys ---- */

enum qcow_status qk_build_crypt_random(void *buf, size_t n, struct qcow_error *err)
{
	uint8_t *at = buf;

	while (n != 0) {
		ssize_t got = getrandom(at, n, 0);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return QK_FAIL_OS(err, errno, "no random bytes for a key");
		at += got;
		n -= (size_t)got;
	}
	return QCOW_OK;
}

enum qcow_status qk_build_crypt_iterations(const struct qk_luks *luks, size_t key_bytes,
	uint64_t ms, uint32_t *out, struct qcow_error *err)
{
	uint64_t per_sec = 0;

	if (ms == QCOW_LUKS_ITER_LEAST) {
		*out = QK_LUKS_MIN_ITERATIONS;
		return QCOW_OK;
	}
	QK_TRY(qk_kdf_speed(luks->hash, key_bytes, &per_sec, err));
	uint64_t n = per_sec * ms / 1000;
	*out = (uint32_t)qk_min(qk_max(n, QK_LUKS_MIN_ITERATIONS), QK_LUKS_MAX_ITERATIONS);
	return QCOW_OK;
}

static enum qcow_status set_random_parts(struct qk_luks *luks, struct qcow_error *err)
{
	uint8_t id[16];

	QK_TRY(qk_build_crypt_random(luks->salt, sizeof(luks->salt), err));
	QK_TRY(qk_build_crypt_random(luks->slots[0].salt, sizeof(luks->slots[0].salt), err));
	QK_TRY(qk_build_crypt_random(id, sizeof(id), err));
	id[6] = (uint8_t)((id[6] & 0x0f) | 0x40); /* RFC 4122, version 4 */
	id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
	char *at = luks->uuid;
	for (size_t i = 0; i < sizeof(id); i++) {
		const char *dash = i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "";
		int n = snprintf(at, 4, "%s%02x", dash, id[i]);
		at += n > 0 ? n : 0;
	}
	return QCOW_OK;
}

/* Header and slot 0 into the store, the other slots as zeros. A LUKS file gets its header last. */
static enum qcow_status write_area(
	struct qcow_builder *b, uint8_t *area, uint64_t n, struct qcow_error *err)
{
	if (b->is_luks) {
		memcpy(b->luks_header, area, sizeof(b->luks_header));
		memset(area, 0, sizeof(b->luks_header));
	}
	QK_TRY(qcow_store_write(b->store, area, n, b->crypto_off, err));
	if (b->zeroed || n == b->crypto_bytes)
		return QCOW_OK;
	return qcow_store_zero(b->store, b->crypto_off + n, b->crypto_bytes - n, 0, err);
}

/* Header and slot 0 for `key`, into the store. */
static enum qcow_status write_luks(
	struct qcow_builder *b, struct qk_luks *luks, const uint8_t *key, struct qcow_error *err)
{
	const struct qk_cancel cancel = {b->options.progress.cancelled, b->options.progress.ctx};
	uint64_t ms = b->options.luks_iter_time_ms != 0 ? b->options.luks_iter_time_ms
							: DEFAULT_ITER_TIME_MS;
	uint64_t digest_ms = ms == QCOW_LUKS_ITER_LEAST ? ms : ms / DIGEST_SHARE;
	uint64_t n = luks->slots[0].key_off + qk_luks_material_bytes(luks, 0);
	uint8_t *area QK_AUTO_FREE = qk_calloc(1, n);

	if (area == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(set_random_parts(luks, err));
	QK_TRY(qk_build_crypt_iterations(
		luks, luks->spec.key_bytes, ms, &luks->slots[0].iterations, err));
	QK_TRY(qk_build_crypt_iterations(
		luks, QK_LUKS_DIGEST_BYTES, digest_ms, &luks->iterations, err));
	QK_TRY(qk_luks_set_digest(luks, key, &cancel, err));
	const struct qk_luks_slot_request seal = {.luks = luks,
		.material = area + luks->slots[0].key_off,
		.passphrase = {b->options.secret.data, b->options.secret.len},
		.cancel = cancel};
	QK_TRY(qk_build_crypt_random(seal.material, qk_luks_material_bytes(luks, 0), err));
	QK_TRY(qk_luks_seal(&seal, key, err));
	qk_luks_encode(luks, area);
	return write_area(b, area, n, err);
}

/* Where the header goes: clusters of its own, or the start of the file. */
static enum qcow_status place_header(
	struct qcow_builder *b, struct qk_luks *luks, struct qcow_error *err)
{
	qk_hoff off = {0};

	b->crypto_bytes = luks->payload_off;
	if (!b->is_luks)
		QK_TRY(qk_build_refs_take(
			&b->refs, qk_div_up(b->crypto_bytes, b->g.cluster_size), &off, err));
	b->crypto_off = off.v;
	if (b->options.luks_detached_header)
		luks->payload_off = 0;
	b->payload_off = luks->payload_off;
	return QCOW_OK;
}

/* The key of a LUKS file that is there. */
static enum qcow_status keep_luks(struct qcow_builder *b, struct qcow_error *err)
{
	struct qk_luks luks;
	struct qk_crypt_luks_request rq = {.store = b->store,
		.passphrase = {b->options.secret.data, b->options.secret.len},
		.cancel = {b->options.progress.cancelled, b->options.progress.ctx},
		.by_guest = true,
		.detached = b->options.luks_detached_header};

	QK_TRY(qcow_store_size(b->store, &rq.len, err));
	QK_TRY(qk_crypt_luks_header(&rq, &luks, err));
	b->payload_off = luks.payload_off;
	return qk_crypt_luks_unlock(&rq, &luks, &b->crypt, err);
}

static enum qcow_status init_luks(struct qcow_builder *b, struct qcow_error *err)
{
	struct qk_luks luks;

	if (b->options.luks_keep)
		return keep_luks(b, err);
	QK_TRY(parse_luks(&b->options, &luks, err));
	QK_TRY(place_header(b, &luks, err));
	uint8_t *key = qk_secmem_new(QK_CIPHER_KEY_BYTES);
	if (key == NULL)
		return QK_FAIL_NOMEM(err);
	enum qcow_status status = qk_build_crypt_random(key, luks.spec.key_bytes, err);
	if (status == QCOW_OK)
		status = write_luks(b, &luks, key, err);
	if (status == QCOW_OK)
		status = qk_crypt_new(&luks.spec, key, b->is_luks, &b->crypt, err);
	qk_secmem_free(key, QK_CIPHER_KEY_BYTES);
	return status;
}

enum qcow_status qk_build_crypt_init(struct qcow_builder *b, struct qcow_error *err)
{
	uint8_t key[QK_AES_LEGACY_KEY_BYTES];
	struct qk_cipher_spec spec;
	const struct qk_span passphrase = {b->options.secret.data, b->options.secret.len};

	if (b->options.encryption == QCOW_ENCRYPTION_NONE)
		return QCOW_OK;
	if (b->options.encryption == QCOW_ENCRYPTION_LUKS)
		return init_luks(b, err);
	qk_aes_legacy(passphrase, &spec, key);
	enum qcow_status status = qk_crypt_new(&spec, key, true, &b->crypt, err);
	explicit_bzero(key, sizeof(key));
	return status;
}

void qk_build_crypt_place(const struct qcow_create_options *o, uint64_t off, uint64_t bytes,
	struct qk_header *h, struct qk_extensions *ext)
{
	h->crypt_method = (uint32_t)o->encryption;
	if (o->encryption != QCOW_ENCRYPTION_LUKS)
		return;
	ext->has_crypto = true;
	ext->crypto_off = off;
	ext->crypto_len = bytes;
}

/* ---- data ---- */

enum qcow_status qk_build_crypt_write(struct qcow_builder *b, qk_goff off, qk_hoff host,
	struct qk_span data, struct qcow_error *err)
{
	const struct qk_crypt_place at = {b->g.data_file ? b->data_store : b->store, host, off};

	if (b->crypt == NULL)
		return qcow_store_write(at.store, data.p, data.n, host.v, err);
	if (((off.v | host.v) & (QK_CRYPT_SECTOR - 1)) != 0)
		return QK_FAIL(err, QCOW_E_INVAL,
			"encrypted data at guest offset %" PRIu64 " and host offset %" PRIu64
			" does not begin with a sector",
			off.v, host.v);
	return qk_crypt_write(b->crypt, &at, data.p, data.n, err);
}

enum qcow_status qk_build_crypt_zeros(
	struct qcow_builder *b, qk_goff off, qk_hoff host, uint64_t len, struct qcow_error *err)
{
	static const uint8_t zeros[ZERO_BYTES];

	while (len != 0) {
		const struct qk_span part = {zeros, (size_t)qk_min(len, sizeof(zeros))};
		QK_TRY(qk_build_crypt_write(b, off, host, part, err));
		off.v += part.n;
		host.v += part.n;
		len -= part.n;
	}
	return QCOW_OK;
}
