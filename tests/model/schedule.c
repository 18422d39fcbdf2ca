/* SPDX-License-Identifier: MIT */
/*
 * schedule [--most N] [--only NAME]: pairs of operations on one cluster in every order of their store calls.
 *
 * Two threads run one operation each. One runs at a time; at every call to the store, and where a lock is taken,
 * it may be the other's turn. Locks are wrapped by the linker (meson.build), so who waits for whom is known
 * exactly, and a deadlock is seen. All choices are tried, depth first, up to N (default 400) a pair and image;
 * each run begins with a fresh copy of the image. Judged: both calls succeed, every piece of the disk holds what one of
 * the two left (a read finds the old or the new), the order checker says nothing, the file closed after it is
 * clean and reads the same for the oracle (each distinct file once), and its bitmap knows of every change.
 */
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qcowkit/manage.h>

#include "dirtymap.h"
#include "host.h"
#include "image.h"
#include "ram.h"
#include "turns.h"

#define PIECE	   128u /* a quarter of a sector: what an operation touches is counted in pieces */
#define CLUSTER	   4096u
#define DISK	   (16u * CLUSTER)
#define AT	   (2u * CLUSTER) /* where the pair works */
#define GRAIN	   512u /* of the bitmap */
#define PASSPHRASE "abc123"

/* ---- operations ---- */

enum kind {
	WRITE,
	ZERO,
	DISCARD,
	READ,
	FLUSH,
	COMPRESSED,
	SNAPSHOT, /* made */
	STATE, /* of a machine, behind the disk */
	RECOVER /* of nothing */
};

/* Pieces count from AT; a sector has four, a cluster 32. */
static const struct op {
	const char *name;
	enum kind kind;
	unsigned flags, first, n;
} ops[] = {
	{"write part", WRITE, 0, 8, 12},
	{"write cluster", WRITE, 0, 0, 32},
	{"write across two", WRITE, 0, 24, 24},
	{"write through", WRITE, QCOW_IO_FUA, 16, 8},
	{"zero cluster", ZERO, 0, 0, 32},
	{"zero, unmap", ZERO, QCOW_IO_UNMAP, 0, 32},
	{"zero part", ZERO, 0, 12, 12},
	{"discard", DISCARD, 0, 0, 32},
	{"read", READ, 0, 0, 64},
	{"flush", FLUSH, 0, 0, 0},
	{"recover", RECOVER, 0, 0, 0},
	/* of images without a data file */
	{"snapshot", SNAPSHOT, 0, 0, 0},
	{"machine's state", STATE, 0, 0, 32},
	/* a whole cluster of 4 KiB, and two */
	{"write compressed", COMPRESSED, 0, 0, 32},
	{"write compressed, two", COMPRESSED, 0, 0, 64},
	/* from here on parts of sectors, for encrypted images: of one, of the same, of two clusters */
	{"write in a sector", WRITE, 0, 13, 2},
	{"write from within", WRITE, 0, 15, 10},
	{"write off the sectors", WRITE, 0, 30, 3},
	{"zero off the sectors", ZERO, 0, 14, 3},
};
#define N_OPS	    (sizeof(ops) / sizeof(ops[0]))
#define N_OPS_WHOLE 15u

/* Images: what qemu-io does to an empty one, then what we do to it, not flushed, before the pair. */
#define PASSED ((uint32_t)(QCOW_DISCARD_PASS_REQUEST | QCOW_DISCARD_PASS_OTHER))
#define KEPT   (PASSED | (uint32_t)QCOW_DISCARD_NO_UNREF)

#define SECRET	"--object secret,id=k,data=" PASSPHRASE
#define KEY	",encrypt.key-secret=k,encrypt.format="
#define AES	KEY "aes"
#define LUKS	KEY "luks,encrypt.cipher-alg=aes-128,encrypt.iter-time=1"
#define CODED	SECRET " --image-opts driver=qcow2,encrypt.key-secret=k,file.filename=image"
#define WRITTEN "qemu-io -c 'write -q -P 1 0 64k' " CODED
#define BITMAP	"qemu-img bitmap --add -g 512 image b"

#define DATA_FILE     "compat=1.1,data_file=data"
#define RAW_DATA_FILE DATA_FILE ",data_file_raw=on"

static const struct bed {
	const char *name, *options, *commands;
	bool has_backing;
	uint32_t discard; /* QCOW_DISCARD_ bits */
	int before; /* index in ops, -1: nothing */
} beds[] = {
	{"empty", "compat=1.1", "true", false, PASSED, -1},
	{"allocated", "compat=1.1", "qemu-io -c 'write -q -P 1 0 64k' image", false, PASSED, -1},
	{"version 2", "compat=0.10", "qemu-io -c 'write -q -P 1 0 64k' image", false, PASSED, -1},
	{"a write staged", "compat=1.1", "true", false, PASSED, 0},
	{"a discard staged", "compat=1.1", "qemu-io -c 'write -q -P 1 0 64k' image", false, PASSED,
		7},
	{"a discard staged, kept", "compat=1.1", "qemu-io -c 'write -q -P 1 0 64k' image", false,
		KEPT, 7},
	{"a write and a backing file", "compat=1.1", "true", true, PASSED, 0},
	{"a snapshot", "compat=1.1",
		"qemu-io -c 'write -q -P 1 0 64k' image && qemu-img snapshot -c s image", false,
		PASSED, -1},
	{"a snapshot, a write staged", "compat=1.1",
		"qemu-io -c 'write -q -P 1 0 64k' image && qemu-img snapshot -c s image", false,
		PASSED, 0},
	{"a backing file", "compat=1.1", "true", true, PASSED, -1},
	{"zero clusters", "compat=1.1",
		"qemu-io -c 'write -q -P 1 0 64k' -c 'write -q -z 0 64k' image", false, PASSED, -1},
	{"compressed", "compat=1.1",
		"for i in 0 4 8 12 16; do qemu-io -c \"write -q -c -P 1 ${i}k 4k\" image || exit "
		"1; done",
		false, PASSED, -1},
	{"subclusters", "cluster_size=32k,extended_l2=on", "true", false, PASSED, -1},
	{"subclusters, a backing file", "cluster_size=32k,extended_l2=on",
		"qemu-io -c 'write -q -P 1 5k 8k' image", true, PASSED, -1},
	{"subclusters, a write staged", "cluster_size=32k,extended_l2=on", "true", true, PASSED, 0},
	{"subclusters, zeros staged", "cluster_size=32k,extended_l2=on",
		"qemu-io -c 'write -q -P 1 0 64k' image", true, PASSED, 6},
	{"subclusters, a snapshot", "cluster_size=32k,extended_l2=on",
		"qemu-io -c 'write -q -P 1 3k 6k' -c 'write -q -P 2 11k 1k' image &&"
		"qemu-img snapshot -c s image",
		false, PASSED, -1},
	{"subclusters, compressed", "cluster_size=32k,extended_l2=on",
		"qemu-io -c 'write -q -c -P 1 0 32k' image", false, PASSED, -1},
	{"AES", "compat=1.1" AES, WRITTEN, false, PASSED, -1},
	{"AES, a write staged", "compat=1.1" AES, "true", true, PASSED, 0},
	{"AES, a snapshot", "compat=1.1" AES, WRITTEN " && qemu-img snapshot -c s " CODED, false,
		PASSED, -1},
	/* its first cluster is there, its second is not */
	{"LUKS, a backing file", "compat=1.1" LUKS, "qemu-io -c 'write -q -P 1 0 12k' " CODED, true,
		PASSED, -1},
	{"AES, subclusters, zeros staged", "cluster_size=32k,extended_l2=on" AES, WRITTEN, true,
		PASSED, 6},
	{"a bitmap", "compat=1.1", BITMAP, false, PASSED, -1},
	{"a bitmap, allocated", "compat=1.1", "qemu-io -c 'write -q -P 1 0 64k' image && " BITMAP,
		false, PASSED, -1},
	{"a bitmap and a snapshot", "compat=1.1",
		"qemu-io -c 'write -q -P 1 0 64k' image && " BITMAP
		" && qemu-img snapshot -c s image",
		false, PASSED, -1},
	{"a bitmap, subclusters", "cluster_size=32k,extended_l2=on", BITMAP, true, PASSED, -1},
	{"a data file", DATA_FILE, "true", false, PASSED, -1},
	{"a data file, allocated", DATA_FILE, "qemu-io -c 'write -q -P 1 0 64k' image", false,
		PASSED, -1},
	{"a data file, a write staged", DATA_FILE, "true", true, PASSED, 0},
	{"a data file, a discard staged", DATA_FILE, "qemu-io -c 'write -q -P 1 0 64k' image", true,
		PASSED, 7},
	{"a data file, subclusters, zeros staged", DATA_FILE ",cluster_size=32k,extended_l2=on",
		"qemu-io -c 'write -q -P 1 0 64k' image", true, PASSED, 6},
	{"a data file, AES", DATA_FILE AES, "qemu-io -c 'write -q -P 1 0 12k' " CODED, true, PASSED,
		-1},
	{"a data file and a bitmap", DATA_FILE, "qemu-io -c 'write -q -P 1 0 64k' image && " BITMAP,
		false, PASSED, -1},
	{"a raw data file", RAW_DATA_FILE, "true", false, PASSED, -1},
	{"a raw data file, a discard staged", RAW_DATA_FILE,
		"qemu-io -c 'write -q -P 1 0 64k' image", false, PASSED, 7},
};
#define N_BEDS (sizeof(beds) / sizeof(beds[0]))

static bool is_coded(const struct bed *bed)
{
	return strstr(bed->options, KEY) != NULL;
}

/* An enabled one, all clear. */
static bool has_bitmap(const struct bed *bed)
{
	return strstr(bed->commands, BITMAP) != NULL;
}

static bool has_data_file(const struct bed *bed)
{
	return strncmp(bed->options, DATA_FILE, strlen(DATA_FILE)) == 0;
}

static bool fits(const struct op *op, const struct bed *bed)
{
	bool is_small = strstr(bed->options, "extended_l2") == NULL;
	bool compresses = !has_data_file(bed) && !is_coded(bed) && is_small;
	if ((size_t)(op - ops) >= N_OPS_WHOLE)
		return is_coded(bed);
	return op->kind < COMPRESSED || op->kind == RECOVER ||
	       (op->kind == COMPRESSED ? compresses : !has_data_file(bed));
}

struct thread {
	const struct op *op;
	struct qcow_image *image;
	int who;
	uint8_t value;
	uint8_t buf[64 * PIECE];
	enum qcow_status status;
	struct qcow_error err;
};

static struct {
	const struct bed *bed;
	uint8_t *file, *data_file; /* as QEMU left them; data_file NULL: there is none */
	uint64_t file_size, data_size;
	uint8_t disk[DISK]; /* what it reads as, then with what was done before the pair */
	bool changed[DISK / PIECE]; /* by what was done before the pair */
	struct qkt_ram ram, data;
	struct qkt_fault *fault;
	struct qkt_order *order; /* of the run */
	const struct op *pair[2];
	uint64_t runs, points, files, capped;
	uint64_t *hashes;
	size_t n_hashes;
} all;

void turn_die(const char *what)
{
	printf("FAILED %s: \"%s\" and \"%s\": %s\n  choices", all.bed->name, all.pair[0]->name,
		all.pair[1]->name, what);
	for (unsigned i = 0; i < turns.n; i++)
		printf(" %d", turns.choices[i]);
	printf("\n");
	(void)fflush(stdout);
	_Exit(1);
}

/* What the operation leaves in a piece, counted from AT; false: it does not touch it. */
static bool leaves(const struct op *op, unsigned value, unsigned piece, uint8_t *out)
{
	*out = op->kind == WRITE || op->kind == COMPRESSED ? (uint8_t)value : 0;
	if (op->kind == READ || op->kind == FLUSH || op->kind > COMPRESSED)
		return false;
	/* there it has no whole cluster */
	if (op->kind == DISCARD && strstr(all.bed->options, "extended_l2") != NULL)
		return false;
	return piece >= op->first && piece < op->first + op->n;
}

static void perform(struct thread *t)
{
	uint64_t off = AT + (uint64_t)t->op->first * PIECE, len = (uint64_t)t->op->n * PIECE;
	struct qcow_snapshot_create_options snapshot = QCOW_SNAPSHOT_CREATE_OPTIONS_INIT;
	snapshot.name = "made";
	t->err = (struct qcow_error)QCOW_ERROR_INIT;
	memset(t->buf, t->value, sizeof(t->buf));
	switch (t->op->kind) {
	case WRITE:
		t->status = qcow_pwrite(t->image, t->buf, len, off, t->op->flags, &t->err);
		break;
	case ZERO:
		t->status = qcow_zero(t->image, off, len, t->op->flags, &t->err);
		break;
	case DISCARD:
		t->status = qcow_discard(t->image, off, len, t->op->flags, &t->err);
		break;
	case READ:
		t->status = qcow_pread(t->image, t->buf, len, off, &t->err);
		break;
	case FLUSH:
		t->status = qcow_flush(t->image, &t->err);
		break;
	case COMPRESSED:
		t->status = qcow_write_compressed(t->image, t->buf, len, off, 0, &t->err);
		break;
	case SNAPSHOT:
		t->status = qcow_snapshot_create(t->image, &snapshot, &t->err);
		break;
	case STATE:
		t->status = qcow_write_vm_state(t->image, t->buf, len, 512, &t->err);
		break;
	case RECOVER:
		t->status = qcow_recover(t->image, &t->err);
		break;
	}
}

static void *run_thread(void *arg)
{
	struct thread *t = arg;
	turn_self = t->who;
	(void)__real_pthread_mutex_lock(&turns.lock);
	while (turns.running != turn_self)
		(void)__real_pthread_cond_wait(&turns.turn, &turns.lock);
	(void)__real_pthread_mutex_unlock(&turns.lock);
	perform(t);
	turn_yield(ENDED);
	turn_self = -1;
	return NULL;
}

/* ---- judging ---- */

static bool is_all(const uint8_t *p, uint8_t value)
{
	return p[0] == value && memcmp(p, p + 1, PIECE - 1) == 0;
}

static void judge_disk(const uint8_t *now, const struct thread *t)
{
	for (unsigned s = 0; s < DISK / PIECE; s++) {
		uint8_t a = 0, b = 0;
		unsigned at = s - AT / PIECE;
		bool by_a = s >= AT / PIECE && leaves(t[0].op, t[0].value, at, &a);
		bool by_b = s >= AT / PIECE && leaves(t[1].op, t[1].value, at, &b);
		const uint8_t *p = now + s * PIECE;
		bool ok = (by_a && is_all(p, a)) || (by_b && is_all(p, b)) ||
			  (!by_a && !by_b && memcmp(p, all.disk + s * PIECE, PIECE) == 0);
		if (!ok)
			turn_die("a piece of the disk holds what neither left");
	}
}

static void judge_read(const struct thread *t, const struct thread *other)
{
	for (unsigned s = 0; t->op->kind == READ && s < t->op->n; s++) {
		uint8_t v = 0;
		const uint8_t *p = t->buf + s * PIECE;
		if (leaves(other->op, other->value, s, &v) && is_all(p, v))
			continue;
		if (memcmp(p, all.disk + AT + s * PIECE, PIECE) != 0)
			turn_die("a read finds neither old nor new");
	}
}

static uint64_t hash(const uint8_t *p, uint64_t n)
{
	uint64_t h = n;
	for (uint64_t i = 0; i + 8 <= n; i += 8) {
		uint64_t w;
		memcpy(&w, p + i, 8);
		h = (h ^ w) * UINT64_C(0x9e3779b97f4a7c15);
		h ^= h >> 29;
	}
	return h;
}

/* What was changed, or asked to be, is marked, and the bitmap is one that may be trusted. */
static void judge_bitmap(const struct thread *t)
{
	struct qkt_dirtymap map;
	uint8_t unused;
	if (!qkt_dirtymap_get(all.ram.bytes, all.ram.size, 0, &map) || map.in_use || !map.is_auto)
		turn_die("the bitmap is lost, or in use");
	for (unsigned s = 0; s < DISK / PIECE; s++) {
		unsigned at = s - AT / PIECE;
		bool must_be = all.changed[s] ||
			       (s >= AT / PIECE && (leaves(t[0].op, 0, at, &unused) ||
							   leaves(t[1].op, 0, at, &unused)));
		if (must_be && !qkt_dirtymap_at(&map, (uint64_t)s * PIECE))
			turn_die("the bitmap does not know of a change");
	}
}

static void dump_to(const char *name, const struct qkt_ram *ram)
{
	FILE *f = fopen(qkt_path(name), "wb");
	if (f == NULL || fwrite(ram->bytes, 1, ram->size, f) != ram->size || fclose(f) != 0)
		abort();
}

/* The oracle looks at each distinct file; whoever reads a raw data file alone finds the disk. */
static void judge_file(const uint8_t *disk)
{
	static const char *const key = " --passphrase " PASSPHRASE;
	size_t n = 0;
	uint64_t h = hash(all.ram.bytes, all.ram.size);
	if (all.data_file != NULL)
		h = h * 31 + hash(all.data.bytes, all.data.size);
	if (strncmp(all.bed->options, RAW_DATA_FILE, strlen(RAW_DATA_FILE)) == 0 &&
		(all.data.size < DISK || memcmp(all.data.bytes, disk, DISK) != 0))
		turn_die("the raw data file is not the disk");
	for (size_t i = 0; i < all.n_hashes; i++)
		if (all.hashes[i] == h)
			return;
	all.hashes = realloc(all.hashes, (all.n_hashes + 1) * sizeof(*all.hashes));
	if (all.hashes == NULL)
		abort();
	all.hashes[all.n_hashes++] = h;
	all.files++;
	dump_to("after", &all.ram);
	if (all.data_file != NULL)
		dump_to("data", &all.data);
	const char *by = is_coded(all.bed) ? key : "";
	if (qkt_run("%s check after%s", getenv("ORACLE"), by) != 0) {
		printf("%s%s", qkt_stdout(), qkt_stderr());
		turn_die("the oracle does not find the file clean");
	}
	qkt_must("rm -f dump; %s read after -o dump%s", getenv("ORACLE"), by);
	uint8_t *bytes = qkt_slurp(qkt_path("dump"), &n);
	if (n != DISK || memcmp(bytes, disk, DISK) != 0)
		turn_die("the oracle reads other bytes");
	free(bytes);
}

/* ---- runs ---- */

static void must(enum qcow_status st, const struct qcow_error *err)
{
	if (st != QCOW_OK)
		turn_die(err->message);
}

static struct qcow_store *wrap(const struct qcow_store_ops *o, void *ctx)
{
	struct qcow_store *s = NULL;
	if (qcow_store_new(o, ctx, &s, NULL) != QCOW_OK)
		abort();
	return s;
}

static void run_pair(struct qcow_image *image, struct thread *t)
{
	pthread_t threads[2];
	turns.state[0] = turns.state[1] = AT_CALL;
	turns.n = 0;
	turns.running = -1;
	for (int i = 0; i < 2; i++) {
		t[i] = (struct thread){
			all.pair[i], image, i, (uint8_t)(0xa1 + i * 0x11), {0}, 0, {0}};
		if (pthread_create(&threads[i], NULL, run_thread, &t[i]) != 0)
			abort();
	}
	(void)__real_pthread_mutex_lock(&turns.lock);
	turns.running = turn_choose();
	(void)__real_pthread_cond_broadcast(&turns.turn);
	(void)__real_pthread_mutex_unlock(&turns.lock);
	for (int i = 0; i < 2; i++)
		(void)pthread_join(threads[i], NULL);
	for (int i = 0; i < 2; i++)
		must(t[i].status, &t[i].err);
}

static void do_before(struct qcow_image *image)
{
	uint8_t v = 0;
	if (all.bed->before < 0)
		return;
	struct thread t = {.op = &ops[all.bed->before], .image = image, .value = 0x77};
	perform(&t);
	must(t.status, &t.err);
	for (unsigned s = 0; s < 64; s++)
		if (leaves(t.op, t.value, s, &v)) {
			memset(all.disk + AT + s * PIECE, v, PIECE);
			all.changed[AT / PIECE + s] = true;
		}
}

static enum qcow_status open_data_file(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	(void)ctx;
	(void)err;
	if (ref->kind != QCOW_REF_DATA_FILE)
		turn_die("a reference to something else than the data file");
	out->store = wrap(
		&turn_store_ops, qkt_guard_data(all.fault, all.order, qkt_ram_store(&all.data), 1));
	return QCOW_OK;
}

static void run_once(void)
{
	struct qkt_order_options options = {.threads = true};
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	struct thread t[2];
	static uint8_t now[DISK];
	all.fault = qkt_fault_new();
	all.order = qkt_order_new(&options);
	qkt_ram_load(&all.ram, all.file, all.file_size);
	if (all.data_file != NULL) {
		qkt_ram_load(&all.data, all.data_file, all.data_size);
		open.resolve = open_data_file;
	}
	open.flags = QCOW_OPEN_WRITE;
	if (is_coded(all.bed))
		open.secret = (struct qcow_secret){PASSPHRASE, strlen(PASSPHRASE)};
	open.discard = all.bed->discard;
	if (all.bed->has_backing) {
		struct qcow_open_options raw = QCOW_OPEN_OPTIONS_INIT;
		struct qcow_store *s = NULL;
		raw.format = "raw";
		must(qcow_file_open(qkt_path("base"), 0, &s, &err), &err);
		must(qcow_open(s, &raw, &open.backing, &err), &err);
	}
	struct qcow_store *store = qkt_guard(all.fault, all.order, qkt_ram_store(&all.ram), 0);
	must(qcow_open(wrap(&turn_store_ops, store), &open, &image, &err), &err);
	do_before(image);
	run_pair(image, t);
	must(qcow_pread(image, now, DISK, 0, &err), &err);
	judge_disk(now, t);
	judge_read(&t[0], &t[1]);
	judge_read(&t[1], &t[0]);
	must(qcow_flush(image, &err), &err);
	qcow_close(image);
	qkt_order_free(all.order);
	qkt_fault_free(all.fault);
	if (has_bitmap(all.bed))
		judge_bitmap(t);
	judge_file(now);
	all.runs++;
	all.points += turns.n;
}

/* All orders of the pair, at most `most`. */
static void explore(uint64_t most)
{
	turns.n_given = 0;
	for (uint64_t n = 0;; n++) {
		if (n == most) {
			all.capped++;
			return;
		}
		run_once();
		unsigned last = turns.n;
		while (last > 0 && turns.choices[last - 1] + 1 >= turns.n_alternatives[last - 1])
			last--;
		if (last == 0)
			return;
		turns.choices[last - 1]++;
		turns.n_given = last;
	}
}

static void make(const struct bed *bed)
{
	size_t n = 0;
	all.bed = bed;
	qkt_must("rm -f image data base after dump; truncate -s 64k base && "
		 "qemu-io -f raw -c 'write -q -P 3 0 64k' base");
	memset(all.changed, 0, sizeof(all.changed));
	/* QEMU measures its speed for LUKS, and fails where the machine is very busy */
	qkt_must("for i in $(seq 40); do rm -f image data; qemu-img create -q %s -f qcow2 -o "
		 "cluster_size=4096,%s %s image 64k && break; done; test -e image",
		is_coded(bed) ? SECRET : "", bed->options,
		bed->has_backing ? "-b base -F raw" : "");
	qkt_must("%s", bed->commands);
	qkt_must("%s read image -o dump%s", getenv("ORACLE"),
		is_coded(bed) ? " --passphrase " PASSPHRASE : "");
	uint8_t *dump = qkt_slurp(qkt_path("dump"), &n);
	memcpy(all.disk, dump, DISK);
	free(dump);
	free(all.file);
	all.file = qkt_slurp(qkt_path("image"), &n);
	all.file_size = n;
	free(all.data_file);
	all.data_file = has_data_file(bed) ? qkt_slurp(qkt_path("data"), &n) : NULL;
	all.data_size = n;
}

/* Few of those that take long, where not all are asked for. */
static uint64_t most_orders(
	const struct op *a, const struct op *b, const struct bed *bed, uint64_t most)
{
	bool has_key = strstr(bed->options, LUKS) != NULL;
	bool is_long = (a->kind >= COMPRESSED || b->kind >= COMPRESSED) && most >= 20;
	if (most >= 1000)
		return most;
	return has_key ? 4 : is_long ? most / 20 : most;
}

int main(int argc, char **argv)
{
	uint64_t most = 400;
	char dir[PATH_MAX], path[PATH_MAX + 20];
	const char *only = "";
	for (int i = 1; i < argc; i += 2) {
		if (strcmp(argv[i], "--most") == 0 && i + 1 < argc)
			most = strtoull(argv[i + 1], NULL, 0);
		else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
			only = argv[i + 1];
		else {
			(void)fprintf(stderr, "usage: schedule [--most N] [--only NAME]\n");
			return 2;
		}
	}
	qkt_need_program("qemu-img", "qemu-utils");
	if (getenv("ORACLE") == NULL && realpath(argv[0], dir) != NULL) {
		*strrchr(dir, '/') = '\0';
		(void)snprintf(path, sizeof(path), "%s/../oracle/oracle", dir);
		(void)setenv("ORACLE", path, 1);
	}
	unsigned n = 0;
	for (const struct bed *bed = beds; bed < beds + N_BEDS; bed++) {
		if (strstr(bed->name, only) == NULL)
			continue;
		uint64_t before = all.runs;
		make(bed);
		for (size_t i = 0; i < N_OPS; i++)
			for (size_t j = i; j < N_OPS; j++) {
				if (!fits(&ops[i], bed) || !fits(&ops[j], bed))
					continue;
				n++;
				all.pair[0] = &ops[i];
				all.pair[1] = &ops[j];
				explore(most_orders(&ops[i], &ops[j], bed, most));
			}
		printf("%-32s %" PRIu64 " orders\n", bed->name, all.runs - before);
	}
	printf("%u pairs, %" PRIu64 " orders, %" PRIu64 " distinct files, %" PRIu64
	       " pairs cut at %" PRIu64 ": 0 bad\n",
		n, all.runs, all.files, all.capped, most);
	printf("%u passed, 0 failed\n", n);
	return 0;
}
