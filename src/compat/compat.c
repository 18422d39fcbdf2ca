/* SPDX-License-Identifier: MIT */
#include "compat/compat.h"

#include <stddef.h>
#include <string.h>

#include <qcowkit/qcowkit.h>

static const struct compat_traits traits[] = {
	{
		.program = "qcow",
		.version = "qcow " QCOW_VERSION_TEXT,
		.cannot_open = "cannot open",
	},
	{
		.program = "mount.qcow", /* mount(8) runs it for the type "qcow" */
		.version = "qcow " QCOW_VERSION_TEXT,
		.cannot_open = "cannot open",
		.command = "mount",
		.forks = true,
	},
	{
		.program = "qemu-img",
		.version = "qemu-img version 10.0.0 (qcowkit " QCOW_VERSION_TEXT ")",
		.cannot_open = "Could not open",
		.qemu = true,
		.probe_backing = true,
		.special_references = true,
		.shares_raw = true,
		.overlays_live = true,
		.percent_records = true,
	},
	{
		.program = "qemu-io",
		.version = "qemu-io version 10.0.0 (qcowkit " QCOW_VERSION_TEXT ")",
		.cannot_open = "Could not open",
		.command = "io",
		.qemu = true,
		.probe_backing = true,
		.special_references = true,
		.shares_raw = true,
	},
	{
		.program = "qemu-nbd",
		.version = "qemu-nbd 10.0.0 (qcowkit " QCOW_VERSION_TEXT ")",
		.cannot_open = "Failed to blk_new_open",
		.command = "serve",
		.qemu = true,
		.probe_backing = true,
		.special_references = true,
		.shares_raw = true,
	},
};

/* The option letters that callers look for in `qemu-img --help`, a line a command. */
static const struct {
	const char *command, *synopsis;
} synopses[] = {
	{"amend", "[--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] "
		  "-o options filename"},
	{"bench", "[-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] "
		  "[--no-drain] [-o offset] [--pattern=pattern] [-q] [-s buffer_size] "
		  "[-S step_size] [-t cache] [-w] [-U] filename"},
	{"bitmap", "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)... "
		   "[-b source_file [-F source_fmt]] [-g granularity] [--object objectdef] "
		   "[--image-opts | -f fmt] filename bitmap"},
	{"check", "[--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] "
		  "[-r [leaks | all]] [-T src_cache] [-U] filename"},
	{"commit", "[--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] "
		   "[-r rate_limit] [-d] [-p] filename"},
	{"compare",
		"[--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] "
		"[-s] [-U] filename1 filename2"},
	{"convert", "[--object objectdef] [--image-opts] [--target-image-opts] [--target-is-zero] "
		    "[--bitmaps] [-U] [-C] [-c] [-p] [-q] [-n] [-f fmt] [-t cache] [-T src_cache] "
		    "[-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] "
		    "[-l snapshot_param] [-S sparse_size] [-r rate_limit] [-m num_coroutines] [-W] "
		    "[--salvage] filename [filename2 [...]] output_filename"},
	{"create", "[--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] "
		   "[-o options] filename [size]"},
	{"dd", "[--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] "
	       "[skip=blocks] if=input of=output"},
	{"info", "[--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] "
		 "[-U] "
		 "filename"},
	{"map", "[--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] "
		"[--max-length=len] [--output=ofmt] [-U] filename"},
	{"measure", "[--output=ofmt] [-O output_fmt] [-o options] [--size N | [--object objectdef] "
		    "[--image-opts] [-f fmt] [-l snapshot_param] filename]"},
	{"rebase",
		"[--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] "
		"[-p] [-u] [-c] -b backing_file [-F backing_fmt] filename"},
	{"resize", "[--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] "
		   "[--shrink] filename [+ | -]size"},
	{"snapshot",
		"[--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | "
		"-d snapshot] filename"},
};

const struct compat_traits *qk_compat_traits(const char *argv0)
{
	const char *slash = argv0 != NULL ? strrchr(argv0, '/') : NULL;
	const char *name = slash != NULL ? slash + 1 : argv0;
	/* the type as /proc/mounts has it */
	if (name != NULL && strcmp(name, "mount.fuse.qcow") == 0)
		name = "mount.qcow";
	for (size_t i = 0; name != NULL && i < sizeof(traits) / sizeof(traits[0]); i++)
		if (strcmp(traits[i].program, name) == 0)
			return &traits[i];
	return &traits[0];
}

const char *qk_compat_synopsis(const char *command)
{
	for (size_t i = 0; i < sizeof(synopses) / sizeof(synopses[0]); i++)
		if (strcmp(synopses[i].command, command) == 0)
			return synopses[i].synopsis;
	return NULL;
}
