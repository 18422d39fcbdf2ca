/* SPDX-License-Identifier: MIT */
#include "bed.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dirtymap.h"
#include "host.h"

#define SECTOR	  512u
#define SECRET	  "--object secret,id=k,data=" BED_PASSPHRASE
#define GRAIN	  1024u /* of the enabled bitmap */
#define MAX_BYTES (20u << 20)

/* How QEMU's tools are told of the image. */
static const char *named(const struct bed *bed)
{
	static char text[500];
	if (bed->c.crypt == NULL)
		(void)snprintf(text, sizeof(text), "-f qcow2 %s", bed->path);
	else
		(void)snprintf(text, sizeof(text),
			SECRET " --image-opts driver=qcow2,encrypt.key-secret=k,file.filename=%s",
			bed->path);
	return text;
}

static const char *oracle(void)
{
	const char *path = getenv("ORACLE");
	if (path == NULL)
		qkt_skip("ORACLE names no program");
	return path;
}

/* ---- configurations ---- */

/* It has neither snapshots nor compressed clusters; a raw one is the disk, with nothing below it. */
static void add_data_file(struct bed_config *c, struct qkt_rng *rng)
{
	c->has_data_file = true;
	c->has_compressed = false;
	c->n_snapshots = 0;
	c->is_raw_data = c->crypt == NULL && qkt_rng_below(rng, 2) == 0;
	if (c->is_raw_data)
		c->n_layers = 1;
}

struct bed_config bed_config_random(struct qkt_rng *rng, bool with_data_file)
{
	static const unsigned cluster_bits[] = {9, 9, 10, 12, 12, 14, 16, 16, 16, 18, 21};
	struct bed_config c = {0};
	const char *qemus[2];
	size_t n_qemus = qkt_qemus(qemus);
	if (n_qemus == 0)
		qkt_need_program("qemu-img", "qemu-utils");
	c.qemu = qemus[qkt_rng_below(rng, n_qemus)];
	c.version = qkt_rng_below(rng, 4) == 0 ? 2 : 3;
	c.cluster_bits = cluster_bits[qkt_rng_below(rng, 11)];
	c.refcount_bits = c.version == 2 || qkt_rng_below(rng, 2) ? 16
								  : 1u << qkt_rng_below(rng, 7);
	c.n_layers = qkt_rng_below(rng, 2) ? 1 : 2 + (unsigned)qkt_rng_below(rng, 2);
	c.has_compressed = qkt_rng_below(rng, 3) == 0;
	c.is_zstd = c.version == 3 && qkt_rng_below(rng, 2);
	c.is_lazy = c.version == 3 && qkt_rng_below(rng, 10) == 0;
	c.is_fixed = qkt_rng_below(rng, 5) == 0;
	/* many compressed clusters share one: no room in narrow refcounts for as many again */
	if (c.refcount_bits > (c.has_compressed ? 8 : 1) && qkt_rng_below(rng, 3) == 0)
		c.n_snapshots = 1 + (unsigned)qkt_rng_below(rng, 2);
	c.is_extended = c.version == 3 && c.cluster_bits >= 14 && qkt_rng_below(rng, 2);
	size_t clusters = 2 + (size_t)qkt_rng_below(rng, qkt_rng_below(rng, 3) ? 60 : 600);
	c.size = clusters << c.cluster_bits;
	if (c.size > MAX_BYTES)
		c.size = MAX_BYTES - (size_t)qkt_rng_below(rng, 100) * SECTOR;
	if (qkt_rng_below(rng, 2))
		c.size -= SECTOR * (size_t)qkt_rng_below(rng, (1u << c.cluster_bits) / SECTOR);
	c.has_bitmaps = c.version == 3 && !c.is_lazy && qkt_rng_below(rng, 5) == 0;
	if (!c.has_compressed && qkt_rng_below(rng, 5) == 0)
		c.crypt = qkt_rng_below(rng, 6) == 0 ? "luks" : "aes";
	if (c.version == 3 && (qkt_rng_below(rng, 6) == 0 || with_data_file))
		add_data_file(&c, rng);
	/* streams that share a cluster, once more for each snapshot: there is no room for that in narrow refcounts */
	c.may_compress = c.crypt == NULL && !c.has_data_file &&
			 (c.n_snapshots == 0 || c.refcount_bits > 8);
	/* QEMU rounds the size when it rewrites the header, as it does for the dirty bit, and sectors are encrypted whole */
	if (!c.is_lazy && !c.has_bitmaps && c.crypt == NULL && qkt_rng_below(rng, 4) == 0)
		c.size -= 1 + (size_t)qkt_rng_below(rng, SECTOR - 1);
	return c;
}

void bed_config_print(const struct bed_config *c)
{
	const char *data_file = c->is_raw_data	   ? " raw data file,"
				: c->has_data_file ? " data file,"
						   : "";
	printf("  v%u, cluster 2^%u, refcount %u, %u layers,%s%s%s%s%s%s%s %s%s%u snapshots, %zu "
	       "bytes, %s\n",
		c->version, c->cluster_bits, c->refcount_bits, c->n_layers,
		c->has_compressed ? " compressed," : "", c->is_zstd ? " zstd," : "",
		c->is_lazy ? " lazy," : "", c->is_extended ? " subclusters," : "",
		c->is_fixed ? " fixed," : "", c->has_bitmaps ? " bitmaps," : "", data_file,
		c->crypt != NULL ? c->crypt : "", c->crypt != NULL ? ", " : "", c->n_snapshots,
		c->size, c->qemu[0] != '\0' ? "newest QEMU" : "QEMU of PATH");
}

void bed_range(struct bed *bed, bool whole, size_t most, size_t *off, size_t *len)
{
	struct qkt_rng *rng = bed->rng;
	size_t size = whole ? bed->c.size / SECTOR * SECTOR : bed->c.size;
	size_t cluster = (size_t)1 << bed->c.cluster_bits;
	*off = (size_t)qkt_rng_below(rng, size);
	*len = 1 + (size_t)qkt_rng_below(rng, most < size ? most : size);
	if (qkt_rng_below(rng, 3) == 0) {
		*off = *off / cluster * cluster;
		*len = (*len + cluster - 1) / cluster * cluster;
	}
	if (whole) {
		*off = *off / SECTOR * SECTOR;
		*len = (*len + SECTOR - 1) / SECTOR * SECTOR;
	}
	if (*len > size - *off)
		*len = size - *off;
}

void bed_touch(struct bed *bed, size_t off, size_t len)
{
	if (bed->touched != NULL && len != 0)
		memset(bed->touched + off / SECTOR, 1, (off + len - 1) / SECTOR - off / SECTOR + 1);
}

/* ---- making ---- */

/* Add one random qemu-io step to the command; what it may leave in the array is done there. `maybe`
 * (a byte a sector) says where a discard may have left zeros. */
static size_t qemu_step(struct bed *bed, char *command, size_t room, uint8_t *maybe)
{
	static const char *const zeros[] = {"write -z", "write -z -u"};
	size_t off, len, cluster = (size_t)1 << bed->c.cluster_bits;
	unsigned what = (unsigned)qkt_rng_below(bed->rng, 10);
	bed_range(bed, true, qkt_rng_below(bed->rng, 2) ? cluster / 8 : 3 * cluster, &off, &len);
	if (len == 0)
		return 0;
	bed_touch(bed, off, len);
	if (what < 7) {
		unsigned pattern = (unsigned)qkt_rng_below(bed->rng, 256);
		memset(bed->bytes + off, (int)pattern, len);
		return (size_t)snprintf(
			command, room, " -c 'write -q -P %u %zu %zu'", pattern, off, len);
	}
	if (what < 9) {
		memset(bed->bytes + off, 0, len);
		return (size_t)snprintf(
			command, room, " -c '%s -q %zu %zu'", zeros[what - 7], off, len);
	}
	memset(maybe + off / SECTOR, 1, len / SECTOR);
	return (size_t)snprintf(command, room, " -c 'discard -q %zu %zu'", off, len);
}

/* What the oracle reads, malloc'ed. snapshot 0: the disk. */
static uint8_t *oracle_reads(struct bed *bed, unsigned snapshot)
{
	size_t n = 0;
	char view[40] = "";
	if (snapshot != 0)
		(void)snprintf(view, sizeof(view), "--snapshot %u", snapshot);
	qkt_must("rm -f dump; %s read %s %s%s -o dump", oracle(), bed->path, view,
		bed->c.crypt != NULL ? " --passphrase " BED_PASSPHRASE : "");
	uint8_t *bytes = qkt_slurp(qkt_path("dump"), &n);
	/* a snapshot by QEMU has whole sectors */
	if (n == (snapshot == 0 ? bed->c.size : bed->c.size / SECTOR * SECTOR))
		return bytes;
	printf("the oracle reads %zu bytes of %zu\n", n, bed->c.size);
	abort();
}

static void differs(
	const struct bed *bed, const char *whose, const uint8_t *want, const uint8_t *got, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (want[i] != got[i]) {
			printf("%s reads byte %zu (guest cluster %zu) as 0x%02x, not 0x%02x\n",
				whose, i, i >> bed->c.cluster_bits, got[i], want[i]);
			abort();
		}
}

/* A cluster, where it was never written: some QEMUs refuse it elsewhere, and then nothing has happened. */
static void qemu_compresses(struct bed *bed)
{
	size_t cluster = (size_t)1 << bed->c.cluster_bits, n = bed->c.size / cluster;
	unsigned pattern = (unsigned)qkt_rng_below(bed->rng, 256);
	if (!bed->c.may_compress || n == 0)
		return;
	size_t off = (size_t)qkt_rng_below(bed->rng, n) * cluster;
	if (qkt_run("%sqemu-io -c 'write -q -c -P %u %zu %zu' %s", bed->c.qemu, pattern, off,
		    cluster, named(bed)) != 0)
		return;
	bed_touch(bed, off, cluster);
	memset(bed->bytes + off, (int)pattern, cluster);
}

void bed_qemu_steps(struct bed *bed, unsigned n)
{
	char command[6000];
	uint8_t *maybe = calloc(1, bed->c.size / SECTOR + 1);
	size_t used = 0;
	if (maybe == NULL)
		abort();
	/* a step that follows a discard would decide what `maybe` leaves open: each batch ends with one */
	for (unsigned i = 0; i < n && used < sizeof(command) - 200; i++) {
		used += qemu_step(bed, command + used, sizeof(command) - used, maybe);
		if (memchr(maybe, 1, bed->c.size / SECTOR + 1) != NULL)
			break;
	}
	if (used > 0)
		qkt_must("%sqemu-io -d unmap%s %s", bed->c.qemu, command, named(bed));
	if (qkt_rng_below(bed->rng, 3) == 0)
		qemu_compresses(bed);
	uint8_t *now = oracle_reads(bed, 0);
	for (size_t s = 0; s * SECTOR < bed->c.size; s++) {
		size_t len = bed->c.size - s * SECTOR;
		/* what is behind the last whole sector QEMU does not see: it may be lost with the cluster */
		if (len >= SECTOR && !maybe[s])
			continue;
		len = len < SECTOR ? len : SECTOR;
		if (now[s * SECTOR] == 0 &&
			memcmp(now + s * SECTOR, now + s * SECTOR + 1, len - 1) == 0)
			memset(bed->bytes + s * SECTOR, 0, len);
	}
	differs(bed, "the oracle, after qemu-io,", bed->bytes, now, bed->c.size);
	free(now);
	free(maybe);
}

/* QEMU compresses into clusters that were never written only. */
static void write_compressed(struct bed *bed)
{
	size_t cluster = (size_t)1 << bed->c.cluster_bits, n = bed->c.size / cluster;
	char command[3000];
	size_t used = 0, at = 0;
	while (used < sizeof(command) - 100 && at < n) {
		unsigned pattern = (unsigned)qkt_rng_below(bed->rng, 256);
		memset(bed->bytes + at * cluster, (int)pattern, cluster);
		used += (size_t)snprintf(command + used, sizeof(command) - used,
			" -c 'write -q -c -P %u %zu %zu'", pattern, at * cluster, cluster);
		at += 1 + (size_t)qkt_rng_below(bed->rng, 4);
	}
	if (used > 0)
		qkt_must("%sqemu-io%s %s", bed->c.qemu, command, named(bed));
}

static void make_layer(struct bed *bed, unsigned depth, const char *below)
{
	const struct bed_config *c = &bed->c;
	char path[300], options[900];
	bool is_encrypted = depth == 0 && c->crypt != NULL;
	(void)snprintf(path, sizeof(path), "%s/layer%u", qkt_dir(), depth);
	size_t size = (c->size + SECTOR - 1) / SECTOR * SECTOR;
	if (depth != 0) /* longer or shorter than the one above */
		size = size / 4 / SECTOR * SECTOR +
		       (size_t)qkt_rng_below(bed->rng, size / SECTOR + 1) * SECTOR;
	int n = snprintf(options, sizeof(options), "cluster_size=%u,compat=%s",
		1u << (depth == 0 ? c->cluster_bits : 12), c->version == 2 ? "0.10" : "1.1");
	if (c->version == 3)
		n += snprintf(options + n, sizeof(options) - (size_t)n, ",refcount_bits=%u%s%s%s",
			c->refcount_bits, c->is_zstd ? ",compression_type=zstd" : "",
			c->is_lazy && depth == 0 ? ",lazy_refcounts=on" : "",
			c->is_extended && depth == 0 ? ",extended_l2=on" : "");
	if (c->has_data_file && depth == 0)
		n += snprintf(options + n, sizeof(options) - (size_t)n, ",data_file=%s/data%s",
			qkt_dir(), c->is_raw_data ? ",data_file_raw=on" : "");
	if (below != NULL)
		(void)snprintf(options + n, sizeof(options) - (size_t)n,
			",backing_file=%s,backing_fmt=qcow2", below);
	/* QEMU measures its speed for LUKS, and fails where the machine is very busy */
	qkt_must("for i in $(seq 40); do rm -f %s data; %sqemu-img create -q " SECRET
		 " -f qcow2 -o %s%s%s%s %s %zu && break; done; test -e %s",
		path, c->qemu, options, is_encrypted ? ",encrypt.key-secret=k,encrypt.format=" : "",
		is_encrypted ? c->crypt : "",
		is_encrypted && c->crypt[0] == 'l' ? ",encrypt.iter-time=1" : "", path,
		size > SECTOR ? size : SECTOR, path);
	if (depth != 0)
		qkt_must("%sqemu-io -f qcow2 -c 'write -q -P %u 0 512' -c 'write -q -P %u %zu %zu' "
			 "%s",
			c->qemu, 17 + depth, 33 + depth, size / 3 / SECTOR * SECTOR,
			size > 3 * SECTOR ? size / 3 / SECTOR * SECTOR : SECTOR, path);
}

/* The size in the header, to the byte. */
static void patch_size(const struct bed *bed)
{
	uint8_t b[8];
	for (unsigned i = 0; i < 8; i++)
		b[i] = (uint8_t)((uint64_t)bed->c.size >> 8 * (7 - i));
	int fd = open(bed->path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || pwrite(fd, b, 8, 24) != 8 || close(fd) != 0)
		abort();
}

static void make_bitmaps(struct bed *bed)
{
	qkt_must("%sqemu-img bitmap --add -g %u %s %s on && %sqemu-img bitmap --add --disable -g "
		 "4096 %s %s off",
		bed->c.qemu, GRAIN, "", named(bed), bed->c.qemu, "", named(bed));
	bed->touched = calloc(1, bed->c.size / SECTOR + 1);
	if (bed->touched == NULL)
		abort();
}

void bed_make(struct bed *bed, const struct bed_config *c, struct qkt_rng *rng)
{
	char below[300];
	memset(bed, 0, sizeof(*bed));
	bed->c = *c;
	bed->rng = rng;
	for (unsigned depth = c->n_layers; depth-- > 0;) {
		(void)snprintf(below, sizeof(below), "%s/layer%u", qkt_dir(), depth + 1);
		make_layer(bed, depth, depth + 1 < c->n_layers ? below : NULL);
	}
	(void)snprintf(bed->path, sizeof(bed->path), "%s/layer0", qkt_dir());
	if (c->size % SECTOR != 0)
		patch_size(bed);
	bed->bytes = oracle_reads(bed, 0);
	if (c->has_compressed)
		write_compressed(bed);
	if (c->has_bitmaps)
		make_bitmaps(bed);
	bed_qemu_steps(bed, 8);
	for (unsigned i = 0; i < c->n_snapshots; i++) {
		bed_snapshot(bed);
		bed_qemu_steps(bed, 3);
	}
	if (c->is_fixed)
		qkt_must("truncate -s +%zu %s && truncate -s %%65536 %s",
			(size_t)qkt_rng_below(rng, 2 * c->size + 65536), bed->path, bed->path);
}

void bed_free(struct bed *bed)
{
	for (unsigned i = 0; i < bed->n_snapshots; i++)
		free(bed->snapshots[i].bytes);
	free(bed->bytes);
	free(bed->touched);
	memset(bed, 0, sizeof(*bed));
}

void bed_snapshot(struct bed *bed)
{
	unsigned n = bed->n_snapshots;
	/* each cluster gets one more reference than there are snapshots */
	if (n == BED_SNAPSHOTS ||
		(bed->c.refcount_bits < 8 && n + 2 > (1u << bed->c.refcount_bits) - 1))
		return;
	/* it knows no -f */
	qkt_must("%sqemu-img snapshot -c s%u %s", bed->c.qemu, n + 1,
		bed->c.crypt != NULL ? named(bed) : bed->path);
	bed->snapshots[n].id = n + 1;
	bed->snapshots[n].bytes = malloc(bed->c.size);
	if (bed->snapshots[n].bytes == NULL)
		abort();
	memcpy(bed->snapshots[n].bytes, bed->bytes, bed->c.size);
	bed->n_snapshots++;
}

/* ---- judging ---- */

static void qemu_reads(struct bed *bed, const char *qemu, unsigned snapshot, const uint8_t *want)
{
	char view[40] = "";
	size_t n = 0;
	if (snapshot != 0)
		(void)snprintf(view, sizeof(view), "-l snapshot.id=%u", snapshot);
	qkt_must("rm -f dump; %sqemu-img convert -O raw %s %s dump", qemu, view, named(bed));
	uint8_t *bytes = qkt_slurp(qkt_path("dump"), &n);
	size_t whole = bed->c.size / SECTOR * SECTOR;
	if (n < whole) {
		printf("qemu-img reads %zu bytes of %zu\n", n, whole);
		abort();
	}
	differs(bed, "qemu-img", want, bytes, whole);
	free(bytes);
}

static void says_clean(const char *who, int status, bool leaks)
{
	if (status == 0 || (leaks && status == 3))
		return;
	printf("%s: exit status %d\n%s%s", who, status, qkt_stdout(), qkt_stderr());
	abort();
}

/* Every touched sector is marked in the enabled bitmap, and nothing in the disabled one. */
static void check_bitmaps(struct bed *bed)
{
	struct qkt_dirtymap on, off;
	size_t n = 0;
	uint8_t *file = qkt_slurp(bed->path, &n);
	/* a store that cannot grow may have no room for it: then it stays in use, and nobody trusts it any more */
	if (bed->c.is_fixed && qkt_dirtymap_get(file, n, 0, &on) && on.in_use) {
		free(bed->touched);
		bed->touched = NULL;
		free(file);
		return;
	}
	if (!qkt_dirtymap_get(file, n, 0, &on) || !qkt_dirtymap_get(file, n, 1, &off) ||
		on.in_use || !on.is_auto || off.in_use || off.is_auto ||
		on.granularity_bits != (unsigned)__builtin_ctz(GRAIN)) {
		printf("the bitmaps are not as they were made, or in use\n");
		abort();
	}
	for (size_t at = 0; at < bed->c.size; at += SECTOR)
		if ((bed->touched[at / SECTOR] && !qkt_dirtymap_at(&on, at)) ||
			qkt_dirtymap_at(&off, at)) {
			printf("a bitmap is wrong at %zu\n", at);
			abort();
		}
	free(file);
}

/* For whoever reads a raw data file alone it is the disk. */
static void check_raw_data(const struct bed *bed)
{
	size_t n = 0;
	uint8_t *bytes = qkt_slurp(qkt_path("data"), &n);
	if (n < bed->c.size) {
		printf("the data file has %zu bytes of %zu\n", n, bed->c.size);
		abort();
	}
	differs(bed, "who reads the raw data file", bed->bytes, bytes, bed->c.size);
	free(bytes);
}

void bed_check(struct bed *bed, bool by_qemu, bool leaks)
{
	const char *qemus[2];
	size_t n_qemus = by_qemu ? qkt_qemus(qemus) : 0;
	says_clean("oracle check", qkt_run("%s check %s", oracle(), bed->path), leaks);
	uint8_t *now = oracle_reads(bed, 0);
	differs(bed, "the oracle", bed->bytes, now, bed->c.size);
	free(now);
	if (bed->c.is_raw_data)
		check_raw_data(bed);
	if (bed->touched != NULL && !leaks)
		check_bitmaps(bed);
	for (size_t q = 0; q < n_qemus; q++) {
		says_clean("qemu-img check", qkt_run("%sqemu-img check %s", qemus[q], named(bed)),
			leaks);
		qemu_reads(bed, qemus[q], 0, bed->bytes);
	}
	for (unsigned i = 0; by_qemu && i < bed->n_snapshots; i++) {
		now = oracle_reads(bed, bed->snapshots[i].id);
		differs(bed, "the oracle, of a snapshot,", bed->snapshots[i].bytes, now,
			bed->c.size / SECTOR * SECTOR);
		free(now);
		qemu_reads(bed, bed->c.qemu, bed->snapshots[i].id, bed->snapshots[i].bytes);
	}
}
