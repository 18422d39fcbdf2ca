/* SPDX-License-Identifier: MIT */
/*
 * list: the exports of a server, asked for one by one on one connection that never leaves the negotiation.
 */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store_nbd/wire.h"

enum {
	MOST_EXPORTS = 1024,
	MOST_CONTEXTS = 64,
	ANSWER_S = 60 /* for each */
};

struct strings {
	char *v[MOST_EXPORTS];
	unsigned n, most;
};

struct listing {
	struct strings names, descriptions, contexts;
	int error; /* of the option that was answered last */
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

/* An option was sent: wait for its answer, as long as `a` lets it. `is_sent`: what libnbd said to the sending. */
static bool wait_for(
	struct qk_nbd_wire *w, const struct qk_nbd_address *a, int is_sent, const char **why)
{
	int64_t seconds = a->open_timeout_s != 0 ? a->open_timeout_s : ANSWER_S;
	enum qk_nbd_turn turn = QK_NBD_LOST;
	if (is_sent == 0)
		turn = qk_nbd_wire_settle(w, qk_nbd_clock_ms() + seconds * 1000);
	if (turn == QK_NBD_TIME_IS_OVER)
		*why = "the server does not finish the handshake";
	else if (turn == QK_NBD_LOST || qk_nbd_wire_is_lost(w))
		*why = w->lib->get_error();
	else
		return true;
	return false;
}

static enum qcow_status failed(const char *why, struct qcow_error *err)
{
	return QK_FAIL(err, QCOW_E_IO, "%s", why != NULL ? why : "no reason given");
}

static int on_answer(void *ctx, int *error)
{
	*(int *)ctx = *error;
	return 1;
}

static enum qcow_status describe(struct qk_nbd_wire *w, const struct qk_nbd_address *a,
	struct listing *l, unsigned i, struct qk_nbd_listed *out, struct qcow_error *err)
{
	const struct qk_libnbd *lib = w->lib;
	struct nbd_handle *nbd = w->nbd;
	const char *why = NULL;
	nbd_context_callback context = {.callback = on_context, .user_data = l};
	nbd_completion_callback answer = {.callback = on_answer, .user_data = &l->error};
	l->error = 0;
	if (lib->set_export_name(nbd, l->names.v[i]) != 0)
		return failed(lib->get_error(), err);
	if (!wait_for(w, a, lib->aio_opt_info(nbd, answer), &why))
		return failed(why, err);
	if (l->error != 0)
		return QK_FAIL_OS(err, l->error, "the server does not describe an export");
	int64_t size = lib->get_size(nbd);
	*out = (struct qk_nbd_listed){.name = l->names.v[i],
		.description = i < l->descriptions.n ? l->descriptions.v[i] : NULL,
		.size = size > 0 ? (uint64_t)size : 0,
		.flags = flags_of(lib, nbd),
		.min_block = block_of(lib, nbd, LIBNBD_SIZE_MINIMUM),
		.preferred_block = block_of(lib, nbd, LIBNBD_SIZE_PREFERRED),
		.max_block = block_of(lib, nbd, LIBNBD_SIZE_MAXIMUM)};
	release(&l->contexts);
	/* a server that has none says so, or that it does not know the option */
	if (!wait_for(w, a, lib->aio_opt_list_meta_context(nbd, context, answer), &why))
		return failed(why, err);
	out->contexts = (const char *const *)l->contexts.v;
	out->n_contexts = l->contexts.n;
	return QCOW_OK;
}

static enum qcow_status ask_all(struct qk_nbd_wire *w, const struct qk_nbd_address *a,
	struct listing *l, struct qcow_error *err)
{
	const struct qk_libnbd *lib = w->lib;
	const char *why = NULL;
	nbd_list_callback list = {.callback = on_export, .user_data = l};
	nbd_completion_callback answer = {.callback = on_answer, .user_data = &l->error};
	int r = qk_nbd_set_tls(lib, w->nbd, a) ? lib->set_opt_mode(w->nbd, true) : -1;
	if (r == 0)
		r = a->path != NULL ? lib->aio_connect_unix(w->nbd, a->path)
				    : lib->aio_connect_tcp(w->nbd, a->host, a->port);
	if (!wait_for(w, a, r, &why) ||
		!wait_for(w, a, lib->aio_opt_list(w->nbd, list, answer), &why))
		return failed(why, err);
	return l->error == 0 ? QCOW_OK
			     : QK_FAIL_OS(err, l->error, "the server does not list its exports");
}

enum qcow_status qk_nbd_list(const struct qk_nbd_address *a, void (*count)(void *ctx, unsigned n),
	void (*each)(void *ctx, const struct qk_nbd_listed *listed), void *ctx,
	struct qcow_error *err)
{
	struct qk_nbd_wire w = {.kick = -1};
	QK_TRY(qk_libnbd_load(&w.lib, err));
	struct listing *l = qk_calloc(1, sizeof(*l));
	w.nbd = l != NULL ? w.lib->create() : NULL;
	if (w.nbd == NULL) {
		free(l);
		return QK_FAIL_NOMEM(err);
	}
	l->names.most = l->descriptions.most = MOST_EXPORTS;
	l->contexts.most = MOST_CONTEXTS;
	enum qcow_status status = ask_all(&w, a, l, err);
	if (status == QCOW_OK)
		count(ctx, l->names.n);
	for (unsigned i = 0; i < l->names.n && status == QCOW_OK; i++) {
		struct qk_nbd_listed listed;
		status = describe(&w, a, l, i, &listed, err);
		if (status == QCOW_OK)
			each(ctx, &listed);
	}
	qk_nbd_wire_end(&w, qk_nbd_farewell_ms());
	release(&l->names);
	release(&l->descriptions);
	release(&l->contexts);
	free(l);
	return status;
}
