/* SPDX-License-Identifier: MIT */
#ifndef QK_COMPAT_WORDS_H
#define QK_COMPAT_WORDS_H

#include <stdbool.h>
#include <stddef.h>

/* QEMU's sentence for one of the library's, into out[0..room), cut where it is longer. False: the library's
 * own is the one to print; out is then unspecified. */
bool qk_compat_words(const char *sentence, char *out, size_t room);

#endif
