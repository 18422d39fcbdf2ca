/* SPDX-License-Identifier: MIT */
/*
 * keeper: see keeper.h. The parent blocks the signals that it passes on and takes them one by one, so that
 * none is lost and no handler is needed.
 */
#include "cli/keeper.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const int passed_on[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
#define N_PASSED_ON (sizeof(passed_on) / sizeof(passed_on[0]))

void cli_keeper_note(struct cli_keeper *keeper, size_t at, const char *path, bool made)
{
	if (keeper == NULL || path == NULL)
		return;
	int n = snprintf(keeper->files[at].path, sizeof(keeper->files[at].path), "%s", path);
	keeper->files[at].made = made && n > 0 && (size_t)n < sizeof(keeper->files[at].path);
}

static void wanted_signals(sigset_t *set)
{
	(void)sigemptyset(set);
	(void)sigaddset(set, SIGCHLD);
	for (size_t i = 0; i < N_PASSED_ON; i++)
		(void)sigaddset(set, passed_on[i]);
}

/* Until the child has ended; its status. *fatal: the last signal that was passed on to end it, or 0. */
static int wait_for(pid_t child, const sigset_t *set, int *fatal)
{
	for (;;) {
		int status = 0;
		pid_t ended = waitpid(child, &status, WNOHANG);
		if (ended == child || (ended < 0 && errno == ECHILD))
			return status;
		int got = sigwaitinfo(set, NULL);
		if (got < 0 || got == SIGCHLD)
			continue;
		(void)kill(child, got);
		if (got != SIGUSR1)
			*fatal = got;
	}
}

static void remove_made(const struct cli_keeper *keeper)
{
	for (size_t i = 0; i < CLI_KEEPER_FILES; i++)
		if (keeper->files[i].made)
			(void)unlink(keeper->files[i].path);
}

static int keep(struct cli *cli, pid_t child, const struct cli_keeper *keeper, const sigset_t *set,
	const sigset_t *old)
{
	int fatal = 0;
	int status = wait_for(child, set, &fatal);
	if (status == 0)
		return 0;
	remove_made(keeper);
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	if (WTERMSIG(status) == fatal) {
		(void)signal(fatal, SIG_DFL);
		(void)sigprocmask(SIG_SETMASK, old, NULL);
		(void)raise(fatal);
	}
	cli_error(cli, "the process that read the image was ended by signal %d (%s)",
		WTERMSIG(status), strsignal(WTERMSIG(status)));
	return 1;
}

static bool enter_child(pid_t parent, const sigset_t *old)
{
	(void)sigprocmask(SIG_SETMASK, old, NULL);
	/* a parent that is gone already will not remove anything */
	return prctl(PR_SET_PDEATHSIG, (unsigned long)SIGKILL, 0UL, 0UL, 0UL) == 0 &&
	       getppid() == parent;
}

bool cli_keeper_split(struct cli *cli, struct cli_keeper **out, int *exit_code)
{
	struct cli_keeper *keeper = mmap(
		NULL, sizeof(*keeper), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sigset_t set, old;
	*exit_code = 1;
	if (keeper == MAP_FAILED) {
		cli_error(cli, "cannot share memory: %s", strerror(errno));
		return false;
	}
	(void)signal(SIGCHLD, SIG_DFL);
	wanted_signals(&set);
	(void)sigprocmask(SIG_BLOCK, &set, &old);
	(void)fflush(stdout);
	pid_t parent = getpid(), child = fork();
	if (child == 0) {
		*out = keeper;
		return enter_child(parent, &old);
	}
	if (child < 0)
		cli_error(cli, "cannot start a process: %s", strerror(errno));
	else
		*exit_code = keep(cli, child, keeper, &set, &old);
	(void)munmap(keeper, sizeof(*keeper));
	(void)sigprocmask(SIG_SETMASK, &old, NULL);
	return false;
}
