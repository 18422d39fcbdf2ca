/* SPDX-License-Identifier: MIT */
/*
 * operand: opens what a command is told to open, and by the references policy what images name.
 *
 * The policy (doc/ARCHITECTURE.md section 7). What a user typed is opened as typed. What an image names
 * comes from whoever made the image: `qcow` opens plain paths, relative to the image or absolute, and
 * regular files only; devices and json: only where the user says so in the operand
 * (backing.file.filename=…). A backing file without a recorded format is refused with the fix, or probed
 * with --probe. The qemu-img personality follows QEMU's rules. With --untrusted nothing that an image
 * names is opened.
 *
 * A node is {driver, store, where a raw disk lies in it}. Drivers: see driver.c.
 */
#include "cli/cli.h"

#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "cli/blkdebug.h"
#include "cli/driver.h"
#include "cli/imagestore.h"
#include "cli/nbd_node.h"
#include "cli/nullstore.h"
#include "cli/object.h"
#include "cli/spec.h"

struct node {
	struct qcow_store *store;
	const char *format; /* "qcow2", "raw", "luks" or NULL: probe */
	const struct cli_secret *secret; /* that the node names, or NULL */
	struct qcow_store *header; /* of a luks node with a detached header, or NULL */
	uint64_t raw_offset, raw_size;
};

/* Layers that the operand describes and one below the other. The first names its file; of the others the image
 * above says which file it is, and the operand how to open it. */
struct layer {
	const json_t *const *specs;
	size_t n_specs;
	const char *format, *snapshot; /* of the first of the whole operand, else NULL */
	unsigned depth; /* in the chain that the operand opens */
	bool is_written;
	struct qcow_image
		*backing; /* spelt out below them, or NULL; stays the caller's on failure */
};

/* What the resolver works with. */
struct refs {
	struct cli *cli;
	unsigned flags; /* CLI_OPEN_… */
	struct layer *layer; /* being opened */
	size_t n_used; /* of its specs */
	const struct cli_open_request *request;
};

unsigned cli_cache_file_flags(const char *cache)
{
	if (cache == NULL)
		return 0;
	bool direct = strcmp(cache, "none") == 0 || strcmp(cache, "directsync") == 0;
	bool sync = strcmp(cache, "writethrough") == 0 || strcmp(cache, "directsync") == 0;
	return (direct ? (unsigned)QCOW_FILE_DIRECT : 0) | (sync ? (unsigned)QCOW_FILE_SYNC : 0) |
	       (strcmp(cache, "unsafe") == 0 ? (unsigned)QCOW_FILE_NO_FLUSH : 0);
}

unsigned cli_cache_open_flags(const char *cache)
{
	unsigned flags = cli_cache_file_flags(cache);
	return ((flags & QCOW_FILE_DIRECT) != 0 ? (unsigned)CLI_OPEN_DIRECT : 0) |
	       ((flags & QCOW_FILE_NO_FLUSH) != 0 ? (unsigned)CLI_OPEN_NO_FLUSH : 0);
}

static unsigned file_flags(unsigned flags)
{
	return ((flags & CLI_OPEN_SHARE) != 0 ? (unsigned)QCOW_FILE_SHARE : 0) |
	       ((flags & CLI_OPEN_DIRECT) != 0 ? (unsigned)QCOW_FILE_DIRECT : 0) |
	       ((flags & CLI_OPEN_NO_LOCK) != 0 ? (unsigned)QCOW_FILE_NO_LOCK : 0) |
	       ((flags & CLI_OPEN_NO_FLUSH) != 0 ? (unsigned)QCOW_FILE_NO_FLUSH : 0);
}

/* Is the layer `below` layers below the one being opened for writing? The operand's own image, and one that was asked
 * for. */
static bool is_for_writing(const struct refs *refs, unsigned below)
{
	unsigned depth = refs->layer->depth + below, wanted = refs->request->write_depth;
	return (refs->flags & (CLI_OPEN_WRITE | CLI_OPEN_STORE_WRITE)) != 0 &&
	       (depth == 0 || (wanted != 0 && depth == wanted));
}

static unsigned layer_file_flags(const struct refs *refs, unsigned below)
{
	return file_flags(refs->flags) |
	       (is_for_writing(refs, below) ? (unsigned)QCOW_FILE_WRITE : 0);
}

/* Of the file that `ref` names. */
static unsigned ref_file_flags(const struct refs *refs, const struct qcow_reference *ref)
{
	return layer_file_flags(refs, ref->depth + (ref->kind == QCOW_REF_BACKING ? 1 : 0));
}

/* A secret that is named must exist. */
static enum qcow_status find_secret(
	struct cli *cli, const json_t *spec, const struct cli_secret **out, struct qcow_error *err)
{
	const char *id = NULL;
	QK_TRY(cli_spec_secret_id(spec, &id, err));
	if (id == NULL)
		return QCOW_OK;
	*out = id[0] != '\0' ? cli_secret_find(cli, id) : NULL;
	return *out != NULL ? QCOW_OK : QK_FAIL(err, QCOW_E_KEY, "No secret with id '%s'", id);
}

static enum qcow_status open_protocol(struct cli *cli, const json_t *spec, unsigned flags,
	struct qcow_store **out, struct qcow_error *err);

static enum qcow_status open_chain(struct refs *refs, const json_t *spec,
	const struct cli_open_request *request, struct qcow_image **out, struct qcow_error *err);

/* A node over another format: the disk of the image that `spec` describes. */
static enum qcow_status open_disk_below(struct cli *cli, const json_t *spec, unsigned flags,
	struct qcow_store **out, struct qcow_error *err)
{
	bool is_written = (flags & QCOW_FILE_WRITE) != 0;
	struct cli_open_request request = {
		.flags = (is_written ? (unsigned)CLI_OPEN_WRITE : 0) |
			 ((flags & QCOW_FILE_SHARE) != 0 ? (unsigned)CLI_OPEN_SHARE : 0) |
			 ((flags & QCOW_FILE_DIRECT) != 0 ? (unsigned)CLI_OPEN_DIRECT : 0) |
			 ((flags & QCOW_FILE_NO_FLUSH) != 0 ? (unsigned)CLI_OPEN_NO_FLUSH : 0)};
	struct refs refs = {.cli = cli, .flags = request.flags, .request = &request};
	struct qcow_image *image = NULL;
	json_t *own = json_deep_copy(spec);
	enum qcow_status status = own != NULL ? cli_spec_lower_filename(own, err)
					      : QK_FAIL_NOMEM(err);
	if (status == QCOW_OK)
		status = open_chain(&refs, own, &request, &image, err);
	if (status == QCOW_OK)
		status = cli_image_store_new(cli, image, is_written, out, err);
	json_decref(own);
	return status;
}

/* {driver: blkdebug, image: {…} | filename: "blkdebug:CONFIG:PATH" or a path, config, …}. */
static enum qcow_status open_blkdebug(struct cli *cli, const json_t *spec, const char *path,
	unsigned flags, struct qcow_store **out, struct qcow_error *err)
{
	json_t *own = json_copy((json_t *)spec), *image = json_object_get(spec, "image");
	image = json_is_object(image) ? json_copy(image) : json_object();
	struct qcow_store *below = NULL;
	enum qcow_status status = QCOW_OK;
	if (own == NULL || image == NULL)
		status = QK_FAIL_NOMEM(err);
	else
		status = cli_spec_split_blkdebug(own, image, path, err);
	if (status == QCOW_OK)
		status = open_protocol(cli, image, flags, &below, err);
	if (status == QCOW_OK)
		status = cli_blkdebug_new(
			cli, own, below, (flags & QCOW_FILE_NO_FLUSH) != 0, out, err);
	if (status != QCOW_OK && *out == NULL)
		qcow_store_close(below);
	json_decref(own);
	json_decref(image);
	return status;
}

/* The file of a protocol node: {driver: file|host_device, filename, locking, cache.direct}. */
static enum qcow_status open_protocol(struct cli *cli, const json_t *spec, unsigned flags,
	struct qcow_store **out, struct qcow_error *err)
{
	if (!json_is_object(spec))
		return QK_FAIL(err, QCOW_E_INVAL,
			"'file' must be an object; references to other nodes are not built in");
	QK_TRY(cli_driver_check_members(spec, err));
	const char *path = NULL, *driver = NULL, *locking = NULL;
	QK_TRY(cli_spec_string(spec, "driver", &driver, err));
	QK_TRY(cli_spec_string(spec, "filename", &path, err));
	QK_TRY(cli_spec_string(spec, "locking", &locking, err));
	if (driver != NULL) {
		QK_TRY(cli_driver_check(cli, driver, &driver, err));
		if (!cli_driver_is_protocol(driver))
			return open_disk_below(cli, spec, flags, out, err);
	}
	if (cli_driver_is_blkdebug(driver, path))
		return open_blkdebug(cli, spec, path, flags, out, err);
	if (cli_driver_is_nbd(driver, path))
		return cli_nbd_open(cli, spec, flags, out, err);
	if (driver != NULL && strcmp(driver, "null-co") == 0)
		return cli_null_store_open(cli, spec, (flags & QCOW_FILE_WRITE) != 0, out, err);
	if (path == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "the file's 'filename' is missing");
	bool direct = false, share = false, no_flush = false;
	QK_TRY(cli_spec_bool(json_object_get(spec, "cache"), "direct", &direct, err));
	QK_TRY(cli_spec_bool(spec, "force-share", &share, err));
	QK_TRY(cli_spec_bool(json_object_get(spec, "cache"), "no-flush", &no_flush, err));
	if (direct)
		flags |= QCOW_FILE_DIRECT;
	if (no_flush)
		flags |= QCOW_FILE_NO_FLUSH;
	if (share)
		flags |= QCOW_FILE_SHARE;
	if (locking != NULL && strcmp(locking, "off") == 0)
		flags |= QCOW_FILE_NO_LOCK;
	return qcow_file_open(path, flags, out, err);
}

/* The store and format of a node, without what lies below it. */
static enum qcow_status open_node(struct cli *cli, const json_t *spec, unsigned flags,
	struct node *out, struct qcow_error *err)
{
	const char *driver = NULL;
	QK_TRY(cli_driver_check_members(spec, err));
	QK_TRY(cli_spec_string(spec, "driver", &driver, err));
	if (driver != NULL)
		QK_TRY(cli_driver_check(cli, driver, &driver, err));
	if (driver != NULL && strcmp(driver, "raw") == 0) {
		QK_TRY(cli_spec_u64(cli, spec, "offset", &out->raw_offset, err));
		QK_TRY(cli_spec_u64(cli, spec, "size", &out->raw_size, err));
	}
	bool share = false;
	QK_TRY(cli_spec_bool(spec, "force-share", &share, err));
	if (share)
		flags |= QCOW_FILE_SHARE;
	const json_t *file = json_object_get(spec, "file");
	if (file == NULL && driver != NULL && !cli_driver_is_protocol(driver))
		return QK_FAIL(err, QCOW_E_INVAL, "A block device must be specified for \"file\"");
	out->format = driver != NULL && cli_driver_is_protocol(driver) ? "raw" : driver;
	QK_TRY(open_protocol(cli, file != NULL ? file : spec, flags, &out->store, err));
	const json_t *header = json_object_get(spec, "header");
	enum qcow_status status = QCOW_OK;
	if (header != NULL)
		status = open_protocol(cli, header, flags, &out->header, err);
	if (status != QCOW_OK) {
		qcow_store_close(out->store);
		out->store = NULL;
	}
	return status;
}

static void close_node(struct node *node)
{
	qcow_store_close(node->store);
	qcow_store_close(node->header);
	node->store = node->header = NULL;
}

/* ---- references ---- */

static const char *kind_text(enum qcow_reference_kind kind)
{
	return kind == QCOW_REF_BACKING ? "backing file" : "data file";
}

static enum qcow_status resolve_format(const struct refs *refs, const struct qcow_reference *ref,
	const char **out, struct qcow_error *err)
{
	*out = NULL;
	if (ref->kind == QCOW_REF_DATA_FILE) {
		*out = "raw";
		return QCOW_OK;
	}
	if (ref->format != NULL) {
		QK_TRY(cli_driver_check(refs->cli, ref->format, out, err));
		if (cli_driver_is_protocol(*out))
			*out = "raw";
		return QCOW_OK;
	}
	if (refs->cli->traits->probe_backing || (refs->flags & CLI_OPEN_PROBE) != 0)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_POLICY,
		"'%s' records no format for its backing file '%s'; record it "
		"('qcow rebase -u -b %s -F FORMAT %s') or open with --probe",
		ref->from, ref->name, ref->name, ref->from);
}

/* Does a node lie on a file, and not on another image? An image that a recorded name opens could name the first
 * again, and no chain would see the loop. */
static bool lies_on_file(const json_t *node)
{
	for (unsigned depth = 0; depth <= CLI_SPEC_DEPTH; depth++) {
		const char *driver = json_string_value(json_object_get(node, "driver"));
		if (driver != NULL && !cli_driver_is_protocol(driver))
			return false;
		node = json_object_get(node, "image");
		if (node == NULL)
			return true;
	}
	return false;
}

/* A recorded "json:{…}": a file and its format. What would need more than a store is refused. */
static enum qcow_status resolve_json(struct refs *refs, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	static const char *const beyond[] = {"offset", "size", "backing", "data-file"};
	json_t *spec = NULL;
	struct node node = {0};
	QK_TRY(cli_spec_parse_json(ref->name, &spec, err));
	if (!lies_on_file(json_object_get(spec, "file")) ||
		!lies_on_file(json_object_get(spec, "image")) ||
		!lies_on_file(json_object_get(spec, "header"))) {
		json_decref(spec);
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"a format over another one in the recorded name of a %s is not built in",
			kind_text(ref->kind));
	}
	enum qcow_status status = QCOW_OK;
	for (size_t i = 0; i < sizeof(beyond) / sizeof(beyond[0]) && status == QCOW_OK; i++)
		if (json_object_get(spec, beyond[i]) != NULL)
			status = QK_FAIL(err, QCOW_E_UNSUPPORTED,
				"'%s' in the recorded name of a %s is not built in", beyond[i],
				kind_text(ref->kind));
	if (status == QCOW_OK && (refs->flags & CLI_OPEN_CHECK) == 0)
		status = find_secret(refs->cli, spec, &node.secret, err);
	if (status == QCOW_OK)
		status = open_node(refs->cli, spec, ref_file_flags(refs, ref), &node, err);
	json_decref(spec);
	out->store = node.store;
	if (node.header != NULL) {
		qcow_store_close(out->luks_header);
		out->luks_header = node.header;
	}
	if (node.secret != NULL)
		out->secret = (struct qcow_secret){node.secret->data, node.secret->bytes};
	if (node.format != NULL)
		out->format = node.format;
	return status;
}

/* A special name that QEMU would open: json:… and file:…. Others are refused by name. */
static enum qcow_status resolve_special(struct refs *refs, const struct qcow_reference *ref,
	size_t protocol_bytes, struct qcow_resolved *out, struct qcow_error *err)
{
	const char *kind = kind_text(ref->kind);
	if (!refs->cli->traits->special_references)
		return QK_FAIL(err, QCOW_E_POLICY,
			"'%s' names a %s that is no plain path: '%s'; if you trust it, name it "
			"yourself (--image-opts driver=qcow2,file.filename=%s,%s.file.filename=…)",
			ref->from, kind, ref->name, ref->from,
			ref->kind == QCOW_REF_BACKING ? "backing" : "data-file");
	if (strncmp(ref->name, "json:", strlen("json:")) == 0)
		return resolve_json(refs, ref, out, err);
	if (cli_driver_is_nbd(NULL, ref->name))
		return cli_nbd_open_name(
			refs->cli, ref->name, ref_file_flags(refs, ref), &out->store, err);
	if (strncmp(ref->name, "file:", strlen("file:")) != 0)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"'%s' names a %s by a protocol that is not built in: '%.*s'", ref->from,
			kind, (int)protocol_bytes, ref->name);
	return qcow_file_open(
		ref->name + strlen("file:"), ref_file_flags(refs, ref), &out->store, err);
}

/* `qcow` opens regular files only by name from an image. Judged on the open descriptor, not the path. */
static enum qcow_status check_file_kind(const struct refs *refs, const struct qcow_reference *ref,
	struct qcow_store *store, struct qcow_error *err)
{
	struct stat st;
	int fd = qcow_store_fd(store);
	if (refs->cli->traits->special_references || fd < 0 || fstat(fd, &st) != 0 ||
		S_ISREG(st.st_mode))
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_POLICY,
		"'%s' names a device as its %s: '%s'; if you trust it, name it yourself "
		"(--image-opts driver=qcow2,file.filename=%s,%s.file.filename=%s)",
		ref->from, kind_text(ref->kind), ref->name, ref->from,
		ref->kind == QCOW_REF_BACKING ? "backing" : "data-file", ref->name);
}

static enum qcow_status resolve_path(struct refs *refs, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	QK_AUTO_FREE char *path = cli_join_path(ref->from, ref->name);
	if (path == NULL)
		return QK_FAIL_NOMEM(err);
	unsigned flags = ref_file_flags(refs, ref);
	enum qcow_status status = qcow_file_open(path, flags, &out->store, err);
	bool is_raw = out->format != NULL && strcmp(out->format, "raw") == 0;
	if (status == QCOW_E_LOCKED && is_raw && refs->cli->traits->shares_raw &&
		ref->kind == QCOW_REF_BACKING && (refs->flags & CLI_OPEN_UNSHARED) == 0 &&
		(flags & QCOW_FILE_WRITE) == 0)
		status = qcow_file_open(path, flags | QCOW_FILE_SHARE, &out->store, err);
	if (status == QCOW_OK)
		status = check_file_kind(refs, ref, out->store, err);
	return status;
}

/* Where the operand spells out what a layer's image names, or says that there is nothing. *done: nothing is left
 * to be resolved. The image of a deeper layer is handed over once. */
static enum qcow_status resolve_spelt(struct refs *refs, const struct qcow_reference *ref,
	struct qcow_resolved *out, bool *done, struct qcow_error *err)
{
	struct layer *layer = refs->layer;
	const json_t *spec = ref->depth < layer->n_specs ? layer->specs[ref->depth] : NULL;
	*done = true;
	if (ref->kind == QCOW_REF_DATA_FILE && json_object_get(spec, "data-file") != NULL) {
		/* what is punched there has to read as zeros, and a format discards whole clusters at most */
		if (!lies_on_file(json_object_get(spec, "data-file")))
			return QK_FAIL(err, QCOW_E_UNSUPPORTED,
				"a data file that lies in another image is not built in");
		out->format = "raw";
		return open_protocol(refs->cli, json_object_get(spec, "data-file"),
			ref_file_flags(refs, ref), &out->store, err);
	}
	bool is_last = ref->depth + 1 == layer->n_specs;
	if (ref->kind == QCOW_REF_BACKING && is_last && layer->backing != NULL) {
		out->image = layer->backing;
		layer->backing = NULL;
		return QCOW_OK;
	}
	out->is_none = ref->kind == QCOW_REF_BACKING && is_last &&
		       json_is_null(json_object_get(spec, "backing"));
	*done = out->is_none;
	return QCOW_OK;
}

/* What the operand says about a layer that its image names: driver, secret, detached header. */
static enum qcow_status amend_resolved(struct refs *refs, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	size_t i = (size_t)ref->depth + 1;
	if (ref->kind != QCOW_REF_BACKING || i >= refs->layer->n_specs)
		return QCOW_OK;
	const json_t *spec = refs->layer->specs[i], *header = json_object_get(spec, "header");
	const struct cli_secret *secret = NULL;
	const char *driver = NULL;
	refs->n_used = i + 1;
	QK_TRY(cli_driver_check_members(spec, err));
	if (json_object_get(spec, "offset") != NULL || json_object_get(spec, "size") != NULL)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"'offset' and 'size' need the backing file's name in the operand");
	if ((refs->flags & CLI_OPEN_CHECK) == 0)
		QK_TRY(find_secret(refs->cli, spec, &secret, err));
	QK_TRY(cli_spec_string(spec, "driver", &driver, err));
	if (driver != NULL)
		QK_TRY(cli_driver_check(refs->cli, driver, &out->format, err));
	if (out->format != NULL && cli_driver_is_protocol(out->format))
		out->format = "raw";
	if (secret != NULL)
		out->secret = (struct qcow_secret){secret->data, secret->bytes};
	if (header == NULL)
		return QCOW_OK;
	return open_protocol(refs->cli, header, file_flags(refs->flags), &out->luks_header, err);
}

/* struct qcow_open_options.resolve */
static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	struct refs *refs = ctx;
	*out = (struct qcow_resolved){0};
	refs->cli->depth = ref->depth;
	if ((refs->flags & CLI_OPEN_UNTRUSTED) != 0)
		return QK_FAIL(err, QCOW_E_POLICY,
			"'%s' names a %s, '%s', which --untrusted does not open", ref->from,
			kind_text(ref->kind), ref->name);
	bool done = false;
	QK_TRY(resolve_spelt(refs, ref, out, &done, err));
	if (done)
		return QCOW_OK;
	size_t n = 0;
	enum qcow_status status = amend_resolved(refs, ref, out, err);
	if (status == QCOW_OK && out->format == NULL)
		status = resolve_format(refs, ref, &out->format, err);
	if (status == QCOW_OK)
		status = cli_path_protocol(ref->name, &n) ? resolve_special(refs, ref, n, out, err)
							  : resolve_path(refs, ref, out, err);
	out->writable = ref->kind == QCOW_REF_BACKING && is_for_writing(refs, ref->depth + 1);
	if (status != QCOW_OK) {
		qcow_store_close(out->store);
		qcow_store_close(out->luks_header);
		*out = (struct qcow_resolved){0};
	}
	return status;
}

/* ---- opening images ---- */

/* "NAME", "snapshot.name=NAME", "snapshot.id=ID". */
static enum qcow_status set_snapshot(
	const char *text, struct qcow_open_options *options, struct qcow_error *err)
{
	static const char by_id[] = "snapshot.id=", by_name[] = "snapshot.name=";
	options->snapshot = text;
	if (text == NULL || strncmp(text, "snapshot.", strlen("snapshot.")) != 0)
		return QCOW_OK;
	options->snapshot_by_id = strncmp(text, by_id, strlen(by_id)) == 0;
	options->snapshot_by_name = strncmp(text, by_name, strlen(by_name)) == 0;
	options->snapshot = strchr(text, '=');
	if ((!options->snapshot_by_id && !options->snapshot_by_name) || options->snapshot == NULL ||
		strchr(text, ',') != NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"'%s' is no snapshot: say NAME, snapshot.name=NAME or snapshot.id=ID",
			text);
	options->snapshot++;
	return QCOW_OK;
}

static void set_options(const struct refs *refs, const struct layer *layer, const struct node *node,
	struct qcow_open_options *options)
{
	unsigned flags = refs->flags;
	bool alone = (flags & CLI_OPEN_ALONE) != 0;
	options->format = node->format != NULL ? node->format : layer->format;
	if (options->format != NULL && cli_driver_is_protocol(options->format))
		options->format = "raw";
	options->raw_offset = node->raw_offset;
	options->raw_size = node->raw_size;
	if (layer->n_specs == 1)
		options->backing = layer->backing;
	options->luks_header = node->header;
	if (node->secret != NULL)
		options->secret = (struct qcow_secret){node->secret->data, node->secret->bytes};
	options->cache_bytes = refs->request->cache_bytes;
	options->get_secret = cli_passphrase;
	options->secret_ctx = refs->cli;
	options->cancelled = refs->cli->cancelled;
	if (alone || (flags & CLI_OPEN_NO_BACKING) != 0 ||
		json_is_null(json_object_get(layer->specs[0], "backing")))
		options->flags |= QCOW_OPEN_NO_BACKING;
	if ((alone && (flags & CLI_OPEN_WRITE) == 0) || (flags & CLI_OPEN_NO_DATA) != 0)
		options->flags |= QCOW_OPEN_NO_DATA_FILE;
	if ((flags & CLI_OPEN_CHECK) != 0)
		options->flags |= QCOW_OPEN_CHECK;
	if (refs->cli->traits->probe_backing || (flags & CLI_OPEN_PROBE) != 0)
		options->flags |= QCOW_OPEN_PROBE;
}

/* The file is open, and nothing of it has been looked at. */
static enum qcow_status be_ready(const struct refs *refs, struct qcow_error *err)
{
	const struct cli_open_request *request = refs->request;
	if (request->ready != NULL)
		QK_TRY(request->ready(request->ready_ctx, err));
	return request->sandbox.wanted ? cli_lock_down(refs->cli, &request->sandbox, err) : QCOW_OK;
}

/* Was every layer that the operand speaks of there? */
static enum qcow_status check_used(const struct refs *refs, struct qcow_error *err)
{
	if (refs->n_used >= refs->layer->n_specs)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_INVAL,
		"the operand has options for backing file %zu, and there are %zu: name its file",
		refs->n_used, refs->n_used - 1);
}

static enum qcow_status open_layer(
	struct refs *refs, struct layer *layer, struct qcow_image **out, struct qcow_error *err)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct node node = {0};
	const char *format = NULL;
	bool unmaps = (refs->flags & CLI_OPEN_KEEP) == 0;
	QK_TRY(set_snapshot(layer->snapshot, &options, err));
	QK_TRY(cli_spec_discard(layer->specs[0], &unmaps, &options.discard, err));
	if (layer->format != NULL)
		QK_TRY(cli_driver_check(refs->cli, layer->format, &format, err));
	/* who reads no guest data needs no secret, and none that is named is looked for */
	if ((refs->flags & CLI_OPEN_CHECK) == 0)
		QK_TRY(find_secret(refs->cli, layer->specs[0], &node.secret, err));
	QK_TRY(open_node(refs->cli, layer->specs[0],
		file_flags(refs->flags) | (layer->is_written ? (unsigned)QCOW_FILE_WRITE : 0),
		&node, err));
	enum qcow_status status = be_ready(refs, err);
	if (status != QCOW_OK) {
		close_node(&node);
		return status;
	}
	set_options(refs, layer, &node, &options);
	if (layer->is_written && (refs->flags & CLI_OPEN_STORE_WRITE) == 0)
		options.flags |= QCOW_OPEN_WRITE;
	refs->layer = layer;
	refs->n_used = 1;
	options.resolve = resolve;
	options.resolve_ctx = refs;
	QK_TRY(qcow_open(node.store, &options, out, err));
	if (options.backing != NULL)
		layer->backing = NULL;
	status = check_used(refs, err);
	if (status != QCOW_OK) {
		qcow_close(*out);
		*out = NULL;
	}
	return status;
}

/*
 * QEMU shares raw disks with their writers: whoever reads one reads what is there. A qcow2 layer needs its
 * file alone, for its tables change under a writer. As the format is known only once the file is open, an
 * open that a lock refuses is tried again without asking the locks, and holds where the layer is raw. No layer
 * over another is raw; its second open would take over the layers below, which are the caller's on failure.
 */
static enum qcow_status open_layer_shared(
	struct refs *refs, struct layer *layer, struct qcow_image **out, struct qcow_error *err)
{
	enum qcow_status status = open_layer(refs, layer, out, err);
	if (status != QCOW_E_LOCKED || !refs->cli->traits->shares_raw ||
		(refs->flags & CLI_OPEN_UNSHARED) != 0 || layer->backing != NULL ||
		layer->is_written)
		return status;
	struct refs again = {
		.cli = refs->cli, .flags = refs->flags | CLI_OPEN_SHARE, .request = refs->request};
	struct qcow_image *image = NULL;
	struct qcow_info info = {0};
	if (open_layer(&again, layer, &image, NULL) != QCOW_OK)
		return status;
	qcow_get_info(image, &info);
	if (info.version != 0) {
		qcow_close(image);
		return status;
	}
	*out = image;
	return QCOW_OK;
}

/* Does the operand name the layer's file, or only say how to open it? */
static bool names_file(const json_t *spec)
{
	return json_object_get(spec, "file") != NULL || json_object_get(spec, "filename") != NULL;
}

/* The layers that the operand itself spells out (backing={…} at each), opened from the lowest. */
static enum qcow_status open_chain(struct refs *refs, const json_t *spec,
	const struct cli_open_request *request, struct qcow_image **out, struct qcow_error *err)
{
	const json_t *specs[CLI_SPEC_DEPTH + 1];
	size_t n = 0;
	bool alone = (request->flags & CLI_OPEN_ALONE) != 0;
	for (const json_t *at = spec; at != NULL && !json_is_null(at);
		at = alone ? NULL : json_object_get(at, "backing")) {
		if (!json_is_object(at) || n > CLI_SPEC_DEPTH)
			return QK_FAIL(err, QCOW_E_INVAL,
				"'backing' must be an object or null; references to other nodes "
				"are not built in");
		specs[n++] = at;
	}
	if (n > 1 && request->sandbox.wanted)
		return QK_FAIL(err, QCOW_E_POLICY,
			"with --untrusted one file is opened, and the operand names %zu", n);
	struct qcow_image *image = NULL;
	while (n > 0) {
		size_t end = n;
		while (--n > 0 && !names_file(specs[n]))
			;
		struct layer layer = {.specs = specs + n,
			.n_specs = end - n,
			.depth = (unsigned)n,
			.backing = image};
		if (n == 0) {
			layer.format = request->operand.format;
			layer.snapshot = request->snapshot;
		}
		refs->layer = &layer;
		layer.is_written = is_for_writing(refs, 0);
		struct qcow_image *above = NULL;
		enum qcow_status status = open_layer_shared(refs, &layer, &above, err);
		if (status == QCOW_OK && layer.backing != NULL)
			status = QK_FAIL(err, QCOW_E_INVAL,
				"the operand names a backing file below an image that has none");
		if (status != QCOW_OK) {
			qcow_close(layer.backing);
			qcow_close(above);
			return status;
		}
		image = above;
	}
	*out = image;
	return QCOW_OK;
}

enum qcow_status cli_try_open(struct cli *cli, const struct cli_open_request *request,
	struct qcow_image **out, struct qcow_error *err)
{
	struct refs refs = {.cli = cli, .flags = request->flags, .request = request};
	json_t *spec = NULL;
	*out = NULL;
	unsigned filters = 0;
	enum qcow_status status = cli_spec_parse_with(
		cli, &request->operand, request->options, &spec, err);
	if (status == QCOW_OK)
		status = cli_spec_peel(&spec, &filters, err);
	if (status == QCOW_OK && request->filters != NULL)
		*request->filters = filters;
	else if (status == QCOW_OK && filters != 0 && (request->flags & CLI_OPEN_WRITE) != 0)
		status = QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"nothing is written through a filter here: leave the driver '%s' out",
			(filters & CLI_FILTER_COMPRESS) != 0 ? "compress" : "copy-on-read");
	if (status == QCOW_OK)
		status = open_chain(&refs, spec, request, out, err);
	json_decref(spec);
	return status;
}

enum qcow_status cli_open(
	struct cli *cli, const struct cli_open_request *request, struct qcow_image **out)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	enum qcow_status status = cli_try_open(cli, request, out, &err);
	if (status == QCOW_OK)
		return QCOW_OK;
	if (status == QCOW_E_CANCELLED)
		return status; /* by `ready`, which has reported it */
	if (cli->qemu && request->snapshot != NULL && status == QCOW_E_NOENT && err.os_errno == 0)
		cli_error(cli, "Failed to load snapshot: Can't find snapshot");
	else
		cli_report_open(cli, request->device, request->operand.text, &err);
	return status;
}

enum qcow_status cli_open_target(struct cli *cli, const struct cli_operand *operand, unsigned flags,
	struct cli_target *out, struct qcow_error *err)
{
	struct node node = {0};
	json_t *spec = NULL;
	*out = (struct cli_target){0};
	enum qcow_status status = cli_spec_parse(cli, operand, &spec, err);
	if (status == QCOW_OK)
		status = find_secret(cli, spec, &node.secret, err);
	if (status == QCOW_OK)
		status = open_node(cli, spec, flags, &node, err);
	if (status == QCOW_OK && (node.raw_offset != 0 || node.raw_size != 0)) {
		close_node(&node);
		status = QK_FAIL(
			err, QCOW_E_UNSUPPORTED, "offset and size of a target are not built in");
	}
	json_decref(spec);
	if (status == QCOW_OK)
		*out = (struct cli_target){node.store, node.header, node.secret, node.format};
	return status;
}

char *cli_target_driver(struct cli *cli, const struct cli_operand *operand)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	json_t *spec = NULL;
	const char *driver = NULL;
	unsigned filters = 0;
	if (cli_spec_parse(cli, operand, &spec, &err) == QCOW_OK &&
		cli_spec_peel(&spec, &filters, &err) == QCOW_OK)
		driver = json_string_value(json_object_get(spec, "driver"));
	if (driver == NULL || cli_driver_is_protocol(driver))
		driver = "raw";
	char *copy = qk_strndup(driver, strlen(driver));
	json_decref(spec);
	return copy;
}

bool cli_open_request_init(struct cli *cli, const struct cli_args *args, const char *operand,
	unsigned flags, struct cli_open_request *out)
{
	*out = (struct cli_open_request){.flags = flags};
	out->operand.text = operand;
	out->operand.format = cli_arg(args, "format");
	out->operand.image_opts = cli_flag(args, "image-opts");
	if (out->operand.image_opts && out->operand.format != NULL) {
		cli_error(cli, "--image-opts and --format are mutually exclusive");
		return false;
	}
	out->flags |= (cli_flag(args, "force-share") ? (unsigned)CLI_OPEN_SHARE : 0) |
		      (cli_flag(args, "probe") ? (unsigned)CLI_OPEN_PROBE : 0) |
		      (cli_flag(args, "untrusted") ? (unsigned)CLI_OPEN_UNTRUSTED : 0);
	out->flags |= cli_cache_open_flags(cli_arg(args, "cache"));
	return cli_objects_add_all(cli, args);
}
