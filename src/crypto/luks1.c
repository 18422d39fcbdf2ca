/* SPDX-License-Identifier: MIT */
/*
 * luks1: see luks1.h. The header alone; its slots are luks1_slot.c's.
 *
 * Invariants of a decoded header: the cipher and hash are known and go together; the material of every
 * active slot lies behind the header, before the payload and inside the area; iterations are not 0.
 */
#include "crypto/luks1.h"

#include <inttypes.h>
#include <string.h>

#include "base/num.h"

#define NAME_BYTES     32U
#define VERSION_1      1U
#define SLOT_ACTIVE    UINT32_C(0x00ac71f3)
#define SLOT_INACTIVE  UINT32_C(0x0000dead)
#define SLOT_ALIGN     4096U
#define FIRST_SLOT_OFF 4096U

static const uint8_t magic[6] = {'L', 'U', 'K', 'S', 0xba, 0xbe};

bool qk_luks_probe(struct qk_span start)
{
	return start.n >= sizeof(magic) && memcmp(start.p, magic, sizeof(magic)) == 0;
}

/* ---- decoding ---- */

/* The header's names, NUL terminated. */
struct names {
	char cipher[NAME_BYTES + 1], mode[NAME_BYTES + 1], hash[NAME_BYTES + 1];
};

/* Printable ASCII up to a NUL: what else could be a name that we know? */
static enum qcow_status take_name(
	struct qk_reader *r, const char *what, size_t n, char *out, struct qcow_error *err)
{
	struct qk_span s = qk_read_span(r, n);

	memset(out, 0, n + 1);
	if (s.p != NULL)
		memcpy(out, s.p, n);
	size_t used = strlen(out);
	bool is_text = used < n;
	for (size_t i = 0; i < used; i++)
		is_text = is_text && out[i] > ' ' && out[i] <= '~';
	if (is_text)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_FORMAT, "the LUKS header's %s is not a text that ends", what);
}

/* "xts-plain64", "cbc-essiv:sha256", "ecb". */
static enum qcow_status parse_mode(char *text, struct qk_cipher_spec *spec, struct qcow_error *err)
{
	char *ivgen = strchr(text, '-'), *hash = NULL;

	if (ivgen != NULL) {
		*ivgen++ = '\0';
		hash = strchr(ivgen, ':');
	}
	if (hash != NULL)
		*hash++ = '\0';
	spec->mode = qk_cipher_mode_find(text);
	if (spec->mode == 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "LUKS cipher mode '%s' is not known", text);
	if (ivgen == NULL)
		return QCOW_OK;
	spec->ivgen = qk_ivgen_find(ivgen);
	if (spec->ivgen == QK_IV_NONE)
		return QK_FAIL(
			err, QCOW_E_UNSUPPORTED, "LUKS IV generator '%s' is not known", ivgen);
	if ((hash != NULL) != (spec->ivgen == QK_IV_ESSIV))
		return QK_FAIL(err, QCOW_E_FORMAT, "LUKS IV generator '%s' %s", ivgen,
			hash != NULL ? "takes no hash" : "needs a hash");
	if (hash == NULL)
		return QCOW_OK;
	spec->ivhash = qk_hash_find(hash);
	if (spec->ivhash == 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "LUKS IV hash '%s' is not known", hash);
	return QCOW_OK;
}

static enum qcow_status judge_names(
	struct names *names, uint32_t key_bytes, struct qk_luks *out, struct qcow_error *err)
{
	out->spec.alg = qk_cipher_alg_find(names->cipher);
	if (out->spec.alg == 0)
		return QK_FAIL(
			err, QCOW_E_UNSUPPORTED, "LUKS cipher '%s' is not known", names->cipher);
	QK_TRY(parse_mode(names->mode, &out->spec, err));
	out->hash = qk_hash_find(names->hash);
	if (out->hash == 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "LUKS hash '%s' is not known", names->hash);
	if (key_bytes == 0 || key_bytes > QK_CIPHER_KEY_BYTES)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"the LUKS header says that keys have %" PRIu32
			" bytes: 1 to %u are possible",
			key_bytes, QK_CIPHER_KEY_BYTES);
	out->spec.key_bytes = key_bytes;
	return qk_cipher_check(&out->spec, err);
}

static enum qcow_status take_slot(
	struct qk_reader *r, unsigned index, struct qk_luks_slot *out, struct qcow_error *err)
{
	uint32_t state = qk_read32(r);

	out->is_active = state == SLOT_ACTIVE;
	out->iterations = qk_read32(r);
	struct qk_span salt = qk_read_span(r, QK_LUKS_SALT_BYTES);
	if (salt.p != NULL)
		memcpy(out->salt, salt.p, salt.n);
	out->key_off = (uint64_t)qk_read32(r) * QK_CRYPT_SECTOR;
	out->stripes = qk_read32(r);
	if (state == SLOT_ACTIVE || state == SLOT_INACTIVE)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_FORMAT,
		"LUKS key slot %u is in state 0x%08" PRIx32 ", neither active nor inactive", index,
		state);
}

static enum qcow_status judge_slot(
	const struct qk_luks *luks, unsigned index, uint64_t end, struct qcow_error *err)
{
	const struct qk_luks_slot *s = &luks->slots[index];

	if (!s->is_active)
		return QCOW_OK;
	if (s->stripes == 0 || s->stripes > QK_LUKS_MAX_STRIPES)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"LUKS key slot %u has %" PRIu32 " stripes: 1 to %u are possible", index,
			s->stripes, QK_LUKS_MAX_STRIPES);
	if (s->iterations == 0)
		return QK_FAIL(err, QCOW_E_FORMAT, "LUKS key slot %u has 0 iterations", index);
	uint64_t bytes = qk_luks_material_bytes(luks, index);
	if (s->key_off < QK_LUKS_HEADER_BYTES || !qk_in_range(s->key_off, bytes, end))
		return QK_FAIL(err, QCOW_E_FORMAT,
			"the %" PRIu64 " bytes of LUKS key slot %u at %" PRIu64
			" do not lie between the header and byte %" PRIu64,
			bytes, index, s->key_off, end);
	return QCOW_OK;
}

static enum qcow_status take_start(struct qk_reader *r, struct qcow_error *err)
{
	struct qk_span start = qk_read_span(r, sizeof(magic));
	uint16_t version = qk_read16(r);

	if (r->bad || !qk_luks_probe(start))
		return QK_FAIL(err, QCOW_E_FORMAT, "the encryption header has no LUKS magic");
	if (version != VERSION_1)
		return QK_FAIL(
			err, QCOW_E_UNSUPPORTED, "LUKS version %u is not supported: 1 is", version);
	return QCOW_OK;
}

static void take_bytes(struct qk_reader *r, uint8_t *out, size_t n)
{
	struct qk_span s = qk_read_span(r, n);
	if (s.p != NULL)
		memcpy(out, s.p, n);
}

/* What the format allows and no file can mean. */
static enum qcow_status judge_payload(
	const struct qk_luks *luks, bool detached, struct qcow_error *err)
{
	if (detached || luks->payload_off >= FIRST_SLOT_OFF)
		return QCOW_OK;
	if (luks->payload_off == 0)
		return QK_FAIL(err, QCOW_E_FORMAT,
			"this is a detached LUKS header: the disk is in another file, to be named "
			"with it");
	return QK_FAIL(err, QCOW_E_FORMAT, "the LUKS payload at %" PRIu64 " overlaps the header",
		luks->payload_off);
}

enum qcow_status qk_luks_decode(struct qk_span bytes, uint64_t area_bytes, bool detached,
	struct qk_luks *out, struct qcow_error *err)
{
	struct qk_reader r = qk_reader_init(bytes.p, bytes.n);
	struct names names;

	*out = (struct qk_luks){.hash = (enum qk_hash)0};
	if (bytes.n < QK_LUKS_HEADER_BYTES)
		return QK_FAIL(err, QCOW_E_FORMAT, "a LUKS header has %u bytes, here are %zu",
			QK_LUKS_HEADER_BYTES, bytes.n);
	QK_TRY(take_start(&r, err));
	QK_TRY(take_name(&r, "cipher name", NAME_BYTES, names.cipher, err));
	QK_TRY(take_name(&r, "cipher mode", NAME_BYTES, names.mode, err));
	QK_TRY(take_name(&r, "hash name", NAME_BYTES, names.hash, err));
	out->payload_off = (uint64_t)qk_read32(&r) * QK_CRYPT_SECTOR;
	uint32_t key_bytes = qk_read32(&r);
	take_bytes(&r, out->digest, sizeof(out->digest));
	take_bytes(&r, out->salt, sizeof(out->salt));
	out->iterations = qk_read32(&r);
	QK_TRY(take_name(&r, "UUID", QK_LUKS_UUID_BYTES, out->uuid, err));
	QK_TRY(judge_names(&names, key_bytes, out, err));
	for (unsigned i = 0; i < QK_LUKS_SLOTS; i++)
		QK_TRY(take_slot(&r, i, &out->slots[i], err));
	QK_ASSERT(K5, !r.bad && r.at == QK_LUKS_HEADER_BYTES);
	QK_TRY(judge_payload(out, detached, err));
	if (out->iterations == 0)
		return QK_FAIL(err, QCOW_E_FORMAT, "the LUKS key digest has 0 iterations");
	uint64_t end = detached ? area_bytes : qk_min(area_bytes, out->payload_off);
	for (unsigned i = 0; i < QK_LUKS_SLOTS; i++)
		QK_TRY(judge_slot(out, i, end, err));
	return QCOW_OK;
}

size_t qk_luks_material_bytes(const struct qk_luks *luks, unsigned slot)
{
	uint64_t bytes = (uint64_t)luks->spec.key_bytes * luks->slots[slot].stripes;

	return (size_t)(qk_div_up(bytes, QK_CRYPT_SECTOR) * QK_CRYPT_SECTOR);
}

/* ---- encoding ---- */

enum qcow_status qk_luks_layout(struct qk_luks *luks, struct qcow_error *err)
{
	QK_TRY(qk_cipher_check(&luks->spec, err));
	if (qk_hash_bytes(luks->hash) == 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "the hash is not known");
	uint64_t off = FIRST_SLOT_OFF;
	for (unsigned i = 0; i < QK_LUKS_SLOTS; i++) {
		luks->slots[i] = (struct qk_luks_slot){.key_off = off, .stripes = QK_LUKS_STRIPES};
		off += qk_div_up(qk_luks_material_bytes(luks, i), SLOT_ALIGN) * SLOT_ALIGN;
	}
	luks->payload_off = off;
	return QCOW_OK;
}

static void put_name(struct qk_writer *w, const char *text, size_t room)
{
	size_t n = qk_min(strlen(text), room);

	qk_write_bytes(w, text, n);
	qk_write_zeros(w, room - n);
}

/* The parts of the mode as one text. `out` has NAME_BYTES + 1. */
static void mode_text(const struct qk_cipher_spec *spec, char *out)
{
	const char *parts[] = {qk_cipher_mode_name(spec->mode),
		spec->ivgen != QK_IV_NONE ? "-" : "", qk_ivgen_name(spec->ivgen),
		spec->ivgen == QK_IV_ESSIV ? ":" : "",
		spec->ivgen == QK_IV_ESSIV ? qk_hash_name(spec->ivhash) : ""};
	struct qk_writer w = qk_writer_init(out, NAME_BYTES);

	memset(out, 0, NAME_BYTES + 1);
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		qk_write_bytes(&w, parts[i], strlen(parts[i]));
}

void qk_luks_encode(const struct qk_luks *luks, uint8_t *bytes)
{
	struct qk_writer w = qk_writer_init(bytes, QK_LUKS_HEADER_BYTES);
	char mode[NAME_BYTES + 1];

	mode_text(&luks->spec, mode);
	qk_write_bytes(&w, magic, sizeof(magic));
	qk_write16(&w, VERSION_1);
	put_name(&w, qk_cipher_alg_name(luks->spec.alg), NAME_BYTES);
	put_name(&w, mode, NAME_BYTES);
	put_name(&w, qk_hash_name(luks->hash), NAME_BYTES);
	qk_write32(&w, (uint32_t)(luks->payload_off / QK_CRYPT_SECTOR));
	qk_write32(&w, (uint32_t)luks->spec.key_bytes);
	qk_write_bytes(&w, luks->digest, sizeof(luks->digest));
	qk_write_bytes(&w, luks->salt, sizeof(luks->salt));
	qk_write32(&w, luks->iterations);
	put_name(&w, luks->uuid, QK_LUKS_UUID_BYTES);
	for (unsigned i = 0; i < QK_LUKS_SLOTS; i++) {
		const struct qk_luks_slot *s = &luks->slots[i];
		qk_write32(&w, s->is_active ? SLOT_ACTIVE : SLOT_INACTIVE);
		qk_write32(&w, s->iterations);
		qk_write_bytes(&w, s->salt, sizeof(s->salt));
		qk_write32(&w, (uint32_t)(s->key_off / QK_CRYPT_SECTOR));
		qk_write32(&w, s->stripes);
	}
	QK_ASSERT_VOID(K5, !w.bad && w.at == QK_LUKS_HEADER_BYTES);
}
