/* SPDX-License-Identifier: MIT */
/*
 * signals: for commands that make files. A signal that would end the program is caught, the long call is
 * cancelled, what the run made is removed, and then the program dies of that signal after all.
 *
 * The handler remembers the signal. Another one, a second later, finds a run that waits, for a server say, and ends it where it
 * stands; not one at once, for some send a signal to a process and its group.
 */
#include "cli/cli.h"

#include <signal.h>
#include <stdatomic.h>
#include <time.h>

static volatile sig_atomic_t caught;
static atomic_llong caught_ms; /* when */

static void on_signal(int signal_number)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	long long now = (long long)t.tv_sec * 1000 + t.tv_nsec / 1000000;
	if (caught == 0)
		atomic_store(&caught_ms, now);
	else if (now - atomic_load(&caught_ms) >= 1000) {
		(void)signal(signal_number, SIG_DFL);
		(void)raise(signal_number); /* at the handler's end */
	}
	caught = signal_number;
}

/* struct cli.cancelled */
static bool is_caught(void *ctx)
{
	(void)ctx;
	return caught != 0;
}

void cli_signals_catch(struct cli *cli)
{
	static const int fatal[] = {SIGINT, SIGTERM, SIGHUP};
	struct sigaction action = {.sa_handler = on_signal};
	struct sigaction old;
	(void)sigemptyset(&action.sa_mask);
	for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
		/* nohup and shells' background jobs ignore some: keep that */
		if (sigaction(fatal[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			(void)sigaction(fatal[i], &action, NULL);
	cli->cancelled = is_caught;
}

bool cli_signals_caught(void)
{
	return caught != 0;
}

void cli_signals_end(void)
{
	if (caught == 0)
		return;
	(void)fflush(stdout);
	(void)signal(caught, SIG_DFL);
	(void)raise(caught);
}
