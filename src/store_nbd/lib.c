/* SPDX-License-Identifier: MIT */
#include "store_nbd/lib.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "base/err.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct qk_libnbd lib;
static bool is_there;

static bool find(void *handle, const char *name, void *call, size_t bytes)
{
	void *symbol = dlsym(handle, name);
	memcpy(call, &symbol, bytes);
	return symbol != NULL;
}

static void load(void)
{
	void *handle = dlopen("libnbd.so.0", RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL)
		return;
	bool found = true;
#define FIND(call) found = find(handle, "nbd_" #call, &lib.call, sizeof(lib.call)) && found;
	QK_LIBNBD_CALLS(FIND)
	is_there = found;
}

enum qcow_status qk_libnbd_load(const struct qk_libnbd **out, struct qcow_error *err)
{
	(void)pthread_once(&once, load);
	if (!is_there)
		return QK_FAIL(
			err, QCOW_E_UNSUPPORTED, "NBD needs libnbd.so.0, which cannot be loaded");
	*out = &lib;
	return QCOW_OK;
}
