/* SPDX-License-Identifier: MIT */
/*
 * io_reopen: changes how the open file is open, by a close and another open. What QEMU lets nobody change is refused
 * before that: names of nodes, drivers, and options that are none of its own.
 */
#include <string.h>
#include <unistd.h>

#include "cli/io_args.h"
#include "cli/spec.h"

struct change {
	struct io_mode mode;
	bool sets_mode, sets_cache; /* -r or -w; -c */
	char *options; /* what the next open has to know too, or NULL */
};

/* The value at a dotted key, or NULL. */
static const char *value_at(const json_t *spec, const char *key)
{
	char part[64];
	for (const char *dot = strchr(key, '.'); dot != NULL; dot = strchr(key, '.')) {
		size_t n = (size_t)(dot - key);
		if (n >= sizeof(part))
			return NULL;
		memcpy(part, key, n);
		part[n] = '\0';
		spec = json_object_get(spec, part);
		key = dot + 1;
	}
	return json_string_value(json_object_get(spec, key));
}

static bool ends_with(const char *key, const char *leaf)
{
	size_t n = strlen(key), m = strlen(leaf);
	return n >= m && strcmp(key + n - m, leaf) == 0 && (n == m || key[n - m - 1] == '.');
}

/* What a node's driver is where nobody has said it: below the image lies a file. */
static const char *driver_now(const struct io *io, const json_t *spec, const char *key)
{
	struct qcow_info in;
	const char *said = value_at(spec, key);
	bool is_backing = strncmp(key, "backing.", strlen("backing.")) == 0;
	struct qcow_image *image = is_backing ? qcow_backing(io->image) : io->image;
	if (said != NULL || image == NULL)
		return said;
	qcow_get_info(image, &in);
	return strstr(key, "file.") != NULL ? "file" : in.format;
}

static bool takes_bool(struct io *io, const char *key, const char *value, bool *out)
{
	if (value != NULL && (strcmp(value, "on") == 0 || strcmp(value, "off") == 0)) {
		*out = strcmp(value, "on") == 0;
		return true;
	}
	cli_error(io->cli, "Parameter '%s' expects 'on' or 'off'", key);
	return false;
}

/* Options that may change and mean nothing to a reader or to how bytes are written. */
static bool may_change(const char *key)
{
	static const char *const leaves[] = {"discard", "detect-zeroes", "aio", "locking",
		"lazy-refcounts", "overlap-check", "overlap-check.template", "cache-size",
		"l2-cache-size", "l2-cache-entry-size", "refcount-cache-size",
		"cache-clean-interval", "pass-discard-request", "pass-discard-snapshot",
		"pass-discard-other", "discard-no-unref", "drop-cache", "force-share"};
	for (size_t i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++)
		if (ends_with(key, leaves[i]))
			return true;
	return false;
}

static bool is_of_discards(const char *key)
{
	static const char *const keys[] = {"discard", "pass-discard-request",
		"pass-discard-snapshot", "pass-discard-other", "discard-no-unref"};
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (strcmp(key, keys[i]) == 0)
			return true;
	return false;
}

/* What the image does with discards, for the next open. */
static bool take_discard(struct io *io, const struct cli_keyval *kv, struct change *change)
{
	const char *value = kv->value != NULL ? kv->value : "on";
	struct qcow_error err = QCOW_ERROR_INIT;
	bool on = false;
	uint32_t flags = 0;
	if (strcmp(kv->key, "discard") != 0 && !takes_bool(io, kv->key, value, &on))
		return false;
	json_t *one = json_pack("{s:s}", kv->key, value);
	char text[64];
	(void)snprintf(text, sizeof(text), "%s=%s", kv->key, value);
	enum qcow_status status = one != NULL ? cli_spec_discard(one, &on, &flags, &err)
					      : QK_FAIL_NOMEM(&err);
	json_decref(one);
	if (status != QCOW_OK) {
		cli_error(io->cli, "%s", err.message);
		return false;
	}
	change->options = io_append_options(change->options, text);
	return change->options != NULL;
}

static bool take_option(
	struct io *io, const json_t *spec, const struct cli_keyval *kv, struct change *change)
{
	const char *key = kv->key, *now = NULL;
	bool on = false;
	if (is_of_discards(key))
		return take_discard(io, kv, change);
	if (strcmp(key, "read-only") == 0) {
		if (change->sets_mode) {
			cli_error(io->cli, "Cannot set both -r/-w and 'read-only'");
			return false;
		}
		return takes_bool(io, key, kv->value, &change->mode.read_only);
	}
	if (strncmp(key, "cache.", strlen("cache.")) == 0) {
		if (change->sets_cache) {
			cli_error(io->cli, "Cannot set both -c and the cache options");
			return false;
		}
		if (!takes_bool(io, key, kv->value, &on))
			return false;
		if (on && strcmp(key, "cache.direct") == 0)
			change->mode.cache = "none";
		return true;
	}
	if (strcmp(key, "auto-read-only") == 0)
		return takes_bool(io, key, kv->value, &on);
	if (ends_with(key, "node-name"))
		now = value_at(spec, key);
	else if (ends_with(key, "driver"))
		now = driver_now(io, spec, key);
	else if (may_change(key))
		return true;
	if (now != NULL && kv->value != NULL && strcmp(now, kv->value) == 0)
		return true;
	const char *leaf = strrchr(key, '.');
	cli_error(io->cli, "Cannot change the option '%s'", leaf != NULL ? leaf + 1 : key);
	return false;
}

static bool take_options(struct io *io, const char *text, struct change *change)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct cli_operand operand = {.text = io->name != NULL ? io->name : io->options,
		.image_opts = io->name == NULL || io->opened.image_opts};
	struct cli_keyvals list = {0};
	json_t *spec = NULL;
	bool ok = cli_spec_parse_with(io->cli, &operand, io->name != NULL ? io->options : NULL,
			  &spec, &err) == QCOW_OK;
	if (!ok)
		(void)cli_fail(io->cli, &err, "Cannot reopen");
	ok = ok && cli_keyvals_add(io->cli, &list, text);
	for (size_t i = 0; ok && i < list.n; i++)
		ok = take_option(io, spec, &list.v[i], change);
	cli_keyvals_release(&list);
	json_decref(spec);
	return ok;
}

int io_cmd_reopen(struct io *io, const struct io_command *self, int argc, char **argv)
{
	struct change change = {.mode = io->opened};
	const char *options = NULL;
	int c = 0;
	while ((c = io_getopt(self, argc, argv)) != -1) {
		if (c == 'c') {
			change.sets_cache = true;
			if (!io_take_cache(io, optarg, &change.mode))
				return -1;
		} else if (c == 'o') {
			options = optarg;
		} else if ((c == 'r' || c == 'w') && !change.sets_mode) {
			change.sets_mode = true;
			change.mode.read_only = c == 'r';
		} else if (c == 'r' || c == 'w') {
			cli_error(io->cli, "Only one -r/-w option may be given");
			return -1;
		} else {
			return io_usage(self);
		}
	}
	if (argc != optind)
		return io_usage(self);
	bool ok = options == NULL || take_options(io, options, &change);
	if (ok && change.options != NULL) {
		io->options = io_append_options(io->options, change.options);
		ok = io->options != NULL;
	}
	free(change.options);
	return ok && io_open_again(io, &change.mode) ? 0 : -1;
}
