/* SPDX-License-Identifier: MIT */
/*
 * header: the fixed header of versions 2 and 3, the header extensions behind it and the backing
 * file name: everything in cluster 0. Pure: decoding makes views into the caller's buffer, nothing
 * is allocated. Specification: "Header", "Additional fields", "Header extensions".
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

/* The three feature bitmaps, numbered as in the feature name table. */
enum qk_feature_kind {
	QK_FEATURE_INCOMPATIBLE = 0,
	QK_FEATURE_COMPATIBLE = 1,
	QK_FEATURE_AUTOCLEAR = 2
};

#define QK_INCOMPAT_DIRTY	 (UINT64_C(1) << 0)
#define QK_INCOMPAT_CORRUPT	 (UINT64_C(1) << 1)
#define QK_INCOMPAT_DATA_FILE	 (UINT64_C(1) << 2)
#define QK_INCOMPAT_COMPRESSION	 (UINT64_C(1) << 3)
#define QK_INCOMPAT_EXTENDED_L2	 (UINT64_C(1) << 4)
#define QK_COMPAT_LAZY_REFCOUNTS (UINT64_C(1) << 0)
#define QK_AUTOCLEAR_BITMAPS	 (UINT64_C(1) << 0)
#define QK_AUTOCLEAR_RAW_DATA	 (UINT64_C(1) << 1)

#define QK_CRYPT_NONE 0U
#define QK_CRYPT_AES  1U
#define QK_CRYPT_LUKS 2U

#define QK_COMPRESSION_DEFLATE 0U
#define QK_COMPRESSION_ZSTD    1U

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
	struct qk_span
		tail; /* bytes 105 to header_length as stored; empty if there are none. Encode fills
			      * up with zeros what is missing */
};

struct qk_ext {
	uint32_t type;
	struct qk_span data;
};

struct qk_bitmaps_ext {
	uint32_t n_bitmaps;
	uint32_t reserved; /* must be 0; kept */
	uint64_t directory_size;
	uint64_t directory_off;
};

/* What the extension area and the name hold. Spans have p == NULL where something is absent; an
 * extension that is there and empty has n == 0. */
struct qk_extensions {
	struct qk_span area; /* from header_length to the END marker: iterate with qk_ext_next */
	uint32_t n_ext; /* all, also unknown ones, without END */
	struct qk_span backing_name;
	struct qk_span backing_format;
	struct qk_span data_file;
	struct qk_span feature_names;
	bool has_bitmaps, has_crypto;
	struct qk_bitmaps_ext bitmaps;
	uint64_t crypto_off, crypto_len;
};

/* What do the first n bytes of a file look like (8 are enough)? */
enum qk_probe {
	QK_PROBE_OTHER, /* no qcow magic: raw or something else */
	QK_PROBE_QCOW2, /* version 2 or 3 */
	QK_PROBE_QCOW_OTHER /* the magic with a version that is neither: never taken for raw */
};
enum qk_probe qk_probe(const uint8_t *start, size_t n);

/*
 * How to open: read min(file size, QK_V3_HEADER_BYTES) bytes, qk_header_decode and
 * qk_header_cluster_size to know how large cluster 0 is, read it whole, then qk_header_area_decode,
 * which does everything below.
 */

/* Decode the fixed header. `in` is the start of the file: the caller gives at least min(file size,
 * 112) bytes, better the whole cluster 0 (with fewer than header_length bytes the tail is
 * incomplete: decode again before encoding). QCOW_E_NOT_QCOW2, QCOW_E_UNSUPPORTED (version),
 * QCOW_E_FORMAT (truncated, header_length). */
enum qcow_status qk_header_decode(
	struct qk_span in, struct qk_header *out, struct qcow_error *err) QK_MUST_USE;

/* The cluster size, range checked: the one field that is needed before cluster 0 can be read.
 * QCOW_E_FORMAT. */
enum qcow_status qk_header_cluster_size(
	const struct qk_header *h, uint64_t *cluster_size, struct qcow_error *err) QK_MUST_USE;

/* Decode header, extensions and backing name from the whole cluster 0 and validate them. An unknown
 * incompatible bit is reported before anything else that it may have changed. Errors: those of
 * qk_header_decode, qk_extensions_decode and qk_header_validate. */
enum qcow_status qk_header_area_decode(struct qk_span cluster0, struct qk_header *h,
	struct qk_extensions *ext, struct qcow_error *err) QK_MUST_USE;

/* Judge every field on its own and against the others (hostile_test.c has a row for each): unknown
 * incompatible bits (named from `ext` if given), ranges, alignment, overlap with the header,
 * overflow, L1 too small for the size; with `ext` also what the extensions must hold (LUKS pointer,
 * data file name). Tables beyond the file's end are not judged here. QCOW_E_FORMAT,
 * QCOW_E_UNSUPPORTED, QCOW_E_LIMIT. */
enum qcow_status qk_header_validate(const struct qk_header *h, const struct qk_extensions *ext,
	struct qcow_error *err) QK_MUST_USE;

/* Decode the extensions and the backing name. `cluster0` is the whole first cluster (shorter only
 * where the file is shorter). QCOW_E_FORMAT: overrun, repeated known extension, wrong length of a
 * known one, bad backing name. QCOW_E_LIMIT: too many extensions. */
enum qcow_status qk_extensions_decode(struct qk_span cluster0, const struct qk_header *h,
	struct qk_extensions *out, struct qcow_error *err) QK_MUST_USE;

/* The next extension at *at (start with 0) of ext->area; false at the end. */
bool qk_ext_next(const struct qk_extensions *ext, size_t *at, struct qk_ext *out);

/* The name that a feature name table gives bit `bit` of kind 0-2; empty if none. A last entry that is cut
 * short still names its bit. */
struct qk_span qk_feature_name(struct qk_span table, unsigned kind, unsigned bit);
/* Bits of kind 0-2 that this implementation knows. */
uint64_t qk_feature_known_mask(unsigned kind);
/* The name that this implementation knows, or NULL. */
const char *qk_feature_known_name(unsigned kind, unsigned bit);

/* Does the feature name table belong into this header? As QEMU does: version 3, clusters of 8 KiB
 * and up. */
bool qk_header_wants_feature_names(const struct qk_header *h);

/* Geometry of a validated header. */
void qk_header_geometry(const struct qk_header *h, struct qk_geometry *g);

/* Write the fixed header only (72 bytes for version 2, header_length for version 3). Version 2
 * writes nothing at 72-103. QCOW_E_BUG if the room is too small. */
enum qcow_status qk_header_encode(
	const struct qk_header *h, struct qk_writer *w, struct qcow_error *err) QK_MUST_USE;

/*
 * Write header, extensions and backing name into cluster0 (zeroed first), in QEMU's order: backing
 * format, data file name, encryption pointer, feature names (`with_feature_names`), bitmaps,
 * unknown ones of ext->area, END, backing name. Sets h->backing_off and backing_len. The spans of
 * `ext` and the tail must not point into `cluster0`. QCOW_E_LIMIT where it does not fit cluster 0.
 */
enum qcow_status qk_header_area_encode(struct qk_header *h, const struct qk_extensions *ext,
	bool with_feature_names, uint8_t *cluster0, size_t cluster_size,
	struct qcow_error *err) QK_MUST_USE;

#endif
