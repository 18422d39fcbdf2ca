/* SPDX-License-Identifier: MIT */
/*
 * aes_legacy: see aes_legacy.h. Owns nothing.
 */
#include "crypto/aes_legacy.h"

#include <string.h>

#include "base/num.h"

void qk_aes_legacy(struct qk_span passphrase, struct qk_cipher_spec *spec, uint8_t *key)
{
	*spec = (struct qk_cipher_spec){.alg = QK_CIPHER_AES,
		.mode = QK_MODE_CBC,
		.ivgen = QK_IV_PLAIN64,
		.key_bytes = QK_AES_LEGACY_KEY_BYTES};
	memset(key, 0, QK_AES_LEGACY_KEY_BYTES);
	if (passphrase.n != 0)
		memcpy(key, passphrase.p, qk_min(passphrase.n, QK_AES_LEGACY_KEY_BYTES));
}
