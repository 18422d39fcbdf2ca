/* SPDX-License-Identifier: MIT */
/*
 * mount_name: file names for snapshots and bitmaps, which may be called anything: with slashes, by bytes that are no text, by
 * nothing at all, or as another one. What is encoded can be told from what is not: a '%' is encoded too, and no encoded byte
 * looks like "%id=" or "%n=".
 */
#include <string.h>

#include "base/mem.h"
#include "cli/mount.h"
#include "cli/utf8.h"

/* The bytes at `text` that stay as they are; 0: the first is encoded. */
static size_t plain(const char *text, size_t bytes)
{
	uint32_t code = 0;
	size_t n = cli_utf8_next(text, bytes, &code);
	return n > 0 && code >= 0x20 && !(code >= 0x7f && code < 0xa0) && code != '/' && code != '%'
		       ? n
		       : 0;
}

/* As much of `text` as fits into `most` bytes; *is_whole: all of it. */
static char *encode(const char *text, size_t most, bool *is_whole)
{
	size_t bytes = strlen(text), at = 0, used = 0;
	char *out = qk_malloc(most + 1, 1);
	*is_whole = false;
	while (out != NULL && at < bytes) {
		bool hides = at == 0 && text[0] == '.';
		size_t n = hides ? 0 : plain(text + at, bytes - at);
		if ((n > 0 ? n : 3) > most - used)
			break;
		if (n > 0)
			memcpy(out + used, text + at, n);
		else
			(void)snprintf(out + used, 4, "%%%02X", (unsigned)(unsigned char)text[at]);
		used += n > 0 ? n : 3;
		at += n > 0 ? n : 1;
	}
	if (out != NULL)
		out[used] = '\0';
	*is_whole = out != NULL && at == bytes;
	return out;
}

char *mount_name(const char *text, size_t most, bool *no_memory)
{
	bool is_whole = false;
	char *name = encode(text, most, &is_whole);
	*no_memory = name == NULL;
	if (name != NULL && is_whole && name[0] != '\0')
		return name;
	free(name);
	return NULL;
}

/* The start of the name with the id behind it. NULL: there is none that fits. */
static char *with_id(const struct serve_part *thing, size_t most, bool *no_memory)
{
	char *name = NULL;
	bool is_whole = false;
	QK_AUTO_FREE char *id = thing->id != NULL ? mount_name(thing->id, 64, no_memory) : NULL;
	if (id == NULL)
		return NULL;
	QK_AUTO_FREE char *start = encode(thing->name, most - strlen(id) - 4, &is_whole);
	if (start == NULL || asprintf(&name, "%s%%id=%s", start, id) < 0) {
		*no_memory = true;
		return NULL;
	}
	return name;
}

/* folder/NAMEsuffix, and frees the name. */
static char *join(const char *folder, char *name, const char *suffix)
{
	char *path = NULL;
	if (asprintf(&path, "%s/%s%s", folder, name, suffix) < 0)
		path = NULL;
	free(name);
	return path;
}

char *mount_path(const char *folder, const struct serve_part *thing, const char *suffix,
	bool (*is_taken)(void *ctx, const char *path), void *ctx)
{
	size_t most = MOUNT_NAME_BYTES - strlen(suffix);
	bool no_memory = false;
	for (unsigned try = 0;; try++) {
		char *name = NULL;
		if (try == 0)
			name = mount_name(thing->name, most, &no_memory);
		else if (try == 1)
			name = with_id(thing, most, &no_memory);
		else if (asprintf(&name, "%%n=%u", thing->number + try - 2) < 0)
			no_memory = true;
		if (no_memory)
			return NULL;
		if (name == NULL)
			continue;
		char *path = join(folder, name, suffix);
		if (path == NULL || !is_taken(ctx, path))
			return path;
		free(path);
	}
}
