/* SPDX-License-Identifier: MIT */
/*
 * object: --object and --secret-file. Secrets and TLS credentials are parsed, checked and kept for the nodes that name
 * them; every other type of object is refused by name.
 *
 * Key material lives in memory of its own and is wiped before it is freed.
 */
#include "cli/object.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/nbd_node.h"

enum {
	SECRET_FILE_BYTES = 1 << 20
};

static void free_secret(struct cli_secret *s)
{
	if (s->data != NULL)
		explicit_bzero(s->data, s->bytes);
	free(s->data);
	free(s->id);
	free(s);
}

void cli_objects_release(struct cli *cli)
{
	while (cli->secrets != NULL) {
		struct cli_secret *s = cli->secrets;
		cli->secrets = s->next;
		free_secret(s);
	}
	cli_tls_release(cli);
	cli_nbd_release(cli);
}

const struct cli_secret *cli_secret_find(const struct cli *cli, const char *id)
{
	for (const struct cli_secret *s = cli->secrets; s != NULL; s = s->next)
		if (strcmp(s->id, id) == 0)
			return s;
	return NULL;
}

const struct cli_secret *cli_secret_add(struct cli *cli, const char *id, const char *data, size_t n)
{
	struct cli_secret *s = qk_calloc(1, sizeof(*s));
	if (s == NULL)
		return NULL;
	s->id = strdup(id);
	s->data = qk_malloc((uint64_t)n + 1, 1);
	if (s->id == NULL || s->data == NULL) {
		free_secret(s);
		return NULL;
	}
	memcpy(s->data, data, n);
	s->bytes = n;
	s->next = cli->secrets;
	cli->secrets = s;
	return s;
}

static bool read_file(struct cli *cli, const char *path, struct cli_secret *s)
{
	FILE *f = fopen(path, "rbe");
	if (f == NULL) {
		cli_error(cli, "cannot read the secret '%s' from '%s': %s", s->id, path,
			strerror(errno));
		return false;
	}
	s->data = qk_malloc(SECRET_FILE_BYTES + 1, 1);
	s->bytes = s->data != NULL ? fread(s->data, 1, SECRET_FILE_BYTES + 1, f) : 0;
	bool failed = ferror(f) != 0;
	(void)fclose(f);
	if (s->data == NULL)
		cli_error(cli, "Cannot allocate memory");
	else if (failed)
		cli_error(cli, "cannot read the secret '%s' from '%s'", s->id, path);
	else if (s->bytes > SECRET_FILE_BYTES)
		cli_error(cli, "the secret '%s' in '%s' is larger than 1 MiB", s->id, path);
	else
		return true;
	return false;
}

static int base64_value(char c)
{
	static const char letters[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const char *at = c != '\0' ? strchr(letters, c) : NULL;
	return at != NULL ? (int)(at - letters) : -1;
}

/* Decode in place. Blanks and line ends are skipped. */
static bool decode_base64(struct cli *cli, struct cli_secret *s)
{
	uint32_t bits = 0;
	unsigned n_bits = 0, n_padding = 0;
	size_t used = 0, n_digits = 0;
	for (size_t i = 0; i < s->bytes; i++) {
		char c = s->data[i];
		if (c == ' ' || c == '\t' || c == '\r' || c == '\n')
			continue;
		int v = base64_value(c);
		n_digits++;
		if (c == '=') {
			n_padding++;
			continue;
		}
		if (v < 0 || n_padding != 0) {
			cli_error(cli, "the secret '%s' is not base64", s->id);
			return false;
		}
		bits = bits << 6 | (uint32_t)v;
		n_bits += 6;
		if (n_bits >= 8) {
			n_bits -= 8;
			s->data[used++] = (char)(bits >> n_bits & 0xff);
		}
	}
	if (n_digits % 4 != 0 || n_padding > 2) {
		cli_error(cli, "the secret '%s' is not base64", s->id);
		return false;
	}
	s->bytes = used;
	return true;
}

static bool fill_secret(struct cli *cli, const struct cli_keyvals *kv, struct cli_secret *s)
{
	const char *id = cli_keyvals_get(kv, "id"), *data = cli_keyvals_get(kv, "data");
	const char *file = cli_keyvals_get(kv, "file"), *format = cli_keyvals_get(kv, "format");
	if (id == NULL || id[0] == '\0') {
		cli_error(cli, "--object secret needs an id=");
		return false;
	}
	s->id = strdup(id);
	if (s->id == NULL) {
		cli_error(cli, "Cannot allocate memory");
		return false;
	}
	if (cli_secret_find(cli, id) != NULL) {
		cli_error(cli, "there are two secrets with the id '%s'", id);
		return false;
	}
	if ((data == NULL) == (file == NULL)) {
		cli_error(cli, "the secret '%s' needs either data= or file=", id);
		return false;
	}
	if (format != NULL && strcmp(format, "raw") != 0 && strcmp(format, "base64") != 0) {
		cli_error(cli, "the secret '%s' has an unknown format '%s'", id, format);
		return false;
	}
	if (file != NULL && !read_file(cli, file, s))
		return false;
	if (data != NULL) {
		s->data = strdup(data);
		s->bytes = strlen(data);
		if (s->data == NULL) {
			cli_error(cli, "Cannot allocate memory");
			return false;
		}
	}
	return format == NULL || strcmp(format, "raw") == 0 || decode_base64(cli, s);
}

static bool keys_are_known(struct cli *cli, const struct cli_keyvals *kv)
{
	static const char *const known[] = {"id", "data", "file", "format", "qom-type"};
	for (size_t i = 1; i < kv->n; i++) {
		bool found = false;
		for (size_t k = 0; k < sizeof(known) / sizeof(known[0]); k++)
			found = found || strcmp(kv->v[i].key, known[k]) == 0;
		if (!found || kv->v[i].value == NULL) {
			cli_error(cli, "--object secret: '%s' is not supported", kv->v[i].key);
			return false;
		}
	}
	return true;
}

static bool add_secret(struct cli *cli, const struct cli_keyvals *kv)
{
	if (!keys_are_known(cli, kv))
		return false;
	struct cli_secret *s = qk_calloc(1, sizeof(*s));
	if (s == NULL) {
		cli_error(cli, "Cannot allocate memory");
		return false;
	}
	if (!fill_secret(cli, kv, s)) {
		free_secret(s);
		return false;
	}
	s->next = cli->secrets;
	cli->secrets = s;
	return true;
}

static bool add_object(struct cli *cli, const char *text)
{
	struct cli_keyvals kv = {0};
	bool ok = cli_keyvals_add(cli, &kv, text);
	if (ok) {
		/* "secret,…" or "qom-type=secret,…" */
		const char *type = cli_keyvals_get(&kv, "qom-type");
		if (type == NULL && kv.n > 0 && kv.v[0].value == NULL)
			type = kv.v[0].key;
		if (type != NULL && strcmp(type, "secret") == 0)
			ok = add_secret(cli, &kv);
		else
			ok = cli_tls_add(cli, type != NULL ? type : text, &kv);
	}
	for (size_t i = 0; i < kv.n; i++)
		if (kv.v[i].value != NULL)
			explicit_bzero(kv.v[i].value, strlen(kv.v[i].value));
	cli_keyvals_release(&kv);
	return ok;
}

/* --secret-file: the bytes of a file, without the newline that an editor leaves at its end. */
static bool add_secret_file(struct cli *cli, const char *path)
{
	struct cli_secret read = {.id = (char *)path};
	bool ok = read_file(cli, path, &read);
	size_t n = read.bytes;
	if (ok && n > 0 && read.data[n - 1] == '\n')
		n--;
	if (ok && cli_secret_add(cli, CLI_SECRET_FILE, read.data, n) == NULL) {
		cli_error(cli, "out of memory");
		ok = false;
	}
	if (read.data != NULL)
		explicit_bzero(read.data, read.bytes);
	free(read.data);
	return ok;
}

bool cli_objects_add_all(struct cli *cli, const struct cli_args *args)
{
	if (cli->objects_added)
		return true;
	cli->objects_added = true;
	size_t at = 0;
	for (const char *text = cli_arg_next(args, "object", &at); text != NULL;
		text = cli_arg_next(args, "object", &at))
		if (!add_object(cli, text))
			return false;
	const char *path = cli_arg(args, "secret-file");
	return path == NULL || add_secret_file(cli, path);
}
