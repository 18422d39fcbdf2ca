/* SPDX-License-Identifier: MIT */
/*
 * list: the exports of a server, asked for one by one on one connection that never leaves the negotiation.
 */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store_nbd/lib.h"
#include "store_nbd/store_nbd.h"

enum {
	MOST_EXPORTS = 1024,
	MOST_CONTEXTS = 64
};

struct strings {
	char *v[MOST_EXPORTS];
	unsigned n, most;
};

struct listing {
	struct strings names, descriptions, contexts;
};

static void add(struct strings *s, const char *text)
{
	if (s->n < s->most && (s->v[s->n] = qk_strndup(text, strlen(text))) != NULL)
		s->n++;
}

static void release(struct strings *s)
{
	while (s->n > 0)
		free(s->v[--s->n]);
}

static int on_export(void *ctx, const char *name, const char *description)
{
	struct listing *l = ctx;
	add(&l->names, name);
	add(&l->descriptions, description);
	return 0;
}

static int on_context(void *ctx, const char *name)
{
	add(&((struct listing *)ctx)->contexts, name);
	return 0;
}

static unsigned flags_of(const struct qk_libnbd *lib, struct nbd_handle *nbd)
{
	return 0x1U | (lib->is_read_only(nbd) > 0 ? 0x2U : 0) |
	       (lib->can_flush(nbd) > 0 ? 0x4U : 0) | (lib->can_fua(nbd) > 0 ? 0x8U : 0) |
	       (lib->is_rotational(nbd) > 0 ? 0x10U : 0) | (lib->can_trim(nbd) > 0 ? 0x20U : 0) |
	       (lib->can_zero(nbd) > 0 ? 0x40U : 0) | (lib->can_df(nbd) > 0 ? 0x80U : 0) |
	       (lib->can_multi_conn(nbd) > 0 ? 0x100U : 0) |
	       (lib->can_cache(nbd) > 0 ? 0x400U : 0) | (lib->can_fast_zero(nbd) > 0 ? 0x800U : 0);
}

static uint64_t block_of(const struct qk_libnbd *lib, struct nbd_handle *nbd, int which)
{
	int64_t n = lib->get_block_size(nbd, which);
	return n > 0 ? (uint64_t)n : 0;
}

static enum qcow_status describe(const struct qk_libnbd *lib, struct nbd_handle *nbd,
	struct listing *l, unsigned i, struct qk_nbd_listed *out, struct qcow_error *err)
{
	nbd_context_callback context = {.callback = on_context, .user_data = l};
	if (lib->set_export_name(nbd, l->names.v[i]) != 0 || lib->opt_info(nbd) != 0)
		return QK_FAIL(err, QCOW_E_IO, "%s", lib->get_error());
	int64_t size = lib->get_size(nbd);
	*out = (struct qk_nbd_listed){.name = l->names.v[i],
		.description = i < l->descriptions.n ? l->descriptions.v[i] : NULL,
		.size = size > 0 ? (uint64_t)size : 0,
		.flags = flags_of(lib, nbd),
		.min_block = block_of(lib, nbd, LIBNBD_SIZE_MINIMUM),
		.preferred_block = block_of(lib, nbd, LIBNBD_SIZE_PREFERRED),
		.max_block = block_of(lib, nbd, LIBNBD_SIZE_MAXIMUM)};
	release(&l->contexts);
	(void)lib->opt_list_meta_context(nbd, context);
	out->contexts = (const char *const *)l->contexts.v;
	out->n_contexts = l->contexts.n;
	return QCOW_OK;
}

static enum qcow_status ask_all(const struct qk_libnbd *lib, struct nbd_handle *nbd,
	const struct qk_nbd_address *a, struct listing *l, struct qcow_error *err)
{
	nbd_list_callback list = {.callback = on_export, .user_data = l};
	int r = qk_nbd_set_tls(lib, nbd, a) ? lib->set_opt_mode(nbd, true) : -1;
	if (r == 0)
		r = a->path != NULL ? lib->connect_unix(nbd, a->path)
				    : lib->connect_tcp(nbd, a->host, a->port);
	if (r != 0 || lib->opt_list(nbd, list) < 0)
		return QK_FAIL(err, QCOW_E_IO, "%s", lib->get_error());
	return QCOW_OK;
}

enum qcow_status qk_nbd_list(const struct qk_nbd_address *a, void (*count)(void *ctx, unsigned n),
	void (*each)(void *ctx, const struct qk_nbd_listed *listed), void *ctx,
	struct qcow_error *err)
{
	const struct qk_libnbd *lib = NULL;
	QK_TRY(qk_libnbd_load(&lib, err));
	struct listing *l = qk_calloc(1, sizeof(*l));
	struct nbd_handle *nbd = l != NULL ? lib->create() : NULL;
	if (nbd == NULL) {
		free(l);
		return QK_FAIL_NOMEM(err);
	}
	l->names.most = l->descriptions.most = MOST_EXPORTS;
	l->contexts.most = MOST_CONTEXTS;
	enum qcow_status status = ask_all(lib, nbd, a, l, err);
	if (status == QCOW_OK)
		count(ctx, l->names.n);
	for (unsigned i = 0; i < l->names.n && status == QCOW_OK; i++) {
		struct qk_nbd_listed listed;
		status = describe(lib, nbd, l, i, &listed, err);
		if (status == QCOW_OK)
			each(ctx, &listed);
	}
	lib->close(nbd);
	release(&l->names);
	release(&l->descriptions);
	release(&l->contexts);
	free(l);
	return status;
}
