/* SPDX-License-Identifier: MIT */
/*
 * tls: TLS of a connection by GnuTLS: credentials of the server, and one session a connection, which never blocks.
 */
#ifndef QK_SERVE_NBD_TLS_H
#define QK_SERVE_NBD_TLS_H

#include <sys/types.h>
#include <sys/uio.h>

#include "serve/nbd/server.h"

struct qk_nbd_tls_config;
struct qk_nbd_tls;

/* QCOW_E_KEY: a file is missing or bad; QCOW_E_UNSUPPORTED: not compiled in. */
enum qcow_status qk_nbd_tls_config_new(const struct qk_nbd_options *options,
	struct qk_nbd_tls_config **out, struct qcow_error *err);
void qk_nbd_tls_config_free(struct qk_nbd_tls_config *config);

/* NULL: no memory. */
struct qk_nbd_tls *qk_nbd_tls_new(struct qk_nbd_tls_config *config, int in_fd, int out_fd);
/* `bye`: tell the peer that it ends. */
void qk_nbd_tls_free(struct qk_nbd_tls *tls, bool bye);

/* 1: done, 0: to be called again (*wants_out: when the descriptor takes bytes), -1: failed, *why says how. */
int qk_nbd_tls_handshake(struct qk_nbd_tls *tls, bool *wants_out, const char **why);

/* As recv and send, -1 with errno. A send that answered EAGAIN is to be repeated with the same bytes first. */
ssize_t qk_nbd_tls_recv(struct qk_nbd_tls *tls, void *buf, size_t n);
ssize_t qk_nbd_tls_send(struct qk_nbd_tls *tls, const void *buf, size_t n);
bool qk_nbd_tls_has_more(const struct qk_nbd_tls *tls);

#endif
