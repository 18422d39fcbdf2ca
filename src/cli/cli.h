/* SPDX-License-Identifier: MIT */
/*
 * cli: what the commands of the program share.
 *
 * A command is one file cmd_NAME.c that defines one `const struct cli_command cli_cmd_NAME`, listed in
 * commands.c. Its option table drives the parsing, --help, the completions and the suggestions; the
 * man page is compared with it by a test. A command returns its exit code and reports errors by
 * cli_error or cli_fail before it does. stdout carries the result and nothing else; stderr carries
 * failures and nothing else: a successful run writes nothing there.
 *
 * One thread: a command runs on the main thread; only the progress callbacks may come from others.
 */
#ifndef QK_CLI_CLI_H
#define QK_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>
#include <qcowkit/qcowkit.h>

#include "base/err.h"
#include "compat/compat.h"

struct cli_secret;
struct cli_tls;
struct cli_blkdebug;

struct cli {
	const struct compat_traits *traits; /* what the personality does differently; never NULL */
	bool qemu; /* traits->qemu */
	const char *prog; /* traits->program */
	const struct cli_command *command; /* the one that runs, NULL before it is known */
	bool colour; /* stderr is a terminal and NO_COLOR is not set */
	bool objects_added; /* --object has been looked at */
	struct cli_secret *secrets; /* of --object secret, a list */
	struct cli_tls *tls; /* of --object tls-creds-…, a list */
	enum qcow_status close_status; /* of the first image below another one whose close failed */
	unsigned depth; /* of the image whose backing file was looked for last; 0: the topmost */
	struct cli_blkdebug *blkdebugs; /* nodes that are open, the newest first */
	struct cli_nbd_node *nbd_nodes; /* that were opened, the newest first */
	bool (*cancelled)(
		void *ctx); /* does somebody want the run to end? NULL: nobody can say so */
};

/* ---- option tables ---- */

enum {
	CLI_OPT_QCOW = 1, /* not in the qemu-img personality */
	CLI_OPT_QEMU = 2, /* only there */
	CLI_OPT_ARG_OPTIONAL = 4, /* the argument comes as --name=ARG only, or not at all */
	CLI_OPT_HELPER = 8 /* only in mount.qcow */
};

struct cli_option {
	const char *name; /* the long name, required: also the key of cli_arg() */
	const char *arg; /* what --help calls the argument, "FMT"; NULL: a flag */
	const char *help; /* one line */
	const char *choices; /* "human|json": checked; "@file", "@format": completed only */
	const char *key; /* another option's name, for a second spelling of it */
	unsigned flags;
	char letter; /* 'f', or 0 */
};
/* A table ends with a row without a name. */
#define CLI_OPTIONS_END      \
	{                    \
		.name = NULL \
	}

/* Rows that most commands share. */
#define CLI_OPT_FORMAT                                                                    \
	{                                                                                 \
		.letter = 'f', .name = "format", .arg = "FMT", .choices = "@format",      \
		.help = "the image's format (qcow2 or raw); probed where it is not given" \
	}
#define CLI_OPT_IMAGE_OPTS                                                              \
	{                                                                               \
		.name = "image-opts", .help = "FILE is an option string: key=value,…" \
	}
#define CLI_OPT_OUTPUT                                                          \
	{                                                                       \
		.name = "output", .arg = "human|json", .choices = "human|json", \
		.help = "output for people (the default) or for programs"       \
	}
#define CLI_OPT_OUTPUT_QCOW                                                                      \
	{                                                                                        \
		.name = "output", .arg = "human|json", .choices = "human|json",                  \
		.flags = CLI_OPT_QCOW, .help = "output for people (the default) or for programs" \
	}
#define CLI_OPT_FORCE_SHARE                                                 \
	{                                                                   \
		.letter = 'U', .name = "force-share",                       \
		.help = "open the image although another process writes it" \
	}
#define CLI_OPT_OBJECT                                                                              \
	{                                                                                           \
		.name = "object", .arg = "OBJDEF",                                                  \
		.help = "define an object: secret,id=ID,(data=…|file=F)[,format=raw|base64], or " \
			"tls-creds-x509|tls-creds-psk,id=ID,dir=D,endpoint=client|server"           \
	}
#define CLI_OPT_SECRET_FILE                                                                      \
	{                                                                                        \
		.name = "secret-file", .arg = "FILE", .flags = CLI_OPT_QCOW, .choices = "@file", \
		.help = "the passphrase of encrypted images"                                     \
	}
#define CLI_OPT_PROBE                                                               \
	{                                                                           \
		.name = "probe", .flags = CLI_OPT_QCOW,                             \
		.help = "probe the format of backing files that have none recorded" \
	}
#define CLI_OPT_UNTRUSTED                                   \
	{                                                   \
		.name = "untrusted", .flags = CLI_OPT_QCOW, \
		.help = "open nothing that the image names" \
	}
/* With both of these the command also locks itself down: cli_sandbox_from_args. */
#define CLI_OPT_SANDBOX                                                             \
	{                                                                           \
		.name = "untrusted", .flags = CLI_OPT_QCOW,                         \
		.help = "open nothing that the image names, and lock this process " \
			"down before it is read"                                    \
	}
#define CLI_OPT_VERBOSE                                                    \
	{                                                                  \
		.letter = 'v', .name = "verbose", .flags = CLI_OPT_QCOW,   \
		.help = "with --untrusted: say on stderr what is in force" \
	}
#define CLI_OPT_QUIET                                                              \
	{                                                                          \
		.letter = 'q', .name = "quiet", .help = "write nothing but errors" \
	}
#define CLI_OPT_PROGRESS                                                                         \
	{                                                                                        \
		.letter = 'p', .name = "progress", .arg = "FD", .flags = CLI_OPT_ARG_OPTIONAL,   \
		.help = "show progress; =FD: for programs, a line DONE TOTAL to that descriptor" \
	}
#define CLI_OPT_PROGRESS_QCOW                                                                    \
	{                                                                                        \
		.letter = 'p', .name = "progress", .arg = "FD",                                  \
		.flags = CLI_OPT_ARG_OPTIONAL | CLI_OPT_QCOW,                                    \
		.help = "show progress; =FD: for programs, a line DONE TOTAL to that descriptor" \
	}
#define CLI_OPT_DRY_RUN(text)                                            \
	{                                                                \
		.name = "dry-run", .flags = CLI_OPT_QCOW, .help = (text) \
	}
#define CLI_OPT_CACHE                                                       \
	{                                                                   \
		.letter = 't', .name = "cache", .arg = "CACHE",             \
		.choices = "none|writeback|writethrough|directsync|unsafe", \
		.help = "cache mode of the image"                           \
	}

struct cli_given {
	const struct cli_option *option; /* after `key` is followed */
	const char *value; /* NULL for a flag */
};

struct cli_args {
	const struct cli_given *given; /* in the order typed */
	size_t n_given;
	char *const *operands;
	size_t n_operands;
};

#define CLI_MANY 0xffffffffu

struct cli_command {
	const char *name;
	const char *summary; /* one line, no full stop, for the list of commands */
	const char *synopsis; /* what follows "qcow NAME " */
	const char *about; /* paragraphs for --help, each line wrapped by hand; may be NULL */
	const struct cli_option *options;
	unsigned min_operands, max_operands; /* checked by the parser; CLI_MANY: no limit */
	unsigned flags; /* CLI_OPT_QCOW or CLI_OPT_QEMU, 0 for both */
	int usage_exit; /* exit code of a usage error, 0 stands for 1 */
	int cache_exit; /* of an unknown cache mode, in the personality; 0 stands for usage_exit */
	int (*run)(struct cli *cli, const struct cli_args *args);
};

/* commands.c: every command, ended by NULL. */
extern const struct cli_command *const cli_commands[];

/* Was the option (by its long name) given? */
bool cli_flag(const struct cli_args *args, const char *name);
/* The value of its last mention, or NULL. */
const char *cli_arg(const struct cli_args *args, const char *name);
/* The value of mention number *at or later; moves *at behind it. NULL at the end. Start with 0. */
const char *cli_arg_next(const struct cli_args *args, const char *name, size_t *at);
/* --output json was asked for. */
bool cli_wants_json(const struct cli_args *args);

/* Parse argv[0..argc) (what follows the command's name). 0: go on, *args is filled (cli_args_release).
 * 1: --help was printed. -N: a usage error was reported, and the exit code is N. */
int cli_args_parse(struct cli *cli, const struct cli_command *cmd, int argc, char **argv,
	struct cli_args *args);
void cli_args_release(struct cli_args *args);

/* The options row that `cli` may use: CLI_OPT_QCOW and CLI_OPT_QEMU against the personality. */
bool cli_flags_apply(const struct cli *cli, unsigned flags);

/* ---- errors ---- */

/* "qcow: SENTENCE". Control bytes in it are escaped. Say which file, what, and why. */
void cli_error(struct cli *cli, const char *fmt, ...) QK_PRINTF(2, 3);
/* A line below the error, without any label. */
void cli_more(struct cli *cli, const char *fmt, ...) QK_PRINTF(2, 3);
/* A line below the error: what to do about it. */
void cli_hint(struct cli *cli, const char *fmt, ...) QK_PRINTF(2, 3);
/* "qcow: WHAT: the library's sentence", then the hint that fits its status. Returns 1. */
int cli_fail(struct cli *cli, const struct qcow_error *err, const char *fmt, ...) QK_PRINTF(3, 4);
/* A failed open of the operand `text`. device: as in struct cli_open_request. Changes the message. */
void cli_report_open(struct cli *cli, const char *device, const char *text, struct qcow_error *err);
/* The same for a file that was to become an image. `during` is what QEMU's sentence names, "converting qcow2", or NULL. */
void cli_report_create(
	struct cli *cli, const char *during, const char *text, struct qcow_error *err);
/* The same for the backing file `name` that is to be recorded and was opened as `text`. */
void cli_report_backing(
	struct cli *cli, const char *name, const char *text, struct qcow_error *err);
/* End the program: "Cannot allocate memory", exit code 1. For what only prints; a command that has begun to write
 * returns its failure instead. */
void cli_out_of_memory(void) __attribute__((noreturn));
/* A usage error: the sentence, and "Try 'qcow NAME --help'". Returns the command's usage exit code. */
int cli_usage(struct cli *cli, const char *fmt, ...) QK_PRINTF(2, 3);
/* The nearest of n words to `typed`, or NULL if none is near. */
const char *cli_nearest(const char *typed, const char *const *words, size_t n);

/* ---- help ---- */

void cli_help_program(const struct cli *cli, FILE *out);
void cli_help_command(const struct cli *cli, const struct cli_command *cmd, FILE *out);

/* ---- sizes ---- */

enum cli_sign {
	CLI_SIGN_NONE = 0,
	CLI_SIGN_PLUS,
	CLI_SIGN_MINUS
};

/* "123", "123b", "1.5G", "0x200", suffixes b k K M G T P E in powers of 1024. On failure false and a
 * precise sentence through cli_error: `what` is what the number is ("size", "option --max-length"). */
bool cli_parse_size(struct cli *cli, const char *what, const char *text, uint64_t *out);
/* The same without a word to anyone: NULL, or why `text` is no size. *out_of_range: it is a number, but none
 * that a size may have. */
const char *cli_read_size(const char *text, uint64_t *out, bool *out_of_range);
/* As cli_parse_size with an optional + or - in front. */
bool cli_parse_size_signed(
	struct cli *cli, const char *what, const char *text, enum cli_sign *sign, uint64_t *out);
/* A whole number in [min, max], decimal or 0x. */
bool cli_parse_number(struct cli *cli, const char *what, const char *text, uint64_t min,
	uint64_t max, uint64_t *out);
/* "on", "off" (also "true", "yes", …). */
bool cli_parse_bool(struct cli *cli, const char *what, const char *text, bool *out);

/* The same without a word to anyone. */
bool cli_read_bool(const char *text, bool *out);

/* ---- -o and other key=value lists ---- */

struct cli_keyval {
	char *key, *value; /* value NULL: the key stood alone */
};
struct cli_keyvals {
	struct cli_keyval *v;
	size_t n;
};
/* Split "a=b,c=d,,e" (",," is a comma) and append to *list. False: out of memory, or an empty key,
 * reported. Release with cli_keyvals_release. */
bool cli_keyvals_add(struct cli *cli, struct cli_keyvals *list, const char *text);
/* The last value of a key, or NULL. */
const char *cli_keyvals_get(const struct cli_keyvals *list, const char *key);
void cli_keyvals_release(struct cli_keyvals *list);
/* Is an item of the list "help" or "?"? Not where the personality refuses the list: who reads it says so. */
bool cli_keyvals_ask_for_help(const struct cli *cli, const char *text);
/* All mentions of option `name` merged. */
bool cli_keyvals_from_args(
	struct cli *cli, const struct cli_args *args, const char *name, struct cli_keyvals *list);

/* ---- text for people ---- */

#define CLI_SIZE_BYTES 32
/* "16 MiB", as qemu-img: %0.3g and a binary unit. Returns buf. */
const char *cli_human_size(uint64_t bytes, char buf[CLI_SIZE_BYTES]);
/* A copy that is safe on a terminal: control bytes, invalid UTF-8 and characters that change the
 * direction of the text become \xNN or \uNNNN. NULL: out of memory. Free it. */
char *cli_escape(const char *text, size_t bytes);
/* Escape and write. */
void cli_put_escaped(FILE *out, const char *text);

/* ---- JSON ---- */

/* Make jansson end the program where memory runs out, so that building JSON never fails. Once, in main. */
void cli_json_init(void);
/* A JSON string of any bytes: what is not UTF-8 becomes U+FFFD. */
json_t *cli_json_string(const char *text);
json_t *cli_json_stringn(const char *text, size_t bytes);
json_t *cli_json_u64(uint64_t value);
/* A list that is too long to be kept: its members are made while it is printed. */
struct cli_json_list {
	/* Call `put` for each member, which it frees. */
	void (*each)(struct cli_json_list *list, void (*put)(void *ctx, json_t *member), void *ctx);
};
/* Stands for the list in what cli_json_print prints, once. `list` is the caller's and must live until then. */
json_t *cli_json_list(struct cli_json_list *list);
/* The list that a value stands for, or NULL. */
struct cli_json_list *cli_json_list_of(const json_t *value);
/* Set a member, stealing `value`. */
void cli_json_set(json_t *object, const char *key, json_t *value);
/* Is this no JSON at all? Never so for what the calls above answer. */
bool cli_json_failed(const json_t *object);
/* Print with 4-space indent and a newline, and free. 0. */
int cli_json_print(struct cli *cli, json_t *root);

/* ---- operands: what a command is told to open ---- */

enum {
	CLI_OPEN_SHARE = 1, /* -U */
	CLI_OPEN_ALONE =
		2, /* open nothing that the image names (info, check, dump, snapshot -l), but for WRITE its data file */
	CLI_OPEN_CHECK = 4, /* QCOW_OPEN_CHECK: tolerate damage that only refuses guest data */
	CLI_OPEN_PROBE = 8, /* --probe */
	CLI_OPEN_UNTRUSTED = 16, /* --untrusted: refuse whatever the image names */
	CLI_OPEN_DIRECT = 32, /* cache=none */
	CLI_OPEN_NO_DATA = 64, /* no data files: guest data is not read */
	CLI_OPEN_UNSHARED = 128, /* what is read must not change: raw disks are not shared either */
	CLI_OPEN_WRITE =
		256, /* the operand's own image for reading and writing, what it names read-only */
	CLI_OPEN_NO_BACKING = 512, /* QCOW_OPEN_NO_BACKING */
	CLI_OPEN_KEEP = 1024, /* discards are ignored, unless the operand says otherwise */
	CLI_OPEN_STORE_WRITE =
		2048, /* the operand's file for reading and writing, its image read-only */
	CLI_OPEN_NO_LOCK = 4096, /* this process has it open already, and holds the locks */
	CLI_OPEN_NO_FLUSH = 8192 /* cache=unsafe */
};

struct cli_operand {
	const char *text; /* a path, json:{…}, or with image_opts key=value,… */
	const char *format; /* -f, or NULL */
	bool image_opts;
};

/* How --untrusted locks the process down. */
struct cli_sandbox {
	bool wanted, verbose;
	uint64_t memory_bytes, cpu_seconds; /* 0: no limit */
};

struct cli_open_request {
	struct cli_operand operand;
	unsigned flags; /* CLI_OPEN_… */
	unsigned
		write_depth; /* with CLI_OPEN_WRITE: this layer of the chain is for writing too; 0: none */
	const char *options; /* key=value,… over what the operand says, or NULL */
	const char *
		device; /* a failure reads "can't open device DEVICE: why" ("" without a name) instead of
				"Could not open"; NULL: not so */
	const char *snapshot; /* "NAME", "snapshot.id=…", "snapshot.name=…", or NULL */
	uint64_t cache_bytes; /* as in struct qcow_open_options */
	/* Which filters (CLI_FILTER_…, cli/spec.h) the operand put over the image: set by the open for who honours them.
	 * NULL: an image under a filter is for reading only. */
	unsigned *filters;
	/* Called when the file is open and nothing of it read: open here what the sandbox will forbid.
	 * QCOW_E_CANCELLED: it failed and has reported it. */
	enum qcow_status (*ready)(void *ctx, struct qcow_error *err);
	void *ready_ctx;
	struct cli_sandbox sandbox; /* entered after `ready` */
};

/* What --untrusted and --verbose of `args` ask for, with the command's bounds. */
struct cli_sandbox cli_sandbox_from_args(
	const struct cli_args *args, uint64_t memory_bytes, uint64_t cpu_seconds);

/* Enter the sandbox, for ever. QCOW_E_NOTSUP: the kernel gives none. */
enum qcow_status cli_lock_down(
	struct cli *cli, const struct cli_sandbox *sandbox, struct qcow_error *err) QK_MUST_USE;

/* Fill operand.image_opts, operand.format, flags from -f, --image-opts, -U, --probe of `args`, and keep
 * every --object. False: refused and reported. */
/* The same as CLI_OPEN_… flags; durable writes are not among them, for who writes asks for those. */
unsigned cli_cache_open_flags(const char *cache);

bool cli_open_request_init(struct cli *cli, const struct cli_args *args, const char *operand,
	unsigned flags, struct cli_open_request *out);

/* Open an image, read-only unless WRITE, and, unless ALONE, what it names, by the references policy. A failure is
 * reported; the status is for those who pick the exit code by it. */
enum qcow_status cli_open(struct cli *cli, const struct cli_open_request *request,
	struct qcow_image **out) QK_MUST_USE;

/* The same, with the failure told to nobody but the caller. */
enum qcow_status cli_try_open(struct cli *cli, const struct cli_open_request *request,
	struct qcow_image **out, struct qcow_error *err) QK_MUST_USE;

/* Close an image that may have been written to; NULL: nothing. False where `ok` is, or where it fails, which is reported. */
bool cli_close(struct cli *cli, struct qcow_image *image, bool ok) QK_MUST_USE;

/* What messages call an operand that is open: its path, or for a part of a raw disk the operand as
 * JSON, as QEMU prints it. NULL: out of memory. Free it. */
char *cli_display_name(
	struct cli *cli, const struct cli_operand *operand, struct qcow_image *image);

/* "nbd" of "nbd://host", or false: a plain path. A '/' before the colon makes it a path. */
bool cli_path_protocol(const char *path, size_t *protocol_bytes);

struct cli_secret;

/* What a target's operand names. The stores are the caller's. */
struct cli_target {
	struct qcow_store *store;
	struct qcow_store *header; /* of a luks node with a detached header, or NULL */
	const struct cli_secret *secret; /* or NULL */
	const char *format; /* what the operand's driver says, or NULL; static storage */
};

/* A target: the operand's store (a path, json: or image-opts with driver file, host_device, raw or qcow2
 * over it), opened with QCOW_FILE_… flags. A failure is for the caller to report. */
enum qcow_status cli_open_target(struct cli *cli, const struct cli_operand *operand,
	unsigned file_flags, struct cli_target *out, struct qcow_error *err) QK_MUST_USE;

/* Make the entry of the new file `path` in its folder durable; a folder that cannot be read is let be. False:
 * reported. */
bool cli_sync_folder(struct cli *cli, const char *path);

/* The format that a target's option string names, "raw" where it names none. NULL: out of memory. Free it. */
char *cli_target_driver(struct cli *cli, const struct cli_operand *operand);

/* The path that `name`, recorded in image `from`, stands for: absolute, or relative to from's folder.
 * NULL: out of memory. Free it. */
char *cli_join_path(const char *from, const char *name);

/* "none" "directsync" need O_DIRECT, "writethrough" "directsync" O_DSYNC, "unsafe" flushes nothing: QCOW_FILE_… flags. The parser
 * has checked the word; NULL gives 0. */
unsigned cli_cache_file_flags(const char *cache);

/* Keep or refuse every --object. Once a run; cli_open_request_init does it. False: refused, reported. */
bool cli_objects_add_all(struct cli *cli, const struct cli_args *args);
void cli_objects_release(struct cli *cli);

/* ---- signals ---- */

/* From here on SIGINT, SIGTERM and SIGHUP cancel what asks cli->cancelled, as every progress does; the second one, a second later,
 * ends the program. */
void cli_signals_catch(struct cli *cli);
/* One of them came: the failure that follows is no error to report. */
bool cli_signals_caught(void);
/* Die of the signal that was caught, if any, now that everything is put right. */
void cli_signals_end(void);

/* ---- progress ---- */

struct cli_progress;
/* Start showing progress: -p (QEMU's records, or a line on a terminal), --progress=FD; nothing with -q.
 * Also without any of them SIGUSR1 prints one record. `out` is what library calls take; it is valid
 * until cli_progress_end. NULL: refused and reported. */
struct cli_progress *cli_progress_begin(
	struct cli *cli, const struct cli_args *args, struct qcow_progress *out);
/* `ok`: the work is complete, show 100 percent. NULL is allowed. */
void cli_progress_end(struct cli_progress *progress, bool ok);

#endif
