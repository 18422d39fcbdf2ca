/* SPDX-License-Identifier: MIT */
/*
 * beside: an image that is written under the order checker, and a disk as an array of bytes beside it. What a step does, and
 * how often, each test says itself.
 */
#ifndef QKT_ENGINE_BESIDE_H
#define QKT_ENGINE_BESIDE_H

#include "qemu.h"

#include "order.h"

#define MAX_LEN 300000U /* of one step */

struct bench {
	struct qkt_order *order; /* NULL where nothing is judged */
	struct qkt_fault *fault;
	struct qcow_image *image;
};

struct bench_options {
	uint64_t stage_bytes;
	const char *passphrase; /* of every layer, or NULL */
	bool threads; /* several will write */
	bool unjudged; /* it is no qcow2 file, or nothing of it shall be */
};

/* Plain names in the directory; a data file is guarded too. */
static inline enum qcow_status resolve_guarded(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	struct bench *b = ctx;
	bool is_data = ref->kind == QCOW_REF_DATA_FILE && ref->depth == 0;
	enum qcow_status status = qcow_file_open(
		in_dir(ref->name), is_data ? QCOW_FILE_WRITE : 0, &out->store, err);
	if (status == QCOW_OK && is_data)
		out->store = qkt_guard_data(b->fault, b->order, out->store, 1);
	return status;
}

static inline enum qcow_status tell_passphrase(void *ctx, const struct qcow_secret_request *request,
	struct qcow_secret *out, struct qcow_error *err)
{
	(void)request;
	(void)err;
	*out = (struct qcow_secret){ctx, strlen(ctx)};
	return QCOW_OK;
}

/* The file `img`. */
static inline struct bench open_bench(const struct bench_options *options)
{
	const struct qkt_order_options order = {.threads = options->threads};
	struct bench b = {.fault = qkt_fault_new()};
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *base = NULL;
	o.flags = QCOW_OPEN_WRITE;
	o.resolve = resolve_guarded;
	o.resolve_ctx = &b;
	o.stage_bytes = options->stage_bytes;
	o.get_secret = options->passphrase != NULL ? tell_passphrase : NULL;
	o.secret_ctx = (void *)(uintptr_t)options->passphrase;
	if (qcow_file_open(in_dir("img"), QCOW_FILE_WRITE, &base, &err) != QCOW_OK)
		fail_msg("%s", err.message);
	if (options->unjudged) {
		base = qkt_fault_wrap(b.fault, base, 0);
	} else {
		b.order = qkt_order_new(&order);
		base = qkt_guard(b.fault, b.order, base, 0);
	}
	if (qcow_open(base, &o, &b.image, &err) != QCOW_OK)
		fail_msg("%s", err.message);
	return b;
}

static inline void close_bench(struct bench *b)
{
	qcow_close(b->image);
	if (b->order != NULL)
		qkt_order_free(b->order);
	qkt_fault_free(b->fault);
}

struct disk {
	uint8_t *bytes, *buf;
	uint64_t size, cluster;
	bool discards; /* read as zeros */
};

/* What the image holds now. */
static inline struct disk disk_of(struct qcow_image *image, uint64_t size)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_info info;
	struct disk d = {.size = size};
	qcow_get_info(image, &info);
	d.cluster = info.cluster_size;
	d.bytes = calloc(1, size + MAX_LEN);
	d.buf = malloc(MAX_LEN + (4 << 20));
	assert_non_null(d.bytes);
	assert_non_null(d.buf);
	assert_int_equal(qcow_pread(image, d.bytes, (size_t)size, 0, &err), QCOW_OK);
	return d;
}

static inline void disk_free(struct disk *d)
{
	free(d->bytes);
	free(d->buf);
}

/* Whole clusters read as zeros afterwards, and a partial one at the disk's end. */
static inline void disk_discard(
	struct qcow_image *image, struct disk *d, uint64_t off, uint64_t len, unsigned flags)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t first = (off + d->cluster - 1) / d->cluster * d->cluster;
	uint64_t end = off + len == qcow_size(image) ? d->size
						     : (off + len) / d->cluster * d->cluster;
	if (d->discards && first < end)
		memset(d->bytes + first, 0, (size_t)(end - first));
	assert_int_equal(qcow_discard(image, off, len, flags, &err), QCOW_OK);
}

static inline void disk_zero(
	struct qcow_image *image, struct disk *d, uint64_t off, uint64_t len, unsigned flags)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	memset(d->bytes + off, 0, (size_t)len);
	assert_int_equal(qcow_zero(image, off, len, flags, &err), QCOW_OK);
}

/* The array's range, in two pieces. */
static inline void disk_write(
	struct qcow_image *image, struct disk *d, uint64_t off, uint64_t len, unsigned flags)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t third = (size_t)(len / 3);
	const struct iovec iov[2] = {
		{d->bytes + off, third}, {d->bytes + off + third, (size_t)len - third}};
	assert_int_equal(qcow_pwritev(image, iov, 2, off, flags, &err), QCOW_OK);
}

static inline void disk_read(struct qcow_image *image, struct disk *d, uint64_t off, uint64_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_pread(image, d->buf, (size_t)len, off, &err) != QCOW_OK)
		fail_msg("%s", err.message);
	assert_memory_equal(d->buf, d->bytes + off, (size_t)len);
}

/* The file `truth`, for cmp. */
static inline void write_truth(const void *bytes, uint64_t size)
{
	FILE *f = fopen(in_dir("truth"), "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, (size_t)size, f), size);
	fclose(f);
}

/* `img` is clean, and its disk is the bytes. */
static inline void judge_by_qemu(const void *bytes, uint64_t size, const char *what)
{
	write_truth(bytes, size);
	sh("qemu-img check img || { echo '%s'; exit 1; }", what);
	sh("qemu-img convert -O raw img got && head -c %llu got | cmp - truth",
		(unsigned long long)size);
}

/* QK_CONFIG names the only one to run. */
static inline bool is_wanted_config(const char *name)
{
	const char *only = getenv("QK_CONFIG");
	if (only != NULL && strcmp(only, name) != 0)
		return false;
	print_message("%s\n", name);
	return true;
}

#endif
