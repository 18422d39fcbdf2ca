/* SPDX-License-Identifier: MIT */
/*
 * vet: a verdict on an image from a stranger. Opens it alone, judges what its header says by the policy of
 * the caller, and lets check walk its tables.
 *
 * Memory and work are those of open and check, which do not follow what the image claims. A failure of the
 * host is never a verdict, and what the image says is never a failure.
 */
#include <qcowkit/ops.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/num.h"
#include "base/options.h"

#define MAGIC_BYTES 4

struct vet {
	const struct qcow_vet_options *options;
	struct qcow_vet_result *result;
	struct qcow_info info;
	uint64_t n_findings;
};

const char *qcow_vet_feature_name(unsigned feature)
{
	static const struct {
		unsigned feature;
		const char *name;
	} names[] = {
#define NAME(bit, name, word) {QCOW_VET_##name, word},
		QCOW_VET_FEATURES(NAME)
#undef NAME
	};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].feature == feature)
			return names[i].name;
	return NULL;
}

/* ---- refusing ---- */

static void tell(struct vet *vet, const struct qcow_refusal *refusal)
{
	vet->result->ok = false;
	vet->result->refusals++;
	if (vet->options->on_refusal != NULL)
		vet->options->on_refusal(vet->options->ctx, refusal);
}

static void refuse(struct vet *vet, enum qcow_refusal_kind kind, const char *rule, const char *fmt,
	...) QK_PRINTF(4, 5);

static void refuse(
	struct vet *vet, enum qcow_refusal_kind kind, const char *rule, const char *fmt, ...)
{
	char text[QCOW_ERROR_MESSAGE_BYTES];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	const struct qcow_refusal refusal = {.kind = kind, .rule = rule, .text = text};
	tell(vet, &refusal);
}

/* ---- features ---- */

static bool is_known_extension(uint32_t type)
{
	static const uint32_t known[] = {
		0xe2792aca, /* backing format */
		0x6803f857, /* feature names */
		0x23852875, /* bitmaps */
		0x0537be77, /* encryption header */
		0x44415441, /* data file name */
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i] == type)
			return true;
	return false;
}

static enum qcow_status has_unknown(const struct qcow_image *image, const struct qcow_info *info,
	bool *out, struct qcow_error *err)
{
	const uint64_t compatible = QCOW_COMPAT_LAZY_REFCOUNTS;
	const uint64_t autoclear = QCOW_AUTOCLEAR_BITMAPS | QCOW_AUTOCLEAR_DATA_RAW;
	uint32_t n = qcow_extension_count(image);

	*out = (info->compatible & ~compatible) != 0 || (info->autoclear & ~autoclear) != 0;
	for (uint32_t i = 0; i < n && !*out; i++) {
		struct qcow_extension extension;
		QK_TRY(qcow_get_extension(image, i, &extension, err));
		*out = !is_known_extension(extension.type);
	}
	return QCOW_OK;
}

static enum qcow_status find_features(const struct qcow_image *image, const struct qcow_info *in,
	unsigned *out, struct qcow_error *err)
{
	bool unknown = false;

	QK_TRY(has_unknown(image, in, &unknown, err));
	const struct {
		bool used;
		unsigned feature;
	} uses[] = {
		{in->backing_name != NULL, QCOW_VET_BACKING},
		{in->data_file_name != NULL || (in->incompatible & QCOW_INCOMPAT_DATA_FILE) != 0,
			QCOW_VET_DATA_FILE},
		{(in->incompatible & QCOW_INCOMPAT_CORRUPT) != 0, QCOW_VET_CORRUPT},
		{(in->incompatible & QCOW_INCOMPAT_DIRTY) != 0, QCOW_VET_DIRTY},
		{in->version == 2, QCOW_VET_VERSION_2},
		{(in->compatible & QCOW_COMPAT_LAZY_REFCOUNTS) != 0, QCOW_VET_LAZY_REFCOUNTS},
		{in->extended_l2, QCOW_VET_EXTENDED_L2},
		{in->compression == QCOW_COMPRESSION_ZSTD, QCOW_VET_ZSTD},
		{in->n_snapshots != 0, QCOW_VET_SNAPSHOTS},
		{in->n_bitmaps != 0, QCOW_VET_BITMAPS},
		{in->encryption == QCOW_ENCRYPTION_AES, QCOW_VET_AES},
		{in->encryption == QCOW_ENCRYPTION_LUKS, QCOW_VET_LUKS},
		{unknown, QCOW_VET_UNKNOWN},
	};
	for (size_t i = 0; i < sizeof(uses) / sizeof(uses[0]); i++)
		*out |= uses[i].used ? uses[i].feature : 0;
	return QCOW_OK;
}

static void judge_feature(struct vet *vet, unsigned feature)
{
	const struct qcow_info *in = &vet->info;
	const char *name = qcow_vet_feature_name(feature);

	if ((vet->result->features & ~vet->options->features & feature) == 0)
		return;
	if (feature == QCOW_VET_BACKING)
		refuse(vet, QCOW_REFUSAL_POLICY, name, "it names a backing file: %s",
			in->backing_name);
	else if (feature == QCOW_VET_DATA_FILE)
		refuse(vet, QCOW_REFUSAL_POLICY, name, "it names a data file: %s",
			in->data_file_name != NULL ? in->data_file_name : "(without a name)");
	else if (feature == QCOW_VET_CORRUPT)
		refuse(vet, QCOW_REFUSAL_POLICY, name, "it is marked as corrupt");
	else
		refuse(vet, QCOW_REFUSAL_POLICY, name, "it uses a feature that is not allowed: %s",
			name);
}

static void judge_features(struct vet *vet)
{
	for (unsigned feature = 1; feature <= QCOW_VET_ALL; feature <<= 1)
		judge_feature(vet, feature);
}

/* ---- numbers ---- */

static void judge_number(
	struct vet *vet, const char *rule, const char *what, uint64_t value, uint64_t most)
{
	if (value > most)
		refuse(vet, QCOW_REFUSAL_POLICY, rule,
			"%s %" PRIu64 ", more than the %" PRIu64 " that are allowed", what, value,
			most);
}

static void judge_numbers(struct vet *vet)
{
	const struct qcow_vet_options *o = vet->options;
	const struct qcow_info *in = &vet->info;
	uint64_t file_size = in->file_size != 0 ? in->file_size : 1;

	vet->result->ratio = qk_div_up(in->virtual_size, file_size);
	vet->result->data_ratio = qk_div_up(vet->result->data_bytes, file_size);
	judge_number(vet, "max-size", "the disk has bytes:", in->virtual_size, o->max_size);
	judge_number(vet, "max-ratio",
		"bytes of the disk for each byte of the file:", vet->result->ratio, o->max_ratio);
	judge_number(vet, "max-data-ratio",
		"bytes of data for each byte of the file:", vet->result->data_ratio,
		o->max_data_ratio);
	if (o->max_snapshots != UINT32_MAX)
		judge_number(vet, "max-snapshots", "it has snapshots:", in->n_snapshots,
			o->max_snapshots);
	if (o->max_bitmaps != UINT32_MAX)
		judge_number(vet, "max-bitmaps", "it has bitmaps:", in->n_bitmaps, o->max_bitmaps);
}

/* ---- tables ---- */

static void on_finding(void *ctx, const struct qcow_finding *finding)
{
	struct vet *vet = ctx;
	char text[QCOW_ERROR_MESSAGE_BYTES];

	if (finding->severity != QCOW_SEVERITY_CORRUPTION ||
		vet->n_findings++ >= vet->options->max_findings)
		return;
	(void)snprintf(
		text, sizeof(text), "%s (%s)", qcow_finding_text(finding->id), finding->where);
	const struct qcow_refusal refusal = {.kind = QCOW_REFUSAL_FINDING,
		.rule = qcow_finding_name(finding->id),
		.text = text,
		.finding = finding};
	tell(vet, &refusal);
}

static enum qcow_status judge_tables(struct vet *vet, struct qcow_error *err)
{
	struct qcow_check_options check = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_vet_result *result = vet->result;

	check.memory_bytes = vet->options->memory_bytes;
	check.on_finding = on_finding;
	check.ctx = vet;
	check.progress = vet->options->progress;
	QK_TRY(qcow_check(result->image, &check, &result->check, err));
	if (result->check.check_errors != 0)
		return QK_FAIL(err, QCOW_E_IO, "%" PRIu64 " reads of its tables failed",
			result->check.check_errors);
	if (result->check.corruptions > vet->options->max_findings)
		result->refusals += result->check.corruptions - vet->options->max_findings;
	result->ok = result->ok && result->check.corruptions == 0;
	if (result->check.compressed_clusters != 0)
		result->features |= QCOW_VET_COMPRESSED;
	if (!qk_mul(result->check.allocated_clusters, vet->info.cluster_size, &result->data_bytes))
		result->data_bytes = UINT64_MAX;
	return QCOW_OK;
}

/* ---- the whole ---- */

/* Does the open's failure judge the image, or the host? */
static bool is_verdict(enum qcow_status status)
{
	return status == QCOW_E_FORMAT || status == QCOW_E_NOT_QCOW2 ||
	       status == QCOW_E_UNSUPPORTED || status == QCOW_E_CORRUPT || status == QCOW_E_RANGE ||
	       status == QCOW_E_LIMIT;
}

/* A raw disk that begins like an image becomes one for whoever probes. */
static enum qcow_status judge_raw(struct vet *vet, struct qcow_error *err)
{
	static const uint8_t magic[MAGIC_BYTES] = {'Q', 'F', 'I', 0xfb};
	uint8_t start[MAGIC_BYTES] = {0};

	vet->result->data_bytes = vet->info.virtual_size;
	QK_TRY(qcow_store_read_padded(
		qcow_image_store(vet->result->image), start, sizeof(start), 0, err));
	if (memcmp(start, magic, sizeof(magic)) == 0)
		refuse(vet, QCOW_REFUSAL_HEADER, "raw",
			"a raw disk that begins like a qcow2 image is taken for one");
	return QCOW_OK;
}

static enum qcow_status judge(struct vet *vet, struct qcow_error *err)
{
	struct qcow_vet_result *result = vet->result;

	qcow_get_info(result->image, &vet->info);
	if (vet->info.version == 0) {
		QK_TRY(judge_raw(vet, err));
	} else {
		QK_TRY(find_features(result->image, &vet->info, &result->features, err));
		QK_TRY(judge_tables(vet, err));
	}
	judge_features(vet);
	judge_numbers(vet);
	return QCOW_OK;
}

QK_TAKE_OPTIONS(take_options, qcow_vet_options, "vet options", QCOW_VET_OPTIONS_INIT, progress)

static enum qcow_status check_options(const struct qcow_vet_options *o, struct qcow_error *err)
{
	if (o->format != NULL && (strcmp(o->format, "qcow2") == 0 || strcmp(o->format, "raw") == 0))
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_INVAL, "images of format '%s' cannot be vetted",
		o->format != NULL ? o->format : "(none)");
}

static enum qcow_status open_and_judge(
	struct vet *vet, struct qcow_store *store, struct qcow_error *err)
{
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error why = QCOW_ERROR_INIT;

	open.flags = QCOW_OPEN_NO_BACKING | QCOW_OPEN_NO_DATA_FILE | QCOW_OPEN_CHECK;
	open.format = vet->options->format;
	enum qcow_status status = qcow_open(store, &open, &vet->result->image, &why);
	if (status == QCOW_OK)
		return judge(vet, err);
	if (is_verdict(status)) {
		refuse(vet, QCOW_REFUSAL_HEADER, qcow_status_name(status), "%s", why.message);
		return QCOW_OK;
	}
	if (err != NULL)
		*err = why;
	return status;
}

enum qcow_status qcow_vet(struct qcow_store *store, const struct qcow_vet_options *options,
	struct qcow_vet_result *result, struct qcow_error *err)
{
	struct qcow_vet_options o;

	if (store == NULL || result == NULL) {
		qcow_store_close(store);
		return QK_FAIL(err, QCOW_E_INVAL, "qcow_vet: an argument is NULL");
	}
	enum qcow_status status = take_options(options, &o, err);
	if (status == QCOW_OK)
		status = check_options(&o, err);
	if (status != QCOW_OK) {
		qcow_store_close(store);
		return status;
	}
	struct vet vet = {.options = &o, .result = result};
	*result = (struct qcow_vet_result){.ok = true};
	status = open_and_judge(&vet, store, err);
	if (status != QCOW_OK) {
		qcow_close(result->image);
		*result = (struct qcow_vet_result){0};
	}
	return status;
}
