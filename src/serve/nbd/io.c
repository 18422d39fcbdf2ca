/* SPDX-License-Identifier: MIT */
/*
 * io: bytes from and to a client: sockets, pipes, TLS (see core.h). Never blocks.
 */
#include "serve/nbd/core.h"

#include <errno.h>
#include <sys/socket.h>

ssize_t qk_nbd_io_recv(struct qk_nbd_conn *conn, struct iovec *iov, int n_iov)
{
	struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)n_iov};
	ssize_t got = 0;
	do {
		if (conn->tls != NULL)
			got = qk_nbd_tls_recv(conn->tls, iov[0].iov_base, iov[0].iov_len);
		else if (conn->is_socket)
			got = recvmsg(conn->in_fd, &message, MSG_DONTWAIT);
		else
			got = readv(conn->in_fd, iov, n_iov);
	} while (got < 0 && errno == EINTR);
	return got;
}

/* A record takes 16 KiB: what is less goes with what comes next. */
static ssize_t send_tls(struct qk_nbd_conn *conn, struct iovec *iov, int n_iov)
{
	ssize_t sum = 0;
	for (int i = 0; i < n_iov; i++) {
		const uint8_t *p = iov[i].iov_base;
		for (size_t at = 0; at < iov[i].iov_len;) {
			ssize_t put = qk_nbd_tls_send(conn->tls, p + at, iov[i].iov_len - at);
			if (put < 0)
				return sum != 0 && errno == EAGAIN ? sum : -1;
			at += (size_t)put;
			sum += put;
		}
	}
	return sum;
}

ssize_t qk_nbd_io_send(struct qk_nbd_conn *conn, struct iovec *iov, int n_iov)
{
	struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)n_iov};
	ssize_t put = 0;
	if (conn->tls != NULL)
		return send_tls(conn, iov, n_iov);
	do {
		if (conn->is_socket)
			put = sendmsg(conn->out_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
		else
			put = writev(conn->out_fd, iov, n_iov);
	} while (put < 0 && errno == EINTR);
	return put;
}

bool qk_nbd_io_has_more(const struct qk_nbd_conn *conn)
{
	return conn->tls != NULL && qk_nbd_tls_has_more(conn->tls);
}
