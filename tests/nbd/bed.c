/* SPDX-License-Identifier: MIT */
/*
 * bed: a program around the NBD server for its tests: exports of an array of bytes, of a qcow2 image, of a disk that is slow or
 * fails. The array is the oracle: what a client wrote can be compared with what it reads.
 *
 * usage: bed SOCKET [OPTION...]      serves until its standard input ends, then prints counters as JSON
 *   --export NAME,KIND,SIZE[,WORD...]  KIND: memory, slow (2 ms a call, never at once), broken (every call fails), or FILE.qcow2
 *                                      words: ro, single, tls, depth, min=N, max=N, limit=N, bitmap=NAME, text=DESCRIPTION
 *   --tls allow|require  --certs DIR  --verify  --psk FILE
 *   --handshake-ms N  --connections N  --total N  --stall-ms N  --loops N  --workers N
 * Lines on standard input: quiesce, resume, remove NAME, cut NAME, add (as --export), resize NAME SIZE, bitmaps NAME [B...], stats
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "serve/nbd/server.h"

#define MAX_WORDS 64

struct disk {
	uint8_t *bytes;
	uint64_t size;
	bool is_slow, is_broken;
	struct qcow_image *image;
};

static void die(const char *what)
{
	fprintf(stderr, "bed: %s\n", what);
	exit(1);
}

static enum qcow_status begin(const struct disk *d, struct qcow_error *err)
{
	if (d->is_slow)
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
	if (d->is_broken && err != NULL)
		snprintf(err->message, sizeof(err->message), "the disk of the test is broken");
	return d->is_broken ? QCOW_E_IO : QCOW_OK;
}

static enum qcow_status disk_pread(
	void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	const struct disk *d = ctx;
	enum qcow_status status = begin(d, err);
	if (status != QCOW_OK)
		return status;
	if (d->image != NULL)
		return qcow_pread(d->image, buf, len, off, err);
	memcpy(buf, d->bytes + off, len);
	return QCOW_OK;
}

static enum qcow_status disk_pread_nowait(
	void *ctx, void *buf, size_t len, uint64_t off, struct qcow_error *err)
{
	const struct disk *d = ctx;
	return d->image != NULL ? qcow_pread_nowait(d->image, buf, len, off, err)
				: disk_pread(ctx, buf, len, off, err);
}

static enum qcow_status disk_pwrite(void *ctx, const void *buf, size_t len, uint64_t off,
	unsigned flags, struct qcow_error *err)
{
	const struct disk *d = ctx;
	enum qcow_status status = begin(d, err);
	if (status != QCOW_OK)
		return status;
	if (d->image != NULL)
		return qcow_pwrite(d->image, buf, len, off, flags, err);
	memcpy(d->bytes + off, buf, len);
	return QCOW_OK;
}

static enum qcow_status disk_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	const struct disk *d = ctx;
	enum qcow_status status = begin(d, err);
	if (status != QCOW_OK)
		return status;
	if (d->image != NULL)
		return qcow_zero(d->image, off, len, flags, err);
	if ((flags & QCOW_IO_FAST) != 0 && (off | len) % 4096 != 0)
		return QCOW_E_NOTSUP;
	memset(d->bytes + off, 0, len);
	return QCOW_OK;
}

static enum qcow_status disk_trim(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	const struct disk *d = ctx;
	if (d->image != NULL)
		return qcow_discard(d->image, off, len, flags, err);
	return begin(d, err);
}

static enum qcow_status disk_flush(void *ctx, struct qcow_error *err)
{
	const struct disk *d = ctx;
	return d->image != NULL ? qcow_flush(d->image, err) : begin(d, err);
}

static enum qcow_status disk_cache(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	(void)off;
	(void)len;
	return begin(ctx, err);
}

/* Blocks of 4096: zeros are holes. Odd ones are one deep, even ones two. */
static enum qcow_status disk_map(void *ctx, uint64_t off, uint64_t len, uint32_t max_depth,
	struct qcow_extent *out, struct qcow_error *err)
{
	static const uint8_t zeros[4096];
	const struct disk *d = ctx;
	if (d->image != NULL)
		return qcow_map(d->image, off, len, max_depth, out, err);
	uint64_t block = off / 4096, rest = 4096 - off % 4096;
	uint64_t n = d->size - block * 4096 < 4096 ? d->size - block * 4096 : 4096;
	bool is_zero = memcmp(d->bytes + block * 4096, zeros, n) == 0;
	*out = (struct qcow_extent){.off = off, .len = rest < len ? rest : len, .depth = block % 2};
	out->flags = is_zero ? QCOW_EXTENT_ZERO : QCOW_EXTENT_DATA | QCOW_EXTENT_PRESENT;
	return begin(d, err);
}

/* Bitmap 0: every other 64 KiB; the others: all of it. */
static enum qcow_status disk_dirty(void *ctx, unsigned bitmap, uint64_t off, uint64_t len,
	struct qcow_bitmap_extent *out, struct qcow_error *err)
{
	uint64_t rest = 65536 - off % 65536;
	*out = (struct qcow_bitmap_extent){.off = off, .len = rest < len ? rest : len};
	out->dirty = bitmap != 0 || (off / 65536) % 2 == 1;
	return begin(ctx, err);
}

static void disk_close(void *ctx)
{
	struct disk *d = ctx;
	qcow_close(d->image);
	free(d->bytes);
	free(d);
}

static const struct qk_nbd_export_ops fast_ops = {disk_pread, disk_pread_nowait, disk_pwrite,
	disk_zero, disk_trim, disk_flush, disk_cache, disk_map, disk_dirty, disk_close, NULL};
static const struct qk_nbd_export_ops slow_ops = {disk_pread, NULL, disk_pwrite, disk_zero,
	disk_trim, disk_flush, disk_cache, disk_map, disk_dirty, disk_close, NULL};

static void open_image(struct disk *d, const char *path, bool read_only)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	o.flags = read_only ? 0 : QCOW_OPEN_WRITE;
	if (qcow_file_open(path, read_only ? 0 : QCOW_FILE_WRITE, &store, &err) != QCOW_OK ||
		qcow_open(store, &o, &d->image, &err) != QCOW_OK)
		die(err.message);
	d->size = qcow_size(d->image);
}

/* One word of an export's description. */
static void word(struct qk_nbd_export *e, const char **bitmaps, char *w)
{
	char *value = strchr(w, '=');
	if (value != NULL)
		*value++ = '\0';
	else
		value = w;
	if (strcmp(w, "ro") == 0)
		e->read_only = true;
	else if (strcmp(w, "single") == 0)
		e->multi_conn = false;
	else if (strcmp(w, "tls") == 0)
		e->needs_tls = true;
	else if (strcmp(w, "depth") == 0)
		e->has_depth = true;
	else if (strcmp(w, "min") == 0)
		e->min_block = (uint32_t)strtoul(value, NULL, 0);
	else if (strcmp(w, "max") == 0)
		e->max_block = (uint32_t)strtoul(value, NULL, 0);
	else if (strcmp(w, "limit") == 0)
		e->max_connections = (unsigned)strtoul(value, NULL, 0);
	else if (strcmp(w, "text") == 0)
		e->description = value;
	else if (strcmp(w, "bitmap") == 0 && e->n_bitmaps < MAX_WORDS)
		bitmaps[e->n_bitmaps++] = value;
	else
		die(w);
}

static bool add(struct qk_nbd_server *server, char *text)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	const char *bitmaps[MAX_WORDS];
	struct qk_nbd_export e = {.multi_conn = true, .bitmaps = bitmaps};
	struct disk *d = calloc(1, sizeof(*d));
	char *rest = text;
	e.name = strsep(&rest, ",");
	const char *kind = strsep(&rest, ",");
	const char *size = strsep(&rest, ",");
	if (d == NULL || size == NULL)
		die("an export needs NAME,KIND,SIZE");
	for (char *w = strsep(&rest, ","); w != NULL; w = strsep(&rest, ","))
		word(&e, bitmaps, w);
	d->size = strtoull(size, NULL, 0);
	d->is_slow = strcmp(kind, "slow") == 0;
	d->is_broken = strcmp(kind, "broken") == 0;
	if (strchr(kind, '/') != NULL)
		open_image(d, kind, e.read_only);
	else if ((d->bytes = calloc(1, d->size + 1)) == NULL)
		die("no memory");
	e.size = d->size;
	e.ops = d->is_slow || d->is_broken ? &slow_ops : &fast_ops;
	e.ctx = d;
	if (qk_nbd_export_add(server, &e, &err) == QCOW_OK)
		return true;
	fprintf(stderr, "bed: %s\n", err.message);
	disk_close(d);
	return false;
}

static void print_stats(struct qk_nbd_server *server)
{
	static const char *const names[QK_NBD_COUNTS] = {
		"read", "write", "flush", "trim", "cache", "zero", "status"};
	struct qk_nbd_stats s;
	qk_nbd_server_stats(server, &s);
	printf("{\"connections\": %" PRIu64 ", \"accepted\": %" PRIu64 ", \"refused\": %" PRIu64
	       ", \"handshakes_failed\": %" PRIu64 ", \"cut\": %" PRIu64 ", \"in_flight\": %" PRIu64
	       ", \"at_once\": %" PRIu64,
		s.connections, s.accepted, s.refused, s.handshakes_failed, s.cut, s.in_flight_bytes,
		s.answered_at_once);
	for (int i = 0; i < QK_NBD_COUNTS; i++)
		printf(", \"%s\": [%" PRIu64 ", %" PRIu64 ", %" PRIu64 "]", names[i],
			s.counts[i].requests, s.counts[i].bytes, s.counts[i].errors);
	printf("}\n");
	fflush(stdout);
}

static void visit(void *ctx, const struct qk_nbd_connection_info *info)
{
	unsigned *n = ctx;
	*n += info->export_name != NULL && info->peer[0] != '\0';
}

static void command(struct qk_nbd_server *server, char *line)
{
	const char *bitmaps[MAX_WORDS];
	unsigned n = 0;
	bool is_ok = true;
	line[strcspn(line, "\n")] = '\0';
	const char *verb = strsep(&line, " ");
	char *name = strsep(&line, " ");
	if (strcmp(verb, "quiesce") == 0)
		qk_nbd_server_quiesce(server);
	else if (strcmp(verb, "resume") == 0)
		qk_nbd_server_resume(server);
	else if (strcmp(verb, "remove") == 0 || strcmp(verb, "cut") == 0)
		is_ok = qk_nbd_export_remove(server, name, verb[0] == 'c', NULL) == QCOW_OK;
	else if (strcmp(verb, "add") == 0)
		is_ok = add(server, name);
	else if (strcmp(verb, "resize") == 0)
		is_ok = qk_nbd_export_resized(server, name, strtoull(line, NULL, 0), NULL) ==
			QCOW_OK;
	else if (strcmp(verb, "connections") == 0)
		qk_nbd_each_connection(server, visit, &n);
	else if (strcmp(verb, "bitmaps") == 0) {
		while (line != NULL && n < MAX_WORDS)
			bitmaps[n++] = strsep(&line, " ");
		is_ok = qk_nbd_export_bitmaps(server, name, bitmaps, n, NULL) == QCOW_OK;
	} else {
		print_stats(server);
		return;
	}
	printf("%s %u\n", is_ok ? "ok" : "no", n);
	fflush(stdout);
}

static int listen_on(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || strlen(path) >= sizeof(a.sun_path))
		die("no socket");
	memcpy(a.sun_path, path, strlen(path));
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(fd, 64) != 0)
		die(strerror(errno));
	return fd;
}

static void log_line(void *ctx, enum qk_nbd_log_level level, const char *text)
{
	(void)ctx;
	if (getenv("BED_LOG") != NULL)
		fprintf(stderr, "bed: %d %s\n", (int)level, text);
}

/* Options that are numbers. */
static bool number(struct qk_nbd_options *o, const char *name, const char *value)
{
	unsigned long n = strtoul(value, NULL, 0);
	if (strcmp(name, "--handshake-ms") == 0)
		o->handshake_ms = (unsigned)n;
	else if (strcmp(name, "--stall-ms") == 0)
		o->stall_ms = (unsigned)n;
	else if (strcmp(name, "--connections") == 0)
		o->max_connections = (unsigned)n;
	else if (strcmp(name, "--total") == 0)
		o->total_bytes = n;
	else if (strcmp(name, "--loops") == 0)
		o->n_loops = (unsigned)n;
	else if (strcmp(name, "--workers") == 0)
		o->n_workers = (unsigned)n;
	else
		return false;
	return true;
}

static void option(struct qk_nbd_options *o, const char *name, const char *value)
{
	if (strcmp(name, "--tls") == 0)
		o->tls = strcmp(value, "allow") == 0 ? QK_NBD_TLS_ALLOW : QK_NBD_TLS_REQUIRE;
	else if (strcmp(name, "--certs") == 0)
		o->tls_dir = value;
	else if (strcmp(name, "--psk") == 0)
		o->tls_psk_file = value;
	else if (strcmp(name, "--verify") == 0)
		o->tls_verify_peer = true;
	else if (strcmp(name, "--export") != 0 && !number(o, name, value))
		die(name);
}

int main(int argc, char **argv)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_nbd_options o = {.log = log_line};
	struct qk_nbd_server *server = NULL;
	char line[8192];
	signal(SIGPIPE, SIG_IGN);
	if (argc < 2 || argc % 2 != 0)
		die("usage: bed SOCKET [OPTION VALUE]...");
	for (int i = 2; i < argc; i += 2)
		option(&o, argv[i], argv[i + 1]);
	if (qk_nbd_server_new(&o, &server, &err) != QCOW_OK)
		die(err.message);
	for (int i = 2; i < argc; i += 2) {
		if (strcmp(argv[i], "--export") == 0 && !add(server, argv[i + 1]))
			die("no export");
	}
	if (qk_nbd_server_listen(server, listen_on(argv[1]), &err) != QCOW_OK ||
		qk_nbd_server_start(server, &err) != QCOW_OK)
		die(err.message);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) != NULL)
		command(server, line);
	qk_nbd_server_stop(server, 2000);
	print_stats(server);
	qk_nbd_server_free(server);
	unlink(argv[1]);
	return 0;
}
