/* SPDX-License-Identifier: MIT */
/*
 * address: where an export is, from text and to text. Pure.
 */
#include "store_nbd/store_nbd.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static const char default_port[] = "10809";

static int digit_of(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A copy of n bytes with %XX undone. */
static enum qcow_status unescape(const char *text, size_t n, char **out, struct qcow_error *err)
{
	char *copy = qk_strndup(text, n);
	size_t used = 0;
	if (copy == NULL)
		return QK_FAIL_NOMEM(err);
	for (size_t i = 0; i < n; i++) {
		if (copy[i] != '%') {
			copy[used++] = copy[i];
			continue;
		}
		int high = i + 2 < n ? digit_of(text[i + 1]) : -1;
		int low = i + 2 < n ? digit_of(text[i + 2]) : -1;
		if (high < 0 || low < 0 || high + low == 0) {
			free(copy);
			return QK_FAIL(err, QCOW_E_INVAL,
				"'%.*s' has a %% that two hexadecimal digits do not follow", (int)n,
				text);
		}
		copy[used++] = (char)(high * 16 + low);
		i += 2;
	}
	copy[used] = '\0';
	free(*out);
	*out = copy;
	return QCOW_OK;
}

static enum qcow_status set(char **out, const char *text, size_t n, struct qcow_error *err)
{
	char *copy = qk_strndup(text, n);
	if (copy == NULL)
		return QK_FAIL_NOMEM(err);
	free(*out);
	*out = copy;
	return QCOW_OK;
}

/* One KEY=VALUE behind the question mark. */
static enum qcow_status take_query(
	struct qk_nbd_address *a, const char *item, size_t n, struct qcow_error *err)
{
	struct {
		const char *key;
		char **value;
	} const known[] = {
		{"socket", &a->path},
		{"tls-certificates", &a->tls_dir},
		{"tls-psk-file", &a->tls_psk_file},
		{"tls-username", &a->tls_username},
	};
	const char *equals = memchr(item, '=', n);
	size_t key = equals != NULL ? (size_t)(equals - item) : n;
	const char *value = equals != NULL ? equals + 1 : item + n;
	size_t value_bytes = (size_t)(item + n - value);
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strlen(known[i].key) == key && strncmp(item, known[i].key, key) == 0)
			return unescape(value, value_bytes, known[i].value, err);
	static const char verify[] = "tls-verify-peer";
	if (key == strlen(verify) && strncmp(item, verify, key) == 0) {
		a->no_verify = value_bytes > 0 && strchr("0nNfF", value[0]) != NULL;
		return QCOW_OK;
	}
	return QK_FAIL(err, QCOW_E_UNSUPPORTED, "'%.*s' in an NBD address is not built in",
		(int)key, item);
}

static enum qcow_status take_queries(
	struct qk_nbd_address *a, const char *text, struct qcow_error *err)
{
	while (*text != '\0') {
		size_t n = strcspn(text, "&;");
		if (n > 0)
			QK_TRY(take_query(a, text, n, err));
		text += n + (text[n] != '\0');
	}
	return QCOW_OK;
}

/* HOST[:PORT], HOST in brackets where it has colons. */
static enum qcow_status take_authority(
	struct qk_nbd_address *a, const char *text, size_t n, struct qcow_error *err)
{
	const char *end = text + n, *host_end = NULL, *colon = NULL;
	bool brackets = n > 0 && text[0] == '[';
	if (brackets) {
		text++;
		host_end = memchr(text, ']', (size_t)(end - text));
		if (host_end == NULL)
			return QK_FAIL(err, QCOW_E_INVAL, "an NBD address lacks a ']'");
		colon = host_end + 1 < end && host_end[1] == ':' ? host_end + 1 : NULL;
	} else {
		colon = memchr(text, ':', n);
		host_end = colon != NULL ? colon : end;
	}
	if (host_end == text)
		QK_TRY(set(&a->host, "localhost", strlen("localhost"), err));
	else
		QK_TRY(unescape(text, (size_t)(host_end - text), &a->host, err));
	if (colon != NULL && colon + 1 < end)
		return set(&a->port, colon + 1, (size_t)(end - colon - 1), err);
	return set(&a->port, default_port, strlen(default_port), err);
}

/* SCHEME is known to be one of ours; text begins behind "://". */
static enum qcow_status parse_uri(
	struct qk_nbd_address *a, const char *text, bool is_unix, struct qcow_error *err)
{
	size_t authority = strcspn(text, "/?");
	const char *name = text + authority;
	size_t name_bytes = strcspn(name, "?");
	const char *query = name + name_bytes;
	if (name_bytes > 0)
		QK_TRY(unescape(name + 1, name_bytes - 1, &a->export_name, err));
	else
		QK_TRY(set(&a->export_name, "", 0, err));
	if (*query == '?')
		QK_TRY(take_queries(a, query + 1, err));
	if (is_unix != (a->path != NULL))
		return QK_FAIL(err, QCOW_E_INVAL,
			is_unix ? "an NBD address with '+unix' needs '?socket=PATH'"
				: "'?socket=' is for NBD addresses with '+unix'");
	const char *at = memchr(text, '@', authority);
	if (at != NULL) {
		QK_TRY(unescape(text, (size_t)(at - text), &a->tls_username, err));
		authority -= (size_t)(at + 1 - text);
		text = at + 1;
	}
	return is_unix ? QCOW_OK : take_authority(a, text, authority, err);
}

/* "unix:PATH" or "HOST:PORT", then ":exportname=E". */
static enum qcow_status parse_words(
	struct qk_nbd_address *a, const char *text, struct qcow_error *err)
{
	static const char mark[] = ":exportname=", unix_word[] = "unix:";
	const char *name = strstr(text, mark);
	size_t n = name != NULL ? (size_t)(name - text) : strlen(text);
	name = name != NULL ? name + strlen(mark) : "";
	QK_TRY(set(&a->export_name, name, strlen(name), err));
	if (strncmp(text, unix_word, strlen(unix_word)) == 0)
		return set(&a->path, text + strlen(unix_word), n - strlen(unix_word), err);
	if (memchr(text, ':', n) == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "'nbd:%s' names no port", text);
	return take_authority(a, text, n, err);
}

static const struct {
	const char *begins;
	bool is_unix, tls;
} schemes[] = {
	{"nbd://", false, false},
	{"nbd+tcp://", false, false},
	{"nbd+unix://", true, false},
	{"nbds://", false, true},
	{"nbds+tcp://", false, true},
	{"nbds+unix://", true, true},
};

bool qk_nbd_is_name(const char *text)
{
	for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
		if (strncmp(text, schemes[i].begins, strlen(schemes[i].begins)) == 0)
			return true;
	return strncmp(text, "nbd:", strlen("nbd:")) == 0;
}

enum qcow_status qk_nbd_address_parse(
	const char *text, struct qk_nbd_address *out, struct qcow_error *err)
{
	*out = (struct qk_nbd_address){0};
	for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
		size_t n = strlen(schemes[i].begins);
		if (strncmp(text, schemes[i].begins, n) != 0)
			continue;
		out->tls = schemes[i].tls;
		return parse_uri(out, text + n, schemes[i].is_unix, err);
	}
	if (strncmp(text, "nbd:", strlen("nbd:")) == 0)
		return parse_words(out, text + strlen("nbd:"), err);
	return QK_FAIL(err, QCOW_E_INVAL, "'%s' is no NBD address", text);
}

/* NULL stays NULL. */
static bool copy_string(const char *from, char **out)
{
	*out = from != NULL ? qk_strndup(from, strlen(from)) : NULL;
	return from == NULL || *out != NULL;
}

enum qcow_status qk_nbd_address_copy(
	const struct qk_nbd_address *from, struct qk_nbd_address *out, struct qcow_error *err)
{
	*out = (struct qk_nbd_address){.tls = from->tls,
		.no_verify = from->no_verify,
		.open_timeout_s = from->open_timeout_s,
		.reconnect_delay_s = from->reconnect_delay_s};
	bool is_whole = copy_string(from->path, &out->path) &&
			copy_string(from->host, &out->host) &&
			copy_string(from->port, &out->port) &&
			copy_string(from->export_name, &out->export_name) &&
			copy_string(from->tls_dir, &out->tls_dir) &&
			copy_string(from->tls_psk_file, &out->tls_psk_file) &&
			copy_string(from->tls_username, &out->tls_username) &&
			copy_string(from->dirty_bitmap, &out->dirty_bitmap);
	return is_whole ? QCOW_OK : QK_FAIL_NOMEM(err);
}

void qk_nbd_address_release(struct qk_nbd_address *a)
{
	free(a->path);
	free(a->host);
	free(a->port);
	free(a->export_name);
	free(a->tls_dir);
	free(a->tls_psk_file);
	free(a->tls_username);
	free(a->dirty_bitmap);
	*a = (struct qk_nbd_address){0};
}

char *qk_nbd_address_text(const struct qk_nbd_address *a)
{
	char *text = NULL;
	const char *s = a->tls ? "s" : "";
	int n = 0;
	if (a->path != NULL)
		n = asprintf(&text, "nbd%s+unix://%s%s?socket=%s", s,
			a->export_name[0] != '\0' ? "/" : "", a->export_name, a->path);
	else
		n = asprintf(&text, "nbd%s://%s:%s%s%s", s, a->host, a->port,
			a->export_name[0] != '\0' ? "/" : "", a->export_name);
	return n >= 0 ? text : NULL;
}
