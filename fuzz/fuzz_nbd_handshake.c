/* SPDX-License-Identifier: MIT */
/*
 * What a client says before transmission: the first byte picks TLS and how the bytes arrive. Oracle: replies are replies; each
 * step goes on or asks for more; what was selected belongs to the export that was entered, ids differ; nothing is left when
 * the session is released.
 */
#include "nbd.h"

static void check_session(const struct qk_nbd_session *s)
{
	FUZZ_CHECK(s->node != NULL && (s->flags & QK_NBD_FLAG_HAS_FLAGS) != 0);
	FUZZ_CHECK(s->n_contexts == 0 || (s->meta_node == s->node && s->mode != QK_NBD_SIMPLE));
	FUZZ_CHECK(!s->node->needs_tls || s->is_tls);
	FUZZ_CHECK(s->n_contexts <= 4);
	for (unsigned i = 0; i < s->n_contexts; i++)
		FUZZ_CHECK(s->contexts[i].id == i);
}

/* Steps as long as they go; returns how many bytes were used. */
static size_t run(struct qk_nbd_handshake *h, const uint8_t *p, size_t n, enum qk_nbd_step *step)
{
	size_t at = 0, used = 0;
	do {
		struct qk_nbd_buf out = {0};
		*step = qk_nbd_handshake_step(h, p + at, n - at, &used, &out);
		FUZZ_CHECK(used <= n - at && !out.bad);
		FUZZ_CHECK(*step != QK_NBD_STEP_ON || used != 0);
		FUZZ_CHECK(*step != QK_NBD_STEP_MORE || (used == 0 && out.n == 0));
		if (*step != QK_NBD_STEP_TRANSMIT)
			fuzz_nbd_look_at_options(out.p, out.n);
		qk_nbd_buf_free(&out);
		at += used;
		if (*step == QK_NBD_STEP_TLS) {
			h->session->is_tls = true;
			FUZZ_CHECK(
				h->session->mode == QK_NBD_SIMPLE && h->session->n_contexts == 0);
		}
	} while (*step == QK_NBD_STEP_ON || *step == QK_NBD_STEP_TLS);
	return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct qk_nbd_registry registry;
	struct qk_nbd_session session = {.min_block = 1};
	const _Atomic bool is_stopping = false;
	if (n < 2)
		return 0;
	fuzz_nbd_registry(&registry);
	struct qk_nbd_handshake h = {.registry = &registry,
		.session = &session,
		.tls = (enum qk_nbd_tls_mode)(data[0] % 3),
		.is_stopping = &is_stopping};
	size_t piece = (data[0] & 0x80) != 0 ? (size_t)data[0] % 29 + 1 : n;
	enum qk_nbd_step step = QK_NBD_STEP_MORE;
	size_t from = 1;
	for (size_t to = from; to < n && step == QK_NBD_STEP_MORE;) {
		to = to + piece < n ? to + piece : n;
		from += run(&h, data + from, to - from, &step);
	}
	if (step == QK_NBD_STEP_TRANSMIT)
		check_session(&session);
	FUZZ_CHECK(step != QK_NBD_STEP_CLOSE || h.broken != NULL);
	qk_nbd_session_release(&session, &registry);
	for (const struct qk_nbd_node *node = registry.first; node != NULL; node = node->next)
		FUZZ_CHECK(node->n_refs == 1 && node->n_connections == 0);
	qk_nbd_registry_release(&registry);
	return 0;
}
