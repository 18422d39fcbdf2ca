/* SPDX-License-Identifier: MIT */
/*
 * foreign: see foreign.h. A fixed VHD has its mark at the end of the file, where a guest could write it: it counts as a raw disk.
 */
#include "format/foreign.h"

#include <stddef.h>
#include <string.h>

#define MAGIC(text) text, sizeof(text) - 1

static const struct {
	const char *name, *magic;
	size_t n, off;
} formats[] = {
	{"vmdk", MAGIC("KDMV"), 0},
	{"vmdk", MAGIC("COWD"), 0},
	{"vmdk", MAGIC("# Disk DescriptorFile"), 0},
	{"vdi", MAGIC("\x7f\x10\xda\xbe"), 64},
	{"vhdx", MAGIC("vhdxfile"), 0},
	{"vpc", MAGIC("conectix"), 0},
	{"qed", MAGIC("QED\0"), 0},
	{"parallels", MAGIC("WithoutFreeSpace"), 0},
	{"parallels", MAGIC("WithouFreSpacExt"), 0},
	{"bochs", MAGIC("Bochs Virtual HD Image"), 0},
	{"cloop", MAGIC("#!/bin/sh\n#V2.0 Format\nmodprobe cloop"), 0},
};

const char *qk_foreign_probe(struct qk_span first)
{
	for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
		if (first.n >= formats[i].off + formats[i].n &&
			memcmp(first.p + formats[i].off, formats[i].magic, formats[i].n) == 0)
			return formats[i].name;
	return NULL;
}
