/* SPDX-License-Identifier: MIT */
/*
 * Everything that can be wrong inside an image, one row each: found by `qcow check` and by a read
 * that meets it, always under the same id. Ids never change meaning and are never reused.
 *
 * X(id, NAME, severity, sentence)
 *   CORRUPTION  data may be lost or wrong; writing is refused until it is repaired
 *   LEAK        space that nothing uses
 *   NOTE        legal but worth saying; never stops a write
 */
#ifndef QCOWKIT_FINDINGS_H
#define QCOWKIT_FINDINGS_H

#define QCOW_FINDINGS(X)                                                                           \
	X(1, L1_BEYOND_FILE, CORRUPTION, "the active L1 table lies beyond the end of the file")    \
	X(2, L1_ENTRY_UNALIGNED, CORRUPTION, "an L1 entry names an unaligned L2 table")            \
	X(3, L1_ENTRY_RESERVED, CORRUPTION, "reserved bits are set in an L1 entry")                \
	X(4, L1_ENTRY_BEYOND_FILE, CORRUPTION, "an L1 entry names an L2 table beyond the file")    \
	X(5, L2_ENTRY_UNALIGNED, CORRUPTION, "an L2 entry names an unaligned cluster")             \
	X(6, L2_ENTRY_RESERVED, CORRUPTION, "reserved bits are set in an L2 entry")                \
	X(7, L2_ENTRY_BEYOND_FILE, CORRUPTION, "an L2 entry names a cluster beyond the file")      \
	X(8, L2_COPIED_AT_ZERO, CORRUPTION, "an L2 entry has COPIED set and no cluster")           \
	X(9, L2_ZERO_FLAG_V2, CORRUPTION, "a version 2 L2 entry has the zero flag")                \
	X(10, L2_SUBCLUSTER_BITS, CORRUPTION, "a subcluster is both allocated and zero")           \
	X(11, L2_SUBCLUSTER_NO_HOST, CORRUPTION, "a subcluster is allocated without a cluster")    \
	X(12, COMPRESSED_BEYOND_FILE, CORRUPTION, "compressed data lies beyond the file")          \
	X(13, COMPRESSED_STREAM, CORRUPTION, "a compressed cluster does not decompress")           \
	X(14, COMPRESSED_COPIED, CORRUPTION, "a compressed entry has COPIED set")                  \
	X(15, COMPRESSED_DATA_FILE, CORRUPTION, "a compressed entry in an image with a data file") \
	X(16, DATA_FILE_OFFSET, CORRUPTION, "a data file offset differs from the guest offset")    \
	X(17, METADATA_OVERLAP, CORRUPTION, "two structures share a cluster")                      \
	X(18, REFCOUNT_TOO_LOW, CORRUPTION, "a refcount is below the references")                  \
	X(19, REFCOUNT_TOO_HIGH, LEAK, "a refcount is above the references")                       \
	X(20, REFTABLE_ENTRY_UNALIGNED, CORRUPTION, "a refcount table entry is unaligned")         \
	X(21, REFTABLE_ENTRY_RESERVED, CORRUPTION, "reserved bits in a refcount table entry")      \
	X(22, REFTABLE_ENTRY_BEYOND_FILE, CORRUPTION, "a refcount block lies beyond the file")     \
	X(23, REFTABLE_BEYOND_FILE, CORRUPTION, "the refcount table lies beyond the file")         \
	X(24, REFCOUNT_BLOCK_TWICE, CORRUPTION, "a refcount block is used twice")                  \
	X(25, COPIED_WRONG, CORRUPTION, "COPIED is set where the refcount is not one")             \
	X(26, COPIED_MISSING, NOTE, "COPIED is clear where the refcount is one")                   \
	X(27, SNAPSHOT_TABLE, CORRUPTION, "the snapshot table cannot be read")                     \
	X(28, SNAPSHOT_L1, CORRUPTION, "a snapshot's L1 table is unaligned, too long or missing")  \
	X(29, SNAPSHOT_EXTRA, CORRUPTION, "a snapshot lacks the extra data of version 3")          \
	X(30, BITMAP_DIRECTORY, CORRUPTION, "the bitmap directory cannot be read")                 \
	X(31, BITMAP_TABLE, CORRUPTION, "a bitmap table cannot be read or is invalid")             \
	X(32, BITMAP_AUTOCLEAR, CORRUPTION, "the bitmaps bit is set without the extension")        \
	X(33, BITMAP_INCONSISTENT, NOTE, "a bitmap is marked in use: its content is not trusted")  \
	X(34, DIRTY, NOTE, "the dirty bit is set: refcounts are rebuilt before writing")           \
	X(35, CORRUPT_BIT, NOTE, "the corrupt bit is set: the image opens read-only")              \
	X(36, L2_BEYOND_DISK, NOTE, "clusters are mapped past the end of the disk")                \
	X(37, TABLE_READ_FAILED, CORRUPTION, "a table cannot be read from the host")               \
	X(38, L2_TABLE_TWICE, CORRUPTION, "an L2 table is used twice in one L1 table")             \
	X(39, CRYPTO_HEADER, CORRUPTION, "the encryption header lies beyond the file")             \
	X(40, REFCOUNT_PAST_END, NOTE, "refcounts are set past the end of the file")

enum qcow_finding_id {
	QCOW_FINDING_NONE = 0,
#define QCOW_FINDING_ENUM(id, name, severity, sentence) QCOW_FINDING_##name = (id),
	QCOW_FINDINGS(QCOW_FINDING_ENUM)
#undef QCOW_FINDING_ENUM
};

enum qcow_severity {
	QCOW_SEVERITY_CORRUPTION = 1,
	QCOW_SEVERITY_LEAK = 2,
	QCOW_SEVERITY_NOTE = 3
};

#endif
