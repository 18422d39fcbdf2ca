/* SPDX-License-Identifier: MIT */
/*
 * vm_state: see vm_state.h. Written as the disk is, and in its order, by an operation that is alone with the image: for
 * others the disk ends where it did. Layers below hold no state, so none is looked at.
 *
 *	a longer L1 table || clusters || entries, refcounts ||
 *
 * Specification: "Snapshots", bytes 32 to 35; "Cluster mapping".
 */
#include "engine/vm_state.h"

#include <inttypes.h>

#include "engine/control.h"
#include "engine/image.h"
#include "engine/locks.h"
#include "engine/publish.h"
#include "engine/rw.h"
#include "engine/write.h"
#include "format/limits.h"

enum qcow_status qk_vm_state_place(const struct qcow_image *image, uint64_t off, uint64_t len,
	uint64_t *out, struct qcow_error *err)
{
	const struct qk_geometry *g = &image->geometry;
	if (image->is_raw || g->data_file)
		return QK_FAIL(err, QCOW_E_NOTSUP, "'%s' can hold no state of a machine",
			qcow_store_name(image->store));
	uint64_t start = qk_geometry_l1_entries(g, image->size) * g->l2_span;
	if (start > INT64_MAX || !qk_in_range(off, len, INT64_MAX - start))
		return QK_FAIL_AT(err, QCOW_E_RANGE, 0, QCOW_NO_OFFSET, off,
			"%" PRIu64 " bytes at %" PRIu64
			" of the machine's state lie beyond all offsets",
			len, off);
	*out = start + off;
	return QCOW_OK;
}

static enum qcow_status reach(struct qcow_image *image, uint64_t end, struct qcow_error *err)
{
	uint64_t n = qk_geometry_l1_entries(&image->geometry, end);
	if (n <= image->l1_entries)
		return QCOW_OK;
	if (n > QK_MAX_L1_BYTES / sizeof(uint64_t))
		return QK_FAIL(err, QCOW_E_LIMIT,
			"the machine's state would need an L1 table of %" PRIu64
			" entries; %" PRIu64 " are the most",
			n, (uint64_t)(QK_MAX_L1_BYTES / sizeof(uint64_t)));
	qk_lock(&image->rw->tables_lock);
	enum qcow_status status = qk_publish_grow_l1(image->rw->publish, n, err);
	qk_unlock(&image->rw->tables_lock);
	return status;
}

/* No bitmap is tracked, and nobody else looks at the size or at what lies below. */
static enum qcow_status write_behind(struct qcow_image *image, const void *buf, size_t len,
	uint64_t guest, struct qcow_error *err)
{
	const struct iovec iov = {(void *)(uintptr_t)buf, len};
	uint64_t cluster_size = image->geometry.cluster_size, size = image->size;
	struct qcow_image *backing = image->backing;
	QK_TRY(reach(image, guest + len, err));
	image->size = qk_div_up(guest + len, cluster_size) * cluster_size;
	image->backing = NULL;
	enum qcow_status status = qk_write(image, &iov, 1, guest, err);
	if (status == QCOW_OK)
		status = qk_publish_flush(image->rw->publish, err);
	image->backing = backing;
	image->size = size;
	return status;
}

enum qcow_status qk_vm_state_write(
	struct qcow_image *image, const void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	uint64_t guest = 0;
	QK_TRY(qk_control_begin(image, err));
	enum qcow_status status = qk_vm_state_place(image, off, len, &guest, err);
	if (status == QCOW_OK)
		status = write_behind(image, buf, len, guest, err);
	return qk_control_end(
		image, status == QCOW_OK ? QK_RELOAD_HEADER : QK_RELOAD_KEEP, status, err);
}
