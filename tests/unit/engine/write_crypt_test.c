/* SPDX-License-Identifier: MIT */
/*
 * Random writes of any offsets, zeros and discards on encrypted images made by qemu-img, beside an array of bytes, under
 * the order checker; qemu-img, which decrypts by itself, must then see the array. Two writers of one sector.
 */
#include "beside.h"

#include <pthread.h>

#define LONG	   200000U
#define SECRET	   "--object secret,id=s,data=abc123"
#define PASSPHRASE "abc123"

struct config {
	const char *name;
	const char *format; /* of the image and of encrypt.format; "luks" alone: a raw LUKS file */
	const char *options; /* of qemu-img create, more */
	const char *setup; /* shell commands */
	const char *backing; /* how the base is made */
	uint64_t size;
	unsigned steps;
};

/* QEMU measures the speed of the machine, and gives up where it is very busy. */
#define AGAIN "try() { "
#define TRIES "for i in $(seq 40); do ! try || break; done"

#define IMAGE(f) "driver=qcow2,encrypt.format=" f ",encrypt.key-secret=s,file.filename=img"
#define BASE_LUKS                                                                              \
	AGAIN "qemu-img create " SECRET " -f qcow2 -o "                                        \
	      "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size=4k " \
	      "base 5M; }; " TRIES " && "                                                      \
	      "qemu-io " SECRET " --image-opts -c 'write -P 5 100 4000000' "                   \
	      "driver=qcow2,encrypt.key-secret=s,file.filename=base"

static const struct config configs[] = {
	{"aes", "aes", "", NULL, NULL, 10 << 20, 120},
	{"aes v2", "aes", "compat=0.10,cluster_size=4k", NULL, NULL, 4 << 20, 120},
	{"aes c512", "aes", "cluster_size=512", NULL, NULL, 1 << 20, 120},
	{"luks", "luks", "", NULL, NULL, 10 << 20, 120},
	{"luks c512", "luks", "cluster_size=512", NULL, NULL, 1 << 20, 120},
	{"luks c4k refcount 1", "luks", "cluster_size=4k,refcount_bits=1", NULL, NULL, 8 << 20,
		250},
	{"luks c2M", "luks", "cluster_size=2M", NULL, NULL, 20 << 20, 60},
	{"luks cbc essiv", "luks",
		"encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,"
		"cluster_size=4k",
		NULL, NULL, 4 << 20, 120},
	{"luks snapshot", "luks", "cluster_size=4k",
		"qemu-io " SECRET " --image-opts -c 'write -P 7 1M 3M' " IMAGE(
			"luks") " && qemu-img snapshot " SECRET
				" --image-opts -c s " IMAGE("luks") "",
		NULL, 8 << 20, 120},
	{"luks zero clusters", "luks", "cluster_size=4k",
		"qemu-io " SECRET " --image-opts -c 'write -P 7 0 3M' -c 'write -z 1M 1M' "
		"-c 'write -z -u 5M 1M' " IMAGE("luks"),
		NULL, 8 << 20, 120},
	{"luks over plain", "luks", "cluster_size=4k", NULL, "head -c 5000192 /dev/urandom >base",
		8 << 20, 120},
	{"luks over luks", "luks", "cluster_size=4k", NULL, BASE_LUKS, 8 << 20, 120},
	{"aes over luks", "aes", "cluster_size=4k", NULL, BASE_LUKS, 8 << 20, 120},
	{"plain over luks", NULL, "cluster_size=4k", NULL, BASE_LUKS, 8 << 20, 120},
	{"luks extended", "luks", "extended_l2=on,cluster_size=16k",
		"qemu-io " SECRET
		" --image-opts -c 'write -P 7 1M 3M' -c 'write -P 8 5M 1k' " IMAGE(
			"luks") " && qemu-img snapshot " SECRET
				" --image-opts -c s " IMAGE("luks") "",
		NULL, 8 << 20, 200},
	{"aes extended", "aes", "extended_l2=on", NULL, NULL, 8 << 20, 200},
	/* two small pieces apart in each cluster of a snapshot */
	{"aes apart", "aes", "extended_l2=on,cluster_size=16k",
		"for i in $(seq 0 60); do echo \"write -P 7 $((i * 16 + 2))k 1k\"; echo \"write -P "
		"8 "
		"$((i * 16 + 11))k 1k\"; done | qemu-io " SECRET
		" --image-opts " IMAGE("aes") " && qemu-img snapshot " SECRET
					      " --image-opts -c s " IMAGE("aes") "",
		NULL, 1 << 20, 60},
	{"aes extended over plain", "aes", "extended_l2=on,cluster_size=16k",
		"qemu-io " SECRET " --image-opts -c 'write -P 7 1000 3M' -c 'write -z 1M 7k' "
		"-c 'write -z -u 5M 1M' " IMAGE("aes"),
		"head -c 5000192 /dev/urandom >base", 8 << 20, 200},
	{"raw luks", "raw luks", "", NULL, NULL, 4 << 20, 120},
};

static bool is_raw(const struct config *c)
{
	return c->format != NULL && strcmp(c->format, "raw luks") == 0;
}

/* What qemu-img opens. */
static const char *source(const struct config *c)
{
	static char text[512];
	if (is_raw(c))
		return "driver=luks,key-secret=s,file.filename=img";
	(void)snprintf(text, sizeof(text), "driver=qcow2,file.filename=img%s%s%s%s",
		c->format != NULL ? ",encrypt.key-secret=s,encrypt.format=" : "",
		c->format != NULL ? c->format : "",
		c->backing == NULL ? "" : ",backing.file.filename=base,backing.driver=",
		c->backing == NULL		     ? ""
		: strcmp(c->backing, BASE_LUKS) == 0 ? "qcow2,backing.encrypt.key-secret=s"
						     : "raw");
	return text;
}

static void make_image(const struct config *c)
{
	char encrypt[128] = "";
	unsigned long long size = c->size;
	bool has_luks = c->format != NULL && strcmp(c->format, "luks") == 0;
	sh("rm -f img base");
	if (c->backing != NULL)
		sh("%s", c->backing);
	if (is_raw(c)) {
		sh(AGAIN "qemu-img create " SECRET
			 " -f luks -o key-secret=s,iter-time=10 img %llu; }; " TRIES,
			size);
		return;
	}
	if (c->format != NULL)
		(void)snprintf(encrypt, sizeof(encrypt),
			"encrypt.format=%s,encrypt.key-secret=s%s,", c->format,
			has_luks ? ",encrypt.iter-time=10" : "");
	sh(AGAIN "qemu-img create " SECRET " -f qcow2 -o %s%s %s img %llu; }; " TRIES, encrypt,
		c->options[0] != 0 ? c->options : "lazy_refcounts=off",
		c->backing == NULL		     ? ""
		: strcmp(c->backing, BASE_LUKS) == 0 ? "-u -b base -F qcow2"
						     : "-u -b base -F raw",
		size);
	if (c->setup != NULL)
		sh("%s", c->setup);
}

static struct bench open_for_writing(const struct config *c)
{
	return open_bench(&(struct bench_options){.passphrase = PASSPHRASE, .unjudged = is_raw(c)});
}

static void step(struct qcow_image *image, struct disk *d, uint64_t *seed)
{
	uint64_t kind = next_random(seed) % 16, off = next_random(seed) % d->size;
	static const uint64_t most[] = {LONG, 9000, 700, 40};
	uint64_t len = 1 + next_random(seed) % most[next_random(seed) % 4];
	uint64_t shape = next_random(seed) % 4;
	uint64_t unit = shape == 0 ? d->cluster : shape == 1 ? 512 : 1;
	off -= off % unit;
	len = (len + unit - 1) / unit * unit;
	len = len > d->size - off ? d->size - off : len;
	unsigned fua = next_random(seed) % 16 == 0 ? QCOW_IO_FUA : 0;
	if (kind < 9) {
		for (size_t i = 0; i < len; i++)
			d->bytes[off + i] = (uint8_t)(next_random(seed) >> 8);
		disk_write(image, d, off, len, fua);
	} else if (kind < 11) {
		disk_zero(image, d, off, len, fua | (kind == 10 ? (unsigned)QCOW_IO_UNMAP : 0));
	} else if (kind < 12) {
		disk_discard(image, d, off, len, 0);
	} else if (kind < 15) {
		disk_read(image, d, off, len);
	} else {
		struct qcow_error err = QCOW_ERROR_INIT;
		assert_int_equal(qcow_flush(image, &err), QCOW_OK);
	}
}

static void judge_decrypted(const struct config *c, const struct disk *d)
{
	write_truth(d->bytes, d->size);
	if (!is_raw(c))
		sh("qemu-img check " SECRET " --image-opts %s", source(c));
	sh("qemu-img convert " SECRET " --image-opts %s -O raw got && cmp got truth", source(c));
}

static void run_config(const struct config *c)
{
	make_image(c);
	struct bench b = open_for_writing(c);
	assert_int_equal(qcow_size(b.image), c->size);
	struct disk d = disk_of(b.image, c->size);
	d.cluster = is_raw(c) ? 512 : d.cluster;
	d.discards = !is_raw(c);
	uint64_t seed = 88172645463325252 + c->size;
	for (unsigned i = 0; i < c->steps; i++)
		step(b.image, &d, &seed);
	assert_true(b.order == NULL || qkt_order_judged(b.order) > 0);
	close_bench(&b);
	judge_decrypted(c, &d);
	disk_free(&d);
}

static void random_steps_agree_with_an_array(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++)
		if (is_wanted_config(configs[i].name))
			run_config(&configs[i]);
}

/* Plain bytes are looked for in the file. */
static void nothing_is_stored_plain(void **state)
{
	(void)state;
	static const struct config c = {"plain?", "luks", "", NULL, NULL, 4 << 20, 0};
	static const char word[] = "a word that nobody encrypts to by chance";
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t buf[3000];
	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (uint8_t)word[i % sizeof(word)];
	make_image(&c);
	struct bench b = open_for_writing(&c);
	for (uint64_t off = 0; off < 300000; off += 70001)
		assert_int_equal(qcow_pwrite(b.image, buf, sizeof(buf), off, 0, &err), QCOW_OK);
	assert_int_equal(qcow_pwrite(b.image, buf, sizeof(buf), 100, 0, &err), QCOW_OK);
	close_bench(&b);
	sh("! grep -q 'nobody encrypts' img");
}

/* More than is encrypted at a time. */
static void long_writes_number_every_sector(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	static const struct config c = {"long", "aes", "cluster_size=4k", NULL, NULL, 4 << 20, 0};
	struct disk d = {.size = c.size};
	uint64_t seed = 88172645463325252;
	d.bytes = calloc(1, d.size);
	make_image(&c);
	struct bench b = open_for_writing(&c);
	for (uint64_t off = 77; off < d.size; off += 1400001) {
		uint64_t len = d.size - off < 1300000 ? d.size - off : 1300000;
		for (uint64_t i = off; i < off + len; i++)
			d.bytes[i] = (uint8_t)(next_random(&seed) >> 8);
		assert_int_equal(qcow_pwrite(b.image, d.bytes + off, len, off, 0, &err), QCOW_OK);
		/* and in place */
		assert_int_equal(qcow_pwrite(b.image, d.bytes + off, len, off, 0, &err), QCOW_OK);
	}
	close_bench(&b);
	judge_decrypted(&c, &d);
	free(d.bytes);
}

static void without_its_key_nothing_is_written(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
		const struct config *c = &configs[i];
		struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_store *store = NULL;
		struct qcow_image *image = NULL;
		if (strcmp(c->name, "aes") != 0 && strcmp(c->name, "luks") != 0 && !is_raw(c))
			continue;
		make_image(c);
		sh("cp img before");
		for (unsigned flags = 0; flags <= QCOW_OPEN_CHECK; flags += QCOW_OPEN_CHECK) {
			o.flags = QCOW_OPEN_WRITE | flags;
			assert_int_equal(
				qcow_file_open(in_dir("img"), QCOW_FILE_WRITE, &store, &err),
				QCOW_OK);
			enum qcow_status status = qcow_open(store, &o, &image, &err);
			if (status != (flags == 0 ? QCOW_E_KEY : QCOW_E_INVAL))
				fail_msg(
					"%s, flags %u: %d %s", c->name, flags, status, err.message);
		}
		sh("cmp img before");
	}
}

/* ---- writers of one sector ---- */

#define ROUNDS 400U

struct writer {
	pthread_t thread;
	struct qcow_image *image;
	uint64_t off; /* of its bytes, which nobody else writes */
	size_t len;
	uint64_t skip_at; /* of them, what another one writes */
	size_t skip;
	bool is_good;
};

static void *write_own(void *ctx)
{
	struct writer *w = ctx;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t buf[2048], got[2048];
	w->is_good = true;
	for (unsigned i = 0; i < ROUNDS && w->is_good; i++) {
		memset(buf, (int)(i % 251 + 1), w->len);
		w->is_good = qcow_pwrite(w->image, buf, w->len, w->off, 0, &err) == QCOW_OK &&
			     qcow_pread(w->image, got, w->len, w->off, &err) == QCOW_OK;
		memcpy(buf + w->skip_at, got + w->skip_at, w->skip);
		w->is_good = w->is_good && memcmp(buf, got, w->len) == 0;
	}
	return NULL;
}

static void run_writers(struct qcow_image *image, struct writer *w, unsigned n)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t zeros[8192] = {0};
	assert_int_equal(qcow_pwrite(image, zeros, sizeof(zeros), 0, 0, &err), QCOW_OK);
	for (unsigned i = 0; i < n; i++) {
		w[i].image = image;
		assert_int_equal(pthread_create(&w[i].thread, NULL, write_own, &w[i]), 0);
	}
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(pthread_join(w[i].thread, NULL), 0);
	for (unsigned i = 0; i < n; i++)
		if (!w[i].is_good)
			fail_msg("writer %u lost bytes", i);
}

static void writers_of_one_sector_keep_each_others_bytes(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
		const struct config *c = &configs[i];
		if (strcmp(c->name, "aes") != 0 && strcmp(c->name, "luks c512") != 0 &&
			strcmp(c->name, "luks extended") != 0 && !is_raw(c))
			continue;
		make_image(c);
		struct bench b = open_bench(
			&(struct bench_options){.passphrase = PASSPHRASE, .unjudged = true});
		/* whoever reads a sector while another one writes it has the time to */
		qkt_fault_slow(b.fault, QKT_WRITE, 50);
		struct writer parts[] = {{.off = 3, .len = 100}, {.off = 103, .len = 409},
			{.off = 512 + 1, .len = 510}, {.off = 1023, .len = 1026}};
		run_writers(b.image, parts, 4);
		/* one writes whole sectors, the other a part of the second */
		struct writer mixed[] = {{.off = 512, .len = 1536, .skip_at = 600, .skip = 33},
			{.off = 512 + 600, .len = 33, .skip = 33}};
		run_writers(b.image, mixed, 2);
		close_bench(&b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(long_writes_number_every_sector),
		cmocka_unit_test(nothing_is_stored_plain),
		cmocka_unit_test(without_its_key_nothing_is_written),
		cmocka_unit_test(writers_of_one_sector_keep_each_others_bytes),
		cmocka_unit_test(random_steps_agree_with_an_array),
	};
	if (!has_qemu()) {
		print_message("SKIP qemu-img or qemu-io is missing (Debian: qemu-utils)\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
