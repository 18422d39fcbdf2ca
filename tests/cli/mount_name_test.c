/* SPDX-License-Identifier: MIT */
/* File names for snapshots and bitmaps, which are called anything. */
#include <stdlib.h>
#include <string.h>

#include "cli/mount.h"
#include "cm.h"

static bool is_listed(void *ctx, const char *path)
{
	const char *const *paths = ctx;
	for (; *paths != NULL; paths++)
		if (strcmp(*paths, path) == 0)
			return true;
	return false;
}

static void expect_path(
	const char *name, const char *id, const char *const *taken, const char *want)
{
	const struct serve_part thing = {.name = name, .id = id, .number = 7};
	char *path = mount_path("d", &thing, ".x", is_listed, (void *)(uintptr_t)taken);
	assert_non_null(path);
	assert_string_equal(path, want);
	free(path);
}

static const char *const nothing[] = {NULL};

static void what_is_a_name_stays(void **state)
{
	(void)state;
	expect_path("first", "1", nothing, "d/first.x");
	expect_path("a b", "1", nothing, "d/a b.x");
	expect_path("gr\xc3\xbc\xc3\x9f", "1", nothing, "d/gr\xc3\xbc\xc3\x9f.x");
	expect_path("a.b.", "1", nothing, "d/a.b..x");
}

static void what_is_none_is_encoded(void **state)
{
	(void)state;
	expect_path("a/b", "1", nothing, "d/a%2Fb.x");
	expect_path(".", "1", nothing, "d/%2E.x");
	expect_path("..", "1", nothing, "d/%2E..x");
	expect_path(".hidden", "1", nothing, "d/%2Ehidden.x");
	expect_path("%id=1", "1", nothing, "d/%25id=1.x");
	expect_path("\xff\x01\x7f\n", "1", nothing, "d/%FF%01%7F%0A.x");
	expect_path("\xc3", "1", nothing, "d/%C3.x");
	expect_path("\xed\xa0\x80", "1", nothing, "d/%ED%A0%80.x"); /* half of a pair */
	expect_path("\xc2\x9b", "1", nothing, "d/%C2%9B.x"); /* a control character */
}

static void empty_names_have_an_id(void **state)
{
	(void)state;
	expect_path("", "5", nothing, "d/%id=5.x");
	expect_path("", "a/b", nothing, "d/%id=a%2Fb.x");
	expect_path("", "", nothing, "d/%n=7.x");
	expect_path("", NULL, nothing, "d/%n=7.x");
}

static void names_that_are_taken_get_an_id(void **state)
{
	static const char *const one[] = {"d/twin.x", NULL};
	static const char *const two[] = {"d/twin.x", "d/twin%id=5.x", NULL};
	static const char *const all[] = {
		"d/twin.x", "d/twin%id=5.x", "d/%n=7.x", "d/%n=8.x", NULL};
	(void)state;
	expect_path("twin", "5", one, "d/twin%id=5.x");
	expect_path("twin", "5", two, "d/%n=7.x");
	expect_path("twin", "5", all, "d/%n=9.x");
}

/* With the suffix a name has 255 bytes at most, and no character of it is cut. */
static void long_names_are_cut(void **state)
{
	char name[400], want[500];
	(void)state;
	memset(name, 'n', sizeof(name));
	name[253] = '\0';
	(void)snprintf(want, sizeof(want), "d/%s.x", name);
	expect_path(name, "5", nothing, want);
	name[253] = 'n';
	name[254] = '\0';
	(void)snprintf(want, sizeof(want), "d/%.248s%%id=5.x", name);
	expect_path(name, "5", nothing, want);
	memcpy(name + 247, "\xc3\xbc", 2);
	(void)snprintf(want, sizeof(want), "d/%.247s%%id=5.x", name);
	expect_path(name, "5", nothing, want);
	char id[100];
	memset(id, 'i', sizeof(id));
	id[99] = '\0';
	name[254] = 'n';
	name[399] = '\0';
	expect_path(name, id, nothing, "d/%n=7.x");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_a_name_stays),
		cmocka_unit_test(what_is_none_is_encoded),
		cmocka_unit_test(empty_names_have_an_id),
		cmocka_unit_test(names_that_are_taken_get_an_id),
		cmocka_unit_test(long_names_are_cut),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
