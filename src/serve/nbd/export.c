/* SPDX-License-Identifier: MIT */
/*
 * export: see export.h. Owns the list of exports. Calls ops->close, and no other call of an export; never with its lock held.
 */
#include "serve/nbd/export.h"

#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "base/num.h"
#include "serve/nbd/proto.h"

enum qcow_status qk_nbd_registry_init(struct qk_nbd_registry *r, struct qcow_error *err)
{
	*r = (struct qk_nbd_registry){0};
	int failed = pthread_mutex_init(&r->lock, NULL);
	if (failed != 0)
		return QK_FAIL_OS(err, failed, "making a lock");
	pthread_cond_init(&r->closed, NULL);
	qk_view_gate_init(&r->gate);
	return QCOW_OK;
}

static void free_names(char **names, unsigned n)
{
	for (unsigned i = 0; names != NULL && i < n; i++)
		free(names[i]);
	free(names);
}

static void node_free(struct qk_nbd_node *node)
{
	free_names(node->bitmaps, node->n_bitmaps);
	free(node->name);
	free(node->description);
	free(node);
}

void qk_nbd_registry_release(struct qk_nbd_registry *r)
{
	while (r->first != NULL) {
		struct qk_nbd_node *node = r->first;
		r->first = node->next;
		qk_nbd_node_put(r, node);
	}
	pthread_cond_destroy(&r->closed);
	qk_view_gate_release(&r->gate);
	pthread_mutex_destroy(&r->lock);
}

/* A copy of a string that the protocol allows. */
static enum qcow_status copy_string(
	char **out, const char *s, const char *what, struct qcow_error *err)
{
	size_t n = strlen(s);
	if (n > QK_NBD_MAX_STRING)
		return QK_FAIL(err, QCOW_E_INVAL, "%s has %zu bytes, the protocol knows %u at most",
			what, n, QK_NBD_MAX_STRING);
	*out = qk_strndup(s, n);
	return *out != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

static enum qcow_status copy_bitmaps(
	char ***out, const char *const *bitmaps, unsigned n, struct qcow_error *err)
{
	*out = NULL;
	if (n > QK_NBD_MAX_BITMAPS)
		return QK_FAIL(err, QCOW_E_LIMIT, "%u bitmaps in one export, %u at most", n,
			QK_NBD_MAX_BITMAPS);
	char **names = qk_calloc(n, sizeof(*names));
	enum qcow_status status = names != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
	for (unsigned i = 0; i < n && status == QCOW_OK; i++) {
		status = copy_string(&names[i], bitmaps[i], "the name of a bitmap", err);
		if (status == QCOW_OK && strlen(names[i]) > QK_NBD_MAX_STRING - 32)
			status = QK_FAIL(err, QCOW_E_INVAL, "the name of a bitmap is too long");
	}
	if (status == QCOW_OK)
		*out = names;
	else
		free_names(names, n);
	return status;
}

static enum qcow_status set_blocks(
	struct qk_nbd_node *node, const struct qk_nbd_export *export, struct qcow_error *err)
{
	node->min_block = export->min_block != 0 ? export->min_block : 1;
	node->preferred_block = export->preferred_block != 0
					? export->preferred_block
					: (uint32_t)qk_max(4096, node->min_block);
	node->max_block = export->max_block != 0 ? export->max_block : QK_NBD_MAX_PAYLOAD;
	bool is_good = qk_is_pow2(node->min_block) && node->min_block <= 65536 &&
		       qk_is_pow2(node->preferred_block) && node->preferred_block >= 512 &&
		       node->preferred_block >= node->min_block &&
		       node->max_block <= QK_NBD_MAX_PAYLOAD &&
		       node->max_block >= node->preferred_block &&
		       node->max_block % node->min_block == 0;
	if (is_good)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_INVAL, "block sizes %u, %u and %u: the protocol forbids them",
		node->min_block, node->preferred_block, node->max_block);
}

static enum qcow_status node_fill(
	struct qk_nbd_node *node, const struct qk_nbd_export *export, struct qcow_error *err)
{
	if (export->ops == NULL || export->ops->pread == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "an export that cannot be read");
	if (export->size > INT64_MAX)
		return QK_FAIL(err, QCOW_E_INVAL, "an export of 2^63 bytes or more");
	QK_TRY(set_blocks(node, export, err));
	QK_TRY(copy_string(&node->name, export->name, "the name of an export", err));
	if (export->description != NULL)
		QK_TRY(copy_string(&node->description, export->description, "a description", err));
	QK_TRY(copy_bitmaps(&node->bitmaps, export->bitmaps, export->n_bitmaps, err));
	node->n_bitmaps = export->n_bitmaps;
	atomic_init(&node->size, export->size);
	node->read_only = export->read_only || export->ops->pwrite == NULL;
	node->multi_conn = export->multi_conn;
	node->rotational = export->rotational;
	node->has_depth = export->has_depth;
	node->needs_tls = export->needs_tls;
	node->max_connections = export->max_connections;
	node->ops = export->ops;
	node->ctx = export->ctx;
	node->n_refs = 1;
	return QCOW_OK;
}

static struct qk_nbd_node **head_of(struct qk_nbd_registry *r, const void *name, size_t n)
{
	const uint8_t *p = name;
	uint32_t hash = 2166136261U;
	for (size_t i = 0; i < n; i++)
		hash = (hash ^ p[i]) * 16777619U;
	return &r->heads[(hash ^ hash >> 16) % QK_NBD_HEADS];
}

static struct qk_nbd_node *lookup(struct qk_nbd_registry *r, const void *name, size_t n)
{
	for (struct qk_nbd_node *node = *head_of(r, name, n); node != NULL;
		node = node->next_alike) {
		if (strlen(node->name) == n && (n == 0 || memcmp(node->name, name, n) == 0))
			return node;
	}
	return NULL;
}

/* Behind the others, and in front of those with the same hash; with the lock. */
static void put_in(struct qk_nbd_registry *r, struct qk_nbd_node *node)
{
	struct qk_nbd_node **head = head_of(r, node->name, strlen(node->name));
	node->next_alike = *head;
	*head = node;
	if (r->last != NULL)
		r->last->next = node;
	else
		r->first = node;
	r->last = node;
}

static void take_out(struct qk_nbd_registry *r, struct qk_nbd_node *node)
{
	struct qk_nbd_node **at = head_of(r, node->name, strlen(node->name)), *before = NULL;
	while (*at != node)
		at = &(*at)->next_alike;
	*at = node->next_alike;
	for (at = &r->first; *at != node; at = &(*at)->next)
		before = *at;
	*at = node->next;
	if (r->last == node)
		r->last = before;
}

enum qcow_status qk_nbd_registry_add(
	struct qk_nbd_registry *r, const struct qk_nbd_export *export, struct qcow_error *err)
{
	struct qk_nbd_node *node = qk_calloc(1, sizeof(*node));
	if (node == NULL)
		return QK_FAIL_NOMEM(err);
	enum qcow_status status = node_fill(node, export, err);
	if (status != QCOW_OK) {
		node_free(node);
		return status;
	}
	pthread_mutex_lock(&r->lock);
	bool is_there = lookup(r, node->name, strlen(node->name)) != NULL;
	if (!is_there)
		put_in(r, node);
	pthread_mutex_unlock(&r->lock);
	if (!is_there)
		return QCOW_OK;
	status = QK_FAIL(err, QCOW_E_EXIST, "an export '%s' is there already", node->name);
	node_free(node);
	return status;
}

struct qk_nbd_node *qk_nbd_registry_find(struct qk_nbd_registry *r, struct qk_span name)
{
	pthread_mutex_lock(&r->lock);
	struct qk_nbd_node *node = lookup(r, name.p, name.n);
	if (node == NULL && name.n == 0 && r->first != NULL && r->first->next == NULL)
		node = r->first;
	if (node != NULL)
		node->n_refs++;
	pthread_mutex_unlock(&r->lock);
	return node;
}

struct qk_nbd_node *qk_nbd_node_get(struct qk_nbd_registry *r, struct qk_nbd_node *node)
{
	pthread_mutex_lock(&r->lock);
	node->n_refs++;
	pthread_mutex_unlock(&r->lock);
	return node;
}

/* Called with the lock, which is dropped. */
static void put_locked(struct qk_nbd_registry *r, struct qk_nbd_node *node)
{
	bool is_last = --node->n_refs == 0;
	if (node->is_removed || node->is_resting)
		pthread_cond_broadcast(&r->closed);
	pthread_mutex_unlock(&r->lock);
	if (!is_last)
		return;
	if (node->ops->close != NULL)
		node->ops->close(node->ctx);
	node_free(node);
}

void qk_nbd_node_put(struct qk_nbd_registry *r, struct qk_nbd_node *node)
{
	if (node == NULL)
		return;
	pthread_mutex_lock(&r->lock);
	put_locked(r, node);
}

struct qk_nbd_node *qk_nbd_registry_next(struct qk_nbd_registry *r, struct qk_nbd_node *after)
{
	pthread_mutex_lock(&r->lock);
	struct qk_nbd_node *node = after != NULL ? after->next : r->first;
	if (after != NULL && after->is_removed)
		node = NULL; /* its place in the list is gone */
	if (node != NULL)
		node->n_refs++;
	pthread_mutex_unlock(&r->lock);
	qk_nbd_node_put(r, after);
	return node;
}

bool qk_nbd_node_attach(struct qk_nbd_registry *r, struct qk_nbd_node *node)
{
	pthread_mutex_lock(&r->lock);
	bool is_full = node->max_connections != 0 && node->n_connections >= node->max_connections;
	bool is_attached = !is_full && !node->is_removed && !node->is_resting;
	if (is_attached) {
		node->n_connections++;
		node->n_refs++;
	}
	pthread_mutex_unlock(&r->lock);
	return is_attached;
}

void qk_nbd_node_detach(struct qk_nbd_registry *r, struct qk_nbd_node *node)
{
	pthread_mutex_lock(&r->lock);
	bool is_unused = --node->n_connections == 0;
	pthread_mutex_unlock(&r->lock);
	if (is_unused && node->ops->unused != NULL)
		node->ops->unused(node->ctx);
	qk_nbd_node_put(r, node);
}

struct qk_nbd_node *qk_nbd_registry_take(
	struct qk_nbd_registry *r, const char *name, bool refuse_used, bool *is_used)
{
	pthread_mutex_lock(&r->lock);
	struct qk_nbd_node *node = lookup(r, name, strlen(name));
	*is_used = node != NULL && refuse_used && node->n_connections != 0;
	if (*is_used)
		node = NULL;
	if (node != NULL) {
		take_out(r, node);
		node->is_removed = true;
	}
	pthread_mutex_unlock(&r->lock);
	return node;
}

void qk_nbd_node_put_wait(struct qk_nbd_registry *r, struct qk_nbd_node *node)
{
	pthread_mutex_lock(&r->lock);
	while (node->n_refs != 1)
		pthread_cond_wait(&r->closed, &r->lock);
	put_locked(r, node);
}

bool qk_nbd_node_rest(struct qk_nbd_registry *r, struct qk_nbd_node *node, bool hard)
{
	pthread_mutex_lock(&r->lock);
	bool may = hard || node->n_connections == 0;
	if (may)
		node->is_resting = true;
	pthread_mutex_unlock(&r->lock);
	return may;
}

void qk_nbd_node_rest_wait(struct qk_nbd_registry *r, struct qk_nbd_node *node)
{
	pthread_mutex_lock(&r->lock);
	while (node->n_connections != 0)
		pthread_cond_wait(&r->closed, &r->lock);
	pthread_mutex_unlock(&r->lock);
}

enum qcow_status qk_nbd_node_set_bitmaps(struct qk_nbd_registry *r, struct qk_nbd_node *node,
	const char *const *bitmaps, unsigned n_bitmaps, struct qcow_error *err)
{
	char **names = NULL;
	QK_TRY(copy_bitmaps(&names, bitmaps, n_bitmaps, err));
	qk_view_gate_close(&r->gate);
	pthread_mutex_lock(&r->lock);
	char **old = node->bitmaps;
	unsigned n_old = node->n_bitmaps;
	node->bitmaps = names;
	node->n_bitmaps = n_bitmaps;
	pthread_mutex_unlock(&r->lock);
	qk_view_gate_open(&r->gate);
	free_names(old, n_old);
	return QCOW_OK;
}

uint16_t qk_nbd_node_flags(const struct qk_nbd_node *node)
{
	unsigned flags = QK_NBD_FLAG_HAS_FLAGS;
	const struct qk_nbd_export_ops *ops = node->ops;
	if (node->read_only)
		flags |= QK_NBD_FLAG_READ_ONLY;
	if (node->rotational)
		flags |= QK_NBD_FLAG_ROTATIONAL;
	if (node->multi_conn)
		flags |= QK_NBD_FLAG_CAN_MULTI_CONN;
	if (ops->flush != NULL)
		flags |= QK_NBD_FLAG_SEND_FLUSH | QK_NBD_FLAG_SEND_FUA;
	if (ops->cache != NULL)
		flags |= QK_NBD_FLAG_SEND_CACHE;
	if (!node->read_only && ops->trim != NULL)
		flags |= QK_NBD_FLAG_SEND_TRIM;
	if (!node->read_only && ops->zero != NULL)
		flags |= QK_NBD_FLAG_SEND_WRITE_ZEROES | QK_NBD_FLAG_SEND_FAST_ZERO;
	return (uint16_t)flags;
}
