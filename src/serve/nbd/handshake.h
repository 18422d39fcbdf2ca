/* SPDX-License-Identifier: MIT */
/*
 * handshake: from the greeting to the transmission phase (proto.md, "Handshake"). Bytes in, bytes and a step out: no I/O, no
 * clock. What was negotiated is left in the session.
 */
#ifndef QK_SERVE_NBD_HANDSHAKE_H
#define QK_SERVE_NBD_HANDSHAKE_H

#include "serve/nbd/buf.h"
#include "serve/nbd/export.h"
#include "serve/nbd/proto.h"

/* More data of an option is skipped, more than that closes the connection. */
#define QK_NBD_OPTION_DATA ((size_t)64 << 10)
#define QK_NBD_OPTION_SKIP (UINT32_C(1) << 20)
/* Queries of one LIST_ or SET_META_CONTEXT. */
#define QK_NBD_MAX_QUERIES 1024U

enum qk_nbd_context_kind {
	QK_NBD_CONTEXT_ALLOCATION = 0,
	QK_NBD_CONTEXT_DEPTH,
	QK_NBD_CONTEXT_BITMAP
};

/* A metadata context that the client selected. */
struct qk_nbd_context {
	uint32_t id;
	enum qk_nbd_context_kind kind;
	char *bitmap; /* its name, where it is one */
};

struct qk_nbd_session {
	enum qk_nbd_mode mode;
	bool is_fixed, no_zeroes, is_tls;
	struct qk_nbd_node *node; /* the export in transmission, attached */
	uint64_t size; /* as the client was told */
	uint16_t flags; /* transmission flags */
	uint32_t min_block,
		max_block; /* that the client agreed to; else 1 and QK_NBD_MAX_PAYLOAD */
	struct qk_nbd_node *meta_node; /* the export that the contexts were selected for */
	struct qk_nbd_context *contexts;
	unsigned n_contexts;
};

enum qk_nbd_step {
	QK_NBD_STEP_MORE = 0, /* nothing can be done without more bytes */
	QK_NBD_STEP_ON, /* something was done */
	QK_NBD_STEP_TLS, /* after the output, TLS begins */
	QK_NBD_STEP_TRANSMIT, /* after the output, requests come */
	QK_NBD_STEP_ABORT, /* after the output, the connection ends as the client wanted */
	QK_NBD_STEP_CLOSE /* … because it cannot go on */
};

struct qk_nbd_handshake {
	struct qk_nbd_registry *registry;
	struct qk_nbd_session *session;
	enum qk_nbd_tls_mode tls;
	const _Atomic bool *is_stopping;
	bool has_flags; /* the client's flags have come */
	uint32_t skip; /* bytes of an option's data that are thrown away */
	const char *broken; /* CLOSE: what the client did wrong */
};

/* Take from [in, in + n) what can be, at most one option: *used bytes. What is to be sent is added to `out`. `in` must be
 * able to hold an option with QK_NBD_OPTION_DATA. */
enum qk_nbd_step qk_nbd_handshake_step(struct qk_nbd_handshake *h, const uint8_t *in, size_t n,
	size_t *used, struct qk_nbd_buf *out);

/* Free what the session holds. */
void qk_nbd_session_release(struct qk_nbd_session *session, struct qk_nbd_registry *registry);

/* meta.c: LIST_META_CONTEXT and SET_META_CONTEXT. Returns the type of the final reply; *message its text. */
uint32_t qk_nbd_meta_option(struct qk_nbd_handshake *h, const struct qk_nbd_option *option,
	struct qk_span data, struct qk_nbd_buf *out, const char **message);
void qk_nbd_contexts_release(struct qk_nbd_session *session, struct qk_nbd_registry *registry);

/* A reply to an option with data, or with a text (NULL: none). */
void qk_nbd_reply_option(
	struct qk_nbd_buf *out, uint32_t option, uint32_t type, const void *data, size_t n);

/* The export of that name as this client may see it: NULL with the type of the error reply. To be put. */
struct qk_nbd_node *qk_nbd_visible_node(
	struct qk_nbd_handshake *h, struct qk_span name, uint32_t *type, const char **message);

#endif
