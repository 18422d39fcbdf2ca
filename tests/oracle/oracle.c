/* SPDX-License-Identifier: MIT */
/*
 * oracle info IMAGE
 * oracle read IMAGE [--snapshot ID] [--backing FILE:FORMAT]... [--passphrase P] [-o FILE]
 * oracle map IMAGE [--snapshot ID]     lines: offset length kind host
 * oracle check IMAGE                   exit status 0 clean, 2 corrupt, 3 leaks
 * Exit status 1: refused, with the reason on stderr. --backing names the layers below, topmost
 * first, in place of the recorded ones. --passphrase is that of IMAGE alone. The chain
 * of backing files and the loops over it are here.
 */
#include "oracle.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LAYERS_MAX 64
#define COPY_BYTES (UINT64_C(1) << 20)

struct layer {
	struct image *img; /* NULL: raw */
	struct view view;
	struct file file; /* raw */
	uint64_t disk_bytes;
	dev_t device;
	ino_t inode;
};

struct chain {
	struct layer layers[LAYERS_MAX];
	unsigned n;
};

struct request {
	const char *image, *snapshot, *output, *passphrase;
	const char *backing[LAYERS_MAX];
	unsigned n_backing;
};

_Noreturn void refuse(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	fputs("oracle: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	exit(1);
}

/* ---- the chain of backing files ---- */

static bool is_qcow2(const char *path)
{
	char magic[4] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t n = fd < 0 ? -1 : read(fd, magic, 4);
	if (n < 0)
		refuse("cannot read '%s'", path);
	close(fd);
	return n == 4 && memcmp(magic, "QFI\xfb", 4) == 0;
}

static struct layer *add_layer(struct chain *chain, const char *path, const char *format)
{
	struct stat st;
	if (chain->n == LAYERS_MAX)
		refuse("more than %d layers", LAYERS_MAX);
	if (stat(path, &st) || !S_ISREG(st.st_mode))
		refuse("'%s' is not a file", path);
	for (unsigned i = 0; i < chain->n; i++)
		if (chain->layers[i].device == st.st_dev && chain->layers[i].inode == st.st_ino)
			refuse("'%s' is in the chain twice", path);
	struct layer *layer = &chain->layers[chain->n++];
	*layer = (struct layer){.file.fd = -1, .device = st.st_dev, .inode = st.st_ino};
	if (format ? !strcmp(format, "qcow2") : is_qcow2(path)) {
		layer->img = image_open(path);
		return layer;
	}
	if (format && strcmp(format, "raw") != 0)
		refuse("backing format '%s'", format);
	layer->file.fd = open(path, O_RDONLY | O_CLOEXEC);
	if (layer->file.fd < 0)
		refuse("cannot open '%s'", path);
	layer->disk_bytes = (uint64_t)st.st_size;
	return layer;
}

static void open_chain(struct chain *chain, const struct request *request)
{
	struct layer *layer = add_layer(chain, request->image, "qcow2");
	if (request->passphrase)
		image_unlock(layer->img, request->passphrase);
	layer->view = image_view(layer->img, request->snapshot);
	layer->disk_bytes = layer->view.disk_bytes;
	for (unsigned i = 0; layer->img; i++) {
		if (i < request->n_backing) {
			const char *colon = strrchr(request->backing[i], ':');
			if (!colon)
				refuse("--backing wants FILE:FORMAT");
			char *path = take((uint64_t)(colon - request->backing[i]) + 1, 1);
			memcpy(path, request->backing[i], (size_t)(colon - request->backing[i]));
			layer = add_layer(chain, path, colon + 1);
		} else if (layer->img->backing) {
			layer = add_layer(chain, beside(layer->img->path, layer->img->backing),
				layer->img->backing_format);
		} else {
			return;
		}
		if (layer->img) {
			layer->view = image_view(layer->img, NULL);
			layer->disk_bytes = layer->view.disk_bytes;
		}
	}
}

struct place {
	struct layer *layer; /* NULL: zeros */
	struct run run;
	uint64_t bytes;
};

/* The topmost layer that has something to say about an offset, and how far that reaches. */
static struct place find_place(struct chain *chain, uint64_t off)
{
	struct place place = {.bytes = UINT64_MAX};
	for (unsigned i = 0; i < chain->n; i++) {
		struct layer *layer = &chain->layers[i];
		if (off >= layer->disk_bytes) /* zeros, however long the layers below are */
			return place;
		uint64_t left = layer->disk_bytes - off;
		if (layer->img) {
			place.run = resolve(layer->img, &layer->view, off);
			left = place.run.bytes;
		}
		place.bytes = left < place.bytes ? left : place.bytes;
		if (!layer->img || (place.run.kind != UNALLOCATED && place.run.kind != RESERVED)) {
			place.layer = layer;
			return place;
		}
	}
	return place;
}

/* ---- commands ---- */

static void write_out(int fd, const uint8_t *buf, uint64_t bytes)
{
	while (bytes) {
		ssize_t n = write(fd, buf, bytes);
		if (n <= 0)
			refuse("cannot write");
		buf += n;
		bytes -= (uint64_t)n;
	}
}

static bool all_zero(const uint8_t *buf, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		if (buf[i])
			return false;
	return true;
}

static bool reads_zeros(const struct place *place)
{
	return !place->layer ||
	       (place->layer->img && place->run.kind != DATA && place->run.kind != COMPRESSED);
}

static int command_read(const struct request *request)
{
	struct chain *chain = take(1, sizeof *chain);
	uint8_t *buf = take(COPY_BYTES, 1);
	int out = STDOUT_FILENO;
	open_chain(chain, request);
	uint64_t disk = chain->layers[0].disk_bytes;
	if (request->output)
		out = open(request->output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (out < 0 || (request->output && ftruncate(out, (off_t)disk)))
		refuse("cannot make '%s' of %" PRIu64 " bytes", request->output, disk);
	for (uint64_t off = 0, n; off < disk; off += n) {
		struct place place = find_place(chain, off);
		bool zeros = reads_zeros(&place);
		n = place.bytes < disk - off ? place.bytes : disk - off;
		if (zeros && request->output)
			continue;
		n = n < COPY_BYTES ? n : COPY_BYTES;
		if (zeros)
			memset(buf, 0, n);
		else if (place.layer->img)
			read_run(place.layer->img, &place.run, buf, n);
		else
			read_at(&place.layer->file, buf, n, off);
		if (!request->output)
			write_out(out, buf, n);
		else if (!all_zero(buf, n)) {
			if (lseek(out, (off_t)off, SEEK_SET) < 0)
				refuse("cannot seek");
			write_out(out, buf, n);
		}
	}
	return 0;
}

static bool continues(const struct run *last, const struct run *run)
{
	if (last->kind != run->kind || run->kind == COMPRESSED)
		return false;
	return run->kind == UNALLOCATED || run->kind == ZERO ||
	       last->host + last->bytes == run->host;
}

static void print_run(uint64_t off, const struct run *run)
{
	static const char *const names[] = {
		"unallocated", "reserved", "zero", "zero-allocated", "data", "compressed"};
	printf("%" PRIu64 " %" PRIu64 " %s ", off, run->bytes, names[run->kind]);
	if (run->kind == UNALLOCATED || run->kind == ZERO)
		puts("-");
	else
		printf("%" PRIu64 "\n", run->host);
}

static int command_map(const struct request *request)
{
	struct image *img = image_open(request->image);
	struct view view = image_view(img, request->snapshot);
	struct run last = {0};
	uint64_t start = 0;
	for (uint64_t off = 0; off < view.disk_bytes;) {
		struct run run = resolve(img, &view, off);
		off += run.bytes;
		if (last.bytes && continues(&last, &run)) {
			last.bytes += run.bytes;
			continue;
		}
		if (last.bytes)
			print_run(start, &last);
		start = off - run.bytes;
		last = run;
	}
	if (last.bytes)
		print_run(start, &last);
	return 0;
}

static void print_string(const char *s, size_t bytes)
{
	putchar('"');
	for (size_t i = 0; i < bytes; i++) {
		unsigned char ch = (unsigned char)s[i];
		if (ch < 32 || ch > 126 || ch == '"' || ch == '\\')
			printf("\\u%04x", ch); /* a byte, whatever it means */
		else
			putchar(ch);
	}
	putchar('"');
}

static void print_name(const char *key, const char *s)
{
	printf("  \"%s\": ", key);
	if (s)
		print_string(s, strlen(s));
	else
		fputs("null", stdout);
	puts(",");
}

static void print_number(const char *key, uint64_t n)
{
	printf("  \"%s\": %" PRIu64 ",\n", key, n);
}

static void print_snapshots(const struct image *img)
{
	print_name("snapshots-error", img->snapshots_error);
	printf("  \"snapshots\": [");
	for (uint32_t i = 0; i < img->n_snapshots && !img->snapshots_error; i++) {
		const struct snapshot *s = &img->snapshots[i];
		printf("%s\n    {\"id\": ", i ? "," : "");
		print_string(s->id, s->id_bytes);
		printf(", \"name\": ");
		print_string(s->name, s->name_bytes);
		printf(", \"size\": %" PRIu64 ", \"vm-state-size\": %" PRIu64
		       ", \"date-sec\": %u, \"l1-offset\": %" PRIu64 ", \"l1-entries\": %u}",
			s->disk_bytes, s->vm_state_bytes, s->date_seconds, s->l1_off, s->n_l1);
	}
	puts("],");
}

static void print_bitmaps(const struct image *img)
{
	print_name("bitmaps-error", img->bitmaps_error);
	printf("  \"bitmaps\": [");
	for (uint32_t i = 0; img->bitmaps && i < img->n_bitmaps && !img->bitmaps_error; i++) {
		const struct bitmap *b = &img->bitmaps[i];
		printf("%s\n    {\"name\": ", i ? "," : "");
		print_string(b->name, b->name_bytes);
		printf(", \"flags\": %u, \"granularity-bits\": %u, \"table-entries\": %u}",
			b->flags, b->granularity_bits, b->n_table);
	}
	puts("]");
}

static int command_info(const struct request *request)
{
	const struct image *img = image_open(request->image);
	puts("{");
	print_number("version", img->version);
	print_number("size", img->disk_bytes);
	print_number("cluster-size", img->cluster_bytes);
	print_number("refcount-bits", UINT64_C(1) << img->refcount_order);
	print_number("header-length", img->header_bytes);
	print_number("incompatible-features", img->incompatible);
	print_number("compatible-features", img->compatible);
	print_number("autoclear-features", img->autoclear);
	print_number("crypt-method", img->crypt_method);
	print_number("compression-type", img->compression);
	print_number("l1-offset", img->l1_off);
	print_number("l1-entries", img->n_l1);
	print_number("refcount-table-offset", img->rt_off);
	print_number("refcount-table-clusters", img->n_rt_clusters);
	print_number("unknown-extensions", img->n_unknown_extensions);
	print_name("backing-file", img->backing);
	print_name("backing-format", img->backing_format);
	print_name("data-file", img->data_file);
	print_snapshots(img);
	print_bitmaps(img);
	puts("}");
	return 0;
}

static int command_check(const struct request *request)
{
	struct verdict verdict;
	return check(image_open(request->image), &verdict, stdout);
}

static void usage(void)
{
	refuse("usage: oracle info|read|map|check IMAGE [--snapshot ID] [--backing FILE:FORMAT]... "
	       "[--passphrase P] [-o FILE]");
}

int main(int argc, char **argv)
{
	struct request request = {0};
	if (argc < 3)
		usage();
	request.image = argv[2];
	for (int i = 3; i < argc; i += 2) {
		if (i + 1 == argc)
			usage();
		if (!strcmp(argv[i], "--snapshot"))
			request.snapshot = argv[i + 1];
		else if (!strcmp(argv[i], "--passphrase"))
			request.passphrase = argv[i + 1];
		else if (!strcmp(argv[i], "-o"))
			request.output = argv[i + 1];
		else if (!strcmp(argv[i], "--backing") && request.n_backing < LAYERS_MAX)
			request.backing[request.n_backing++] = argv[i + 1];
		else
			usage();
	}
	int status = 1;
	if (!strcmp(argv[1], "info"))
		status = command_info(&request);
	else if (!strcmp(argv[1], "read"))
		status = command_read(&request);
	else if (!strcmp(argv[1], "map"))
		status = command_map(&request);
	else if (!strcmp(argv[1], "check"))
		status = command_check(&request);
	else
		usage();
	if (fflush(stdout) || ferror(stdout))
		refuse("cannot write");
	return status;
}
