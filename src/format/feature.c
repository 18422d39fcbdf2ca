/* SPDX-License-Identifier: MIT */
/*
 * feature: the feature bits that this implementation knows, with their names, and the feature name
 * table.
 *
 * Pure. The order of the rows is the order in which QEMU writes them: eight entries, 384 bytes.
 * Specification: "Feature name table".
 */
#include "format/feature.h"

struct feature {
	uint8_t kind, bit;
	const char *name; /* at most 46 bytes */
};

static const struct feature FEATURES[QK_N_FEATURES] = {
	{QK_FEATURE_INCOMPATIBLE, 0, "dirty bit"},
	{QK_FEATURE_INCOMPATIBLE, 1, "corrupt bit"},
	{QK_FEATURE_INCOMPATIBLE, 2, "external data file"},
	{QK_FEATURE_INCOMPATIBLE, 3, "compression type"},
	{QK_FEATURE_INCOMPATIBLE, 4, "extended L2 entries"},
	{QK_FEATURE_COMPATIBLE, 0, "lazy refcounts"},
	{QK_FEATURE_AUTOCLEAR, 0, "bitmaps"},
	{QK_FEATURE_AUTOCLEAR, 1, "raw external data"},
};

const char *qk_feature_known_name(unsigned kind, unsigned bit)
{
	for (size_t i = 0; i < QK_N_FEATURES; i++) {
		if (FEATURES[i].kind == kind && FEATURES[i].bit == bit)
			return FEATURES[i].name;
	}
	return NULL;
}

uint64_t qk_feature_known_mask(unsigned kind)
{
	uint64_t mask = 0;
	for (size_t i = 0; i < QK_N_FEATURES; i++) {
		if (FEATURES[i].kind == kind)
			mask |= UINT64_C(1) << FEATURES[i].bit;
	}
	return mask;
}

void qk_feature_table_encode(struct qk_writer *w)
{
	for (size_t i = 0; i < QK_N_FEATURES; i++) {
		size_t len = strlen(FEATURES[i].name);
		qk_write8(w, FEATURES[i].kind);
		qk_write8(w, FEATURES[i].bit);
		qk_write_bytes(w, FEATURES[i].name, len);
		qk_write_zeros(w, QK_FEATURE_ENTRY_BYTES - 2 - len);
	}
}

struct qk_span qk_feature_name(struct qk_span table, unsigned kind, unsigned bit)
{
	for (size_t at = 0; at < table.n; at += QK_FEATURE_ENTRY_BYTES) {
		const uint8_t *entry = table.p + at;
		size_t n = table.n - at;
		if (n > QK_FEATURE_ENTRY_BYTES)
			n = QK_FEATURE_ENTRY_BYTES;
		if (n <= 2 || entry[0] != kind || entry[1] != bit)
			continue;
		return (struct qk_span){entry + 2, strnlen((const char *)entry + 2, n - 2)};
	}
	return (struct qk_span){0};
}
