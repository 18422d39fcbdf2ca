/* SPDX-License-Identifier: MIT */
#include "build_peer.h"

#include <stdlib.h>
#include <unistd.h>

#include "cm.h"

static char folder[300];
static char newest[512];
static char distribution[512];

static void find_tool(char *out, size_t room, const char *fmt, const char *base)
{
	char path[400];

	if (base == NULL || snprintf(path, sizeof(path), fmt, base) >= (int)sizeof(path))
		return;
	if (access(path, X_OK) == 0)
		(void)snprintf(out, room, "%s", path);
}

int peer_enter(void **state)
{
	(void)state;
	find_tool(distribution, sizeof(distribution), "%s", "/usr/bin/qemu-img");
	find_tool(newest, sizeof(newest), "%s/.cache/qcowkit-peers/bin/qemu-img", getenv("HOME"));
	find_tool(
		newest, sizeof(newest), "%s/qcowkit-peers/bin/qemu-img", getenv("XDG_CACHE_HOME"));
	if (newest[0] == '\0')
		(void)snprintf(newest, sizeof(newest), "%s", distribution);
	const char *tmp = getenv("TMPDIR");
	(void)snprintf(folder, sizeof(folder), "%s/qk-build-XXXXXX",
		tmp != NULL && strlen(tmp) < 200 ? tmp : "/tmp");
	return mkdtemp(folder) == NULL || chdir(folder) != 0;
}

int peer_leave(void **state)
{
	(void)state;
	return !peer_run("cd / && rm -rf %s", folder);
}

const char *peer_newest(void)
{
	return newest;
}

int peer_verdict(int failed)
{
	return failed == 0 && newest[0] == '\0' ? QKT_SKIP : failed;
}

bool peer_run(const char *fmt, ...)
{
	char command[4096];
	char line[6000];
	va_list ap;

	va_start(ap, fmt);
	int n = vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	assert_in_range(n, 1, sizeof(command) - 1);
	(void)snprintf(line, sizeof(line),
		"( %s ) >peer.log 2>&1 </dev/null || { rc=$?; echo '%.800s'; cat peer.log; exit "
		"$rc; }",
		command, command);
	return system(line) == 0;
}

void peer_check_clean(const char *path, const char *what)
{
	if (!peer_run("%s check -f qcow2 %s", newest, path))
		fail_msg("%s: not clean for the newest qemu-img", what);
	if (distribution[0] != '\0' && !peer_run("%s check -f qcow2 %s", distribution, path))
		fail_msg("%s: not clean for the distribution's qemu-img", what);
}
