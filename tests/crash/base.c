/* SPDX-License-Identifier: MIT */
#include "base.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <host.h>

#define FIRST_STEP 1000000u /* numbers the content of what is there before the workload */

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
static void add_command(FILE *script, const struct qkc_step *s, unsigned number)
{
	static const char *const commands[] = {[QKC_DO_WRITE] = "write",
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
	qkc_content(FIRST_STEP + number, s->off, buf, s->len);
	if (s->act == QKC_DO_WRITE_COMPRESSED)
		make_dense(buf, s->len, number);
	save_bytes(buf, s->len, qkt_path(name));
	free(buf);
	/* a compressed write is one of whole clusters, each for itself: qemu-io splits it */
	(void)fprintf(script, "%s -s %s %" PRIu64 " %" PRIu64 "\n", commands[s->act], name, s->off,
		s->len);
}

static void run_steps(const struct qkc_step *steps, size_t n, unsigned number)
{
	if (n == 0)
		return;
	FILE *script = fopen(qkt_path("script"), "w");
	for (size_t i = 0; i < n; i++)
		add_command(script, &steps[i], number + (unsigned)i);
	(void)fclose(script);
	qkt_must("qemu-io base.qcow2 <script >qemu-io.out && ! grep -i -e failed -e error "
		 "qemu-io.out");
}

static void make_backing(struct qkc_base *b, const struct qkc_plan *p)
{
	b->backing_bytes = p->backing_bytes;
	b->backing = qkc_need((size_t)p->backing_bytes, 1);
	qkc_content(FIRST_STEP - 1, 0, b->backing, p->backing_bytes);
	save_bytes(b->backing, b->backing_bytes, qkt_path("back.raw"));
}

static void put_be(uint8_t *p, uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		p[i] = (uint8_t)(v >> (56 - 8 * i));
}

struct qkc_base qkc_base_make(const struct qkc_plan *p)
{
	struct qkc_base b = {0};
	if (p->backing_bytes != 0)
		make_backing(&b, p);
	qkt_must("rm -f base.qcow2 && qemu-img create -q -f qcow2 -o "
		 "compat=%s,cluster_size=%u,refcount_bits=%u%s %s base.qcow2 %" PRIu64,
		p->config.version == 3 ? "1.1" : "0.10", 1u << p->config.cluster_bits,
		p->config.refcount_bits, p->is_zstd ? ",compression_type=zstd" : "",
		p->backing_bytes != 0 ? "-b back.raw -F raw" : "", p->disk_bytes);
	run_steps(p->first, p->n_first, 0);
	if (p->has_snapshot)
		qkt_must("qemu-img snapshot -c s1 base.qcow2");
	run_steps(p->between, p->n_between, (unsigned)p->n_first);
	size_t n = 0;
	uint8_t *bytes = qkt_slurp(qkt_path("base.qcow2"), &n);
	/* qemu-img rounds the size up to sectors */
	put_be(bytes + 24, p->disk_bytes);
	b.image = qkc_disk_new(bytes, n);
	free(bytes);
	return b;
}

void qkc_base_free(struct qkc_base *b)
{
	qkc_disk_free(b->image);
	free(b->backing);
	*b = (struct qkc_base){0};
}
