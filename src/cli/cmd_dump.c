/* SPDX-License-Identifier: MIT */
/*
 * cmd_dump: everything that an image says about itself, as JSON: header, extensions, snapshots, bitmaps, and
 * every structure in the file, one a line. The structures are written as they are visited: a dump of a huge
 * image needs no memory for it.
 *
 * Numbers that are offsets, sizes and counts are JSON integers; words as stored (entries, feature words) are
 * strings "0x…", for they may exceed 2^63. Names may hold any bytes: what is no UTF-8 becomes U+FFFD.
 */
#include "cli/cli.h"

#include <inttypes.h>
#include <string.h>

struct dump {
	struct cli *cli;
	struct qcow_image *image;
	bool first; /* nothing stands in this array yet */
	bool failed; /* out of memory, or stdout cannot be written */
};

/* ---- pieces of JSON ---- */

static void put_json(struct dump *d, json_t *value)
{
	char *text = cli_json_failed(value)
			     ? NULL
			     : json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);

	json_decref(value);
	if (text == NULL)
		d->failed = true;
	else
		(void)fputs(text, stdout);
	free(text);
}

static void put_element(struct dump *d, json_t *object)
{
	(void)fputs(d->first ? "\n        " : ",\n        ", stdout);
	d->first = false;
	put_json(d, object);
}

static void begin_array(struct dump *d, const char *key)
{
	(void)printf(",\n    \"%s\": [", key);
	d->first = true;
}

static void end_array(struct dump *d)
{
	(void)fputs(d->first ? "]" : "\n    ]", stdout);
}

static json_t *hex(uint64_t value)
{
	char text[24];

	(void)snprintf(text, sizeof(text), "0x%" PRIx64, value);
	return json_string(text);
}

static void set_number(json_t *o, const char *key, uint64_t value)
{
	cli_json_set(o, key, cli_json_u64(value));
}

static void set_string(json_t *o, const char *key, const char *text)
{
	if (text != NULL)
		cli_json_set(o, key, cli_json_string(text));
}

static void set_error(json_t *o, const struct qcow_error *err)
{
	set_string(o, "error", err->message);
	if (err->finding != 0)
		set_string(o, "finding", qcow_finding_name(err->finding));
}

/* ---- header and extensions ---- */

static json_t *feature_word(const struct dump *d, unsigned kind, uint64_t word)
{
	json_t *o = json_object();
	json_t *bits = json_array();

	for (unsigned bit = 0; bit < 64; bit++) {
		if ((word >> bit & 1) == 0)
			continue;
		json_t *b = json_object();
		set_number(b, "bit", bit);
		set_string(b, "name", qcow_feature_name(d->image, kind, bit));
		(void)json_array_append_new(bits, b);
	}
	cli_json_set(o, "value", hex(word));
	cli_json_set(o, "bits", bits);
	return o;
}

static json_t *header_json(const struct dump *d, const struct qcow_info *in)
{
	static const char *const methods[] = {"none", "aes", "luks"};
	json_t *o = json_object();

	set_number(o, "version", in->version);
	set_number(o, "cluster-size", in->cluster_size);
	set_number(o, "virtual-size", in->virtual_size);
	set_string(o, "encryption", methods[in->encryption]);
	set_number(o, "l1-offset", in->l1_offset);
	set_number(o, "l1-entries", in->l1_entries);
	set_number(o, "refcount-table-offset", in->refcount_table_offset);
	set_number(o, "refcount-table-clusters", in->refcount_table_clusters);
	set_number(o, "snapshots-offset", in->snapshots_offset);
	set_number(o, "snapshots", in->n_snapshots);
	cli_json_set(o, "incompatible-features", feature_word(d, 0, in->incompatible));
	cli_json_set(o, "compatible-features", feature_word(d, 1, in->compatible));
	cli_json_set(o, "autoclear-features", feature_word(d, 2, in->autoclear));
	set_number(o, "refcount-bits", in->refcount_bits);
	set_number(o, "header-length", in->header_length);
	set_string(
		o, "compression-type", in->compression == QCOW_COMPRESSION_ZSTD ? "zstd" : "zlib");
	cli_json_set(o, "extended-l2", json_boolean(in->extended_l2));
	set_string(o, "backing-file", in->backing_name);
	set_string(o, "backing-format", in->backing_format);
	set_string(o, "data-file", in->data_file_name);
	if (in->bitmap_directory_size != 0) {
		set_number(o, "bitmap-directory-offset", in->bitmap_directory_offset);
		set_number(o, "bitmap-directory-size", in->bitmap_directory_size);
	}
	if (in->crypto_length != 0) {
		set_number(o, "encryption-header-offset", in->crypto_offset);
		set_number(o, "encryption-header-length", in->crypto_length);
	}
	return o;
}

static json_t *hex_bytes(const uint8_t *data, size_t n)
{
	static const char digits[] = "0123456789abcdef";
	char *text = n < SIZE_MAX / 2 ? malloc(n * 2 + 1) : NULL;

	if (text == NULL)
		return NULL;
	for (size_t i = 0; i < n; i++) {
		text[i * 2] = digits[data[i] >> 4];
		text[i * 2 + 1] = digits[data[i] & 15];
	}
	json_t *s = json_stringn(text, n * 2);
	free(text);
	return s;
}

static void put_extensions(struct dump *d)
{
	begin_array(d, "extensions");
	for (uint32_t i = 0; i < qcow_extension_count(d->image) && !d->failed; i++) {
		struct qcow_extension e;
		struct qcow_error err = QCOW_ERROR_INIT;
		json_t *o = json_object();
		if (qcow_get_extension(d->image, i, &e, &err) != QCOW_OK) {
			set_error(o, &err);
		} else {
			cli_json_set(o, "type", hex(e.type));
			set_number(o, "length", e.length);
			cli_json_set(o, "data", hex_bytes(e.data, e.length));
		}
		put_element(d, o);
	}
	end_array(d);
}

/* ---- snapshots and bitmaps ---- */

static json_t *snapshot_json(const struct qcow_snapshot *s)
{
	json_t *o = json_object();

	cli_json_set(o, "id", cli_json_stringn(s->id, s->id_bytes));
	cli_json_set(o, "name", cli_json_stringn(s->name, s->name_bytes));
	set_number(o, "l1-offset", s->l1_offset);
	set_number(o, "l1-entries", s->l1_entries);
	set_number(o, "date-sec", s->date_sec);
	set_number(o, "date-nsec", s->date_nsec);
	cli_json_set(o, "vm-clock-nsec", hex(s->vm_clock_nsec));
	cli_json_set(o, "vm-state-size", hex(s->vm_state_size));
	cli_json_set(o, "disk-size", hex(s->disk_size));
	if (s->icount != UINT64_MAX)
		cli_json_set(o, "icount", hex(s->icount));
	cli_json_set(o, "extra-data", hex_bytes(s->extra, s->extra_bytes));
	return o;
}

static json_t *bitmap_json(const struct qcow_bitmap *b)
{
	json_t *o = json_object();

	set_string(o, "name", b->name);
	set_number(o, "granularity-bits", b->granularity_bits);
	cli_json_set(o, "flags", hex(b->flags));
	cli_json_set(o, "in-use", json_boolean(b->in_use));
	cli_json_set(o, "auto", json_boolean(b->is_auto));
	cli_json_set(o, "extra-data-compatible", json_boolean(b->extra_data_compatible));
	set_number(o, "table-offset", b->table_offset);
	set_number(o, "table-entries", b->table_entries);
	set_number(o, "extra-data-length", b->extra_bytes);
	return o;
}

static bool visit_snapshot(void *ctx, uint32_t index, const struct qcow_snapshot *s)
{
	struct dump *d = ctx;

	(void)index;
	put_element(d, snapshot_json(s));
	return !d->failed;
}

static bool visit_bitmap(void *ctx, uint32_t index, const struct qcow_bitmap *b)
{
	struct dump *d = ctx;

	(void)index;
	put_element(d, bitmap_json(b));
	return !d->failed;
}

/* A table that cannot be read is an element that says why. */
static void end_list(struct dump *d, enum qcow_status status, const struct qcow_error *err)
{
	if (status != QCOW_OK) {
		json_t *o = json_object();
		set_error(o, err);
		put_element(d, o);
	}
	end_array(d);
}

static void put_lists(struct dump *d)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	begin_array(d, "snapshots");
	end_list(d, qcow_each_snapshot(d->image, visit_snapshot, d, &err), &err);
	begin_array(d, "bitmaps");
	end_list(d, qcow_each_bitmap(d->image, visit_bitmap, d, &err), &err);
}

/* ---- structures ---- */

static const char *kind_name(enum qcow_structure kind)
{
	switch (kind) {
	case QCOW_STRUCT_HEADER:
		return "header";
	case QCOW_STRUCT_L1:
		return "l1-table";
	case QCOW_STRUCT_L1_ENTRY:
		return "l1-entry";
	case QCOW_STRUCT_L2:
		return "l2-table";
	case QCOW_STRUCT_L2_ENTRY:
		return "l2-entry";
	case QCOW_STRUCT_REFCOUNT_TABLE:
		return "refcount-table";
	case QCOW_STRUCT_REFCOUNT_TABLE_ENTRY:
		return "refcount-table-entry";
	case QCOW_STRUCT_REFCOUNT_BLOCK:
		return "refcount-block";
	case QCOW_STRUCT_REFCOUNT_ENTRY:
		return "refcount";
	case QCOW_STRUCT_SNAPSHOT_TABLE:
		return "snapshot-table";
	case QCOW_STRUCT_BITMAP_DIRECTORY:
		return "bitmap-directory";
	case QCOW_STRUCT_BITMAP_TABLE:
		return "bitmap-table";
	case QCOW_STRUCT_BITMAP_TABLE_ENTRY:
		return "bitmap-table-entry";
	case QCOW_STRUCT_CRYPTO_HEADER:
		return "encryption-header";
	}
	return "unknown";
}

static bool is_entry(enum qcow_structure kind)
{
	return kind == QCOW_STRUCT_L1_ENTRY || kind == QCOW_STRUCT_L2_ENTRY ||
	       kind == QCOW_STRUCT_REFCOUNT_TABLE_ENTRY || kind == QCOW_STRUCT_REFCOUNT_ENTRY ||
	       kind == QCOW_STRUCT_BITMAP_TABLE_ENTRY;
}

/* Written by hand: an image may have a hundred million entries, and each is words and numbers alone. */
static bool put_item(void *ctx, const struct qcow_walk_item *item)
{
	struct dump *d = ctx;

	(void)printf("%s{\"kind\": \"%s\", \"offset\": %" PRIu64 ", \"length\": %" PRIu64
		     ", \"index\": %" PRIu64,
		d->first ? "\n        " : ",\n        ", kind_name(item->kind), item->host_off,
		item->len, item->index);
	d->first = false;
	if (is_entry(item->kind))
		(void)printf(", \"value\": \"0x%" PRIx64 "\"", item->value);
	if (item->value2 != 0)
		(void)printf(", \"subclusters\": \"0x%" PRIx64 "\"", item->value2);
	if (item->target_len != 0)
		(void)printf(", \"target\": %" PRIu64 ", \"target-length\": %" PRIu64,
			item->target_off, item->target_len);
	if (item->guest_off != QCOW_NO_OFFSET)
		(void)printf(", \"guest\": %" PRIu64, item->guest_off);
	if (item->snapshot >= 0)
		(void)printf(", \"snapshot\": %" PRId64, item->snapshot);
	if (item->finding != 0)
		(void)printf(", \"finding\": \"%s\"", qcow_finding_name(item->finding));
	(void)putchar('}');
	d->failed = d->failed || ferror(stdout) != 0;
	return !d->failed;
}

static enum qcow_status put_structures(
	struct dump *d, const struct cli_args *args, struct qcow_error *err)
{
	unsigned flags = (cli_flag(args, "entries") ? QCOW_WALK_ENTRIES : 0u) |
			 (cli_flag(args, "refcounts") ? QCOW_WALK_REFCOUNTS : 0u);

	begin_array(d, "structures");
	enum qcow_status status = qcow_walk(d->image, flags, put_item, d, err);
	end_array(d);
	return status;
}

/* ---- the whole ---- */

static int dump_image(struct dump *d, const struct cli_args *args, const char *name)
{
	struct qcow_info in;
	struct qcow_error err = QCOW_ERROR_INIT;

	qcow_get_info(d->image, &in);
	if (strcmp(in.format, "qcow2") != 0) {
		cli_error(d->cli, "'%s': a raw image has no metadata to dump", name);
		return 1;
	}
	(void)fputs("{\n    \"filename\": ", stdout);
	put_json(d, cli_json_string(name));
	(void)printf(",\n    \"format\": \"qcow2\",\n    \"file-size\": %" PRIu64
		     ",\n    \"header\": ",
		in.file_size);
	put_json(d, header_json(d, &in));
	put_extensions(d);
	put_lists(d);
	enum qcow_status status = put_structures(d, args, &err);
	(void)fputs("\n}\n", stdout);
	if (status != QCOW_OK)
		return cli_fail(d->cli, &err, "'%s'", name);
	if (d->failed || fflush(stdout) != 0) {
		cli_error(d->cli, "the dump could not be written");
		return 1;
	}
	return 0;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct dump d = {.cli = cli};
	struct cli_open_request request;

	if (!cli_open_request_init(cli, args, args->operands[0],
		    CLI_OPEN_ALONE | CLI_OPEN_CHECK | CLI_OPEN_NO_DATA, &request) ||
		cli_open(cli, &request, &d.image) != QCOW_OK)
		return 1;
	char *name = cli_display_name(cli, &request.operand, d.image);
	int rc = name == NULL ? 1 : dump_image(&d, args, name);
	free(name);
	qcow_close(d.image);
	return rc;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.name = "entries", .help = "every L2 entry too, not only the tables"},
	{.name = "refcounts", .help = "every refcount too, not only the blocks"},
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_OBJECT,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_dump = {
	.name = "dump",
	.summary = "Print all metadata of an image as JSON",
	.synopsis = "[-f FMT | --image-opts] [--entries] [--refcounts] [-U] FILE",
	.about = "Header, header extensions, snapshots, bitmaps, and each structure in the file.\n"
		 "What is wrong with a structure stands in its \"finding\"; it is not followed.",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.flags = CLI_OPT_QCOW,
	.run = run,
};
