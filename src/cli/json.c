/* SPDX-License-Identifier: MIT */
/*
 * json: building JSON by jansson and printing it in QEMU's layout: four spaces a level, keys in the order
 * they were set, everything outside printable ASCII as \uXXXX, an empty list on two lines.
 *
 * A failed allocation is not looked at call by call: jansson gets an allocator that ends the program with
 * an error. JSON is built by commands that only read, or before a command starts to write.
 */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/utf8.h"

json_t *cli_json_stringn(const char *text, size_t bytes)
{
	uint64_t room = 0; /* a byte becomes at most the 3 of U+FFFD */
	if (__builtin_mul_overflow((uint64_t)bytes, 3u, &room))
		cli_out_of_memory();
	QK_AUTO_FREE char *out = qk_malloc(room + 1, 1);
	if (out == NULL)
		cli_out_of_memory();
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

static void *allocate_or_end(size_t bytes)
{
	void *p = malloc(bytes);
	if (p == NULL && bytes != 0)
		cli_out_of_memory();
	return p;
}

void cli_json_init(void)
{
	json_set_alloc_funcs(allocate_or_end, free);
}

void cli_json_set(json_t *object, const char *key, json_t *value)
{
	if (json_object_set_new(object, key, value) != 0)
		cli_out_of_memory();
}

bool cli_json_failed(const json_t *object)
{
	return object == NULL;
}

/* One UTF-16 unit as QEMU writes it. */
static void put_unit(uint32_t unit)
{
	(void)printf("\\u%04X", unit);
}

static void put_string(const char *text, size_t bytes)
{
	static const char plain[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
	size_t at = 0;
	(void)putchar('"');
	while (at < bytes) {
		uint32_t c = 0xfffd;
		size_t n = cli_utf8_next(text + at, bytes - at, &c);
		const char *special = n == 1 && c != 0 ? strchr(plain, (int)c) : NULL;
		at += n != 0 ? n : 1;
		if (special != NULL)
			(void)printf("\\%c", letters[special - plain]);
		else if (c >= 0x20 && c < 0x7f)
			(void)putchar((int)c);
		else if (c <= 0xffff)
			put_unit(c);
		else {
			put_unit(0xd800 + ((c - 0x10000) >> 10));
			put_unit(0xdc00 + ((c - 0x10000) & 0x3ff));
		}
	}
	(void)putchar('"');
}

/* The only key of an object that stands for a list. Keys are ours: no image has any. */
#define LIST_KEY "\001list"

json_t *cli_json_list(struct cli_json_list *list)
{
	json_t *o = json_object();
	cli_json_set(o, LIST_KEY, json_integer((json_int_t)(uintptr_t)list));
	return o;
}

struct cli_json_list *cli_json_list_of(const json_t *value)
{
	const json_t *at = json_object_get(value, LIST_KEY);
	return at != NULL ? (struct cli_json_list *)(uintptr_t)json_integer_value(at) : NULL;
}

static void put_value(const json_t *value, unsigned depth);

static void put_separator(bool first, unsigned depth)
{
	(void)printf("%s\n%*s", first ? "" : ",", (int)depth * 4, "");
}

/* An empty list still has its two lines, as in QEMU. */
static void put_container(const json_t *value, unsigned depth)
{
	bool is_object = json_is_object(value), first = true;
	const char *key = NULL;
	json_t *member = NULL;
	size_t i = 0;
	(void)putchar(is_object ? '{' : '[');
	json_object_foreach((json_t *)value, key, member)
	{
		put_separator(first, depth + 1);
		put_string(key, strlen(key));
		(void)fputs(": ", stdout);
		put_value(member, depth + 1);
		first = false;
	}
	json_array_foreach((json_t *)value, i, member)
	{
		put_separator(first, depth + 1);
		put_value(member, depth + 1);
		first = false;
	}
	(void)printf("\n%*s%c", (int)depth * 4, "", is_object ? '}' : ']');
}

struct place {
	unsigned depth;
	bool first;
};

static void put_member(void *ctx, json_t *member)
{
	struct place *place = ctx;
	put_separator(place->first, place->depth + 1);
	put_value(member, place->depth + 1);
	place->first = false;
	json_decref(member);
}

static void put_list(struct cli_json_list *list, unsigned depth)
{
	struct place place = {.depth = depth, .first = true};
	(void)putchar('[');
	list->each(list, put_member, &place);
	(void)printf("\n%*s]", (int)depth * 4, "");
}

/* Recursion is as deep as what a command built, never as deep as an image says. */
static void put_value(const json_t *value, unsigned depth)
{
	if (cli_json_list_of(value) != NULL)
		put_list(cli_json_list_of(value), depth);
	else if (json_is_object(value) || json_is_array(value))
		put_container(value, depth);
	else if (json_is_string(value))
		put_string(json_string_value(value), json_string_length(value));
	else if (json_is_integer(value))
		(void)printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
	else if (json_is_real(value))
		(void)printf("%.17g", json_real_value(value));
	else if (json_is_boolean(value))
		(void)fputs(json_is_true(value) ? "true" : "false", stdout);
	else
		(void)fputs("null", stdout);
}

int cli_json_print(struct cli *cli, json_t *root)
{
	(void)cli;
	put_value(root, 0);
	(void)putchar('\n');
	json_decref(root);
	return 0;
}
