/* SPDX-License-Identifier: MIT */
/*
 * serve_do: what can be asked for at the control socket. What changes an image runs while the server is quiesced, so it is
 * one point between the requests of all clients.
 */
#include <qcowkit/manage.h>
#include <string.h>

#include "base/mem.h"
#include "cli/serve.h"

/* One request. */
struct job {
	struct serve *s;
	const json_t *request;
	json_t *reply;
	unsigned *holds;
	struct qcow_error err;
};

static enum qcow_status want_string(struct job *job, const char *key, const char **out)
{
	*out = json_string_value(json_object_get(job->request, key));
	if (*out != NULL)
		return QCOW_OK;
	return QK_FAIL(&job->err, QCOW_E_INVAL, "'%s' must be there, a string", key);
}

/* A number of bytes: JSON's, or as it is typed ("10G"). *given is false where there is none. */
static enum qcow_status take_size(struct job *job, const char *key, uint64_t *out, bool *given)
{
	const json_t *value = json_object_get(job->request, key);
	bool ignored = false;
	*given = value != NULL;
	if (value == NULL)
		return QCOW_OK;
	if (json_is_integer(value) && json_integer_value(value) >= 0) {
		*out = (uint64_t)json_integer_value(value);
		return QCOW_OK;
	}
	if (json_is_string(value) && cli_read_size(json_string_value(value), out, &ignored) == NULL)
		return QCOW_OK;
	return QK_FAIL(&job->err, QCOW_E_INVAL, "'%s' must be a number of bytes", key);
}

static bool is_set(const struct job *job, const char *key)
{
	const json_t *value = json_object_get(job->request, key);
	bool on = false;
	return json_is_true(value) ||
	       (json_is_string(value) && cli_read_bool(json_string_value(value), &on) && on);
}

/* The image of the export that the request names; "" where it names none. */
static enum qcow_status find_image(struct job *job, struct serve_image **out)
{
	const char *name = json_string_value(json_object_get(job->request, "export"));
	struct serve_export *e = serve_find(job->s, name != NULL ? name : "");
	if (e == NULL && name == NULL && job->s->images != NULL && job->s->images->next == NULL)
		for (e = job->s->exports; e != NULL && e->image == NULL;)
			e = e->next; /* there is no other image */
	if (e == NULL)
		return QK_FAIL(&job->err, QCOW_E_NOENT, "there is no export '%s'",
			name != NULL ? name : "");
	if (e->image == NULL)
		return QK_FAIL(&job->err, QCOW_E_READONLY, "export '%s' shows what cannot change",
			e->name);
	*out = e->image;
	return QCOW_OK;
}

/* ---- what is there ---- */

static enum qcow_status do_status(struct job *job)
{
	json_t *exports = json_array();
	for (const struct serve_export *e = job->s->exports; e != NULL; e = e->next) {
		json_t *o = json_object();
		cli_json_set(o, "name", cli_json_string(e->name));
		cli_json_set(o, "writable", json_boolean(e->image != NULL && e->image->writable));
		if (e->snapshot != NULL)
			cli_json_set(o, "snapshot", cli_json_string(e->snapshot));
		(void)json_array_insert_new(exports, 0, o);
	}
	cli_json_set(job->reply, "exports", exports);
	cli_json_set(job->reply, "quiesced", json_boolean(*job->holds > 0));
	job->s->front->describe(job->s, job->reply);
	return QCOW_OK;
}

/* ---- the server ---- */

static enum qcow_status do_quiesce(struct job *job)
{
	struct serve *s = job->s;
	s->front->quiesce(s);
	++*job->holds;
	s->n_holds++;
	for (struct serve_image *i = s->images; i != NULL; i = i->next)
		if (i->writable)
			QK_TRY(qcow_flush(i->shared->image, &job->err));
	return QCOW_OK;
}

/* s->lock is held. */
static void release(struct serve *s, unsigned n)
{
	for (; n > 0; n--) {
		s->n_holds--;
		s->front->resume(s);
	}
	(void)pthread_cond_broadcast(&s->released);
}

void serve_release(struct serve *s, unsigned n)
{
	(void)pthread_mutex_lock(&s->lock);
	release(s, n);
	(void)pthread_mutex_unlock(&s->lock);
}

static enum qcow_status do_resume(struct job *job)
{
	if (*job->holds == 0)
		return QK_FAIL(&job->err, QCOW_E_INVAL, "this client holds nothing back");
	--*job->holds;
	release(job->s, 1);
	return QCOW_OK;
}

static enum qcow_status do_stop(struct job *job)
{
	job->s->stops = true;
	return QCOW_OK;
}

static enum qcow_status do_export_add(struct job *job)
{
	struct serve_operand operand = {
		.format = json_string_value(json_object_get(job->request, "format")),
		.snapshot = json_string_value(json_object_get(job->request, "snapshot")),
		.read_only = is_set(job, "read-only")};
	if (job->s->front->shows_all)
		return QK_FAIL(&job->err, QCOW_E_UNSUPPORTED, "one image is shown and no other");
	QK_TRY(want_string(job, "name", &operand.name));
	QK_TRY(want_string(job, "file", &operand.text));
	if (serve_find(job->s, operand.name) != NULL)
		return QK_FAIL(&job->err, QCOW_E_EXIST, "there is an export '%s'", operand.name);
	return serve_try_open(job->s, &operand, &job->err);
}

static enum qcow_status do_export_remove(struct job *job)
{
	const char *name = NULL;
	QK_TRY(want_string(job, "name", &name));
	struct serve_export *e = serve_find(job->s, name);
	if (e == NULL)
		return QK_FAIL(&job->err, QCOW_E_NOENT, "there is no export '%s'", name);
	if (*job->holds > 0)
		return QK_FAIL(&job->err, QCOW_E_INVAL, "resume first");
	return serve_remove(job->s, e, is_set(job, "hard"), &job->err);
}

/* ---- images ---- */

static enum qcow_status create_snapshot(struct job *job, struct serve_image *image)
{
	struct qcow_snapshot_create_options options = QCOW_SNAPSHOT_CREATE_OPTIONS_INIT;
	bool exports = is_set(job, "export-it");
	QK_TRY(want_string(job, "name", &options.name));
	if (exports && image->operand.temporary)
		return QK_FAIL(&job->err, QCOW_E_INVAL,
			"a snapshot of a temporary overlay cannot be exported");
	QK_TRY(qcow_snapshot_create(image->shared->image, &options, &job->err));
	if (exports || (serve_shows(job->s, "snapshots") && !image->operand.temporary))
		return serve_add_snapshots(job->s, image, &job->err);
	return QCOW_OK;
}

/* A snapshot that is looked for, and its id. */
struct found {
	const char *key;
	bool by_id;
	char *id;
};

static bool compare_snapshot(void *ctx, uint32_t index, const struct qcow_snapshot *snapshot)
{
	struct found *found = ctx;
	const char *text = found->by_id ? snapshot->id : snapshot->name;
	size_t n = found->by_id ? snapshot->id_bytes : snapshot->name_bytes;
	(void)index;
	if (n != strlen(found->key) || memcmp(text, found->key, n) != 0)
		return true;
	found->id = strdup(snapshot->id);
	if (found->id == NULL)
		cli_out_of_memory();
	return false;
}

/* The id of the snapshot that is meant as by QCOW_SNAPSHOT_NAME_OR_ID, the caller's, or NULL. */
static enum qcow_status find_id(
	struct job *job, const struct serve_image *image, const char *key, char **out)
{
	struct found found = {.key = key};
	QK_TRY(qcow_each_snapshot(image->shared->image, compare_snapshot, &found, &job->err));
	found.by_id = true;
	if (found.id == NULL)
		QK_TRY(qcow_each_snapshot(
			image->shared->image, compare_snapshot, &found, &job->err));
	*out = found.id;
	return QCOW_OK;
}

/* The export that shows the snapshot, or NULL. */
static struct serve_export *find_shown(
	struct job *job, const struct serve_image *image, const char *id)
{
	for (struct serve_export *e = job->s->exports; e != NULL; e = e->next)
		if (e->owner == image && e->snapshot_id != NULL && strcmp(e->snapshot_id, id) == 0)
			return e;
	return NULL;
}

/* What shows it goes first: whoever reads it is cut off with `hard`. */
static enum qcow_status delete_snapshot(struct job *job, struct serve_image *image)
{
	const char *name = NULL;
	QK_AUTO_FREE char *id = NULL;
	struct serve_export *e = NULL;
	QK_TRY(want_string(job, "name", &name));
	QK_TRY(find_id(job, image, name, &id));
	while (id != NULL && (e = find_shown(job, image, id)) != NULL)
		QK_TRY(serve_remove(job->s, e, is_set(job, "hard"), &job->err));
	return qcow_snapshot_delete(
		image->shared->image, &name, 1, QCOW_SNAPSHOT_NAME_OR_ID, NULL, &job->err);
}

/* The image's disk has this size now. */
static enum qcow_status show_size(struct job *job, struct serve_image *image, uint64_t size)
{
	for (struct serve_export *e = job->s->exports; e != NULL; e = e->next) {
		if (e->image != image || !e->is_whole)
			continue;
		qk_view_set_size(e->view, size);
		QK_TRY(job->s->front->resized(job->s, e->name, size, &job->err));
	}
	return QCOW_OK;
}

/* A disk does not turn into another one under those who use it: nobody may. With `hard` they are cut off. */
static enum qcow_status rest_all(struct job *job, struct serve_image *image)
{
	for (struct serve_export *e = job->s->exports; e != NULL; e = e->next) {
		if (e->image == image && !e->is_whole)
			return QK_FAIL(&job->err, QCOW_E_INVAL,
				"export '%s' shows a part of the disk", e->name);
		if (e->image == image)
			QK_TRY(job->s->front->rest(
				job->s, e->name, is_set(job, "hard"), &job->err));
	}
	return QCOW_OK;
}

static enum qcow_status apply_snapshot(struct job *job, struct serve_image *image)
{
	const char *name = NULL;
	QK_TRY(want_string(job, "name", &name));
	if (job->s->front->rest == NULL)
		return QK_FAIL(&job->err, QCOW_E_NOTSUP, "not of a disk that is mounted");
	enum qcow_status status = rest_all(job, image);
	if (status == QCOW_OK)
		status = qcow_snapshot_apply(
			image->shared->image, name, QCOW_SNAPSHOT_NAME_OR_ID, NULL, &job->err);
	if (status == QCOW_OK)
		status = show_size(job, image, qcow_size(image->shared->image));
	for (const struct serve_export *e = job->s->exports; e != NULL; e = e->next)
		if (e->image == image)
			job->s->front->wake(job->s, e->name);
	return status;
}

static enum qcow_status resize(struct job *job, struct serve_image *image)
{
	struct qcow_resize_options options = QCOW_RESIZE_OPTIONS_INIT;
	uint64_t size = 0;
	bool given = false;
	QK_TRY(take_size(job, "size", &size, &given));
	if (!given)
		return QK_FAIL(&job->err, QCOW_E_INVAL, "'size' must be there");
	options.shrink = is_set(job, "shrink");
	for (const struct serve_export *e = job->s->exports; e != NULL; e = e->next)
		if (options.shrink && e->image == image && !e->is_whole)
			return QK_FAIL(&job->err, QCOW_E_INVAL,
				"export '%s' shows a part of the disk, which would end", e->name);
	QK_TRY(qcow_resize(image->shared->image, size, &options, &job->err));
	return show_size(job, image, size);
}

static enum qcow_status edit_bitmap(
	struct job *job, struct serve_image *image, enum qcow_bitmap_act act)
{
	struct qcow_bitmap_action actions[2] = {{.act = act}, {.act = QCOW_BITMAP_DISABLE}};
	uint64_t granularity = 0;
	bool given = false;
	size_t n = 1;
	QK_TRY(want_string(job, "bitmap", &actions[0].name));
	actions[1].name = actions[0].name;
	if (act == QCOW_BITMAP_MERGE)
		QK_TRY(want_string(job, "source", &actions[0].source));
	QK_TRY(take_size(job, "granularity", &granularity, &given));
	if (given && act == QCOW_BITMAP_ADD) {
		if (granularity < 512 || granularity > UINT64_C(1) << 31 ||
			(granularity & (granularity - 1)) != 0)
			return QK_FAIL(&job->err, QCOW_E_INVAL,
				"'granularity' must be a power of 2 and at least 512");
		actions[0].granularity_bits = (uint32_t)__builtin_ctzll(granularity);
	}
	if (act == QCOW_BITMAP_ADD && is_set(job, "disabled"))
		n = 2;
	return qcow_bitmap_edit(image->shared->image, actions, n, NULL, NULL, &job->err);
}

static enum qcow_status add_bitmap(struct job *job, struct serve_image *image)
{
	return edit_bitmap(job, image, QCOW_BITMAP_ADD);
}

static enum qcow_status remove_bitmap(struct job *job, struct serve_image *image)
{
	return edit_bitmap(job, image, QCOW_BITMAP_REMOVE);
}

static enum qcow_status clear_bitmap(struct job *job, struct serve_image *image)
{
	return edit_bitmap(job, image, QCOW_BITMAP_CLEAR);
}

static enum qcow_status enable_bitmap(struct job *job, struct serve_image *image)
{
	return edit_bitmap(job, image, QCOW_BITMAP_ENABLE);
}

static enum qcow_status disable_bitmap(struct job *job, struct serve_image *image)
{
	return edit_bitmap(job, image, QCOW_BITMAP_DISABLE);
}

static enum qcow_status merge_bitmap(struct job *job, struct serve_image *image)
{
	return edit_bitmap(job, image, QCOW_BITMAP_MERGE);
}

/* ---- the table ---- */

static const struct {
	const char *name;
	enum qcow_status (*act)(struct job *job);
	enum qcow_status (*change)(struct job *job, struct serve_image *image);
} commands[] = {
	{"status", do_status, NULL},
	{"quiesce", do_quiesce, NULL},
	{"resume", do_resume, NULL},
	{"stop", do_stop, NULL},
	{"export-add", do_export_add, NULL},
	{"export-remove", do_export_remove, NULL},
	{"snapshot-create", NULL, create_snapshot},
	{"snapshot-delete", NULL, delete_snapshot},
	{"snapshot-apply", NULL, apply_snapshot},
	{"bitmap-add", NULL, add_bitmap},
	{"bitmap-remove", NULL, remove_bitmap},
	{"bitmap-clear", NULL, clear_bitmap},
	{"bitmap-enable", NULL, enable_bitmap},
	{"bitmap-disable", NULL, disable_bitmap},
	{"bitmap-merge", NULL, merge_bitmap},
	{"resize", NULL, resize},
};

/* One change, alone with the image: bitmap readers are closed, and what there is then is shown. */
static enum qcow_status change_image(
	struct job *job, enum qcow_status (*change)(struct job *, struct serve_image *))
{
	struct serve_image *image = NULL;
	QK_TRY(find_image(job, &image));
	if (!image->writable)
		return QK_FAIL(&job->err, QCOW_E_READONLY, "the image is served read-only");
	job->s->front->quiesce(job->s);
	serve_close_readers(job->s, image);
	enum qcow_status status = change(job, image);
	struct qcow_error ignored = QCOW_ERROR_INIT;
	enum qcow_status shown = serve_refresh_bitmaps(
		job->s, image, status == QCOW_OK ? &job->err : &ignored);
	job->s->front->resume(job->s);
	return status != QCOW_OK ? status : shown;
}

json_t *serve_do(struct serve *s, const json_t *request, unsigned *holds)
{
	struct job job = {.s = s,
		.request = request,
		.reply = json_object(),
		.holds = holds,
		.err = QCOW_ERROR_INIT};
	const char *name = json_string_value(json_object_get(request, "command"));
	enum qcow_status status = QK_FAIL(
		&job.err, QCOW_E_INVAL, "unknown command '%s'", name != NULL ? name : "");
	(void)pthread_mutex_lock(&s->lock);
	for (size_t i = 0; name != NULL && i < sizeof(commands) / sizeof(commands[0]); i++)
		if (strcmp(commands[i].name, name) == 0)
			status = commands[i].act != NULL ? commands[i].act(&job)
							 : change_image(&job, commands[i].change);
	(void)pthread_mutex_unlock(&s->lock);
	cli_json_set(job.reply, "ok", json_boolean(status == QCOW_OK));
	if (status != QCOW_OK)
		cli_json_set(job.reply, "error",
			cli_json_string(job.err.message[0] != '\0' ? job.err.message
								   : qcow_status_text(status)));
	return job.reply;
}

enum qcow_status serve_resize(
	struct serve *s, const char *export, uint64_t size, struct qcow_error *err)
{
	json_t *request = json_object();
	struct job job = {.s = s, .request = request, .err = QCOW_ERROR_INIT};
	cli_json_set(request, "export", cli_json_string(export));
	cli_json_set(request, "size", cli_json_u64(size));
	(void)pthread_mutex_lock(&s->lock);
	while (s->n_holds > 0)
		(void)pthread_cond_wait(&s->released, &s->lock);
	enum qcow_status status = change_image(&job, resize);
	(void)pthread_mutex_unlock(&s->lock);
	json_decref(request);
	if (status != QCOW_OK && err != NULL)
		*err = job.err;
	return status;
}
