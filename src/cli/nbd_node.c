/* SPDX-License-Identifier: MIT */
/*
 * nbd_node: nodes that lie on an NBD server.
 */
#include "cli/nbd_node.h"

#include <string.h>

#include "base/mem.h"
#include "cli/object.h"
#include "cli/spec.h"

#ifdef QK_LIBNBD
#include "store_nbd/store_nbd.h"

#define LONGEST_S 86400U

/* A copy of a member, or NULL where it is missing. */
static enum qcow_status take(
	const json_t *spec, const char *key, char **out, struct qcow_error *err)
{
	const json_t *value = json_object_get(spec, key);
	const char *text = NULL;
	if (json_is_integer(value)) {
		if (asprintf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value)) < 0) {
			*out = NULL;
			return QK_FAIL_NOMEM(err);
		}
		return QCOW_OK;
	}
	QK_TRY(cli_spec_string(spec, key, &text, err));
	if (text == NULL)
		return QCOW_OK;
	*out = qk_strndup(text, strlen(text));
	return *out != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

enum qcow_status cli_nbd_use_creds(
	struct cli *cli, const char *id, struct qk_nbd_address *a, struct qcow_error *err)
{
	const struct cli_tls *tls = cli_tls_find(cli, id);
	if (tls == NULL)
		return QK_FAIL(err, QCOW_E_KEY, "No TLS credentials with id '%s'", id);
	if (tls->is_server)
		return QK_FAIL(err, QCOW_E_KEY, "Expecting TLS credentials with a client endpoint");
	a->tls = true;
	a->no_verify = !tls->verify_peer;
	QK_AUTO_FREE char *psk = NULL;
	if (tls->is_psk && asprintf(&psk, "%s/keys.psk", tls->dir) < 0)
		return QK_FAIL_NOMEM(err);
	if (tls->is_psk) {
		a->tls_psk_file = psk;
		psk = NULL;
	} else {
		a->tls_dir = qk_strndup(tls->dir, strlen(tls->dir));
	}
	if (tls->username != NULL)
		a->tls_username = qk_strndup(tls->username, strlen(tls->username));
	bool is_lost = (!tls->is_psk && a->tls_dir == NULL) ||
		       (tls->username != NULL && a->tls_username == NULL);
	return is_lost ? QK_FAIL_NOMEM(err) : QCOW_OK;
}

/* --object tls-creds-…,id=… */
static enum qcow_status take_tls(
	struct cli *cli, const json_t *spec, struct qk_nbd_address *a, struct qcow_error *err)
{
	const char *id = NULL;
	QK_TRY(cli_spec_string(spec, "tls-creds", &id, err));
	if (json_object_get(spec, "tls-hostname") != NULL)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "'tls-hostname' is not built in");
	return id != NULL ? cli_nbd_use_creds(cli, id, a, err) : QCOW_OK;
}

/* open-timeout, reconnect-delay: seconds. */
static enum qcow_status take_timeouts(
	struct cli *cli, const json_t *spec, struct qk_nbd_address *a, struct qcow_error *err)
{
	uint64_t delay = 0, timeout = 0;
	QK_TRY(cli_spec_u64(cli, spec, "reconnect-delay", &delay, err));
	QK_TRY(cli_spec_u64(cli, spec, "open-timeout", &timeout, err));
	a->open_timeout_s = timeout < LONGEST_S ? (unsigned)timeout : LONGEST_S;
	a->reconnect_delay_s = delay < LONGEST_S ? (unsigned)delay : LONGEST_S;
	return QCOW_OK;
}

static enum qcow_status take_members(
	struct cli *cli, const json_t *spec, struct qk_nbd_address *a, struct qcow_error *err)
{
	const json_t *server = json_object_get(spec, "server");
	const json_t *from = server != NULL ? server : spec;
	const char *type = NULL;
	if (server != NULL)
		QK_TRY(cli_spec_string(server, "type", &type, err));
	if (type != NULL && strcmp(type, "unix") != 0 && strcmp(type, "inet") != 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"a server of type '%s' is not built in; unix and inet are", type);
	QK_TRY(take(from, "path", &a->path, err));
	QK_TRY(take(from, "host", &a->host, err));
	QK_TRY(take(from, "port", &a->port, err));
	QK_TRY(take(spec, "export", &a->export_name, err));
	if (a->path != NULL && a->host != NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "path and host may not be used at the same time");
	if (a->path == NULL && a->host == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "NBD server address missing");
	if (a->export_name == NULL)
		a->export_name = qk_strndup("", 0);
	if (a->host != NULL && a->port == NULL)
		a->port = qk_strndup("10809", strlen("10809"));
	if (a->export_name == NULL || (a->host != NULL && a->port == NULL))
		return QK_FAIL_NOMEM(err);
	return take_tls(cli, spec, a, err);
}

/* A node that is open: its store, and the disk behind it, which is gone with the store. */
struct cli_nbd_node {
	struct cli_nbd_node *next;
	const struct qcow_store *store;
	struct qk_nbd_disk *disk;
};

static enum qcow_status open_address(struct cli *cli, const struct qk_nbd_address *address,
	unsigned flags, struct qcow_store **out, struct qcow_error *err)
{
	struct cli_nbd_node *node = qk_calloc(1, sizeof(*node));
	if (node == NULL)
		return QK_FAIL_NOMEM(err);
	enum qcow_status status = qk_nbd_open(
		address, (flags & QCOW_FILE_WRITE) != 0, out, &node->disk, err);
	if (status != QCOW_OK) {
		free(node);
		return status;
	}
	node->store = *out;
	node->next = cli->nbd_nodes;
	cli->nbd_nodes = node;
	return QCOW_OK;
}

void cli_nbd_release(struct cli *cli)
{
	while (cli->nbd_nodes != NULL) {
		struct cli_nbd_node *node = cli->nbd_nodes;
		cli->nbd_nodes = node->next;
		free(node);
	}
}

enum qcow_status cli_nbd_refine(
	const struct cli *cli, struct qcow_extent *e, struct qcow_error *err)
{
	const struct cli_nbd_node *node = cli->nbd_nodes;
	struct qk_nbd_status said;
	struct qcow_info in;
	if (node == NULL || (e->flags & QCOW_EXTENT_OFFSET) == 0)
		return QCOW_OK;
	qcow_get_info(e->layer, &in);
	while (node != NULL && node->store != qcow_image_store(e->layer))
		node = node->next;
	if (node == NULL || in.version != 0)
		return QCOW_OK;
	QK_TRY(qk_nbd_status(node->disk, e->host_off, e->len, &said, err));
	uint32_t flags = ((said.bits & 1) == 0 ? (uint32_t)QCOW_EXTENT_DATA : 0) |
			 ((said.bits & 2) != 0 ? (uint32_t)QCOW_EXTENT_ZERO : 0);
	e->len = said.len;
	e->flags = flags != 0 ? flags | QCOW_EXTENT_PRESENT | QCOW_EXTENT_OFFSET : 0;
	return QCOW_OK;
}

enum qcow_status cli_nbd_open_name(struct cli *cli, const char *name, unsigned flags,
	struct qcow_store **out, struct qcow_error *err)
{
	struct qk_nbd_address address = {0};
	enum qcow_status status = qk_nbd_address_parse(name, &address, err);
	if (status == QCOW_OK)
		status = open_address(cli, &address, flags, out, err);
	qk_nbd_address_release(&address);
	return status;
}

enum qcow_status cli_nbd_open(struct cli *cli, const json_t *spec, unsigned flags,
	struct qcow_store **out, struct qcow_error *err)
{
	struct qk_nbd_address address = {0};
	const char *name = NULL;
	QK_TRY(cli_spec_string(spec, "filename", &name, err));
	enum qcow_status status = QCOW_OK;
	if (name != NULL)
		status = qk_nbd_address_parse(name, &address, err);
	else
		status = take_members(cli, spec, &address, err);
	if (status == QCOW_OK && name != NULL)
		status = take_tls(cli, spec, &address, err);
	if (status == QCOW_OK)
		status = take_timeouts(cli, spec, &address, err);
	if (status == QCOW_OK)
		status = take(spec, "x-dirty-bitmap", &address.dirty_bitmap, err);
	if (status == QCOW_OK)
		status = open_address(cli, &address, flags, out, err);
	qk_nbd_address_release(&address);
	return status;
}

#else

enum qcow_status cli_nbd_open_name(struct cli *cli, const char *name, unsigned flags,
	struct qcow_store **out, struct qcow_error *err)
{
	(void)cli;
	(void)flags;
	(void)out;
	return QK_FAIL(err, QCOW_E_UNSUPPORTED, "NBD is not built in: '%s'", name);
}

enum qcow_status cli_nbd_open(struct cli *cli, const json_t *spec, unsigned flags,
	struct qcow_store **out, struct qcow_error *err)
{
	(void)spec;
	return cli_nbd_open_name(cli, "driver=nbd", flags, out, err);
}

enum qcow_status cli_nbd_refine(
	const struct cli *cli, struct qcow_extent *e, struct qcow_error *err)
{
	(void)cli;
	(void)e;
	(void)err;
	return QCOW_OK;
}

void cli_nbd_release(struct cli *cli)
{
	(void)cli;
}

#endif
