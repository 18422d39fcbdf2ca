/* SPDX-License-Identifier: MIT */
/*
 * mount_front: exports shown by the file system.
 */
#include <string.h>

#include "base/mem.h"
#include "cli/mount.h"
#include "serve/fuse/fuse.h"

/* ---- names ---- */

static bool is_file(void *ctx, const char *path)
{
	const struct serve *s = ctx;
	return qk_fuse_has(s->fuse, path);
}

static char *name_of(struct serve *s, const char *base, const struct serve_part *part)
{
	char *name = NULL;
	(void)base;
	if (part->kind == SERVE_SNAPSHOT)
		return mount_path("snapshots", part, "", is_file, s);
	int n = part->kind == SERVE_LAYER ? asprintf(&name, "chain/%u", part->number)
					  : asprintf(&name, "partitions/p%u", part->number);
	return n < 0 ? NULL : name;
}

/* ---- bitmaps: bitmaps/NAME.json, of the disk alone ---- */

struct paths {
	char *v[QK_NBD_MAX_BITMAPS];
	unsigned n;
};

static bool is_path(void *ctx, const char *path)
{
	const struct paths *paths = ctx;
	for (unsigned i = 0; i < paths->n; i++)
		if (strcmp(paths->v[i], path) == 0)
			return true;
	return false;
}

static enum qcow_status set_bitmaps(struct serve *s, const char *name, const char *const *names,
	unsigned n, struct qcow_error *err)
{
	struct paths paths = {.n = 0};
	enum qcow_status status = QCOW_OK;
	if (strcmp(name, MOUNT_DISK) != 0)
		return QCOW_OK;
	for (; paths.n < n && status == QCOW_OK; paths.n++) {
		const struct serve_part thing = {.name = names[paths.n], .number = paths.n + 1};
		paths.v[paths.n] = mount_path("bitmaps", &thing, ".json", is_path, &paths);
		if (paths.v[paths.n] == NULL) {
			status = QK_FAIL_NOMEM(err);
			break;
		}
	}
	if (status == QCOW_OK)
		status = qk_fuse_set_bitmaps(
			s->fuse, name, (const char *const *)paths.v, paths.n, err);
	for (unsigned i = 0; i < paths.n; i++)
		free(paths.v[i]);
	return status;
}

/* ---- exports ---- */

static enum qcow_status add(
	struct serve *s, const struct qk_nbd_export *export, struct qcow_error *err)
{
	bool sleeps = export->ops == &serve_lazy_ops;
	uint64_t off = sleeps ? 0 : qk_view_offset(export->ctx);
	QK_TRY(qk_fuse_add(s->fuse, export, off, sleeps, err));
	return set_bitmaps(s, export->name, export->bitmaps, export->n_bitmaps, err);
}

static enum qcow_status remove_export(
	struct serve *s, const char *name, bool hard, struct qcow_error *err)
{
	return qk_fuse_remove(s->fuse, name, hard, err);
}

static enum qcow_status resized(
	struct serve *s, const char *name, uint64_t new_size, struct qcow_error *err)
{
	return qk_fuse_resized(s->fuse, name, new_size, err);
}

static void quiesce(struct serve *s)
{
	qk_fuse_quiesce(s->fuse);
}

static void resume(struct serve *s)
{
	qk_fuse_resume(s->fuse);
}

/* Who holds something back would hold back the end. */
static void stop(struct serve *s)
{
	serve_ctl_close(s);
	qk_fuse_stop(s->fuse);
}

static void describe(struct serve *s, json_t *reply)
{
	static const char *const names[QK_FUSE_COUNTS] = {"read", "write", "flush", "zero", "seek"};
	struct qk_fuse_stats stats;
	json_t *requests = json_object();
	qk_fuse_get_stats(s->fuse, &stats);
	for (unsigned i = 0; i < QK_FUSE_COUNTS; i++)
		cli_json_set(requests, names[i], serve_describe_counter(&stats.counts[i]));
	cli_json_set(reply, "files", cli_json_u64(stats.n_files));
	cli_json_set(reply, "open", cli_json_u64(stats.n_open));
	cli_json_set(reply, "requests", requests);
}

const struct serve_front serve_front_mount = {
	.shows_all = true,
	.add = add,
	.remove = remove_export,
	.resized = resized,
	.set_bitmaps = set_bitmaps,
	.quiesce = quiesce,
	.resume = resume,
	.stop = stop,
	.describe = describe,
	.name = name_of,
};
