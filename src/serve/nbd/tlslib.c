/* SPDX-License-Identifier: MIT */
#include "serve/nbd/tlslib.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "base/err.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct qk_gnutls lib;
static bool is_there;

static bool find(void *handle, const char *name, void *call, size_t bytes)
{
	void *symbol = dlsym(handle, name);
	memcpy(call, &symbol, bytes);
	return symbol != NULL;
}

static void load(void)
{
	void *handle = dlopen("libgnutls.so.30", RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL)
		return;
	bool found = true;
#define FIND(call) found = find(handle, "gnutls_" #call, &lib.call, sizeof(lib.call)) && found;
	QK_GNUTLS_CALLS(FIND)
	is_there = found;
}

enum qcow_status qk_gnutls_load(const struct qk_gnutls **out, struct qcow_error *err)
{
	(void)pthread_once(&once, load);
	if (!is_there)
		return QK_FAIL(err, QCOW_E_UNSUPPORTED,
			"TLS needs libgnutls.so.30, which cannot be loaded");
	*out = &lib;
	return QCOW_OK;
}
