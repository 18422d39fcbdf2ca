/* SPDX-License-Identifier: MIT */
/*
 * dl: a shared library loaded when it is first needed, for programs alone: who is linked with a large one starts with all
 * that it needs, whatever is to be done. Each user has a struct of pointers to the calls that it makes, in the order of a
 * list of names, and a pthread_once.
 */
#ifndef QK_BASE_DL_H
#define QK_BASE_DL_H

#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Load `file` for as long as the process lives, and fill the n pointers at `calls`. False where it, or one of the
 * names, is not there. */
static inline bool qk_dl_load(const char *file, const char *const *names, size_t n, void *calls)
{
	void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
	bool found = handle != NULL;
	for (size_t i = 0; i < n && found; i++) {
		void *symbol = dlsym(handle, names[i]);
		memcpy((char *)calls + i * sizeof(symbol), &symbol, sizeof(symbol));
		found = symbol != NULL;
	}
	return found;
}

#endif
