/* SPDX-License-Identifier: MIT */
/*
 * serve_open: opens images, and adds what is to be seen of them: the disk, layers, snapshots, partitions.
 */
#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "cli/overlay.h"
#include "cli/serve.h"
#include "serve/view/parts.h"

/* Of a layer: tables, and half as much of decoded clusters. */
#define CACHE_BYTES (UINT64_C(64) << 20)

/* What is being added. */
struct adding {
	struct serve *s;
	struct serve_image *owner;
	struct serve_image *image; /* the same, or NULL: a snapshot's */
	struct qk_view_image *shared;
	const char *snapshot, *snapshot_id;
	bool is_new; /* nothing of the image is shown yet but by this one */
	struct qcow_error *err;
};

bool serve_shows(const struct serve *s, const char *option)
{
	return s->front->shows_all || cli_flag(s->args, option);
}

/* ---- bitmaps ---- */

struct names {
	const char *name[QK_NBD_MAX_BITMAPS];
	char *own
		[QK_NBD_MAX_BITMAPS]; /* copies of what the image has, NULL for those of the command line */
	unsigned n;
};

static void names_release(struct names *names)
{
	for (unsigned i = 0; i < names->n; i++)
		free(names->own[i]);
	names->n = 0;
}

/* Is it one that can be read? */
static bool is_readable(struct qcow_image *image, uint32_t index)
{
	struct qcow_bitmap_reader *reader = NULL;
	if (qcow_bitmap_open(image, index, &reader, NULL) != QCOW_OK)
		return false;
	qcow_bitmap_close(reader);
	return true;
}

static enum qcow_status find_all_bitmaps(
	struct qcow_image *image, struct names *out, struct qcow_error *err)
{
	struct qcow_info info;
	qcow_get_info(image, &info);
	for (uint32_t i = 0; i < info.n_bitmaps && out->n < QK_NBD_MAX_BITMAPS; i++) {
		struct qcow_bitmap bitmap;
		if (!is_readable(image, i) || qcow_get_bitmap(image, i, &bitmap, NULL) != QCOW_OK)
			continue;
		char *copy = qk_strndup(bitmap.name, strlen(bitmap.name));
		if (copy == NULL)
			return QK_FAIL_NOMEM(err);
		out->own[out->n] = copy;
		out->name[out->n++] = copy;
	}
	return QCOW_OK;
}

/* Those that -B names; they must be there unless `may_be_gone`. */
static enum qcow_status find_named_bitmaps(struct serve *s, const struct serve_image *image,
	bool may_be_gone, struct names *out, struct qcow_error *err)
{
	size_t at = 0;
	for (const char *name = cli_arg_next(s->args, "bitmap", &at); name != NULL;
		name = cli_arg_next(s->args, "bitmap", &at)) {
		struct qcow_image *layer = NULL;
		uint32_t index = 0;
		if (out->n == QK_NBD_MAX_BITMAPS)
			return QK_FAIL(err, QCOW_E_LIMIT, "more than %u bitmaps", out->n);
		enum qcow_status status = qk_view_find_bitmap(
			image->shared->image, name, &layer, &index, err);
		if (status == QCOW_E_NOENT && may_be_gone)
			continue;
		if (status == QCOW_E_RANGE)
			return status;
		if (status != QCOW_OK)
			return QK_FAIL(err, QCOW_E_NOENT, "Bitmap '%s' is not found", name);
		out->own[out->n] = NULL;
		out->name[out->n++] = name;
	}
	return QCOW_OK;
}

static enum qcow_status find_bitmaps(struct serve *s, struct serve_image *image, bool may_be_gone,
	struct names *out, struct qcow_error *err)
{
	out->n = 0;
	return image->all_bitmaps ? find_all_bitmaps(image->shared->image, out, err)
				  : find_named_bitmaps(s, image, may_be_gone, out, err);
}

void serve_close_readers(struct serve *s, struct serve_image *image)
{
	for (struct serve_export *e = s->exports; e != NULL; e = e->next)
		if (e->image == image)
			(void)!qk_view_set_bitmaps(e->view, NULL, 0, NULL);
}

enum qcow_status serve_refresh_bitmaps(
	struct serve *s, struct serve_image *image, struct qcow_error *err)
{
	struct names names;
	enum qcow_status status = find_bitmaps(s, image, true, &names, err);
	for (struct serve_export *e = s->exports; e != NULL && status == QCOW_OK; e = e->next) {
		if (e->image != image)
			continue;
		status = qk_view_set_bitmaps(e->view, names.name, names.n, err);
		if (status == QCOW_OK)
			status = s->front->set_bitmaps(s, e->name, names.name, names.n, err);
	}
	names_release(&names);
	return status;
}

/* ---- exports ---- */

struct serve_export *serve_find(struct serve *s, const char *name)
{
	for (struct serve_export *e = s->exports; e != NULL; e = e->next)
		if (strcmp(e->name, name) == 0)
			return e;
	return NULL;
}

static void free_export(struct serve_export *e)
{
	free(e->name);
	free(e->snapshot);
	free(e->snapshot_id);
	free(e);
}

/* Give the view to the server. */
static enum qcow_status offer(struct adding *a, struct serve_export *e,
	const struct qk_view_options *view, bool read_only)
{
	struct serve *s = a->s;
	struct qk_nbd_export export = {.name = e->name,
		.size = view->size,
		.read_only = read_only,
		.bitmaps = view->bitmaps,
		.n_bitmaps = view->n_bitmaps};
	QK_TRY(qk_view_new(a->shared, view, &e->view, a->err));
	export.ops = qk_view_ops(e->view);
	export.ctx = e->view;
	enum qcow_status status = s->front->add(s, &export, a->err);
	if (status != QCOW_OK)
		export.ops->close(e->view);
	return status;
}

/* A copy of a text that may be NULL. False: out of memory. */
static bool copy_text(char **out, const char *text)
{
	*out = text != NULL ? qk_strndup(text, strlen(text)) : NULL;
	return text == NULL || *out != NULL;
}

/* One that shows nothing yet. NULL: out of memory. */
static struct serve_export *new_export(const struct adding *a, const char *name)
{
	struct serve_export *e = qk_calloc(1, sizeof(*e));
	if (e == NULL)
		return NULL;
	if (!copy_text(&e->name, name) || !copy_text(&e->snapshot, a->snapshot) ||
		!copy_text(&e->snapshot_id, a->snapshot_id)) {
		free_export(e);
		return NULL;
	}
	e->owner = a->owner;
	return e;
}

static enum qcow_status add_export(
	struct adding *a, const char *name, struct qk_view_options view, bool is_whole)
{
	struct names names = {.n = 0};
	struct serve_export *e = new_export(a, name);
	if (e == NULL)
		return QK_FAIL_NOMEM(a->err);
	e->image = view.depth == 0 ? a->image : NULL;
	e->is_whole = is_whole;
	view.read_only = a->image == NULL || !a->image->writable || view.depth != 0;
	enum qcow_status status = QCOW_OK;
	if (e->image != NULL)
		status = find_bitmaps(a->s, a->image, false, &names, a->err);
	view.bitmaps = names.name;
	view.n_bitmaps = names.n;
	if (status == QCOW_OK)
		status = offer(a, e, &view, view.read_only);
	names_release(&names);
	if (status != QCOW_OK) {
		if (!a->s->cli->qemu)
			qk_err_context(a->err, "export '%s'", name);
		free_export(e);
		return status;
	}
	e->next = a->s->exports;
	a->s->exports = e;
	return QCOW_OK;
}

static enum qcow_status read_parts(
	void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	return qcow_pread(ctx, buf, len, off, err);
}

/* NAME/p1, … */
static enum qcow_status add_partitions(struct adding *a, const char *name, struct qcow_image *image)
{
	QK_AUTO_FREE struct qk_parts *parts = qk_calloc(1, sizeof(*parts));
	if (parts == NULL)
		return QK_FAIL_NOMEM(a->err);
	QK_TRY(qk_parts_find(read_parts, image, qcow_size(image), parts, a->err));
	for (unsigned i = 0; i < parts->n; i++) {
		QK_AUTO_FREE char *own = NULL;
		const struct qk_part *p = &parts->part[i];
		own = a->s->front->name(a->s, name,
			&(struct serve_part){.kind = SERVE_PARTITION, .number = p->number});
		if (own == NULL)
			return QK_FAIL_NOMEM(a->err);
		if (serve_find(a->s, own) == NULL)
			QK_TRY(add_export(a, own,
				(struct qk_view_options){.off = p->off, .size = p->size}, false));
	}
	return QCOW_OK;
}

/* A failure that who shows all tells of and goes on from; others pass it on. */
static enum qcow_status left_out(struct adding *a, const char *what, enum qcow_status status)
{
	if (status == QCOW_OK || status == QCOW_E_NOMEM || !a->s->front->shows_all)
		return status;
	(void)cli_fail(a->s->cli, a->err, "%s is left out", what);
	return QCOW_OK;
}

/* The disk from --offset on, and what is asked for of it. */
static enum qcow_status add_disk(struct adding *a, const char *name)
{
	struct qcow_image *image = a->shared->image;
	struct qk_view_options view = {.size = qcow_size(image)};
	const char *offset = cli_arg(a->s->args, "offset");
	if (offset != NULL && !cli_parse_size(a->s->cli, "option --offset", offset, &view.off))
		return QK_FAIL(a->err, QCOW_E_INVAL, "no offset");
	if (view.off > view.size)
		return QK_FAIL(a->err, QCOW_E_RANGE,
			"Offset (%llu) has to be smaller than the image size (%llu)",
			(unsigned long long)view.off, (unsigned long long)view.size);
	view.size -= view.off;
	QK_TRY(add_export(a, name, view, view.off == 0));
	/* of a snapshot too, where they are asked for */
	if (!serve_shows(a->s, "partitions") || (a->s->front->shows_all && a->image == NULL))
		return QCOW_OK;
	return left_out(a, "what the disk is parted into", add_partitions(a, name, image));
}

static enum qcow_status add_layers(struct adding *a, const char *name)
{
	unsigned depth = 0;
	for (struct qcow_image *layer = qcow_backing(a->shared->image); layer != NULL;
		layer = qcow_backing(layer)) {
		QK_AUTO_FREE char *own = NULL;
		own = a->s->front->name(
			a->s, name, &(struct serve_part){.kind = SERVE_LAYER, .number = ++depth});
		if (own == NULL)
			return QK_FAIL_NOMEM(a->err);
		QK_TRY(add_export(a, own,
			(struct qk_view_options){.depth = depth, .size = qcow_size(layer)}, false));
	}
	return QCOW_OK;
}

/* ---- images ---- */

static struct cli_open_request request_of(struct serve *s, const struct serve_operand *o)
{
	const char *discard = cli_arg(s->args, "discard"), *cache = cli_arg(s->args, "cache");
	bool ignores = discard != NULL ? discard[0] == 'i' || strcmp(discard, "off") == 0
				       : s->cli->qemu;
	bool direct = cli_flag(s->args, "nocache") ||
		      (cli_cache_file_flags(cache) & (unsigned)QCOW_FILE_DIRECT) != 0;
	struct cli_open_request request = {
		.operand = {.text = o->text, .format = o->format, .image_opts = o->image_opts},
		.snapshot = o->snapshot,
		.cache_bytes = CACHE_BYTES,
		.flags = (ignores ? (unsigned)CLI_OPEN_KEEP : 0) |
			 (direct ? (unsigned)CLI_OPEN_DIRECT : 0) |
			 (cli_flag(s->args, "probe") ? (unsigned)CLI_OPEN_PROBE : 0)};
	if (!o->read_only && !o->temporary && o->snapshot == NULL)
		request.flags |= CLI_OPEN_WRITE;
	return request;
}

static void set_modes(struct serve *s, const struct cli_open_request *r, struct qk_view_image *v)
{
	const char *zeroes = cli_arg(s->args, "detect-zeroes"), *cache = cli_arg(s->args, "cache");
	v->discards = (r->flags & CLI_OPEN_KEEP) == 0;
	v->no_flush = cache != NULL && strcmp(cache, "unsafe") == 0;
	v->sync = (cli_cache_file_flags(cache) & (unsigned)QCOW_FILE_SYNC) != 0;
	if (zeroes != NULL && strcmp(zeroes, "off") != 0)
		v->zeroes = strcmp(zeroes, "unmap") == 0 ? QK_VIEW_ZEROES_UNMAP : QK_VIEW_ZEROES_ON;
}

/* One opens at a time, a worker that wants a snapshot or the control socket: what opening keeps in struct cli has no lock of
 * its own. */
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;

static enum qcow_status open_one(struct serve *s, const struct cli_open_request *request,
	struct qcow_image **out, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&opening);
	enum qcow_status status = cli_try_open(s->cli, request, out, err);
	(void)pthread_mutex_unlock(&opening);
	return status;
}

/* The image that `request` names, with a temporary overlay over it where that is asked for. */
static enum qcow_status open_shared(struct serve *s, const struct cli_open_request *request,
	bool temporary, struct qk_view_image **out, struct qcow_error *err)
{
	struct qcow_image *image = NULL, *over = NULL;
	QK_TRY(open_one(s, request, &image, err));
	enum qcow_status status = temporary ? cli_overlay_open(image, &over, err) : QCOW_OK;
	if (over != NULL)
		image = over;
	*out = status == QCOW_OK ? qk_view_image_new(image) : NULL;
	if (*out != NULL) {
		set_modes(s, request, *out);
		return QCOW_OK;
	}
	qcow_close(image);
	return status != QCOW_OK ? status : QK_FAIL_NOMEM(err);
}

/* Is there an export of it already? */
static bool is_shown(const struct adding *a, const char *id)
{
	for (const struct serve_export *e = a->s->exports; e != NULL; e = e->next)
		if (e->owner == a->owner && e->snapshot_id != NULL &&
			strcmp(e->snapshot_id, id) == 0)
			return true;
	return false;
}

enum qcow_status serve_open_snapshot(struct serve *s, const struct serve_operand *operand,
	const char *key, struct qk_view_image **out, struct qcow_error *err)
{
	struct serve_operand snapshot = *operand;
	snapshot.snapshot = key;
	struct cli_open_request request = request_of(s, &snapshot);
	request.flags |= CLI_OPEN_NO_LOCK;
	return open_shared(s, &request, false, out, err);
}

/* One that is opened when it is first read. */
static enum qcow_status add_lazy(struct adding *a, const char *name, uint64_t size)
{
	struct serve_lazy *lazy = NULL;
	if (size > INT64_MAX)
		return QK_FAIL(a->err, QCOW_E_LIMIT, "its disk is too long for a file");
	struct serve_export *e = new_export(a, name);
	if (e == NULL)
		return QK_FAIL_NOMEM(a->err);
	enum qcow_status status = serve_lazy_new(
		a->s, a->owner, a->snapshot_id, size, &lazy, a->err);
	if (status == QCOW_OK) {
		const struct qk_nbd_export export = {.name = e->name,
			.description = cli_arg(a->s->args, "description"),
			.size = size,
			.read_only = true,
			.multi_conn = a->s->max_clients != 1,
			.has_depth = !a->s->cli->qemu,
			.ops = &serve_lazy_ops,
			.ctx = lazy};
		status = a->s->front->add(a->s, &export, a->err);
		if (status != QCOW_OK)
			serve_lazy_ops.close(lazy);
	}
	if (status != QCOW_OK) {
		free_export(e);
		return status;
	}
	e->next = a->s->exports;
	a->s->exports = e;
	return QCOW_OK;
}

/* Another image of the same file, for the snapshot alone: what a snapshot holds is never written to. */
static enum qcow_status add_snapshot(struct adding *a, const struct serve_operand *o,
	const struct serve_part *part, uint64_t size)
{
	QK_AUTO_FREE char *own = NULL, *key = NULL;
	struct adding of = {.s = a->s,
		.owner = a->owner,
		.snapshot = part->name,
		.snapshot_id = part->id,
		.err = a->err};
	if (!a->is_new && is_shown(a, part->id))
		return QCOW_OK;
	own = a->s->front->name(a->s, o->name, part);
	if (own == NULL || asprintf(&key, "snapshot.id=%s", part->id) < 0)
		return QK_FAIL_NOMEM(a->err);
	/* of a part the size is known when it is open */
	bool is_part = cli_flag(a->s->args, "partitions") || cli_flag(a->s->args, "offset");
	if (a->s->front->shows_all || !is_part) {
		enum qcow_status status = add_lazy(&of, own, size);
		/* names are not unique: the first is meant */
		return status == QCOW_E_EXIST && !a->s->front->shows_all ? QCOW_OK : status;
	}
	if (serve_find(a->s, own) != NULL)
		return QCOW_OK;
	QK_TRY(serve_open_snapshot(a->s, o, key, &of.shared, a->err));
	enum qcow_status status = add_disk(&of, own);
	(void)qk_view_image_drop(of.shared); /* nothing was written */
	return status;
}

/* While the table of snapshots is walked. */
struct walk {
	struct adding *a;
	const struct serve_operand *operand;
	enum qcow_status status;
};

static bool visit_snapshot(void *ctx, uint32_t index, const struct qcow_snapshot *snapshot)
{
	struct walk *w = ctx;
	const struct serve_part part = {.kind = SERVE_SNAPSHOT,
		.name = snapshot->name,
		.id = snapshot->id,
		.number = index + 1};
	w->status = left_out(
		w->a, "a snapshot", add_snapshot(w->a, w->operand, &part, snapshot->disk_size));
	return w->status == QCOW_OK;
}

static enum qcow_status add_snapshots(struct adding *a, const struct serve_operand *o)
{
	struct walk w = {.a = a, .operand = o};
	QK_TRY(qcow_each_snapshot(a->shared->image, visit_snapshot, &w, a->err));
	return w.status;
}

enum qcow_status serve_add_snapshots(
	struct serve *s, struct serve_image *image, struct qcow_error *err)
{
	struct adding a = {
		.s = s, .owner = image, .image = image, .shared = image->shared, .err = err};
	return add_snapshots(&a, &image->operand);
}

static void free_image(struct serve_image *image)
{
	free(image->name);
	free(image->text);
	free(image->format);
	free(image->snapshot);
	free(image);
}

/* One that is not open. NULL: out of memory. */
static struct serve_image *new_image(const struct serve_operand *o)
{
	struct serve_image *image = qk_calloc(1, sizeof(*image));
	if (image == NULL)
		return NULL;
	if (!copy_text(&image->name, o->name) || !copy_text(&image->text, o->text) ||
		!copy_text(&image->format, o->format) ||
		!copy_text(&image->snapshot, o->snapshot)) {
		free_image(image);
		return NULL;
	}
	image->operand = *o;
	image->operand.name = image->name;
	image->operand.text = image->text;
	image->operand.format = image->format;
	image->operand.snapshot = image->snapshot;
	return image;
}

/* Where it fails, the image is still there if it could be opened: the first one. */
static enum qcow_status open_operand(
	struct serve *s, const struct serve_operand *o, struct qcow_error *err)
{
	struct cli_open_request request = request_of(s, o);
	struct serve_image *image = new_image(o);
	if (image == NULL)
		return QK_FAIL_NOMEM(err);
	enum qcow_status status = open_shared(s, &request, o->temporary, &image->shared, err);
	if (status != QCOW_OK) {
		free_image(image);
		return status;
	}
	image->writable = o->temporary || (request.flags & CLI_OPEN_WRITE) != 0;
	image->all_bitmaps = !s->cli->qemu && !cli_flag(s->args, "bitmap") && o->snapshot == NULL;
	image->next = s->images;
	s->images = image;
	struct adding a = {.s = s,
		.owner = image,
		.image = image,
		.shared = image->shared,
		.is_new = true,
		.err = err};
	status = add_disk(&a, o->name);
	if (status == QCOW_OK && serve_shows(s, "layers"))
		status = add_layers(&a, o->name);
	if (status == QCOW_OK && serve_shows(s, "snapshots") && !o->temporary)
		status = add_snapshots(&a, o);
	return status;
}

bool serve_open(struct serve *s, const struct serve_operand *o)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = open_operand(s, o, &err);
	if (status == QCOW_OK)
		return true;
	if (s->cli->qemu && o->snapshot != NULL && status == QCOW_E_NOENT && err.os_errno == 0)
		cli_error(s->cli, "Failed to load snapshot: Can't find snapshot");
	else if (s->images == NULL)
		cli_report_open(s->cli, NULL, o->text, &err);
	else if (s->cli->qemu)
		cli_error(s->cli, "%s", err.message);
	else
		(void)cli_fail(s->cli, &err, "'%s'", o->text);
	return false;
}

/* ---- taking away ---- */

static bool is_used(const struct serve *s, const struct serve_image *image)
{
	for (const struct serve_export *e = s->exports; e != NULL; e = e->next)
		if (e->owner == image)
			return true;
	return false;
}

/* Its views are gone, so it is closed here: a failure means that something was not stored. */
static bool forget_image(struct serve *s, struct serve_image *image)
{
	enum qcow_status status = qk_view_image_drop(image->shared);
	if (status != QCOW_OK)
		cli_error(s->cli, "cannot close '%s': %s", image->operand.text,
			qcow_status_text(status));
	free_image(image);
	return status == QCOW_OK;
}

/* Images that no export shows any more. */
static bool forget_unused(struct serve *s)
{
	bool ok = true;
	for (struct serve_image **at = &s->images; *at != NULL;) {
		struct serve_image *image = *at;
		if (is_used(s, image)) {
			at = &image->next;
			continue;
		}
		*at = image->next;
		ok = forget_image(s, image) && ok;
	}
	return ok;
}

enum qcow_status serve_try_open(
	struct serve *s, const struct serve_operand *o, struct qcow_error *err)
{
	const struct serve_image *before = s->images;
	enum qcow_status status = open_operand(s, o, err);
	if (status == QCOW_OK || s->images == before)
		return status;
	for (struct serve_export **at = &s->exports; *at != NULL;) {
		struct serve_export *e = *at;
		if (e->owner != s->images) {
			at = &e->next;
			continue;
		}
		(void)!s->front->remove(s, e->name, true, NULL);
		*at = e->next;
		free_export(e);
	}
	(void)forget_unused(s); /* reported */
	return status;
}

enum qcow_status serve_remove(
	struct serve *s, struct serve_export *export, bool hard, struct qcow_error *err)
{
	QK_TRY(s->front->remove(s, export->name, hard, err));
	struct serve_export **at = &s->exports;
	while (*at != export)
		at = &(*at)->next;
	*at = export->next;
	free_export(export);
	if (!forget_unused(s))
		return QK_FAIL(err, QCOW_E_IO, "the image could not be closed");
	return QCOW_OK;
}

bool serve_forget_all(struct serve *s)
{
	while (s->exports != NULL) {
		struct serve_export *e = s->exports;
		s->exports = e->next;
		free_export(e);
	}
	return forget_unused(s);
}
