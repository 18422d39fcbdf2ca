/* SPDX-License-Identifier: MIT */
#include "base.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <host.h>

static void save_bytes(const uint8_t *bytes, uint64_t n, const char *path)
{
	FILE *f = fopen(path, "wb");
	if (f == NULL || (n != 0 && fwrite(bytes, (size_t)n, 1, f) != 1) || fclose(f) != 0) {
		(void)fprintf(stderr, "crash: cannot write %s\n", path);
		abort();
	}
}

void qkc_disk_save(const struct qkc_disk *d, const char *path)
{
	save_bytes(qkc_disk_bytes(d), qkc_disk_size(d), path);
}

/* Make it compress to about two thirds, so that few streams share a cluster. */
static void make_dense(uint8_t *buf, uint64_t len, unsigned number)
{
	struct qkt_rng rng = qkt_rng_fixed(number);
	for (uint64_t at = 0; at + QKC_SECTOR <= len; at += QKC_SECTOR)
		qkt_rng_fill(&rng, buf + at, QKC_SECTOR * 5 / 8);
}

/* Append the command of a step for qemu-io; content goes to a file. */
static void add_command(
	FILE *script, const struct qkc_plan *p, const struct qkc_step *s, unsigned number)
{
	uint64_t start = s->act == QKC_DO_WRITE_STATE ? qkc_plan_state_off(p) : 0;
	static const char *const commands[] = {[QKC_DO_WRITE] = "write",
		[QKC_DO_WRITE_STATE] = "write -b",
		[QKC_DO_WRITE_COMPRESSED] = "write -c",
		[QKC_DO_ZERO] = "write -z"};
	if (s->act == QKC_DO_ZERO) {
		(void)fprintf(
			script, "%s %" PRIu64 " %" PRIu64 "\n", commands[s->act], s->off, s->len);
		return;
	}
	char name[32];
	(void)snprintf(name, sizeof(name), "content%u", number);
	uint8_t *buf = qkc_need((size_t)s->len, 1);
	qkc_content(QKC_FIRST_STEP + number, s->off, buf, s->len);
	if (s->act == QKC_DO_WRITE_COMPRESSED)
		make_dense(buf, s->len, number);
	save_bytes(buf, s->len, qkt_path(name));
	free(buf);
	/* a compressed write is one of whole clusters, each for itself: qemu-io splits it */
	(void)fprintf(script, "%s -s %s %" PRIu64 " %" PRIu64 "\n", commands[s->act], name,
		s->off - start, s->len);
}

void qkc_disk_save_data(const struct qkc_disk *d, const char *path)
{
	save_bytes(qkc_disk_bytes(d) + QKC_DATA_FILE, qkc_disk_data_end(d) - QKC_DATA_FILE, path);
}

/* How QEMU is told of the image. */
static const char *image_of(const struct qkc_plan *p)
{
	return p->crypt != NULL
		       ? "--object secret,id=k,data=" QKC_PASSPHRASE
			 " --image-opts driver=qcow2,encrypt.key-secret=k,file.filename=base.qcow2"
		       : "base.qcow2";
}

static void run_steps(
	const struct qkc_plan *p, const struct qkc_step *steps, size_t n, unsigned number)
{
	if (n == 0)
		return;
	FILE *script = fopen(qkt_path("script"), "w");
	for (size_t i = 0; i < n; i++)
		add_command(script, p, &steps[i], number + (unsigned)i);
	(void)fclose(script);
	qkt_must("qemu-io %s <script >qemu-io.out && ! grep -i -e failed -e error "
		 "qemu-io.out",
		image_of(p));
}

static void make_backing(struct qkc_base *b, const struct qkc_plan *p)
{
	b->backing_bytes = p->backing_bytes;
	b->backing = qkc_need((size_t)p->backing_bytes, 1);
	qkc_content(QKC_FIRST_STEP - 1, 0, b->backing, p->backing_bytes);
	save_bytes(b->backing, b->backing_bytes, qkt_path("back.raw"));
}

static uint64_t get_be(const uint8_t *p)
{
	uint64_t v = 0;
	for (unsigned i = 0; i < 8; i++)
		v = v << 8 | p[i];
	return v;
}

static void put_be(uint8_t *p, uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		p[i] = (uint8_t)(v >> (56 - 8 * i));
}

#define OFFSET_BITS UINT64_C(0x00fffffffffffe00)
#define COPIED	    (UINT64_C(1) << 63)
#define COMPRESSED  (UINT64_C(1) << 62)

/* The bit goes from every entry of a table; the number of entries. */
static void clear_copied(uint8_t *table, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t entry = get_be(table + i * 8);
		if (!(entry & COMPRESSED))
			put_be(table + i * 8, entry & ~COPIED);
	}
}

static void damage(const struct qkc_plan *p, uint8_t *bytes)
{
	uint64_t cluster = UINT64_C(1) << p->config.cluster_bits;
	uint8_t *l1 = bytes + get_be(bytes + 40);
	uint64_t n_l1 = get_be(bytes + 32) & UINT32_MAX;
	/* qemu-img rounds the size up to sectors */
	put_be(bytes + 24, p->disk_bytes);
	if (p->is_dirty) {
		bytes[79] |= 1;
		memset(bytes + get_be(bytes + get_be(bytes + 48)), 0, (size_t)cluster);
	}
	for (uint64_t i = 0; p->lacks_copied && i < n_l1; i++)
		if (get_be(l1 + i * 8) & OFFSET_BITS)
			clear_copied(bytes + (get_be(l1 + i * 8) & OFFSET_BITS), cluster / 8);
	if (p->lacks_copied)
		clear_copied(l1, n_l1);
}

void qkc_disk_load_data(struct qkc_disk *d, const char *name)
{
	size_t n = 0;
	uint8_t *bytes = qkt_slurp(qkt_path(name), &n);
	qkc_disk_grow(d, QKC_DATA_FILE + n);
	qkc_disk_write(d, bytes, n, QKC_DATA_FILE);
	qkc_disk_settle(d);
	free(bytes);
}

/* What a device holds after the image is not zeros. */
static void add_spare(const struct qkc_plan *p, struct qkc_disk *d)
{
	uint64_t cluster = UINT64_C(1) << p->config.cluster_bits, len = p->fixed_spare * cluster;
	uint64_t off = (qkc_disk_size(d) + cluster - 1) / cluster * cluster;
	if (len == 0)
		return;
	uint8_t *garbage = qkc_need((size_t)len, 1);
	memset(garbage, 0xa5, (size_t)len);
	qkc_disk_write(d, garbage, len, off);
	qkc_disk_settle(d);
	free(garbage);
}

/* An empty image. QEMU measures its speed for seconds where it makes one with LUKS: each is made once. */
static void create(const struct qkc_plan *p)
{
	char options[240], kept[340];
	bool is_luks = p->crypt != NULL && strcmp(p->crypt, "luks") == 0;
	(void)snprintf(options, sizeof(options), "compat=%s,cluster_size=%u,refcount_bits=%u%s%s%s",
		p->config.version == 3 ? "1.1" : "0.10", 1u << p->config.cluster_bits,
		p->config.refcount_bits, p->is_zstd ? ",compression_type=zstd" : "",
		p->is_extended ? ",extended_l2=on" : "",
		p->is_raw_data	   ? ",data_file=base.data,data_file_raw=on"
		: p->has_data_file ? ",data_file=base.data"
				   : "");
	if (p->has_data_file)
		qkt_must("rm -f base.data");
	(void)snprintf(kept, sizeof(kept), "kept-%s-%" PRIu64 "-%s", options, p->disk_bytes,
		p->backing_bytes != 0 ? "over" : "alone");
	if (is_luks && qkt_run("cp '%s' base.qcow2", kept) == 0)
		return;
	/* its measurement fails where the machine is very busy */
	qkt_must("for i in $(seq 40); do rm -f base.qcow2 && qemu-img create -q --object "
		 "secret,id=k,data=" QKC_PASSPHRASE " -f qcow2 -o %s%s%s%s %s base.qcow2 %" PRIu64
		 " && break; done; test -e base.qcow2",
		options, p->crypt != NULL ? ",encrypt.key-secret=k,encrypt.format=" : "",
		p->crypt != NULL ? p->crypt : "", is_luks ? ",encrypt.iter-time=1" : "",
		p->backing_bytes != 0 ? "-b back.raw -F raw" : "", p->disk_bytes);
	if (is_luks)
		qkt_must("cp base.qcow2 '%s'", kept);
}

struct qkc_base qkc_base_make(const struct qkc_plan *p)
{
	struct qkc_base b = {.plan = p};
	if (p->backing_bytes != 0)
		make_backing(&b, p);
	create(p);
	run_steps(p, p->first, p->n_first, 0);
	if (p->has_snapshot)
		qkt_must("qemu-img snapshot -c s1 %s", image_of(p));
	if (p->has_bitmaps)
		qkt_must("qemu-img bitmap --add -g 512 base.qcow2 on && qemu-img bitmap --add "
			 "--disable -g "
			 "4096 base.qcow2 off && qemu-img bitmap --add -g 65536 base.qcow2 coarse");
	run_steps(p, p->between, p->n_between, (unsigned)p->n_first);
	size_t n = 0;
	uint8_t *bytes = qkt_slurp(qkt_path("base.qcow2"), &n);
	damage(p, bytes);
	b.image = qkc_disk_new(bytes, n);
	if (p->has_data_file)
		qkc_disk_load_data(b.image, "base.data");
	add_spare(p, b.image);
	free(bytes);
	return b;
}

void qkc_base_free(struct qkc_base *b)
{
	qkc_disk_free(b->image);
	free(b->backing);
	*b = (struct qkc_base){0};
}
