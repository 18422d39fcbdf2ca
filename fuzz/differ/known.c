/* SPDX-License-Identifier: MIT */
#include "known.h"

#include <qcowkit/qcowkit.h>

#include <stdio.h>
#include <string.h>

/* A reason counts where peer, what and why hold these words; "" is anything. The first that fits counts. "Other
 * bytes" for one range can have no reason. */
static struct known {
	const char *peer, *what, *why, *reason;
	unsigned long n;
} known[] = {
	{"QEMU", "it refuses the image", "Header extension too large",
		"it bounds the length of the end marker too, which has no data", 0},
	{"QEMU", "it refuses the image", "Bitmap",
		"bitmaps are not needed to read: ours are refused one at a time", 0},
	{"QEMU", "it refuses the image", "bitmap", "as above", 0},
	{"QEMU", "it refuses the image", "snapshot table entry",
		"it wants every entry of the snapshot table to be one that it could write", 0},
	{"oracle", "it refuses the image", "bitmap_directory_offset",
		"bitmaps are not needed to read", 0},
	{"oracle", "it refuses the image", "an offset or size of 2^62 and more",
		"it adds to offsets without looking for overflow, so it takes none that large", 0},
	{"QEMU", "it fails a range", "the disk ends within the sector",
		"QEMU reads whole sectors of the disk, and leaves out the last part of one", 0},
	{"QEMU", "it fails a range", "compressed",
		"the stream is damaged after the last byte of the cluster, or has an unused code "
		"of deflate",
		0},
	{"oracle", "it fails a range", "the compressed cluster at",
		"libdeflate takes the codes that deflate leaves unused for their neighbours, zlib "
		"fails",
		0},
	{"oracle", "it fails a range", "table at",
		"it refuses a table that is partly past the end of the file; what is there can be "
		"read",
		0},
	{"QEMU", "we fail a range", "L1_ENTRY_RESERVED", "QEMU ignores reserved bits", 0},
	{"QEMU", "we fail a range", "L2_ENTRY_RESERVED", "QEMU ignores reserved bits", 0},
	{"QEMU", "we fail a range", "L2_COPIED_AT_ZERO", "QEMU ignores COPIED when it reads", 0},
	{"QEMU", "we fail a range", "_BEYOND_FILE",
		"QEMU reads zeros past the end of the file: lost data is not zeros", 0},
	{"oracle", "we fail a range", "L1_ENTRY_RESERVED",
		"the oracle ignores reserved bits of L1 entries", 0},
	{"oracle", "we fail a range", "L2_ENTRY_RESERVED",
		"the oracle ignores reserved bits of compressed entries", 0},
	{"oracle", "we fail a range", "DATA_FILE_OFFSET",
		"the oracle looks at offsets of data alone, not of zeros; QEMU fails as we do", 0},
	{"oracle", "we fail a range", "COMPRESSED_STREAM",
		"the oracle takes what came out before the damage; QEMU fails as we do", 0},
	{"", "we refuse the image", "the snapshot table",
		"a table that is not within the file is refused; QEMU reads zeros there, the "
		"oracle does not look",
		0},
	{"", "we refuse the image", "an entry of the snapshot table", "as above", 0},
	{"", "we refuse the image", "would overlap the header",
		"an offset of 0 is refused before anything could be written there", 0},
	{"", "we refuse the image", "holds a NUL byte",
		"a name is the name of one file for everybody: others cut it at the NUL", 0},
	{"", "we refuse the image", "is not supported: qcow2, raw and luks are",
		"the backing format is none that we read; the oracle takes it for raw, QEMU an "
		"empty one for none",
		0},
	{"", "we refuse the image", "backing file 'canary.raw' of 'input': image format",
		"as above, with a format that does not print", 0},
	{"", "we refuse the image", "backing_file_size is", "a recorded name has 1 to 1023 bytes",
		0},
	{"", "we refuse the image", "nb_snapshots is",
		"snapshots beyond the limit, or with a data file, which the specification excludes",
		0},
	{"", "we refuse the image", "header_length is",
		"it is a multiple of 8 by the specification", 0},
	{"", "we refuse the image", "appears twice",
		"which of two equal extensions counts is nowhere said", 0},
	{"", "we refuse the image", "lies inside the header",
		"the backing file's name would be header fields", 0},
	{"oracle", "we refuse the image", "QCOW_E_LIMIT", "the oracle has no limits", 0},
	{"oracle", "we refuse the image", "QCOW_E_NOENT",
		"the oracle opens what is named when it reads it", 0},
	{"oracle", "we refuse the image", "QCOW_E_KEY",
		"the oracle opens encrypted images and refuses their data", 0},
	{"oracle", "we refuse the image", "names none",
		"the oracle looks for the data file when it reads it", 0},
	{"oracle", "we refuse the image", "snapshots_offset is",
		"the oracle does not look where no snapshot is wanted", 0},
	{"oracle", "we refuse the image", "the backing file format name has a length of",
		"the longest name of a format that exists is shorter; QEMU refuses it as we do", 0},
	{"oracle", "we refuse the image", "the bitmaps extension has a length",
		"the oracle does not look at the bitmaps", 0},
};

bool known_reason(const char *peer, const char *what, const char *why)
{
	for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		struct known *k = &known[i];
		if (strstr(peer, k->peer) == NULL || strstr(what, k->what) == NULL ||
			strstr(why, k->why) == NULL)
			continue;
		k->n++;
		return true;
	}
	return false;
}

const char *known_finding(unsigned finding)
{
	const char *name = qcow_finding_name(finding);
	return name != NULL ? name : "no finding";
}

void known_print(void)
{
	for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].n != 0)
			printf("  %lu x %s, %s (%s): %s\n", known[i].n,
				known[i].peer[0] != '\0' ? known[i].peer : "both", known[i].what,
				known[i].why, known[i].reason);
}
