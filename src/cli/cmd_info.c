/* SPDX-License-Identifier: MIT */
/*
 * cmd_info: what an image says of itself.
 *
 * One description is built as JSON, in the order in which QEMU prints it; --output json prints it and
 * the human form is read from it; lists that an image makes long are read while they are printed. Without --backing-chain exactly one file is opened, and guest data is
 * never read.
 */
#include "cli/cli.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "base/num.h"
#include "cli/driver.h"
#include "cli/info.h"
#include "cli/snaplist.h"
#include "cli/spec.h"

/* The long lists of one image. They are read while they are printed. */
struct layer {
	struct cli_snapshots snapshots;
	struct cli_json_list bitmaps;
	struct info *info;
	struct qcow_image *image;
	struct layer *next;
};

struct info {
	struct cli *cli;
	struct layer *layers;
	bool limits;
	bool direct; /* cache=none: the limits are those of O_DIRECT */
	bool probed; /* no -f: QEMU then aligns raw requests to sectors */
	bool is_protocol; /* a file or an export by itself */
	bool damaged; /* something could not be shown; reported, exit code 1 */
};

/* ---- the description ---- */

/* QEMU counts a raw disk in whole sectors; we do so where its text is asked for. */
static uint64_t shown_size(const struct info *info, uint64_t bytes)
{
	if (!info->cli->qemu || bytes > UINT64_MAX - 511)
		return bytes;
	return (bytes + 511) / 512 * 512;
}

/* Bytes that the host has allocated for a store, and whether it is a block device. */
static bool host_facts(struct qcow_store *store, uint64_t *allocated, bool *is_device)
{
	struct stat st;
	int fd = qcow_store_fd(store);
	if (fd < 0 || fstat(fd, &st) != 0)
		return false;
	*allocated = (uint64_t)st.st_blocks * 512;
	*is_device = S_ISBLK(st.st_mode);
	return true;
}

static json_t *describe_limits(
	const struct info *info, const struct qcow_info *image, bool format_layer)
{
	uint64_t sector = info->direct ? 512 : 1;
	bool by_sector = format_layer && (image->encryption != QCOW_ENCRYPTION_NONE ||
						 (image->version == 0 && info->probed));
	json_t *o = json_object();
	if (format_layer && image->version != 0)
		cli_json_set(o, "write-zeroes-alignment",
			cli_json_u64(image->extended_l2 ? image->cluster_size / 32
							: image->cluster_size));
	/* the qcow2 layer takes any request and aligns by itself */
	uint64_t alignment = format_layer && image->version != 0 ? 1 : sector;
	cli_json_set(o, "request-alignment", cli_json_u64(by_sector ? 512 : alignment));
	cli_json_set(o, "min-mem-alignment", cli_json_u64(sector));
	if (format_layer && image->version != 0)
		cli_json_set(o, "discard-alignment", cli_json_u64(image->cluster_size));
	cli_json_set(o, "opt-mem-alignment", cli_json_u64(4096));
	cli_json_set(o, "max-iov", cli_json_u64(1024));
	return o;
}

/* The node of a file that the image is made of. */
static json_t *describe_file(
	const struct info *info, struct qcow_store *store, const struct qcow_info *image)
{
	uint64_t allocated = 0;
	bool is_device = false, known = host_facts(store, &allocated, &is_device);
	const char *driver = is_device ? "host_device" : "file";
	if (qcow_store_fd(store) < 0 && cli_driver_is_nbd(NULL, qcow_store_name(store)))
		driver = "nbd";
	json_t *o = json_object(), *specific = json_object();
	if (info->limits)
		cli_json_set(o, "limits", describe_limits(info, image, false));
	cli_json_set(o, "children", json_array());
	cli_json_set(o, "virtual-size", cli_json_u64(shown_size(info, image->file_size)));
	cli_json_set(o, "filename", cli_json_string(qcow_store_name(store)));
	cli_json_set(o, "format", cli_json_string(driver));
	if (known)
		cli_json_set(o, "actual-size", cli_json_u64(allocated));
	cli_json_set(specific, "type", cli_json_string(driver));
	cli_json_set(specific, "data", json_object());
	cli_json_set(o, "format-specific", specific);
	cli_json_set(o, "dirty-flag", json_false());
	return o;
}

struct walk {
	void (*put)(void *ctx, json_t *member);
	void *ctx;
};

static bool visit_bitmap(void *ctx, uint32_t index, const struct qcow_bitmap *bitmap)
{
	struct walk *walk = ctx;
	json_t *o = json_object(), *flags = json_array();
	(void)index;
	if (bitmap->in_use)
		(void)json_array_append_new(flags, json_string("in-use"));
	if (bitmap->is_auto)
		(void)json_array_append_new(flags, json_string("auto"));
	cli_json_set(o, "flags", flags);
	cli_json_set(o, "name", cli_json_string(bitmap->name));
	cli_json_set(
		o, "granularity", cli_json_u64(UINT64_C(1) << (bitmap->granularity_bits & 63)));
	walk->put(walk->ctx, o);
	return true;
}

static void each_bitmap(
	struct cli_json_list *list, void (*put)(void *ctx, json_t *member), void *ctx)
{
	struct layer *layer = (struct layer *)((char *)list - offsetof(struct layer, bitmaps));
	struct walk walk = {put, ctx};
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_each_bitmap(layer->image, visit_bitmap, &walk, &err) == QCOW_OK)
		return;
	layer->info->damaged = true;
	(void)cli_fail(layer->info->cli, &err, "'%s': bitmaps",
		qcow_store_name(qcow_image_store(layer->image)));
}

static struct layer *add_layer(struct info *info, struct qcow_image *image)
{
	struct layer *layer = qk_calloc(1, sizeof(*layer));
	if (layer == NULL)
		cli_out_of_memory();
	cli_snapshots_init(&layer->snapshots, info->cli, image, &info->damaged);
	layer->bitmaps.each = each_bitmap;
	layer->info = info;
	layer->image = image;
	layer->next = info->layers;
	info->layers = layer;
	return layer;
}

static void free_layers(struct info *info)
{
	while (info->layers != NULL) {
		struct layer *next = info->layers->next;
		free(info->layers);
		info->layers = next;
	}
}

static void describe_features(struct layer *layer, const struct qcow_info *in, json_t *data)
{
	bool v3 = in->version >= 3;
	cli_json_set(data, "compat", json_string(v3 ? "1.1" : "0.10"));
	cli_json_set(data, "compression-type",
		json_string(in->compression == QCOW_COMPRESSION_ZSTD ? "zstd" : "zlib"));
	if (v3)
		cli_json_set(data, "lazy-refcounts",
			json_boolean((in->compatible & QCOW_COMPAT_LAZY_REFCOUNTS) != 0));
	if (in->n_bitmaps != 0)
		cli_json_set(data, "bitmaps", cli_json_list(&layer->bitmaps));
	cli_json_set(data, "refcount-bits", cli_json_u64(in->refcount_bits));
	if (in->data_file_name != NULL)
		cli_json_set(data, "data-file", cli_json_string(in->data_file_name));
	if (in->encryption != QCOW_ENCRYPTION_NONE)
		cli_json_set(data, "encrypt", cli_info_encryption(layer->image, in));
	if (!v3)
		return;
	if ((in->incompatible & QCOW_INCOMPAT_DATA_FILE) != 0)
		cli_json_set(data, "data-file-raw",
			json_boolean((in->autoclear & QCOW_AUTOCLEAR_DATA_RAW) != 0));
	cli_json_set(
		data, "corrupt", json_boolean((in->incompatible & QCOW_INCOMPAT_CORRUPT) != 0));
	cli_json_set(data, "extended-l2", json_boolean(in->extended_l2));
}

/* The path that the recorded backing name stands for. */
static json_t *full_backing_name(const char *filename, const char *backing)
{
	size_t n = 0;
	if (cli_path_protocol(backing, &n))
		return cli_json_string(strncmp(backing, "file:", strlen("file:")) == 0
					       ? backing + n + 1
					       : backing);
	QK_AUTO_FREE char *path = cli_join_path(filename, backing);
	return path != NULL ? cli_json_string(path) : NULL;
}

/* The node of a detached LUKS header. */
static json_t *describe_header(
	const struct info *info, struct qcow_store *header, const struct qcow_info *image)
{
	struct qcow_info of_header = *image;
	of_header.file_size = image->crypto_length;
	return describe_file(info, header, &of_header);
}

static void add_child(json_t *children, const char *name, json_t *node)
{
	json_t *child = json_object();
	cli_json_set(child, "name", json_string(name));
	cli_json_set(child, "info", node);
	(void)json_array_append_new(children, child);
}

static json_t *describe(struct info *info, struct qcow_image *image, const char *filename)
{
	struct qcow_info in;
	qcow_get_info(image, &in);
	struct qcow_store *store = qcow_image_store(image);
	struct layer *layer = add_layer(info, image);
	bool is_qcow2 = in.version != 0, is_device = false;
	uint64_t allocated = 0;
	struct qcow_store *header = qcow_image_header_store(image);
	json_t *o = json_object(), *children = json_array();
	if (info->limits)
		cli_json_set(o, "limits", describe_limits(info, &in, true));
	if (header != NULL)
		add_child(children, "header", describe_header(info, header, &in));
	add_child(children, "file", describe_file(info, store, &in));
	cli_json_set(o, "children", children);
	if (in.backing_format != NULL)
		cli_json_set(o, "backing-filename-format", cli_json_string(in.backing_format));
	if (in.n_snapshots != 0)
		cli_json_set(o, "snapshots", cli_json_list(&layer->snapshots.list));
	cli_json_set(o, "virtual-size",
		cli_json_u64(is_qcow2 ? in.virtual_size : shown_size(info, in.virtual_size)));
	cli_json_set(o, "filename", cli_json_string(filename));
	if (is_qcow2)
		cli_json_set(o, "cluster-size", cli_json_u64(in.cluster_size));
	cli_json_set(o, "format", json_string(in.format));
	if (host_facts(store, &allocated, &is_device)) {
		uint64_t more = 0;
		if (header != NULL && host_facts(header, &more, &is_device))
			allocated += more;
		cli_json_set(o, "actual-size", cli_json_u64(allocated));
	}
	if (is_qcow2) {
		json_t *specific = json_object(), *data = json_object();
		describe_features(layer, &in, data);
		cli_json_set(specific, "type", json_string("qcow2"));
		cli_json_set(specific, "data", data);
		cli_json_set(o, "format-specific", specific);
	}
	if (strcmp(in.format, "luks") == 0)
		cli_json_set(o, "format-specific", cli_info_luks(image, &in));
	if (in.backing_name != NULL)
		cli_json_set(o, "full-backing-filename",
			full_backing_name(qcow_store_name(store), in.backing_name));
	if (in.encryption != QCOW_ENCRYPTION_NONE)
		cli_json_set(o, "encrypted", json_true());
	if (in.backing_name != NULL)
		cli_json_set(o, "backing-filename", cli_json_string(in.backing_name));
	cli_json_set(o, "dirty-flag", json_boolean((in.incompatible & QCOW_INCOMPAT_DIRTY) != 0));
	return o;
}

/* What was asked about is a file, or an export, and no format over it. */
static json_t *describe_node(struct info *info, struct qcow_image *image, const char *filename)
{
	struct qcow_info in;
	qcow_get_info(image, &in);
	json_t *o = describe_file(info, qcow_image_store(image), &in);
	cli_json_set(o, "filename", cli_json_string(filename));
	return o;
}

/* Does the operand name the driver of a file or an export, as the outermost one? */
static bool is_protocol(struct cli *cli, const struct cli_operand *operand)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	json_t *spec = NULL;
	if (cli_spec_parse(cli, operand, &spec, &err) != QCOW_OK)
		return false;
	const char *driver = json_string_value(json_object_get(spec, "driver"));
	if (operand->format != NULL)
		driver = operand->format;
	bool is_one = driver != NULL && json_object_get(spec, "file") == NULL &&
		      (strcmp(driver, "file") == 0 || strcmp(driver, "host_device") == 0 ||
			      strcmp(driver, "nbd") == 0);
	json_decref(spec);
	return is_one;
}

/* ---- the human form ---- */

static const char *text_of(const json_t *o, const char *key)
{
	const char *text = json_string_value(json_object_get(o, key));
	return text != NULL ? text : "";
}

static uint64_t u64_of(const json_t *o, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(o, key));
}

static void put_text(const char *label, const char *text)
{
	(void)printf("%s", label);
	cli_put_escaped(stdout, text);
	(void)putchar('\n');
}

static void put_size(const char *label, uint64_t bytes)
{
	char buf[CLI_SIZE_BYTES];
	(void)printf("%s%s (%llu bytes)\n", label, cli_human_size(bytes, buf),
		(unsigned long long)bytes);
}

static void put_disk_size(const char *indent, const json_t *o)
{
	char buf[CLI_SIZE_BYTES];
	bool known = json_object_get(o, "actual-size") != NULL;
	(void)printf("%sdisk size: %s\n", indent,
		known ? cli_human_size(u64_of(o, "actual-size"), buf) : "unavailable");
}

static void put_indent(unsigned depth)
{
	(void)printf("%*s", (int)depth * 4, "");
}

static void put_scalar(const json_t *value)
{
	if (json_is_integer(value))
		(void)printf(" %llu\n", (unsigned long long)json_integer_value(value));
	else if (json_is_boolean(value))
		(void)printf(" %s\n", json_is_true(value) ? "true" : "false");
	else
		put_text(" ", json_string_value(value) != NULL ? json_string_value(value) : "");
}

static void put_tree(const json_t *tree, unsigned depth);

static void put_element(size_t index, const json_t *value, unsigned depth)
{
	put_indent(depth);
	(void)printf("[%zu]:", index);
	if (json_is_object(value)) {
		(void)putchar('\n');
		put_tree(value, depth + 1);
	} else {
		put_scalar(value);
	}
}

struct place {
	size_t index;
	unsigned depth;
};

static void put_list_element(void *ctx, json_t *value)
{
	struct place *place = ctx;
	put_element(place->index++, value, place->depth);
	json_decref(value);
}

/* Our own description, at most four levels deep: the recursion is bounded by what describe() builds. */
static void put_tree(const json_t *tree, unsigned depth)
{
	const char *key = NULL;
	json_t *value = NULL;
	struct cli_json_list *list = cli_json_list_of(tree);
	if (list != NULL) {
		struct place place = {0, depth};
		list->each(list, put_list_element, &place);
		return;
	}
	json_object_foreach((json_t *)tree, key, value)
	{
		put_indent(depth);
		for (const char *c = key; *c != '\0'; c++)
			(void)putchar(*c == '-' ? ' ' : *c);
		(void)putchar(':');
		if (!json_is_object(value) && !json_is_array(value)) {
			put_scalar(value);
			continue;
		}
		(void)putchar('\n');
		put_tree(value, depth + 1);
	}
	size_t i = 0;
	json_array_foreach((json_t *)tree, i, value) put_element(i, value, depth);
}

void cli_info_put_specific(struct cli *cli, struct qcow_image *image)
{
	struct info info = {.cli = cli};
	struct qcow_info in;
	qcow_get_info(image, &in);
	if (in.version == 0)
		return;
	json_t *data = json_object();
	describe_features(add_layer(&info, image), &in, data);
	(void)printf("Format specific information:\n");
	put_tree(data, 1);
	json_decref(data);
	free_layers(&info);
}

static void put_backing(const json_t *o)
{
	if (json_object_get(o, "backing-filename") == NULL)
		return;
	const char *name = text_of(o, "backing-filename");
	const char *full = text_of(o, "full-backing-filename");
	(void)printf("backing file: ");
	cli_put_escaped(stdout, name);
	if (strcmp(name, full) != 0) {
		(void)printf(" (actual path: ");
		cli_put_escaped(stdout, full);
		(void)putchar(')');
	}
	(void)putchar('\n');
	if (json_object_get(o, "backing-filename-format") != NULL)
		put_text("backing file format: ", text_of(o, "backing-filename-format"));
}

static void put_child(const json_t *child)
{
	const json_t *o = json_object_get(child, "info");
	(void)printf("Child node '/%s':\n", text_of(child, "name"));
	put_text("    filename: ", text_of(o, "filename"));
	put_text("    protocol type: ", text_of(o, "format"));
	put_size("    file length: ", u64_of(o, "virtual-size"));
	put_disk_size("    ", o);
	if (json_object_get(o, "limits") != NULL) {
		(void)printf("    Block limits:\n");
		put_tree(json_object_get(o, "limits"), 2);
	}
}

static void put_human(const json_t *o)
{
	put_text("image: ", text_of(o, "filename"));
	put_text("file format: ", text_of(o, "format"));
	put_size("virtual size: ", u64_of(o, "virtual-size"));
	put_disk_size("", o);
	if (json_is_true(json_object_get(o, "encrypted")))
		(void)printf("encrypted: yes\n");
	if (json_object_get(o, "cluster-size") != NULL)
		(void)printf("cluster_size: %llu\n", (unsigned long long)u64_of(o, "cluster-size"));
	if (json_is_true(json_object_get(o, "dirty-flag")))
		(void)printf("cleanly shut down: no\n");
	put_backing(o);
	if (json_object_get(o, "limits") != NULL) {
		(void)printf("Block limits:\n");
		put_tree(json_object_get(o, "limits"), 1);
	}
	if (json_object_get(o, "snapshots") != NULL)
		cli_snapshot_table(cli_json_list_of(json_object_get(o, "snapshots")));
	const json_t *data = json_object_get(json_object_get(o, "format-specific"), "data");
	if (json_object_size(data) != 0) {
		(void)printf("Format specific information:\n");
		put_tree(data, 1);
	}
	size_t i = 0;
	json_t *child = NULL;
	json_array_foreach(json_object_get(o, "children"), i, child) put_child(child);
}

/* ---- the command ---- */

static int show(
	struct info *info, struct qcow_image *image, const char *name, const struct cli_args *args)
{
	bool chain = cli_flag(args, "backing-chain");
	json_t *list = json_array();
	for (struct qcow_image *at = image; at != NULL; at = chain ? qcow_backing(at) : NULL) {
		const char *filename = at == image ? name : qcow_store_name(qcow_image_store(at));
		bool is_node = at == image && info->is_protocol;
		json_t *o = is_node ? describe_node(info, at, filename)
				    : describe(info, at, filename);
		(void)json_array_append_new(list, o);
	}
	if (cli_wants_json(args)) {
		json_t *root = chain ? json_incref(list) : json_incref(json_array_get(list, 0));
		json_decref(list);
		int rc = cli_json_print(info->cli, root);
		return rc != 0 ? rc : info->damaged;
	}
	size_t i = 0;
	json_t *o = NULL;
	json_array_foreach(list, i, o)
	{
		if (i != 0)
			(void)putchar('\n');
		put_human(o);
	}
	json_decref(list);
	return info->damaged;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct cli_open_request request;
	unsigned flags = CLI_OPEN_CHECK | CLI_OPEN_NO_DATA;
	if (!cli_flag(args, "backing-chain"))
		flags |= CLI_OPEN_ALONE;
	if (!cli_open_request_init(cli, args, args->operands[0], flags, &request))
		return 1;
	request.sandbox = cli_sandbox_from_args(args, QK_MIB(128), 10);
	struct info info = {.cli = cli,
		.limits = cli_flag(args, "limits"),
		.direct = (request.flags & CLI_OPEN_DIRECT) != 0,
		.probed = request.operand.format == NULL && !request.operand.image_opts,
		.is_protocol = is_protocol(cli, &request.operand)};
	struct qcow_image *image = NULL;
	if (cli_open(cli, &request, &image) != QCOW_OK)
		return 1;
	QK_AUTO_FREE char *name = cli_display_name(cli, &request.operand, image);
	int rc = 1;
	if (name == NULL)
		cli_error(cli, "Cannot allocate memory");
	else
		rc = show(&info, image, name, args);
	free_layers(&info);
	qcow_close(image);
	return rc;
}

static const struct cli_option options[] = {
	CLI_OPT_FORMAT,
	CLI_OPT_IMAGE_OPTS,
	{.name = "backing-chain", .help = "describe every image of the backing chain too"},
	{.name = "limits", .help = "show alignments and limits of requests"},
	CLI_OPT_OUTPUT,
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_CACHE,
	CLI_OPT_OBJECT,
	CLI_OPT_PROBE,
	CLI_OPT_SANDBOX,
	CLI_OPT_VERBOSE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_info = {
	.name = "info",
	.summary = "Display information about an image",
	.synopsis = "[-f FMT | --image-opts] [--backing-chain] [--limits] [-U] [--output "
		    "human|json] FILE",
	.about = "Opens one file and never its backing or data file, unless --backing-chain asks "
		 "for the\n"
		 "backing files.",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.run = run,
};
