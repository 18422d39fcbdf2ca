/* SPDX-License-Identifier: MIT */
#include "serve/nbd/tlslib.h"

#include <pthread.h>

#include "base/dl.h"
#include "base/err.h"

#define NAME(call) "gnutls_" #call,

static const char *const names[] = {QK_GNUTLS_CALLS(NAME)};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct qk_gnutls lib;
static bool is_there;

_Static_assert(sizeof(lib) == sizeof(names), "a pointer for each name");

static void load(void)
{
	is_there = qk_dl_load("libgnutls.so.30", names, sizeof(names) / sizeof(names[0]), &lib);
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
