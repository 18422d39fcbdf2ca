/* SPDX-License-Identifier: MIT */
/*
 * open: connects to a server, and asks what its export can do.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store_nbd/wire.h"

/* What libnbd said last, without the name of its own function. */
static const char *said(const struct qk_libnbd *lib)
{
	const char *text = lib->get_error();
	const char *colon = text != NULL ? strstr(text, ": ") : NULL;
	return colon != NULL && strncmp(text, "nbd_", strlen("nbd_")) == 0 ? colon + 2
	       : text != NULL						   ? text
									   : "no reason given";
}

static bool is_unreachable(int error)
{
	return error == ENOENT || error == ECONNREFUSED || error == EACCES ||
	       error == EHOSTUNREACH || error == ENETUNREACH || error == ETIMEDOUT ||
	       error == ECONNRESET;
}

static enum qcow_status fail_connect(
	const struct qk_libnbd *lib, const struct qk_nbd_address *a, struct qcow_error *err)
{
	int error = lib->get_errno();
	const char *why = said(lib);
	if (strstr(why, "server has no export") != NULL)
		return QK_FAIL(err, QCOW_E_NOENT, "Requested export not available");
	bool at_socket = strncmp(why, "connect:", strlen("connect:")) == 0 ||
			 strstr(why, ": connect:") != NULL;
	if (is_unreachable(error) && at_socket && a->path != NULL)
		return QK_FAIL_OS(err, error, "Failed to connect to '%s'", a->path);
	if (is_unreachable(error) && at_socket)
		return QK_FAIL_OS(err, error, "Failed to connect to '%s:%s'", a->host, a->port);
	enum qcow_status status = error != 0 ? qk_status_from_errno(error) : QCOW_E_IO;
	return QK_FAIL(err, status, "no NBD connection: %s", why);
}

bool qk_nbd_set_tls(
	const struct qk_libnbd *lib, struct nbd_handle *nbd, const struct qk_nbd_address *a)
{
	if (!a->tls)
		return true;
	return lib->set_tls(nbd, LIBNBD_TLS_REQUIRE) == 0 &&
	       lib->set_tls_verify_peer(nbd, !a->no_verify) == 0 &&
	       (a->tls_dir == NULL || lib->set_tls_certificates(nbd, a->tls_dir) == 0) &&
	       (a->tls_psk_file == NULL || lib->set_tls_psk_file(nbd, a->tls_psk_file) == 0) &&
	       (a->tls_username == NULL || lib->set_tls_username(nbd, a->tls_username) == 0);
}

static enum qcow_status reach(
	const struct qk_nbd_wire *wire, const struct qk_nbd_address *a, struct qcow_error *err)
{
	const struct qk_libnbd *lib = wire->lib;
	struct nbd_handle *nbd = wire->nbd;
	if (!qk_nbd_set_tls(lib, nbd, a) || lib->set_export_name(nbd, a->export_name) != 0 ||
		lib->add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 ||
		lib->set_pread_initialize(nbd, false) != 0)
		return QK_FAIL(err, QCOW_E_INVAL, "%s", said(lib));
	int r = a->path != NULL ? lib->connect_unix(nbd, a->path)
				: lib->connect_tcp(nbd, a->host, a->port);
	return r == 0 ? QCOW_OK : fail_connect(lib, a, err);
}

/* The export in `wire`. */
static enum qcow_status ask(struct qk_nbd_wire *wire, bool writable, struct qcow_error *err)
{
	const struct qk_libnbd *lib = wire->lib;
	struct nbd_handle *nbd = wire->nbd;
	int64_t size = lib->get_size(nbd);
	int64_t least = lib->get_block_size(nbd, LIBNBD_SIZE_MINIMUM);
	int64_t most = lib->get_block_size(nbd, LIBNBD_SIZE_MAXIMUM);
	if (size < 0)
		return QK_FAIL(err, QCOW_E_IO, "the export has no size: %s", said(lib));
	if (writable && lib->is_read_only(nbd) != 0)
		return QK_FAIL(err, QCOW_E_READONLY, "request for write access denied");
	wire->size = (uint64_t)size;
	wire->min_block = least > 1 && least <= 65536 && (least & (least - 1)) == 0
				  ? (uint32_t)least
				  : 1;
	wire->max_request = 32u << 20;
	if (most >= (int64_t)wire->min_block && most < (int64_t)wire->max_request)
		wire->max_request = (uint32_t)most / wire->min_block * wire->min_block;
	wire->writable = writable;
	wire->can_flush = lib->can_flush(nbd) > 0;
	wire->can_zero = lib->can_zero(nbd) > 0;
	wire->has_extents = lib->can_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
	return QCOW_OK;
}

/* Connected, and its thread not yet there. */
static enum qcow_status connect_wire(const struct qk_nbd_address *a, bool writable,
	struct qk_nbd_wire *wire, struct qcow_error *err)
{
	QK_TRY(qk_libnbd_load(&wire->lib, err));
	wire->nbd = wire->lib->create();
	if (wire->nbd == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(reach(wire, a, err));
	return ask(wire, writable, err);
}

enum qcow_status qk_nbd_open(const struct qk_nbd_address *a, bool writable, struct qcow_store **out,
	struct qcow_error *err)
{
	struct qk_nbd_wire *wire = qk_calloc(1, sizeof(*wire));
	QK_AUTO_FREE char *name = qk_nbd_address_text(a);
	if (wire == NULL || name == NULL) {
		free(wire);
		return QK_FAIL_NOMEM(err);
	}
	struct qcow_store *store = NULL;
	enum qcow_status status = connect_wire(a, writable, wire, err);
	if (status == QCOW_OK)
		status = qk_nbd_wire_start(wire, err);
	if (status != QCOW_OK) {
		if (wire->nbd != NULL)
			wire->lib->close(wire->nbd);
		free(wire);
		return status;
	}
	status = qcow_store_new(&qk_nbd_wire_ops, wire, &store, err);
	if (status != QCOW_OK) {
		qk_nbd_wire_ops.close(wire);
		return status;
	}
	status = qcow_store_set_name(store, name, err);
	if (status != QCOW_OK)
		qcow_store_close(store);
	else
		*out = store;
	return status;
}
