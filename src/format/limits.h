/* SPDX-License-Identifier: MIT */
/*
 * limits: every bound that qcowkit puts on a value from an image, with its arithmetic.
 */
#ifndef QK_FORMAT_LIMITS_H
#define QK_FORMAT_LIMITS_H

#include "base/num.h"

#define QK_MAGIC		    UINT32_C(0x514649fb) /* "QFI\xfb" */
#define QK_MIN_CLUSTER_BITS	    9U /* 512 B, the specification's minimum */
#define QK_MAX_CLUSTER_BITS	    21U /* 2 MiB, QEMU's limit */
#define QK_MIN_EXTL2_CLUSTER_BITS   14U /* 16 KiB: a subcluster is at least 512 B */
#define QK_SUBCLUSTERS		    32U
#define QK_V2_HEADER_BYTES	    72U
#define QK_V3_HEADER_MIN_BYTES	    104U
#define QK_V3_HEADER_BYTES	    112U /* what we write: with compression_type and its padding */
#define QK_MAX_HEADER_BYTES	    4096U /* the specification defines 112 */
#define QK_MAX_REFCOUNT_ORDER	    6U /* 64-bit refcounts */
#define QK_MAX_L1_BYTES		    QK_MIB(32) /* QEMU's limit: 4 Mi entries */
#define QK_MAX_REFTABLE_BYTES	    QK_MIB(8) /* QEMU's limit: 1 Mi entries */
#define QK_MAX_SNAPSHOTS	    65536U /* QEMU's limit */
#define QK_MAX_SNAPSHOT_TABLE_BYTES QK_MIB(64) /* 1024 bytes an entry at 65536; QEMU's limit */
#define QK_MAX_SNAPSHOT_EXTRA	    1024U /* QEMU's limit */
#define QK_MAX_BITMAPS		    65535U /* QEMU's limit */
#define QK_MAX_BITMAP_DIRECTORY_BYTES \
	(QK_MIB(64)) /* 65535 entries of 24 + 1023 bytes, rounded up */
#define QK_MAX_BITMAP_GRANULARITY_BITS	63U /* the specification's; what we write: */
#define QK_MIN_WRITTEN_GRANULARITY_BITS 9U /* QEMU's limits */
#define QK_MAX_WRITTEN_GRANULARITY_BITS 31U
#define QK_MAX_WRITTEN_BITMAP_NAME	1023U
#define QK_MAX_BITMAP_TABLE_BYTES \
	QK_MIB(64) /* 8 Mi entries: 2^31 bytes of bitmap data at 512 B … */
#define QK_MAX_EXTENSIONS      1024U /* in a header; six are known, and listing them is quadratic */
#define QK_MAX_BACKING_NAME    1023U /* the specification's */
#define QK_MAX_BACKING_FORMAT  15U /* QEMU reads at most 15 bytes */
#define QK_MAX_DATA_FILE_NAME  1023U
#define QK_FEATURE_ENTRY_BYTES 48U
#define QK_MIN_FEATURE_NAMES_CLUSTER_BITS \
	13U /* the table is written from 8 KiB clusters on, as QEMU does */
#define QK_OFFSET_MASK UINT64_C(0x00fffffffffffe00) /* bits 9-55 of an L1 or L2 entry */
#define QK_REFTABLE_OFFSET_MASK \
	UINT64_C(0xfffffffffffffe00) /* bits 9-63 of a refcount table entry */
#define QK_FLAG_COPIED	   (UINT64_C(1) << 63)
#define QK_FLAG_COMPRESSED (UINT64_C(1) << 62)
#define QK_FLAG_ZERO	   UINT64_C(1)
#define QK_MAX_OFFSET	   (UINT64_C(1) << 56) /* host offsets in L1 and L2 entries lie below */
#define QK_MAX_FILE_OFFSET ((uint64_t)INT64_MAX) /* off_t of the host */
#define QK_MAX_SIZE	   QK_MAX_FILE_OFFSET /* of a disk, in bytes */
#define QK_SECTOR	   512U

#endif
