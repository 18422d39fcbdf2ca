/* SPDX-License-Identifier: MIT */
/*
 * progress: what -p, --progress=FD and SIGUSR1 show of a long call.
 *
 *   -p, qemu-img   records "    (12.34/100%)\r" on stdout from 0.00 to 100.00, then one newline
 *   -p, qcow       one line on a terminal's stderr with rate and time left; nothing elsewhere
 *   --progress=FD  lines "DONE TOTAL" for programs, at most ten a second, and the last
 *   SIGUSR1        without -p: one record with a newline on stdout, at the next report
 *
 * A command shows one progress at a time. The library calls report() one at a time, from any thread; the
 * signal's flag is the only state outside the struct, and the handler does nothing but set it.
 */
#include "cli/cli.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"

struct cli_progress {
	struct cli *cli;
	bool records, line; /* QEMU's records; a terminal line */
	int fd; /* of --progress=FD, or -1 */
	bool shown; /* a terminal line stands there */
	uint64_t started_nsec, shown_nsec;
	uint64_t done, total;
	double last_percent; /* of the last record */
};

/* Set by the signal handler, which has no other way to say anything. */
static atomic_bool asked;

static void on_usr1(int signal_number)
{
	(void)signal_number;
	atomic_store(&asked, true);
}

static uint64_t now_nsec(void)
{
	struct timespec t = {0};
	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double percent_of(const struct cli_progress *p)
{
	return p->total == 0 ? 0 : 100.0 * (double)p->done / (double)p->total;
}

static void put_record(double percent, char end)
{
	(void)printf("    (%3.2f/100%%)%c", percent, end);
	(void)fflush(stdout);
}

static void put_fd(const struct cli_progress *p)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "%llu %llu\n", (unsigned long long)p->done,
		(unsigned long long)p->total);
	/* a reader that went away must not end the work */
	ssize_t written = n > 0 ? write(p->fd, text, (size_t)n) : 0;
	(void)written;
}

static void put_terminal_line(struct cli_progress *p, uint64_t now)
{
	char done[CLI_SIZE_BYTES], total[CLI_SIZE_BYTES], rate[CLI_SIZE_BYTES], left[32] = "";
	double seconds = (double)(now - p->started_nsec) / 1e9;
	double per_second = seconds > 0 ? (double)p->done / seconds : 0;
	if (per_second >= 1 && seconds >= 1) {
		uint64_t eta = (uint64_t)((double)(p->total - p->done) / per_second);
		(void)snprintf(left, sizeof(left), ", %llu:%02llu left",
			(unsigned long long)(eta / 60), (unsigned long long)(eta % 60));
	}
	(void)fprintf(stderr, "\r\033[K%5.1f%%  %s of %s, %s/s%s", percent_of(p),
		cli_human_size(p->done, done), cli_human_size(p->total, total),
		cli_human_size((uint64_t)per_second, rate), left);
	(void)fflush(stderr);
	p->shown = true;
}

static void report(void *ctx, uint64_t done, uint64_t total)
{
	struct cli_progress *p = ctx;
	p->done = done;
	p->total = total;
	if (atomic_exchange(&asked, false) && !p->records)
		put_record(percent_of(p), '\n');
	if (p->records) {
		double percent = percent_of(p);
		if (percent - p->last_percent >= 0.1 || (percent >= 100 && p->last_percent < 100)) {
			p->last_percent = percent;
			put_record(percent, '\r');
		}
		return;
	}
	if (p->fd < 0 && !p->line)
		return;
	uint64_t now = now_nsec();
	if (now - p->shown_nsec < 100000000u)
		return;
	p->shown_nsec = now;
	if (p->fd >= 0)
		put_fd(p);
	if (p->line)
		put_terminal_line(p, now);
}

/* The descriptor of --progress=FD, -1 without one, -2 where it is no open descriptor (reported). */
static int progress_fd(struct cli *cli, const char *text)
{
	uint64_t fd = 0;
	if (text == NULL)
		return -1;
	if (!cli_parse_number(cli, "descriptor of --progress", text, 0, 1 << 20, &fd))
		return -2;
	if (fcntl((int)fd, F_GETFD) < 0) {
		cli_error(cli, "--progress=%s: that descriptor is not open", text);
		return -2;
	}
	return (int)fd;
}

struct cli_progress *cli_progress_begin(
	struct cli *cli, const struct cli_args *args, struct qcow_progress *out)
{
	*out = (struct qcow_progress){0};
	int fd = progress_fd(cli, cli_arg(args, "progress"));
	if (fd == -2)
		return NULL;
	struct cli_progress *p = qk_calloc(1, sizeof(*p));
	if (p == NULL) {
		cli_error(cli, "Cannot allocate memory");
		return NULL;
	}
	bool wanted = cli_flag(args, "progress") && !cli_flag(args, "quiet");
	p->cli = cli;
	p->fd = fd;
	p->records = wanted && cli->traits->percent_records;
	p->line = wanted && fd < 0 && !p->records && isatty(STDERR_FILENO) != 0;
	p->started_nsec = now_nsec();
	struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
	(void)sigemptyset(&action.sa_mask);
	(void)sigaction(SIGUSR1, &action, NULL);
	if (p->records)
		put_record(0, '\r');
	out->report = report;
	out->cancelled = cli->cancelled;
	out->ctx = p;
	return p;
}

void cli_progress_end(struct cli_progress *p, bool ok)
{
	if (p == NULL)
		return;
	if (p->records) {
		if (ok && p->last_percent < 100)
			put_record(100, '\r');
		(void)putchar('\n');
		(void)fflush(stdout);
	}
	if (p->fd >= 0) {
		if (ok && p->total != 0)
			p->done = p->total;
		put_fd(p);
	}
	if (p->shown)
		(void)fputs("\r\033[K", stderr);
	free(p);
}
