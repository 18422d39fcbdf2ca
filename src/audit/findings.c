/* SPDX-License-Identifier: MIT */
/*
 * findings: the names, severities and sentences of <qcowkit/findings.h>, for programs that print them.
 */
#include <stddef.h>
#include <qcowkit/qcowkit.h>

struct row {
	const char *name;
	const char *text;
	enum qcow_severity severity;
};

static const struct row rows[] = {
#define ROW(id, name, severity, sentence) [id] = {#name, sentence, QCOW_SEVERITY_##severity},
	QCOW_FINDINGS(ROW)
#undef ROW
};

static const struct row *find_row(unsigned id)
{
	static const struct row none = {0};

	return id < sizeof(rows) / sizeof(rows[0]) ? &rows[id] : &none;
}

const char *qcow_finding_name(unsigned id)
{
	return find_row(id)->name;
}

const char *qcow_finding_text(unsigned id)
{
	return find_row(id)->text;
}

enum qcow_severity qcow_finding_severity(unsigned id)
{
	return find_row(id)->severity;
}
