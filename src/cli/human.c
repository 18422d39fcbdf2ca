/* SPDX-License-Identifier: MIT */
/*
 * human: sizes and names for people.
 *
 * Names come from images and so from strangers: what a terminal would act on, or what would make a name
 * look like another one, is written as an escape.
 */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/utf8.h"

const char *cli_human_size(uint64_t bytes, char buf[CLI_SIZE_BYTES])
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double v = (double)bytes;
	size_t unit = 0;
	/* three digits are shown, so 1000 KiB is 0.977 MiB */
	while (v >= 1000 && unit + 1 < sizeof(units) / sizeof(units[0])) {
		v /= 1024;
		unit++;
	}
	(void)snprintf(buf, CLI_SIZE_BYTES, "%0.3g %s", v, units[unit]);
	return buf;
}

size_t cli_utf8_next(const char *text, size_t bytes, uint32_t *code)
{
	const unsigned char *p = (const unsigned char *)text;
	size_t n = p[0] < 0x80	 ? 1
		   : p[0] < 0xc2 ? 0
		   : p[0] < 0xe0 ? 2
		   : p[0] < 0xf0 ? 3
		   : p[0] < 0xf5 ? 4
				 : 0;
	if (n == 0 || n > bytes)
		return 0;
	uint32_t c = n == 1 ? p[0] : p[0] & (0x7fu >> n);
	for (size_t i = 1; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3fu);
	}
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	*code = c;
	return n;
}

/* Characters that move the cursor, change the text's direction, or cannot be seen. */
static bool is_unsafe(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x061c || (c >= 0x200b && c <= 0x200f) ||
	       (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff ||
	       (c >= 0xfff9 && c <= 0xfffb) || (c >= 0xe0000 && c <= 0xe007f);
}

char *cli_escape(const char *text, size_t bytes)
{
	uint64_t room = 0; /* a byte becomes at most 10: \U000e0001 */
	if (__builtin_mul_overflow((uint64_t)bytes, 10u, &room))
		return NULL;
	char *out = qk_malloc(room + 1, 1);
	if (out == NULL)
		return NULL;
	size_t used = 0, at = 0;
	while (at < bytes) {
		uint32_t c = 0;
		size_t n = cli_utf8_next(text + at, bytes - at, &c);
		if (n != 0 && !is_unsafe(c)) {
			memcpy(out + used, text + at, n);
			used += n;
			at += n;
			continue;
		}
		const char *fmt = n <= 1 ? "\\x%02x" : c > 0xffff ? "\\U%08x" : "\\u%04x";
		int put = snprintf(out + used, room + 1 - used, fmt,
			n == 0 ? (unsigned)(unsigned char)text[at] : (unsigned)c);
		used += put > 0 ? (size_t)put : 0;
		at += n != 0 ? n : 1;
	}
	out[used] = '\0';
	return out;
}

void cli_put_escaped(FILE *out, const char *text)
{
	QK_AUTO_FREE char *safe = cli_escape(text, strlen(text));
	if (safe == NULL)
		cli_out_of_memory();
	(void)fputs(safe, out);
}
