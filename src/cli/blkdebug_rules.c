/* SPDX-License-Identifier: MIT */
#include "cli/blkdebug_rules.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

static const char *const events[] = {"l1_update", "l1_grow_alloc_table", "l1_grow_write_table",
	"l1_grow_activate_table", "l2_load", "l2_update", "l2_update_compressed",
	"l2_alloc_cow_read", "l2_alloc_write", "read_aio", "read_backing_aio", "read_compressed",
	"write_aio", "write_compressed", "vmstate_load", "vmstate_save", "cow_read", "cow_write",
	"reftable_load", "reftable_grow", "reftable_update", "refblock_load", "refblock_update",
	"refblock_update_part", "refblock_alloc", "refblock_alloc_hookup", "refblock_alloc_write",
	"refblock_alloc_write_blocks", "refblock_alloc_write_table", "refblock_alloc_switch_table",
	"cluster_alloc", "cluster_alloc_bytes", "cluster_free", "flush_to_os", "flush_to_disk",
	"pwritev_rmw_head", "pwritev_rmw_after_head", "pwritev_rmw_tail", "pwritev_rmw_after_tail",
	"pwritev", "pwritev_zero", "pwritev_done", "empty_image_prepare", "l1_shrink_write_table",
	"l1_shrink_free_l2_clusters", "cor_write", "cluster_alloc_space", "none"};

const char *blkdebug_event_name(const char *name)
{
	for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++)
		if (strcmp(events[i], name) == 0)
			return events[i];
	return NULL;
}

void blkdebug_free_rules(struct blkdebug_rule *rules)
{
	while (rules != NULL) {
		struct blkdebug_rule *next = rules->next;
		free(rules->tag);
		free(rules);
		rules = next;
	}
}

/* ---- values: typed in JSON, text in option strings and config files ---- */

static enum qcow_status read_number(
	const json_t *spec, const char *key, uint64_t *out, struct qcow_error *err)
{
	const json_t *value = json_object_get(spec, key);
	const char *text = json_string_value(value);
	bool out_of_range = false;
	if (value == NULL)
		return QCOW_OK;
	if (json_is_integer(value) && json_integer_value(value) >= 0)
		*out = (uint64_t)json_integer_value(value);
	else if (text == NULL || cli_read_size(text, out, &out_of_range) != NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "Parameter '%s' expects a number", key);
	return QCOW_OK;
}

static enum qcow_status read_bool(
	const json_t *spec, const char *key, bool *out, struct qcow_error *err)
{
	const json_t *value = json_object_get(spec, key);
	const char *text = json_string_value(value);
	if (value == NULL)
		return QCOW_OK;
	if (json_is_boolean(value))
		*out = json_is_true(value);
	else if (text == NULL || !cli_read_bool(text, out))
		return QK_FAIL(err, QCOW_E_INVAL, "Parameter '%s' expects 'on' or 'off'", key);
	return QCOW_OK;
}

static enum qcow_status read_iotype(const json_t *spec, unsigned *out, struct qcow_error *err)
{
	static const char *const words[] = {"read", "write", "write-zeroes", "discard", "flush"};
	const char *text = json_string_value(json_object_get(spec, "iotype"));
	if (text == NULL)
		return QCOW_OK;
	*out = 0;
	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcmp(words[i], text) == 0)
			*out = 1u << i;
	return *out != 0 ? QCOW_OK : QK_FAIL(err, QCOW_E_INVAL, "Invalid iotype '%s'", text);
}

static enum qcow_status fill_inject(
	const json_t *spec, struct blkdebug_rule *rule, struct qcow_error *err)
{
	uint64_t os_errno = EIO, sector = UINT64_MAX;
	bool immediately = false; /* when the failure shows makes no difference to threads */
	rule->io = BLKDEBUG_READ | BLKDEBUG_WRITE | BLKDEBUG_ZERO | BLKDEBUG_DISCARD |
		   BLKDEBUG_FLUSH;
	QK_TRY(read_number(spec, "errno", &os_errno, err));
	QK_TRY(read_number(spec, "sector", &sector, err));
	QK_TRY(read_bool(spec, "once", &rule->once, err));
	QK_TRY(read_bool(spec, "immediately", &immediately, err));
	QK_TRY(read_iotype(spec, &rule->io, err));
	if (os_errno == 0 || os_errno > 4095)
		return QK_FAIL(err, QCOW_E_INVAL, "Parameter 'errno' is out of range");
	rule->os_errno = (int)os_errno;
	rule->off = sector > UINT64_MAX / 512 ? UINT64_MAX : sector * 512;
	return QCOW_OK;
}

/* One rule of the list `name`. */
static enum qcow_status add_rule(
	const json_t *spec, const char *name, struct blkdebug_rule **rules, struct qcow_error *err)
{
	const char *event = json_string_value(json_object_get(spec, "event"));
	bool is_inject = strcmp(name, "inject-error") == 0;
	if (event == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "Missing event name for rule");
	if (blkdebug_event_name(event) == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "Invalid event name \"%s\"", event);
	struct blkdebug_rule *rule = qk_calloc(1, sizeof(*rule));
	if (rule == NULL)
		return QK_FAIL_NOMEM(err);
	while (*rules != NULL)
		rules = &(*rules)->next;
	*rules = rule;
	rule->event = blkdebug_event_name(event);
	rule->action = is_inject ? BLKDEBUG_INJECT : BLKDEBUG_SET_STATE;
	QK_TRY(read_number(spec, "state", &rule->state, err));
	QK_TRY(read_number(spec, "new_state", &rule->new_state, err));
	return is_inject ? fill_inject(spec, rule, err) : QCOW_OK;
}

/* A list: an array, or of option strings an object "0", "1" … */
static enum qcow_status add_list(
	const json_t *spec, const char *name, struct blkdebug_rule **rules, struct qcow_error *err)
{
	json_t *list = json_object_get(spec, name), *value = NULL;
	const char *key = NULL;
	size_t i = 0;
	json_array_foreach(list, i, value) QK_TRY(add_rule(value, name, rules, err));
	json_object_foreach(list, key, value) QK_TRY(add_rule(value, name, rules, err));
	return QCOW_OK;
}

/* ---- the config file: [inject-error], then key = "value" ---- */

static char *trim(char *text)
{
	while (isspace((unsigned char)*text))
		text++;
	size_t n = strlen(text);
	while (n > 0 && isspace((unsigned char)text[n - 1]))
		text[--n] = '\0';
	return text;
}

static char *unquote(char *text)
{
	size_t n = strlen(text);
	if (n >= 2 && text[0] == '"' && text[n - 1] == '"') {
		text[n - 1] = '\0';
		return text + 1;
	}
	return text;
}

/* One line into `config`, {"inject-error": [{…}, …], "set-state": […]}. */
static enum qcow_status take_line(
	json_t *config, json_t **section, char *line, unsigned number, struct qcow_error *err)
{
	line = trim(line);
	size_t n = strlen(line);
	char *equals = strchr(line, '=');
	if (n == 0 || line[0] == '#')
		return QCOW_OK;
	if (line[0] == '[' && line[n - 1] == ']') {
		line[n - 1] = '\0';
		json_t *list = json_object_get(config, line + 1);
		if (list == NULL)
			return QK_FAIL(
				err, QCOW_E_INVAL, "There is no option group '%s'", line + 1);
		*section = json_object();
		return json_array_append_new(list, *section) == 0 ? QCOW_OK : QK_FAIL_NOMEM(err);
	}
	if (*section == NULL || equals == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "parse error in line %u of the config", number);
	*equals = '\0';
	json_t *value = json_string(unquote(trim(equals + 1)));
	if (value == NULL || json_object_set_new(*section, trim(line), value) != 0)
		return QK_FAIL(err, QCOW_E_INVAL, "parse error in line %u of the config", number);
	return QCOW_OK;
}

static enum qcow_status read_config(const char *path, json_t *config, struct qcow_error *err)
{
	QK_AUTO_FREE char *line = NULL;
	json_t *section = NULL;
	size_t room = 0;
	unsigned number = 0;
	enum qcow_status status = QCOW_OK;
	struct stat st;
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	bool is_file = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
	FILE *f = is_file ? fdopen(fd, "r") : NULL;
	if (f == NULL) {
		int os_errno = fd < 0 ? errno : EINVAL;
		if (fd >= 0)
			(void)close(fd);
		return QK_FAIL_OS(err, os_errno, "Could not read blkdebug config file");
	}
	while (status == QCOW_OK && getline(&line, &room, f) >= 0)
		status = take_line(config, &section, line, ++number, err);
	if (status == QCOW_OK && ferror(f) != 0)
		status = QK_FAIL_OS(err, EIO, "Could not read blkdebug config file");
	(void)fclose(f);
	return status;
}

enum qcow_status blkdebug_read_rules(
	const json_t *spec, struct blkdebug_rule **rules, struct qcow_error *err)
{
	const char *path = json_string_value(json_object_get(spec, "config"));
	enum qcow_status status = QCOW_OK;
	if (path != NULL && path[0] != '\0') {
		json_t *config = json_pack("{s:[],s:[]}", "inject-error", "set-state");
		status = config != NULL ? read_config(path, config, err) : QK_FAIL_NOMEM(err);
		if (status == QCOW_OK)
			status = add_list(config, "inject-error", rules, err);
		if (status == QCOW_OK)
			status = add_list(config, "set-state", rules, err);
		json_decref(config);
	}
	if (status == QCOW_OK)
		status = add_list(spec, "inject-error", rules, err);
	return status == QCOW_OK ? add_list(spec, "set-state", rules, err) : status;
}
