/* SPDX-License-Identifier: MIT */
/*
 * holder: who holds the locks on a file, for a message.
 *
 * The kernel does not name the owner of an open file description lock (l_pid is -1), for it belongs
 * to no process. But /proc/PID/fdinfo/FD lists the locks of what the descriptor refers to, by device
 * and inode, without touching the file. Only reached when an open has failed; reads at most
 * MAX_DESCRIPTORS entries and gives up quietly where /proc is not there or not readable.
 */
#include "store/file.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/err.h"

#define MAX_DESCRIPTORS 20000

/* Read a small file below `dir`; its length, 0 where it cannot be read. */
static size_t slurp(int dir, const char *name, char *text, size_t text_bytes)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	ssize_t n = read(fd, text, text_bytes - 1);
	(void)close(fd);
	text[n > 0 ? n : 0] = '\0';
	return n > 0 ? (size_t)n : 0;
}

/* "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:2359331 100 101" on our file, of bytes 100 to 299 */
static bool is_lock_on(const char *line, const struct stat *st)
{
	unsigned dev_major = 0, dev_minor = 0;
	uint64_t inode = 0, first = 0;
	if (strncmp(line, "lock:", 5) != 0 || strstr(line, "OFDLCK") == NULL)
		return false;
	const char *at = strstr(line, " -1 ");
	if (at == NULL || sscanf(at, " -1 %x:%x:%" SCNu64 " %" SCNu64, &dev_major, &dev_minor,
				  &inode, &first) != 4)
		return false;
	return dev_major == major(st->st_dev) && dev_minor == minor(st->st_dev) &&
	       inode == st->st_ino && first >= 100 && first < 300;
}

static bool has_lock(int fdinfo, const char *name, const struct stat *st)
{
	char text[2048];
	if (slurp(fdinfo, name, text, sizeof(text)) == 0)
		return false;
	char *rest = NULL;
	for (char *line = strtok_r(text, "\n", &rest); line != NULL;
		line = strtok_r(NULL, "\n", &rest))
		if (is_lock_on(line, st))
			return true;
	return false;
}

static bool is_number(const char *name)
{
	return isdigit((unsigned char)name[0]) != 0;
}

static bool process_has_lock(int proc, const char *pid, const struct stat *st, unsigned *budget)
{
	char path[300];
	(void)snprintf(path, sizeof(path), "%s/fdinfo", pid);
	int fd = openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	if (dir == NULL) {
		if (fd >= 0)
			(void)close(fd);
		return false;
	}
	bool found = false;
	for (struct dirent *e = readdir(dir); e != NULL && !found && *budget > 0;
		e = readdir(dir)) {
		if (!is_number(e->d_name))
			continue;
		(*budget)--;
		found = has_lock(dirfd(dir), e->d_name, st);
	}
	(void)closedir(dir);
	return found;
}

static void describe(int proc, const char *pid, char *text, size_t text_bytes)
{
	char path[300], name[64] = "";
	(void)snprintf(path, sizeof(path), "%s/comm", pid);
	(void)slurp(proc, path, name, sizeof(name));
	name[strcspn(name, "\n")] = '\0';
	if (strtoimax(pid, NULL, 10) == getpid())
		(void)snprintf(text, text_bytes, "this process (%s)", pid);
	else if (name[0] != '\0')
		(void)snprintf(text, text_bytes, "process %s (%s)", pid, name);
	else
		(void)snprintf(text, text_bytes, "process %s", pid);
}

void qk_holder_name(const struct stat *st, char *text, size_t text_bytes)
{
	text[0] = '\0';
	DIR *proc = opendir("/proc");
	if (proc == NULL)
		return;
	unsigned budget = MAX_DESCRIPTORS;
	for (struct dirent *e = readdir(proc); e != NULL && budget > 0; e = readdir(proc)) {
		if (!is_number(e->d_name) || !process_has_lock(dirfd(proc), e->d_name, st, &budget))
			continue;
		describe(dirfd(proc), e->d_name, text, text_bytes);
		break;
	}
	(void)closedir(proc);
}
