/* SPDX-License-Identifier: MIT */
/*
 * lockdown: --untrusted on the command line: enters the sandbox and says what is in force.
 */
#include "cli/cli.h"
#include "cli/sandbox.h"

struct cli_sandbox cli_sandbox_from_args(
	const struct cli_args *args, uint64_t memory_bytes, uint64_t cpu_seconds)
{
	return (struct cli_sandbox){.wanted = cli_flag(args, "untrusted"),
		.verbose = cli_flag(args, "verbose"),
		.memory_bytes = memory_bytes,
		.cpu_seconds = cpu_seconds};
}

static void put_number(bool in_force, const char *before, uint64_t n, const char *after)
{
	if (in_force)
		(void)fprintf(stderr, ", %s%llu %s", before, (unsigned long long)n, after);
}

static void put_state(
	struct cli *cli, const struct cli_sandbox *sandbox, const struct cli_sandbox_state *state)
{
	(void)fprintf(stderr, "%s: sandbox: no new privileges, no new files", cli->prog);
	if (state->landlock_abi != 0)
		(void)fprintf(stderr, ", Landlock (ABI %u)", state->landlock_abi);
	if (state->seccomp)
		(void)fprintf(stderr, ", seccomp");
	put_number(state->memory, "memory ", sandbox->memory_bytes >> 20, "MiB");
	put_number(state->cpu, "processor time ", sandbox->cpu_seconds, "s");
	(void)fprintf(stderr, "%s%s\n", state->landlock_abi == 0 ? "; not in force: Landlock" : "",
		state->seccomp		   ? ""
		: state->landlock_abi == 0 ? ", seccomp"
					   : "; not in force: seccomp");
}

enum qcow_status cli_lock_down(
	struct cli *cli, const struct cli_sandbox *sandbox, struct qcow_error *err)
{
	const struct cli_sandbox_limits limits = {
		.memory_bytes = sandbox->memory_bytes, .cpu_seconds = sandbox->cpu_seconds};
	struct cli_sandbox_state state;
	if (!cli_sandbox_enter(&limits, &state))
		return QK_FAIL_OS(err, errno, "cannot lock this process down");
	if (sandbox->verbose)
		put_state(cli, sandbox, &state);
	return QCOW_OK;
}
