/* SPDX-License-Identifier: MIT */
/*
 * What a user types for an image: a path, json:{…}, or with the first byte odd --image-opts. Oracle: a failure has a
 * sentence; what is understood, written as JSON and read again, is the same; nothing is nested deeper than said.
 */
#include "fuzz.h"

#include <stdarg.h>

#include "cli/spec.h"

static unsigned n_errors;

/* Of report.c and args.c, which would print. */
void cli_error(struct cli *cli, const char *fmt, ...)
{
	char text[1024];
	va_list args;
	(void)cli;
	va_start(args, fmt);
	FUZZ_CHECK(vsnprintf(text, sizeof(text), fmt, args) > 0);
	va_end(args);
	n_errors++;
}

void cli_hint(struct cli *cli, const char *fmt, ...)
{
	(void)cli, (void)fmt;
}

void cli_out_of_memory(void)
{
	abort();
}

const char *cli_arg_next(const struct cli_args *args, const char *name, size_t *at)
{
	(void)args, (void)name, (void)at;
	return NULL;
}

static void check_depth(json_t *at, unsigned depth)
{
	const char *key;
	json_t *value;
	FUZZ_CHECK(depth <= 2 * CLI_SPEC_DEPTH + 2);
	json_object_foreach(at, key, value)
	{
		FUZZ_CHECK(strchr(key, '.') == NULL);
		if (json_is_object(value))
			check_depth(value, depth + 1);
	}
}

static void check_again(struct cli *cli, json_t *spec)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	json_t *again = NULL;
	char *text = json_dumps(spec, JSON_ENSURE_ASCII), *operand = NULL;
	if (text == NULL) /* a path that is not UTF-8 */
		return;
	size_t n = strlen(text) + sizeof("json:");
	operand = malloc(n);
	FUZZ_CHECK(operand != NULL);
	snprintf(operand, n, "json:%s", text);
	const struct cli_operand o = {.text = operand};
	FUZZ_CHECK(cli_spec_parse(cli, &o, &again, &err) == QCOW_OK);
	FUZZ_CHECK(json_equal(spec, again));
	json_decref(again);
	free(operand);
	free(text);
}

/* What commands ask of it. */
static void read_members(struct cli *cli, const json_t *spec)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	const char *text = NULL;
	uint64_t number = 0;
	bool flag = false;
	enum qcow_status status = cli_spec_string(spec, "driver", &text, &err);
	FUZZ_CHECK(status == QCOW_OK || err.message[0] != '\0');
	status = cli_spec_u64(cli, spec, "size", &number, &err);
	FUZZ_CHECK(status == QCOW_OK || err.message[0] != '\0');
	status = cli_spec_bool(spec, "force-share", &flag, &err);
	FUZZ_CHECK(status == QCOW_OK || err.message[0] != '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static const struct compat_traits traits = {0};
	struct cli cli = {.traits = &traits, .prog = "fuzz"};
	struct qcow_error err = QCOW_ERROR_INIT;
	json_t *spec = NULL;
	if (n == 0 || n > 4096)
		return 0;
	char *text = malloc(n);
	FUZZ_CHECK(text != NULL);
	memcpy(text, data + 1, n - 1);
	text[n - 1] = '\0';
	const struct cli_operand operand = {.text = text, .image_opts = data[0] % 2 != 0};
	n_errors = 0;
	enum qcow_status status = cli_spec_parse(&cli, &operand, &spec, &err);
	FUZZ_CHECK(status == err.status && status != QCOW_E_NOMEM);
	FUZZ_CHECK((status == QCOW_OK) == (spec != NULL));
	FUZZ_CHECK(status == QCOW_OK ? n_errors == 0 : err.message[0] != '\0');
	if (spec != NULL) {
		check_depth(spec, 0);
		check_again(&cli, spec);
		read_members(&cli, spec);
	}
	json_decref(spec);
	free(text);
	return 0;
}
