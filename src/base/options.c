/* SPDX-License-Identifier: MIT */
#include "base/options.h"

#include <string.h>

enum qcow_status qk_options_take(
	const struct qk_options_kind *kind, const void *in, void *out, struct qcow_error *err)
{
	const uint8_t *bytes = in;
	uint32_t n = 0;
	memcpy(out, kind->defaults, kind->size);
	if (in == NULL)
		return QCOW_OK;
	memcpy(&n, in, sizeof(n));
	if (n < kind->least)
		return QK_FAIL(err, QCOW_E_INVAL,
			"struct_size of the %s is %u: initialise them with %s", kind->what, n,
			kind->init);
	for (size_t i = kind->size; i < n; i++)
		if (bytes[i] != 0)
			return QK_FAIL(err, QCOW_E_UNSUPPORTED,
				"byte %zu of the %s asks for something that this version does not "
				"know",
				i, kind->what);
	memcpy(out, in, n < kind->size ? n : kind->size);
	n = (uint32_t)kind->size;
	memcpy(out, &n, sizeof(n));
	return QCOW_OK;
}
