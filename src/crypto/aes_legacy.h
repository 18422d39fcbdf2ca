/* SPDX-License-Identifier: MIT */
/*
 * aes_legacy: the encryption of crypt_method 1: AES-128 in CBC with the guest's sector number as vector.
 * Weak by design (the key is the passphrase itself); read and written for those who have such images.
 * Specification: "Data encryption".
 */
#ifndef QK_CRYPTO_AES_LEGACY_H
#define QK_CRYPTO_AES_LEGACY_H

#include "crypto/cipher.h"

#define QK_AES_LEGACY_KEY_BYTES 16U

/* The cipher, and the key: the passphrase's first 16 bytes, zeros where it is shorter. */
void qk_aes_legacy(struct qk_span passphrase, struct qk_cipher_spec *spec, uint8_t *key);

#endif
