/* SPDX-License-Identifier: MIT */
/*
 * build_peer: other implementations as judges of what the builder makes: the qemu-img of the distribution,
 * and the newest one where tools/peers/get has put it.
 */
#ifndef QKT_BUILD_PEER_H
#define QKT_BUILD_PEER_H

#include <stdbool.h>

/* A private folder for the files of a test, removed at the end; it becomes the current one. */
int peer_enter(void **state);
int peer_leave(void **state);

/* The newest qemu-img at hand; "" where there is none: the test is to be skipped. */
const char *peer_newest(void);

/* The exit status of a program, `failed` of whose tests failed: a skip where none did and there is no newest qemu-img. */
int peer_verdict(int failed);

/* Run a command of the shell, made by printf. True where it exits with 0; what it prints is shown otherwise. */
bool peer_run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* `qemu-img check` by both says that nothing is wrong with the file, leaks included. */
void peer_check_clean(const char *path, const char *what);

#endif
