/* SPDX-License-Identifier: MIT */
/*
 * repair_bed: thousands of damaged images repaired in one process, for repair.py. Reads a line for each, the path of an image,
 * which stays as it is, and answers a line:
 *
 *	none		it does not open, or cannot be checked, or check finds nothing
 *	left NAME...	repaired; the findings that are left. PATH.repaired has the image as it is then.
 *	wrong TEXT	a dry run writes, a repair fails, a second one has something to do, undoing does not give the image
 *			back, the oracle finds errors in what check finds clean
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <host.h>
#include <oracle.h>
#include <qcowkit/manage.h>
#include <qcowkit/qcowkit.h>

#define N_IDS 64u

struct bytes {
	uint8_t *v;
	size_t n;
};

struct answer {
	char text[600];
	bool seen[N_IDS];
};

static bool say(struct answer *a, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* False. */
static bool say(struct answer *a, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	(void)vsnprintf(a->text, sizeof(a->text), format, args);
	va_end(args);
	return false;
}

/* ---- stores ---- */

static struct qcow_store *store_of(struct bytes b)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *s = NULL;
	if (qcow_memory_open(b.n, &s, &err) != QCOW_OK ||
		qcow_store_write(s, b.v, b.n, 0, &err) != QCOW_OK)
		abort();
	return s;
}

static struct bytes bytes_of(struct qcow_store *s)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t size = 0;
	if (qcow_store_size(s, &size, &err) != QCOW_OK)
		abort();
	struct bytes b = {malloc((size_t)size + 1), (size_t)size};
	if (b.v == NULL || qcow_store_read(s, b.v, b.n, 0, &err) != QCOW_OK)
		abort();
	return b;
}

static bool holds(struct qcow_store *s, struct bytes want)
{
	struct bytes b = bytes_of(s);
	bool same = b.n == want.n && memcmp(b.v, want.v, b.n) == 0;
	free(b.v);
	return same;
}

/* ---- checking ---- */

static void note(void *ctx, const struct qcow_finding *f)
{
	struct answer *a = ctx;
	if (f->id < N_IDS && qcow_finding_severity(f->id) != QCOW_SEVERITY_NOTE)
		a->seen[f->id] = true;
}

/* False: it cannot be judged, or is clean of all but what is not worth a word. */
static bool has_findings(struct bytes b, struct answer *a)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_check_options c = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result r = {0};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = NULL;
	memset(a->seen, 0, sizeof(a->seen));
	o.flags = QCOW_OPEN_CHECK | QCOW_OPEN_NO_BACKING;
	o.format = "qcow2";
	c.on_finding = note;
	c.ctx = a;
	enum qcow_status status = qcow_open(store_of(b), &o, &image, &err);
	if (status == QCOW_OK)
		status = qcow_check(image, &c, &r, &err);
	qcow_close(image);
	return status == QCOW_OK && r.check_errors == 0 && r.corruptions + r.leaks + r.notes != 0;
}

static _Thread_local struct answer *refusal;

_Noreturn void refuse(const char *format, ...)
{
	va_list args;
	char why[300];
	va_start(args, format);
	(void)vsnprintf(why, sizeof(why), format, args);
	va_end(args);
	(void)say(refusal, "wrong the oracle refuses it: %s", why);
	pthread_exit(NULL);
}

struct asked {
	struct bytes b;
	struct answer *a;
};

static void *ask_in_thread(void *ctx)
{
	struct asked *asked = ctx;
	struct verdict v;
	refusal = asked->a;
	if (check(image_open_bytes(asked->b.v, asked->b.n), &v, NULL) != 0)
		(void)say(
			asked->a, "wrong the oracle: %s, %ju leaks", v.first, (uintmax_t)v.n_leaks);
	return NULL;
}

/* Does the oracle find it clean? */
static bool ask_oracle(struct bytes b, struct answer *a)
{
	struct asked asked = {b, a};
	pthread_t thread;
	a->text[0] = '\0';
	if (pthread_create(&thread, NULL, ask_in_thread, &asked) != 0 ||
		pthread_join(thread, NULL) != 0)
		abort();
	forget();
	return a->text[0] == '\0';
}

/* ---- a case ---- */

static bool repair(struct qcow_store *s, struct qcow_store *undo, bool dry_run,
	struct qcow_repair_result *r, struct answer *a)
{
	struct qcow_repair_options o = QCOW_REPAIR_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	o.dry_run = dry_run;
	o.undo = undo;
	return qcow_repair(s, &o, r, &err) == QCOW_OK ||
	       say(a, "wrong %s: %.400s", dry_run ? "dry run" : "repair", err.message);
}

static void save(const char *path, struct bytes b)
{
	char name[4096];
	(void)snprintf(name, sizeof(name), "%s.repaired", path);
	FILE *f = fopen(name, "wb");
	if (f == NULL || fwrite(b.v, 1, b.n, f) != b.n || fclose(f) != 0)
		abort();
}

/* What the repair has left, by name. */
static bool judge(const char *path, struct bytes b, struct answer *a)
{
	char names[500] = "";
	(void)has_findings(b, a);
	for (unsigned id = 1; id < N_IDS; id++)
		if (a->seen[id])
			(void)snprintf(names + strlen(names), sizeof(names) - strlen(names), " %s",
				qcow_finding_name(id));
	if (names[0] == '\0' && !ask_oracle(b, a))
		return false;
	save(path, b);
	(void)say(a, "left%s", names);
	return true;
}

static bool treat(const char *path, struct bytes was, struct qcow_store *s, struct answer *a)
{
	struct qcow_repair_result r;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *undo = NULL;
	if (qcow_memory_open(0, &undo, &err) != QCOW_OK)
		abort();
	bool good = repair(s, NULL, true, &r, a) &&
		    (holds(s, was) || say(a, "wrong a dry run writes")) &&
		    repair(s, undo, false, &r, a);
	struct bytes now = bytes_of(s);
	good = good && judge(path, now, a);
	if (good) {
		good = repair(s, NULL, false, &r, a) &&
		       ((r.n_steps == 0 && holds(s, now)) ||
			       say(a, "wrong a second repair has something to do"));
		if (good && qcow_repair_undo(s, undo, &err) != QCOW_OK)
			good = say(a, "wrong undoing: %.400s", err.message);
		good = good && (holds(s, was) || say(a, "wrong undoing does not give it back"));
	}
	free(now.v);
	qcow_store_close(undo);
	return good;
}

int main(void)
{
	char path[4000];
	while (fgets(path, sizeof(path), stdin) != NULL) {
		struct answer a = {0};
		struct bytes was;
		path[strcspn(path, "\n")] = '\0';
		was.v = qkt_slurp(path, &was.n);
		struct qcow_store *s = store_of(was);
		if (!has_findings(was, &a))
			(void)say(&a, "none");
		else
			(void)treat(path, was, s, &a);
		qcow_store_close(s);
		free(was.v);
		(void)puts(a.text);
		(void)fflush(stdout);
	}
	return 0;
}
