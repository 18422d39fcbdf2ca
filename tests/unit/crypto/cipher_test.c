/* SPDX-License-Identifier: MIT */
/*
 * Sectors against what OpenSSL makes of the same key, text and sector numbers (computed with the initial
 * vectors spelt out by hand), and against the first XTS vector of IEEE 1619.
 */
#include <gcrypt.h>
#include <stdlib.h>

#include "cm.h"
#include "crypto/aes_legacy.h"
#include "crypto/cipher.h"

#define TEXT_BYTES   1024U
#define FIRST_SECTOR UINT64_C(0x100000005) /* plain and plain64 differ */

struct vector {
	struct qk_cipher_spec spec;
	uint8_t start[16]; /* of the ciphertext */
	const char *sha256; /* of all of it, first 16 digits */
};

#define SPEC(a, m, i, n)                                                                        \
	{                                                                                       \
		.alg = QK_CIPHER_##a, .mode = QK_MODE_##m, .ivgen = QK_IV_##i, .key_bytes = (n) \
	}
#define SPEC_ESSIV(a, m, h, n)                                                   \
	{                                                                        \
		.alg = QK_CIPHER_##a, .mode = QK_MODE_##m, .ivgen = QK_IV_ESSIV, \
		.ivhash = QK_HASH_##h, .key_bytes = (n)                          \
	}

static const struct vector vectors[] = {
	{SPEC(AES, XTS, PLAIN64, 64),
		{0x84, 0xd8, 0xa6, 0xd3, 0xbc, 0x96, 0x22, 0x5c, 0xa4, 0xb6, 0x0d, 0x3a, 0x53, 0x45,
			0x8a, 0x2d},
		"8305afb55534ce4f"},
	{SPEC(AES, XTS, PLAIN, 32),
		{0x8e, 0x1c, 0x86, 0x09, 0x72, 0x7c, 0xd0, 0x8f, 0x22, 0xa6, 0xc2, 0x39, 0xa1, 0x48,
			0x2b, 0x6a},
		"fec60746b5d9e71c"},
	{SPEC(AES, CBC, PLAIN64, 24),
		{0xf4, 0x97, 0xc5, 0xc1, 0xb8, 0xb6, 0x6a, 0x57, 0xe8, 0x25, 0x8d, 0xd4, 0x79, 0xa3,
			0xe1, 0x30},
		"b35c4f488131a4d4"},
	{SPEC_ESSIV(AES, CBC, SHA256, 32),
		{0x82, 0xd2, 0xfb, 0xfa, 0x22, 0x08, 0x09, 0x4f, 0x19, 0xa1, 0x87, 0x83, 0x0c, 0x82,
			0xce, 0xd3},
		"4442ae4730d7c823"},
	{SPEC_ESSIV(AES, CBC, MD5, 16),
		{0x86, 0x69, 0x7e, 0xd9, 0x69, 0x40, 0x72, 0x5f, 0xfe, 0x4d, 0x85, 0xb2, 0x66, 0x4f,
			0x33, 0x2e},
		"f209d29d8b5ef212"},
	{SPEC(AES, CTR, PLAIN64, 16),
		{0x0a, 0x1b, 0xa0, 0xee, 0x5c, 0x97, 0x88, 0xd9, 0x77, 0xa7, 0x46, 0xf6, 0x1f, 0x2f,
			0x98, 0xd6},
		"cf998b7d707278cf"},
	{SPEC(AES, ECB, NONE, 32),
		{0x92, 0x16, 0xc7, 0x7b, 0x29, 0xb5, 0x15, 0xe6, 0x14, 0xf7, 0x5e, 0x18, 0x6b, 0x39,
			0x9d, 0x4a},
		"939a7ab9084e0cea"},
	{SPEC(CAST5, CBC, PLAIN64, 16),
		{0x31, 0x42, 0xf2, 0xf2, 0x41, 0x19, 0x9d, 0xc5, 0xba, 0xc7, 0xb6, 0x19, 0x66, 0x2b,
			0xfb, 0x40},
		"e62fffbc47a55122"},
	{SPEC(SM4, CBC, PLAIN64, 16),
		{0x39, 0x35, 0x28, 0xdb, 0xaf, 0x91, 0x26, 0x9d, 0xf0, 0xb3, 0x00, 0xd4, 0x85, 0x4c,
			0x12, 0x15},
		"96420b93e3570453"},
};
#define N_VECTORS (sizeof(vectors) / sizeof(vectors[0]))

static void fill(uint8_t *text, uint8_t *key)
{
	for (size_t i = 0; i < TEXT_BYTES; i++)
		text[i] = (uint8_t)(i * 3 + i / 256);
	for (size_t i = 0; i < QK_CIPHER_KEY_BYTES; i++)
		key[i] = (uint8_t)i;
}

static void assert_digest(const uint8_t *text, const char *digits)
{
	uint8_t digest[32];
	char hex[2 * sizeof(digest) + 1];
	gcry_md_hash_buffer(GCRY_MD_SHA256, digest, text, TEXT_BYTES);
	for (size_t i = 0; i < sizeof(digest); i++)
		(void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	assert_memory_equal(hex, digits, strlen(digits));
}

static void ciphers_match_openssl(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_VECTORS; i++) {
		uint8_t text[TEXT_BYTES], plain[TEXT_BYTES], key[QK_CIPHER_KEY_BYTES];
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qk_cipher *c = NULL;
		fill(text, key);
		memcpy(plain, text, sizeof(text));
		assert_ok(qk_cipher_new(&vectors[i].spec, key, &c, &err), err);
		assert_ok(qk_cipher_encrypt(c, text, TEXT_BYTES, FIRST_SECTOR, &err), err);
		assert_memory_equal(text, vectors[i].start, sizeof(vectors[i].start));
		assert_digest(text, vectors[i].sha256);
		/* sectors do not depend on each other */
		assert_ok(qk_cipher_decrypt(c, text + 512, 512, FIRST_SECTOR + 1, &err), err);
		assert_ok(qk_cipher_decrypt(c, text, 512, FIRST_SECTOR, &err), err);
		assert_memory_equal(text, plain, sizeof(text));
		qk_cipher_free(c);
	}
}

/* IEEE 1619-2007, vector 1: 32 bytes of zeros under two zero keys, sector 0. Our sectors are 512 bytes long,
 * and XTS blocks do not depend on later ones. */
static void xts_matches_ieee_1619(void **state)
{
	static const uint8_t want[32] = {0x91, 0x7c, 0xf6, 0x9e, 0xbd, 0x68, 0xb2, 0xec, 0x9b, 0x9f,
		0xe9, 0xa3, 0xea, 0xdd, 0xa6, 0x92, 0xcd, 0x43, 0xd2, 0xf5, 0x95, 0x98, 0xed, 0x85,
		0x8c, 0x02, 0xc2, 0x65, 0x2f, 0xbf, 0x92, 0x2e};
	const struct qk_cipher_spec spec = SPEC(AES, XTS, PLAIN64, 32);
	uint8_t text[512] = {0}, key[32] = {0};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_cipher *c = NULL;
	(void)state;
	assert_ok(qk_cipher_new(&spec, key, &c, &err), err);
	assert_ok(qk_cipher_encrypt(c, text, sizeof(text), 0, &err), err);
	assert_memory_equal(text, want, sizeof(want));
	qk_cipher_free(c);
}

static void what_does_not_go_together_is_refused(void **state)
{
	static const struct {
		struct qk_cipher_spec spec;
		const char *words;
	} bad[] = {
		{SPEC(CAST5, XTS, PLAIN64, 32), "16-byte blocks"},
		{SPEC(AES, CBC, PLAIN64, 20), "no keys of 20 bytes"},
		{SPEC(AES, XTS, PLAIN64, 33), "no keys of 33 bytes"},
		{SPEC(AES, XTS, PLAIN64, 16), "no keys of 16 bytes"},
		{SPEC(TWOFISH, CBC, PLAIN64, 24), "twofish with keys of 192 bits is not built in"},
		{SPEC(TWOFISH, XTS, PLAIN64, 48), "twofish with keys of 192 bits is not built in"},
		{SPEC(TWOFISH, XTS, PLAIN64, 24), "no keys of 24 bytes"},
		{SPEC(AES, CBC, NONE, 32), "needs a generator"},
		{SPEC_ESSIV(AES, CBC, SHA1, 16), "needs keys of 20 bytes"},
		{SPEC_ESSIV(CAST5, CBC, SHA256, 16), "needs keys of 32 bytes"},
		{{.mode = QK_MODE_CBC, .ivgen = QK_IV_PLAIN, .key_bytes = 16}, "not known"},
	};
	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		assert_status(qk_cipher_check(&bad[i].spec, &err), QCOW_E_UNSUPPORTED, err);
		assert_says(err, bad[i].words);
	}
}

static void aes_key_is_the_passphrase_cut_or_padded(void **state)
{
	static const struct {
		const char *passphrase;
		uint8_t key[16];
	} cases[] = {
		{"", {0}},
		{"abc", {'a', 'b', 'c'}},
		{"0123456789abcdef", {'0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b',
					     'c', 'd', 'e', 'f'}},
		{"0123456789abcdefg", {'0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b',
					      'c', 'd', 'e', 'f'}},
	};
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct qk_cipher_spec spec;
		uint8_t key[16];
		const char *p = cases[i].passphrase;
		memset(key, 0xff, sizeof(key));
		qk_aes_legacy((struct qk_span){(const uint8_t *)p, strlen(p)}, &spec, key);
		assert_memory_equal(key, cases[i].key, sizeof(key));
		assert_int_equal(qk_cipher_check(&spec, NULL), QCOW_OK);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ciphers_match_openssl),
		cmocka_unit_test(xts_matches_ieee_1619),
		cmocka_unit_test(what_does_not_go_together_is_refused),
		cmocka_unit_test(aes_key_is_the_passphrase_cut_or_padded),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
