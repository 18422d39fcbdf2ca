/* SPDX-License-Identifier: MIT */
/*
 * driver: the drivers that a node may name, and the members that nodes of each may have.
 */
#include "cli/driver.h"

#include <string.h>

static const struct {
	const char *name;
	bool is_protocol;
} drivers[] = {
	{"file", true},
	{"host_device", true},
	{"blkdebug", true},
	{"null-co", true},
#ifdef QK_LIBNBD
	{"nbd", true},
#endif
	{"raw", false},
	{"qcow2", false},
	{"luks", false},
};

bool cli_driver_is_protocol(const char *driver)
{
	for (size_t i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++)
		if (strcmp(drivers[i].name, driver) == 0)
			return drivers[i].is_protocol;
	return false;
}

static bool begins(const char *text, const char *front)
{
	return strncmp(text, front, strlen(front)) == 0;
}

bool cli_driver_is_blkdebug(const char *driver, const char *path)
{
	return driver != NULL ? strcmp(driver, "blkdebug") == 0
			      : path != NULL && begins(path, "blkdebug:");
}

bool cli_driver_is_nbd(const char *driver, const char *path)
{
#ifdef QK_LIBNBD
	static const char *const fronts[] = {
		"nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+tcp:", "nbds+tcp:"};
	if (driver != NULL)
		return strcmp(driver, "nbd") == 0;
	for (size_t i = 0; path != NULL && i < sizeof(fronts) / sizeof(fronts[0]); i++)
		if (begins(path, fronts[i]))
			return true;
#else
	(void)driver;
	(void)path;
#endif
	return false;
}

static bool is_one_of(const char *key, const char *const *words, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(words[i], key) == 0)
			return true;
	return false;
}

#define N(words) (sizeof(words) / sizeof((words)[0]))

bool cli_driver_is_foreign(const char *name)
{
	static const char *const names[] = {"vmdk", "vdi", "vhdx", "vpc", "qed", "qcow",
		"parallels", "dmg", "bochs", "cloop", "vvfat"};
	return is_one_of(name, names, N(names));
}

enum qcow_status cli_driver_check(
	struct cli *cli, const char *name, const char **out, struct qcow_error *err)
{
	for (size_t i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++)
		if (strcmp(drivers[i].name, name) == 0) {
			*out = drivers[i].name;
			return QCOW_OK;
		}
	if (cli->qemu)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED, "Unknown driver '%s'", name);
	if (cli_driver_is_foreign(name))
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"the driver '%s' is not built in; " CLI_FOREIGN_HELP, name);
	return QK_FAIL(err, QCOW_E_UNSUPPORTED,
		"the driver '%s' is not built in; file, host_device, nbd, raw, qcow2 and luks are",
		name);
}

enum qcow_status cli_driver_check_members(const json_t *spec, struct qcow_error *err)
{
	static const char *const known[] = {"driver", "file", "filename", "backing", "data-file",
		"header", "offset", "size", "cache", "locking", "force-share", "encrypt",
		"key-secret", "node-name", "read-only", "auto-read-only", "discard",
		"detect-zeroes", "aio", "drop-cache", "x-check-cache-dropped", "lazy-refcounts",
		"overlap-check", "cache-size", "l2-cache-size", "l2-cache-entry-size",
		"refcount-cache-size", "cache-clean-interval", "pass-discard-request",
		"pass-discard-snapshot", "pass-discard-other", "discard-no-unref"};
	static const char *const of_blkdebug[] = {"image", "config", "inject-error", "set-state",
		"align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard",
		"max-discard"};
	static const char *const of_nbd[] = {"server", "export", "path", "host", "port",
		"tls-creds", "tls-hostname", "reconnect-delay", "open-timeout", "x-dirty-bitmap"};
	static const char *const of_null[] = {"read-zeroes", "latency-ns"};
	const char *driver = json_string_value(json_object_get(spec, "driver"));
	const char *path = json_string_value(json_object_get(spec, "filename"));
	bool is_debug = cli_driver_is_blkdebug(driver, path);
	bool is_nbd = cli_driver_is_nbd(driver, path);
	bool is_null = driver != NULL && strcmp(driver, "null-co") == 0;
	const char *key = NULL;
	json_t *value = NULL;
	json_object_foreach((json_t *)spec, key, value)
	{
		bool found = is_one_of(key, known, N(known)) ||
			     (is_debug && is_one_of(key, of_blkdebug, N(of_blkdebug))) ||
			     (is_nbd && is_one_of(key, of_nbd, N(of_nbd))) ||
			     (is_null && is_one_of(key, of_null, N(of_null)));
		if (!found)
			return QK_FAIL(
				err, QCOW_E_UNSUPPORTED, "the option '%s' is not built in", key);
	}
	return QCOW_OK;
}
