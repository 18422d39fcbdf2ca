/* SPDX-License-Identifier: MIT */
/*
 * tls: see tls.h. TLS 1.2 and later; x509, pre-shared keys, or both.
 */
#include "serve/nbd/tls.h"

#include <errno.h>

#include "base/err.h"

#ifdef QK_GNUTLS

#include <stdio.h>
#include <unistd.h>

#include "base/mem.h"
#include "serve/nbd/tlslib.h"

#define VERSIONS   ":-VERS-TLS1.0:-VERS-TLS1.1"
#define PRIORITY   "NORMAL" VERSIONS
#define PRIORITY_K "NORMAL" VERSIONS ":+ECDHE-PSK:+DHE-PSK:+PSK"

struct qk_nbd_tls_config {
	gnutls_certificate_credentials_t x509;
	gnutls_psk_server_credentials_t psk;
	gnutls_priority_t priority;
	const struct qk_gnutls *lib;
	bool verify_peer;
	gnutls_typed_vdata_st
		purpose; /* what a client's certificate must be for; sessions point to it */
};

struct qk_nbd_tls {
	const struct qk_gnutls *lib;
	gnutls_session_t session;
	bool is_up, has_unsent; /* a record was begun that the descriptor did not take whole */
};

static enum qcow_status failed(
	const struct qk_nbd_tls_config *c, struct qcow_error *err, const char *what, int code)
{
	return QK_FAIL(err, QCOW_E_KEY, "TLS: %s: %s", what, c->lib->strerror(code));
}

/* DIR/NAME; false: it does not fit. */
static bool path_of(char out[4096], const char *dir, const char *name)
{
	int n = snprintf(out, 4096, "%s/%s", dir, name);
	return n > 0 && n < 4096;
}

static enum qcow_status load_trust(
	struct qk_nbd_tls_config *c, const struct qk_nbd_options *o, struct qcow_error *err)
{
	char path[4096];
	if (!path_of(path, o->tls_dir, "ca-cert.pem"))
		return QK_FAIL(err, QCOW_E_INVAL, "TLS: a folder with too long a name");
	if (access(path, F_OK) == 0) {
		int code = c->lib->certificate_set_x509_trust_file(
			c->x509, path, GNUTLS_X509_FMT_PEM);
		if (code < 0)
			return failed(c, err, path, code);
	} else if (o->tls_verify_peer) {
		return QK_FAIL(
			err, QCOW_E_KEY, "TLS: clients cannot be verified without '%s'", path);
	}
	if (path_of(path, o->tls_dir, "ca-crl.pem") && access(path, F_OK) == 0) {
		int code = c->lib->certificate_set_x509_crl_file(
			c->x509, path, GNUTLS_X509_FMT_PEM);
		if (code < 0)
			return failed(c, err, path, code);
	}
	return QCOW_OK;
}

static enum qcow_status load_x509(
	struct qk_nbd_tls_config *c, const struct qk_nbd_options *o, struct qcow_error *err)
{
	char cert[4096], key[4096];
	int code = c->lib->certificate_allocate_credentials(&c->x509);
	if (code < 0)
		return failed(c, err, "certificates", code);
	QK_TRY(load_trust(c, o, err));
	if (!path_of(cert, o->tls_dir, "server-cert.pem") ||
		!path_of(key, o->tls_dir, "server-key.pem"))
		return QK_FAIL(err, QCOW_E_INVAL, "TLS: a folder with too long a name");
	code = c->lib->certificate_set_x509_key_file(c->x509, cert, key, GNUTLS_X509_FMT_PEM);
	return code < 0 ? failed(c, err, cert, code) : QCOW_OK;
}

static enum qcow_status load_psk(
	struct qk_nbd_tls_config *c, const char *path, struct qcow_error *err)
{
	if (access(path, R_OK) != 0)
		return QK_FAIL_OS(err, errno, "TLS: the keys in '%s'", path);
	int code = c->lib->psk_allocate_server_credentials(&c->psk);
	if (code >= 0)
		code = c->lib->psk_set_server_credentials_file(c->psk, path);
	return code < 0 ? failed(c, err, path, code) : QCOW_OK;
}

static enum qcow_status load(
	struct qk_nbd_tls_config *c, const struct qk_nbd_options *o, struct qcow_error *err)
{
	if (o->tls_dir == NULL && o->tls_psk_file == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "TLS needs certificates or keys");
	QK_TRY(qk_gnutls_load(&c->lib, err));
	c->verify_peer = o->tls_verify_peer && o->tls_dir != NULL;
	c->purpose = (gnutls_typed_vdata_st){.type = GNUTLS_DT_KEY_PURPOSE_OID,
		.data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_CLIENT};
	if (o->tls_dir != NULL)
		QK_TRY(load_x509(c, o, err));
	if (o->tls_psk_file != NULL)
		QK_TRY(load_psk(c, o->tls_psk_file, err));
	const char *priority = o->tls_psk_file != NULL ? PRIORITY_K : PRIORITY;
	int code = c->lib->priority_init(
		&c->priority, o->tls_priority != NULL ? o->tls_priority : priority, NULL);
	return code < 0 ? failed(c, err, "the priority string", code) : QCOW_OK;
}

enum qcow_status qk_nbd_tls_config_new(const struct qk_nbd_options *options,
	struct qk_nbd_tls_config **out, struct qcow_error *err)
{
	struct qk_nbd_tls_config *c = qk_calloc(1, sizeof(*c));
	if (c == NULL)
		return QK_FAIL_NOMEM(err);
	enum qcow_status status = load(c, options, err);
	if (status != QCOW_OK)
		qk_nbd_tls_config_free(c);
	else
		*out = c;
	return status;
}

void qk_nbd_tls_config_free(struct qk_nbd_tls_config *c)
{
	if (c == NULL)
		return;
	if (c->priority != NULL)
		c->lib->priority_deinit(c->priority);
	if (c->psk != NULL)
		c->lib->psk_free_server_credentials(c->psk);
	if (c->x509 != NULL)
		c->lib->certificate_free_credentials(c->x509);
	free(c);
}

static int set_up(gnutls_session_t session, struct qk_nbd_tls_config *c)
{
	int code = c->lib->priority_set(session, c->priority);
	if (code >= 0 && c->x509 != NULL)
		code = c->lib->credentials_set(session, GNUTLS_CRD_CERTIFICATE, c->x509);
	if (code >= 0 && c->psk != NULL)
		code = c->lib->credentials_set(session, GNUTLS_CRD_PSK, c->psk);
	if (c->verify_peer) {
		c->lib->certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
		c->lib->session_set_verify_cert2(session, &c->purpose, 1, 0);
	}
	return code;
}

struct qk_nbd_tls *qk_nbd_tls_new(struct qk_nbd_tls_config *config, int in_fd, int out_fd)
{
	struct qk_nbd_tls *tls = qk_calloc(1, sizeof(*tls));
	if (tls == NULL)
		return NULL;
	tls->lib = config->lib;
	if (config->lib->init(&tls->session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) <
		0) {
		free(tls);
		return NULL;
	}
	if (set_up(tls->session, config) < 0) {
		qk_nbd_tls_free(tls, false);
		return NULL;
	}
	config->lib->transport_set_int2(tls->session, in_fd, out_fd);
	return tls;
}

void qk_nbd_tls_free(struct qk_nbd_tls *tls, bool bye)
{
	if (tls == NULL)
		return;
	if (bye && tls->is_up)
		(void)tls->lib->bye(tls->session, GNUTLS_SHUT_WR);
	tls->lib->deinit(tls->session);
	free(tls);
}

int qk_nbd_tls_handshake(struct qk_nbd_tls *tls, bool *wants_out, const char **why)
{
	int code = tls->lib->handshake(tls->session);
	*wants_out = tls->lib->record_get_direction(tls->session) == 1;
	if (code == GNUTLS_E_SUCCESS) {
		tls->is_up = true;
		return 1;
	}
	if (!tls->lib->error_is_fatal(code))
		return 0;
	*why = tls->lib->strerror(code);
	/* so that the client learns why */
	(void)tls->lib->alert_send_appropriate(tls->session, code);
	return -1;
}

static ssize_t result(ssize_t code)
{
	if (code >= 0)
		return code;
	errno = code == GNUTLS_E_AGAIN ? EAGAIN : code == GNUTLS_E_INTERRUPTED ? EINTR : EIO;
	return -1;
}

ssize_t qk_nbd_tls_recv(struct qk_nbd_tls *tls, void *buf, size_t n)
{
	return result(tls->lib->record_recv(tls->session, buf, n));
}

ssize_t qk_nbd_tls_send(struct qk_nbd_tls *tls, const void *buf, size_t n)
{
	ssize_t put = 0;
	do {
		put = tls->has_unsent ? tls->lib->record_send(tls->session, NULL, 0)
				      : tls->lib->record_send(tls->session, buf, n);
		tls->has_unsent = put == GNUTLS_E_AGAIN || put == GNUTLS_E_INTERRUPTED;
	} while (put == GNUTLS_E_INTERRUPTED);
	return result(put);
}

bool qk_nbd_tls_has_more(const struct qk_nbd_tls *tls)
{
	return tls->is_up && tls->lib->record_check_pending(tls->session) != 0;
}

#else /* without GnuTLS no connection has a session */

enum qcow_status qk_nbd_tls_config_new(const struct qk_nbd_options *options,
	struct qk_nbd_tls_config **out, struct qcow_error *err)
{
	(void)options;
	(void)out;
	return QK_FAIL(err, QCOW_E_UNSUPPORTED, "this build has no TLS");
}

void qk_nbd_tls_config_free(struct qk_nbd_tls_config *config)
{
	(void)config;
}

struct qk_nbd_tls *qk_nbd_tls_new(struct qk_nbd_tls_config *config, int in_fd, int out_fd)
{
	(void)config;
	(void)in_fd;
	(void)out_fd;
	return NULL;
}

void qk_nbd_tls_free(struct qk_nbd_tls *tls, bool bye)
{
	(void)tls;
	(void)bye;
}

int qk_nbd_tls_handshake(struct qk_nbd_tls *tls, bool *wants_out, const char **why)
{
	(void)tls;
	*wants_out = false;
	*why = "this build has no TLS";
	return -1;
}

ssize_t qk_nbd_tls_recv(struct qk_nbd_tls *tls, void *buf, size_t n)
{
	(void)tls;
	(void)buf;
	(void)n;
	errno = EIO;
	return -1;
}

ssize_t qk_nbd_tls_send(struct qk_nbd_tls *tls, const void *buf, size_t n)
{
	(void)tls;
	(void)buf;
	(void)n;
	errno = EIO;
	return -1;
}

bool qk_nbd_tls_has_more(const struct qk_nbd_tls *tls)
{
	(void)tls;
	return false;
}

#endif
