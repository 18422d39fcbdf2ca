/* SPDX-License-Identifier: MIT */
/*
 * text: what a bitmap says, as JSON: the extents of the disk in order, like `qcow map --bitmap --output json`.
 */
#include <stdio.h>

#include "serve/fuse/core.h"

/* More is not told: the bitmap has millions of extents. */
#define TEXT_MOST ((size_t)64 << 20)

struct builder {
	struct qk_fuse_text *text;
	size_t room;
};

static enum qcow_status put(struct builder *b, const struct qcow_bitmap_extent *e, bool is_first,
	bool is_last, struct qcow_error *err)
{
	const size_t most = 128;
	if (b->text == NULL || b->room - b->text->n < most) {
		size_t room = b->room == 0 ? 4096 : 2 * b->room;
		if (room > TEXT_MOST)
			return QK_FAIL(err, QCOW_E_LIMIT, "more than %zu bytes of text", TEXT_MOST);
		size_t used = b->text != NULL ? b->text->n : 0;
		struct qk_fuse_text *grown = qk_realloc(b->text, sizeof(*b->text) + room, 1);
		if (grown == NULL)
			return QK_FAIL_NOMEM(err);
		b->text = grown;
		b->text->n = used;
		b->room = room;
	}
	b->text->n += (size_t)snprintf(b->text->text + b->text->n, most,
		"%s{ \"start\": %llu, \"length\": %llu, \"dirty\": %s}%s", is_first ? "[" : ",\n",
		(unsigned long long)e->off, (unsigned long long)e->len, e->dirty ? "true" : "false",
		is_last ? "]\n" : "");
	return QCOW_OK;
}

/* Runs with one answer are told as one. */
static enum qcow_status put_all(
	struct builder *b, const struct qk_fuse_node *text, struct qcow_error *err)
{
	uint64_t size = atomic_load(&text->of->size);
	struct qcow_bitmap_extent run = {0}, next;
	bool is_first = true;
	for (uint64_t at = 0; at < size; at += next.len) {
		QK_TRY(text->of->ops->dirty(
			text->of->ctx, text->bitmap, at, size - at, &next, err));
		if (run.len != 0 && run.dirty != next.dirty) {
			QK_TRY(put(b, &run, is_first, false, err));
			is_first = false;
			run.len = 0;
		}
		if (run.len == 0)
			run = next;
		else
			run.len += next.len;
	}
	return put(b, &run, is_first, true, err);
}

enum qcow_status qk_fuse_text_make(struct qk_fuse *fs, struct qk_fuse_node *node,
	struct qk_fuse_text **out, struct qcow_error *err)
{
	struct builder b = {0};
	if (!qk_view_gate_enter(&fs->gate, &fs->is_over))
		return QK_FAIL(err, QCOW_E_IO, "it ends");
	enum qcow_status status = QCOW_OK;
	if (node->of == NULL || node->of->ops == NULL)
		status = QK_FAIL(err, QCOW_E_NOENT, "the bitmap is not there any more");
	else
		status = put_all(&b, node, err);
	qk_view_gate_leave(&fs->gate);
	if (status == QCOW_OK)
		*out = b.text;
	else
		free(b.text);
	return status;
}
