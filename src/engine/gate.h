/* SPDX-License-Identifier: MIT */
/*
 * gate: calls on guest data go through it, in any number at once; an operation that manages the image closes it, and is
 * alone until it opens it again.
 *
 * Passing writes one counter that few threads share and takes no lock. Who is inside calls nothing that passes the gate
 * of the same image again: it might be closing.
 */
#ifndef QK_ENGINE_GATE_H
#define QK_ENGINE_GATE_H

#include <stdbool.h>

#include "base/err.h"

struct qk_gate;

enum qcow_status qk_gate_new(struct qk_gate **out, struct qcow_error *err) QK_MUST_USE;
/* Nobody is inside. NULL is allowed. */
void qk_gate_free(struct qk_gate *gate);

/* Waits while the gate is closed. The answer goes to qk_gate_leave. */
unsigned qk_gate_enter(struct qk_gate *gate);
/* The same without waiting: false, and nothing is to be left, while it is closed. */
bool qk_gate_try(struct qk_gate *gate, unsigned *token);
void qk_gate_leave(struct qk_gate *gate, unsigned token);

/* Waits until who closed it before has opened it, and everybody has left. */
void qk_gate_close(struct qk_gate *gate);
void qk_gate_open(struct qk_gate *gate);

#endif
