/* SPDX-License-Identifier: MIT */
/*
 * epoch: who still uses a host cluster that was unlinked. Whoever looks a mapping up and moves bytes by it
 * does so in an epoch; whoever gives an unlinked cluster away waits until every epoch that began before
 * the unlinking was visible has ended.
 *
 * Entering writes one counter that few threads share and takes no lock. A thread may be in several epochs.
 */
#ifndef QK_ENGINE_EPOCH_H
#define QK_ENGINE_EPOCH_H

#include "base/err.h"

struct qk_epoch;

enum qcow_status qk_epoch_new(struct qk_epoch **out, struct qcow_error *err) QK_MUST_USE;
void qk_epoch_free(struct qk_epoch *epoch);

/* Enter; the answer names the epoch and goes to qk_epoch_leave, on any thread. */
unsigned qk_epoch_enter(struct qk_epoch *epoch);
void qk_epoch_leave(struct qk_epoch *epoch, unsigned token);

/* Wait for all epochs that were entered before the call. The caller is in none. */
void qk_epoch_wait(struct qk_epoch *epoch);

#endif
