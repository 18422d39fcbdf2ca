/* SPDX-License-Identifier: MIT */
/* What begins as an image of another format is known by its name, and nothing else is. */
#include "cm.h"

#include <string.h>

#include "format/foreign.h"

static const char *probe(const char *magic, size_t n, size_t off)
{
	uint8_t first[512] = {0};
	memcpy(first + off, magic, n);
	return qk_foreign_probe((struct qk_span){first, off + n});
}

static void by_its_magic(void **state)
{
	(void)state;
	assert_string_equal(probe("KDMV", 4, 0), "vmdk");
	assert_string_equal(probe("COWD", 4, 0), "vmdk");
	assert_string_equal(probe("# Disk DescriptorFile\n", 22, 0), "vmdk");
	assert_string_equal(probe("\x7f\x10\xda\xbe", 4, 64), "vdi");
	assert_string_equal(probe("vhdxfile", 8, 0), "vhdx");
	assert_string_equal(probe("conectix", 8, 0), "vpc");
	assert_string_equal(probe("QED\0", 4, 0), "qed");
	assert_string_equal(probe("WithoutFreeSpace", 16, 0), "parallels");
	assert_string_equal(probe("WithouFreSpacExt", 16, 0), "parallels");
	assert_string_equal(probe("Bochs Virtual HD Image", 22, 0), "bochs");
	assert_string_equal(probe("#!/bin/sh\n#V2.0 Format\nmodprobe cloop", 37, 0), "cloop");
}

static void and_nothing_else(void **state)
{
	(void)state;
	assert_null(probe("", 0, 0));
	assert_null(probe("KDM", 3, 0));
	assert_null(probe("QED.", 4, 0));
	assert_null(probe("KDMV", 4, 1));
	assert_null(probe("\x7f\x10\xda\xbe", 4, 0));
	assert_null(probe("\x7f\x10\xda", 3, 64));
	assert_null(probe("", 0, 512));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(by_its_magic),
		cmocka_unit_test(and_nothing_else),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
