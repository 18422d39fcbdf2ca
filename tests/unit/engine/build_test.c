/* SPDX-License-Identifier: MIT */
/*
 * Images with content: what the builder was told is what QEMU reads, and both QEMUs find the image clean, for
 * random content over all kinds of images. Then stores that fail, and stores that keep old bytes.
 */
#include <stdlib.h>
#include <unistd.h>

#include <qcowkit/qcowkit.h>

#include "build_peer.h"
#include "cm.h"
#include "engine/build.h"
#include "rng.h"

struct job {
	struct qcow_create_options o;
	unsigned compressed_percent;
	struct qcow_store *store, *data;
	struct qcow_builder *builder;
	struct qcow_codec *codec;
	uint8_t *disk; /* the oracle: what the guest must see */
	uint8_t *backing;
	uint8_t *scratch;
};

static uint64_t at_most(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void job_init(struct job *j, struct qkt_rng *rng)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t size = j->o.virtual_size;

	j->disk = calloc(1, size + j->o.cluster_size);
	j->scratch = calloc(2, j->o.cluster_size);
	assert_non_null(j->disk);
	assert_non_null(j->scratch);
	if (j->backing != NULL)
		memcpy(j->disk, j->backing, size);
	assert_ok(qcow_codec_new(j->o.compression, j->o.cluster_size, 1, &j->codec, &err), err);
	assert_ok(qcow_builder_new(j->store, j->data, &j->o, &j->builder, &err), err);
	(void)rng;
}

static void job_release(struct job *j)
{
	qcow_codec_free(j->codec);
	free(j->disk);
	free(j->scratch);
}

/* Half noise, half repeated bytes: compresses by half, and differs everywhere. */
static void fill(struct qkt_rng *rng, uint8_t *p, size_t n)
{
	qkt_rng_fill(rng, p, n / 2);
	memset(p + n / 2, (int)(1 + qkt_rng_below(rng, 255)), n - n / 2);
}

static enum qcow_status put_plain(struct job *j, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct qcow_store *to = j->data != NULL ? j->data : j->store;

	while (len != 0) {
		uint64_t host = 0;
		uint64_t run = 0;
		enum qcow_status st = qcow_builder_reserve(j->builder, off, len, &host, &run, err);
		if (st == QCOW_OK)
			st = qcow_store_write(to, j->disk + off, run, host, err);
		if (st != QCOW_OK)
			return st;
		off += run;
		len -= run;
	}
	return QCOW_OK;
}

/* j->disk is zero behind the end, as a compressed last cluster must be. */
static enum qcow_status put_compressed(
	struct job *j, uint64_t off, uint64_t len, struct qcow_error *err)
{
	for (uint64_t at = off; at < off + len; at += j->o.cluster_size) {
		size_t n = 0;
		enum qcow_status st = qcow_codec_compress(
			j->codec, j->disk + at, j->scratch, &n, err);
		if (st == QCOW_OK && n != 0)
			st = qcow_builder_compressed(j->builder, at, j->scratch, n, err);
		else if (st == QCOW_OK)
			st = put_plain(
				j, at, at_most(j->o.cluster_size, j->o.virtual_size - at), err);
		if (st != QCOW_OK)
			return st;
	}
	return QCOW_OK;
}

static enum qcow_status put_run(
	struct job *j, struct qkt_rng *rng, uint64_t off, uint64_t len, struct qcow_error *err)
{
	switch (qkt_rng_below(rng, 4)) {
	case 0:
		return QCOW_OK;
	case 1:
		memset(j->disk + off, 0, len);
		return qcow_builder_zero(j->builder, off, len, err);
	default:
		fill(rng, j->disk + off, len);
		if (j->data == NULL && qkt_rng_below(rng, 100) < j->compressed_percent)
			return put_compressed(j, off, len, err);
		return put_plain(j, off, len, err);
	}
}

/* Random runs to the end of the disk, then finish. */
static enum qcow_status build(struct job *j, struct qkt_rng *rng, struct qcow_error *err)
{
	uint64_t size = j->o.virtual_size;

	for (uint64_t off = 0; off < size;) {
		uint64_t len = (1 + qkt_rng_below(rng, 1 + qkt_rng_below(rng, 40))) *
			       j->o.cluster_size;
		len = at_most(len, size - off);
		enum qcow_status st = put_run(j, rng, off, len, err);
		if (st != QCOW_OK) {
			qcow_builder_abandon(j->builder);
			return st;
		}
		off += len;
	}
	return qcow_builder_finish(j->builder, err);
}

static void write_file(const char *path, const void *bytes, size_t n)
{
	FILE *f = fopen(path, "wb");

	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, n, f), n);
	assert_int_equal(fclose(f), 0);
}

static void open_new(const char *path, struct qcow_store **out)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	(void)unlink(path);
	assert_ok(qcow_file_open(path, QCOW_FILE_WRITE | QCOW_FILE_CREATE, out, &err), err);
}

static const char *describe(const struct job *j, char *out, size_t room)
{
	(void)snprintf(out, room,
		"v%u cluster %u bits %u %s%s%s%s prealloc %d compressed %u%% size %llu",
		j->o.version, (unsigned)j->o.cluster_size, j->o.refcount_bits,
		j->o.compression == QCOW_COMPRESSION_ZSTD ? "zstd" : "zlib",
		j->o.extended_l2 ? " extl2" : "", j->backing != NULL ? " backing" : "",
		j->data == NULL	     ? ""
		: j->o.data_file_raw ? " raw data file"
				     : " data file",
		(int)j->o.preallocation, j->compressed_percent,
		(unsigned long long)j->o.virtual_size);
	return out;
}

static void build_and_judge(struct job *j, struct qkt_rng *rng)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	char what[200];

	open_new("image", &j->store);
	if (j->o.data_file_name != NULL)
		open_new(j->o.data_file_name, &j->data);
	job_init(j, rng);
	(void)describe(j, what, sizeof(what));
	if (build(j, rng, &err) != QCOW_OK)
		fail_msg("%s: %s", what, err.message);
	qcow_store_close(j->store);
	qcow_store_close(j->data);
	peer_check_clean("image", what);
	write_file("disk", j->disk, j->o.virtual_size);
	if (!peer_run("%s compare -f qcow2 -F raw image disk", peer_newest()))
		fail_msg("%s: QEMU reads something else", what);
	if (j->o.data_file_raw && !peer_run("cmp disk %s", j->o.data_file_name))
		fail_msg("%s: the data file is not the disk", what);
	job_release(j);
}

/* Combinations at random that qcow_create_validate allows. */
static void choose(struct job *j, struct qkt_rng *rng)
{
	struct qcow_create_options *o = &j->o;

	do {
		*j = (struct job){.o = QCOW_CREATE_OPTIONS_INIT};
		o->cluster_size = 512ULL << qkt_rng_below(rng, 13);
		o->version = qkt_rng_below(rng, 4) == 0 ? 2 : 3;
		o->refcount_bits = o->version == 2 ? 16 : 1U << qkt_rng_below(rng, 7);
		o->extended_l2 = qkt_rng_below(rng, 3) == 0;
		o->compression = qkt_rng_below(rng, 2) == 0 ? QCOW_COMPRESSION_ZLIB
							    : QCOW_COMPRESSION_ZSTD;
		if (qkt_rng_below(rng, 3) == 0) {
			o->backing_name = "backing";
			o->backing_format = "raw";
		} else if (qkt_rng_below(rng, 3) == 0) {
			o->data_file_name = "data";
			o->data_file_raw = qkt_rng_below(rng, 2) == 0;
		}
		if (qkt_rng_below(rng, 4) == 0)
			o->preallocation = (enum qcow_preallocation)qkt_rng_below(rng, 4);
		j->compressed_percent = (unsigned)qkt_rng_below(rng, 3) * 50;
		o->virtual_size = 512 * (1 + qkt_rng_below(rng,
						     100 * at_most(o->cluster_size, 65536) / 512));
	} while (qcow_create_validate(o, NULL) != QCOW_OK);
}

static void random_content_is_what_qemu_reads(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(20240607);

	for (int round = 0; round < 60; round++) {
		struct job j;
		uint8_t *backing = NULL;
		choose(&j, &rng);
		if (j.o.backing_name != NULL) {
			backing = malloc(j.o.virtual_size);
			assert_non_null(backing);
			qkt_rng_fill(&rng, backing, j.o.virtual_size);
			write_file("backing", backing, j.o.virtual_size);
			j.backing = backing;
		}
		build_and_judge(&j, &rng);
		free(backing);
	}
}

static void packed_extents_respect_every_refcount_width(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(7);

	for (uint32_t bits = 1; bits <= 64; bits *= 2) {
		for (uint64_t cluster = 512; cluster <= 65536; cluster *= 128) {
			struct job j = {.o = QCOW_CREATE_OPTIONS_INIT, .compressed_percent = 100};
			j.o.refcount_bits = bits;
			j.o.cluster_size = cluster;
			j.o.virtual_size = 300 * cluster;
			build_and_judge(&j, &rng);
		}
	}
}

static void compressed_clusters_are_read_by_qemu_at_every_size(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(8);

	for (unsigned zstd = 0; zstd < 2; zstd++) {
		for (uint64_t cluster = 512; cluster <= 2U << 20; cluster *= 2) {
			struct job j = {.o = QCOW_CREATE_OPTIONS_INIT, .compressed_percent = 100};
			j.o.compression = zstd == 1 ? QCOW_COMPRESSION_ZSTD : QCOW_COMPRESSION_ZLIB;
			j.o.cluster_size = cluster;
			j.o.virtual_size = 7 * cluster + 512;
			build_and_judge(&j, &rng);
		}
	}
}

/* The other way: what QEMU compresses, our codecs decode. */
static void read_and_compare(const char *path, const uint8_t *want, size_t n)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	uint8_t *got = malloc(n);

	assert_non_null(got);
	assert_ok(qcow_file_open(path, 0, &store, &err), err);
	assert_ok(qcow_open(store, &options, &image, &err), err);
	assert_int_equal(qcow_size(image), n);
	assert_ok(qcow_pread(image, got, n, 0, &err), err);
	assert_memory_equal(got, want, n);
	qcow_close(image);
	free(got);
}

static void clusters_compressed_by_qemu_are_read_at_every_size(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(12);
	size_t n = (5U << 20) + 512;
	uint8_t *disk = malloc(n);

	assert_non_null(disk);
	for (size_t at = 0; at < n; at += 8192)
		fill(&rng, disk + at, at_most(8192, n - at));
	write_file("disk", disk, n);
	for (unsigned zstd = 0; zstd < 2; zstd++) {
		for (unsigned cluster = 512; cluster <= 2U << 20; cluster *= 2) {
			assert_true(peer_run("%s convert -c -f raw -O qcow2 -o "
					     "cluster_size=%u,compression_type=%s "
					     "disk theirs",
				peer_newest(), cluster, zstd == 1 ? "zstd" : "zlib"));
			read_and_compare("theirs", disk, n);
		}
	}
	free(disk);
}

/* 512-byte clusters: the refcount table outgrows its cluster at 8 MiB. */
static void a_refcount_table_that_grows_leaves_no_leak(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(9);

	for (uint32_t bits = 16; bits <= 64; bits *= 2) {
		struct job j = {.o = QCOW_CREATE_OPTIONS_INIT};
		j.o.cluster_size = 512;
		j.o.refcount_bits = bits;
		j.o.virtual_size = 24U << 20;
		build_and_judge(&j, &rng);
	}
}

static enum qcow_status forget(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	(void)ctx, (void)iov, (void)n_iov, (void)off, (void)err;
	return QCOW_OK;
}

static enum qcow_status forget_flush(void *ctx, struct qcow_error *err)
{
	(void)ctx, (void)err;
	return QCOW_OK;
}

static enum qcow_status forget_size(void *ctx, uint64_t *size, struct qcow_error *err)
{
	(void)ctx, (void)err;
	*size = 0;
	return QCOW_OK;
}

static enum qcow_status forget_truncate(void *ctx, uint64_t size, struct qcow_error *err)
{
	(void)ctx, (void)size, (void)err;
	return QCOW_OK;
}

static void forget_close(void *ctx)
{
	(void)ctx;
}

/* 64 refcounts a block: a table of thousands of clusters needs many blocks, which need blocks. The first
 * number of blocks filled the table to its last entry by an estimate that counted the first ones alone. */
static void a_refcount_table_has_room_for_the_blocks_that_count_it(void **state)
{
	static const struct qcow_store_ops ops = {.abi = QCOW_STORE_ABI,
		.name = "nowhere",
		.preadv = forget,
		.pwritev = forget,
		.flush = forget_flush,
		.size = forget_size,
		.truncate = forget_truncate,
		.close = forget_close};
	static const uint64_t n_blocks[] = {262079, 262080, 266110, 266174, 270141};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	struct qk_geometry g;
	(void)state;

	assert_ok(qcow_store_new(&ops, &err, &store, &err), err);
	qk_geometry_init(&g, 3, 9, 6, false);
	for (size_t i = 0; i < sizeof(n_blocks) / sizeof(n_blocks[0]); i++) {
		struct qk_build_refs refs;
		qk_hoff at = {0};
		uint32_t clusters = 0;
		assert_ok(qk_build_refs_init(&refs, store, &g, &err), err);
		/* so many clusters that all entries of the blocks are in use */
		uint64_t n = n_blocks[i] * g.rb_entries - refs.next - (n_blocks[i] - refs.n_blocks);
		assert_ok(qk_build_refs_take(&refs, n, &at, &err), err);
		assert_int_equal(refs.n_blocks, n_blocks[i]);
		assert_int_equal(refs.next, refs.n_blocks * g.rb_entries);
		assert_ok(qk_build_refs_finish(&refs, &at, &clusters, &err), err);
		assert_true(refs.n_blocks <= clusters * (g.cluster_size / 8));
		qk_build_refs_release(&refs);
	}
	qcow_store_close(store);
}

/* ---- a store of fixed size that is full of old bytes, and fails where it is told to ---- */

struct device {
	uint8_t *bytes;
	uint64_t size;
	bool can_grow;
	unsigned writes;
	unsigned fail_at; /* the number of the write that finds no space; 0 = none */
};

static enum qcow_status device_read(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct device *d = ctx;
	(void)err;

	for (int i = 0; i < n_iov; i++) {
		memcpy(iov[i].iov_base, d->bytes + off, iov[i].iov_len);
		off += iov[i].iov_len;
	}
	return QCOW_OK;
}

static enum qcow_status device_write(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct device *d = ctx;

	if (++d->writes == d->fail_at) {
		if (err != NULL)
			err->status = QCOW_E_NOSPC;
		return QCOW_E_NOSPC;
	}
	for (int i = 0; i < n_iov; i++) {
		assert_true(off + iov[i].iov_len <= d->size);
		memcpy(d->bytes + off, iov[i].iov_base, iov[i].iov_len);
		off += iov[i].iov_len;
	}
	return QCOW_OK;
}

static enum qcow_status device_flush(void *ctx, struct qcow_error *err)
{
	(void)ctx;
	(void)err;
	return QCOW_OK;
}

static enum qcow_status device_size(void *ctx, uint64_t *size, struct qcow_error *err)
{
	(void)err;
	*size = ((struct device *)ctx)->size;
	return QCOW_OK;
}

static enum qcow_status device_truncate(void *ctx, uint64_t size, struct qcow_error *err)
{
	(void)ctx;
	(void)size;
	(void)err;
	fail_msg("a store that cannot grow is truncated");
	return QCOW_E_NOTSUP;
}

static void device_caps(void *ctx, struct qcow_store_caps *out)
{
	(void)ctx;
	*out = (struct qcow_store_caps){
		.request_align = 1, .physical_block = 512, .writable = true};
}

static void device_close(void *ctx)
{
	(void)ctx;
}

static const struct qcow_store_ops device_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "device",
	.preadv = device_read,
	.pwritev = device_write,
	.flush = device_flush,
	.size = device_size,
	.truncate = device_truncate,
	.caps = device_caps,
	.close = device_close,
};

static void device_open(struct device *d, struct qcow_store **out)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	d->bytes = malloc(d->size);
	assert_non_null(d->bytes);
	memset(d->bytes, 0xa5, d->size);
	assert_ok(qcow_store_new(&device_ops, d, out, &err), err);
}

static void old_bytes_of_a_device_never_show(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(10);

	for (unsigned round = 0; round < 24; round++) {
		struct device d = {.size = 24U << 20};
		struct job j = {.o = QCOW_CREATE_OPTIONS_INIT, .compressed_percent = 30};
		struct qcow_error err = QCOW_ERROR_INIT;
		uint8_t *backing = NULL;
		char what[200];
		device_open(&d, &j.store);
		j.o.cluster_size = 512ULL << (round % 12);
		j.o.virtual_size = 4000256;
		j.o.preallocation = (enum qcow_preallocation)(round % 4);
		if (round >= 16) { /* version 2 over a backing file stores its zeros */
			j.o.version = 2;
			j.o.preallocation = QCOW_PREALLOC_OFF;
			j.o.backing_name = "backing";
			j.o.backing_format = "raw";
			backing = malloc(j.o.virtual_size);
			assert_non_null(backing);
			qkt_rng_fill(&rng, backing, j.o.virtual_size);
			write_file("backing", backing, j.o.virtual_size);
			j.backing = backing;
		}
		job_init(&j, &rng);
		assert_ok(build(&j, &rng, &err), err);
		write_file("image", d.bytes, d.size);
		write_file("disk", j.disk, j.o.virtual_size);
		peer_check_clean("image", describe(&j, what, sizeof(what)));
		assert_true(peer_run("%s compare -f qcow2 -F raw image disk", peer_newest()));
		/* what lies behind the end of the disk shows when it grows */
		assert_true(peer_run("%s resize -q -f qcow2 image +3M && truncate -s +3M disk && "
				     "%s compare -f qcow2 -F raw image disk",
			peer_newest(), peer_newest()));
		qcow_store_close(j.store);
		job_release(&j);
		free(d.bytes);
		free(backing);
	}
}

/* Every write of a small image fails once: whatever happens, the file has no header. */
static void without_space_there_is_no_image(void **state)
{
	(void)state;
	bool finished = false;
	unsigned n_failed = 0;

	for (unsigned at = 1; !finished; at++) {
		struct device d = {.size = 4U << 20, .fail_at = at};
		struct job j = {.o = QCOW_CREATE_OPTIONS_INIT, .compressed_percent = 50};
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qkt_rng rng = qkt_rng_fixed(11);
		static const uint8_t zeros[4];
		device_open(&d, &j.store);
		j.o.cluster_size = 4096;
		j.o.virtual_size = 1000448;
		j.disk = calloc(1, j.o.virtual_size + 4096);
		j.scratch = calloc(2, 4096);
		assert_ok(qcow_codec_new(j.o.compression, 4096, 1, &j.codec, &err), err);
		enum qcow_status st = qcow_builder_new(j.store, NULL, &j.o, &j.builder, &err);
		if (st == QCOW_OK)
			st = build(&j, &rng, &err);
		finished = d.writes < at;
		assert_int_equal(st, finished ? QCOW_OK : QCOW_E_NOSPC);
		if (!finished && at > 1) /* the first write is what removes the old header */
			assert_memory_equal(d.bytes, zeros, 4);
		n_failed += !finished;
		qcow_store_close(j.store);
		job_release(&j);
		free(d.bytes);
	}
	assert_true(n_failed > 20);
}

static void nothing_can_open_the_file_before_the_finish(void **state)
{
	(void)state;
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	struct qcow_builder *b = NULL;
	static const char old[4096] = "QFI\xfb old image";
	uint8_t head[512];
	uint64_t host = 0;
	uint64_t run = 0;

	assert_ok(qcow_memory_open(0, &store, &err), err);
	assert_ok(qcow_store_write(store, old, sizeof(old), 0, &err), err);
	o.virtual_size = 1U << 30;
	assert_ok(qcow_builder_new(store, NULL, &o, &b, &err), err);
	assert_ok(qcow_builder_reserve(b, 0, 1U << 20, &host, &run, &err), err);
	assert_int_equal(host, 0x50000); /* after header, refcounts, L1 and L2: qemu-img's offset */
	assert_int_equal(run, 1U << 20);
	assert_ok(qcow_store_write(store, old, sizeof(old), host, &err), err);
	assert_ok(qcow_store_read(store, head, sizeof(head), 0, &err), err);
	for (size_t i = 0; i < sizeof(head); i++)
		assert_int_equal(head[i], 0);
	qcow_builder_abandon(b);
	assert_ok(qcow_store_read(store, head, sizeof(head), 0, &err), err);
	assert_int_equal(head[0], 0);
	qcow_store_close(store);
}

static void calls_out_of_order_are_refused_and_spoil_the_image(void **state)
{
	(void)state;
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	struct qcow_builder *b = NULL;
	uint64_t host = 0;
	uint64_t run = 0;

	assert_ok(qcow_memory_open(0, &store, &err), err);
	o.virtual_size = (1U << 20) + 100;
	assert_ok(qcow_builder_new(store, NULL, &o, &b, &err), err);
	assert_ok(qcow_builder_reserve(b, 65536, 131072, &host, &run, &err), err);
	assert_status(qcow_builder_reserve(b, 131072, 65536, &host, &run, &err), QCOW_E_INVAL, err);
	assert_says(err, "come after the clusters up to 196608");
	assert_status(qcow_builder_zero(b, 1U << 20, 101, &err), QCOW_E_RANGE, err);
	assert_status(qcow_builder_zero(b, 196608 + 512, 65536, &err), QCOW_E_INVAL, err);
	assert_status(qcow_builder_zero(b, 196608, 512, &err), QCOW_E_INVAL, err);
	assert_status(qcow_builder_zero(b, 196608, 0, &err), QCOW_E_RANGE, err);
	assert_status(qcow_builder_compressed(b, 196608, &o, 65536, &err), QCOW_E_INVAL, err);
	assert_status(qcow_builder_compressed(b, 196608, &o, 0, &err), QCOW_E_INVAL, err);
	assert_status(qcow_builder_finish(b, &err), QCOW_E_INVAL, err);
	assert_says(err, "an earlier call failed");
	qcow_store_close(store);
}

int main(void)
{
	const struct CMUnitTest alone[] = {
		cmocka_unit_test(nothing_can_open_the_file_before_the_finish),
		cmocka_unit_test(calls_out_of_order_are_refused_and_spoil_the_image),
		cmocka_unit_test(without_space_there_is_no_image),
		cmocka_unit_test(a_refcount_table_has_room_for_the_blocks_that_count_it),
	};
	const struct CMUnitTest judged[] = {
		cmocka_unit_test(random_content_is_what_qemu_reads),
		cmocka_unit_test(packed_extents_respect_every_refcount_width),
		cmocka_unit_test(compressed_clusters_are_read_by_qemu_at_every_size),
		cmocka_unit_test(clusters_compressed_by_qemu_are_read_at_every_size),
		cmocka_unit_test(a_refcount_table_that_grows_leaves_no_leak),
		cmocka_unit_test(old_bytes_of_a_device_never_show),
	};
	int failed = cmocka_run_group_tests(alone, NULL, NULL);
	if (failed == 0)
		failed = cmocka_run_group_tests(judged, peer_enter, peer_leave);
	return peer_verdict(failed);
}
