/* SPDX-License-Identifier: MIT */
/*
 * sizes: numbers as people type them: "123", "123b", "1.5G", "0x200", "+10M".
 *
 * A fraction other than 0 needs a suffix above bytes and is rounded down; the largest value is 2^63 - 1, as the
 * largest disk is. Leading blanks are allowed, because `"-e 2"` may be one word of a command line.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/num.h"

static bool refuse(struct cli *cli, const char *what, const char *text, const char *why)
{
	cli_error(cli, "invalid %s '%s': %s", what, text, why);
	return false;
}

/* The shift for a suffix, or -1. */
static int suffix_shift(char c)
{
	static const char letters[] = "bkmgtpe";
	const char *at = c != '\0' ? strchr(letters, tolower((unsigned char)c)) : NULL;
	return at != NULL ? (int)(at - letters) * 10 : -1;
}

/* Digits behind the point, as value * 2^shift rounded down; at most 9 digits count. */
static uint64_t fraction_bytes(const char *digits, size_t n, int shift)
{
	uint64_t top = 0, below = 1;
	for (size_t i = 0; i < n && i < 9; i++) {
		top = top * 10 + (uint64_t)(digits[i] - '0');
		below *= 10;
	}
	/* top < 10^9 < 2^30 and shift <= 60: two steps keep the product below 2^64 */
	uint64_t high = shift > 30 ? (uint64_t)1 << (shift - 30) : 1;
	uint64_t low = shift > 30 ? UINT64_C(1) << 30 : (uint64_t)1 << shift;
	uint64_t scaled = top * low;
	return scaled / below * high + scaled % below * high / below;
}

static const char *read_hex(const char *p, uint64_t *out, bool *out_of_range)
{
	char *end = NULL;
	errno = 0;
	unsigned long long v = strtoull(p, &end, 16);
	if (end == p || *end != '\0' || !isxdigit((unsigned char)p[2]))
		return "not a hexadecimal number (it takes no suffix)";
	*out_of_range = errno == ERANGE || v > INT64_MAX;
	if (*out_of_range)
		return "too large, the most is 2^63 - 1";
	*out = v;
	return NULL;
}

static const char *read_decimal(const char *p, uint64_t *out, bool *out_of_range)
{
	errno = 0;
	char *end = NULL;
	unsigned long long whole = strtoull(p, &end, 10);
	bool over = errno == ERANGE;
	const char *digits = *end == '.' ? end + 1 : NULL;
	size_t n = digits != NULL ? strspn(digits, "0123456789") : 0;
	const char *suffix = digits != NULL ? digits + n : end;
	int shift = *suffix == '\0' ? 0 : suffix_shift(*suffix);
	if (shift < 0 || (*suffix != '\0' && suffix[1] != '\0'))
		return "the suffix must be one of b k M G T P E";
	if (digits != NULL && n == 0)
		return "digits are missing behind the point";
	if (digits != NULL && shift == 0 && strspn(digits, "0") != n)
		return "a part of a byte: add a suffix k M G T P E";
	uint64_t bytes = 0;
	*out_of_range = over || !qk_mul(whole, UINT64_C(1) << shift, &bytes) ||
			!qk_add(bytes, n != 0 ? fraction_bytes(digits, n, shift) : 0, &bytes) ||
			bytes > INT64_MAX;
	if (*out_of_range)
		return "too large, the most is 2^63 - 1 bytes";
	*out = bytes;
	return NULL;
}

const char *cli_read_size(const char *text, uint64_t *out, bool *out_of_range)
{
	const char *p = text;
	*out_of_range = false;
	while (isblank((unsigned char)*p))
		p++;
	if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X'))
		return read_hex(p, out, out_of_range);
	if (*p == '-') {
		*out_of_range = p[1] != '\0' && p[1 + strspn(p + 1, "0123456789")] == '\0';
		return "it must not be negative";
	}
	if (!isdigit((unsigned char)p[*p == '.' ? 1 : 0]))
		return "not a number";
	return read_decimal(p, out, out_of_range);
}

bool cli_parse_size(struct cli *cli, const char *what, const char *text, uint64_t *out)
{
	bool out_of_range = false;
	const char *why = cli_read_size(text, out, &out_of_range);
	if (why == NULL)
		return true;
	if (!cli->qemu)
		return refuse(cli, what, text, why);
	if (out_of_range) {
		cli_error(cli, "Invalid %s specified. Must be between 0 and %" PRId64 ".", what,
			INT64_MAX);
		return false;
	}
	cli_error(cli, "Invalid %s specified. You may use k, M, G, T, P or E suffixes for", what);
	cli_error(cli, "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.");
	return false;
}

bool cli_parse_size_signed(
	struct cli *cli, const char *what, const char *text, enum cli_sign *sign, uint64_t *out)
{
	*sign = text[0] == '+' ? CLI_SIGN_PLUS : text[0] == '-' ? CLI_SIGN_MINUS : CLI_SIGN_NONE;
	return cli_parse_size(cli, what, text + (*sign != CLI_SIGN_NONE), out);
}

bool cli_parse_number(struct cli *cli, const char *what, const char *text, uint64_t min,
	uint64_t max, uint64_t *out)
{
	const char *p = text;
	while (isblank((unsigned char)*p))
		p++;
	bool hex = p[0] == '0' && (p[1] == 'x' || p[1] == 'X');
	char *end = NULL;
	errno = 0;
	/* QEMU counts a negative number as one that is too small */
	bool below = cli->qemu && p[0] == '-' && isdigit((unsigned char)p[1]);
	unsigned long long v = isdigit((unsigned char)p[below])
				       ? strtoull(p + below, &end, hex ? 16 : 10)
				       : 0;
	if (cli->qemu && (end == NULL || *end != '\0')) {
		cli_error(cli, "Invalid %s specified: '%s'", what, text);
		return false;
	}
	if (end == NULL || end == p || *end != '\0')
		return refuse(cli, what, text, "not a whole number");
	if (below || errno == ERANGE || v < min || v > max) {
		if (cli->qemu)
			cli_error(cli,
				"Invalid %s specified. Must be between %" PRIu64 " and %" PRIu64
				".",
				what, min, max);
		else
			cli_error(cli, "invalid %s '%s': it must be %" PRIu64 " to %" PRIu64, what,
				text, min, max);
		return false;
	}
	*out = v;
	return true;
}

bool cli_read_bool(const char *text, bool *out)
{
	static const struct {
		const char *word;
		bool value;
	} words[] = {{"on", true}, {"yes", true}, {"true", true}, {"y", true}, {"off", false},
		{"no", false}, {"false", false}, {"n", false}};
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcmp(words[i].word, text) == 0) {
			*out = words[i].value;
			return true;
		}
	return false;
}

bool cli_parse_bool(struct cli *cli, const char *what, const char *text, bool *out)
{
	return cli_read_bool(text, out) || refuse(cli, what, text, "it must be on or off");
}
