/* SPDX-License-Identifier: MIT */
/*
 * create_opts: the table of options of a new image. Whether they go together is the library's to say
 * (qcow_create_validate); here each is only read.
 */
#include "cli/create_opts.h"

#include <stdarg.h>
#include <string.h>

#include "base/num.h"
#include "cli/object.h"

/* Which formats take an option. */
enum {
	QCOW2 = 1,
	RAW = 2,
	LUKS = 4,
	ANY = QCOW2 | RAW | LUKS
};

struct opt {
	const char *key, *arg, *help;
	unsigned formats;
	bool (*set)(struct cli *cli, struct cli_create_opts *out, const char *value);
};

/* A word that is none of the choices: the personality's is kept, for it is refused later. */
static bool refuse_choice(struct cli *cli, struct cli_create_opts *out, const char *qemu_key,
	const char *value, const char *choices)
{
	if (!cli->qemu) {
		cli_error(cli, "invalid %s '%s': it must be %s", qemu_key, value, choices);
		return false;
	}
	out->refused_key = qemu_key;
	out->refused_value = value;
	return true;
}

bool cli_create_opts_refused(struct cli *cli, const struct cli_create_opts *opts, const char *path)
{
	if (opts->refused_key == NULL)
		return false;
	cli_error(cli, "%s%sParameter '%s' does not accept value '%s'", path,
		path[0] != '\0' ? ": " : "", opts->refused_key, opts->refused_value);
	return true;
}

/* "FILE: " before the personality's errors. */
static bool QK_PRINTF(3, 4)
	refuse_value(struct cli *cli, const struct cli_create_opts *out, const char *fmt, ...)
{
	char why[512];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	if (out->path != NULL)
		cli_error(cli, "%s: %s", out->path, why);
	else
		cli_error(cli, "%s", why);
	return false;
}

static bool parse_size(struct cli *cli, const struct cli_create_opts *out, const char *key,
	const char *value, uint64_t *to)
{
	bool out_of_range = false;
	if (!cli->qemu)
		return cli_parse_size(cli, key, value, to);
	if (cli_read_size(value, to, &out_of_range) == NULL)
		return true;
	if (out_of_range)
		return refuse_value(
			cli, out, "Value '%s' is out of range for parameter '%s'", value, key);
	(void)refuse_value(
		cli, out, "Parameter '%s' expects a non-negative number below 2^64", key);
	cli_more(cli, "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-");
	cli_more(cli, "and exabytes, respectively.");
	return false;
}

static bool parse_bool(struct cli *cli, const struct cli_create_opts *out, const char *key,
	const char *value, bool *to)
{
	if (!cli->qemu)
		return cli_parse_bool(cli, key, value, to);
	return cli_read_bool(value, to) ||
	       refuse_value(cli, out, "Parameter '%s' expects 'on' or 'off'", key);
}

static bool set_backing_file(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	(void)cli;
	out->create.backing_name = value;
	return true;
}

static bool set_backing_fmt(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	(void)cli;
	out->create.backing_format = value;
	return true;
}

static bool set_cluster_size(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	return parse_size(cli, out, "cluster_size", value, &out->create.cluster_size);
}

static bool set_compat(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	if (strcmp(value, "0.10") == 0 || strcmp(value, "v2") == 0)
		out->create.version = 2;
	else if (strcmp(value, "1.1") == 0 || strcmp(value, "v3") == 0)
		out->create.version = 3;
	else
		return refuse_choice(cli, out, "version", value, "v2 or 0.10, v3 or 1.1");
	return true;
}

static bool set_compression_type(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	if (strcmp(value, "zlib") == 0)
		out->create.compression = QCOW_COMPRESSION_ZLIB;
	else if (strcmp(value, "zstd") == 0)
		out->create.compression = QCOW_COMPRESSION_ZSTD;
	else
		return refuse_choice(cli, out, "compression-type", value, "zlib or zstd");
	return true;
}

static bool set_data_file(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	(void)cli;
	out->create.data_file_name = value;
	return true;
}

static bool set_data_file_raw(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	return parse_bool(cli, out, "data_file_raw", value, &out->create.data_file_raw);
}

static bool set_encrypt_format(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	if (strcmp(value, "aes") == 0)
		out->create.encryption = QCOW_ENCRYPTION_AES;
	else if (strcmp(value, "luks") == 0)
		out->create.encryption = QCOW_ENCRYPTION_LUKS;
	else
		return refuse_choice(
			cli, out, cli->qemu ? "format" : "encrypt.format", value, "aes or luks");
	return true;
}

static bool set_encryption(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	bool on = false;
	if (!cli_parse_bool(cli, "encryption", value, &on))
		return false;
	return !on || set_encrypt_format(cli, out, "aes");
}

static bool set_key_secret(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	(void)cli;
	out->key_secret = value;
	return true;
}

/* The words that QEMU knows, of which it refuses some later with a reason. */
static const char *const ciphers[] = {"aes-128", "aes-192", "aes-256", "des", "3des", "cast5-128",
	"serpent-128", "serpent-192", "serpent-256", "sm4", "twofish-128", "twofish-192",
	"twofish-256", NULL};
static const char *const cipher_modes[] = {"ecb", "cbc", "xts", "ctr", NULL};
static const char *const hashes[] = {
	"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "sm3", NULL};
static const char *const ivgens[] = {"plain", "plain64", "essiv", NULL};

/* The personality refuses other words; `qcow` leaves them to the library, which says what it knows. */
static bool take_word(struct cli *cli, struct cli_create_opts *out, const char *key,
	const char *value, const char *const *known)
{
	for (; *known != NULL; known++)
		if (strcmp(*known, value) == 0)
			return true;
	return !cli->qemu || refuse_choice(cli, out, key, value, "");
}

static bool set_cipher(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	out->create.luks_cipher = value;
	return take_word(cli, out, "cipher-alg", value, ciphers);
}

static bool set_cipher_mode(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	out->create.luks_mode = value;
	return take_word(cli, out, "cipher-mode", value, cipher_modes);
}

static bool set_hash(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	out->create.luks_hash = value;
	return take_word(cli, out, "hash-alg", value, hashes);
}

static bool set_ivgen(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	out->create.luks_ivgen = value;
	return take_word(cli, out, "ivgen-alg", value, ivgens);
}

static bool set_ivgen_hash(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	out->create.luks_ivgen_hash = value;
	return take_word(cli, out, "ivgen-hash-alg", value, hashes);
}

static bool set_iter_time(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	const char *key = out->luks ? "iter-time" : "encrypt.iter-time";
	uint64_t ms = 0;
	bool out_of_range = false;
	if (cli->qemu && cli_read_size(value, &ms, &out_of_range) != NULL)
		return refuse_value(cli, out, "Parameter '%s' expects a number", key);
	if (!cli->qemu && !cli_parse_number(cli, key, value, 0, 3600000, &ms))
		return false;
	out->create.luks_iter_time_ms = ms != 0 ? (uint32_t)qk_min(ms, UINT32_MAX - 1)
						: QCOW_LUKS_ITER_LEAST;
	return true;
}

static bool set_detached_header(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	return parse_bool(cli, out, "detached-header", value, &out->create.luks_detached_header);
}

bool cli_create_opts_find_secret(struct cli *cli, struct cli_create_opts *opts, const char *prefix)
{
	const struct cli_secret *s = NULL;
	const char *key = opts->luks ? "key-secret" : "encrypt.key-secret";
	if (!opts->luks && opts->create.encryption == QCOW_ENCRYPTION_NONE) {
		if (opts->key_secret == NULL)
			return true;
		cli_error(cli, "%sParameter 'encrypt.format' is missing", prefix);
		return false;
	}
	if (opts->key_secret != NULL && opts->key_secret[0] != '\0')
		s = cli_secret_find(cli, opts->key_secret);
	else if (opts->key_secret == NULL)
		s = cli_secret_find(cli, CLI_SECRET_FILE);
	if (s != NULL)
		opts->create.secret = (struct qcow_secret){s->data, s->bytes};
	else if (opts->key_secret != NULL)
		cli_error(cli, "%sNo secret with id '%s'", prefix, opts->key_secret);
	else
		cli_error(cli, "%sParameter '%s' is required for cipher", prefix, key);
	return s != NULL;
}

static bool set_extended_l2(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	return parse_bool(cli, out, "extended_l2", value, &out->create.extended_l2);
}

static bool set_keep_data_file(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	return parse_bool(cli, out, "keep_data_file", value, &out->create.keep_data_file);
}

static bool set_lazy_refcounts(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	return parse_bool(cli, out, "lazy_refcounts", value, &out->create.lazy_refcounts);
}

/* Hints for a host file system: they change no byte of an image. */
static bool check_nocow(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	bool ignored = false;
	return parse_bool(cli, out, "nocow", value, &ignored);
}

static bool check_extent_size_hint(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	uint64_t ignored = 0;
	return parse_size(cli, out, "extent_size_hint", value, &ignored);
}

static bool set_preallocation(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	static const char *const modes[] = {
		[QCOW_PREALLOC_OFF] = "off",
		[QCOW_PREALLOC_METADATA] = "metadata",
		[QCOW_PREALLOC_FALLOC] = "falloc",
		[QCOW_PREALLOC_FULL] = "full",
	};
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		if (strcmp(modes[i], value) != 0)
			continue;
		out->create.preallocation = (enum qcow_preallocation)i;
		return true;
	}
	return refuse_choice(cli, out, "preallocation", value, "off, metadata, falloc or full");
}

static bool set_refcount_bits(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	uint64_t bits = 0;
	bool out_of_range = false;
	if (cli->qemu && cli_read_size(value, &bits, &out_of_range) != NULL)
		return refuse_value(cli, out, "Parameter 'refcount_bits' expects a number");
	if (!cli->qemu && !cli_parse_number(cli, "refcount_bits", value, 1, 64, &bits))
		return false;
	out->create.refcount_bits = (uint32_t)qk_min(bits, UINT32_MAX);
	return true;
}

static bool set_size(struct cli *cli, struct cli_create_opts *out, const char *value)
{
	out->has_size = true;
	return parse_size(cli, out, "size", value, &out->size);
}

static const struct opt opts[] = {
	{"backing_file", "str", "File name of a base image", QCOW2, set_backing_file},
	{"backing_fmt", "str", "Image format of the base image", QCOW2, set_backing_fmt},
	{"cipher-alg", "str", "Name of encryption cipher algorithm", LUKS, set_cipher},
	{"cipher-mode", "str", "Name of encryption cipher mode", LUKS, set_cipher_mode},
	{"cluster_size", "size", "qcow2 cluster size", QCOW2, set_cluster_size},
	{"compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])", QCOW2, set_compat},
	{"compression_type", "str", "Compression method used for image cluster compression", QCOW2,
		set_compression_type},
	{"data_file", "str", "File name of an external data file", QCOW2, set_data_file},
	{"data_file_raw", "bool (on/off)", "The external data file must stay valid as a raw image",
		QCOW2, set_data_file_raw},
	{"detached-header", "bool (on/off)", "Create a detached LUKS header", LUKS,
		set_detached_header},
	{"encrypt.cipher-alg", "str", "Name of encryption cipher algorithm", QCOW2, set_cipher},
	{"encrypt.cipher-mode", "str", "Name of encryption cipher mode", QCOW2, set_cipher_mode},
	{"encrypt.format", "str", "Encrypt the image, format choices: 'aes', 'luks'", QCOW2,
		set_encrypt_format},
	{"encrypt.hash-alg", "str", "Name of encryption hash algorithm", QCOW2, set_hash},
	{"encrypt.iter-time", "num", "Time to spend in PBKDF in milliseconds", QCOW2,
		set_iter_time},
	{"encrypt.ivgen-alg", "str", "Name of IV generator algorithm", QCOW2, set_ivgen},
	{"encrypt.ivgen-hash-alg", "str", "Name of IV generator hash algorithm", QCOW2,
		set_ivgen_hash},
	{"encrypt.key-secret", "str", "ID of secret providing qcow AES key or LUKS passphrase",
		QCOW2, set_key_secret},
	{"encryption", "bool (on/off)",
		"Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
		QCOW2, set_encryption},
	{"extended_l2", "bool (on/off)", "Extended L2 tables", QCOW2, set_extended_l2},
	{"extent_size_hint", "size", "Extent size hint for the image file, 0 to disable", ANY,
		check_extent_size_hint},
	{"hash-alg", "str", "Name of encryption hash algorithm", LUKS, set_hash},
	{"iter-time", "num", "Time to spend in PBKDF in milliseconds", LUKS, set_iter_time},
	{"ivgen-alg", "str", "Name of IV generator algorithm", LUKS, set_ivgen},
	{"ivgen-hash-alg", "str", "Name of IV generator hash algorithm", LUKS, set_ivgen_hash},
	{"keep_data_file", "bool (on/off)",
		"Assume the external data file already exists and do not overwrite it", QCOW2,
		set_keep_data_file},
	{"key-secret", "str", "ID of the secret that provides the keyslot passphrase", LUKS,
		set_key_secret},
	{"lazy_refcounts", "bool (on/off)", "Postpone refcount updates", QCOW2, set_lazy_refcounts},
	{"nocow", "bool (on/off)", "Turn off copy-on-write (valid only on btrfs)", ANY,
		check_nocow},
	{"preallocation", "str", "Preallocation mode (allowed values: off, metadata, falloc, full)",
		ANY, set_preallocation},
	{"refcount_bits", "num", "Width of a reference count entry in bits", QCOW2,
		set_refcount_bits},
	{"size", "size", "Virtual disk size", ANY, set_size},
};
#define N_OPTS (sizeof(opts) / sizeof(opts[0]))

static unsigned format_bit(const char *format)
{
	if (strcmp(format, "raw") == 0)
		return RAW;
	return strcmp(format, "luks") == 0 ? LUKS : QCOW2;
}

static const struct opt *find_opt(const char *key, unsigned format)
{
	for (size_t i = 0; i < N_OPTS; i++)
		if (strcmp(opts[i].key, key) == 0 && (opts[i].formats & format) != 0)
			return &opts[i];
	return NULL;
}

static bool refuse_key(
	struct cli *cli, const struct cli_create_opts *out, const char *format, const char *key)
{
	const char *names[N_OPTS];
	size_t n = 0;
	for (size_t i = 0; i < N_OPTS; i++)
		if ((opts[i].formats & format_bit(format)) != 0)
			names[n++] = opts[i].key;
	const char *near = cli_nearest(key, names, n);
	if (cli->qemu)
		(void)refuse_value(cli, out, "Invalid parameter '%s'", key);
	else
		cli_error(cli, "Invalid parameter '%s': format %s has no such option", key, format);
	if (near != NULL)
		cli_hint(cli, "did you mean '%s'? '-o help' lists the options", near);
	else
		cli_hint(cli, "'-o help' lists the options");
	return false;
}

bool cli_create_opts_parse(struct cli *cli, const char *format, const struct cli_keyvals *list,
	struct cli_create_opts *out)
{
	unsigned bit = format_bit(format);
	*out = (struct cli_create_opts){
		.create = QCOW_CREATE_OPTIONS_INIT, .path = out->path, .luks = bit == LUKS};
	if (out->luks)
		out->create.format = "luks";
	for (size_t i = 0; i < list->n; i++) {
		const char *key = list->v[i].key, *value = list->v[i].value;
		const struct opt *opt = find_opt(key, bit);
		if (opt == NULL)
			return refuse_key(cli, out, format, key);
		/* "-o lazy_refcounts" is "-o lazy_refcounts=on" */
		if (value == NULL && strncmp(opt->arg, "bool", strlen("bool")) == 0)
			value = "on";
		if (value == NULL) {
			cli_error(cli, "option '%s' needs a value: -o %s=<%s>", key, key, opt->arg);
			return false;
		}
		if (!opt->set(cli, out, value))
			return false;
	}
	return true;
}

/* Is it, in QEMU, an option of the file below the format? */
static bool is_of_the_file(const struct opt *opt, unsigned format)
{
	return opt->set == check_nocow || opt->set == check_extent_size_hint ||
	       (format != QCOW2 && opt->set == set_preallocation);
}

/* `whole`: those of the file too. */
static void print_options(const char *format, bool whole)
{
	if (whole)
		(void)printf("Supported options:\n");
	else
		(void)printf("Supported %s options:\n", format);
	for (size_t i = 0; i < N_OPTS; i++) {
		char left[64];
		unsigned bit = format_bit(format);
		if ((opts[i].formats & bit) == 0 || (!whole && is_of_the_file(&opts[i], bit)))
			continue;
		(void)snprintf(left, sizeof(left), "%s=<%s>", opts[i].key, opts[i].arg);
		(void)printf("  %-22s - %s\n", left, opts[i].help);
	}
	if (!whole)
		(void)printf("\nThe protocol level may support further options.\n"
			     "Specify the target filename to include those options.\n");
}

static bool is_known(const char *format)
{
	return strcmp(format, "qcow2") == 0 || strcmp(format, "raw") == 0 ||
	       strcmp(format, "luks") == 0;
}

bool cli_create_opts_help(struct cli *cli, const struct cli_args *args, const char *format)
{
	bool wanted = false;
	size_t at = 0;
	for (const char *list = cli_arg_next(args, "options", &at); list != NULL && !wanted;
		list = cli_arg_next(args, "options", &at))
		wanted = cli_keyvals_ask_for_help(cli, list);

	if (wanted && format == NULL)
		format = cli->qemu ? "raw" : "qcow2";
	wanted = wanted && is_known(format);
	if (wanted)
		print_options(format, !cli->qemu || args->n_operands > 0);
	return wanted;
}
