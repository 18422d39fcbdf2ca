/* SPDX-License-Identifier: MIT */
/*
 * The LUKS1 header: field by field at the offsets of the specification, hostile values, and slots. That
 * QEMU and cryptsetup open what we write, and we what they write, is tested by tests/cli/encrypt.sh.
 */
#include <stdlib.h>

#include "cm.h"
#include "crypto/luks1.h"

#define AREA_BYTES UINT64_C(2068480)

/* Offsets of the specification. */
enum {
	OFF_VERSION = 6,
	OFF_CIPHER = 8,
	OFF_MODE = 40,
	OFF_HASH = 72,
	OFF_PAYLOAD = 104,
	OFF_KEY_BYTES = 108,
	OFF_ITERATIONS = 164,
	OFF_UUID = 168,
	OFF_SLOT0 = 208,
	SLOT_ITERATIONS = 4,
	SLOT_KEY_OFF = 40,
	SLOT_STRIPES = 44
};

static void put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* A header as QEMU lays it out, by hand: aes-256-xts-plain64, slot 0 active. */
static void make_header(uint8_t *b)
{
	static const uint8_t magic[8] = {'L', 'U', 'K', 'S', 0xba, 0xbe, 0, 1};
	memset(b, 0, QK_LUKS_HEADER_BYTES);
	memcpy(b, magic, sizeof(magic));
	memcpy(b + OFF_CIPHER, "aes", 3);
	memcpy(b + OFF_MODE, "xts-plain64", 11);
	memcpy(b + OFF_HASH, "sha256", 6);
	put32(b + OFF_PAYLOAD, 4040);
	put32(b + OFF_KEY_BYTES, 64);
	put32(b + OFF_ITERATIONS, 55075);
	memcpy(b + OFF_UUID, "b24c943b-303e-421d-808a-dabeb00cbe35", 36);
	for (uint32_t i = 0; i < QK_LUKS_SLOTS; i++) {
		uint8_t *slot = b + OFF_SLOT0 + 48 * i;
		put32(slot, i == 0 ? 0x00ac71f3 : 0xdead);
		put32(slot + SLOT_ITERATIONS, i == 0 ? 216719 : 0);
		put32(slot + SLOT_KEY_OFF, 8 + 504 * i);
		put32(slot + SLOT_STRIPES, 4000);
	}
}

static enum qcow_status decode(
	const uint8_t *b, size_t n, struct qk_luks *out, struct qcow_error *err)
{
	return qk_luks_decode((struct qk_span){b, n}, AREA_BYTES, false, out, err);
}

static void header_is_decoded_and_encoded_again(void **state)
{
	uint8_t b[QK_LUKS_HEADER_BYTES], again[QK_LUKS_HEADER_BYTES];
	struct qk_luks luks;
	struct qcow_error err = QCOW_ERROR_INIT;
	(void)state;
	make_header(b);
	assert_ok(decode(b, sizeof(b), &luks, &err), err);
	assert_int_equal(luks.spec.alg, QK_CIPHER_AES);
	assert_int_equal(luks.spec.mode, QK_MODE_XTS);
	assert_int_equal(luks.spec.ivgen, QK_IV_PLAIN64);
	assert_int_equal(luks.spec.key_bytes, 64);
	assert_int_equal(luks.hash, QK_HASH_SHA256);
	assert_int_equal(luks.payload_off, AREA_BYTES);
	assert_int_equal(luks.iterations, 55075);
	assert_string_equal(luks.uuid, "b24c943b-303e-421d-808a-dabeb00cbe35");
	assert_true(luks.slots[0].is_active);
	assert_false(luks.slots[7].is_active);
	assert_int_equal(luks.slots[0].iterations, 216719);
	assert_int_equal(luks.slots[7].key_off, 1810432);
	qk_luks_encode(&luks, again);
	assert_memory_equal(again, b, sizeof(b));
	for (size_t n = 0; n < sizeof(b); n++)
		assert_status(decode(b, n, &luks, &err), QCOW_E_FORMAT, err);
}

static void hostile_fields_are_refused(void **state)
{
	static const struct {
		size_t off;
		uint32_t value;
		enum qcow_status status;
		const char *words;
	} cases[] = {
		{0, 0x4c554b00, QCOW_E_FORMAT, "no LUKS magic"},
		{4, 0xbabe0002, QCOW_E_UNSUPPORTED, "version 2"},
		{4, 0xbabe0000, QCOW_E_UNSUPPORTED, "version 0"},
		{OFF_CIPHER, 0x61657378, QCOW_E_UNSUPPORTED, "cipher 'aesx'"},
		{OFF_CIPHER, 0x61651b00, QCOW_E_FORMAT, "cipher name"},
		{OFF_CIPHER, 0, QCOW_E_UNSUPPORTED, "cipher ''"},
		{OFF_MODE, 0x6c72772d, QCOW_E_UNSUPPORTED, "mode 'lrw'"},
		{OFF_MODE + 4, 0x62656e62, QCOW_E_UNSUPPORTED, "generator 'benbn64'"},
		{OFF_MODE + 8, 0x6e363a34, QCOW_E_UNSUPPORTED, "generator 'plain6'"},
		{OFF_HASH, 0x73686137, QCOW_E_UNSUPPORTED, "hash 'sha756'"},
		{OFF_PAYLOAD, 0, QCOW_E_FORMAT, "detached LUKS header"},
		{OFF_PAYLOAD, 1, QCOW_E_FORMAT, "payload at 512 overlaps"},
		{OFF_PAYLOAD, 7, QCOW_E_FORMAT, "overlaps"},
		{OFF_PAYLOAD, 507, QCOW_E_FORMAT, "key slot 0"},
		{OFF_KEY_BYTES, 0, QCOW_E_FORMAT, "keys have 0 bytes"},
		{OFF_KEY_BYTES, 65, QCOW_E_FORMAT, "keys have 65 bytes"},
		{OFF_KEY_BYTES, UINT32_MAX, QCOW_E_FORMAT, "keys have 4294967295 bytes"},
		{OFF_KEY_BYTES, 16, QCOW_E_UNSUPPORTED, "no keys of 16 bytes"},
		{OFF_ITERATIONS, 0, QCOW_E_FORMAT, "digest has 0 iterations"},
		{OFF_SLOT0, 0, QCOW_E_FORMAT, "slot 0 is in state 0x00000000"},
		{OFF_SLOT0 + SLOT_ITERATIONS, 0, QCOW_E_FORMAT, "slot 0 has 0 iterations"},
		{OFF_SLOT0 + SLOT_KEY_OFF, 0, QCOW_E_FORMAT, "key slot 0 at 0"},
		{OFF_SLOT0 + SLOT_KEY_OFF, 1, QCOW_E_FORMAT, "key slot 0 at 512"},
		{OFF_SLOT0 + SLOT_KEY_OFF, 3541, QCOW_E_FORMAT, "key slot 0 at 1812992"},
		{OFF_SLOT0 + SLOT_KEY_OFF, UINT32_MAX, QCOW_E_FORMAT, "key slot 0 at"},
		{OFF_SLOT0 + SLOT_STRIPES, 0, QCOW_E_FORMAT, "0 stripes"},
		{OFF_SLOT0 + SLOT_STRIPES, 16385, QCOW_E_FORMAT, "16385 stripes"},
		{OFF_SLOT0 + SLOT_STRIPES, UINT32_MAX, QCOW_E_FORMAT, "4294967295 stripes"},
	};
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint8_t b[QK_LUKS_HEADER_BYTES];
		struct qk_luks luks;
		struct qcow_error err = QCOW_ERROR_INIT;
		make_header(b);
		put32(b + cases[i].off, cases[i].value);
		assert_status(decode(b, sizeof(b), &luks, &err), cases[i].status, err);
		assert_says(err, cases[i].words);
	}
}

static void names_that_do_not_end_are_refused(void **state)
{
	static const size_t fields[][2] = {
		{OFF_CIPHER, 32}, {OFF_MODE, 32}, {OFF_HASH, 32}, {OFF_UUID, 40}};
	(void)state;
	for (size_t i = 0; i < 4; i++) {
		uint8_t b[QK_LUKS_HEADER_BYTES];
		struct qk_luks luks;
		struct qcow_error err = QCOW_ERROR_INIT;
		make_header(b);
		memset(b + fields[i][0], 'a', fields[i][1]);
		assert_status(decode(b, sizeof(b), &luks, &err), QCOW_E_FORMAT, err);
		assert_says(err, "not a text that ends");
	}
}

static void area_bounds_the_slots(void **state)
{
	uint8_t b[QK_LUKS_HEADER_BYTES];
	struct qk_luks luks;
	struct qcow_error err = QCOW_ERROR_INIT;
	(void)state;
	make_header(b);
	const struct qk_span span = {b, sizeof(b)};
	assert_ok(qk_luks_decode(span, 4096 + 256000, false, &luks, &err), err);
	assert_status(
		qk_luks_decode(span, 4096 + 256000 - 1, false, &luks, &err), QCOW_E_FORMAT, err);
	assert_status(qk_luks_decode(span, 0, false, &luks, &err), QCOW_E_FORMAT, err);
}

/* ---- slots ---- */

static void seal(struct qk_luks *luks, unsigned slot, const char *passphrase, uint8_t *material,
	const uint8_t *key)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	luks->slots[slot].iterations = 1000;
	memset(luks->slots[slot].salt, (int)slot + 7, QK_LUKS_SALT_BYTES);
	for (size_t i = 0; i < qk_luks_material_bytes(luks, slot); i++)
		material[i] = (uint8_t)(i * 31 + i / 253 + slot);
	const struct qk_luks_slot_request rq = {.luks = luks,
		.slot = slot,
		.material = material,
		.passphrase = {(const uint8_t *)passphrase, strlen(passphrase)}};
	assert_ok(qk_luks_seal(&rq, key, &err), err);
}

static bool opens(struct qk_luks *luks, unsigned slot, const char *passphrase,
	const uint8_t *material, uint8_t *key)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t n = qk_luks_material_bytes(luks, slot);
	uint8_t *copy = malloc(n);
	bool found = false;
	assert_non_null(copy);
	memcpy(copy, material, n);
	const struct qk_luks_slot_request rq = {.luks = luks,
		.slot = slot,
		.material = copy,
		.passphrase = {(const uint8_t *)passphrase, strlen(passphrase)},
		.max_iterations = QK_LUKS_MAX_ITERATIONS};
	assert_ok(qk_luks_unlock(&rq, key, &found, &err), err);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(copy[i], 0); /* wiped */
	free(copy);
	return found;
}

static void slots_open_with_their_passphrase_alone(void **state)
{
	static const struct qk_cipher_spec specs[] = {
		{.alg = QK_CIPHER_AES,
			.mode = QK_MODE_XTS,
			.ivgen = QK_IV_PLAIN64,
			.key_bytes = 64},
		{.alg = QK_CIPHER_SERPENT,
			.mode = QK_MODE_CBC,
			.ivgen = QK_IV_ESSIV,
			.ivhash = QK_HASH_SHA256,
			.key_bytes = 24}, /* material of no whole sectors */
		{.alg = QK_CIPHER_CAST5, .mode = QK_MODE_ECB, .key_bytes = 16},
	};
	(void)state;
	for (size_t s = 0; s < sizeof(specs) / sizeof(specs[0]); s++) {
		struct qk_luks luks = {.spec = specs[s], .hash = QK_HASH_SHA1, .iterations = 1000};
		const struct qk_cancel never = {NULL, NULL};
		uint8_t key[64], got[64], *one = malloc(300000), *two = malloc(300000);
		struct qcow_error err = QCOW_ERROR_INIT;
		assert_non_null(one);
		assert_non_null(two);
		for (size_t i = 0; i < sizeof(key); i++)
			key[i] = (uint8_t)(i * 5);
		assert_ok(qk_luks_layout(&luks, &err), err);
		assert_int_equal(luks.payload_off % 4096, 0);
		assert_ok(qk_luks_set_digest(&luks, key, &never, &err), err);
		seal(&luks, 0, "one", one, key);
		seal(&luks, 5, "two", two, key);
		assert_true(opens(&luks, 0, "one", one, got));
		assert_memory_equal(got, key, specs[s].key_bytes);
		assert_true(opens(&luks, 5, "two", two, got));
		assert_memory_equal(got, key, specs[s].key_bytes);
		assert_false(opens(&luks, 0, "two", one, got));
		assert_false(opens(&luks, 0, "", one, got));
		one[1000] ^= 1; /* the splitter's point: nothing is left */
		assert_false(opens(&luks, 0, "one", one, got));
		free(one);
		free(two);
	}
}

static void iterations_over_the_limit_are_not_worked_off(void **state)
{
	uint8_t b[QK_LUKS_HEADER_BYTES], key[64];
	uint8_t *material = calloc(1, 256000);
	bool found = true;
	(void)state;
	assert_non_null(material);
	for (int i = 0; i < 2; i++) {
		struct qk_luks luks;
		struct qcow_error err = QCOW_ERROR_INIT;
		make_header(b);
		put32(b + (i == 0 ? OFF_SLOT0 + SLOT_ITERATIONS : OFF_ITERATIONS), UINT32_MAX);
		assert_ok(decode(b, sizeof(b), &luks, &err), err);
		const struct qk_luks_slot_request rq = {.luks = &luks,
			.material = material,
			.passphrase = {(const uint8_t *)"x", 1},
			.max_iterations = QK_LUKS_MAX_ITERATIONS};
		assert_status(qk_luks_unlock(&rq, key, &found, &err), QCOW_E_LIMIT, err);
		assert_says(err, "4294967295 iterations");
		assert_false(found);
	}
	free(material);
}

/* The payload's offset says nothing of the slots then: they lie in the header's own file. */
static void detached_headers_put_the_payload_anywhere(void **state)
{
	static const uint32_t sectors[] = {0, 1, 507, 4040, UINT32_MAX};
	(void)state;
	for (size_t i = 0; i < sizeof(sectors) / sizeof(sectors[0]); i++) {
		uint8_t b[QK_LUKS_HEADER_BYTES];
		struct qk_luks luks;
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qk_span span = {b, sizeof(b)};
		make_header(b);
		put32(b + OFF_PAYLOAD, sectors[i]);
		assert_ok(qk_luks_decode(span, AREA_BYTES, true, &luks, &err), err);
		assert_int_equal(luks.payload_off, (uint64_t)sectors[i] * 512);
		assert_status(qk_luks_decode(span, 4096, true, &luks, &err), QCOW_E_FORMAT, err);
		assert_says(err, "key slot 0");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(header_is_decoded_and_encoded_again),
		cmocka_unit_test(hostile_fields_are_refused),
		cmocka_unit_test(detached_headers_put_the_payload_anywhere),
		cmocka_unit_test(names_that_do_not_end_are_refused),
		cmocka_unit_test(area_bounds_the_slots),
		cmocka_unit_test(slots_open_with_their_passphrase_alone),
		cmocka_unit_test(iterations_over_the_limit_are_not_worked_off),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
