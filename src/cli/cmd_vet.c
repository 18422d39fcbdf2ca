/* SPDX-License-Identifier: MIT */
/*
 * cmd_vet: a verdict for gate-keepers: may this image be let in? One file is opened, its header and tables
 * are read, and no guest data. stdout carries the verdict with every reason, stderr failures only.
 */
#include "cli/cli.h"

#include <string.h>
#include <sys/stat.h>

#include <qcowkit/ops.h>

#include "base/num.h"
#include "cli/vet.h"

enum {
	EXIT_OK = 0,
	EXIT_NO_VERDICT = 1,
	EXIT_REFUSED = 2
};

#define MAX_WORD_BYTES 32

/* ---- policy ---- */

static unsigned feature_of(const char *word, size_t bytes)
{
	for (unsigned feature = 1; feature <= QCOW_VET_ALL; feature <<= 1) {
		const char *name = qcow_vet_feature_name(feature);
		if (strlen(name) == bytes && strncmp(name, word, bytes) == 0)
			return feature;
	}
	return 0;
}

static bool unknown_feature(struct cli *cli, const char *option, const char *word, size_t bytes)
{
	const char *names[MAX_WORD_BYTES];
	char typed[MAX_WORD_BYTES];
	size_t n = 0;
	for (unsigned feature = 1; feature <= QCOW_VET_ALL; feature <<= 1)
		names[n++] = qcow_vet_feature_name(feature);
	(void)snprintf(typed, sizeof(typed), "%.*s", (int)bytes, word);
	const char *near = cli_nearest(typed, names, n);
	cli_error(cli, "option --%s: unknown feature '%s'", option, typed);
	if (near != NULL)
		cli_hint(cli, "did you mean '%s'?", near);
	else
		cli_hint(cli, "qcow-vet(1) lists them");
	return false;
}

/* Every word of every mention of `option`, a list with commas. False: reported. */
static bool parse_features(
	struct cli *cli, const struct cli_args *args, const char *option, unsigned *out)
{
	size_t at = 0;
	for (const char *list = cli_arg_next(args, option, &at); list != NULL;
		list = cli_arg_next(args, option, &at)) {
		while (*list != '\0') {
			size_t n = strcspn(list, ",");
			unsigned feature = feature_of(list, n);
			if (n != 0 && feature == 0)
				return unknown_feature(cli, option, list, n);
			*out |= feature;
			list += n + (list[n] == ',');
		}
	}
	return true;
}

static bool parse_feature_policy(
	struct cli *cli, const struct cli_args *args, struct qcow_vet_options *options)
{
	unsigned listed = 0, denied = 0;
	if (!parse_features(cli, args, "allow-features", &listed) ||
		!parse_features(cli, args, "deny-features", &denied))
		return false;
	if (cli_arg(args, "allow-features") != NULL)
		options->features = listed;
	if (cli_flag(args, "allow-backing"))
		options->features |= QCOW_VET_BACKING;
	if (cli_flag(args, "allow-data-file"))
		options->features |= QCOW_VET_DATA_FILE;
	if (cli_flag(args, "no-backing"))
		denied |= QCOW_VET_BACKING;
	if (cli_flag(args, "no-data-file"))
		denied |= QCOW_VET_DATA_FILE;
	options->features &= ~(uint32_t)denied;
	return true;
}

static bool parse_count(
	struct cli *cli, const struct cli_args *args, const char *option, uint32_t *out)
{
	const char *text = cli_arg(args, option);
	char what[MAX_WORD_BYTES];
	uint64_t n = 0;
	if (text == NULL)
		return true;
	(void)snprintf(what, sizeof(what), "option --%s", option);
	if (!cli_parse_number(cli, what, text, 0, UINT32_MAX, &n))
		return false;
	*out = (uint32_t)n;
	return true;
}

static bool parse_bounds(
	struct cli *cli, const struct cli_args *args, struct qcow_vet_options *options)
{
	const char *size = cli_arg(args, "max-size"), *ratio = cli_arg(args, "max-ratio");
	const char *data = cli_arg(args, "max-data-ratio");
	if (size != NULL && !cli_parse_size(cli, "option --max-size", size, &options->max_size))
		return false;
	if (ratio != NULL && !cli_parse_number(cli, "option --max-ratio", ratio, 1, UINT64_MAX,
				     &options->max_ratio))
		return false;
	if (data != NULL && !cli_parse_number(cli, "option --max-data-ratio", data, 1, UINT64_MAX,
				    &options->max_data_ratio))
		return false;
	return parse_count(cli, args, "max-snapshots", &options->max_snapshots) &&
	       parse_count(cli, args, "max-bitmaps", &options->max_bitmaps);
}

bool cli_vet_policy(struct cli *cli, const struct cli_args *args, struct qcow_vet_options *options)
{
	return parse_feature_policy(cli, args, options) && parse_bounds(cli, args, options);
}

/* ---- what was refused ---- */

static const char *kind_name(enum qcow_refusal_kind kind)
{
	switch (kind) {
	case QCOW_REFUSAL_HEADER:
		return "header";
	case QCOW_REFUSAL_FINDING:
		return "finding";
	case QCOW_REFUSAL_POLICY:
		break;
	}
	return "policy";
}

void cli_vet_refusal(void *refused, const struct qcow_refusal *refusal)
{
	json_t *o = json_object();
	const struct qcow_finding *f = refusal->finding;
	cli_json_set(o, "kind", json_string(kind_name(refusal->kind)));
	cli_json_set(o, "rule", cli_json_string(refusal->rule));
	cli_json_set(o, "text", cli_json_string(refusal->text));
	if (f != NULL && f->host_off != QCOW_NO_OFFSET)
		cli_json_set(o, "host-offset", cli_json_u64(f->host_off));
	if (f != NULL && f->guest_off != QCOW_NO_OFFSET)
		cli_json_set(o, "guest-offset", cli_json_u64(f->guest_off));
	(void)json_array_append_new(refused, o);
}

void cli_vet_put_refusals(const json_t *refused, uint64_t all, FILE *out)
{
	size_t i = 0;
	json_t *o = NULL;
	json_array_foreach((json_t *)refused, i, o)
	{
		(void)fprintf(out, "refused: %s: ", json_string_value(json_object_get(o, "rule")));
		cli_put_escaped(out, json_string_value(json_object_get(o, "text")));
		(void)fputc('\n', out);
	}
	if (all > i)
		(void)fprintf(out, "refused: %llu more findings\n", (unsigned long long)(all - i));
}

/* ---- the description ---- */

static json_t *describe_references(const struct qcow_info *in)
{
	json_t *list = json_array();
	if (in->backing_name != NULL) {
		json_t *o = json_object();
		cli_json_set(o, "kind", json_string("backing"));
		cli_json_set(o, "name", cli_json_string(in->backing_name));
		if (in->backing_format != NULL)
			cli_json_set(o, "format", cli_json_string(in->backing_format));
		(void)json_array_append_new(list, o);
	}
	if (in->data_file_name != NULL) {
		json_t *o = json_object();
		cli_json_set(o, "kind", json_string("data-file"));
		cli_json_set(o, "name", cli_json_string(in->data_file_name));
		(void)json_array_append_new(list, o);
	}
	return list;
}

static json_t *describe_features(unsigned features)
{
	json_t *list = json_array();
	for (unsigned feature = 1; feature <= QCOW_VET_ALL; feature <<= 1)
		if ((features & feature) != 0)
			(void)json_array_append_new(
				list, json_string(qcow_vet_feature_name(feature)));
	return list;
}

static json_t *describe_check(const struct qcow_check_result *r)
{
	json_t *o = json_object();
	cli_json_set(o, "corruptions", cli_json_u64(r->corruptions));
	cli_json_set(o, "leaks", cli_json_u64(r->leaks));
	cli_json_set(o, "notes", cli_json_u64(r->notes));
	return o;
}

static const char *encryption_name(enum qcow_encryption encryption)
{
	switch (encryption) {
	case QCOW_ENCRYPTION_AES:
		return "aes";
	case QCOW_ENCRYPTION_LUKS:
		return "luks";
	case QCOW_ENCRYPTION_NONE:
		break;
	}
	return "none";
}

static void describe_image(json_t *o, const struct qcow_vet_result *r)
{
	struct qcow_info in;
	struct stat st;
	int fd = qcow_store_fd(qcow_image_store(r->image));
	qcow_get_info(r->image, &in);
	cli_json_set(o, "format", json_string(in.format));
	cli_json_set(o, "virtual-size", cli_json_u64(in.virtual_size));
	cli_json_set(o, "file-size", cli_json_u64(in.file_size));
	if (fd >= 0 && fstat(fd, &st) == 0)
		cli_json_set(o, "actual-size", cli_json_u64((uint64_t)st.st_blocks * 512));
	cli_json_set(o, "data-size", cli_json_u64(r->data_bytes));
	cli_json_set(o, "ratio", cli_json_u64(r->ratio));
	cli_json_set(o, "data-ratio", cli_json_u64(r->data_ratio));
	cli_json_set(o, "features", describe_features(r->features));
	cli_json_set(o, "references", describe_references(&in));
	if (in.version == 0)
		return;
	cli_json_set(o, "version", cli_json_u64(in.version));
	cli_json_set(o, "cluster-size", cli_json_u64(in.cluster_size));
	cli_json_set(o, "snapshots", cli_json_u64(in.n_snapshots));
	cli_json_set(o, "bitmaps", cli_json_u64(in.n_bitmaps));
	cli_json_set(o, "encryption", json_string(encryption_name(in.encryption)));
	cli_json_set(o, "read-only-at-most", json_boolean(in.read_only_at_most));
	cli_json_set(o, "check", describe_check(&r->check));
}

static json_t *describe(const char *name, const struct qcow_vet_result *r, json_t *refused)
{
	json_t *o = json_object();
	cli_json_set(o, "ok", json_boolean(r->ok));
	cli_json_set(o, "filename", cli_json_string(name));
	if (r->image != NULL)
		describe_image(o, r);
	cli_json_set(o, "refused", json_incref(refused));
	cli_json_set(o, "refusals-not-shown", cli_json_u64(r->refusals - json_array_size(refused)));
	return o;
}

/* ---- the human form ---- */

static void put_size(const json_t *o, const char *key, const char *label)
{
	const json_t *value = json_object_get(o, key);
	char buf[CLI_SIZE_BYTES];
	uint64_t bytes = (uint64_t)json_integer_value(value);
	if (value != NULL)
		(void)printf("%s: %s (%llu bytes)\n", label, cli_human_size(bytes, buf),
			(unsigned long long)bytes);
}

static void put_number(const json_t *o, const char *key)
{
	const json_t *value = json_object_get(o, key);
	if (value != NULL)
		(void)printf("%s: %llu\n", key, (unsigned long long)json_integer_value(value));
}

static void put_human(const json_t *o, const struct qcow_vet_result *r, const json_t *refused)
{
	size_t i = 0;
	json_t *each = NULL;
	(void)printf("image: ");
	cli_put_escaped(stdout, json_string_value(json_object_get(o, "filename")));
	(void)printf("\nverdict: %s\n", r->ok ? "ok" : "refused");
	cli_vet_put_refusals(refused, r->refusals, stdout);
	if (r->image == NULL)
		return;
	put_size(o, "virtual-size", "virtual size");
	put_size(o, "file-size", "file size");
	put_size(o, "actual-size", "disk size");
	put_size(o, "data-size", "data size");
	put_number(o, "ratio");
	(void)printf("features:");
	json_array_foreach(json_object_get(o, "features"), i, each)
	{
		(void)printf(" %s", json_string_value(each));
	}
	(void)putchar('\n');
	json_array_foreach(json_object_get(o, "references"), i, each)
	{
		(void)printf("%s: ", json_string_value(json_object_get(each, "kind")));
		cli_put_escaped(stdout, json_string_value(json_object_get(each, "name")));
		(void)putchar('\n');
	}
	put_number(o, "snapshots");
	put_number(o, "bitmaps");
	if (json_object_get(o, "encryption") != NULL)
		(void)printf(
			"encryption: %s\n", json_string_value(json_object_get(o, "encryption")));
}

/* ---- the command ---- */

static int vet(struct cli *cli, const struct cli_args *args, struct qcow_store *store,
	struct qcow_vet_options *options)
{
	struct qcow_vet_result result = {0};
	struct qcow_error err = QCOW_ERROR_INIT;
	json_t *refused = json_array();
	options->on_refusal = cli_vet_refusal;
	options->ctx = refused;
	if (qcow_vet(store, options, &result, &err) != QCOW_OK) {
		(void)cli_fail(cli, &err, "cannot judge '%s'", args->operands[0]);
		json_decref(refused);
		return EXIT_NO_VERDICT;
	}
	json_t *o = describe(args->operands[0], &result, refused);
	int rc = result.ok ? EXIT_OK : EXIT_REFUSED;
	if (cli_flag(args, "quiet"))
		json_decref(o);
	else if (!cli_wants_json(args)) {
		put_human(o, &result, refused);
		json_decref(o);
	} else if (cli_json_print(cli, o) != 0)
		rc = EXIT_NO_VERDICT;
	json_decref(refused);
	qcow_close(result.image);
	return rc;
}

static int run(struct cli *cli, const struct cli_args *args)
{
	struct qcow_vet_options options = QCOW_VET_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	const char *format = cli_arg(args, "format");
	if (format != NULL)
		options.format = format;
	if (!cli_vet_policy(cli, args, &options))
		return EXIT_NO_VERDICT;
	/* a path and nothing else: a gate-keeper's file may be called json: or anything */
	unsigned flags = cli_flag(args, "force-share") ? QCOW_FILE_SHARE : 0;
	if (qcow_file_open(args->operands[0], flags, &store, &err) != QCOW_OK) {
		(void)cli_fail(cli, &err, "cannot open");
		return EXIT_NO_VERDICT;
	}
	const struct cli_sandbox sandbox = cli_sandbox_from_args(args, QK_MIB(192), 600);
	if (sandbox.wanted && cli_lock_down(cli, &sandbox, &err) != QCOW_OK) {
		qcow_store_close(store);
		return cli_fail(cli, &err, "'%s'", args->operands[0]);
	}
	return vet(cli, args, store, &options);
}

static const struct cli_option options[] = {
	{.letter = 'f',
		.name = "format",
		.arg = "FMT",
		.choices = "qcow2|raw",
		.help = "the format it has to have, qcow2 where it is not given; never probed"},
	CLI_OPT_OUTPUT,
	CLI_VET_POLICY_OPTIONS,
	CLI_OPT_FORCE_SHARE,
	CLI_OPT_QUIET,
	CLI_OPT_SANDBOX,
	CLI_OPT_VERBOSE,
	CLI_OPTIONS_END,
};

const struct cli_command cli_cmd_vet = {
	.name = "vet",
	.summary = "Judge whether an image from a stranger may be let in",
	.synopsis = "[-f FMT] [--output human|json] [POLICY]… [-U] [-q] FILE",
	.about = "Reads the header and the tables, no data, and opens no other file. Refused are "
		 "images\n"
		 "that cannot be opened, damaged ones, those that name other files, and what the "
		 "policy\n"
		 "options forbid. Exit codes: 0 ok, 1 no verdict, 2 refused.",
	.options = options,
	.min_operands = 1,
	.max_operands = 1,
	.flags = CLI_OPT_QCOW,
	.usage_exit = 1,
	.run = run,
};
