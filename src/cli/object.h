/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_OBJECT_H
#define QK_CLI_OBJECT_H

#include "cli/cli.h"

/* One --object secret. */
struct cli_secret {
	struct cli_secret *next;
	char *id;
	char *data; /* not NUL terminated */
	size_t bytes;
};

/* One --object tls-creds-x509 or tls-creds-psk. */
struct cli_tls {
	struct cli_tls *next;
	char *id, *dir;
	char *username, *priority; /* or NULL */
	bool is_psk, is_server, verify_peer;
};

/* The credentials with this id, or NULL. They live until cli_objects_release. */
const struct cli_tls *cli_tls_find(const struct cli *cli, const char *id);

/* tls_creds.c, for object.c: keep those that `kv` describes, of a type that begins with "tls-creds-". False: refused and
 * reported. */
bool cli_tls_add(struct cli *cli, const char *type, const struct cli_keyvals *kv);
void cli_tls_release(struct cli *cli);

/* The secret with this id, or NULL. It lives until cli_objects_release. */
const struct cli_secret *cli_secret_find(const struct cli *cli, const char *id);

/* Ids that no --object can have: that of --secret-file, and of passphrases typed. */
#define CLI_SECRET_FILE	 ""
#define CLI_SECRET_TYPED "\n"

/* Keep a copy of `n` bytes. NULL: out of memory. */
const struct cli_secret *cli_secret_add(
	struct cli *cli, const char *id, const char *data, size_t n);

/* struct qcow_open_options.get_secret with the struct cli as context: --secret-file, else a prompt where
 * there is a terminal, else QCOW_E_KEY that says what to do. */
enum qcow_status cli_passphrase(void *ctx, const struct qcow_secret_request *rq,
	struct qcow_secret *out, struct qcow_error *err);
/* From this thread, which is no place to ask anybody: only what was typed before for the same name. */
void cli_passphrase_ask_no_more(bool yes);

#endif
