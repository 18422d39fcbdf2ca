/* SPDX-License-Identifier: MIT */
/*
 * text: what a bitmap says, as JSON: the extents of the disk in order, like `qcow map --bitmap --output json`.
 *
 * Who opens a text gets one of his own, which stays as it is while the bitmap changes. All of them together have a limit.
 */
#include <stdio.h>
#include <string.h>

#include "serve/fuse/core.h"

/* More is not told: the bitmap has millions of extents. */
#define TEXT_MOST ((uint64_t)64 << 20)
/* Of all that are open. */
#define TEXTS_MOST (2 * TEXT_MOST)
#define LINE_MOST  128U

struct builder {
	struct qk_fuse *fs;
	struct qk_fuse_text *text; /* NULL: it is only counted */
	uint64_t n;
	bool keeps;
};

/* ---- memory ---- */

static bool charge(struct qk_fuse *fs, uint64_t bytes)
{
	uint64_t old = atomic_load(&fs->text_bytes);
	do {
		if (bytes > TEXTS_MOST - old)
			return false;
	} while (!atomic_compare_exchange_weak(&fs->text_bytes, &old, old + bytes));
	return true;
}

void qk_fuse_text_free(struct qk_fuse *fs, struct qk_fuse_text *text)
{
	if (text == NULL)
		return;
	atomic_fetch_sub(&fs->text_bytes, text->room);
	free(text);
}

static enum qcow_status grow(struct builder *b, struct qcow_error *err)
{
	size_t had = b->text != NULL ? b->text->room : 0, room = had == 0 ? 4096 : 2 * had;
	if (!charge(b->fs, room - had))
		return QK_FAIL(err, QCOW_E_NOMEM, "too much of bitmaps is open");
	struct qk_fuse_text *grown = qk_realloc(b->text, sizeof(*grown) + room, 1);
	if (grown == NULL) {
		atomic_fetch_sub(&b->fs->text_bytes, room - had);
		return QK_FAIL_NOMEM(err);
	}
	b->text = grown;
	b->text->room = room;
	return QCOW_OK;
}

/* What was too much is given back. */
static void trim(struct builder *b)
{
	struct qk_fuse_text *text = b->text;
	text->n = b->n;
	struct qk_fuse_text *less = qk_realloc(text, sizeof(*less) + text->n, 1);
	if (less == NULL)
		return;
	atomic_fetch_sub(&b->fs->text_bytes, less->room - less->n);
	less->room = less->n;
	b->text = less;
}

/* ---- what it says ---- */

static enum qcow_status put(struct builder *b, const struct qcow_bitmap_extent *e, bool is_first,
	bool is_last, struct qcow_error *err)
{
	char line[LINE_MOST];
	size_t n = (size_t)snprintf(line, sizeof(line),
		"%s{ \"start\": %llu, \"length\": %llu, \"dirty\": %s}%s", is_first ? "[" : ",\n",
		(unsigned long long)e->off, (unsigned long long)e->len, e->dirty ? "true" : "false",
		is_last ? "]\n" : "");
	if (n > TEXT_MOST - b->n)
		return QK_FAIL(err, QCOW_E_LIMIT, "more than %llu bytes of text",
			(unsigned long long)TEXT_MOST);
	if (b->keeps && (b->text == NULL || n > b->text->room - b->n))
		QK_TRY(grow(b, err));
	if (b->keeps)
		memcpy(b->text->text + b->n, line, n);
	b->n += n;
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

/* Inside the gate, which is left. */
static enum qcow_status build(
	struct builder *b, const struct qk_fuse_node *node, struct qcow_error *err)
{
	enum qcow_status status = QCOW_OK;
	if (node->of == NULL || node->of->ops == NULL)
		status = QK_FAIL(err, QCOW_E_NOENT, "the bitmap is not there any more");
	else
		status = put_all(b, node, err);
	qk_view_gate_leave(&b->fs->gate);
	return status;
}

uint64_t qk_fuse_text_bytes(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct builder b = {.fs = fs};
	if (qk_view_gate_try(&fs->gate))
		atomic_store(&node->text_bytes, build(&b, node, &err) == QCOW_OK ? b.n : 0);
	return atomic_load(&node->text_bytes);
}

enum qcow_status qk_fuse_text_make(struct qk_fuse *fs, struct qk_fuse_node *node,
	struct qk_fuse_text **out, struct qcow_error *err)
{
	struct builder b = {.fs = fs, .keeps = true};
	if (!qk_view_gate_enter(&fs->gate, &fs->is_over))
		return QK_FAIL(err, QCOW_E_IO, "it ends");
	enum qcow_status status = build(&b, node, err);
	if (status != QCOW_OK) {
		qk_fuse_text_free(fs, b.text);
		return status;
	}
	trim(&b);
	*out = b.text;
	return QCOW_OK;
}
