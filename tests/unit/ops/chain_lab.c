/* SPDX-License-Identifier: MIT */
#include "chain_lab.h"

#include <stdlib.h>

#include "cm.h"

void lab_init(struct lab *lab, uint64_t seed)
{
	*lab = (struct lab){.fault = qkt_fault_new(), .rng = qkt_rng_fixed(seed)};
}

void lab_release(struct lab *lab)
{
	for (unsigned i = 0; i < LAB_FILES; i++)
		if (lab->files[i].name != NULL)
			qkt_model_free(&lab->files[i].bytes);
	qkt_fault_free(lab->fault);
}

struct qcow_store *lab_copy(const struct qkt_model *m)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	assert_ok(qcow_memory_open(m->size, &store, &err), err);
	assert_ok(qcow_store_write(store, m->bytes, m->size, 0, &err), err);
	return store;
}

struct qcow_store *lab_store(struct lab *lab, unsigned i)
{
	return qkt_fault_wrap(lab->fault, lab_copy(&lab->files[i].bytes), i);
}

struct qkt_model lab_take(struct qcow_store *store)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t size = 0;
	assert_ok(qcow_store_size(store, &size, &err), err);
	struct qkt_model m = qkt_model_new((size_t)size);
	assert_ok(qcow_store_read(store, m.bytes, m.size, 0, &err), err);
	return m;
}

struct opening {
	struct lab *lab;
	const struct lab_file *files;
	unsigned writable;
};

static struct qcow_store *store_of(const struct opening *o, unsigned i)
{
	return o->lab != NULL ? lab_store(o->lab, i) : lab_copy(&o->files[i].bytes);
}

static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	const struct opening *o = ctx;
	(void)err;
	for (unsigned i = 0; i < LAB_FILES; i++) {
		if (o->files[i].name == NULL || strcmp(o->files[i].name, ref->name) != 0)
			continue;
		out->store = store_of(o, i);
		out->format = o->files[i].format;
		out->writable = (o->writable >> i & 1) != 0;
		return QCOW_OK;
	}
	return QCOW_E_NOENT;
}

struct qcow_image *lab_open(struct lab *lab, const struct lab_file *files, unsigned i,
	unsigned writable, struct qcow_error *err)
{
	struct opening o = {lab, files, writable};
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	options.format = files[i].format;
	options.resolve = resolve;
	options.resolve_ctx = &o;
	if ((writable >> i & 1) != 0)
		options.flags = QCOW_OPEN_WRITE;
	return qcow_open(store_of(&o, i), &options, &image, err) == QCOW_OK ? image : NULL;
}

/* ---- crashes ---- */

static void copy_files(const struct lab *lab, struct lab_file *out)
{
	for (unsigned i = 0; i < LAB_FILES; i++) {
		out[i] = lab->files[i];
		if (out[i].name == NULL)
			continue;
		out[i].bytes = qkt_model_new(lab->files[i].bytes.size);
		memcpy(out[i].bytes.bytes, lab->files[i].bytes.bytes, out[i].bytes.size);
	}
}

static void apply_some(struct lab *lab, const struct qkt_log_entry *e, struct qkt_model *m)
{
	uint64_t sectors = e->call == QKT_WRITE ? (e->off % 512 + e->len + 511) / 512 : 1;
	for (uint64_t k = 0; k < sectors; k++)
		if (qkt_rng_below(&lab->rng, 2) != 0)
			qkt_log_apply(e, m, k, e->call == QKT_WRITE ? 1 : UINT64_MAX);
}

/* variant 0: all that was issued; 1: what was flushed; others: by chance. */
static void build(struct lab *lab, size_t n, unsigned variant, struct lab_file *files)
{
	uint64_t epochs[LAB_FILES] = {0};
	for (size_t i = 0; i < n; i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(lab->fault, i);
		if (e->call == QKT_FLUSH)
			epochs[e->store_id]++;
	}
	for (size_t i = 0; i < n; i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(lab->fault, i);
		struct qkt_model *m = &files[e->store_id].bytes;
		if (variant == 0 || e->epoch < epochs[e->store_id])
			qkt_log_apply(e, m, 0, UINT64_MAX);
		else if (variant > 1)
			apply_some(lab, e, m);
	}
}

void lab_crash(struct lab *lab, unsigned n_each,
	void (*judge)(void *ctx, const struct lab_file *files), void *ctx)
{
	size_t n = qkt_fault_log_count(lab->fault);
	for (size_t at = 0; at <= n; at++) {
		for (unsigned variant = 0; variant < n_each; variant++) {
			struct lab_file files[LAB_FILES];
			copy_files(lab, files);
			build(lab, at, variant, files);
			judge(ctx, files);
			lab->n_states++;
			for (unsigned i = 0; i < LAB_FILES; i++)
				if (files[i].name != NULL)
					qkt_model_free(&files[i].bytes);
		}
	}
}

struct qcow_image *lab_make(struct lab *lab, unsigned i, const char *name, uint32_t version,
	uint32_t cluster, bool extended, unsigned below, size_t size)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	struct lab_file *f = &lab->files[i];
	f->name = name;
	f->format = cluster == 0 ? "raw" : "qcow2";
	assert_ok(qcow_memory_open(cluster == 0 ? size : 0, &store, &err), err);
	if (cluster != 0) {
		create.version = version;
		create.cluster_size = cluster;
		create.virtual_size = size;
		create.extended_l2 = extended;
		create.backing_name = below < LAB_FILES ? lab->files[below].name : NULL;
		create.backing_format = below < LAB_FILES ? lab->files[below].format : NULL;
		assert_ok(qcow_create(store, NULL, &create, &err), err);
	}
	f->bytes = lab_take(store);
	qcow_store_close(store);
	struct qcow_image *image = lab_open(lab, lab->files, i, 1u << i, &err);
	if (image == NULL)
		fail_msg("%s", err.message);
	return image;
}

void lab_keep(struct lab *lab, unsigned i, struct qcow_image *image)
{
	qkt_model_free(&lab->files[i].bytes);
	lab->files[i].bytes = lab_take(qcow_image_store(image));
}

void lab_expect(const struct lab_file *files, unsigned i, const struct qkt_model *want)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = lab_open(NULL, files, i, 0, &err);
	if (image == NULL)
		fail_msg("%s", err.message);
	assert_int_equal(qcow_size(image), want->size);
	uint8_t *got = malloc(want->size);
	assert_non_null(got);
	assert_ok(qcow_pread(image, got, want->size, 0, &err), err);
	size_t at = qkt_model_differs(want, got, want->size, 0);
	if (at != SIZE_MAX)
		fail_msg("file %s: byte %zu is 0x%02x, not 0x%02x", files[i].name, at, got[at],
			want->bytes[at]);
	free(got);
	struct qcow_info info;
	qcow_get_info(image, &info);
	if (info.version != 0) {
		struct qcow_check_options options = QCOW_CHECK_OPTIONS_INIT;
		struct qcow_check_result result;
		assert_ok(qcow_check(image, &options, &result, &err), err);
		assert_int_equal(result.corruptions, 0);
	}
	qcow_close(image);
}
