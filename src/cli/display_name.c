/* SPDX-License-Identifier: MIT */
/*
 * display_name: what messages call an operand that is open.
 */
#include "cli/cli.h"

#include <string.h>

#include "base/mem.h"
#include "cli/spec.h"

static json_t *file_node(const char *path)
{
	json_t *file = json_object();
	cli_json_set(file, "driver", json_string("file"));
	cli_json_set(file, "filename", cli_json_string(path));
	return file;
}

/* "json:" and the object, which is freed. */
static char *json_name(json_t *o)
{
	char *text = json_dumps(o, JSON_ENSURE_ASCII);
	json_decref(o);
	uint64_t n = text != NULL ? strlen(text) : 0;
	char *out = text != NULL ? qk_malloc(n + sizeof("json:"), 1) : NULL;
	if (out != NULL)
		(void)snprintf(out, n + sizeof("json:"), "json:%s", text);
	free(text);
	return out;
}

/* {"encrypt.key-secret": ID, "driver": "qcow2", "file": {…}}, {"header": {…}, "driver": "luks", "file": {…},
 * "key-secret": ID}, in QEMU's order. */
static char *keyed_name(struct qcow_image *image, const char *id, const char *path)
{
	struct qcow_info info;
	qcow_get_info(image, &info);
	struct qcow_store *header = qcow_image_header_store(image);
	json_t *o = json_object();
	if (header != NULL)
		cli_json_set(o, "header", file_node(qcow_store_name(header)));
	if (info.version != 0)
		cli_json_set(o, "encrypt.key-secret", cli_json_string(id));
	cli_json_set(o, "driver", json_string(info.format));
	cli_json_set(o, "file", file_node(path));
	if (info.version == 0)
		cli_json_set(o, "key-secret", cli_json_string(id));
	return json_name(o);
}

/* {"offset": N, "driver": "raw", "size": N, "file": {…}}, in QEMU's order. */
static char *raw_part_name(const json_t *spec, const char *path)
{
	json_t *o = json_object();
	if (json_object_get(spec, "offset") != NULL)
		cli_json_set(o, "offset", json_incref(json_object_get(spec, "offset")));
	cli_json_set(o, "driver", json_string("raw"));
	if (json_object_get(spec, "size") != NULL)
		cli_json_set(o, "size", json_incref(json_object_get(spec, "size")));
	cli_json_set(o, "file", file_node(path));
	return json_name(o);
}

char *cli_display_name(struct cli *cli, const struct cli_operand *operand, struct qcow_image *image)
{
	const char *path = qcow_store_name(qcow_image_store(image));
	struct qcow_error err = QCOW_ERROR_INIT;
	json_t *spec = NULL;
	/* the rules are a part of what was asked for */
	if (!operand->image_opts && strncmp(operand->text, "blkdebug:", strlen("blkdebug:")) == 0)
		return qk_strndup(operand->text, strlen(operand->text));
	if (cli_spec_parse(cli, operand, &spec, &err) != QCOW_OK)
		return NULL;
	bool is_part = json_object_get(spec, "offset") != NULL ||
		       json_object_get(spec, "size") != NULL;
	const char *id = NULL;
	char *name = NULL;
	/* QEMU counts a secret to what an image is called by */
	if (cli->qemu && cli_spec_secret_id(spec, &id, &err) == QCOW_OK && id != NULL)
		name = keyed_name(image, id, path);
	else
		name = is_part ? raw_part_name(spec, path) : qk_strndup(path, strlen(path));
	json_decref(spec);
	return name;
}
