/* SPDX-License-Identifier: MIT */
/*
 * Differences between readers that are legal, each with its reason.
 */
#ifndef QK_DIFFER_KNOWN_H
#define QK_DIFFER_KNOWN_H

#include <stdbool.h>

/* Is there a reason why `peer` and we differ in `what`, with the words `why`? It is counted. */
bool known_reason(const char *peer, const char *what, const char *why);

/* "L2_ENTRY_RESERVED": the name of a finding, in words for `why`. */
const char *known_finding(unsigned finding);

/* The reasons that came up, and how often. */
void known_print(void);

#endif
