/* SPDX-License-Identifier: MIT */
/*
 * server: an NBD server for whatever a table of calls shows, as a library within the program.
 *
 * The protocol is doc/proto.md of NetworkBlockDevice/nbd: fixed newstyle, structured replies, extended headers, metadata
 * contexts, TLS. The server knows no image, no file name and no signal: who embeds it fills in exports and hands over
 * descriptors.
 *
 * Threads: every call may come from any thread, except that new, start, stop and free are the owner's to order. Callbacks
 * come from the server's threads, several at once. SIGPIPE must be ignored by the process where connections are pipes or
 * run over TLS.
 */
#ifndef QK_SERVE_NBD_SERVER_H
#define QK_SERVE_NBD_SERVER_H

#include <qcowkit/qcowkit.h>

struct qk_nbd_server;

/* Strings of the protocol: names, descriptions, contexts. More is refused. */
#define QK_NBD_MAX_STRING 4096U
/* The largest payload of one request. What is longer closes the connection. */
#define QK_NBD_MAX_PAYLOAD (UINT32_C(32) << 20)
/* Metadata contexts of one export: two of our own and the bitmaps. */
#define QK_NBD_MAX_BITMAPS 256U

/* ---- exports ---- */

/*
 * What an export shows. Offsets are bytes into the export; ranges lie within `size`, lengths are not 0. Calls come from any
 * number of threads at once. A failure's message goes to the log, for it may name files; its status decides what
 * the client is told, and the error value (QCOW_E_NOSPC: ENOSPC; QCOW_E_READONLY: EPERM; QCOW_E_NOTSUP of zero with QCOW_IO_FAST: ENOTSUP;
 * QCOW_E_INVAL, QCOW_E_RANGE: EINVAL; QCOW_E_NOMEM: ENOMEM; the rest EIO).
 * `pread` is required. What is NULL is not offered to clients.
 */
struct qk_nbd_export_ops {
	enum qcow_status (*pread)(
		void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err);
	/* The same without waiting for a disk or for long: QCOW_E_WOULD_BLOCK where it would have to. NULL: every read is
	 * a worker's. */
	enum qcow_status (*pread_nowait)(
		void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err);
	/* flags: QCOW_IO_FUA. */
	enum qcow_status (*pwrite)(void *ctx, const void *buf, size_t len, uint64_t off,
		unsigned flags, struct qcow_error *err);
	/* flags: QCOW_IO_FUA, QCOW_IO_UNMAP, QCOW_IO_FAST. */
	enum qcow_status (*zero)(
		void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err);
	/* flags: QCOW_IO_FUA. */
	enum qcow_status (*trim)(
		void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err);
	/* Everything that returned before is stable when it returns, whichever connection it came by. */
	enum qcow_status (*flush)(void *ctx, struct qcow_error *err);
	enum qcow_status (*cache)(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err);
	/* One extent at `off`, at most `len` bytes of it: base:allocation and qemu:allocation-depth. */
	enum qcow_status (*map)(void *ctx, uint64_t off, uint64_t len, uint32_t max_depth,
		struct qcow_extent *out, struct qcow_error *err);
	/* One extent of bitmap number `bitmap` of the list that the export was added with (or got by
	 * qk_nbd_export_bitmaps). */
	enum qcow_status (*dirty)(void *ctx, unsigned bitmap, uint64_t off, uint64_t len,
		struct qcow_bitmap_extent *out, struct qcow_error *err);
	/* Once: after the last request of an export that was removed, or when the server is freed. May be NULL. */
	void (*close)(void *ctx);
	/* The last connection to it has ended; another one may have come meanwhile. Must not wait. May be NULL. */
	void (*unused)(void *ctx);
};

struct qk_nbd_export {
	const char *name; /* "" is the default export */
	const char *description; /* or NULL */
	uint64_t size;
	bool read_only;
	bool multi_conn; /* NBD_FLAG_CAN_MULTI_CONN: true for all that share one qcow_image */
	bool rotational;
	bool has_depth; /* qemu:allocation-depth is offered */
	/* 0: 1, 4096 and QK_NBD_MAX_PAYLOAD. min_block and preferred_block are powers of two, min_block <= 65536. */
	uint32_t min_block, preferred_block, max_block;
	const char *const *bitmaps; /* names, for qemu:dirty-bitmap:NAME */
	unsigned n_bitmaps;
	unsigned max_connections; /* 0 = any */
	bool needs_tls; /* with QK_NBD_TLS_ALLOW: this one by TLS only */
	const struct qk_nbd_export_ops *ops; /* must outlive the export */
	void *ctx;
};

/* ---- the server ---- */

enum qk_nbd_tls_mode {
	QK_NBD_TLS_OFF = 0,
	QK_NBD_TLS_ALLOW, /* clients may; exports with needs_tls only so */
	QK_NBD_TLS_REQUIRE /* nothing is told before it */
};

enum qk_nbd_log_level {
	QK_NBD_LOG_DEBUG = 0, /* connections come and go */
	QK_NBD_LOG_NOTE, /* a client broke the protocol, a handshake failed */
	QK_NBD_LOG_WARNING /* a request failed for the server's own reasons */
};

struct qk_nbd_options {
	unsigned n_loops; /* threads that move bytes; 0 = min(cores, 16) */
	unsigned n_workers; /* threads that wait for disks; 0 = 8, and more cores */
	unsigned max_connections; /* more are closed at once; 0 = 1000 */
	unsigned
		handshake_ms; /* a client that is not in transmission by then is closed; 0 = 10,000 */
	unsigned
		stall_ms; /* who has left, or is to leave, and takes none of its replies for so long is closed; 0 = 10,000 */
	uint64_t
		conn_bytes; /* requests and replies in flight of a connection; 0 = 32 MiB and a bit, the least */
	uint64_t total_bytes; /* … of all, beside 128 KiB that each may have; 0 = 128 MiB */
	enum qk_nbd_tls_mode tls;
	const char *tls_dir; /* server-cert.pem, server-key.pem, ca-cert.pem, perhaps ca-crl.pem */
	bool tls_verify_peer; /* clients need a certificate signed by ca-cert.pem */
	const char *tls_psk_file; /* as psktool writes it; with or instead of tls_dir */
	const char *tls_priority; /* GnuTLS priority string, or NULL */
	/* A connection begins or ends (with what it was worth), or NULL. `n_open` counts those that are open now.
	 * `was_served`: it had reached the transmission phase. Must not call stop or free. */
	void (*on_connection)(void *ctx, unsigned n_open, bool opened, bool was_served);
	void (*log)(void *ctx, enum qk_nbd_log_level level, const char *text);
	void *ctx;
};

/* Is TLS compiled in? */
bool qk_nbd_has_tls(void);

/* Loads keys and certificates, makes no thread and opens no socket. QCOW_E_INVAL, QCOW_E_KEY (files of TLS),
 * QCOW_E_UNSUPPORTED (TLS is not compiled in), QCOW_E_NOMEM, QCOW_E_IO. */
enum qcow_status qk_nbd_server_new(const struct qk_nbd_options *options, struct qk_nbd_server **out,
	struct qcow_error *err) QCOW_MUST_USE;

/* Make the threads; after any fork. From here on clients are served. */
enum qcow_status qk_nbd_server_start(
	struct qk_nbd_server *server, struct qcow_error *err) QCOW_MUST_USE;

/* Take no more connections, let handshakes go, carry out and answer what has arrived (for drain_ms at most, then
 * connections are cut; a call of an export that is under way is always waited for), flush every export that can be,
 * join the threads. Safe to call twice. */
void qk_nbd_server_stop(struct qk_nbd_server *server, unsigned drain_ms);

/* Stops, closes the exports, frees. NULL is allowed. */
void qk_nbd_server_free(struct qk_nbd_server *server);

/* A listening stream socket, which the server owns on success. Before or after start. */
enum qcow_status qk_nbd_server_listen(
	struct qk_nbd_server *server, int fd, struct qcow_error *err) QCOW_MUST_USE;

/* One client that is connected: a socket (twice the same descriptor), or two pipes. The server owns the descriptors on
 * success. Before or after start. QCOW_E_LIMIT, QCOW_E_NOMEM, QCOW_E_IO (descriptors that cannot be waited for). */
enum qcow_status qk_nbd_server_connect(
	struct qk_nbd_server *server, int in_fd, int out_fd, struct qcow_error *err) QCOW_MUST_USE;

/* Everything of `export` but ops and ctx is copied. On success ops->close is called once, some day; on failure never.
 * QCOW_E_EXIST, QCOW_E_INVAL (a string that the protocol forbids, block sizes), QCOW_E_LIMIT, QCOW_E_NOMEM. */
enum qcow_status qk_nbd_export_add(struct qk_nbd_server *server, const struct qk_nbd_export *export,
	struct qcow_error *err) QCOW_MUST_USE;

/* No client gets it any more. With `hard` its connections are cut, and the call returns when the last request is done and
 * ops->close has been called. Else QCOW_E_LOCKED while a client is connected. QCOW_E_NOENT.
 * Not from a callback of the server. */
enum qcow_status qk_nbd_export_remove(struct qk_nbd_server *server, const char *name, bool hard,
	struct qcow_error *err) QCOW_MUST_USE;

/* No client may enter it until `wake`. With `hard` those that are there are cut, and the call returns when their last request is
 * done. Else QCOW_E_LOCKED while a client is connected. QCOW_E_NOENT. Not from a callback of the server. */
enum qcow_status qk_nbd_export_rest(struct qk_nbd_server *server, const char *name, bool hard,
	struct qcow_error *err) QCOW_MUST_USE;
void qk_nbd_export_wake(struct qk_nbd_server *server, const char *name);

/* The size changed: clients that come from now on see it, for others requests past the smaller of both fail.
 * QCOW_E_NOENT. */
enum qcow_status qk_nbd_export_resized(struct qk_nbd_server *server, const char *name,
	uint64_t new_size, struct qcow_error *err) QCOW_MUST_USE;

/* The list of bitmaps changed (while quiesced). Connections that selected one that is in the new list keep it, by its name;
 * for others its block status fails. QCOW_E_NOENT, QCOW_E_LIMIT, QCOW_E_NOMEM. */
enum qcow_status qk_nbd_export_bitmaps(struct qk_nbd_server *server, const char *name,
	const char *const *bitmaps, unsigned n_bitmaps, struct qcow_error *err) QCOW_MUST_USE;

/* Returns when no call of an export runs; none begins before as many resumes as there were quiesces. Clients just wait. Not
 * from a callback of the server. */
void qk_nbd_server_quiesce(struct qk_nbd_server *server);
void qk_nbd_server_resume(struct qk_nbd_server *server);

/* ---- what it does ---- */

enum qk_nbd_count {
	QK_NBD_COUNT_READ = 0,
	QK_NBD_COUNT_WRITE,
	QK_NBD_COUNT_FLUSH,
	QK_NBD_COUNT_TRIM,
	QK_NBD_COUNT_CACHE,
	QK_NBD_COUNT_ZERO,
	QK_NBD_COUNT_STATUS,
	QK_NBD_COUNTS
};

struct qk_nbd_counter {
	uint64_t requests, bytes, errors; /* requests that were answered; bytes as asked for */
};

struct qk_nbd_stats {
	uint64_t connections; /* open now */
	uint64_t accepted; /* ever */
	uint64_t refused; /* over the limit */
	uint64_t handshakes_failed; /* ended before transmission, other than by ABORT */
	uint64_t cut; /* closed by the server: the protocol broken, no replies taken */
	uint64_t in_flight_bytes;
	uint64_t answered_at_once; /* of the requests: by a loop itself */
	struct qk_nbd_counter counts[QK_NBD_COUNTS];
};
void qk_nbd_server_stats(struct qk_nbd_server *server, struct qk_nbd_stats *out);

struct qk_nbd_connection_info {
	uint64_t id;
	const char *export_name; /* NULL: still in the handshake */
	const char *peer; /* "127.0.0.1:40000", "unix", "pipe" */
	bool tls, structured, extended;
	uint64_t requests, bytes_in, bytes_out;
};
/* Visit every connection; the strings live during the call of `visit`, which calls nothing of the server. */
void qk_nbd_each_connection(struct qk_nbd_server *server,
	void (*visit)(void *ctx, const struct qk_nbd_connection_info *info), void *ctx);

#endif
