/* SPDX-License-Identifier: MIT */
/*
 * replay: runs one fuzz target over a corpus folder without libFuzzer, so that every compiler's
 * build tests what fuzzing has found. Usage: replay_TARGET FOLDER
 */
#include "fuzz.h"

#include <dirent.h>

#define MAX_INPUT_BYTES (1U << 17)

static void replay_file(const char *folder, const char *name)
{
	char path[4096];
	FUZZ_CHECK(snprintf(path, sizeof(path), "%s/%s", folder, name) < (int)sizeof(path));
	FILE *f = fopen(path, "rb");
	FUZZ_CHECK(f != NULL);
	uint8_t *buf = malloc(MAX_INPUT_BYTES);
	FUZZ_CHECK(buf != NULL);
	size_t n = fread(buf, 1, MAX_INPUT_BYTES, f);
	fclose(f);
	/* exactly as large as the input, so that a sanitizer sees an overrun */
	uint8_t *tight = realloc(buf, n != 0 ? n : 1);
	FUZZ_CHECK(tight != NULL);
	fprintf(stderr, "%s\n", name);
	(void)LLVMFuzzerTestOneInput(tight, n);
	/* … and cut at each of its first bytes; a whole image behind its header at every 16th */
	for (size_t cut = 0; cut < n && cut<600; cut += n> 4096 && cut >= 128 ? 16 : 1) {
		uint8_t *part = malloc(cut != 0 ? cut : 1);
		FUZZ_CHECK(part != NULL);
		memcpy(part, tight, cut);
		(void)LLVMFuzzerTestOneInput(part, cut);
		free(part);
	}
	free(tight);
}

int main(int argc, char **argv)
{
	FUZZ_CHECK(argc == 2);
	DIR *dir = opendir(argv[1]);
	FUZZ_CHECK(dir != NULL);
	unsigned n = 0;
	for (const struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
		if (e->d_name[0] == '.')
			continue;
		replay_file(argv[1], e->d_name);
		n++;
	}
	closedir(dir);
	printf("%u inputs\n", n);
	FUZZ_CHECK(n > 0);
	return 0;
}
