/* SPDX-License-Identifier: MIT */
#include "cli/spec.h"

#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "cli/driver.h"
#include "cli/nullstore.h"
#include "cli/utf8.h"

bool cli_path_protocol(const char *path, size_t *protocol_bytes)
{
	size_t n = strcspn(path, ":/");
	if (n == 0 || path[n] != ':')
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)path[i]) && strchr("+-._", path[i]) == NULL)
			return false;
	*protocol_bytes = n;
	return true;
}

/* The object that the dotted front of `key` names below `root`, made where missing; *leaf is the rest.
 * NULL: out of memory, too deep, or a part of the key holds a plain value (reported). */
static json_t *descend(json_t *root, const char *key, const char **leaf, struct qcow_error *err)
{
	json_t *at = root;
	for (unsigned depth = 0;; depth++) {
		const char *dot = strchr(key, '.');
		if (dot == NULL) {
			*leaf = key;
			return at;
		}
		QK_AUTO_FREE char *part = qk_strndup(key, (size_t)(dot - key));
		json_t *next = part != NULL ? json_object_get(at, part) : NULL;
		if (part != NULL && next == NULL) {
			next = json_object();
			if (json_object_set_new(at, part, next) != 0)
				next = NULL;
		}
		if (next == NULL) {
			(void)QK_FAIL_NOMEM(err);
			return NULL;
		}
		if (!json_is_object(next) || depth == CLI_SPEC_DEPTH) {
			(void)QK_FAIL(err, QCOW_E_INVAL, "option '%s' cannot have parts", part);
			return NULL;
		}
		at = next;
		key = dot + 1;
	}
}

/* Set a dotted key, stealing `value`. */
static enum qcow_status set_dotted(
	json_t *root, const char *key, json_t *value, struct qcow_error *err)
{
	const char *leaf = NULL;
	json_t *at = value != NULL ? descend(root, key, &leaf, err) : NULL;
	if (value == NULL)
		return QK_FAIL_NOMEM(err);
	if (at == NULL || json_object_set_new(at, leaf, value) != 0) {
		if (at == NULL)
			json_decref(value);
		return at == NULL ? err->status : QK_FAIL_NOMEM(err);
	}
	return QCOW_OK;
}

/* Copy `from` into `to` with dotted keys unfolded. The depth of what a user typed is bounded. */
static enum qcow_status unfold(json_t *to, json_t *from, unsigned depth, struct qcow_error *err)
{
	if (depth > CLI_SPEC_DEPTH)
		return QK_FAIL(err, QCOW_E_INVAL, "the options are nested more than %d deep",
			CLI_SPEC_DEPTH);
	const char *key = NULL;
	json_t *value = NULL;
	json_object_foreach(from, key, value)
	{
		if (!json_is_object(value)) {
			QK_TRY(set_dotted(to, key, json_incref(value), err));
			continue;
		}
		const char *leaf = NULL;
		json_t *at = descend(to, key, &leaf, err);
		if (at == NULL)
			return err->status;
		json_t *sub = json_object_get(at, leaf);
		if (sub == NULL) {
			sub = json_object();
			if (json_object_set_new(at, leaf, sub) != 0)
				return QK_FAIL_NOMEM(err);
		}
		if (!json_is_object(sub))
			return QK_FAIL(err, QCOW_E_INVAL, "option '%s' is given twice", key);
		QK_TRY(unfold(sub, value, depth + 1, err));
	}
	return QCOW_OK;
}

/* QEMU's JSON also has strings in single quotes. The same text with double ones; NULL: out of memory. */
static char *double_quotes(const char *text)
{
	size_t n = strlen(text), used = 0;
	char *out = n < SIZE_MAX / 2 ? qk_malloc((uint64_t)n * 2 + 1, 1) : NULL;
	char inside = '\0';
	for (size_t i = 0; out != NULL && i < n; i++) {
		char c = text[i];
		if (inside != '\0' && c == '\\' && text[i + 1] != '\0') {
			/* \' is no escape of JSON proper */
			if (text[++i] != '\'')
				out[used++] = '\\';
			out[used++] = text[i];
			continue;
		}
		if (inside == '\'' && c == '"')
			out[used++] = '\\';
		bool is_quote = c == '"' || c == '\'';
		bool turns = inside == '\0' ? is_quote : c == inside;
		out[used++] = turns ? '"' : c;
		if (turns)
			inside = inside == '\0' ? c : '\0';
	}
	if (out != NULL)
		out[used] = '\0';
	return out;
}

enum qcow_status cli_spec_parse_json(const char *text, json_t **out, struct qcow_error *err)
{
	json_error_t why;
	QK_AUTO_FREE char *standard = double_quotes(text + strlen("json:"));
	if (standard == NULL)
		return QK_FAIL_NOMEM(err);
	json_t *typed = json_loads(standard, JSON_REJECT_DUPLICATES, &why);
	if (typed == NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"Could not parse the JSON options: %s at character %d", why.text,
			why.column);
	if (!json_is_object(typed)) {
		json_decref(typed);
		return QK_FAIL(err, QCOW_E_INVAL, "Invalid JSON object given");
	}
	json_t *spec = json_object();
	enum qcow_status status = spec != NULL ? unfold(spec, typed, 0, err) : QK_FAIL_NOMEM(err);
	json_decref(typed);
	if (status != QCOW_OK) {
		json_decref(spec);
		return status;
	}
	*out = spec;
	return QCOW_OK;
}

static bool is_utf8(const char *text)
{
	uint32_t c = 0;
	for (size_t at = 0, left = strlen(text), n; left > 0; at += n, left -= n) {
		n = cli_utf8_next(text + at, left, &c);
		if (n == 0)
			return false;
	}
	return true;
}

/* A value need not be UTF-8, for it may be a path, which is opened as it was typed; a key names an option. */
static enum qcow_status set_typed(
	json_t *spec, const char *key, const char *value, struct qcow_error *err)
{
	if (!is_utf8(key))
		return QK_FAIL(err, QCOW_E_INVAL, "the option '%s' is not built in", key);
	return set_dotted(spec, key, json_string_nocheck(value), err);
}

static enum qcow_status parse_image_opts(
	struct cli *cli, const char *text, json_t **out, struct qcow_error *err)
{
	struct cli_keyvals list = {0};
	json_t *spec = json_object();
	enum qcow_status status = spec != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
	if (status == QCOW_OK && !cli_keyvals_add(cli, &list, text))
		status = QK_FAIL(err, QCOW_E_INVAL, "the image options cannot be read");
	for (size_t i = 0; i < list.n && status == QCOW_OK; i++) {
		/* a word without '=' is a flag that is on, the first one a path */
		const char *value = list.v[i].value;
		if (value == NULL && i == 0)
			status = set_typed(spec, "filename", list.v[i].key, err);
		else
			status = set_typed(spec, list.v[i].key, value != NULL ? value : "on", err);
	}
	cli_keyvals_release(&list);
	if (status != QCOW_OK) {
		json_decref(spec);
		return status;
	}
	*out = spec;
	return QCOW_OK;
}

/* "./path" as a string that need not be UTF-8; NULL: out of memory. */
static json_t *dot_path(const char *path)
{
	size_t bytes = strlen(path) + sizeof("./");
	QK_AUTO_FREE char *text = qk_malloc(bytes, 1);
	if (text == NULL)
		return NULL;
	(void)snprintf(text, bytes, "./%s", path);
	return json_string_nocheck(text);
}

/* "null-co://": {"file": {"driver": "null-co"}} */
static enum qcow_status null_disk(json_t **out, struct qcow_error *err)
{
	*out = json_pack("{s:{s:s}}", "file", "driver", "null-co");
	return *out != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

/* json strings must be UTF-8, paths need not be: such a path goes through untouched. */
static enum qcow_status parse_path(const char *path, json_t **out, struct qcow_error *err)
{
	size_t n = 0;
	if (strcmp(path, CLI_NULL_STORE_NAME) == 0)
		return null_disk(out, err);
	bool has_protocol = cli_path_protocol(path, &n);
	bool is_blkdebug = has_protocol && n == strlen("blkdebug") &&
			   strncmp(path, "blkdebug", n) == 0;
	bool is_nbd = cli_driver_is_nbd(NULL, path);
	if (has_protocol && !is_blkdebug && !is_nbd) {
		bool is_file = n == strlen("file") && strncmp(path, "file", n) == 0;
		if (!is_file)
			return QK_FAIL(err, QCOW_E_UNSUPPORTED,
				"the protocol '%.*s' is not built in; a file of that name is "
				"'./%s'",
				(int)n, path, path);
		path += n + 1;
	}
	/* what "file:" leaves may look like another protocol: then it is shown as the path that it is */
	bool ambiguous = !is_blkdebug && !is_nbd && cli_path_protocol(path, &n);
	json_t *spec = json_object();
	json_t *name = ambiguous ? dot_path(path) : json_string_nocheck(path);
	if (spec == NULL || json_object_set_new(spec, "filename", name) != 0) {
		json_decref(spec);
		return QK_FAIL_NOMEM(err);
	}
	*out = spec;
	return QCOW_OK;
}

enum qcow_status cli_spec_parse(
	struct cli *cli, const struct cli_operand *operand, json_t **out, struct qcow_error *err)
{
	*out = NULL;
	if (operand->image_opts)
		return parse_image_opts(cli, operand->text, out, err);
	if (strncmp(operand->text, "json:", strlen("json:")) == 0)
		return cli_spec_parse_json(operand->text, out, err);
	return parse_path(operand->text, out, err);
}

enum qcow_status cli_spec_lower_filename(json_t *spec, struct qcow_error *err)
{
	const char *driver = json_string_value(json_object_get(spec, "driver"));
	json_t *name = json_object_get(spec, "filename"), *file = json_object_get(spec, "file");
	bool is_protocol = driver != NULL ? cli_driver_is_protocol(driver) : file == NULL;
	if (name == NULL || is_protocol || (file != NULL && !json_is_object(file)))
		return QCOW_OK;
	if (file == NULL && json_object_set_new(spec, "file", json_object()) != 0)
		return QK_FAIL_NOMEM(err);
	file = json_object_get(spec, "file");
	if (json_object_get(file, "filename") == NULL &&
		json_object_set(file, "filename", name) != 0)
		return QK_FAIL_NOMEM(err);
	(void)json_object_del(spec, "filename");
	return QCOW_OK;
}

enum qcow_status cli_spec_split_blkdebug(
	json_t *spec, json_t *image, const char *path, struct qcow_error *err)
{
	static const char prefix[] = "blkdebug:";
	if (path == NULL)
		return QCOW_OK;
	if (strncmp(path, prefix, strlen(prefix)) == 0) {
		path += strlen(prefix);
		const char *colon = strchr(path, ':');
		if (colon == NULL)
			return QK_FAIL(err, QCOW_E_INVAL,
				"blkdebug requires both config file and image path");
		json_t *config = json_stringn_nocheck(path, (size_t)(colon - path));
		if (config == NULL ||
			(colon != path && json_object_set(spec, "config", config) != 0)) {
			json_decref(config);
			return QK_FAIL_NOMEM(err);
		}
		json_decref(config);
		path = colon + 1;
	}
	if (strncmp(path, prefix, strlen(prefix)) == 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "blkdebug over blkdebug is not built in");
	if (json_object_get(image, "filename") == NULL && json_object_get(image, "file") == NULL &&
		json_object_set_new(image, "filename", json_string_nocheck(path)) != 0)
		return QK_FAIL_NOMEM(err);
	return QCOW_OK;
}

/* What `over` says wins, down to the leaves. The depth of both is bounded. */
static enum qcow_status lay_over(json_t *spec, json_t *over, unsigned depth, struct qcow_error *err)
{
	const char *key = NULL;
	json_t *value = NULL;
	json_object_foreach(over, key, value)
	{
		json_t *old = json_object_get(spec, key);
		if (json_is_object(old) && json_is_object(value) && depth < CLI_SPEC_DEPTH)
			QK_TRY(lay_over(old, value, depth + 1, err));
		else if (json_object_set(spec, key, value) != 0)
			return QK_FAIL_NOMEM(err);
	}
	return QCOW_OK;
}

enum qcow_status cli_spec_parse_with(struct cli *cli, const struct cli_operand *operand,
	const char *options, json_t **out, struct qcow_error *err)
{
	json_t *spec = NULL, *over = NULL;
	QK_TRY(cli_spec_parse(cli, operand, &spec, err));
	enum qcow_status status = QCOW_OK;
	if (options != NULL)
		status = parse_image_opts(cli, options, &over, err);
	if (status == QCOW_OK && over != NULL)
		status = lay_over(spec, over, 0, err);
	if (status == QCOW_OK && over != NULL)
		status = cli_spec_lower_filename(spec, err);
	json_decref(over);
	if (status != QCOW_OK) {
		json_decref(spec);
		return status;
	}
	*out = spec;
	return QCOW_OK;
}

enum qcow_status cli_spec_string(
	const json_t *spec, const char *key, const char **out, struct qcow_error *err)
{
	const json_t *value = json_object_get(spec, key);
	if (value == NULL)
		return QCOW_OK;
	if (!json_is_string(value))
		return QK_FAIL(err, QCOW_E_INVAL, "option '%s' must be a string", key);
	*out = json_string_value(value);
	return QCOW_OK;
}

enum qcow_status cli_spec_u64(
	struct cli *cli, const json_t *spec, const char *key, uint64_t *out, struct qcow_error *err)
{
	const json_t *value = json_object_get(spec, key);
	if (value == NULL)
		return QCOW_OK;
	if (json_is_integer(value) && json_integer_value(value) >= 0) {
		*out = (uint64_t)json_integer_value(value);
		return QCOW_OK;
	}
	if (json_is_string(value) && cli_parse_size(cli, key, json_string_value(value), out))
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_INVAL, "option '%s' must be a number of bytes", key);
}

enum qcow_status cli_spec_bool(
	const json_t *spec, const char *key, bool *out, struct qcow_error *err)
{
	const json_t *value = json_object_get(spec, key);
	if (value == NULL)
		return QCOW_OK;
	const char *text = json_is_string(value) ? json_string_value(value) : "";
	bool on = json_is_true(value) || strcmp(text, "on") == 0 || strcmp(text, "true") == 0;
	bool off = json_is_false(value) || strcmp(text, "off") == 0 || strcmp(text, "false") == 0;
	if (!on && !off)
		return QK_FAIL(err, QCOW_E_INVAL, "option '%s' must be on or off", key);
	*out = on;
	return QCOW_OK;
}

/* As QEMU has them: requests go on to the file where the image is told of them at all, snapshots always. */
enum qcow_status cli_spec_discard(
	const json_t *spec, bool *unmaps, uint32_t *flags, struct qcow_error *err)
{
	const char *word = NULL;
	bool request = false, snapshot = true, other = false, keeps = false;
	QK_TRY(cli_spec_string(spec, "discard", &word, err));
	if (word != NULL) {
		*unmaps = strcmp(word, "unmap") == 0 || strcmp(word, "on") == 0;
		if (!*unmaps && strcmp(word, "ignore") != 0 && strcmp(word, "off") != 0)
			return QK_FAIL(err, QCOW_E_INVAL, "Invalid discard option");
	}
	request = *unmaps;
	QK_TRY(cli_spec_bool(spec, "pass-discard-request", &request, err));
	QK_TRY(cli_spec_bool(spec, "pass-discard-snapshot", &snapshot, err));
	QK_TRY(cli_spec_bool(spec, "pass-discard-other", &other, err));
	QK_TRY(cli_spec_bool(spec, "discard-no-unref", &keeps, err));
	*flags = (request ? (uint32_t)QCOW_DISCARD_PASS_REQUEST : 0) |
		 (snapshot ? (uint32_t)QCOW_DISCARD_PASS_SNAPSHOT : 0) |
		 (other ? (uint32_t)QCOW_DISCARD_PASS_OTHER : 0) |
		 (keeps ? (uint32_t)QCOW_DISCARD_NO_UNREF : 0);
	return QCOW_OK;
}

enum qcow_status cli_spec_secret_id(const json_t *spec, const char **out, struct qcow_error *err)
{
	QK_TRY(cli_spec_string(json_object_get(spec, "encrypt"), "key-secret", out, err));
	return *out != NULL ? QCOW_OK : cli_spec_string(spec, "key-secret", out, err);
}

/* The filter that a node is, or 0. */
static unsigned filter_of(const json_t *spec)
{
	const char *driver = json_string_value(json_object_get(spec, "driver"));
	if (driver == NULL)
		return 0;
	if (strcmp(driver, "compress") == 0)
		return CLI_FILTER_COMPRESS;
	return strcmp(driver, "copy-on-read") == 0 ? CLI_FILTER_COPY_ON_READ : 0;
}

static enum qcow_status check_filter(const json_t *spec, struct qcow_error *err)
{
	static const char *const known[] = {"driver", "file", "node-name", "read-only",
		"auto-read-only", "discard", "detect-zeroes", "cache"};
	const char *key = NULL;
	json_t *value = NULL;
	json_object_foreach((json_t *)spec, key, value)
	{
		bool found = false;
		for (size_t i = 0; i < sizeof(known) / sizeof(known[0]) && !found; i++)
			found = strcmp(known[i], key) == 0;
		if (!found)
			return QK_FAIL(
				err, QCOW_E_UNSUPPORTED, "the option '%s' is not built in", key);
	}
	return json_is_object(json_object_get(spec, "file"))
		       ? QCOW_OK
		       : QK_FAIL(err, QCOW_E_INVAL,
				 "A block device must be specified for \"file\"");
}

enum qcow_status cli_spec_peel(json_t **spec, unsigned *filters, struct qcow_error *err)
{
	*filters = 0;
	for (unsigned filter = 0; (filter = filter_of(*spec)) != 0;) {
		QK_TRY(check_filter(*spec, err));
		json_t *below = json_incref(json_object_get(*spec, "file"));
		json_decref(*spec);
		*spec = below;
		*filters |= filter;
		QK_TRY(cli_spec_lower_filename(*spec, err));
	}
	return QCOW_OK;
}
