/* SPDX-License-Identifier: MIT */
/*
 * vm_state: the state of a virtual machine lies behind the disk, at the first guest offset that no L1 entry of the disk
 * covers. The active L1 table names it as it names the disk, so that a snapshot takes it along.
 */
#ifndef QK_ENGINE_VM_STATE_H
#define QK_ENGINE_VM_STATE_H

#include <qcowkit/qcowkit.h>

#include "base/err.h"

/* The guest offset of byte `off` of the state, of `len` bytes. QCOW_E_NOTSUP, QCOW_E_RANGE. */
enum qcow_status qk_vm_state_place(const struct qcow_image *image, uint64_t off, uint64_t len,
	uint64_t *out, struct qcow_error *err) QK_MUST_USE;

/* qcow_write_vm_state. Passes the gate itself. len != 0. */
enum qcow_status qk_vm_state_write(struct qcow_image *image, const void *buf, size_t len,
	uint64_t off, struct qcow_error *err) QK_MUST_USE;

#endif
