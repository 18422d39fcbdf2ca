/* SPDX-License-Identifier: MIT */
/*
 * snaplist: the list of internal snapshots, for people and for programs.
 */
#include "cli/snaplist.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* `as_text`: up to a NUL, as QEMU shows ids and names. */
static json_t *snapshot_json(const struct qcow_snapshot *s, bool as_text)
{
	size_t n_name = as_text ? strnlen(s->name, s->name_bytes) : s->name_bytes;
	size_t n_id = as_text ? strnlen(s->id, s->id_bytes) : s->id_bytes;
	json_t *o = json_object();
	if (s->icount != UINT64_MAX)
		cli_json_set(o, "icount", cli_json_u64(s->icount));
	cli_json_set(o, "vm-clock-nsec", cli_json_u64(s->vm_clock_nsec % 1000000000u));
	cli_json_set(o, "name", cli_json_stringn(s->name, n_name));
	cli_json_set(o, "date-sec", cli_json_u64(s->date_sec));
	cli_json_set(o, "date-nsec", cli_json_u64(s->date_nsec));
	cli_json_set(o, "vm-clock-sec", cli_json_u64(s->vm_clock_nsec / 1000000000u));
	cli_json_set(o, "id", cli_json_stringn(s->id, n_id));
	cli_json_set(o, "vm-state-size", cli_json_u64(s->vm_state_size));
	return o;
}

static uint64_t u64_of(const json_t *o, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(o, key));
}

static char *escaped(const json_t *o, const char *key)
{
	const json_t *value = json_object_get(o, key);
	char *safe = cli_escape(json_string_value(value), json_string_length(value));
	if (safe == NULL)
		cli_out_of_memory();
	return safe;
}

static void put_row(const json_t *o, FILE *out)
{
	char size[CLI_SIZE_BYTES], date[32] = "", clock[32], icount[24] = "--";
	time_t seconds = (time_t)u64_of(o, "date-sec");
	struct tm local;
	if (localtime_r(&seconds, &local) != NULL)
		(void)strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &local);
	uint64_t up = u64_of(o, "vm-clock-sec");
	(void)snprintf(clock, sizeof(clock), "%04llu:%02u:%02u.%03u",
		(unsigned long long)(up / 3600), (unsigned)(up / 60 % 60), (unsigned)(up % 60),
		(unsigned)(u64_of(o, "vm-clock-nsec") / 1000000));
	if (json_object_get(o, "icount") != NULL)
		(void)snprintf(icount, sizeof(icount), "%lld", (long long)u64_of(o, "icount"));
	char *id = escaped(o, "id"), *name = escaped(o, "name");
	(void)fprintf(out, "%-7s %-16s %8s %19s %15s %10s\n", id, name,
		cli_human_size(u64_of(o, "vm-state-size"), size), date, clock, icount);
	free(id);
	free(name);
}

struct table {
	bool has_head;
};

static void put_table_row(void *ctx, json_t *o)
{
	struct table *table = ctx;
	if (!table->has_head)
		(void)printf("Snapshot list:\n%-7s %-16s %8s %19s %15s %10s\n", "ID", "TAG",
			"VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
	table->has_head = true;
	put_row(o, stdout);
	json_decref(o);
}

void cli_snapshot_table(struct cli_json_list *list)
{
	struct table table = {false};
	list->each(list, put_table_row, &table);
}

struct walk {
	void (*put)(void *ctx, json_t *member);
	void *ctx;
	bool as_text;
};

static bool visit(void *ctx, uint32_t index, const struct qcow_snapshot *snapshot)
{
	struct walk *walk = ctx;
	(void)index;
	walk->put(walk->ctx, snapshot_json(snapshot, walk->as_text));
	return true;
}

static void each(struct cli_json_list *list, void (*put)(void *ctx, json_t *member), void *ctx)
{
	struct cli_snapshots *s = (struct cli_snapshots *)list;
	struct walk walk = {put, ctx, s->cli->qemu};
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_each_snapshot(s->image, visit, &walk, &err) == QCOW_OK)
		return;
	*s->damaged = true;
	(void)cli_fail(
		s->cli, &err, "'%s': snapshots", qcow_store_name(qcow_image_store(s->image)));
}

void cli_snapshots_init(
	struct cli_snapshots *s, struct cli *cli, struct qcow_image *image, bool *damaged)
{
	*s = (struct cli_snapshots){{each}, cli, image, damaged};
}
