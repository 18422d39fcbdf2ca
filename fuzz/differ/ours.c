/* SPDX-License-Identifier: MIT */
#include "differ.h"

#include "../whole.h"

static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	static const char name[] = CANARY_NAME, data_name[] = DATA_NAME;
	uint8_t canary[CANARY_BYTES];
	(void)ctx;
	if (strcmp(ref->name, name) != 0 && strcmp(ref->name, data_name) != 0)
		return QCOW_E_NOENT; /* that alone: the library says the rest */
	memset(canary, CANARY_BYTE, sizeof(canary));
	out->format = ref->format;
	if (ref->kind == QCOW_REF_DATA_FILE)
		out->format = "raw";
	enum qcow_status status = qcow_memory_open(0, &out->store, err);
	if (status == QCOW_OK)
		status = qcow_store_write(out->store, canary, sizeof(canary), 0, err);
	return status;
}

static void probe_one(
	struct qcow_image *image, const struct probe *probe, unsigned i, struct reading *out)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = qcow_pread(image, out->bytes[i], probe->len, probe->off, &err);
	FUZZ_CHECK(status != QCOW_E_BUG);
	out->outcome[i] = status == QCOW_OK ? READ : FAILED;
	out->finding[i] = err.finding;
	struct qcow_extent extent;
	if (qcow_map(image, probe->off, probe->len, UINT32_MAX, &extent, NULL) == QCOW_OK)
		out->compressed[i] = (extent.flags & QCOW_EXTENT_COMPRESSED) != 0;
}

void read_ours(const struct subject *subject, struct reading *out)
{
	struct fuzz_input input = {.data = subject->data, .n = subject->n};
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	memset(out, 0, offsetof(struct reading, bytes));
	o.format = "qcow2";
	o.flags = QCOW_OPEN_PROBE;
	o.resolve = resolve;
	fuzz_bounds_begin();
	if (qcow_open(fuzz_store_open(&input), &o, &image, &err) != QCOW_OK) {
		snprintf(out->refusal, sizeof(out->refusal), "%s: %s", qcow_status_name(err.status),
			err.message);
		return;
	}
	out->opened = true;
	for (unsigned i = 0; i < subject->n_probes; i++)
		probe_one(image, &subject->probes[i], i, out);
	qcow_close(image);
	fuzz_bounds_end("our reading", 64 * FUZZ_MIB);
}
