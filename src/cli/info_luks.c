/* SPDX-License-Identifier: MIT */
/*
 * info_luks: what the LUKS1 header of an encrypted image says in clear. Nothing is decrypted, and no
 * value of the header is used for anything but printing it.
 *
 * The header is 592 bytes: magic, version, cipher name (32), cipher mode (32), hash (32), payload offset
 * in sectors, key bytes, digest (20), salt (32), iterations, UUID (40), then 8 key slots of 48 bytes.
 */
#include "cli/info.h"

#include <string.h>

#include "base/bytes.h"

enum {
	LUKS_HEADER_BYTES = 592,
	LUKS_SLOTS = 8,
	LUKS_SECTOR_BYTES = 512,
	LUKS_SLOT_ACTIVE = 0x00ac71f3
};

/* A field of at most `room` bytes that may or may not end with a NUL. */
static json_t *field(struct qk_span s)
{
	return cli_json_stringn(
		(const char *)s.p, s.p != NULL ? strnlen((const char *)s.p, s.n) : 0);
}

/* "aes" and 64 bytes of key in mode xts are aes-256: half of an xts key is for the tweak. */
static json_t *cipher_text(struct qk_span name, struct qk_span mode, uint32_t key_bytes)
{
	char text[64];
	bool xts = mode.n > 3 && memcmp(mode.p, "xts", 3) == 0;
	uint64_t bits = (uint64_t)key_bytes * 8 / (xts ? 2 : 1);
	int n = (int)strnlen((const char *)name.p, name.n);
	(void)snprintf(
		text, sizeof(text), "%.*s-%llu", n, (const char *)name.p, (unsigned long long)bits);
	return cli_json_string(text);
}

/* "xts-plain64", "cbc-essiv:sha256" in its three parts; an empty part has length 0. */
struct mode {
	struct qk_span chain, ivgen, ivhash;
};

static struct mode split_mode(struct qk_span s)
{
	struct mode m = {.chain = {s.p, strnlen((const char *)s.p, s.n)}};
	const uint8_t *dash = memchr(m.chain.p, '-', m.chain.n);
	if (dash == NULL)
		return m;
	m.ivgen = (struct qk_span){dash + 1, m.chain.n - (size_t)(dash + 1 - m.chain.p)};
	m.chain.n = (size_t)(dash - m.chain.p);
	const uint8_t *colon = memchr(m.ivgen.p, ':', m.ivgen.n);
	if (colon == NULL)
		return m;
	m.ivhash = (struct qk_span){colon + 1, m.ivgen.n - (size_t)(colon + 1 - m.ivgen.p)};
	m.ivgen.n = (size_t)(colon - m.ivgen.p);
	return m;
}

static json_t *describe_slot(struct qk_reader *r)
{
	uint32_t state = qk_read32(r), iterations = qk_read32(r);
	qk_read_skip(r, 32);
	uint32_t key_sector = qk_read32(r), stripes = qk_read32(r);
	bool active = state == LUKS_SLOT_ACTIVE;
	json_t *slot = json_object();
	cli_json_set(slot, "active", json_boolean(active));
	if (active)
		cli_json_set(slot, "iters", cli_json_u64(iterations));
	cli_json_set(slot, "key-offset", cli_json_u64((uint64_t)key_sector * LUKS_SECTOR_BYTES));
	if (active)
		cli_json_set(slot, "stripes", cli_json_u64(stripes));
	return slot;
}

/* `inside` another format, which names this one */
static void describe_header(const uint8_t *bytes, bool inside, bool detached, json_t *o)
{
	struct qk_reader r = qk_reader_init(bytes, LUKS_HEADER_BYTES);
	qk_read_skip(&r, 8);
	struct qk_span cipher = qk_read_span(&r, 32), mode_field = qk_read_span(&r, 32);
	struct qk_span hash = qk_read_span(&r, 32);
	uint32_t payload_sector = qk_read32(&r), key_bytes = qk_read32(&r);
	qk_read_skip(&r, 20 + 32);
	uint32_t iterations = qk_read32(&r);
	struct qk_span uuid = qk_read_span(&r, 40);
	struct mode mode = split_mode(mode_field);
	cli_json_set(o, "ivgen-alg", field(mode.ivgen));
	cli_json_set(o, "detached-header", json_boolean(detached));
	cli_json_set(o, "hash-alg", field(hash));
	cli_json_set(o, "cipher-alg", cipher_text(cipher, mode_field, key_bytes));
	cli_json_set(o, "uuid", field(uuid));
	if (mode.ivhash.n != 0)
		cli_json_set(o, "ivgen-hash-alg", field(mode.ivhash));
	if (inside)
		cli_json_set(o, "format", json_string("luks"));
	cli_json_set(o, "cipher-mode", field(mode.chain));
	json_t *slots = json_array();
	for (int i = 0; i < LUKS_SLOTS; i++)
		(void)json_array_append_new(slots, describe_slot(&r));
	cli_json_set(o, "slots", slots);
	cli_json_set(
		o, "payload-offset", cli_json_u64((uint64_t)payload_sector * LUKS_SECTOR_BYTES));
	cli_json_set(o, "master-key-iters", cli_json_u64(iterations));
}

/* False: there is no header. */
static bool read_header(struct qcow_image *image, const struct qcow_info *in, uint8_t *bytes)
{
	static const uint8_t magic[8] = {'L', 'U', 'K', 'S', 0xba, 0xbe, 0, 1};
	struct qcow_store *store = in->luks_detached_header ? qcow_image_header_store(image)
							    : qcow_image_store(image);
	return in->crypto_length >= LUKS_HEADER_BYTES &&
	       qcow_store_read(store, bytes, LUKS_HEADER_BYTES, in->crypto_offset, NULL) ==
		       QCOW_OK &&
	       memcmp(bytes, magic, sizeof(magic)) == 0;
}

json_t *cli_info_encryption(struct qcow_image *image, const struct qcow_info *in)
{
	uint8_t bytes[LUKS_HEADER_BYTES];
	json_t *o = json_object();
	if (in->encryption == QCOW_ENCRYPTION_AES)
		cli_json_set(o, "format", json_string("aes"));
	else if (read_header(image, in, bytes))
		describe_header(bytes, true, false, o);
	else
		cli_json_set(o, "format", json_string("luks"));
	return o;
}

json_t *cli_info_luks(struct qcow_image *image, const struct qcow_info *in)
{
	uint8_t bytes[LUKS_HEADER_BYTES];
	json_t *o = json_object(), *data = json_object();
	if (read_header(image, in, bytes))
		describe_header(bytes, false, in->luks_detached_header, data);
	cli_json_set(o, "type", json_string("luks"));
	cli_json_set(o, "data", data);
	return o;
}
