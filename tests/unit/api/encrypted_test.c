/* SPDX-License-Identifier: MIT */
/*
 * Encrypted images made and opened while every Nth allocation and every Nth call on the stores fails; and
 * afterwards neither passphrase nor key is anywhere in the memory that this process can write.
 */
#include "cm.h"

#include <stdio.h>
#include <stdlib.h>

#include <qcowkit/qcowkit.h>

#include "crypto/luks1.h"
#include "failmalloc.h"
#include "fault.h"

#define DISK_BYTES (300U << 10)
#define PART_BYTES (64U << 10)

enum kind {
	QCOW2_LUKS,
	QCOW2_AES,
	LUKS_FILE,
	LUKS_DETACHED, /* the header in `store`, the disk in `data` */
	LUKS_KEPT, /* over a file that is there */
	N_KINDS
};

struct disk {
	struct qkt_fault *fault; /* or NULL */
	struct qcow_store *store, *data;
};

static const char passphrase[] = "correct horse battery staple";

static bool fills_data(enum kind kind)
{
	return kind == LUKS_DETACHED;
}

static struct qcow_create_options options_of(enum kind kind)
{
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;

	o.virtual_size = DISK_BYTES;
	o.encryption = kind == QCOW2_AES ? QCOW_ENCRYPTION_AES : QCOW_ENCRYPTION_LUKS;
	o.format = kind == QCOW2_AES || kind == QCOW2_LUKS ? "qcow2" : "luks";
	o.luks_detached_header = kind == LUKS_DETACHED;
	o.secret = (struct qcow_secret){passphrase, strlen(passphrase)};
	if (kind != QCOW2_AES) {
		o.luks_iter_time_ms = QCOW_LUKS_ITER_LEAST;
		o.luks_cipher = "aes-128";
	}
	return o;
}

static enum qcow_status fill(struct qcow_builder *b, struct qcow_error *err)
{
	uint8_t buf[PART_BYTES];
	uint64_t host = 0, run = 0;

	memset(buf, 0x5a, sizeof(buf));
	enum qcow_status st = qcow_builder_reserve(b, 0, sizeof(buf), &host, &run, err);
	if (st == QCOW_OK)
		st = qcow_builder_write(b, 0, host, buf, run, err);
	if (st == QCOW_OK)
		st = qcow_builder_zero(b, PART_BYTES, DISK_BYTES - PART_BYTES, err);
	return st;
}

static enum qcow_status write_disk(
	enum kind kind, const struct disk *d, bool keep, struct qcow_error *err)
{
	struct qcow_create_options o = options_of(kind);
	struct qcow_builder *b = NULL;

	o.luks_keep = keep;
	enum qcow_status st = qcow_builder_new(
		d->store, fills_data(kind) ? d->data : NULL, &o, &b, err);
	if (st != QCOW_OK)
		return st;
	st = fill(b, err);
	if (st == QCOW_OK)
		return qcow_builder_finish(b, err);
	qcow_builder_abandon(b);
	return st;
}

static void init(struct disk *d, enum kind kind, bool with_faults)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	*d = (struct disk){.fault = with_faults ? qkt_fault_new() : NULL};
	assert_ok(qcow_memory_open(0, &d->store, &err), err);
	assert_ok(qcow_memory_open(0, &d->data, &err), err);
	if (kind == LUKS_KEPT)
		assert_ok(write_disk(LUKS_FILE, d, false, &err), err);
	if (!with_faults)
		return;
	d->store = qkt_fault_wrap(d->fault, d->store, 0);
	d->data = qkt_fault_wrap(d->fault, d->data, 1);
}

static void release(struct disk *d)
{
	qcow_store_close(d->store);
	qcow_store_close(d->data);
	if (d->fault != NULL)
		qkt_fault_free(d->fault);
}

/* The stores pass to the image. */
static enum qcow_status read_disk(enum kind kind, struct disk *d, struct qcow_error *err)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	uint8_t buf[PART_BYTES + 512];

	o.secret = (struct qcow_secret){passphrase, strlen(passphrase)};
	o.format = options_of(kind).format;
	struct qcow_store *store = d->store;
	if (fills_data(kind)) {
		o.luks_header = d->store;
		store = d->data;
		d->data = NULL;
	}
	d->store = NULL;
	enum qcow_status st = qcow_open(store, &o, &image, err);
	if (st != QCOW_OK)
		return st;
	assert_int_equal(qcow_size(image), DISK_BYTES);
	st = qcow_pread(image, buf, sizeof(buf), 0, err);
	for (size_t i = 0; st == QCOW_OK && i < sizeof(buf); i++)
		assert_int_equal(buf[i], i < PART_BYTES ? 0x5a : 0);
	qcow_close(image);
	return st;
}

/* Neither LUKS nor qcow2: what was not finished is nothing. */
static void judge_header(enum kind kind, struct qcow_store *store, enum qcow_status status)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t head[8];

	assert_ok(qcow_store_read_padded(store, head, sizeof(head), 0, &err), err);
	bool has_magic = memcmp(head, "QFI\xfb", 4) == 0 || memcmp(head, "LUKS\xba\xbe", 6) == 0;
	assert_int_equal(has_magic, status == QCOW_OK || kind == LUKS_KEPT);
}

static void what_is_written_is_read(void **state)
{
	(void)state;
	for (unsigned kind = 0; kind < N_KINDS; kind++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct disk d;
		init(&d, kind, false);
		assert_ok(write_disk(kind, &d, kind == LUKS_KEPT, &err), err);
		assert_ok(read_disk(kind, &d, &err), err);
		release(&d);
	}
}

static void every_store_call_that_fails_is_told(void **state)
{
	(void)state;
	for (unsigned kind = 0; kind < N_KINDS; kind++) {
		for (unsigned reading = 0; reading < 2; reading++) {
			uint64_t n_failed = 0;
			for (uint64_t nth = 1;; nth++) {
				struct qcow_error err = QCOW_ERROR_INIT;
				struct disk d;
				init(&d, kind, true);
				if (reading == 1)
					assert_ok(
						write_disk(kind, &d, kind == LUKS_KEPT, &err), err);
				qkt_fault_arm(d.fault, QKT_ANY, nth, QKT_EIO, (nth & 1) != 0);
				enum qcow_status st = reading == 1
							      ? read_disk(kind, &d, &err)
							      : write_disk(kind, &d,
									kind == LUKS_KEPT, &err);
				uint64_t hits = qkt_fault_hits(d.fault);
				qkt_fault_disarm(d.fault);
				assert_int_equal(st, hits != 0 ? QCOW_E_IO : QCOW_OK);
				assert_int_equal(err.status, st);
				if (reading == 0)
					judge_header(kind, d.store, st);
				release(&d);
				if (hits == 0)
					break;
				n_failed++;
			}
			assert_true(n_failed >= 3);
		}
	}
}

static void sweep_allocations(bool for_ever)
{
	for (unsigned kind = 0; kind < N_KINDS; kind++) {
		uint64_t n_failed = 0;
		for (uint64_t nth = 1;; nth++) {
			struct qcow_error err = QCOW_ERROR_INIT;
			struct disk d;
			int64_t live = qkt_failmalloc_live();
			init(&d, kind, false);
			qkt_failmalloc_arm(nth, for_ever);
			enum qcow_status st = write_disk(kind, &d, kind == LUKS_KEPT, &err);
			if (st == QCOW_OK)
				st = read_disk(kind, &d, &err);
			uint64_t hits = qkt_failmalloc_hits();
			qkt_failmalloc_arm(0, false);
			if (hits != 0 && st != QCOW_E_NOMEM && st != QCOW_OK)
				fail_msg("kind %u, allocation %llu: %s: %s", kind,
					(unsigned long long)nth, qcow_status_name(st), err.message);
			release(&d);
			assert_int_equal(qkt_failmalloc_live(), live);
			if (hits == 0)
				break;
			n_failed += st != QCOW_OK;
		}
		assert_true(n_failed >= 8);
	}
}

static void every_allocation_that_fails_once_is_survived(void **state)
{
	(void)state;
	sweep_allocations(false);
}

static void every_allocation_from_the_nth_on_is_survived(void **state)
{
	(void)state;
	sweep_allocations(true);
}

/* ---- what is left in memory ---- */

/* Sanitizers keep freed memory, and map terabytes of their own. */
#define IS_SEARCHABLE (!QKT_SANITIZED)

#if IS_SEARCHABLE

#define SECRET_BYTES 32U

/* How often `secret`, each byte of which is kept inverted, is found in what this process can write. */
static unsigned count_in_memory(const uint8_t *inverted)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	FILE *memory = fopen("/proc/self/mem", "rbe");
	static uint8_t
		page[4096 + SECRET_BYTES]; /* holds no whole secret when it is compared bytewise */
	char line[512];
	unsigned n_found = 0;

	assert_non_null(maps);
	assert_non_null(memory);
	while (fgets(line, sizeof(line), maps) != NULL) {
		unsigned long from = 0, to = 0;
		char how[8] = "";
		if (sscanf(line, "%lx-%lx %4s", &from, &to, how) != 3 || how[1] != 'w')
			continue;
		for (unsigned long at = from; at < to; at += 4096) {
			bool is_ours = at + sizeof(page) > (unsigned long)page &&
				       at < (unsigned long)page + sizeof(page);
			if (is_ours || fseek(memory, (long)at, SEEK_SET) != 0)
				continue;
			size_t n = fread(page, 1, sizeof(page), memory);
			for (size_t i = 0; i + SECRET_BYTES <= n; i++) {
				size_t same = 0;
				while (same < SECRET_BYTES &&
					((unsigned)page[i + same] ^ inverted[same]) == 0xffU)
					same++;
				n_found += same == SECRET_BYTES;
			}
		}
	}
	memset(page, 0, sizeof(page));
	(void)fclose(memory);
	(void)fclose(maps);
	return n_found;
}

/* The key of the disk, inverted: found by the reader of slots itself, which then forgets it. */
static void find_key(
	struct qcow_store *store, const uint8_t *inverted_passphrase, uint8_t *inverted)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t header[QK_LUKS_HEADER_BYTES], key[QK_CIPHER_KEY_BYTES], secret[SECRET_BYTES];
	struct qk_luks luks;
	bool found = false;

	assert_ok(qcow_store_read(store, header, sizeof(header), 0, &err), err);
	assert_ok(qk_luks_decode(
			  (struct qk_span){header, sizeof(header)}, 1U << 30, false, &luks, &err),
		err);
	uint8_t *material = malloc(qk_luks_material_bytes(&luks, 0));
	assert_non_null(material);
	assert_ok(qcow_store_read(store, material, qk_luks_material_bytes(&luks, 0),
			  luks.slots[0].key_off, &err),
		err);
	for (size_t i = 0; i < SECRET_BYTES; i++)
		secret[i] = inverted_passphrase[i] ^ 0xff;
	const struct qk_luks_slot_request rq = {.luks = &luks,
		.material = material,
		.passphrase = {secret, sizeof(secret)},
		.max_iterations = QK_LUKS_MAX_ITERATIONS};
	assert_ok(qk_luks_unlock(&rq, key, &found, &err), err);
	assert_true(found);
	for (size_t i = 0; i < SECRET_BYTES; i++)
		inverted[i] = key[i] ^ 0xff;
	explicit_bzero(key, sizeof(key));
	explicit_bzero(secret, sizeof(secret));
	free(material);
}

/* Make, write, open and read an image with a passphrase that exists nowhere but here, and is wiped. */
static void use_once(struct qcow_store *store, struct qcow_image **image, const uint8_t *inverted)
{
	uint8_t secret[SECRET_BYTES];
	uint8_t buf[PART_BYTES];
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_create_options o = options_of(LUKS_FILE);
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_builder *b = NULL;

	for (size_t i = 0; i < sizeof(secret); i++)
		secret[i] = inverted[i] ^ 0xff;
	o.secret = open.secret = (struct qcow_secret){secret, sizeof(secret)};
	if (image == NULL) {
		assert_ok(qcow_builder_new(store, NULL, &o, &b, &err), err);
		assert_ok(fill(b, &err), err);
		assert_ok(qcow_builder_finish(b, &err), err);
	} else {
		assert_ok(qcow_open(store, &open, image, &err), err);
		assert_ok(qcow_pread(*image, buf, sizeof(buf), 512, &err), err);
	}
	explicit_bzero(secret, sizeof(secret));
}

/* The stack below the caller is memory of calls that are over: give it other bytes before it is searched. */
static __attribute__((noinline)) void tread_stack(void)
{
	volatile uint8_t rubbish[256 << 10];
	for (size_t i = 0; i < sizeof(rubbish); i++)
		rubbish[i] = (uint8_t)i;
}

static void no_secret_is_left_behind(void **state)
{
	static uint8_t inverted[SECRET_BYTES], inverted_key[SECRET_BYTES];
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;

	(void)state;
	for (size_t i = 0; i < SECRET_BYTES; i++)
		inverted[i] = (uint8_t)(rand() * 7 + 13);
	/* the search finds what is there */
	uint8_t *there = malloc(SECRET_BYTES);
	assert_non_null(there);
	for (size_t i = 0; i < SECRET_BYTES; i++)
		there[i] = inverted[i] ^ 0xff;
	assert_true(count_in_memory(inverted) >= 1);
	explicit_bzero(there, SECRET_BYTES);
	free(there);
	tread_stack();
	assert_int_equal(count_in_memory(inverted), 0);

	assert_ok(qcow_memory_open(0, &store, &err), err);
	use_once(store, NULL, inverted);
	find_key(store, inverted, inverted_key);
	tread_stack();
	if (count_in_memory(inverted) != 0)
		fail_msg("the passphrase is left after making an image");
	if (count_in_memory(inverted_key) != 0)
		fail_msg("the key is left after making an image");
	use_once(store, &image, inverted);
	tread_stack();
	if (count_in_memory(inverted) != 0)
		fail_msg("the passphrase is left while an image is open");
	/* an open image has its key; the search is one that finds keys */
	assert_true(count_in_memory(inverted_key) >= 1);
	qcow_close(image);
	tread_stack();
	if (count_in_memory(inverted_key) != 0)
		fail_msg("the key is left after the image was closed");
}

#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_is_read),
		cmocka_unit_test(every_store_call_that_fails_is_told),
		cmocka_unit_test(every_allocation_that_fails_once_is_survived),
		cmocka_unit_test(every_allocation_from_the_nth_on_is_survived),
#if IS_SEARCHABLE
		cmocka_unit_test(no_secret_is_left_behind),
#endif
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
