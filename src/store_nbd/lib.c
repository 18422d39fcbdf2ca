/* SPDX-License-Identifier: MIT */
#include "store_nbd/lib.h"

#include <pthread.h>

#include "base/dl.h"
#include "base/err.h"

#define NAME(call) "nbd_" #call,

static const char *const names[] = {QK_LIBNBD_CALLS(NAME)};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct qk_libnbd lib;
static bool is_there;

_Static_assert(sizeof(lib) == sizeof(names), "a pointer for each name");

static void load(void)
{
	is_there = qk_dl_load("libnbd.so.0", names, sizeof(names) / sizeof(names[0]), &lib);
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
