/* SPDX-License-Identifier: MIT */
/*
 * The LUKS1 header. Input: the area's size in 3 bytes, whose lowest bit
 * says whether the header is detached, then the header. Oracle: what is accepted keeps the
 * promises of luks1.c, and encodes to a header that decodes to the same.
 */
#include "fuzz.h"

#include "crypto/luks1.h"

static void check_slot(const struct qk_luks *luks, unsigned i, uint64_t end)
{
	const struct qk_luks_slot *s = &luks->slots[i];
	if (!s->is_active)
		return;
	FUZZ_CHECK(s->stripes != 0 && s->stripes <= QK_LUKS_MAX_STRIPES && s->iterations != 0);
	FUZZ_CHECK(s->key_off >= QK_LUKS_HEADER_BYTES);
	FUZZ_CHECK(s->key_off + qk_luks_material_bytes(luks, i) <= end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct qk_luks luks, again;
	uint8_t out[QK_LUKS_HEADER_BYTES];
	if (n < 3)
		return 0;
	uint64_t area = (uint64_t)data[0] << 16 | (uint64_t)data[1] << 8 | data[2];
	bool detached = (data[2] & 1) != 0;
	struct qk_span span = {data + 3, n - 3};
	if (qk_luks_decode(span, area, detached, &luks, NULL) != QCOW_OK)
		return 0;
	FUZZ_CHECK(luks.iterations != 0 && luks.spec.key_bytes <= QK_CIPHER_KEY_BYTES);
	FUZZ_CHECK(qk_cipher_check(&luks.spec, NULL) == QCOW_OK);
	uint64_t end = detached || area < luks.payload_off ? area : luks.payload_off;
	for (unsigned i = 0; i < QK_LUKS_SLOTS; i++)
		check_slot(&luks, i, end);
	qk_luks_encode(&luks, out);
	span = (struct qk_span){out, sizeof(out)};
	FUZZ_CHECK(qk_luks_decode(span, area, detached, &again, NULL) == QCOW_OK);
	FUZZ_CHECK(again.hash == luks.hash && again.payload_off == luks.payload_off);
	FUZZ_CHECK(again.spec.key_bytes == luks.spec.key_bytes && again.spec.alg == luks.spec.alg);
	FUZZ_CHECK(again.spec.ivgen == luks.spec.ivgen && again.spec.ivhash == luks.spec.ivhash);
	return 0;
}
