/* SPDX-License-Identifier: MIT */
/* row: one workload in one configuration, run by one program, and all its crash states judged. */
#ifndef QKC_ROW_H
#define QKC_ROW_H

#include <stdbool.h>
#include <stdint.h>

#include "explore.h"
#include "plan.h"

struct qkc_row {
	const struct qkc_workload *workload;
	struct qkc_config config;
	bool is_peer;
	const char *qemu_io, *shim; /* for a peer */
	uint64_t seed,
		only_id; /* only_id: judge that state alone, and tell its story; of only_variant */
	unsigned only_variant, max_variants;
	uint64_t want_states; /* go on with other variants until there are so many distinct ones */
	unsigned subset_bits, n_random, n_cuts;
	unsigned
		again_one_in; /* one state in so many is opened for writing and judged again; 0: none */
	unsigned max_told; /* bad states told, at most */
	const char *save; /* where only_id's image goes, or NULL */
	uint64_t *qemu_left; /* so many more states are shown to qemu-img check */
};

struct qkc_result {
	struct qkc_totals totals;
	uint64_t n_again, n_nested,
		n_qemu; /* recoveries, states of crashes inside those, seen by qemu-img */
	char first_bad[400];
};

/* False: the row could not be run at all, or ended in a way that no crash excuses; first_bad says how. */
bool qkc_row_run(const struct qkc_row *row, struct qkc_result *out);

#endif
