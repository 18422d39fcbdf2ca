/* SPDX-License-Identifier: MIT */
/*
 * store_nbd: an export of an NBD server as a store, by libnbd. A library of its own, which programs link;
 * libqcowkit does not.
 *
 *   address.c  where an export is: URIs, and the older "nbd:HOST:PORT" words
 *   lib.c      libnbd, loaded at first use
 *   open.c     connecting, and what the export can do
 *   again.c    a connection that was lost is made again, and what may be lost with it is written again
 *   list.c     what a server exports
 *   wire.c     one connection, and the thread that moves its bytes
 *   calls.c    requests: any number at once, on up to four connections where the server allows
 */
#ifndef QK_STORE_NBD_STORE_NBD_H
#define QK_STORE_NBD_STORE_NBD_H

#include <stdbool.h>

#include <qcowkit/store.h>

/* Where an export is. `path` (a Unix socket) or `host` with `port` is set. Strings are the struct's own. */
struct qk_nbd_address {
	char *path;
	char *host, *port;
	char *export_name; /* never NULL after a parse; "": the server's default */
	bool tls; /* encrypted, or no connection at all */
	bool no_verify; /* believe any certificate */
	char *tls_dir; /* of ca-cert.pem, client-cert.pem, client-key.pem; NULL: libnbd's places */
	char *tls_psk_file, *tls_username;
	unsigned open_timeout_s; /* try again for so long while nobody listens; 0: once */
	unsigned reconnect_delay_s; /* a lost connection is made again within so long; 0: never */
	char *dirty_bitmap; /* a context to be asked about in the place of base:allocation; NULL: none */
};

/* Does a name look like an NBD export: nbd://…, nbd+unix://…, nbd:…? */
bool qk_nbd_is_name(const char *text);

/*
 * nbd[s]://HOST[:PORT]/EXPORT, nbd[s]+unix:///EXPORT?socket=PATH, with tls-certificates=, tls-psk-file=,
 * tls-username=, tls-verify-peer= behind the question mark; nbd:unix:PATH[:exportname=E], nbd:HOST:PORT[:exportname=E].
 * Pure. QCOW_E_INVAL, QCOW_E_UNSUPPORTED, QCOW_E_NOMEM. Release *out, after a failure too.
 */
enum qcow_status qk_nbd_address_parse(const char *text, struct qk_nbd_address *out,
	struct qcow_error *err) __attribute__((warn_unused_result));
/* A copy with strings of its own. QCOW_E_NOMEM. Release *out, after a failure too. */
enum qcow_status qk_nbd_address_copy(const struct qk_nbd_address *from, struct qk_nbd_address *out,
	struct qcow_error *err) __attribute__((warn_unused_result));
void qk_nbd_address_release(struct qk_nbd_address *address);

/* The address as one URI, without TLS's parts: what messages call it. NULL: out of memory. Free it. */
char *qk_nbd_address_text(const struct qk_nbd_address *address);

/*
 * Connect. The store's size is fixed; a server that has no block status answers data, and so do all where dirty_bitmap is
 * set. Nothing is durable before a flush. A connection that breaks fails every later call, unless it is made again within
 * reconnect_delay_s; then nothing that was written is missing. Any thread. A handshake has a minute, or open_timeout_s.
 * `disk` (may be NULL) is what qk_nbd_status asks; it lives as long as the store.
 * QCOW_E_READONLY (`writable` and the export is not), QCOW_E_NOENT, QCOW_E_ACCESS, QCOW_E_IO, QCOW_E_NOMEM, QCOW_E_INVAL (the
 * server does not have dirty_bitmap).
 */
struct qk_nbd_disk;
enum qcow_status qk_nbd_open(const struct qk_nbd_address *address, bool writable,
	struct qcow_store **out, struct qk_nbd_disk **disk, struct qcow_error *err)
	__attribute__((warn_unused_result));

/* One answer of a block status. */
struct qk_nbd_status {
	uint64_t len; /* bytes with the same bits, > 0 */
	unsigned
		bits; /* 0 and 1 of what the context says: dirty of a bitmap; hole and zero of base:allocation */
};

/* What the context that the address names says of [off, off + len), within the export and len > 0: the first answer.
 * QCOW_E_IO. */
enum qcow_status qk_nbd_status(struct qk_nbd_disk *disk, uint64_t off, uint64_t len,
	struct qk_nbd_status *out, struct qcow_error *err) __attribute__((warn_unused_result));

/* One export of a server. Strings live during the call that is given it. */
struct qk_nbd_listed {
	const char *name, *description; /* description: or NULL */
	uint64_t size, min_block, preferred_block, max_block;
	unsigned flags; /* as the protocol numbers transmission flags */
	unsigned n_contexts;
	const char *const *contexts;
};

/* Ask a server for its exports (the address's export_name is not looked at): first their number, then each. Every step of it has a
 * minute, or open_timeout_s. QCOW_E_IO, QCOW_E_NOTSUP (a server that lists none), QCOW_E_NOMEM. */
enum qcow_status qk_nbd_list(const struct qk_nbd_address *address,
	void (*count)(void *ctx, unsigned n),
	void (*each)(void *ctx, const struct qk_nbd_listed *listed), void *ctx,
	struct qcow_error *err) __attribute__((warn_unused_result));

#endif
