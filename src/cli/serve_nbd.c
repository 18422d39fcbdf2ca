/* SPDX-License-Identifier: MIT */
/*
 * serve_nbd: exports shown by the NBD server.
 */
#include "cli/serve.h"

static enum qcow_status add(
	struct serve *s, const struct qk_nbd_export *export, struct qcow_error *err)
{
	struct qk_nbd_export all = *export;
	all.description = cli_arg(s->args, "description");
	all.multi_conn = s->max_clients != 1;
	all.has_depth = !s->cli->qemu || cli_flag(s->args, "allocation-depth");
	return qk_nbd_export_add(s->server, &all, err);
}

static enum qcow_status remove_export(
	struct serve *s, const char *name, bool hard, struct qcow_error *err)
{
	return qk_nbd_export_remove(s->server, name, hard, err);
}

static enum qcow_status resized(
	struct serve *s, const char *name, uint64_t new_size, struct qcow_error *err)
{
	return qk_nbd_export_resized(s->server, name, new_size, err);
}

static enum qcow_status rest(struct serve *s, const char *name, bool hard, struct qcow_error *err)
{
	return qk_nbd_export_rest(s->server, name, hard, err);
}

static void wake(struct serve *s, const char *name)
{
	qk_nbd_export_wake(s->server, name);
}

static enum qcow_status set_bitmaps(struct serve *s, const char *name, const char *const *names,
	unsigned n, struct qcow_error *err)
{
	return qk_nbd_export_bitmaps(s->server, name, names, n, err);
}

static void quiesce(struct serve *s)
{
	qk_nbd_server_quiesce(s->server);
}

static void resume(struct serve *s)
{
	qk_nbd_server_resume(s->server);
}

enum {
	DRAIN_MS = 10000
};

static void stop(struct serve *s)
{
	qk_nbd_server_stop(s->server, DRAIN_MS);
}

static char *name_of(struct serve *s, const char *base, const struct serve_part *part)
{
	char *name = NULL;
	(void)s;
	int n = part->kind == SERVE_SNAPSHOT ? asprintf(&name, "%s@%s", base, part->name)
		: part->kind == SERVE_LAYER  ? asprintf(&name, "%s~%u", base, part->number)
					     : asprintf(&name, "%s/p%u", base, part->number);
	return n < 0 ? NULL : name;
}

/* ---- status ---- */

static const char *const count_names[QK_NBD_COUNTS] = {
	"read", "write", "flush", "trim", "cache", "zero", "block-status"};

json_t *serve_describe_counter(const struct qk_nbd_counter *counter)
{
	json_t *o = json_object();
	cli_json_set(o, "requests", cli_json_u64(counter->requests));
	cli_json_set(o, "bytes", cli_json_u64(counter->bytes));
	cli_json_set(o, "errors", cli_json_u64(counter->errors));
	return o;
}

static json_t *describe_counts(const struct qk_nbd_stats *stats)
{
	json_t *o = json_object();
	for (unsigned i = 0; i < QK_NBD_COUNTS; i++)
		cli_json_set(o, count_names[i], serve_describe_counter(&stats->counts[i]));
	return o;
}

static void describe_connection(void *ctx, const struct qk_nbd_connection_info *in)
{
	json_t *o = json_object();
	cli_json_set(o, "id", cli_json_u64(in->id));
	cli_json_set(o, "export",
		in->export_name != NULL ? cli_json_string(in->export_name) : json_null());
	cli_json_set(o, "peer", cli_json_string(in->peer));
	cli_json_set(o, "tls", json_boolean(in->tls));
	cli_json_set(o, "requests", cli_json_u64(in->requests));
	cli_json_set(o, "bytes-in", cli_json_u64(in->bytes_in));
	cli_json_set(o, "bytes-out", cli_json_u64(in->bytes_out));
	(void)json_array_append_new(ctx, o);
}

static void describe(struct serve *s, json_t *reply)
{
	struct qk_nbd_stats stats;
	json_t *connections = json_array();
	qk_nbd_server_stats(s->server, &stats);
	qk_nbd_each_connection(s->server, describe_connection, connections);
	cli_json_set(reply, "connections", connections);
	cli_json_set(reply, "accepted", cli_json_u64(stats.accepted));
	cli_json_set(reply, "refused", cli_json_u64(stats.refused));
	cli_json_set(reply, "handshakes-failed", cli_json_u64(stats.handshakes_failed));
	cli_json_set(reply, "cut", cli_json_u64(stats.cut));
	cli_json_set(reply, "in-flight-bytes", cli_json_u64(stats.in_flight_bytes));
	cli_json_set(reply, "requests", describe_counts(&stats));
}

const struct serve_front serve_front_nbd = {
	.add = add,
	.remove = remove_export,
	.resized = resized,
	.rest = rest,
	.wake = wake,
	.set_bitmaps = set_bitmaps,
	.quiesce = quiesce,
	.resume = resume,
	.stop = stop,
	.describe = describe,
	.name = name_of,
};
