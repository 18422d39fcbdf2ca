/* SPDX-License-Identifier: MIT */
/*
 * handshake: see handshake.h. The options one by one; metadata contexts are meta.c's.
 */
#include "serve/nbd/handshake.h"

#include <string.h>

#include "base/err.h"

void qk_nbd_reply_option(
	struct qk_nbd_buf *out, uint32_t option, uint32_t type, const void *data, size_t n)
{
	uint8_t *head = qk_nbd_buf_room(out, QK_NBD_OPTION_REPLY_BYTES);
	if (head == NULL)
		return;
	qk_nbd_put_option_reply(head, option, type, (uint32_t)n);
	qk_nbd_buf_add(out, data, n);
}

static void reply_text(struct qk_nbd_buf *out, uint32_t option, uint32_t type, const char *text)
{
	qk_nbd_reply_option(out, option, type, text, text != NULL ? strlen(text) : 0);
}

void qk_nbd_session_release(struct qk_nbd_session *session, struct qk_nbd_registry *registry)
{
	qk_nbd_contexts_release(session, registry);
	if (session->node != NULL)
		qk_nbd_node_detach(registry, session->node);
	session->node = NULL;
}

static enum qk_nbd_step broken(struct qk_nbd_handshake *h, const char *what)
{
	h->broken = what;
	return QK_NBD_STEP_CLOSE;
}

struct qk_nbd_node *qk_nbd_visible_node(
	struct qk_nbd_handshake *h, struct qk_span name, uint32_t *type, const char **message)
{
	struct qk_nbd_node *node = qk_nbd_registry_find(h->registry, name);
	*type = QK_NBD_REP_ERR_UNKNOWN;
	*message = "there is no such export";
	if (node != NULL && node->needs_tls && !h->session->is_tls) {
		*type = QK_NBD_REP_ERR_TLS_REQD;
		*message = "this export is served by TLS only";
		qk_nbd_node_put(h->registry, node);
		node = NULL;
	}
	return node;
}

/* ---- the export to transmit ---- */

static uint16_t transmission_flags(
	const struct qk_nbd_session *session, const struct qk_nbd_node *node)
{
	unsigned flags = qk_nbd_node_flags(node);
	if (session->mode != QK_NBD_SIMPLE)
		flags |= QK_NBD_FLAG_SEND_DF;
	if (session->mode == QK_NBD_EXTENDED && session->n_contexts != 0 &&
		session->meta_node == node)
		flags |= QK_NBD_FLAG_BLOCK_STATUS_PAYLOAD;
	return (uint16_t)flags;
}

/* From here on the session is about `node`. false: it takes no more clients. */
static bool enter(struct qk_nbd_handshake *h, struct qk_nbd_node *node, bool has_blocks)
{
	struct qk_nbd_session *session = h->session;
	if (!qk_nbd_node_attach(h->registry, node))
		return false;
	session->node = node;
	session->size = atomic_load(&node->size);
	session->flags = transmission_flags(session, node);
	session->min_block = has_blocks ? node->min_block : 1;
	session->max_block = has_blocks ? node->max_block : QK_NBD_MAX_PAYLOAD;
	/* contexts of another export are worth nothing */
	if (session->meta_node != node)
		qk_nbd_contexts_release(session, h->registry);
	return true;
}

static enum qk_nbd_step option_export_name(
	struct qk_nbd_handshake *h, struct qk_span data, struct qk_nbd_buf *out)
{
	static const uint8_t zeroes[124];
	uint32_t type = 0;
	const char *message = NULL;
	if (data.n > QK_NBD_MAX_STRING)
		return broken(h, "a name of more than 4096 bytes");
	if (h->tls == QK_NBD_TLS_REQUIRE && !h->session->is_tls)
		return broken(h, "EXPORT_NAME without TLS");
	if (atomic_load(h->is_stopping))
		return broken(h, "EXPORT_NAME while the server shuts down");
	struct qk_nbd_node *node = qk_nbd_visible_node(h, data, &type, &message);
	if (node == NULL)
		return broken(h, "EXPORT_NAME of an export that this client cannot have");
	bool is_entered = enter(h, node, false);
	qk_nbd_node_put(h->registry, node);
	if (!is_entered)
		return broken(h, "EXPORT_NAME of an export that has enough clients");
	qk_nbd_buf_add64(out, h->session->size);
	qk_nbd_buf_add16(out, h->session->flags);
	if (!h->session->no_zeroes)
		qk_nbd_buf_add(out, zeroes, sizeof(zeroes));
	return QK_NBD_STEP_TRANSMIT;
}

static void reply_info(
	struct qk_nbd_buf *out, uint32_t option, uint16_t type, const void *data, size_t n)
{
	uint8_t *head = qk_nbd_buf_room(out, QK_NBD_OPTION_REPLY_BYTES);
	if (head == NULL)
		return;
	qk_nbd_put_option_reply(head, option, QK_NBD_REP_INFO, (uint32_t)n + 2);
	qk_nbd_buf_add16(out, type);
	qk_nbd_buf_add(out, data, n);
}

static void reply_infos(const struct qk_nbd_handshake *h, uint32_t option,
	const struct qk_nbd_info_request *rq, const struct qk_nbd_node *node,
	struct qk_nbd_buf *out)
{
	uint8_t export[10], blocks[12];
	qk_store64(export, atomic_load(&node->size));
	qk_store16(export + 8, transmission_flags(h->session, node));
	reply_info(out, option, QK_NBD_INFO_EXPORT, export, sizeof(export));
	if (rq->wants_name)
		reply_info(out, option, QK_NBD_INFO_NAME, node->name, strlen(node->name));
	if (rq->wants_description && node->description != NULL)
		reply_info(out, option, QK_NBD_INFO_DESCRIPTION, node->description,
			strlen(node->description));
	/* who did not ask for them is bound by nothing: any offset is served */
	qk_store32(blocks, rq->wants_block_size ? node->min_block : 1);
	qk_store32(blocks + 4, node->preferred_block);
	qk_store32(blocks + 8, node->max_block);
	reply_info(out, option, QK_NBD_INFO_BLOCK_SIZE, blocks, sizeof(blocks));
}

/* INFO and GO. */
static uint32_t option_info(struct qk_nbd_handshake *h, uint32_t option, struct qk_span data,
	struct qk_nbd_buf *out, const char **message)
{
	struct qk_nbd_info_request rq;
	uint32_t type = QK_NBD_REP_ERR_INVALID;
	*message = "the lengths in the option do not fit its data";
	if (!qk_nbd_get_info(data, &rq))
		return type;
	struct qk_nbd_node *node = qk_nbd_visible_node(h, rq.name, &type, message);
	if (node == NULL)
		return type;
	type = QK_NBD_REP_ACK;
	if (option == QK_NBD_OPT_GO && !enter(h, node, rq.wants_block_size)) {
		type = QK_NBD_REP_ERR_POLICY;
		*message = "this export takes no more clients now";
	} else {
		reply_infos(h, option, &rq, node, out);
	}
	qk_nbd_node_put(h->registry, node);
	return type;
}

static void reply_server(struct qk_nbd_buf *out, const struct qk_nbd_node *node)
{
	size_t n_name = strlen(node->name);
	size_t n_text = node->description != NULL ? strlen(node->description) : 0;
	uint8_t *head = qk_nbd_buf_room(out, QK_NBD_OPTION_REPLY_BYTES);
	if (head == NULL)
		return;
	qk_nbd_put_option_reply(
		head, QK_NBD_OPT_LIST, QK_NBD_REP_SERVER, (uint32_t)(4 + n_name + n_text));
	qk_nbd_buf_add32(out, (uint32_t)n_name);
	qk_nbd_buf_add(out, node->name, n_name);
	qk_nbd_buf_add(out, node->description, n_text);
}

static void list_exports(struct qk_nbd_handshake *h, struct qk_nbd_buf *out)
{
	struct qk_nbd_node *node = qk_nbd_registry_next(h->registry, NULL);
	for (; node != NULL; node = qk_nbd_registry_next(h->registry, node)) {
		if (!node->needs_tls || h->session->is_tls)
			reply_server(out, node);
	}
}

/* ---- options without data ---- */

static uint32_t option_starttls(struct qk_nbd_handshake *h, const char **message)
{
	if (h->tls == QK_NBD_TLS_OFF) {
		*message = "TLS is not set up here";
		return QK_NBD_REP_ERR_POLICY;
	}
	if (h->session->is_tls) {
		*message = "TLS is on already";
		return QK_NBD_REP_ERR_INVALID;
	}
	/* nothing that was said in clear text counts */
	qk_nbd_contexts_release(h->session, h->registry);
	h->session->mode = QK_NBD_SIMPLE;
	return QK_NBD_REP_ACK;
}

static uint32_t option_mode(struct qk_nbd_session *session, uint32_t option, const char **message)
{
	if (option == QK_NBD_OPT_EXTENDED_HEADERS) {
		session->mode = QK_NBD_EXTENDED;
	} else if (session->mode == QK_NBD_EXTENDED) {
		*message = "extended headers are on already";
		return QK_NBD_REP_ERR_EXT_HEADER_REQD;
	} else {
		session->mode = QK_NBD_STRUCTURED;
	}
	return QK_NBD_REP_ACK;
}

static uint32_t option_empty(struct qk_nbd_handshake *h, const struct qk_nbd_option *option,
	struct qk_nbd_buf *out, const char **message)
{
	if (option->length != 0) {
		*message = "this option has no data";
		return QK_NBD_REP_ERR_INVALID;
	}
	switch (option->option) {
	case QK_NBD_OPT_STARTTLS:
		return option_starttls(h, message);
	case QK_NBD_OPT_LIST:
		list_exports(h, out);
		return QK_NBD_REP_ACK;
	default:
		return option_mode(h->session, option->option, message);
	}
}

/* ---- one option ---- */

/* The type of the final reply. */
static uint32_t do_option(struct qk_nbd_handshake *h, const struct qk_nbd_option *option,
	struct qk_span data, struct qk_nbd_buf *out, const char **message)
{
	switch (option->option) {
	case QK_NBD_OPT_STARTTLS:
	case QK_NBD_OPT_LIST:
	case QK_NBD_OPT_STRUCTURED_REPLY:
	case QK_NBD_OPT_EXTENDED_HEADERS:
		return option_empty(h, option, out, message);
	case QK_NBD_OPT_INFO:
	case QK_NBD_OPT_GO:
		return option_info(h, option->option, data, out, message);
	case QK_NBD_OPT_LIST_META_CONTEXT:
	case QK_NBD_OPT_SET_META_CONTEXT:
		return qk_nbd_meta_option(h, option, data, out, message);
	default:
		*message = "this option is not known here";
		return QK_NBD_REP_ERR_UNSUP;
	}
}

/* What forbids an option before its data is looked at; 0: nothing. */
static uint32_t refusal(
	const struct qk_nbd_handshake *h, const struct qk_nbd_option *option, const char **message)
{
	if (atomic_load(h->is_stopping)) {
		*message = "the server is shutting down";
		return QK_NBD_REP_ERR_SHUTDOWN;
	}
	if (h->tls == QK_NBD_TLS_REQUIRE && !h->session->is_tls &&
		option->option != QK_NBD_OPT_STARTTLS) {
		*message = "this server talks TLS only";
		return QK_NBD_REP_ERR_TLS_REQD;
	}
	if (option->length > QK_NBD_OPTION_DATA) {
		*message = "the option has more data than is looked at here";
		return QK_NBD_REP_ERR_TOO_BIG;
	}
	return 0;
}

static enum qk_nbd_step step_after(uint32_t option, uint32_t type)
{
	if (type != QK_NBD_REP_ACK)
		return QK_NBD_STEP_ON;
	if (option == QK_NBD_OPT_STARTTLS)
		return QK_NBD_STEP_TLS;
	return option == QK_NBD_OPT_GO ? QK_NBD_STEP_TRANSMIT : QK_NBD_STEP_ON;
}

/* An option whose data is there, or is to be skipped because of `type`. */
static enum qk_nbd_step answer(struct qk_nbd_handshake *h, const struct qk_nbd_option *option,
	struct qk_span data, struct qk_nbd_buf *out)
{
	const char *message = NULL;
	if (option->option == QK_NBD_OPT_ABORT) {
		reply_text(out, option->option, QK_NBD_REP_ACK, NULL);
		return QK_NBD_STEP_ABORT;
	}
	if (option->option == QK_NBD_OPT_EXPORT_NAME)
		return option_export_name(h, data, out);
	uint32_t type = refusal(h, option, &message);
	if (type == 0)
		type = do_option(h, option, data, out, &message);
	reply_text(out, option->option, type, type != QK_NBD_REP_ACK ? message : NULL);
	return step_after(option->option, type);
}

static enum qk_nbd_step client_flags(struct qk_nbd_handshake *h, uint32_t flags)
{
	if ((flags & ~(uint32_t)(QK_NBD_FLAG_FIXED_NEWSTYLE | QK_NBD_FLAG_NO_ZEROES)) != 0)
		return broken(h, "unknown client flags");
	h->has_flags = true;
	h->session->is_fixed = (flags & QK_NBD_FLAG_FIXED_NEWSTYLE) != 0;
	h->session->no_zeroes = (flags & QK_NBD_FLAG_NO_ZEROES) != 0;
	return QK_NBD_STEP_ON;
}

/* The head of an option: what it may be and how long. */
static enum qk_nbd_step judge_head(
	struct qk_nbd_handshake *h, const uint8_t *in, struct qk_nbd_option *option)
{
	if (!qk_nbd_get_option(in, option))
		return broken(h, "the magic of an option is wrong");
	if (!h->session->is_fixed && option->option != QK_NBD_OPT_EXPORT_NAME)
		return broken(h, "an option that newstyle negotiation does not know");
	if (option->length > QK_NBD_OPTION_SKIP)
		return broken(h, "an option with more than 1 MiB of data");
	if (option->option == QK_NBD_OPT_EXPORT_NAME && option->length > QK_NBD_MAX_STRING)
		return broken(h, "a name of more than 4096 bytes");
	return QK_NBD_STEP_ON;
}

static enum qk_nbd_step skip(struct qk_nbd_handshake *h, size_t n, size_t *used)
{
	*used = n < h->skip ? n : h->skip;
	h->skip -= (uint32_t)*used;
	return *used != 0 ? QK_NBD_STEP_ON : QK_NBD_STEP_MORE;
}

enum qk_nbd_step qk_nbd_handshake_step(struct qk_nbd_handshake *h, const uint8_t *in, size_t n,
	size_t *used, struct qk_nbd_buf *out)
{
	struct qk_nbd_option option;
	*used = 0;
	if (h->skip != 0)
		return skip(h, n, used);
	if (n < (h->has_flags ? QK_NBD_OPTION_BYTES : QK_NBD_CLIENT_FLAGS_BYTES))
		return QK_NBD_STEP_MORE;
	if (!h->has_flags) {
		*used = QK_NBD_CLIENT_FLAGS_BYTES;
		return client_flags(h, qk_load32(in));
	}
	enum qk_nbd_step step = judge_head(h, in, &option);
	if (step != QK_NBD_STEP_ON)
		return step;
	size_t n_data = option.length;
	if (n_data > QK_NBD_OPTION_DATA) {
		h->skip = option.length;
		n_data = 0;
	}
	if (n - QK_NBD_OPTION_BYTES < n_data)
		return QK_NBD_STEP_MORE;
	*used = QK_NBD_OPTION_BYTES + n_data;
	return answer(h, &option, (struct qk_span){in + QK_NBD_OPTION_BYTES, n_data}, out);
}
