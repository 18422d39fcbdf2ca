/* SPDX-License-Identifier: MIT */
/*
 * tls_creds: --object tls-creds-x509 and tls-creds-psk: where the files of a TLS end point are. They are read by who
 * connects or listens.
 */
#include <string.h>

#include "base/mem.h"
#include "cli/object.h"

const struct cli_tls *cli_tls_find(const struct cli *cli, const char *id)
{
	for (const struct cli_tls *t = cli->tls; t != NULL; t = t->next)
		if (strcmp(t->id, id) == 0)
			return t;
	return NULL;
}

static void free_tls(struct cli_tls *t)
{
	free(t->id);
	free(t->dir);
	free(t->username);
	free(t->priority);
	free(t);
}

void cli_tls_release(struct cli *cli)
{
	while (cli->tls != NULL) {
		struct cli_tls *t = cli->tls;
		cli->tls = t->next;
		free_tls(t);
	}
}

static bool refuse(struct cli *cli, const char *type, const char *why, const char *what)
{
	cli_error(cli, "--object %s: '%s' %s", type, what, why);
	return false;
}

/* Everything but the type, which stands first or is qom-type. */
static bool take(struct cli *cli, const char *type, const struct cli_keyvals *kv, struct cli_tls *t)
{
	for (size_t i = 0; i < kv->n; i++) {
		const char *key = kv->v[i].key, *value = kv->v[i].value;
		char **text = strcmp(key, "id") == 0	     ? &t->id
			      : strcmp(key, "dir") == 0	     ? &t->dir
			      : strcmp(key, "username") == 0 ? &t->username
			      : strcmp(key, "priority") == 0 ? &t->priority
							     : NULL;
		bool is_type = (i == 0 && value == NULL) || strcmp(key, "qom-type") == 0;
		if (is_type)
			continue;
		if (text != NULL && value != NULL) {
			free(*text);
			*text = qk_strndup(value, strlen(value));
			if (*text == NULL)
				cli_out_of_memory();
		} else if (strcmp(key, "endpoint") == 0 && value != NULL) {
			t->is_server = strcmp(value, "server") == 0;
			if (!t->is_server && strcmp(value, "client") != 0)
				return refuse(
					cli, type, "is no end point: client or server", value);
		} else if (strcmp(key, "verify-peer") == 0) {
			if (!cli_parse_bool(cli, "verify-peer", value != NULL ? value : "on",
				    &t->verify_peer))
				return false;
		} else {
			return refuse(cli, type, "is not supported", key);
		}
	}
	if (t->id == NULL || t->id[0] == '\0')
		return refuse(cli, type, "is missing", "id");
	if (t->dir == NULL)
		return refuse(cli, type, "is missing", "dir");
	return cli_tls_find(cli, t->id) == NULL || refuse(cli, type, "is there already", t->id);
}

bool cli_tls_add(struct cli *cli, const char *type, const struct cli_keyvals *kv)
{
	bool is_psk = strcmp(type, "tls-creds-psk") == 0;
	if (!is_psk && strcmp(type, "tls-creds-x509") != 0) {
		cli_error(cli,
			"--object '%s': this type of object is not built in; 'secret', "
			"'tls-creds-x509' and 'tls-creds-psk' are",
			type);
		return false;
	}
	struct cli_tls *t = qk_calloc(1, sizeof(*t));
	if (t == NULL)
		cli_out_of_memory();
	t->is_psk = is_psk;
	t->verify_peer = true;
	if (!take(cli, type, kv, t)) {
		free_tls(t);
		return false;
	}
	t->next = cli->tls;
	cli->tls = t;
	return true;
}
