/* SPDX-License-Identifier: MIT */
/* golden: reads the vectors as tools/golden-vectors describes them. Failures fail the running
 * test. */
#include "golden.h"

#include <dirent.h>
#include <inttypes.h>

#include "unit/format/golden_dir.h"

/* QK_GOLDEN names another folder: vectors of another QEMU. */
static const char *folder(void)
{
	const char *given = getenv("QK_GOLDEN");
	return given != NULL ? given : QK_GOLDEN_DIR;
}

static uint8_t *read_file(const char *name, const char *suffix, size_t *n)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/%s%s", folder(), name, suffix);
	FILE *f = fopen(path, "rb");
	CHECK(f != NULL, "%s", path);
	uint8_t *data = calloc(1, 1 << 16);
	*n = fread(data, 1, (1 << 16) - 1, f);
	CHECK(feof(f), "%s is larger than expected", path);
	fclose(f);
	return data;
}

void golden_one(const char *name, void (*test)(const struct golden *g))
{
	struct golden g = {.name = name};
	size_t n = 0;
	char *text = (char *)read_file(name, ".txt", &n);
	uint8_t *bin = read_file(name, ".bin", &g.bin.n);
	g.text = text;
	g.bin.p = bin;
	test(&g);
	free(text);
	free(bin);
}

static int has_text(const struct dirent *e)
{
	const char *dot = strrchr(e->d_name, '.');
	return dot != NULL && strcmp(dot, ".txt") == 0;
}

void golden_each(void (*test)(const struct golden *g))
{
	struct dirent **list = NULL;
	int n = scandir(folder(), &list, has_text, alphasort);
	CHECK(n >= 60, "%d vectors in %s", n, folder());
	for (int i = 0; i < n; i++) {
		*strrchr(list[i]->d_name, '.') = '\0';
		golden_one(list[i]->d_name, test);
		free(list[i]);
	}
	free(list);
}

const char *golden_fact(
	const struct golden *g, const char *key, unsigned nth, char *buf, size_t buf_n)
{
	size_t key_n = strlen(key);
	for (const char *line = g->text; *line != '\0';) {
		size_t n = strcspn(line, "\n");
		if (n > key_n && strncmp(line, key, key_n) == 0 && line[key_n] == ' ' &&
			nth-- == 0) {
			assert_true(n - key_n - 1 < buf_n);
			memcpy(buf, line + key_n + 1, n - key_n - 1);
			buf[n - key_n - 1] = '\0';
			return buf;
		}
		line += n + (line[n] == '\n');
	}
	return NULL;
}

uint64_t golden_number(const struct golden *g, const char *key, uint64_t missing)
{
	char buf[2048];
	const char *fact = golden_fact(g, key, 0, buf, sizeof(buf));
	return fact != NULL ? strtoull(fact, NULL, 10) : missing;
}

uint8_t *golden_section(
	const struct golden *g, const char *kind, unsigned nth, size_t *n, uint64_t *off)
{
	char line[256], this_kind[32];
	size_t at = 0, stored = 0;
	for (unsigned i = 0; golden_fact(g, "section", i, line, sizeof(line)) != NULL; i++) {
		assert_int_equal(
			sscanf(line, "%31s %" SCNu64 " %zu %zu", this_kind, off, n, &stored), 4);
		assert_true(stored <= *n && stored <= g->bin.n - at);
		if (strcmp(this_kind, kind) == 0 && nth-- == 0) {
			uint8_t *p = calloc(1, *n + 1);
			memcpy(p, g->bin.p + at, stored);
			return p;
		}
		at += stored;
	}
	return NULL;
}

uint8_t *golden_header(const struct golden *g, struct qk_header *h, struct qk_extensions *ext,
	struct qk_geometry *geometry)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	size_t n = 0;
	uint64_t off = 0;
	uint8_t *p = golden_section(g, "header", 0, &n, &off);
	enum qcow_status status = qk_header_area_decode((struct qk_span){p, n}, h, ext, &err);
	CHECK(status == QCOW_OK, "%s: %s", g->name, err.message);
	qk_header_geometry(h, geometry);
	return p;
}
