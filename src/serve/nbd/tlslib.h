/* SPDX-License-Identifier: MIT */
/*
 * tlslib: GnuTLS, loaded when TLS is first set up. A program that were linked with it would start with all that it needs,
 * whatever it is to do.
 */
#ifndef QK_SERVE_NBD_TLSLIB_H
#define QK_SERVE_NBD_TLSLIB_H

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <qcowkit/error.h>

#define QK_GNUTLS_CALLS(X)                  \
	X(alert_send_appropriate)           \
	X(bye)                              \
	X(certificate_allocate_credentials) \
	X(certificate_free_credentials)     \
	X(certificate_server_set_request)   \
	X(certificate_set_x509_crl_file)    \
	X(certificate_set_x509_key_file)    \
	X(certificate_set_x509_trust_file)  \
	X(credentials_set)                  \
	X(deinit)                           \
	X(error_is_fatal)                   \
	X(handshake)                        \
	X(init)                             \
	X(priority_deinit)                  \
	X(priority_init)                    \
	X(priority_set)                     \
	X(psk_allocate_server_credentials)  \
	X(psk_free_server_credentials)      \
	X(psk_set_server_credentials_file)  \
	X(record_check_pending)             \
	X(record_get_direction)             \
	X(record_recv)                      \
	X(record_send)                      \
	X(session_set_verify_cert2)         \
	X(strerror)                         \
	X(transport_set_int2)

#define QK_GNUTLS_MEMBER(call) __typeof__(gnutls_##call) *call;

/* lib->init() is gnutls_init(). */
struct qk_gnutls {
	QK_GNUTLS_CALLS(QK_GNUTLS_MEMBER)
};

/* The library, which stays until the process ends. QCOW_E_UNSUPPORTED: it is not there. */
enum qcow_status qk_gnutls_load(const struct qk_gnutls **out, struct qcow_error *err)
	__attribute__((warn_unused_result));

#endif
