/* SPDX-License-Identifier: MIT */
/*
 * keyval: "key=value,key=value" lists, where ",," stands for a comma inside a value.
 */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* The length of the item at `text`: up to a single comma or the end. */
static size_t item_length(const char *text)
{
	size_t n = 0;
	while (text[n] != '\0') {
		if (text[n] != ',')
			n++;
		else if (text[n + 1] == ',')
			n += 2;
		else
			break;
	}
	return n;
}

/* A copy of n bytes with every ",," made one comma. */
static char *unfold(const char *text, size_t n)
{
	char *out = qk_malloc((uint64_t)n + 1, 1);
	if (out == NULL)
		return NULL;
	size_t used = 0;
	for (size_t i = 0; i < n; i++) {
		out[used++] = text[i];
		if (text[i] == ',' && i + 1 < n && text[i + 1] == ',')
			i++;
	}
	out[used] = '\0';
	return out;
}

static bool append(struct cli_keyvals *list, const char *item, size_t n)
{
	struct cli_keyval *v = qk_realloc(list->v, (uint64_t)list->n + 1, sizeof(*v));
	if (v == NULL)
		return false;
	list->v = v;
	const char *equals = memchr(item, '=', n);
	size_t key_bytes = equals != NULL ? (size_t)(equals - item) : n;
	struct cli_keyval kv = {.key = unfold(item, key_bytes)};
	if (equals != NULL)
		kv.value = unfold(equals + 1, n - key_bytes - 1);
	list->v[list->n++] = kv;
	return kv.key != NULL && (equals == NULL || kv.value != NULL);
}

bool cli_keyvals_add(struct cli *cli, struct cli_keyvals *list, const char *text)
{
	const char *p = text;
	while (*p != '\0') {
		size_t n = item_length(p);
		if (n == 0 || p[0] == '=') {
			cli_error(cli, "invalid option list '%s': a name is missing before '%.10s'",
				text, p);
			return false;
		}
		if (!append(list, p, n)) {
			cli_error(cli, "Cannot allocate memory");
			return false;
		}
		p += n;
		p += *p == ',';
	}
	return true;
}

const char *cli_keyvals_get(const struct cli_keyvals *list, const char *key)
{
	for (size_t i = list->n; i > 0; i--)
		if (strcmp(list->v[i - 1].key, key) == 0)
			return list->v[i - 1].value;
	return NULL;
}

void cli_keyvals_release(struct cli_keyvals *list)
{
	for (size_t i = 0; i < list->n; i++) {
		free(list->v[i].key);
		free(list->v[i].value);
	}
	free(list->v);
	*list = (struct cli_keyvals){0};
}

/* For QEMU a list is not empty, and has something on both sides of each single comma. */
static bool is_list(const char *text)
{
	bool is_whole = text[0] != '\0';
	for (const char *p = text; is_whole && *p != '\0'; p += *p == ',') {
		size_t n = item_length(p);
		is_whole = n != 0 && (p[n] == '\0' || p[n + 1] != '\0');
		p += n;
	}
	return is_whole;
}

bool cli_keyvals_ask_for_help(const struct cli *cli, const char *text)
{
	size_t n = 0;
	if (cli->qemu && !is_list(text))
		return false;
	for (const char *p = text; *p != '\0'; p += n + (p[n] == ',')) {
		n = item_length(p);
		if ((n == 4 && strncmp(p, "help", n) == 0) || (n == 1 && *p == '?'))
			return true;
	}
	return false;
}

bool cli_keyvals_from_args(
	struct cli *cli, const struct cli_args *args, const char *name, struct cli_keyvals *list)
{
	size_t at = 0;
	for (const char *text = cli_arg_next(args, name, &at); text != NULL;
		text = cli_arg_next(args, name, &at))
		if (cli->qemu && !is_list(text)) {
			cli_error(cli, "Invalid option list: %s", text);
			return false;
		} else if (!cli_keyvals_add(cli, list, text)) {
			return false;
		}
	return true;
}
