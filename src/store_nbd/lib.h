/* SPDX-License-Identifier: MIT */
/*
 * lib: libnbd, loaded when an export is first opened. A program that were linked with it would start with GnuTLS, libxml2
 * and what they need, whatever it is to do.
 */
#ifndef QK_STORE_NBD_LIB_H
#define QK_STORE_NBD_LIB_H

#include <libnbd.h>
#include <qcowkit/error.h>

#define QK_LIBNBD_CALLS(X)           \
	X(add_meta_context)          \
	X(aio_block_status)          \
	X(aio_connect_tcp)           \
	X(aio_connect_unix)          \
	X(aio_disconnect)            \
	X(aio_flush)                 \
	X(aio_get_direction)         \
	X(aio_get_fd)                \
	X(aio_is_closed)             \
	X(aio_is_connecting)         \
	X(aio_is_dead)               \
	X(aio_is_negotiating)        \
	X(aio_is_ready)              \
	X(aio_notify_read)           \
	X(aio_notify_write)          \
	X(aio_opt_info)              \
	X(aio_opt_list)              \
	X(aio_opt_list_meta_context) \
	X(aio_pread)                 \
	X(aio_pwrite)                \
	X(aio_zero)                  \
	X(can_cache)                 \
	X(can_df)                    \
	X(can_fast_zero)             \
	X(can_flush)                 \
	X(can_fua)                   \
	X(can_meta_context)          \
	X(can_multi_conn)            \
	X(can_trim)                  \
	X(can_zero)                  \
	X(close)                     \
	X(create)                    \
	X(get_block_size)            \
	X(get_errno)                 \
	X(get_error)                 \
	X(get_size)                  \
	X(is_read_only)              \
	X(is_rotational)             \
	X(set_export_name)           \
	X(set_opt_mode)              \
	X(set_pread_initialize)      \
	X(set_tls)                   \
	X(set_tls_certificates)      \
	X(set_tls_psk_file)          \
	X(set_tls_username)          \
	X(set_tls_verify_peer)

#define QK_LIBNBD_MEMBER(call) __typeof__(nbd_##call) *call;

/* lib->create() is nbd_create(). */
struct qk_libnbd {
	QK_LIBNBD_CALLS(QK_LIBNBD_MEMBER)
};

struct qk_nbd_address;
/* TLS as the address has it. False: lib->get_error() says why. open.c. */
bool qk_nbd_set_tls(
	const struct qk_libnbd *lib, struct nbd_handle *nbd, const struct qk_nbd_address *address);

/* The library, which stays until the process ends. QCOW_E_UNSUPPORTED: it is not there. */
enum qcow_status qk_libnbd_load(const struct qk_libnbd **out, struct qcow_error *err)
	__attribute__((warn_unused_result));

#endif
