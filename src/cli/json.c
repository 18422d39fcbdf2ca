/* SPDX-License-Identifier: MIT */
/*
 * json: building and printing JSON by jansson, in QEMU's layout: four spaces a level, keys in the order
 * they were set, everything outside ASCII as \uXXXX.
 *
 * A failed allocation is not looked at call by call: cli_json_set leaves a mark in the object, and
 * printing turns it into one error.
 */
#include "cli/cli.h"

#include <string.h>

#include "base/mem.h"
#include "cli/utf8.h"

json_t *cli_json_stringn(const char *text, size_t bytes)
{
	uint64_t room = 0; /* a byte becomes at most the 3 of U+FFFD */
	if (__builtin_mul_overflow((uint64_t)bytes, 3u, &room))
		return NULL;
	QK_AUTO_FREE char *out = qk_malloc(room + 1, 1);
	if (out == NULL)
		return NULL;
	size_t used = 0, at = 0;
	while (at < bytes) {
		uint32_t c = 0;
		size_t n = cli_utf8_next(text + at, bytes - at, &c);
		memcpy(out + used, n != 0 ? text + at : "\xef\xbf\xbd", n != 0 ? n : 3);
		used += n != 0 ? n : 3;
		at += n != 0 ? n : 1;
	}
	return json_stringn(out, used);
}

json_t *cli_json_string(const char *text)
{
	return cli_json_stringn(text, strlen(text));
}

json_t *cli_json_u64(uint64_t value)
{
	/* sizes and offsets end at 2^63 - 1; a larger value is someone's nonsense and shown as negative,
	 * which is what QEMU's signed integers do */
	return json_integer((json_int_t)value);
}

static const char broken[] = "\x01out-of-memory";

bool cli_json_failed(const json_t *object)
{
	return object == NULL || json_object_get(object, broken) != NULL;
}

void cli_json_set(json_t *object, const char *key, json_t *value)
{
	if (value == NULL || cli_json_failed(value)) {
		json_decref(value);
		(void)json_object_set_new(object, broken, json_null());
		return;
	}
	(void)json_object_set_new(object, key, value);
}

int cli_json_print(struct cli *cli, json_t *root)
{
	char *text = !cli_json_failed(root) ? json_dumps(root, JSON_INDENT(4) | JSON_ENSURE_ASCII)
					    : NULL;
	json_decref(root);
	if (text == NULL) {
		cli_error(cli, "out of memory");
		return 1;
	}
	(void)puts(text);
	free(text);
	return 0;
}
