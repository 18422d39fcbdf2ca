/* SPDX-License-Identifier: MIT */
/*
 * io_args: the letters and words of the commands that move bytes.
 */
#ifndef QK_CLI_IO_ARGS_H
#define QK_CLI_IO_ARGS_H

#include "cli/io.h"

/* getopt with the command's letters; an unknown one is said on stderr, as getopt does. -1: no more. */
int io_getopt(const struct io_command *self, int argc, char **argv);

/* Take one letter that getopt found (optarg with it). False: it is not one of the shared ones, or the pattern of
 * -P is none, which was said. */
bool io_take_flag(struct io_flags *flags, int letter);

/* -t and -c: a cache mode by its word. False: it is none, reported. */
bool io_take_cache(struct io *io, const char *word, struct io_mode *mode);
/* -d and -i: is it a word of theirs? False: it is none, reported. */
/* "a=b" and "c=d" to "a=b,c=d"; `list` (or NULL) is freed. NULL: out of memory. */
char *io_append_options(char *list, const char *more);
bool io_check_words(struct io *io, int letter, const char *word, struct io_mode *mode);

/* All letters of a command that has only shared ones. False: said so, with the usage line where it is due. */
bool io_take_flags(const struct io_command *self, int argc, char **argv, struct io_flags *flags);

/* `words` are n lengths that io_lengths has read: buffers of those lengths, one behind the other in `buf`, for the
 * caller to free. NULL: out of memory. */
struct iovec *io_cut(char *const *words, int n, void *buf) QK_MUST_USE;

/* The sum of `n` lengths. False: one is no length or the sum is above IO_MAX_BYTES, said on stdout. */
bool io_lengths(char *const *words, int n, uint64_t *sum);

#endif
