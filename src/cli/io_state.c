/* SPDX-License-Identifier: MIT */
/*
 * io_state: what the open file holds and how long it is: alloc, map, length, info, truncate, flush.
 */
#include "cli/io.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include <qcowkit/manage.h>

#include "base/num.h"
#include "cli/info.h"
#include "cli/nullstore.h"

/* From `off` on, at most `len` bytes: how many have one answer to "does the top layer decide them?". */
static bool find_run(struct io *io, uint64_t off, uint64_t len, uint64_t *run, bool *is_held)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t size = qcow_size(io->image), end = off + len;
	*run = 0;
	for (uint64_t at = off; at < end;) {
		struct qcow_extent e = {.off = at, .len = end - at, .flags = QCOW_EXTENT_PRESENT};
		/* the rest of a raw disk's last sector belongs to it */
		if (at < size &&
			qcow_map(io->image, at, qk_min(end, size) - at, 0, &e, &err) != QCOW_OK) {
			(void)io_failed(io, "map", &err);
			return false;
		}
		bool held = (e.flags & QCOW_EXTENT_PRESENT) != 0;
		if (at == off)
			*is_held = held;
		if (held != *is_held)
			break;
		*run += e.len;
		at += e.len;
	}
	return true;
}

int io_cmd_alloc(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	uint64_t off = 0, len = 512, held_bytes = 0;
	char text[IO_SIZE_BYTES];
	if (!io_number(argv[1], &off) || (argc == 3 && !io_number(argv[2], &len)))
		return -1;
	uint64_t size = io_disk_size(io);
	len = off >= size ? 0 : qk_min(len, size - off);
	for (uint64_t at = off, run = 0; at < off + len; at += run) {
		bool is_held = false;
		if (!find_run(io, at, off + len - at, &run, &is_held))
			return -1;
		held_bytes += is_held ? run : 0;
	}
	(void)printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", held_bytes, len,
		io_size((double)off, text));
	return 0;
}

int io_cmd_map(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	(void)argv;
	uint64_t size = io_disk_size(io);
	char len_text[IO_SIZE_BYTES], off_text[IO_SIZE_BYTES];
	for (uint64_t at = 0, run = 0; at < size; at += run) {
		bool is_held = false;
		if (!find_run(io, at, size - at, &run, &is_held))
			return -1;
		(void)printf("%s (0x%" PRIx64 ") bytes %s allocated at offset %s (0x%" PRIx64 ")\n",
			io_size((double)run, len_text), run, is_held ? "   " : "not",
			io_size((double)at, off_text), at);
	}
	return 0;
}

int io_cmd_length(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	(void)argv;
	char text[IO_SIZE_BYTES];
	(void)printf("%s\n", io_size((double)io_disk_size(io), text));
	return 0;
}

/* Where VM state begins: behind the last L2 table's worth of the disk. 0 for formats without. */
static uint64_t vm_state_offset(const struct qcow_info *in)
{
	if (in->version == 0)
		return 0;
	uint64_t entries = in->cluster_size / (in->extended_l2 ? 16 : 8);
	uint64_t covered = in->cluster_size * entries;
	return (in->virtual_size + covered - 1) / covered * covered;
}

int io_cmd_info(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	(void)argv;
	char text[IO_SIZE_BYTES];
	struct qcow_info in;
	qcow_get_info(io->image, &in);
	bool is_null = strcmp(qcow_store_name(qcow_image_store(io->image)), CLI_NULL_STORE_NAME) ==
		       0;
	(void)printf("format name: %s\n", is_null ? "null-co" : in.format);
	if (is_null) { /* QEMU names it as a format and as a protocol */
		(void)printf("format name: null-co\n");
		return 0;
	}
	(void)printf("cluster size: %s\n", io_size((double)in.cluster_size, text));
	(void)printf("vm state offset: %s\n", io_size((double)vm_state_offset(&in), text));
	cli_info_put_specific(io->cli, io->image);
	return 0;
}

/* -m: the modes that QEMU knows. */
static bool take_mode(struct io *io, const char *mode, enum qcow_preallocation *out)
{
	static const char *const known[] = {"off", "metadata", "falloc", "full"};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(mode, known[i]) == 0) {
			*out = (enum qcow_preallocation)i;
			return true;
		}
	cli_error(io->cli, "Invalid preallocation mode '%s'", mode);
	return false;
}

/* A raw disk of QEMU's is whole sectors. */
static int resize(struct io *io, uint64_t size, struct qcow_resize_options *options)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_info in;
	qcow_get_info(io->image, &in);
	bool is_raw = in.version == 0;
	if (!is_raw && io->cli->qemu && size % 512 != 0) {
		cli_error(io->cli, "The new size must be a multiple of 512");
		return -1;
	}
	if (is_raw)
		size = (size + 511) / 512 * 512;
	options->shrink = true;
	if (size < in.virtual_size && options->preallocation != QCOW_PREALLOC_OFF) {
		cli_error(io->cli, is_raw ? "Cannot use preallocation for shrinking files"
					  : "Preallocation can't be used for shrinking an image");
		return -1;
	}
	if (qcow_resize(io->image, size, options, &err) == QCOW_OK)
		return 0;
	(void)cli_fail(io->cli, &err, "%s", io->cli->qemu ? "" : "cannot resize");
	return -1;
}

int io_cmd_truncate(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct qcow_resize_options options = QCOW_RESIZE_OPTIONS_INIT;
	uint64_t size = 0;
	int c = 0;
	while ((c = getopt(argc, argv, self->options)) != -1) {
		if (c != 'm')
			return io_usage(self);
		if (!take_mode(io, optarg, &options.preallocation))
			return -1;
	}
	if (argc - optind != 1)
		return io_usage(self);
	if (!io_number(argv[optind], &size))
		return -1;
	io_aio_collect(io, true);
	return resize(io, size, &options);
}

int io_cmd_flush(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	(void)argv;
	struct qcow_error err = QCOW_ERROR_INIT;
	if (io->opened.read_only || qcow_flush(io->image, &err) == QCOW_OK)
		return 0;
	if (!io->cli->qemu)
		cli_error(io->cli, "flush failed: %s", err.message);
	return -1;
}
