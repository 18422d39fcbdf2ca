/* SPDX-License-Identifier: MIT */
/*
 * PBKDF2 against RFC 6070, RFC 7914 and OpenSSL; the splitter against a model written apart from it, in
 * another language, from the specification.
 */
#include "cm.h"
#include "crypto/kdf.h"

#define SPAN(text)                                        \
	{                                                 \
		(const uint8_t *)(text), sizeof(text) - 1 \
	}

static void from_hex(const char *hex, uint8_t *out, size_t n)
{
	assert_int_equal(strlen(hex), 2 * n);
	for (size_t i = 0; i < n; i++) {
		unsigned v = 0;
		assert_int_equal(sscanf(hex + 2 * i, "%2x", &v), 1);
		out[i] = (uint8_t)v;
	}
}

static void pbkdf2_matches_published_vectors(void **state)
{
	static const struct {
		enum qk_hash hash;
		struct qk_span password, salt;
		uint32_t iterations;
		size_t n;
		const char *key;
	} cases[] = {
		{QK_HASH_SHA1, SPAN("password"), SPAN("salt"), 1, 20,
			"0c60c80f961f0e71f3a9b524af6012062fe037a6"},
		{QK_HASH_SHA1, SPAN("password"), SPAN("salt"), 4096, 20,
			"4b007901b765489abead49d926f721d065a429c1"},
		{QK_HASH_SHA1, SPAN("passwordPASSWORDpassword"),
			SPAN("saltSALTsaltSALTsaltSALTsaltSALTsalt"), 4096, 25,
			"3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038"},
		{QK_HASH_SHA1, SPAN("pass\0word"), SPAN("sa\0lt"), 4096, 16,
			"56fa6aa75548099dcc37d7f03425e0c3"},
		{QK_HASH_SHA256, SPAN("passwd"), SPAN("salt"), 1, 64,
			"55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
			"49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783"},
		{QK_HASH_SHA512, SPAN(""), SPAN("salt"), 3, 70,
			"35728858479af699c1690e989eba0d104c6c9d7ff67373a48e4f87e90cb55af7"
			"71ac93458ee4ba4ac24f1e927bc4aba5bfed6aa82a752ad40403fbfd9575a46c"
			"ac3cb73c1f1e"},
		{QK_HASH_MD5, SPAN("pass\0word"), SPAN("sa\0lt"), 4096, 16,
			"9d35f8f9b26aa9a8aa39276634c6793a"},
		{QK_HASH_RIPEMD160, SPAN("x"), SPAN("y"), 5000, 20,
			"47ad8e04d2929bb51cf35a89d0deb2858d1e31dc"},
	};
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct qk_kdf_request rq = {.hash = cases[i].hash,
			.iterations = cases[i].iterations,
			.password = cases[i].password,
			.salt = cases[i].salt};
		uint8_t want[80], got[80];
		struct qcow_error err = QCOW_ERROR_INIT;
		from_hex(cases[i].key, want, cases[i].n);
		assert_ok(qk_kdf(&rq, got, cases[i].n, &err), err);
		assert_memory_equal(got, want, cases[i].n);
	}
}

static bool cancel_at(void *ctx)
{
	unsigned *left = ctx;
	return (*left)-- == 0;
}

static void derivation_ends_when_it_is_cancelled(void **state)
{
	for (unsigned after = 0; after < 4; after++) {
		unsigned left = after;
		const struct qk_kdf_request rq = {.hash = QK_HASH_SHA256,
			.iterations = UINT32_MAX, /* an hour */
			.password = SPAN("p"),
			.salt = SPAN("s"),
			.cancel = {cancel_at, &left}};
		uint8_t key[32];
		struct qcow_error err = QCOW_ERROR_INIT;
		assert_status(qk_kdf(&rq, key, sizeof(key), &err), QCOW_E_CANCELLED, err);
	}
	(void)state;
}

static void splitter_matches_the_model(void **state)
{
	static const struct {
		enum qk_hash hash;
		size_t n;
		const char *last; /* stripe */
	} cases[] = {
		{QK_HASH_SHA1, 32,
			"80c6aad1af3f78048553507de7d1364c29356fcbc31acb0879ff48f1bc30414d"},
		{QK_HASH_SHA256, 64,
			"f2d5f0cf8750b09303014961b3d33700cf9a3d12b8a410b9d19e0170fab417bd"
			"50402e3fa571601511beb0f0785245cfd60c3494bf5e037883b6233d71d741c8"},
		{QK_HASH_SHA512, 24, "4ae272fedb7e0dd88526d75b001df406ca4232ad175aa3dd"},
	};
	(void)state;
	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
		uint8_t key[64], split[5 * 64], last[64], merged[64];
		size_t n = cases[c].n;
		for (size_t i = 0; i < n; i++)
			key[i] = (uint8_t)i;
		for (size_t i = 0; i < 4; i++)
			for (size_t j = 0; j < n; j++)
				split[i * n + j] = (uint8_t)(i * 7 + j * 3 + 1);
		assert_int_equal(qk_af_split(cases[c].hash, key, n, split, 5), QCOW_OK);
		from_hex(cases[c].last, last, n);
		assert_memory_equal(split + 4 * n, last, n);
		assert_int_equal(qk_af_merge(cases[c].hash, split, 5, merged, n), QCOW_OK);
		assert_memory_equal(merged, key, n);
		split[n]++;
		assert_int_equal(qk_af_merge(cases[c].hash, split, 5, merged, n), QCOW_OK);
		assert_memory_not_equal(merged, key, n);
	}
}

static void names_and_hashes_belong_together(void **state)
{
	static const struct {
		const char *name;
		size_t n;
	} want[] = {{"md5", 16}, {"sha1", 20}, {"sha224", 28}, {"sha256", 32}, {"sha384", 48},
		{"sha512", 64}, {"ripemd160", 20}, {"sm3", 32}};
	(void)state;
	for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		enum qk_hash hash = qk_hash_find(want[i].name);
		assert_string_equal(qk_hash_name(hash), want[i].name);
		assert_int_equal(qk_hash_bytes(hash), want[i].n);
		uint64_t speed = 0;
		assert_int_equal(qk_kdf_speed(hash, 64, &speed, NULL), QCOW_OK);
		assert_true(speed > 1000);
	}
	assert_int_equal(qk_hash_find("sha257"), 0);
	assert_int_equal(qk_hash_find(""), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pbkdf2_matches_published_vectors),
		cmocka_unit_test(derivation_ends_when_it_is_cancelled),
		cmocka_unit_test(splitter_matches_the_model),
		cmocka_unit_test(names_and_hashes_belong_together),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
