/* SPDX-License-Identifier: MIT */
/*
 * Run a command and say what it took. Linux counts the memory of whoever forked into ru_maxrss: this program is
 * small, a Python that measures is not.
 * usage: measured SECONDS REPORT COMMAND [ARGUMENT]…
 * REPORT becomes one line: exit code (128 + signal for a signal), microseconds of processor time, KiB of memory.
 * After SECONDS the command gets SIGABRT. Exit status 0, or 125 where nothing could be run.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t child;

static void give_up(int signal)
{
	(void)signal;
	(void)kill(child, SIGABRT);
}

int main(int argc, char **argv)
{
	struct rusage u;
	int status = 0;

	if (argc < 4 || (child = fork()) < 0)
		return 125;
	if (child == 0) {
		(void)execvp(argv[3], argv + 3);
		_exit(127);
	}
	(void)signal(SIGALRM, give_up);
	(void)alarm((unsigned)strtoul(argv[1], NULL, 10));
	while (wait4(child, &status, 0, &u) != child)
		;
	FILE *report = fopen(argv[2], "w");
	if (report == NULL)
		return 125;
	(void)fprintf(report, "%d %lld %ld\n",
		WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status),
		(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000LL + u.ru_utime.tv_usec +
			u.ru_stime.tv_usec,
		u.ru_maxrss);
	return fclose(report) == 0 ? 0 : 125;
}
