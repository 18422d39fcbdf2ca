/* SPDX-License-Identifier: MIT */
/*
 * snaplist: the list of internal snapshots, for people and for programs.
 */
#include "cli/snaplist.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

json_t *cli_snapshot_json(const struct qcow_snapshot *s)
{
	json_t *o = json_object();
	if (s->icount != UINT64_MAX)
		cli_json_set(o, "icount", cli_json_u64(s->icount));
	cli_json_set(o, "vm-clock-nsec", cli_json_u64(s->vm_clock_nsec % 1000000000u));
	cli_json_set(o, "name", cli_json_stringn(s->name, s->name_bytes));
	cli_json_set(o, "date-sec", cli_json_u64(s->date_sec));
	cli_json_set(o, "date-nsec", cli_json_u64(s->date_nsec));
	cli_json_set(o, "vm-clock-sec", cli_json_u64(s->vm_clock_nsec / 1000000000u));
	cli_json_set(o, "id", cli_json_stringn(s->id, s->id_bytes));
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

void cli_snapshot_table(const json_t *list, FILE *out)
{
	size_t i = 0;
	json_t *o = NULL;
	(void)fprintf(out, "Snapshot list:\n%-7s %-16s %8s %19s %15s %10s\n", "ID", "TAG",
		"VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
	json_array_foreach((json_t *)list, i, o) put_row(o, out);
}
