/* SPDX-License-Identifier: MIT */
/*
 * meta: LIST_META_CONTEXT and SET_META_CONTEXT (see handshake.h). Contexts of an export are numbered: 0 is base:allocation,
 * 1 qemu:allocation-depth, 2 and on its bitmaps. Each is told once, however many queries name it.
 */
#include "serve/nbd/handshake.h"

#include <string.h>

#include "base/bits.h"
#include "base/err.h"

#define FIRST_BITMAP 2U
#define MAX_CONTEXTS (FIRST_BITMAP + QK_NBD_MAX_BITMAPS)
#define BITMAP_NAMES "qemu:dirty-bitmap:"

/* Which contexts of the export are meant. */
struct picked {
	const struct qk_nbd_node *node;
	uint8_t bits[(MAX_CONTEXTS + 7) / 8];
};

void qk_nbd_contexts_release(struct qk_nbd_session *session, struct qk_nbd_registry *registry)
{
	for (unsigned i = 0; i < session->n_contexts; i++)
		free(session->contexts[i].bitmap);
	free(session->contexts);
	session->contexts = NULL;
	session->n_contexts = 0;
	qk_nbd_node_put(registry, session->meta_node);
	session->meta_node = NULL;
}

static void pick(struct picked *p, unsigned index)
{
	const struct qk_nbd_node *node = p->node;
	bool is_there = index == 0   ? node->ops->map != NULL
			: index == 1 ? node->ops->map != NULL && node->has_depth
				     : node->ops->dirty != NULL &&
					       index - FIRST_BITMAP < node->n_bitmaps;
	if (is_there)
		qk_bits_set(p->bits, index, index + 1);
}

static void pick_bitmaps(struct picked *p)
{
	for (unsigned i = 0; i < p->node->n_bitmaps; i++)
		pick(p, FIRST_BITMAP + i);
}

static void pick_all(struct picked *p)
{
	pick(p, 0);
	pick(p, 1);
	pick_bitmaps(p);
}

static bool is_text(struct qk_span q, const char *text)
{
	size_t n = strlen(text);
	return q.n == n && (n == 0 || memcmp(q.p, text, n) == 0);
}

static void pick_bitmap(struct picked *p, struct qk_span name)
{
	for (unsigned i = 0; i < p->node->n_bitmaps; i++) {
		if (is_text(name, p->node->bitmaps[i]))
			pick(p, FIRST_BITMAP + i);
	}
}

/* One query. false: it has no namespace. What is not known is ignored. */
static bool query(struct picked *p, struct qk_span q, bool is_list)
{
	size_t n = strlen(BITMAP_NAMES);
	if (q.n == 0 || memchr(q.p, ':', q.n) == NULL)
		return false;
	if (is_text(q, "base:allocation") || (is_list && is_text(q, "base:")))
		pick(p, 0);
	if (is_text(q, "qemu:allocation-depth") || (is_list && is_text(q, "qemu:")))
		pick(p, 1);
	if (is_list && (is_text(q, "qemu:") || is_text(q, BITMAP_NAMES)))
		pick_bitmaps(p);
	else if (q.n > n && memcmp(q.p, BITMAP_NAMES, n) == 0)
		pick_bitmap(p, (struct qk_span){q.p + n, q.n - n});
	return true;
}

static void reply_context(struct qk_nbd_buf *out, uint32_t option, uint32_t id, unsigned index,
	const struct qk_nbd_node *node)
{
	const char *prefix = index == 0	  ? "base:allocation"
			     : index == 1 ? "qemu:allocation-depth"
					  : BITMAP_NAMES;
	const char *name = index >= FIRST_BITMAP ? node->bitmaps[index - FIRST_BITMAP] : "";
	uint8_t *head = qk_nbd_buf_room(out, QK_NBD_OPTION_REPLY_BYTES);
	if (head == NULL)
		return;
	qk_nbd_put_option_reply(head, option, QK_NBD_REP_META_CONTEXT,
		(uint32_t)(4 + strlen(prefix) + strlen(name)));
	qk_nbd_buf_add32(out, id);
	qk_nbd_buf_add(out, prefix, strlen(prefix));
	qk_nbd_buf_add(out, name, strlen(name));
}

/* Give the session context `index` under the next id. false: no memory. */
static bool select_context(
	struct qk_nbd_session *session, const struct qk_nbd_node *node, unsigned index)
{
	struct qk_nbd_context context = {.id = session->n_contexts,
		.kind = index == 0   ? QK_NBD_CONTEXT_ALLOCATION
			: index == 1 ? QK_NBD_CONTEXT_DEPTH
				     : QK_NBD_CONTEXT_BITMAP};
	if (index >= FIRST_BITMAP) {
		const char *name = node->bitmaps[index - FIRST_BITMAP];
		context.bitmap = qk_strndup(name, strlen(name));
		if (context.bitmap == NULL)
			return false;
	}
	struct qk_nbd_context *more = qk_realloc(
		session->contexts, session->n_contexts + 1, sizeof(*session->contexts));
	if (more == NULL) {
		free(context.bitmap);
		return false;
	}
	session->contexts = more;
	session->contexts[session->n_contexts++] = context;
	return true;
}

/* Tell, and with SET select, what was picked. The registry's lock keeps the list of bitmaps. */
static void reply_picked(
	struct qk_nbd_handshake *h, uint32_t option, const struct picked *p, struct qk_nbd_buf *out)
{
	unsigned n = FIRST_BITMAP + p->node->n_bitmaps;
	for (unsigned i = 0; i < n; i++) {
		uint32_t id = 0;
		if ((p->bits[i / 8] >> (i % 8) & 1) == 0)
			continue;
		if (option == QK_NBD_OPT_SET_META_CONTEXT) {
			id = h->session->n_contexts;
			if (!select_context(h->session, p->node, i)) {
				out->bad = true;
				return;
			}
		}
		reply_context(out, option, id, i, p->node);
	}
}

static uint32_t pick_queries(
	struct picked *p, struct qk_nbd_meta_request *meta, bool is_list, const char **message)
{
	if (is_list && meta->n_queries == 0)
		pick_all(p);
	for (uint32_t i = 0; i < meta->n_queries; i++) {
		if (!query(p, qk_nbd_next_query(meta), is_list)) {
			*message = "a query without a namespace";
			return QK_NBD_REP_ERR_INVALID;
		}
	}
	return QK_NBD_REP_ACK;
}

uint32_t qk_nbd_meta_option(struct qk_nbd_handshake *h, const struct qk_nbd_option *option,
	struct qk_span data, struct qk_nbd_buf *out, const char **message)
{
	struct qk_nbd_meta_request meta;
	uint32_t type = QK_NBD_REP_ERR_INVALID;
	bool is_list = option->option == QK_NBD_OPT_LIST_META_CONTEXT;
	if (!is_list)
		qk_nbd_contexts_release(h->session, h->registry);
	*message = "metadata contexts need structured replies";
	if (h->session->mode == QK_NBD_SIMPLE)
		return type;
	*message = "the lengths in the option do not fit its data";
	if (!qk_nbd_get_meta(data, &meta))
		return type;
	*message = "too many queries";
	if (meta.n_queries > QK_NBD_MAX_QUERIES)
		return QK_NBD_REP_ERR_TOO_BIG;
	struct qk_nbd_node *node = qk_nbd_visible_node(h, meta.name, &type, message);
	if (node == NULL)
		return type;
	struct picked p = {.node = node};
	pthread_mutex_lock(&h->registry->lock);
	type = pick_queries(&p, &meta, is_list, message);
	if (type == QK_NBD_REP_ACK)
		reply_picked(h, option->option, &p, out);
	pthread_mutex_unlock(&h->registry->lock);
	if (!is_list && type == QK_NBD_REP_ACK)
		h->session->meta_node = node;
	else
		qk_nbd_node_put(h->registry, node);
	return type;
}
