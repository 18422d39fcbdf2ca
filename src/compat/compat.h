/* SPDX-License-Identifier: MIT */
/*
 * compat: what a personality (the program name it was started by) does differently, in one table.
 *
 * A command asks cli->traits; it never compares program names. Rows are constant.
 */
#ifndef QK_COMPAT_COMPAT_H
#define QK_COMPAT_COMPAT_H

#include <stdbool.h>

struct compat_traits {
	const char *program; /* the name that error lines start with, and argv[0]'s last part */
	const char *version; /* the line of --version */
	const char *
		command; /* the one that it is, all words are its own; NULL: the first word names one */
	const char *
		cannot_open; /* how a sentence begins about an image that cannot be opened; its name follows */
	bool qemu; /* QEMU's texts, defaults and option rules */
	bool probe_backing; /* probe a backing file without a recorded format */
	bool special_references; /* an image may name json:, file: and devices */
	bool shares_raw; /* a raw disk may be read while another process writes it */
	bool overlays_live; /* an overlay may be made over an image that another process writes */
	bool forks; /* a server goes into the background without being asked */
	bool percent_records; /* -p writes QEMU's records to stdout instead of a terminal line */
};

/* The row for argv[0]; names that are no personality get qcow's. Never NULL. */
const struct compat_traits *qk_compat_traits(const char *argv0);

/* The synopsis that `qemu-img --help` prints for a command, or NULL where the command is not QEMU's.
 * Programs probe these lines, so they never lose an option. */
const char *qk_compat_synopsis(const char *command);

#endif
