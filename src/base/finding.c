/* SPDX-License-Identifier: MIT */
/*
 * finding: the table of findings.h in words. In the lowest room, for every room above names findings.
 */
#include <qcowkit/findings.h>
#include <qcowkit/qcowkit.h>

#include <stddef.h>

static const struct {
	unsigned id;
	enum qcow_severity severity;
	const char *name, *text;
} findings[] = {
#define ROW(id, name, severity, text) {(id), QCOW_SEVERITY_##severity, #name, text},
	QCOW_FINDINGS(ROW)
#undef ROW
};

#define N_FINDINGS (sizeof(findings) / sizeof(findings[0]))

/* Index of `id`, or N_FINDINGS. */
static size_t find(unsigned id)
{
	size_t i = 0;
	while (i < N_FINDINGS && findings[i].id != id)
		i++;
	return i;
}

const char *qcow_finding_name(unsigned id)
{
	size_t i = find(id);
	return i < N_FINDINGS ? findings[i].name : NULL;
}

const char *qcow_finding_text(unsigned id)
{
	size_t i = find(id);
	return i < N_FINDINGS ? findings[i].text : NULL;
}

enum qcow_severity qcow_finding_severity(unsigned id)
{
	size_t i = find(id);
	return i < N_FINDINGS ? findings[i].severity : (enum qcow_severity)0;
}
