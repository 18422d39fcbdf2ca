/* SPDX-License-Identifier: MIT */
/*
 * Every call of the library that the other examples do not show, on stores in memory: tour
 *
 * It compiles as C99 and as C++. A call that fails ends the program with the library's sentence.
 *
 *     cc tour.c $(pkg-config --cflags --libs qcowkit) -o tour
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <qcowkit/manage.h>
#include <qcowkit/ops.h>
#include <qcowkit/qcowkit.h>

static struct qcow_error err = QCOW_ERROR_INIT;

static void must(enum qcow_status status)
{
	if (status == QCOW_OK)
		return;
	fprintf(stderr, "tour: %s: %s\n", qcow_status_name(status), err.message);
	exit(1);
}

/* What must be so, or the example is wrong. */
static void expect(bool so, const char *what)
{
	if (so)
		return;
	fprintf(stderr, "tour: not so: %s\n", what);
	exit(1);
}

/* ---- stores ---- */

static void tour_stores(void)
{
	char path[] = "/tmp/qcowkit-tour-XXXXXX", out[8], more[4];
	struct iovec iov[2];
	struct qcow_store *memory, *file;
	struct qcow_store_caps caps;
	struct qcow_store_extent extent;
	uint64_t size;
	int fd = mkstemp(path);
	enum qcow_status status;

	expect(fd >= 0, "a temporary file");
	must(qcow_file_open_fd(fd, QCOW_FILE_WRITE, &file, &err)); /* the store owns fd now */
	must(qcow_memory_open(65536, &memory, &err));
	must(qcow_store_set_name(memory, "disk in memory", &err));
	expect(strcmp(qcow_store_name(memory), "disk in memory") == 0, "the name");
	expect(qcow_store_fd(memory) == -1 && qcow_store_fd(file) == fd, "descriptors");

	must(qcow_store_write(memory, "qcowkit", 8, 4096, &err));
	iov[0].iov_base = out;
	iov[0].iov_len = 4;
	iov[1].iov_base = more;
	iov[1].iov_len = 4;
	must(qcow_store_readv(memory, iov, 2, 4096, &err));
	expect(memcmp(out, "qcow", 4) == 0 && memcmp(more, "kit", 4) == 0, "what was written");
	must(qcow_store_writev(file, iov, 2, 0, &err));
	must(qcow_store_read(file, out, 8, 0, &err));
	expect(strcmp(out, "qcowkit") == 0, "what was written from two buffers");
	must(qcow_store_read_padded(file, out, 8, 4, &err)); /* past the end: zeros */
	expect(strcmp(out, "kit") == 0, "the end of it");

	must(qcow_store_truncate(file, 16384, &err));
	must(qcow_store_size(file, &size, &err));
	expect(size == 16384, "the size");
	must(qcow_store_zero(memory, 4096, 4096, 0, &err));
	must(qcow_store_extents(memory, 0, size, &extent, &err));
	expect(extent.off == 0 && extent.len > 0, "an extent");
	qcow_store_caps(memory, &caps);
	expect(caps.writable && caps.can_grow, "a store in memory grows");
	status = qcow_store_punch(memory, 0, 65536, &err);
	expect(status == QCOW_OK || status == QCOW_E_NOTSUP, "punch, or no such thing");
	status = qcow_store_clone(memory, 0, file, 0, 4096, &err);
	expect(status == QCOW_E_NOTSUP, "memory shares no blocks with a file");
	must(qcow_store_flush(file, &err));
	qcow_store_close(file);
	qcow_store_close(memory);
	unlink(path);
	puts("stores");
}

/* ---- making an image ---- */

static struct qcow_store *make_image(const char *backing)
{
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_bitmap_options bitmap = QCOW_BITMAP_OPTIONS_INIT;
	struct qcow_builder *builder;
	struct qcow_store *store;
	char *cluster = (char *)malloc(65536);
	uint64_t host_off, run;

	expect(cluster != NULL, "memory");
	memset(cluster, 'd', 65536);
	create.virtual_size = 1 << 20;
	create.backing_name = backing;
	create.backing_format = backing != NULL ? "qcow2" : NULL;
	must(qcow_create_validate(&create, &err));
	must(qcow_memory_open(0, &store, &err));
	if (backing != NULL) { /* empty */
		must(qcow_create(store, NULL, &create, &err));
		free(cluster);
		return store;
	}
	must(qcow_builder_new(store, NULL, &create, &builder, &err));
	must(qcow_builder_reserve(builder, 0, 65536, &host_off, &run, &err));
	must(qcow_builder_write(builder, 0, host_off, cluster, 65536, &err));
	must(qcow_builder_zero(builder, 131072, 65536, &err));
	bitmap.name = "since-monday";
	must(qcow_builder_bitmap(builder, &bitmap, &err));
	must(qcow_builder_bitmap_dirty(builder, 0, 65536, &err));
	must(qcow_builder_finish(builder, &err));
	free(cluster);
	return store;
}

/* A chain of two images in memory. */
static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *why)
{
	(void)ctx, (void)why;
	if (ref->kind != QCOW_REF_BACKING || strcmp(ref->name, "base") != 0)
		return QCOW_E_NOENT;
	out->store = make_image(NULL);
	return QCOW_OK;
}

/* What is noticed and does not fail. */
static void print_log(void *ctx, const struct qcow_log_entry *entry)
{
	(void)ctx;
	fprintf(stderr, "%s: %s\n", entry->image, entry->text);
}

static struct qcow_image *open_chain(uint32_t flags)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image;

	options.format = "qcow2";
	options.flags = flags;
	options.resolve = resolve;
	options.log = print_log;
	must(qcow_open(make_image("base"), &options, &image, &err));
	return image;
}

/* ---- looking at one ---- */

static bool count_item(void *ctx, const struct qcow_walk_item *item)
{
	unsigned *n = (unsigned *)ctx;

	*n += item->len > 0;
	return true;
}

static bool count_bitmap(void *ctx, uint32_t index, const struct qcow_bitmap *bitmap)
{
	unsigned *n = (unsigned *)ctx;

	*n += strcmp(bitmap->name, "since-monday") == 0 && index == 0;
	return true;
}

static bool count_snapshot(void *ctx, uint32_t index, const struct qcow_snapshot *snapshot)
{
	unsigned *n = (unsigned *)ctx;

	(void)index, (void)snapshot;
	*n += 1;
	return true;
}

static void tour_looking(void)
{
	struct qcow_image *image = open_chain(0), *base = qcow_backing(image);
	struct qcow_check_options check = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	struct qcow_extension extension;
	struct qcow_bitmap bitmap;
	struct qcow_bitmap_reader *reader;
	struct qcow_bitmap_extent extent;
	struct iovec iov;
	char bytes[512];
	unsigned items = 0, bitmaps = 0, snapshots = 0;
	enum qcow_status status;
	uint32_t i, index;

	expect(base != NULL && qcow_backing(base) == NULL, "a chain of two");
	expect(qcow_image_store(image) != NULL && qcow_image_data_store(image) == NULL &&
			qcow_image_header_store(image) == NULL,
		"one store");
	for (i = 0; i < qcow_extension_count(image); i++)
		must(qcow_get_extension(image, i, &extension, &err));
	expect(strcmp(qcow_feature_name(image, 0, 0), "dirty bit") == 0, "a feature's name");
	iov.iov_base = bytes;
	iov.iov_len = sizeof(bytes);
	must(qcow_preadv(image, &iov, 1, 0, &err));
	expect(bytes[0] == 'd', "the base's data");
	status = qcow_pread_nowait(image, bytes, sizeof(bytes), 0, &err);
	expect(status == QCOW_OK || status == QCOW_E_WOULD_BLOCK, "at hand, or not");

	must(qcow_check(image, &check, &result, &err));
	expect(result.corruptions == 0 && result.leaks == 0, "a sound image");
	must(qcow_walk(image, QCOW_WALK_ENTRIES | QCOW_WALK_REFCOUNTS, count_item, &items, &err));
	expect(items > 4, "header, tables, refcounts");

	must(qcow_each_bitmap(base, count_bitmap, &bitmaps, &err));
	must(qcow_each_snapshot(base, count_snapshot, &snapshots, &err));
	expect(bitmaps == 1 && snapshots == 0, "what the lists hold");
	must(qcow_bitmap_find(base, "since-monday", &index, &err));
	must(qcow_get_bitmap(base, index, &bitmap, &err));
	must(qcow_bitmap_open(base, index, &reader, &err));
	must(qcow_bitmap_read(reader, 0, 1 << 20, &extent, &err));
	expect(extent.dirty && extent.len == 65536 && bitmap.granularity_bits == 16, "a dirty run");
	qcow_bitmap_close(reader);
	qcow_close(image);
	puts("looking");
}

/* ---- writing ---- */

static void tour_writing(void)
{
	struct qcow_image *image = open_chain(QCOW_OPEN_WRITE);
	struct iovec iov;
	static char cluster[65536];
	char bytes[4096];

	memset(cluster, 'z', sizeof(cluster));
	memset(bytes, 'w', sizeof(bytes));
	iov.iov_base = bytes;
	iov.iov_len = sizeof(bytes);
	must(qcow_pwrite(image, bytes, sizeof(bytes), 0, 0, &err));
	must(qcow_pwritev(image, &iov, 1, 65536, QCOW_IO_FUA, &err));
	must(qcow_zero(image, 131072, 65536, QCOW_IO_UNMAP, &err));
	must(qcow_discard(image, 65536, 65536, 0, &err));
	must(qcow_write_compressed(image, cluster, sizeof(cluster), 196608, 0, &err));
	must(qcow_flush(image, &err));
	must(qcow_recover(image, &err)); /* nothing failed: nothing to do */
	must(qcow_pread(image, bytes, sizeof(bytes), 65536, &err));
	expect(bytes[0] == 0, "what was discarded");
	must(qcow_pread(image, bytes, sizeof(bytes), 4096, &err));
	expect(bytes[0] == 'd', "what the base holds beside what was written");
	qcow_close(image);
	puts("writing");
}

/* ---- managing ---- */

static void tour_managing(void)
{
	struct qcow_image *image = open_chain(QCOW_OPEN_WRITE);
	struct qcow_resize_options options = QCOW_RESIZE_OPTIONS_INIT;
	struct qcow_amend_options amend = QCOW_AMEND_OPTIONS_INIT;
	struct qcow_key_options keys = QCOW_KEY_OPTIONS_INIT;
	uint64_t size = qcow_size(image);

	must(qcow_resize(image, size + 1000000, NULL, &err));
	expect(qcow_size(image) == size + 1000000, "a longer disk");
	options.shrink = true;
	must(qcow_resize(image, size, &options, &err));
	amend.refcount_bits = 32;
	must(qcow_amend(image, &amend, &err));
	keys.action = QCOW_KEY_ADD;
	expect(qcow_amend_keys(image, &keys, &err) == QCOW_E_NOTSUP,
		"an image without passphrases");
	qcow_close(image);
	puts("managing");
}

/* ---- whole images ---- */

static void print_refusal(void *ctx, const struct qcow_refusal *refusal)
{
	(void)ctx;
	printf("refused: %s\n", refusal->rule);
}

/* A part of the disk, to the start of a raw one. */
static void tour_dd(struct qcow_image *image)
{
	struct qcow_dd_options dd = QCOW_DD_OPTIONS_INIT;
	struct qcow_dd_result done;
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *memory;
	struct qcow_image *raw;

	must(qcow_memory_open(65536, &memory, &err));
	open.format = "raw";
	open.flags = QCOW_OPEN_WRITE;
	must(qcow_open(memory, &open, &raw, &err));
	dd.source_off = 4096;
	dd.len = 32768;
	must(qcow_dd(image, raw, &dd, &done, &err));
	expect(done.bytes_written == 32768, "all of it");
	qcow_close(raw);
}

static void tour_whole_images(void)
{
	struct qcow_image *image = open_chain(0);
	struct qcow_convert_options convert = QCOW_CONVERT_OPTIONS_INIT;
	struct qcow_convert_result done;
	struct qcow_measure_result size;
	struct qcow_vet_options vet = QCOW_VET_OPTIONS_INIT;
	struct qcow_vet_result verdict;
	struct qcow_compare_options compare = QCOW_COMPARE_OPTIONS_INIT;
	struct qcow_compare_result same;
	struct qcow_image *copy;
	struct qcow_store *target;
	FILE *stream;
	uint64_t bytes;

	must(qcow_measure(image, "qcow2", &convert.create, &size, &err));
	must(qcow_memory_open(0, &target, &err));
	convert.sources = &image;
	convert.n_sources = 1;
	must(qcow_convert(target, NULL, &convert, &done, &err));
	must(qcow_store_size(target, &bytes, &err));
	expect(bytes <= size.required && done.bytes_read >= 65536, "as long as measured");
	must(qcow_open(target, NULL, &copy, &err));
	must(qcow_compare(image, copy, &compare, &same, &err));
	expect(same.difference == QCOW_DIFFERENCE_NONE, "the same disk");
	qcow_close(copy); /* and the target with it */

	tour_dd(image);
	stream = tmpfile();
	expect(stream != NULL, "a temporary file");
	must(qcow_convert_to_fd(image, fileno(stream), NULL, &err));
	fclose(stream);
	qcow_close(image);

	vet.on_refusal = print_refusal;
	must(qcow_vet(make_image("base"), &vet, &verdict, &err));
	expect(!verdict.ok && verdict.refusals == 1, "a backing file is refused by default");
	expect(strcmp(qcow_vet_feature_name(QCOW_VET_BACKING), "backing") == 0, "its word");
	qcow_close(verdict.image);
	puts("whole images");
}

/* ---- codecs, keys, words ---- */

static void tour_the_rest(void)
{
	struct qcow_create_options luks = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_codec *codec;
	static char in[65536], packed[65536], out[65536];
	size_t len;
	uint64_t header;

	memset(in, 'c', sizeof(in));
	must(qcow_codec_new(QCOW_COMPRESSION_ZSTD, sizeof(in), -1, &codec, &err));
	must(qcow_codec_compress(codec, in, packed, &len, &err));
	must(qcow_codec_decompress(codec, packed, len, out, &err));
	expect(len > 0 && memcmp(in, out, sizeof(in)) == 0, "there and back");
	qcow_codec_free(codec);

	luks.encryption = QCOW_ENCRYPTION_LUKS;
	must(qcow_luks_header_bytes(&luks, &header, &err));
	expect(header > 4096, "a LUKS header");

	printf("%s: %s: %s\n", qcow_version(), qcow_finding_name(QCOW_FINDING_REFCOUNT_TOO_LOW),
		qcow_finding_text(QCOW_FINDING_REFCOUNT_TOO_LOW));
	expect(qcow_finding_severity(QCOW_FINDING_REFCOUNT_TOO_LOW) == QCOW_SEVERITY_CORRUPTION,
		"its severity");
	expect(strcmp(qcow_status_text(QCOW_OK), "success") == 0, "a status in words");
}

int main(void)
{
	tour_stores();
	tour_looking();
	tour_writing();
	tour_managing();
	tour_whole_images();
	tour_the_rest();
	return 0;
}
