/* SPDX-License-Identifier: MIT */
/*
 * header: the fixed header of versions 2 and 3, the header extensions behind it and the backing file
 * name: everything in cluster 0. Pure: decoding makes views into the caller's buffer, nothing is allocated.
 * Specification: "Header", "Additional fields", "Header extensions".
 *
 * Unknown header bytes (105 and up) and unknown extensions survive decode and encode byte for byte.
 */
#ifndef QK_FORMAT_HEADER_H
#define QK_FORMAT_HEADER_H

#include "base/bytes.h"
#include "format/geometry.h"

#define QK_EXT_END	      UINT32_C(0x00000000)
#define QK_EXT_BACKING_FORMAT UINT32_C(0xe2792aca)
#define QK_EXT_FEATURE_NAMES  UINT32_C(0x6803f857)
#define QK_EXT_BITMAPS	      UINT32_C(0x23852875)
#define QK_EXT_CRYPTO	      UINT32_C(0x0537be77)
#define QK_EXT_DATA_FILE      UINT32_C(0x44415441)

struct qk_header {
	uint32_t version;
	uint64_t backing_off;
	uint32_t backing_len;
	uint32_t cluster_bits;
	uint64_t size;
	uint32_t crypt_method;
	uint32_t l1_entries;
	uint64_t l1_off;
	uint64_t rt_off;
	uint32_t rt_clusters;
	uint32_t n_snapshots;
	uint64_t snapshots_off;
	/* version 3; 0 (refcount_order 4, header_length 72) in version 2 */
	uint64_t incompatible, compatible, autoclear;
	uint32_t refcount_order;
	uint32_t header_length;
	uint8_t compression_type;
	struct qk_span tail; /* bytes 105 to header_length as stored; empty if there are none */
};

struct qk_ext {
	uint32_t type;
	struct qk_span data;
};

struct qk_bitmaps_ext {
	uint32_t n_bitmaps;
	uint64_t directory_size;
	uint64_t directory_off;
};

/* What the extension area and the name hold. Spans are empty (p == NULL) where something is absent. */
struct qk_extensions {
	struct qk_span area; /* from header_length to the END marker's first byte: iterate with qk_ext_next */
	uint32_t n_ext;	     /* all, also unknown ones, without END */
	struct qk_span backing_name;
	struct qk_span backing_format;
	struct qk_span data_file;
	struct qk_span feature_names;
	bool has_bitmaps, has_crypto;
	struct qk_bitmaps_ext bitmaps;
	uint64_t crypto_off, crypto_len;
};

/* Is this the start of a qcow2 file of any version ("QFI\xfb", version 2 or above)? of version 1? */
enum qk_probe {
	QK_PROBE_OTHER,	     /* no qcow magic: raw or something else */
	QK_PROBE_QCOW2,	     /* version 2 or 3 */
	QK_PROBE_QCOW_OTHER  /* the magic with a version that is neither: never taken for raw */
};
enum qk_probe qk_probe(const uint8_t *start, size_t n);

/* Decode the fixed header. `in` is the start of the file: the caller gives at least min(file size, 112)
 * bytes, better the whole cluster 0. QCOW_E_NOT_QCOW2, QCOW_E_FORMAT (truncated, header_length). */
enum qcow_status qk_header_decode(struct qk_span in, struct qk_header *out,
	struct qcow_error *err) QK_MUST_USE;

/* Judge every field on its own and against the others (HOSTILE.md H01-H25): unknown incompatible bits
 * (named from `ext` if given), ranges, alignment, overlap with the header, overflow, L1 too small for
 * the size. Tables beyond the file's end are not judged here. QCOW_E_FORMAT, QCOW_E_UNSUPPORTED, QCOW_E_LIMIT. */
enum qcow_status qk_header_validate(const struct qk_header *h, const struct qk_extensions *ext,
	struct qcow_error *err) QK_MUST_USE;

/* Decode the extensions and the backing name. `cluster0` is the whole first cluster (shorter only where
 * the file is shorter). QCOW_E_FORMAT: overrun, repeated known extension, wrong length of a known one,
 * bad backing name (HOSTILE.md X01-X08, N01-N04). */
enum qcow_status qk_extensions_decode(struct qk_span cluster0, const struct qk_header *h,
	struct qk_extensions *out, struct qcow_error *err) QK_MUST_USE;

/* The next extension at *at (start with 0) of ext->area; false at the end. */
bool qk_ext_next(const struct qk_extensions *ext, size_t *at, struct qk_ext *out);

/* The name that a feature name table gives bit `bit` of kind 0-2; empty if none. */
struct qk_span qk_feature_name(struct qk_span table, unsigned kind, unsigned bit);
/* The name that this implementation knows, or NULL. */
const char *qk_feature_known_name(unsigned kind, unsigned bit);

/* Geometry of a validated header. */
void qk_header_geometry(const struct qk_header *h, struct qk_geometry *g);

/* Write the fixed header only (72 bytes for version 2, header_length for version 3). Version 2 writes
 * nothing at 72-103. QCOW_E_BUG if the room is too small. */
enum qcow_status qk_header_encode(const struct qk_header *h, struct qk_writer *w,
	struct qcow_error *err) QK_MUST_USE;

/*
 * Write header, extensions and backing name into cluster0 (zeroed first), in QEMU's order: backing
 * format, data file name, encryption pointer, bitmaps, feature names (`with_feature_names`), unknown
 * ones of ext->area, END, backing name. Sets h->backing_off and backing_len. QCOW_E_LIMIT where it does
 * not fit cluster 0.
 */
enum qcow_status qk_header_area_encode(struct qk_header *h, const struct qk_extensions *ext,
	bool with_feature_names, uint8_t *cluster0, size_t cluster_size,
	struct qcow_error *err) QK_MUST_USE;

#endif
