/* SPDX-License-Identifier: MIT */
/*
 * host: what tests need of the machine: a folder that goes away, other programs, and a skip where
 * they are missing.
 */
#ifndef QKT_HOST_H
#define QKT_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The test's own folder, made at the first call and removed with everything in it at exit. Tests that
 * want a certain file system give its folder in QK_TEST_DIR. */
const char *qkt_dir(void);

/* DIR/name, in one of 8 static buffers. */
const char *qkt_path(const char *name);

/* Is there such a program in PATH (or at that path)? */
bool qkt_has_program(const char *name);

/* Exit with 77 and a line that says what is missing, unless the program is there. */
void qkt_need_program(const char *name, const char *package);

/* Exit with 77, saying why: tools/check-skips lists the reasons that it accepts. */
void qkt_skip(const char *why) __attribute__((noreturn));

/* Run a shell command in qkt_dir(); its exit status, or -1 for a signal. What it prints (stdout, then
 * stderr) is kept until the next call: qkt_stdout(), qkt_stderr(). */
int qkt_run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
const char *qkt_stdout(void);
const char *qkt_stderr(void);

/* Run it and abort the test with what it printed unless it exits with 0. */
void qkt_must(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Start a command (no shell: `exec` is put before it) and wait until it prints a line that contains
 * `ready`; abort where it ends before. qkt_stop kills and reaps it. */
pid_t qkt_start(const char *ready, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void qkt_stop(pid_t pid);

/*
 * The QEMU tools to test against: those of PATH, and a newer set in $QK_PEERS or, without it,
 * ~/.cache/qcowkit-peers/bin. Each entry is a prefix, "" or "/path/". Returns how many there are;
 * 0 where none has both qemu-img and qemu-io.
 */
size_t qkt_qemus(const char *prefixes[2]);

/* The content of a file, malloc'ed; aborts where it cannot be read. */
uint8_t *qkt_slurp(const char *path, size_t *size);

#endif
