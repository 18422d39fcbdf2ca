/* SPDX-License-Identifier: MIT */
/*
 * Reads of images made by qemu-img and qemu-io, compared with `qemu-img convert -O raw` of the same
 * image; and the map of each, which must cover the disk and agree with what is read and with
 * `qemu-img map`.
 */
#include "qemu.h"

/* ---- comparing an open image with the truth ---- */

static void check_reads(struct qcow_image *image, const uint8_t *truth, size_t n, const char *what)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t seed = 0x9e3779b97f4a7c15;
	uint8_t *buf = malloc(n + 1);
	assert_int_equal(qcow_size(image), n);
	if (qcow_pread(image, buf, n, 0, &err) != QCOW_OK)
		fail_msg("%s: %s", what, err.message);
	for (size_t i = 0; i < n; i++)
		if (buf[i] != truth[i])
			fail_msg("%s: whole read differs at %zu: %02x, not %02x", what, i, buf[i],
				truth[i]);
	for (int i = 0; i < 400; i++) {
		size_t off = next_random(&seed) % n;
		size_t most = i % 4 == 0 ? n : i % 4 == 1 ? 512 : 70000;
		size_t len = next_random(&seed) % (most + 1);
		len = len > n - off ? n - off : len;
		buf[len] = 0x5a;
		if (qcow_pread(image, buf, len, off, &err) != QCOW_OK)
			fail_msg("%s: %s", what, err.message);
		if (memcmp(buf, truth + off, len) != 0)
			fail_msg("%s: read of %zu at %zu differs", what, len, off);
		if (buf[len] != 0x5a)
			fail_msg("%s: read of %zu at %zu writes past the end", what, len, off);
	}
	assert_int_equal(qcow_pread(image, buf, 1, n, &err), QCOW_E_RANGE);
	assert_int_equal(qcow_pread(image, buf, 2, n - 1, &err), QCOW_E_RANGE);
	assert_int_equal(qcow_pread(image, buf, 0, n, &err), QCOW_OK);
	free(buf);
}

static bool is_zero(const uint8_t *p, size_t n)
{
	return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

/* Plain extents hold the truth at the offset they name, zero extents are zeros. */
static void check_extent(const struct qcow_extent *e, const uint8_t *truth, const char *what)
{
	if ((e->flags & QCOW_EXTENT_ZERO) != 0 && !is_zero(truth + e->off, e->len))
		fail_msg("%s: extent at %llu is not zeros", what, (unsigned long long)e->off);
	if ((e->flags & QCOW_EXTENT_DATA) == 0 || (e->flags & QCOW_EXTENT_OFFSET) == 0)
		return;
	struct qcow_store *store = qcow_image_data_store(e->layer);
	store = store != NULL ? store : qcow_image_store(e->layer);
	uint8_t *host = malloc(e->len);
	assert_int_equal(qcow_store_read_padded(store, host, e->len, e->host_off, NULL), QCOW_OK);
	if (memcmp(host, truth + e->off, e->len) != 0)
		fail_msg("%s: extent at %llu is not what its host offset holds", what,
			(unsigned long long)e->off);
	free(host);
}

/*
 * Both maps as text of one form, an extent a line. QEMU answers `zero` for a hole of the host's file inside
 * a plain cluster only where it takes the image for preallocated; we always do. So `zero` of stored data
 * is left out here, and check_extent judges ours by the bytes.
 */
struct text {
	char *p;
	size_t n, room;
	struct qcow_extent have;
};

static bool is_joined(const struct qcow_extent *a, const struct qcow_extent *b)
{
	return a->flags == b->flags && a->depth == b->depth &&
	       ((a->flags & QCOW_EXTENT_OFFSET) == 0 || a->host_off + a->len == b->host_off);
}

static void flush_text(struct text *t)
{
	const struct qcow_extent *e = &t->have;
	if (e->len == 0)
		return;
	t->n += (size_t)snprintf(t->p + t->n, t->room - t->n, "%llu +%llu depth %u%s%s%s",
		(unsigned long long)e->off, (unsigned long long)e->len, e->depth,
		(e->flags & QCOW_EXTENT_PRESENT) != 0 ? " present" : "",
		(e->flags & QCOW_EXTENT_ZERO) != 0 ? " zero" : "",
		(e->flags & QCOW_EXTENT_DATA) != 0 ? " data" : "");
	if ((e->flags & QCOW_EXTENT_OFFSET) != 0)
		t->n += (size_t)snprintf(
			t->p + t->n, t->room - t->n, " at %llu", (unsigned long long)e->host_off);
	t->n += (size_t)snprintf(t->p + t->n, t->room - t->n, "\n");
	assert_true(t->n + 200 < t->room);
}

static void put_extent(struct text *t, struct qcow_extent e)
{
	e.flags &= ~(uint32_t)QCOW_EXTENT_COMPRESSED;
	if ((e.flags & QCOW_EXTENT_DATA) != 0)
		e.flags &= ~(uint32_t)QCOW_EXTENT_ZERO;
	if (t->have.len != 0 && is_joined(&t->have, &e)) {
		t->have.len += e.len;
		return;
	}
	flush_text(t);
	t->have = e;
}

static struct text new_text(void)
{
	struct text t = {.room = 1 << 22};
	t.p = calloc(1, t.room);
	assert_non_null(t.p);
	return t;
}

static char *our_map(struct qcow_image *image, const uint8_t *truth, const char *what)
{
	struct text t = new_text();
	struct qcow_extent e;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t size = qcow_size(image);
	for (uint64_t off = 0; off < size; off += e.len) {
		if (qcow_map(image, off, size - off, UINT32_MAX, &e, &err) != QCOW_OK)
			fail_msg("%s: map at %llu: %s", what, (unsigned long long)off, err.message);
		assert_int_equal(e.off, off);
		assert_true(e.len > 0 && e.len <= size - off);
		check_extent(&e, truth, what);
		put_extent(&t, e);
	}
	flush_text(&t);
	return t.p;
}

static uint32_t flag_if(const char *line, const char *word, uint32_t flag)
{
	return strstr(line, word) != NULL ? flag : 0;
}

/* `qemu-img map --output=json` prints an extent a line. */
static char *their_map(const char *tool, const char *name)
{
	struct text t = new_text();
	size_t n = 0;
	sh("%s map --output=json %s >map.txt", tool, name);
	char *json = (char *)slurp("map.txt", &n), *save = NULL;
	for (char *line = strtok_r(json, "\n", &save); line != NULL;
		line = strtok_r(NULL, "\n", &save)) {
		struct qcow_extent e = {.len = 0};
		unsigned long long start = 0, len = 0, off = 0;
		assert_int_equal(sscanf(strchr(line, '{'),
					 "{ \"start\": %llu, \"length\": %llu, \"depth\": %u",
					 &start, &len, &e.depth),
			3);
		e.off = start;
		e.len = len;
		e.flags = flag_if(line, "\"present\": true", QCOW_EXTENT_PRESENT) |
			  flag_if(line, "\"zero\": true", QCOW_EXTENT_ZERO) |
			  flag_if(line, "\"data\": true", QCOW_EXTENT_DATA);
		const char *at = strstr(line, "\"offset\": ");
		if (at != NULL && sscanf(at, "\"offset\": %llu", &off) == 1)
			e.flags |= QCOW_EXTENT_OFFSET;
		e.host_off = off;
		put_extent(&t, e);
	}
	flush_text(&t);
	free(json);
	return t.p;
}

static void check_map(const char *ours, const char *name, const char *tool)
{
	char *theirs = their_map(tool, name);
	size_t i = 0;
	while (ours[i] != 0 && ours[i] == theirs[i])
		i++;
	while (i > 0 && ours[i - 1] != '\n')
		i--;
	if (strcmp(ours, theirs) != 0)
		fail_msg("%s: our map\n%.300s\nis not that of %s\n%.300s", name, ours + i, tool,
			theirs + i);
	free(theirs);
}

#define NEWEST_QEMU_IMG "$HOME/.cache/qcowkit-peers/bin/qemu-img"

static bool has_newest_qemu(void)
{
	static int answer = -1;
	if (answer < 0)
		answer = system("test -x " NEWEST_QEMU_IMG) == 0;
	return answer != 0;
}

/* `size` bytes of the disk, 0 = all that convert writes. */
static void check_image_as(
	const char *name, const char *convert_args, const struct qcow_open_options *o, size_t size)
{
	size_t n = 0;
	sh("qemu-img convert %s -O raw %s truth.raw", convert_args, name);
	uint8_t *truth = slurp("truth.raw", &n);
	n = size != 0 ? size : n;
	struct qcow_image *image = must_open(name, o);
	check_reads(image, truth, n, name);
	char *ours = our_map(image, truth, name);
	if (convert_args[0] == '\0') {
		check_map(ours, name, "qemu-img");
		/* the newest QEMU agrees with the older one: every fourth image shows it */
		static unsigned n_images;
		if (n_images++ % 4 == 0 && has_newest_qemu())
			check_map(ours, name, NEWEST_QEMU_IMG);
	}
	free(ours);
	qcow_close(image);
	free(truth);
}

static void check_image(const char *name)
{
	check_image_as(name, "", NULL, 0);
}

/* ---- making images ---- */

/* A source of data that compresses to sizes all over the place. */
static void make_source(void)
{
	FILE *f = fopen(in_dir("src"), "wb");
	uint64_t seed = 0x1234567;
	assert_non_null(f);
	for (int i = 0; i < 1 << 20; i++) {
		unsigned alphabet = 1 + (unsigned)(i >> 12) % 61 * 4;
		fputc(' ' + (int)(next_random(&seed) % alphabet) % 220, f);
	}
	fclose(f);
}

/* `n` operations of qemu-io on `name`, by a seed: data, zeros, unmapped zeros, discards, compressed
 * clusters. `cluster` 0: no compressed ones. */
static void scribble(const char *name, uint64_t size, uint64_t cluster, uint64_t seed, int n)
{
	FILE *f = fopen(in_dir("ops"), "w");
	assert_non_null(f);
	uint64_t s = seed * 0x9e3779b97f4a7c15 + 1;
	for (int i = 0; i < n; i++) {
		uint64_t off = next_random(&s) % size & ~UINT64_C(511);
		uint64_t most = next_random(&s) % 8 == 0 ? size / 4 : 40000;
		uint64_t len = (next_random(&s) % most & ~UINT64_C(511)) + 512;
		len = len > size - off ? size - off : len;
		const char *op = "write -s src";
		switch (next_random(&s) % 8) {
		case 0:
			op = "write -z";
			break;
		case 1:
			op = "write -z -u";
			break;
		case 2:
			op = "discard";
			break;
		case 3:
		case 4:
			if (cluster == 0 || off / cluster >= size / cluster)
				break;
			op = "write -c -s src";
			off -= off % cluster;
			len = cluster;
			break;
		default:
			break;
		}
		fprintf(f, "%s %llu %llu\n", op, (unsigned long long)off, (unsigned long long)len);
	}
	fprintf(f, "quit\n");
	fclose(f);
	/* compressed writes over plain clusters are refused, and that is fine */
	sh("qemu-io %s <ops || true", name);
}

static uint64_t size_for(uint64_t cluster)
{
	uint64_t size = cluster * 21 + 1536;
	return size < (3 << 20) + 512 ? (3 << 20) + 512 : size;
}

static void every_cluster_size_reads_as_qemu_reads_it(const char *options, unsigned from_bits)
{
	make_source();
	for (unsigned bits = from_bits; bits <= 21; bits++) {
		uint64_t cluster = UINT64_C(1) << bits, size = size_for(cluster);
		sh("rm -f t && qemu-img create -q -f qcow2 -o %s,cluster_size=%llu t %llu", options,
			(unsigned long long)cluster, (unsigned long long)size);
		scribble("t", size, cluster, bits, 60);
		check_image("t");
	}
}

static void version_2_of_every_cluster_size(void **state)
{
	(void)state;
	every_cluster_size_reads_as_qemu_reads_it("compat=0.10", 9);
}

static void version_3_of_every_cluster_size(void **state)
{
	(void)state;
	every_cluster_size_reads_as_qemu_reads_it("compat=1.1", 9);
}

static void zstd_of_every_cluster_size(void **state)
{
	(void)state;
	every_cluster_size_reads_as_qemu_reads_it("compression_type=zstd", 9);
}

static void extended_l2_of_every_cluster_size(void **state)
{
	(void)state;
	every_cluster_size_reads_as_qemu_reads_it("extended_l2=on", 14);
}

static void whole_compressed_images(void **state)
{
	(void)state;
	static const char *const options[] = {"cluster_size=512", "cluster_size=4k",
		"cluster_size=64k", "cluster_size=2M", "cluster_size=64k,compression_type=zstd",
		"cluster_size=2M,compression_type=zstd", "cluster_size=16k,extended_l2=on"};
	make_source();
	sh("cat src src >flat.raw && truncate -s 3000320 flat.raw");
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		sh("qemu-img convert -c -f raw -O qcow2 -o %s flat.raw t", options[i]);
		check_image("t");
	}
}

static void preallocated_images(void **state)
{
	(void)state;
	make_source();
	sh("qemu-img create -q -f qcow2 -o preallocation=metadata t 5M");
	check_image("t");
	scribble("t", 5 << 20, 0, 3, 20);
	check_image("t");
	sh("rm t && qemu-img create -q -f qcow2 -o preallocation=metadata,extended_l2=on t 5M");
	scribble("t", 5 << 20, 0, 4, 20);
	check_image("t");
}

static void chains_of_other_sizes_and_cluster_sizes(void **state)
{
	(void)state;
	make_source();
	for (uint64_t seed = 1; seed <= 6; seed++) {
		sh("rm -f a.raw b c d t; truncate -s %u a.raw",
			(unsigned)(seed % 2 == 0 ? 2 << 20 : 4096000));
		sh("dd if=src of=a.raw bs=64k seek=3 count=9 conv=notrunc");
		sh("qemu-img create -q -f qcow2 -o cluster_size=4k -b a.raw -F raw b 3M");
		scribble("b", 3 << 20, 4096, seed, 30);
		sh("qemu-img create -q -f qcow2 -o cluster_size=1M,extended_l2=%s -b b -F qcow2 c "
		   "6M",
			seed % 3 == 0 ? "on" : "off");
		scribble("c", 6 << 20, 0, seed + 10, 8);
		sh("qemu-img create -q -f qcow2 -o cluster_size=512 -b c -F qcow2 d 1500672");
		scribble("d", 1500672, 512, seed + 20, 30);
		sh("qemu-img create -q -f qcow2 -o compression_type=zstd -b d -F qcow2 t 5M");
		scribble("t", 5 << 20, 65536, seed + 30, 20);
		check_image("t");
		check_image("c");
	}
}

static void a_chain_of_a_hundred_layers(void **state)
{
	(void)state;
	make_source();
	sh("qemu-img create -q -f qcow2 l0 2M; i=1; while [ $i -lt 100 ]; do "
	   "qemu-img create -q -u -f qcow2 -b l$((i-1)) -F qcow2 l$i 2M || exit 1; "
	   "test $((i %% 9)) != 0 || qemu-io -c \"write -s src $((i*20480)) 9000\" "
	   "-c \"write -z $((i*20480+12288)) 4096\" l$i || exit 1; i=$((i+1)); done");
	check_image("l99");
	sh("rm l*");
}

static void snapshots_are_views_with_their_own_size(void **state)
{
	(void)state;
	make_source();
	sh("rm -f t && qemu-img create -q -f qcow2 t 3M");
	scribble("t", 3 << 20, 65536, 41, 20);
	sh("qemu-img snapshot -c first t");
	scribble("t", 3 << 20, 65536, 42, 20);
	sh("qemu-img snapshot -c 1 t"); /* named like the id of the first */
	scribble("t", 3 << 20, 65536, 43, 20);
	sh("qemu-img resize -q t 5M");
	scribble("t", 5 << 20, 65536, 44, 20);
	sh("qemu-img snapshot -c third t");
	check_image("t");
	/* qemu-img writes every snapshot at the size of the image; ours has its own */
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.snapshot = "first";
	check_image_as("t", "-l snapshot.name=first", &o, 3 << 20);
	o.snapshot = "third";
	check_image_as("t", "-l snapshot.name=third", &o, 5 << 20);
	o.snapshot = "1";
	check_image_as("t", "-l snapshot.id=1", &o, 3 << 20);
	o.snapshot_by_name = true;
	check_image_as("t", "-l snapshot.name=1", &o, 3 << 20);
	o.snapshot_by_name = false;
	o.snapshot_by_id = true;
	o.snapshot = "2";
	check_image_as("t", "-l snapshot.id=2", &o, 3 << 20);
	o.snapshot = "first";
	struct qcow_image *image = NULL;
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_int_equal(try_open("t", &o, &image, &err), QCOW_E_NOENT);
	assert_non_null(strstr(err.message, "not found"));
}

static void data_files(void **state)
{
	(void)state;
	make_source();
	static const char *const raw[] = {"off", "on"};
	for (int i = 0; i < 2; i++) {
		sh("rm -f t d && qemu-img create -q -f qcow2 -o data_file=d,data_file_raw=%s t "
		   "3146240",
			raw[i]);
		scribble("t", 3146240, 0, 50 + (uint64_t)i, 25);
		check_image("t");
		/* a data file may end early: the rest reads as zeros */
		sh("truncate -s 1000000 d");
		check_image("t");
		sh("rm -f t d && qemu-img create -q -f qcow2 -o "
		   "data_file=d,data_file_raw=%s,extended_l2=on t 3146240",
			raw[i]);
		scribble("t", 3146240, 0, 60 + (uint64_t)i, 25);
		check_image("t");
	}
}

static void a_last_cluster_cut_short_reads_zeros_behind_the_end(void **state)
{
	(void)state;
	make_source();
	sh("rm -f t && qemu-img create -q -f qcow2 t 1M && qemu-io -c 'write -s src 0 128k' t && "
	   "truncate -s $((0x60000 + 1000)) t");
	check_image("t");
	/* and a compressed one whose last sector is cut */
	sh("rm -f t && qemu-img create -q -f qcow2 t 1M && qemu-io -c 'write -c -s src 64k 64k' t");
	struct stat st;
	assert_int_equal(stat(in_dir("t"), &st), 0);
	check_image("t");
}

static void a_map_of_the_first_layers_says_nothing_of_those_below(void **state)
{
	(void)state;
	sh("rm -f a b c; qemu-img create -q -f qcow2 a 1M; qemu-io -c 'write -P 1 0 1M' a; "
	   "qemu-img create -q -f qcow2 -b a -F qcow2 b 3M; qemu-io -c 'write -P 2 64k 64k' b; "
	   "qemu-img create -q -f qcow2 -b b -F qcow2 c 4M");
	static const struct {
		uint32_t max_depth, depth, flags;
		uint64_t off, len;
	} cases[] = {
		{0, 0, 0, 0, 3 << 20},
		{0, 0, QCOW_EXTENT_ZERO, 3 << 20, 1 << 20},
		{1, 1, 0, 0, 65536},
		{1, 1, QCOW_EXTENT_PRESENT | QCOW_EXTENT_DATA | QCOW_EXTENT_OFFSET, 65536, 65536},
		{1, 1, 0, 131072, (1 << 20) - 131072},
		{1, 1, QCOW_EXTENT_ZERO, 1 << 20, 2 << 20},
		{2, 1, QCOW_EXTENT_ZERO, 1 << 20, 2 << 20},
		{2, 2, QCOW_EXTENT_PRESENT | QCOW_EXTENT_DATA | QCOW_EXTENT_OFFSET, 131072,
			(1 << 20) - 131072},
	};
	struct qcow_image *image = must_open("c", NULL);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct qcow_extent e;
		assert_int_equal(qcow_map(image, cases[i].off, (4 << 20) - cases[i].off,
					 cases[i].max_depth, &e, NULL),
			QCOW_OK);
		assert_int_equal(e.flags, cases[i].flags);
		assert_int_equal(e.depth, cases[i].depth);
		assert_int_equal(e.len, cases[i].len);
	}
	qcow_close(image);
}

static void raw_windows(void **state)
{
	(void)state;
	make_source();
	size_t n = 0;
	uint8_t *truth = slurp("src", &n);
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.format = "raw";
	struct qcow_image *image = must_open("src", &o);
	check_reads(image, truth, n, "raw");
	qcow_close(image);
	o.raw_offset = 12345;
	image = must_open("src", &o);
	check_reads(image, truth + 12345, n - 12345, "raw offset");
	qcow_close(image);
	o.raw_size = 54321;
	image = must_open("src", &o);
	check_reads(image, truth + 12345, 54321, "raw window");
	qcow_close(image);
	/* a last sector may be cut short */
	uint8_t tail[512];
	o.raw_size = n - 12345 + 511;
	image = must_open("src", &o);
	assert_int_equal(qcow_pread(image, tail, 512, o.raw_size - 512, NULL), QCOW_OK);
	assert_int_equal(tail[0], truth[n - 1]);
	assert_true(is_zero(tail + 1, 511));
	qcow_close(image);
	o.raw_size = n;
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_int_equal(try_open("src", &o, &image, &err), QCOW_E_RANGE);
	free(truth);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(version_2_of_every_cluster_size),
		cmocka_unit_test(version_3_of_every_cluster_size),
		cmocka_unit_test(zstd_of_every_cluster_size),
		cmocka_unit_test(extended_l2_of_every_cluster_size),
		cmocka_unit_test(whole_compressed_images),
		cmocka_unit_test(preallocated_images),
		cmocka_unit_test(chains_of_other_sizes_and_cluster_sizes),
		cmocka_unit_test(a_chain_of_a_hundred_layers),
		cmocka_unit_test(snapshots_are_views_with_their_own_size),
		cmocka_unit_test(data_files),
		cmocka_unit_test(a_last_cluster_cut_short_reads_zeros_behind_the_end),
		cmocka_unit_test(a_map_of_the_first_layers_says_nothing_of_those_below),
		cmocka_unit_test(raw_windows),
	};
	if (!has_qemu())
		return 77;
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
