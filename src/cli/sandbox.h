/* SPDX-License-Identifier: MIT */
/*
 * sandbox: what --untrusted does to the process once its files are open.
 */
#ifndef QK_CLI_SANDBOX_H
#define QK_CLI_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

struct cli_sandbox_limits {
	uint64_t memory_bytes; /* of data: heap, stacks of threads, private mappings; 0: no limit */
	uint64_t cpu_seconds; /* 0: no limit */
};

/* What is in force. Landlock and seccomp need a kernel that has them, seccomp a build that has it. */
struct cli_sandbox_state {
	bool no_new_privs, no_new_files, seccomp, memory, cpu;
	unsigned landlock_abi; /* 0: not in force */
};

/*
 * Lock the process down, for ever: it opens nothing, connects to nothing, starts and signals no other process.
 * Open descriptors go on working, and threads may be started. Call it before the first thread. False: not even
 * the least of it (no new privileges, no new files) is to be had; errno says why.
 */
bool cli_sandbox_enter(const struct cli_sandbox_limits *limits, struct cli_sandbox_state *out);

#endif
