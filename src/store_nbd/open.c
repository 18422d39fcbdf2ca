/* SPDX-License-Identifier: MIT */
/*
 * open: connects to a server, and asks what its export can do.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "store_nbd/wire.h"

#define HANDSHAKE_S 60 /* for a server that nobody said anything about */

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

/* Begin to connect; the name of a host is looked up at once. */
static int begin(struct qk_nbd_wire *w, const struct qk_nbd_address *a)
{
	const struct qk_libnbd *lib = w->lib;
	if (!qk_nbd_set_tls(lib, w->nbd, a) || lib->set_export_name(w->nbd, a->export_name) != 0 ||
		lib->add_meta_context(w->nbd, qk_nbd_context_of(a)) != 0 ||
		lib->set_pread_initialize(w->nbd, false) != 0)
		return -1;
	return a->path != NULL ? lib->aio_connect_unix(w->nbd, a->path)
			       : lib->aio_connect_tcp(w->nbd, a->host, a->port);
}

enum qcow_status qk_nbd_wire_reach(struct qk_nbd_wire *w, const struct qk_nbd_address *a,
	int64_t deadline_ms, struct qcow_error *err)
{
	w->nbd = w->lib->create();
	if (w->nbd == NULL)
		return QK_FAIL_NOMEM(err);
	if (begin(w, a) != 0)
		return fail_connect(w->lib, a, err);
	enum qk_nbd_turn turn = qk_nbd_wire_settle(w, deadline_ms);
	if (turn == QK_NBD_TIME_IS_OVER)
		return QK_FAIL(err, QCOW_E_IO,
			"no NBD connection: the server does not finish the handshake");
	return turn == QK_NBD_TURNED && w->lib->aio_is_ready(w->nbd) > 0
		       ? QCOW_OK
		       : fail_connect(w->lib, a, err);
}

/* As often as open-timeout lets it. */
static enum qcow_status reach(
	struct qk_nbd_wire *w, const struct qk_nbd_address *a, struct qcow_error *err)
{
	const struct timespec pause = {.tv_nsec = 100000000};
	unsigned seconds = a->open_timeout_s != 0 ? a->open_timeout_s : HANDSHAKE_S;
	int64_t deadline = qk_nbd_clock_ms() + (int64_t)seconds * 1000;
	for (;;) {
		enum qcow_status status = qk_nbd_wire_reach(w, a, deadline, err);
		bool again = status != QCOW_OK && a->open_timeout_s != 0 &&
			     is_unreachable(w->lib->get_errno()) && qk_nbd_clock_ms() < deadline;
		if (!again)
			return status;
		qk_nbd_wire_end(w, qk_nbd_farewell_ms());
		qk_err_clear(err);
		(void)nanosleep(&pause, NULL);
	}
}

/* What the export of the first connection can do. */
static enum qcow_status ask(struct qk_nbd_disk *d, bool writable, struct qcow_error *err)
{
	const struct qk_libnbd *lib = d->lib;
	struct nbd_handle *nbd = d->wires[0].nbd;
	int64_t size = lib->get_size(nbd);
	int64_t least = lib->get_block_size(nbd, LIBNBD_SIZE_MINIMUM);
	int64_t most = lib->get_block_size(nbd, LIBNBD_SIZE_MAXIMUM);
	if (size < 0)
		return QK_FAIL(err, QCOW_E_IO, "the export has no size: %s", said(lib));
	if (writable && lib->is_read_only(nbd) != 0)
		return QK_FAIL(err, QCOW_E_READONLY, "request for write access denied");
	d->size = (uint64_t)size;
	d->min_block = least > 1 && least <= 65536 && (least & (least - 1)) == 0 ? (uint32_t)least
										 : 1;
	d->max_request = 32u << 20;
	if (most >= (int64_t)d->min_block && most < (int64_t)d->max_request)
		d->max_request = (uint32_t)most / d->min_block * d->min_block;
	d->writable = writable;
	d->can_flush = lib->can_flush(nbd) > 0;
	d->can_zero = lib->can_zero(nbd) > 0;
	d->has_extents = lib->can_meta_context(nbd, qk_nbd_context_of(&d->address)) > 0;
	if (d->address.dirty_bitmap != NULL && !d->has_extents)
		return QK_FAIL(err, QCOW_E_INVAL, "requested x-dirty-bitmap %s not found",
			d->address.dirty_bitmap);
	d->can_widen = lib->can_multi_conn(nbd) > 0;
	atomic_store(&d->wires[0].is_up, true);
	return QCOW_OK;
}

void qk_nbd_disk_widen(struct qk_nbd_disk *d)
{
	for (int i = 1; i < QK_NBD_CONNECTIONS; i++) {
		struct qk_nbd_wire *w = &d->wires[i];
		w->size = d->size;
		w->first = &d->wires[0];
		w->nbd = d->lib->create();
		if (w->nbd == NULL || begin(w, &d->address) != 0 ||
			qk_nbd_wire_start(w, NULL) != QCOW_OK)
			return;
	}
}

void qk_nbd_disk_end(struct qk_nbd_disk *d)
{
	int64_t deadline = qk_nbd_farewell_ms();
	for (int i = QK_NBD_CONNECTIONS - 1; i >= 0; i--)
		qk_nbd_wire_end(&d->wires[i], deadline);
}

void qk_nbd_disk_free(struct qk_nbd_disk *d)
{
	qk_nbd_disk_end(d);
	qk_nbd_lives_release(&d->lives);
	qk_nbd_address_release(&d->address);
	free(d);
}

/* Connected, with the first connection's thread. */
static enum qcow_status connect_disk(struct qk_nbd_disk *d, const struct qk_nbd_address *a,
	bool writable, struct qcow_error *err)
{
	qk_nbd_lives_init(&d->lives);
	QK_TRY(qk_libnbd_load(&d->lib, err));
	for (int i = 0; i < QK_NBD_CONNECTIONS; i++) {
		d->wires[i].lib = d->lib;
		d->wires[i].kick = -1;
	}
	QK_TRY(qk_nbd_address_copy(a, &d->address, err));
	QK_TRY(reach(&d->wires[0], &d->address, err));
	QK_TRY(ask(d, writable, err));
	return qk_nbd_wire_start(&d->wires[0], err);
}

enum qcow_status qk_nbd_open(const struct qk_nbd_address *a, bool writable, struct qcow_store **out,
	struct qk_nbd_disk **out_disk, struct qcow_error *err)
{
	struct qk_nbd_disk *disk = qk_calloc(1, sizeof(*disk));
	QK_AUTO_FREE char *name = qk_nbd_address_text(a);
	if (disk == NULL || name == NULL) {
		free(disk);
		return QK_FAIL_NOMEM(err);
	}
	struct qcow_store *store = NULL;
	enum qcow_status status = connect_disk(disk, a, writable, err);
	if (status == QCOW_OK)
		status = qcow_store_new(&qk_nbd_disk_ops, disk, &store, err);
	if (status != QCOW_OK) {
		qk_nbd_disk_free(disk);
		return status;
	}
	status = qcow_store_set_name(store, name, err);
	if (status != QCOW_OK)
		qcow_store_close(store);
	else
		*out = store;
	if (status == QCOW_OK && out_disk != NULL)
		*out_disk = disk;
	return status;
}
