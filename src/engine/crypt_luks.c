/* SPDX-License-Identifier: MIT */
/*
 * crypt_luks: reads a LUKS header and its key slots from a store and opens them with a passphrase.
 * Keys live on pages of their own and are wiped. Writes nothing.
 */
#include "engine/crypt.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "crypto/secmem.h"

enum qcow_status qk_crypt_luks_header(
	const struct qk_crypt_luks_request *rq, struct qk_luks *out, struct qcow_error *err)
{
	uint8_t bytes[QK_LUKS_HEADER_BYTES];

	if (rq->len < sizeof(bytes))
		return QK_FAIL(err, QCOW_E_FORMAT,
			"the encryption header has %" PRIu64 " bytes, LUKS headers have %zu",
			rq->len, sizeof(bytes));
	QK_TRY(qcow_store_read(rq->store, bytes, sizeof(bytes), rq->off, err));
	return qk_luks_decode(
		(struct qk_span){bytes, sizeof(bytes)}, rq->len, rq->detached, out, err);
}

static enum qcow_status try_slot(const struct qk_crypt_luks_request *rq, struct qk_luks *luks,
	unsigned slot, uint8_t *key, bool *found, struct qcow_error *err)
{
	size_t bytes = qk_luks_material_bytes(luks, slot);
	uint8_t *material QK_AUTO_FREE = qk_malloc(1, bytes);
	if (material == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qcow_store_read(
		rq->store, material, bytes, rq->off + luks->slots[slot].key_off, err));
	const struct qk_luks_slot_request unlock = {.luks = luks,
		.slot = slot,
		.material = material,
		.passphrase = rq->passphrase,
		.cancel = rq->cancel,
		.max_iterations = rq->max_iterations != 0 ? rq->max_iterations
							  : QK_LUKS_MAX_ITERATIONS};
	return qk_luks_unlock(&unlock, key, found, err);
}

enum qcow_status qk_crypt_luks_fits(const struct qk_crypt_luks_request *rq, struct qk_luks *luks,
	unsigned slot, bool *fits, struct qcow_error *err)
{
	uint8_t *key = qk_secmem_new(QK_CIPHER_KEY_BYTES);
	if (key == NULL)
		return QK_FAIL_NOMEM(err);
	enum qcow_status status = try_slot(rq, luks, slot, key, fits, err);
	qk_secmem_free(key, QK_CIPHER_KEY_BYTES);
	return status;
}

static enum qcow_status find_key(const struct qk_crypt_luks_request *rq, struct qk_luks *luks,
	uint8_t *key, struct qcow_error *err)
{
	unsigned n_tried = 0;
	bool found = false;

	for (unsigned i = 0; i < QK_LUKS_SLOTS && !found; i++) {
		if (!luks->slots[i].is_active)
			continue;
		QK_TRY(try_slot(rq, luks, i, key, &found, err));
		n_tried++;
	}
	if (found)
		return QCOW_OK;
	if (n_tried == 0)
		return QK_FAIL(err, QCOW_E_KEY,
			"no LUKS key slot is active: nothing can open this image any more");
	return QK_FAIL(err, QCOW_E_KEY,
		"wrong passphrase: it opens none of the %u active LUKS key slots", n_tried);
}

enum qcow_status qk_crypt_luks_unlock(const struct qk_crypt_luks_request *rq,
	const struct qk_luks *luks, struct qk_crypt **out, struct qcow_error *err)
{
	struct qk_luks copy = *luks;
	uint8_t *key = qk_secmem_new(QK_CIPHER_KEY_BYTES);

	if (key == NULL)
		return QK_FAIL_NOMEM(err);
	enum qcow_status status = find_key(rq, &copy, key, err);
	if (status == QCOW_OK)
		status = qk_crypt_new(&luks->spec, key, rq->by_guest, out, err);
	qk_secmem_free(key, QK_CIPHER_KEY_BYTES);
	return status;
}
