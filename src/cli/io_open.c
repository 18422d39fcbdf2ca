/* SPDX-License-Identifier: MIT */
/*
 * io_open: opens, closes and reopens the file that the commands work on. At most one is open.
 *
 * A temporary run (-s) writes into an overlay.
 */
#include "cli/io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cli/io_args.h"
#include "cli/overlay.h"
#include "cli/spec.h"

/* ---- open ---- */

static void warn_of_guess(const struct io *io)
{
	if (!io->cli->qemu)
		return;
	(void)fflush(stdout);
	(void)fprintf(stderr,
		"WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
		"         Automatically detecting the format is dangerous for raw images, write "
		"operations on block 0 will be restricted.\n"
		"         Specify the 'raw' format explicitly to remove the restrictions.\n",
		qcow_store_name(qcow_image_store(io->image)));
}

static bool refuse(struct io *io, const char *name, const char *why)
{
	if (name != NULL)
		cli_error(io->cli, "can't open device %s: %s", name, why);
	else
		cli_error(io->cli, "can't open: %s", why);
	return false;
}

/* What the operand itself says: of the file's format, and of discards. */
static bool look_at_operand(struct io *io, const struct cli_open_request *request)
{
	json_t *spec = NULL;
	bool named = request->operand.format != NULL;
	bool unmaps = (request->flags & CLI_OPEN_KEEP) == 0;
	uint32_t flags = 0;
	if (cli_spec_parse_with(io->cli, &request->operand, request->options, &spec, NULL) ==
		QCOW_OK) {
		named = named || json_object_get(spec, "driver") != NULL;
		/* a bad word has failed the open */
		(void)!cli_spec_discard(spec, &unmaps, &flags, NULL);
	}
	json_decref(spec);
	io->ignores_discards = !unmaps;
	return named;
}

static bool open_image(
	struct io *io, const struct io_mode *mode, const struct cli_open_request *request)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_info in;
	unsigned filters = 0;
	struct cli_open_request own = *request;
	own.filters = &filters;
	if (cli_open(io->cli, &own, &io->image) != QCOW_OK)
		return false;
	if ((filters & CLI_FILTER_COPY_ON_READ) != 0 && mode->read_only) {
		qcow_close(io->image);
		io->image = NULL;
		return refuse(io, io->name, "Block node is read-only");
	}
	io->compresses = (filters & CLI_FILTER_COMPRESS) != 0;
	io->opened.copy_on_read = mode->copy_on_read || (filters & CLI_FILTER_COPY_ON_READ) != 0;
	qcow_get_info(io->image, &in);
	bool is_named = look_at_operand(io, request);
	bool is_guess = in.version == 0 && strcmp(in.format, "raw") == 0 && !mode->read_only &&
			!is_named;
	if (mode->temporary) {
		struct qcow_image *below = io->image;
		if (cli_overlay_open(below, &io->image, &err) != QCOW_OK) {
			qcow_close(below);
			io->image = NULL;
			return refuse(io, io->name, err.message);
		}
	}
	io->guards_sector_0 = is_guess && !mode->temporary;
	if (io->guards_sector_0)
		warn_of_guess(io);
	return true;
}

static void forget(struct io *io)
{
	free(io->name);
	free(io->options);
	io->name = io->options = NULL;
}

bool io_open(struct io *io, const struct io_mode *mode, const char *name, const char *options)
{
	if (io->image != NULL) {
		cli_error(io->cli, "file open already, try 'help close'");
		return false;
	}
	const char *shown = mode->image_opts ? NULL : name;
	if (mode->share && !mode->read_only)
		return refuse(io, shown, "force-share=on can only be used with read-only images");
	if (mode->copy_on_read && mode->read_only)
		return refuse(io, shown, "Can't use copy-on-read on read-only device");
	struct cli_open_request request = {.operand = {.text = name != NULL ? name : options,
						   .format = mode->format,
						   .image_opts = name == NULL || mode->image_opts},
		.options = name != NULL ? options : NULL,
		.device = shown != NULL ? shown : "",
		.flags = (mode->share ? (unsigned)CLI_OPEN_SHARE : 0) |
			 (mode->keeps ? (unsigned)CLI_OPEN_KEEP : 0) |
			 (!mode->read_only && !mode->temporary ? (unsigned)CLI_OPEN_WRITE : 0)};
	request.flags |= cli_cache_open_flags(mode->cache);
	io->name = name != NULL ? strdup(name) : NULL;
	io->options = options != NULL ? strdup(options) : NULL;
	io->opened = *mode;
	if ((name != NULL && io->name == NULL) || (options != NULL && io->options == NULL)) {
		forget(io);
		return refuse(io, shown, strerror(ENOMEM));
	}
	if (open_image(io, mode, &request))
		return true;
	forget(io);
	return false;
}

bool io_close(struct io *io)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (io->image == NULL)
		return true;
	io_aio_collect(io, true);
	bool flushed = io->opened.read_only || qcow_flush(io->image, &err) == QCOW_OK;
	if (!flushed)
		(void)cli_fail(io->cli, &err, "Failed to flush '%s'",
			qcow_store_name(qcow_image_store(io->image)));
	bool closed = cli_close(io->cli, io->image, flushed);
	io->image = NULL;
	forget(io);
	return closed;
}

bool io_open_again(struct io *io, const struct io_mode *wanted)
{
	struct io_mode mode = *wanted;
	QK_AUTO_FREE char *name = io->name, *options = io->options;
	io->name = io->options = NULL;
	bool closed = io_close(io);
	return io_open(io, &mode, name, options) && closed;
}

/* ---- the commands ---- */

static bool is_word(const char *word, const char *const *words, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(word, words[i]) == 0)
			return true;
	return false;
}

bool io_take_cache(struct io *io, const char *word, struct io_mode *mode)
{
	static const char *const words[] = {
		"none", "off", "writeback", "writethrough", "directsync", "unsafe"};
	if (!is_word(word, words, sizeof(words) / sizeof(words[0]))) {
		cli_error(io->cli, "Invalid cache option: %s", word);
		return false;
	}
	/* "off" is another word for none; the words here are constants, the given one may not last */
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcmp(words[i], word) == 0)
			mode->cache = i == 1 ? words[0] : words[i];
	return true;
}

bool io_check_words(struct io *io, int letter, const char *word, struct io_mode *mode)
{
	static const char *const discards[] = {"off", "ignore", "on", "unmap"};
	static const char *const aios[] = {"threads", "native", "io_uring"};
	if (letter == 'd' && !is_word(word, discards, 4)) {
		cli_error(io->cli, "Invalid discard option: %s", word);
		return false;
	}
	if (letter == 'd')
		mode->keeps = !is_word(word, discards + 2, 2);
	if (letter == 'i' && !is_word(word, aios, 3)) {
		cli_error(io->cli, "Invalid aio option: %s", word);
		return false;
	}
	return true;
}

char *io_append_options(char *list, const char *more)
{
	size_t old = list != NULL ? strlen(list) : 0, n = old + strlen(more) + 2;
	char *out = qk_malloc(n, 1);
	if (out != NULL)
		(void)snprintf(
			out, n, "%s%s%s", list != NULL ? list : "", old != 0 ? "," : "", more);
	free(list);
	return out;
}

int io_cmd_open(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct io_mode mode = {.image_opts = io->mode.image_opts};
	QK_AUTO_FREE char *options = NULL;
	int c = 0;
	while ((c = io_getopt(self, argc, argv)) != -1) {
		bool ok = true;
		if (c == 'r')
			mode.read_only = true;
		else if (c == 's')
			mode.temporary = true;
		else if (c == 'C')
			mode.copy_on_read = true;
		else if (c == 'U')
			mode.share = true;
		else if (c == 'n')
			mode.cache = "none";
		else if (c == 't')
			ok = io_take_cache(io, optarg, &mode);
		else if (c == 'd' || c == 'i')
			ok = io_check_words(io, c, optarg, &mode);
		else if (c == 'o')
			ok = (options = io_append_options(options, optarg)) != NULL;
		else if (c != 'k')
			return io_usage(self);
		if (!ok)
			return -1;
	}
	if (argc - optind > 1)
		return io_usage(self);
	const char *name = optind < argc ? argv[optind] : NULL;
	if (mode.image_opts && name != NULL && options != NULL) {
		(void)printf("Can't use 'open' option '-o' with --image-opts\n");
		return -1;
	}
	if (name == NULL && options == NULL) {
		cli_error(io->cli, "can't open: Must specify either driver or file");
		return -1;
	}
	return io_open(io, &mode, name, options) ? 0 : -1;
}

int io_cmd_close(struct io *io, const struct io_command *self, int argc, char **argv)
{
	(void)self;
	(void)argc;
	(void)argv;
	return io_close(io) ? 0 : -1;
}
