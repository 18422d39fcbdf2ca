/* SPDX-License-Identifier: MIT */
/*
 * Passphrases of LUKS images are added and erased: cryptsetup and QEMU take what comes out, nothing that a crash leaves
 * locks anybody out or has a slot without its key, and the last slot stays unless it is to go.
 */
#include "cm.h"
#include "qemu.h"

#include <qcowkit/manage.h>

#include "base/bytes.h"
#include "host.h"
#include "image.h"
#include "model.h"

static struct qcow_secret secret_of(const char *text)
{
	return (struct qcow_secret){text, strlen(text)};
}

/* A new image with passphrase "one" and some data. */
static void make_image(const char *format)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	sh("rm -f img");
	o.format = format;
	o.encryption = QCOW_ENCRYPTION_LUKS;
	o.secret = secret_of("one");
	o.luks_iter_time_ms = QCOW_LUKS_ITER_LEAST;
	o.virtual_size = 1 << 20;
	assert_ok(qcow_file_open(in_dir("img"), QCOW_FILE_WRITE | QCOW_FILE_CREATE, &store, &err),
		err);
	assert_ok(qcow_create(store, NULL, &o, &err), err);
	qcow_store_close(store);
}

static enum qcow_status open_store(struct qcow_store *store, const char *format,
	const char *passphrase, uint32_t flags, struct qcow_image **out, struct qcow_error *err)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.format = format;
	o.flags = flags;
	o.secret = secret_of(passphrase);
	return qcow_open(store, &o, out, err);
}

static bool opens(const char *format, const char *passphrase)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	assert_ok(qcow_file_open(in_dir("img"), 0, &store, &err), err);
	enum qcow_status status = open_store(store, format, passphrase, 0, &image, &err);
	qcow_close(image);
	if (status != QCOW_OK)
		assert_int_equal(status, QCOW_E_KEY);
	return status == QCOW_OK;
}

/* Do it on img, opened by `passphrase`. The log of it goes to `fault` where that is not NULL. */
static enum qcow_status amend(const char *format, const char *passphrase,
	const struct qcow_key_options *o, struct qkt_fault *fault, struct qcow_error *err)
{
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	assert_ok(qcow_file_open(in_dir("img"), QCOW_FILE_WRITE, &store, err), *err);
	if (fault != NULL)
		store = qkt_fault_wrap(fault, store, 0);
	assert_ok(open_store(store, format, passphrase, QCOW_OPEN_WRITE, &image, err), *err);
	if (fault != NULL)
		qkt_fault_log(fault);
	enum qcow_status status = qcow_amend_keys(image, o, err);
	qcow_close(image);
	return status;
}

static struct qcow_key_options adding(const char *passphrase, int slot)
{
	struct qcow_key_options o = QCOW_KEY_OPTIONS_INIT;
	o.action = QCOW_KEY_ADD;
	o.slot = slot;
	o.new_secret = secret_of(passphrase);
	o.iter_time_ms = QCOW_LUKS_ITER_LEAST;
	return o;
}

static struct qcow_key_options erasing(int slot, const char *passphrase)
{
	struct qcow_key_options o = QCOW_KEY_OPTIONS_INIT;
	o.action = QCOW_KEY_ERASE;
	o.slot = slot;
	if (passphrase != NULL)
		o.old_secret = secret_of(passphrase);
	return o;
}

static void expect(const char *format, const char *by, struct qcow_key_options o,
	enum qcow_status want, const char *words)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_status(amend(format, by, &o, NULL, &err), want, err);
	if (want != QCOW_OK)
		assert_says(err, words);
}

static void slots_come_and_go(void **state)
{
	static const char *const formats[] = {"luks", "qcow2"};
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		const char *f = formats[i];
		make_image(f);
		expect(f, "one", adding("two", QCOW_LUKS_ANY_SLOT), QCOW_OK, "");
		expect(f, "two", adding("seven", 6), QCOW_OK, "");
		expect(f, "seven", adding("eight", 7), QCOW_OK, "");
		assert_true(opens(f, "one") && opens(f, "two") && opens(f, "seven") &&
			    opens(f, "eight"));
		expect(f, "one", adding("x", 6), QCOW_E_EXIST, "active keyslot 6");
		expect(f, "one", adding("x", 8), QCOW_E_INVAL, "Invalid keyslot 8");
		expect(f, "one", erasing(3, NULL), QCOW_E_NOENT, "already erased");
		expect(f, "one", erasing(1, "one"), QCOW_E_NOENT, "keyslot 1");
		expect(f, "one", erasing(QCOW_LUKS_ANY_SLOT, "nobody's"), QCOW_E_NOENT,
			"No keyslots match");
		expect(f, "one", erasing(QCOW_LUKS_ANY_SLOT, NULL), QCOW_E_INVAL,
			"explicit keyslot");
		expect(f, "one", erasing(QCOW_LUKS_ANY_SLOT, "seven"), QCOW_OK, "");
		assert_false(opens(f, "seven"));
		expect(f, "two", erasing(0, NULL), QCOW_OK, "");
		expect(f, "two", erasing(7, NULL), QCOW_OK, "");
		assert_true(!opens(f, "one") && opens(f, "two") && !opens(f, "eight"));
		expect(f, "two", erasing(1, NULL), QCOW_E_POLICY, "only active keyslot");
		expect(f, "two", erasing(QCOW_LUKS_ANY_SLOT, "two"), QCOW_E_POLICY, "irreversibly");
		struct qcow_key_options o = adding("three", 1);
		o.force = true;
		expect(f, "two", o, QCOW_OK, "");
		assert_true(opens(f, "three") && !opens(f, "two"));
		for (int k = 0; k < 8; k++)
			if (k != 1)
				expect(f, "three", adding("more", k), QCOW_OK, "");
		expect(f, "three", adding("x", QCOW_LUKS_ANY_SLOT), QCOW_E_EXIST,
			"all keyslots are in use");
		expect(f, "three", erasing(QCOW_LUKS_ANY_SLOT, "more"), QCOW_OK, "");
		o = erasing(1, NULL);
		o.force = true;
		expect(f, "three", o, QCOW_OK, "");
		assert_false(opens(f, "three"));
	}
	make_image("luks");
	sh("rm -f img && qemu-img create -q -f qcow2 img 1M");
	expect("qcow2", "", adding("two", 0), QCOW_E_NOTSUP, "not encrypted with LUKS");
}

static void cryptsetup_takes_them(void **state)
{
	(void)state;
	if (!qkt_has_program("cryptsetup"))
		return;
	make_image("luks");
	expect("luks", "one", adding("two", 5), QCOW_OK, "");
	sh("cryptsetup luksDump img >dump && grep -q 'Key Slot 5: ENABLED' dump && grep -q 'Key "
	   "Slot 1: DISABLED' dump");
	sh("printf one | cryptsetup open --test-passphrase --key-slot 0 --key-file - img");
	sh("printf two | cryptsetup open --test-passphrase --key-slot 5 --key-file - img");
	expect("luks", "two", erasing(0, NULL), QCOW_OK, "");
	sh("! printf one | cryptsetup open --test-passphrase --key-file - img && printf two | "
	   "cryptsetup open "
	   "--test-passphrase --key-file - img");
	/* and the other way round */
	sh("printf three >three && printf two | cryptsetup luksAddKey -q --pbkdf-force-iterations "
	   "1000 --key-slot 3 "
	   "--key-file - img three");
	assert_true(opens("luks", "three"));
	expect("luks", "three", erasing(QCOW_LUKS_ANY_SLOT, "two"), QCOW_OK, "");
	assert_true(opens("luks", "three") && !opens("luks", "two"));
}

/* The material of a slot of img, which is a LUKS file, as the header has it. */
static uint8_t *read_material(unsigned slot, size_t *n)
{
	uint8_t *all = qkt_slurp(in_dir("img"), n);
	const uint8_t *s = all + 208 + (size_t)slot * 48;
	size_t off = (size_t)qk_load32(s + 40) * 512;
	*n = (size_t)qk_load32(all + 108) * qk_load32(s + 44);
	uint8_t *material = malloc(*n);
	assert_non_null(material);
	memcpy(material, all + off, *n);
	free(all);
	return material;
}

static void what_is_erased_is_gone(void **state)
{
	size_t n = 0, same = 0;
	(void)state;
	make_image("luks");
	expect("luks", "one", adding("two", 6), QCOW_OK, "");
	uint8_t *before = read_material(6, &n);
	assert_true(n >= 4000 * 16);
	expect("luks", "one", erasing(6, NULL), QCOW_OK, "");
	uint8_t *after = read_material(6, &n);
	for (size_t i = 0; i < n; i++)
		same += before[i] == after[i];
	assert_true(same < n / 64); /* one in 256 by chance */
	free(before);
	free(after);
}

/* ---- crashes ---- */

struct crash {
	const char *format;
	struct qkt_model before;
	struct qkt_fault *fault;
	const char *one, *other; /* one of these opens whatever a crash leaves */
	uint64_t n_states;
};

static bool open_bytes(const struct qkt_model *m, const char *format, const char *passphrase,
	struct qcow_image **image)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	assert_ok(qcow_memory_open(m->size, &store, &err), err);
	assert_ok(qcow_store_write(store, m->bytes, m->size, 0, &err), err);
	return open_store(store, format, passphrase, 0, image, &err) == QCOW_OK;
}

/* Would slot i be erased? By its passphrase, or where that is NULL whatever it has. */
static bool would_erase(struct qcow_image *image, int i, const char *passphrase)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_key_options o = erasing(i, passphrase);
	o.dry_run = true;
	enum qcow_status status = qcow_amend_keys(image, &o, &err);
	if (status != QCOW_E_NOENT && status != QCOW_E_POLICY)
		assert_ok(status, err);
	return status != QCOW_E_NOENT;
}

/* A slot that is active has all of its key. */
static void active_slots_are_whole(struct qcow_image *image)
{
	for (int i = 0; i < QCOW_LUKS_SLOTS; i++)
		assert_true(!would_erase(image, i, NULL) || would_erase(image, i, "one") ||
			    would_erase(image, i, "two"));
}

/* The first n entries of the log, without entry `lost`, of which `kept` sectors are there. */
static void try_state(struct crash *c, size_t n, size_t lost, uint64_t kept)
{
	struct qkt_model m = qkt_model_new(c->before.size);
	memcpy(m.bytes, c->before.bytes, m.size);
	for (size_t i = 0; i < n; i++)
		qkt_log_apply(
			qkt_fault_log_entry(c->fault, i), &m, 0, i == lost ? kept : UINT64_MAX);
	c->n_states++;
	struct qcow_image *image = NULL;
	if (!open_bytes(&m, c->format, c->one, &image) &&
		!open_bytes(&m, c->format, c->other, &image))
		fail_msg("%s: locked out after %zu writes, write %zu lost", c->format, n, lost);
	active_slots_are_whole(image);
	qcow_close(image);
	qkt_model_free(&m);
}

static void explore(struct crash *c)
{
	size_t n = qkt_fault_log_count(c->fault), flushed = 0;
	for (size_t i = 0; i <= n; i++) {
		try_state(c, i, SIZE_MAX, 0);
		for (size_t k = flushed; k < i; k++)
			for (uint64_t kept = 0; kept < 3; kept++)
				try_state(c, i, k, kept);
		if (i < n && qkt_fault_log_entry(c->fault, i)->call == QKT_FLUSH)
			flushed = i + 1;
	}
}

static void crash_in(
	const char *format, struct qcow_key_options o, const char *one, const char *other)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct crash c = {.format = format, .one = one, .other = other, .fault = qkt_fault_new()};
	c.before.bytes = qkt_slurp(in_dir("img"), &c.before.size);
	assert_ok(amend(format, "one", &o, c.fault, &err), err);
	explore(&c);
	assert_true(c.n_states > 5);
	free(c.before.bytes);
	qkt_fault_free(c.fault);
}

static void no_crash_locks_anybody_out(void **state)
{
	static const char *const formats[] = {"luks", "qcow2"};
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		struct qcow_key_options o = adding("two", 6);
		make_image(formats[i]);
		crash_in(formats[i], o, "one", "one");
		crash_in(formats[i], erasing(6, NULL), "one", "one");
		o = adding("two", 0);
		o.force = true;
		crash_in(formats[i], o, "one", "two");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(slots_come_and_go),
		cmocka_unit_test(cryptsetup_takes_them),
		cmocka_unit_test(what_is_erased_is_gone),
		cmocka_unit_test(no_crash_locks_anybody_out),
	};
	if (!has_qemu()) {
		print_message("SKIP qemu-img or qemu-io is missing (Debian: qemu-utils)\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
