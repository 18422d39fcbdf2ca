/* SPDX-License-Identifier: MIT */
/*
 * words: what QEMU says where the library says something else about the same failure.
 *
 * The library's sentences name the values, which helps people; programs that call qemu-img look for QEMU's
 * words. A row holds how a sentence of the library begins and the whole of QEMU's. A sentence that has no
 * row is printed as it is.
 */
#include "compat/words.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define V3 " compatibility level 1.1 and above (use version=v3 or greater)"

static const struct {
	const char *begins, *qemu;
} rows[] = {
	{"Cluster size must be", "Cluster size must be a power of two between 512 and 2048k"},
	{"Refcount width must be",
		"Refcount width must be a power of two and may not exceed 64 bits"},
	{"Extended L2 entries are only supported with cluster sizes",
		"Extended L2 entries are only supported with cluster sizes of at least 16384 "
		"bytes"},
	{"a refcount width other than 16 bits needs",
		"Different refcount widths than 16 bits require compatibility level 1.1 or above "
		"(use version=v3 or greater)"},
	{"a compression type other than zlib needs",
		"Non-zlib compression type is only supported with" V3},
	{"extended L2 entries needs", "Extended L2 entries are only supported with" V3},
	{"lazy refcounts needs", "Lazy refcounts only supported with" V3},
	{"an external data file needs", "External data files are only supported with" V3},
	{"data_file_raw requires data_file", "data-file-raw requires data-file"},
	{"a backing format requires", "Backing format cannot be used without backing file"},
	{"Backing file and preallocation", "Backing file and preallocation can only be used at the "
					   "same time if extended_l2 is on"},
	{"refcounts of ",
		"Refcount widths other than 16 bits require compatibility level 1.1 or above "
		"(use compat=1.1 or greater)"},
	{"version 2 needs refcounts of 16 bits", "compat=0.10 requires refcount_bits=16"},
	{"lazy refcounts need version 3",
		"Lazy refcounts only supported with compatibility level 1.1 and above "
		"(use compat=1.1 or greater)"},
	{"version 2 cannot hold what snapshot", "Internal snapshots prevent downgrade of image"},
	{"a disk of ", "Failed to grow the L1 table: File too large"},
	{"a version 2 image with snapshots cannot be resized",
		"Can't resize a v2 image which has snapshots"},
	{"preallocation is for disks that grow",
		"Preallocation can only be used for growing images"},
	{"a raw disk has no metadata to preallocate", "Unsupported preallocation mode: metadata"},
	{"Name length exceeds maximum", "Name length exceeds maximum (1023 characters)"},
	{"Granularity must be power of 2", "Granularity must be power of 2 and at least 512"},
	{"Too much space will be occupied by the bitmap",
		"Too much space will be occupied by the bitmap. Use larger granularity"},
	{"a virtual size of ", "The image size is too large for file format 'qcow2' (try using a "
			       "larger cluster size)"},
};

static const char unknown_bits[] = "incompatible_features has bits that are not supported: ";
static const char no_memory[] = "out of memory";
static const char erased[] = "is already erased (inactive)";
static const char short_l1[] = "l1_size is ";

/* The bit of one item of the list, `"name" (bit 5)` or `bit 5`; its name, if it has one. *next: behind it.
 * A name may hold anything, so an item ends where `" (bit N)` does. */
static bool next_feature(
	const char *at, const char **name, size_t *name_bytes, unsigned *bit, const char **next)
{
	const char *number = strncmp(at, "bit ", 4) == 0 ? at + 4 : NULL;
	*name = NULL;
	if (at[0] == '"') {
		const char *end = strstr(at + 1, "\" (bit ");
		if (end == NULL)
			return false;
		*name = at + 1;
		*name_bytes = (size_t)(end - *name);
		number = end + strlen("\" (bit ");
	}
	if (number == NULL)
		return false;
	char *end = NULL;
	unsigned long value = strtoul(number, &end, 10);
	if (end == number || value > 63)
		return false;
	*bit = (unsigned)value;
	*next = end + strspn(end, "), ");
	return true;
}

/* The names of the unknown features, then the bits that have none as one number. */
static bool put_features(const char *list, char *out, size_t room)
{
	uint64_t unnamed = 0;
	int used = snprintf(out, room, "Unsupported qcow2 feature(s): ");
	const char *comma = "", *name = NULL, *next = NULL;
	unsigned bit = 0;
	size_t n = 0;
	for (const char *at = list; next_feature(at, &name, &n, &bit, &next); at = next) {
		if (name == NULL) {
			unnamed |= UINT64_C(1) << bit;
			continue;
		}
		used += snprintf(out + used, room - (size_t)used, "%s%.*s", comma, (int)n, name);
		if (used < 0 || (size_t)used >= room)
			return false;
		comma = ", ";
	}
	if (unnamed != 0)
		(void)snprintf(out + used, room - (size_t)used,
			"%sUnknown incompatible feature: %" PRIx64, comma, unnamed);
	return true;
}

bool qk_compat_words(const char *sentence, char *out, size_t room)
{
	/* "backing file 'x' of 'y': out of memory" keeps its front */
	size_t n = strlen(sentence), end = strlen(no_memory);
	if (n >= end && strcmp(sentence + n - end, no_memory) == 0) {
		(void)snprintf(out, room, "%.*sCannot allocate memory", (int)(n - end), sentence);
		return true;
	}
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (strncmp(sentence, rows[i].begins, strlen(rows[i].begins)) == 0) {
			(void)snprintf(out, room, "%s", rows[i].qemu);
			return true;
		}
	if (strncmp(sentence, unknown_bits, strlen(unknown_bits)) == 0)
		return put_features(sentence + strlen(unknown_bits), out, room);
	if (n >= strlen(erased) && strcmp(sentence + n - strlen(erased), erased) == 0) {
		(void)snprintf(out, room, "%s ", sentence); /* QEMU's has a blank at its end */
		return true;
	}
	const char *needs = strstr(sentence, " needs ");
	if (strncmp(sentence, short_l1, strlen(short_l1)) == 0 && needs != NULL) {
		bool is_huge = strtoull(needs + strlen(" needs "), NULL, 10) > INT_MAX;
		(void)snprintf(
			out, room, "%s", is_huge ? "Image is too big" : "L1 table is too small");
		return true;
	}
	return false;
}
