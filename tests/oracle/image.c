/* SPDX-License-Identifier: MIT */
/* Sections "Header" to "Header extensions", the snapshot table and the bitmap directory. */
#include "oracle.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TABLES_MAX_BYTES (UINT64_C(1) << 30)

/* Everything taken stays reachable from here, so that leak checkers have nothing to say. */
struct block {
	struct block *next;
	max_align_t bytes[];
};

static struct block *blocks;
static uint64_t taken_bytes;

void *take(uint64_t n, uint64_t each_bytes)
{
	if (n > TABLES_MAX_BYTES / each_bytes || n * each_bytes > TABLES_MAX_BYTES - taken_bytes)
		refuse("more than 1 GiB of tables");
	taken_bytes += n * each_bytes;
	struct block *block = calloc(1, sizeof *block + (size_t)(n * each_bytes) + 1);
	if (!block)
		refuse("out of memory");
	block->next = blocks;
	blocks = block;
	return block->bytes;
}

void forget(void)
{
	while (blocks) {
		struct block *next = blocks->next;
		free(blocks);
		blocks = next;
	}
	taken_bytes = 0;
}

uint64_t be(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;
	if (bytes == 8) /* most of them: the compiler makes it one instruction */
		return (uint64_t)p[0] << 56 | (uint64_t)p[1] << 48 | (uint64_t)p[2] << 40 |
		       (uint64_t)p[3] << 32 | (uint64_t)p[4] << 24 | (uint64_t)p[5] << 16 |
		       (uint64_t)p[6] << 8 | p[7];
	for (unsigned i = 0; i < bytes; i++)
		v = v << 8 | p[i];
	return v;
}

uint64_t read_at(const struct file *file, void *buf, uint64_t bytes, uint64_t off)
{
	uint64_t done = 0;
	memset(buf, 0, bytes);
	if (file->fd < 0) {
		if (off < file->n_bytes)
			done = bytes < file->n_bytes - off ? bytes : file->n_bytes - off;
		if (done)
			memcpy(buf, file->bytes + off, done);
		return done;
	}
	while (done < bytes && off + done <= INT64_MAX && off + done >= off) {
		ssize_t n = pread(file->fd, (char *)buf + done, bytes - done, (off_t)(off + done));
		if (n < 0)
			refuse("cannot read at offset %#jx", (uintmax_t)off);
		if (n == 0)
			break;
		done += (uint64_t)n;
	}
	return done;
}

uint64_t *read_words(const struct image *img, uint64_t off, uint64_t n)
{
	uint64_t *words = take(n, 8);
	read_at(&img->file, words, n * 8, off);
	for (uint64_t i = 0; i < n; i++)
		words[i] = be((const uint8_t *)&words[i], 8);
	return words;
}

static char *read_string(const struct image *img, uint64_t off, uint64_t bytes)
{
	char *s = take(bytes + 1, 1);
	if (read_at(&img->file, s, bytes, off) != bytes)
		refuse("a string at %#jx runs past the end of the file", (uintmax_t)off);
	return s;
}

char *beside(const char *image_path, const char *name)
{
	const char *slash = strrchr(image_path, '/');
	size_t folder = slash && name[0] != '/' ? (size_t)(slash - image_path) + 1 : 0;
	if (!name[0])
		refuse("an empty file name is recorded");
	if (strcspn(name, ":") < strcspn(name, "/"))
		refuse("'%s' names a protocol, not a file", name);
	char *path = take(folder + strlen(name) + 1, 1);
	memcpy(path, image_path, folder);
	memcpy(path + folder, name, strlen(name) + 1);
	return path;
}

static bool aligned(const struct image *img, uint64_t off)
{
	return off % img->cluster_bytes == 0;
}

static void read_header_v3(struct image *img)
{
	uint8_t h[112];
	uint64_t got = read_at(&img->file, h, sizeof h, 0);
	if (got < 104)
		refuse("the file ends inside the header");
	img->incompatible = be(h + 72, 8);
	img->compatible = be(h + 80, 8);
	img->autoclear = be(h + 88, 8);
	img->refcount_order = (uint32_t)be(h + 96, 4);
	img->header_bytes = (uint32_t)be(h + 100, 4);
	if (img->header_bytes < 104 || img->header_bytes % 8 ||
		img->header_bytes > img->cluster_bytes || img->header_bytes > img->file_bytes)
		refuse("header_length is %u", img->header_bytes);
	if (img->header_bytes > 104)
		img->compression = h[104];
	if (img->incompatible & ~INCOMPAT_KNOWN)
		refuse("unknown incompatible features %#jx", (uintmax_t)img->incompatible);
	if (img->refcount_order > 6)
		refuse("refcount_order is %u", img->refcount_order);
	if (!!(img->incompatible & INCOMPAT_COMPRESSION) != (img->compression != 0))
		refuse("compression_type %u disagrees with its bit", img->compression);
	if (img->compression > 1)
		refuse("compression_type is %u", img->compression);
	img->has_data_file = img->incompatible & INCOMPAT_DATA_FILE;
	img->extended_l2 = img->incompatible & INCOMPAT_EXTENDED_L2;
	if (img->extended_l2 && img->cluster_bits < 14)
		refuse("extended L2 entries with cluster_bits %u", img->cluster_bits);
	if ((img->autoclear & AUTOCLEAR_RAW_DATA) && !img->has_data_file)
		refuse("raw external data without a data file");
}

static void read_header(struct image *img)
{
	uint8_t h[72];
	if (read_at(&img->file, h, sizeof h, 0) != sizeof h)
		refuse("the file ends inside the header");
	if (memcmp(h, "QFI\xfb", 4) != 0)
		refuse("not a qcow2 image");
	img->version = (uint32_t)be(h + 4, 4);
	img->backing_off = be(h + 8, 8);
	img->backing_bytes = (uint32_t)be(h + 16, 4);
	img->cluster_bits = (uint32_t)be(h + 20, 4);
	img->disk_bytes = be(h + 24, 8);
	img->crypt_method = (uint32_t)be(h + 32, 4);
	img->n_l1 = (uint32_t)be(h + 36, 4);
	img->l1_off = be(h + 40, 8);
	img->rt_off = be(h + 48, 8);
	img->n_rt_clusters = (uint32_t)be(h + 56, 4);
	img->n_snapshots = (uint32_t)be(h + 60, 4);
	img->snapshots_off = be(h + 64, 8);
	if (img->version != 2 && img->version != 3)
		refuse("version is %u", img->version);
	/* the specification has no upper limit; 30 keeps all arithmetic far from overflow */
	if (img->cluster_bits < 9 || img->cluster_bits > 30)
		refuse("cluster_bits is %u", img->cluster_bits);
	if (img->crypt_method > 2)
		refuse("crypt_method is %u", img->crypt_method);
	img->cluster_bytes = UINT64_C(1) << img->cluster_bits;
	img->refcount_order = 4;
	img->header_bytes = 72;
	if (img->version == 3)
		read_header_v3(img);
	img->n_l2 = img->cluster_bytes / (img->extended_l2 ? 16 : 8);
}

static void read_extension(struct image *img, uint32_t type, uint64_t off, uint32_t bytes)
{
	uint8_t d[24];
	read_at(&img->file, d, sizeof d, off);
	switch (type) {
	case 0xe2792aca:
		if (img->backing_format)
			refuse("two backing format extensions");
		img->backing_format = read_string(img, off, bytes);
		break;
	case 0x44415441:
		if (img->data_file)
			refuse("two data file extensions");
		img->data_file = read_string(img, off, bytes);
		break;
	case 0x23852875:
		if (img->has_bitmaps || bytes < 24)
			refuse("two bitmaps extensions, or one of %u bytes", bytes);
		img->has_bitmaps = true;
		img->n_bitmaps = (uint32_t)be(d, 4);
		if (be(d + 4, 4))
			img->bitmaps_error = "a reserved field of the extension is set";
		img->bitmap_dir_bytes = be(d + 8, 8);
		img->bitmap_dir_off = be(d + 16, 8);
		break;
	case 0x0537be77:
		if (img->has_crypto || bytes < 16)
			refuse("two encryption extensions, or one of %u bytes", bytes);
		img->has_crypto = true;
		img->crypto_off = be(d, 8);
		img->crypto_bytes = be(d + 8, 8);
		break;
	case 0x6803f857: /* names of features: nothing in it that matters here */
		break;
	default:
		img->n_unknown_extensions++;
	}
}

static void read_extensions(struct image *img)
{
	uint64_t off = img->header_bytes, end = img->cluster_bytes;
	/* a backing file name after the header ends the area too */
	if (img->backing_off > 0 && img->backing_off < end)
		end = img->backing_off;
	while (off + 8 <= end) {
		uint8_t head[8];
		read_at(&img->file, head, sizeof head, off);
		uint32_t type = (uint32_t)be(head, 4), bytes = (uint32_t)be(head + 4, 4);
		if (type == 0)
			return;
		if (bytes > end - off - 8)
			refuse("extension %#x of %u bytes does not fit", type, bytes);
		read_extension(img, type, off + 8, bytes);
		off += 8 + ((uint64_t)bytes + 7) / 8 * 8;
	}
}

static void read_backing_name(struct image *img)
{
	if (!img->backing_off)
		return;
	if (img->backing_bytes > 1023)
		refuse("a backing file name of %u bytes", img->backing_bytes);
	if (img->backing_off < img->header_bytes ||
		img->backing_off + img->backing_bytes > img->cluster_bytes)
		refuse("the backing file name is not in the header's cluster");
	img->backing = read_string(img, img->backing_off, img->backing_bytes);
	if (img->autoclear & AUTOCLEAR_RAW_DATA)
		refuse("raw external data with a backing file");
}

static void judge_header(const struct image *img)
{
	uint64_t per_l1 = img->n_l2 << img->cluster_bits;
	uint64_t need = img->disk_bytes / per_l1 + (img->disk_bytes % per_l1 != 0);
	if (need > img->n_l1)
		refuse("an L1 table of %u entries for a disk of %ju bytes", img->n_l1,
			(uintmax_t)img->disk_bytes);
	if (!aligned(img, img->l1_off) || (img->n_l1 && !img->l1_off))
		refuse("l1_table_offset is %#jx", (uintmax_t)img->l1_off);
	if (!aligned(img, img->rt_off) || !img->rt_off || !img->n_rt_clusters)
		refuse("refcount table of %u clusters at %#jx", img->n_rt_clusters,
			(uintmax_t)img->rt_off);
	/* all that comes adds at most 2^62 to an offset */
	if (img->l1_off >> 62 || img->rt_off >> 62 || img->disk_bytes >> 62)
		refuse("an offset or size of 2^62 and more");
	if (img->n_snapshots && (!aligned(img, img->snapshots_off) || img->snapshots_off >> 62))
		refuse("snapshots_offset is %#jx", (uintmax_t)img->snapshots_off);
	/* without the autoclear bit the extension is somebody's leftover */
	if (img->has_bitmaps && (img->autoclear & AUTOCLEAR_BITMAPS) &&
		(!aligned(img, img->bitmap_dir_off) || img->bitmap_dir_off >> 62))
		refuse("bitmap_directory_offset is %#jx", (uintmax_t)img->bitmap_dir_off);
	if (img->has_crypto != (img->crypt_method == 2))
		refuse("crypt_method %u disagrees with the encryption extension",
			img->crypt_method);
	if (img->has_crypto && (!aligned(img, img->crypto_off) || img->crypto_off >> 62 ||
				       img->crypto_bytes > img->file_bytes))
		refuse("encryption header of %ju bytes at %#jx", (uintmax_t)img->crypto_bytes,
			(uintmax_t)img->crypto_off);
}

static bool read_snapshot(struct image *img, struct snapshot *s, uint64_t *off)
{
	uint8_t h[64];
	uint64_t got = read_at(&img->file, h, sizeof h, *off);
	uint32_t extra = (uint32_t)be(h + 36, 4);
	s->l1_off = be(h, 8);
	s->n_l1 = (uint32_t)be(h + 8, 4);
	s->id_bytes = (size_t)be(h + 12, 2);
	s->name_bytes = (size_t)be(h + 14, 2);
	s->date_seconds = (uint32_t)be(h + 16, 4);
	s->vm_state_bytes = extra >= 8 ? be(h + 40, 8) : be(h + 32, 4);
	s->disk_bytes = extra >= 16 ? be(h + 48, 8) : img->disk_bytes;
	if (got < 40 || (img->version == 3 && extra < 16))
		return false;
	uint64_t id_off = *off + 40 + extra, name_off = id_off + s->id_bytes;
	if (name_off + s->name_bytes > img->file_bytes)
		return false;
	if (s->l1_off % img->cluster_bytes || s->l1_off >> 62 || s->disk_bytes >> 62)
		return false;
	if ((uint64_t)s->n_l1 * 8 > img->file_bytes) /* its tables are all written */
		return false;
	s->id = read_string(img, id_off, s->id_bytes);
	s->name = read_string(img, name_off, s->name_bytes);
	img->snapshots_bytes = name_off + s->name_bytes - img->snapshots_off;
	*off = img->snapshots_off + (img->snapshots_bytes + 7) / 8 * 8;
	return true;
}

static void read_snapshots(struct image *img)
{
	uint64_t off = img->snapshots_off;
	if (!img->n_snapshots)
		return;
	if (img->n_snapshots > img->file_bytes / 40) {
		img->snapshots_error = "it is longer than the file";
		return;
	}
	img->snapshots = take(img->n_snapshots, sizeof *img->snapshots);
	for (uint32_t i = 0; i < img->n_snapshots; i++)
		if (!read_snapshot(img, &img->snapshots[i], &off)) {
			img->snapshots_error = "an entry is malformed";
			return;
		}
}

static bool read_bitmap(struct image *img, struct bitmap *b, uint64_t *off, uint64_t end)
{
	uint8_t h[24];
	if (*off + sizeof h > end || read_at(&img->file, h, sizeof h, *off) != sizeof h)
		return false;
	b->table_off = be(h, 8);
	b->n_table = (uint32_t)be(h + 8, 4);
	b->flags = (uint32_t)be(h + 12, 4);
	b->type = h[16];
	b->granularity_bits = h[17];
	b->name_bytes = (size_t)be(h + 18, 2);
	b->extra_bytes = (uint32_t)be(h + 20, 4);
	uint64_t name_off = *off + sizeof h + b->extra_bytes;
	if (name_off + b->name_bytes > end || !b->name_bytes)
		return false;
	if (b->type != 1 || b->granularity_bits > 63 || b->flags > 7)
		return false;
	if (b->table_off % img->cluster_bytes || b->table_off >> 62 ||
		(uint64_t)b->n_table * 8 > img->file_bytes)
		return false;
	b->name = read_string(img, name_off, b->name_bytes);
	uint64_t padding_off = name_off + b->name_bytes;
	*off += (padding_off - *off + 7) / 8 * 8;
	uint8_t padding[8];
	read_at(&img->file, padding, sizeof padding, padding_off);
	return *off <= end && be(padding, (unsigned)(*off - padding_off)) == 0;
}

static void read_bitmaps(struct image *img)
{
	uint64_t off = img->bitmap_dir_off, end = off + img->bitmap_dir_bytes;
	if (!(img->autoclear & AUTOCLEAR_BITMAPS)) {
		img->bitmaps_error = NULL; /* nothing of it counts */
		return;
	}
	if (!img->has_bitmaps)
		img->bitmaps_error = "the feature bit is set and the extension is not there";
	else if (!img->n_bitmaps || img->n_bitmaps > img->file_bytes / 24)
		img->bitmaps_error = "impossible number of bitmaps";
	else if (end > img->file_bytes || end < off)
		img->bitmaps_error = "the directory is not in the file";
	if (img->bitmaps_error)
		return;
	img->bitmaps = take(img->n_bitmaps, sizeof *img->bitmaps);
	for (uint32_t i = 0; i < img->n_bitmaps && !img->bitmaps_error; i++)
		if (!read_bitmap(img, &img->bitmaps[i], &off, end))
			img->bitmaps_error = "an entry is malformed";
	if (!img->bitmaps_error && off != end)
		img->bitmaps_error = "the directory has another size than its entries";
}

static int open_file(const char *path, uint64_t *bytes)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode))
		refuse("cannot open '%s' as a file", path);
	*bytes = (uint64_t)st.st_size;
	return fd;
}

static struct image *open_image(struct image *img)
{
	img->data.fd = -1;
	read_header(img);
	read_extensions(img);
	read_backing_name(img);
	judge_header(img);
	read_snapshots(img);
	read_bitmaps(img);
	return img;
}

struct image *image_open(const char *path)
{
	struct image *img = take(1, sizeof *img);
	img->path = path;
	img->file.fd = open_file(path, &img->file_bytes);
	return open_image(img);
}

struct image *image_open_bytes(const uint8_t *bytes, uint64_t n_bytes)
{
	struct image *img = take(1, sizeof *img);
	img->path = "";
	img->file = (struct file){.fd = -1, .bytes = bytes, .n_bytes = n_bytes};
	img->file_bytes = n_bytes;
	return open_image(img);
}

void image_data_bytes(struct image *img, const uint8_t *bytes, uint64_t n_bytes)
{
	img->data = (struct file){.fd = -1, .bytes = bytes, .n_bytes = n_bytes};
}
