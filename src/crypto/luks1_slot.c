/* SPDX-License-Identifier: MIT */
/*
 * luks1_slot: see luks1.h: getting the key of a disk out of a slot, and putting it in.
 *
 *   passphrase --PBKDF2--> slot key --decrypts--> material --merge--> key, right if its digest is
 *
 * Every key and intermediate value is wiped before it is given up.
 */
#include "crypto/luks1.h"

#include <inttypes.h>
#include <string.h>

#include "base/num.h"

static enum qcow_status check_iterations(
	const char *what, uint32_t n, uint32_t max, struct qcow_error *err)
{
	if (n <= max)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_LIMIT,
		"%s wants %" PRIu32 " iterations of the key derivation, over the limit of %" PRIu32,
		what, n, max);
}

/* The cipher of the slot's material: that of the disk, keyed by the passphrase. */
static enum qcow_status open_slot_cipher(
	const struct qk_luks_slot_request *rq, struct qk_cipher **out, struct qcow_error *err)
{
	const struct qk_luks_slot *s = &rq->luks->slots[rq->slot];
	const struct qk_kdf_request kdf = {.hash = rq->luks->hash,
		.iterations = s->iterations,
		.password = rq->passphrase,
		.salt = {s->salt, sizeof(s->salt)},
		.cancel = rq->cancel};
	uint8_t key[QK_CIPHER_KEY_BYTES];
	enum qcow_status status = qk_kdf(&kdf, key, rq->luks->spec.key_bytes, err);

	if (status == QCOW_OK)
		status = qk_cipher_new(&rq->luks->spec, key, out, err);
	explicit_bzero(key, sizeof(key));
	return status;
}

static enum qcow_status make_digest(const struct qk_luks *luks, const uint8_t *key,
	const struct qk_cancel *cancel, uint8_t *out, struct qcow_error *err)
{
	const struct qk_kdf_request kdf = {.hash = luks->hash,
		.iterations = luks->iterations,
		.password = {key, luks->spec.key_bytes},
		.salt = {luks->salt, sizeof(luks->salt)},
		.cancel = *cancel};

	return qk_kdf(&kdf, out, QK_LUKS_DIGEST_BYTES, err);
}

/* In a time that does not depend on where they differ. */
static bool is_equal(const uint8_t *a, const uint8_t *b, size_t n)
{
	uint8_t difference = 0;

	for (size_t i = 0; i < n; i++)
		difference = (uint8_t)(difference | (a[i] ^ b[i]));
	return difference == 0;
}

static enum qcow_status try_slot(
	const struct qk_luks_slot_request *rq, uint8_t *key, bool *found, struct qcow_error *err)
{
	const struct qk_luks *luks = rq->luks;
	uint8_t digest[QK_LUKS_DIGEST_BYTES];
	struct qk_cipher *cipher = NULL;

	QK_TRY(open_slot_cipher(rq, &cipher, err));
	enum qcow_status status = qk_cipher_decrypt(
		cipher, rq->material, qk_luks_material_bytes(luks, rq->slot), 0, err);
	qk_cipher_free(cipher);
	QK_TRY(status);
	status = qk_af_merge(
		luks->hash, rq->material, luks->slots[rq->slot].stripes, key, luks->spec.key_bytes);
	if (status != QCOW_OK)
		return QK_FAIL_NOMEM(err);
	QK_TRY(make_digest(luks, key, &rq->cancel, digest, err));
	*found = is_equal(digest, luks->digest, sizeof(digest));
	explicit_bzero(digest, sizeof(digest));
	return QCOW_OK;
}

enum qcow_status qk_luks_unlock(
	const struct qk_luks_slot_request *rq, uint8_t *key, bool *found, struct qcow_error *err)
{
	const struct qk_luks *luks = rq->luks;

	*found = false;
	QK_ASSERT(K6, rq->slot < QK_LUKS_SLOTS && luks->slots[rq->slot].is_active);
	QK_TRY(check_iterations(
		"a LUKS key slot", luks->slots[rq->slot].iterations, rq->max_iterations, err));
	QK_TRY(check_iterations("the LUKS key digest", luks->iterations, rq->max_iterations, err));
	enum qcow_status status = try_slot(rq, key, found, err);
	explicit_bzero(rq->material, qk_luks_material_bytes(luks, rq->slot));
	if (!*found)
		explicit_bzero(key, luks->spec.key_bytes);
	return status;
}

enum qcow_status qk_luks_set_digest(struct qk_luks *luks, const uint8_t *key,
	const struct qk_cancel *cancel, struct qcow_error *err)
{
	return make_digest(luks, key, cancel, luks->digest, err);
}

enum qcow_status qk_luks_seal(
	const struct qk_luks_slot_request *rq, const uint8_t *key, struct qcow_error *err)
{
	struct qk_luks *luks = rq->luks;
	struct qk_luks_slot *s = &luks->slots[rq->slot];
	struct qk_cipher *cipher = NULL;

	QK_ASSERT(K6, rq->slot < QK_LUKS_SLOTS && s->iterations != 0);
	QK_TRY(open_slot_cipher(rq, &cipher, err));
	enum qcow_status status = qk_af_split(
		luks->hash, key, luks->spec.key_bytes, rq->material, s->stripes);
	if (status != QCOW_OK)
		status = QK_FAIL_NOMEM(err);
	else
		status = qk_cipher_encrypt(
			cipher, rq->material, qk_luks_material_bytes(luks, rq->slot), 0, err);
	qk_cipher_free(cipher);
	s->is_active = status == QCOW_OK;
	if (status != QCOW_OK) /* it may hold the key, split and not yet encrypted */
		explicit_bzero(rq->material, qk_luks_material_bytes(luks, rq->slot));
	return status;
}
