/* SPDX-License-Identifier: MIT */
#include "cli/blkdebug.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/num.h"
#include "cli/blkdebug_rules.h"
#include "cli/blkdebug_where.h"
#include "cli/spec.h"

enum {
	WAIT_NS = 20 * 1000 * 1000
};

/* A request that stands at a break. */
struct stop {
	struct stop *next;
	const char *tag;
	bool may_go;
};

struct cli_blkdebug {
	struct cli_blkdebug *next;
	struct cli *cli;
	struct qcow_store *below;
	uint32_t align;
	uint64_t max_transfer, max_zero, max_discard; /* UINT64_MAX: no limit */
	pthread_mutex_t lock; /* of all that follows */
	pthread_cond_t moved; /* a request has stopped, or may go on */
	bool no_flush;
	struct blkdebug_rule *rules;
	struct blkdebug_where where;
	uint64_t state;
	struct stop *stops;
};

/* ---- rules; the lock is held ---- */

/* Stand at a break until somebody says resume. The rule is used up. */
static void stop_here(struct cli_blkdebug *d, char *tag)
{
	struct stop stop = {.next = d->stops, .tag = tag};
	d->stops = &stop;
	(void)printf("blkdebug: Suspended request '%s'\n", tag);
	(void)pthread_cond_broadcast(&d->moved);
	while (!stop.may_go)
		(void)pthread_cond_wait(&d->moved, &d->lock);
	struct stop **at = &d->stops;
	while (*at != &stop)
		at = &(*at)->next;
	*at = stop.next;
	(void)pthread_cond_broadcast(&d->moved);
	free(tag);
}

/* Take the break rule for this event out of the list: its tag, the caller's to free, or NULL. */
static char *take_break(struct cli_blkdebug *d, const char *event)
{
	for (struct blkdebug_rule **at = &d->rules; *at != NULL; at = &(*at)->next) {
		struct blkdebug_rule *rule = *at;
		if (rule->action != BLKDEBUG_BREAK || strcmp(rule->event, event) != 0)
			continue;
		char *tag = rule->tag;
		*at = rule->next;
		free(rule);
		return tag;
	}
	return NULL;
}

static void happen(struct cli_blkdebug *d, const char *event)
{
	uint64_t new_state = d->state;
	bool injects = false;
	for (struct blkdebug_rule *r = d->rules; r != NULL; r = r->next) {
		if (strcmp(r->event, event) != 0 || (r->state != 0 && r->state != d->state))
			continue;
		if (r->action == BLKDEBUG_SET_STATE)
			new_state = r->new_state;
		if (r->action != BLKDEBUG_INJECT)
			continue;
		/* what this event injects takes the place of what an earlier one did */
		for (struct blkdebug_rule *o = d->rules; !injects && o != NULL; o = o->next)
			o->is_active = false;
		injects = r->is_active = true;
	}
	d->state = new_state;
	char *tag = take_break(d, event);
	if (tag != NULL)
		stop_here(d, tag);
}

/* Does a rule in force fail this request? */
static enum qcow_status judge(
	struct cli_blkdebug *d, unsigned io, uint64_t off, uint64_t len, struct qcow_error *err)
{
	for (struct blkdebug_rule **at = &d->rules; *at != NULL; at = &(*at)->next) {
		struct blkdebug_rule *r = *at;
		bool covers = r->off == UINT64_MAX || (r->off >= off && r->off - off < len);
		if (r->action != BLKDEBUG_INJECT || !r->is_active || (r->io & io) == 0 || !covers)
			continue;
		int os_errno = r->os_errno;
		if (r->once) {
			*at = r->next;
			r->next = NULL;
			blkdebug_free_rules(r);
		}
		enum qcow_status status = qk_status_from_errno(os_errno);
		(void)QK_FAIL(err, status, "blkdebug: %s", strerror(os_errno));
		if (err != NULL)
			err->os_errno = os_errno;
		return status;
	}
	return QCOW_OK;
}

/* ---- the store ---- */

static const char *read_event(struct cli_blkdebug *d, uint64_t off)
{
	switch (blkdebug_place_of(&d->where, d->below, off)) {
	case BLKDEBUG_L2:
		return "l2_load";
	case BLKDEBUG_REFTABLE:
		return "reftable_load";
	case BLKDEBUG_REFBLOCK:
		return "refblock_load";
	case BLKDEBUG_DATA:
		return "read_aio";
	default:
		return NULL;
	}
}

static const char *write_event(struct cli_blkdebug *d, uint64_t off)
{
	switch (blkdebug_place_of(&d->where, d->below, off)) {
	case BLKDEBUG_L1:
		return "l1_update";
	case BLKDEBUG_L2:
		return "l2_update";
	case BLKDEBUG_REFTABLE:
		return "reftable_update";
	case BLKDEBUG_REFBLOCK:
		return "refblock_update";
	case BLKDEBUG_DATA:
		return "write_aio";
	default:
		return NULL;
	}
}

static enum qcow_status before_read(
	struct cli_blkdebug *d, uint64_t off, uint64_t len, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&d->lock);
	const char *event = d->rules != NULL ? read_event(d, off) : NULL;
	if (event != NULL)
		happen(d, event);
	enum qcow_status status = judge(d, BLKDEBUG_READ, off, len, err);
	(void)pthread_mutex_unlock(&d->lock);
	return status;
}

static enum qcow_status before_write(
	struct cli_blkdebug *d, uint64_t off, uint64_t len, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&d->lock);
	if (d->rules != NULL) {
		const char *event = write_event(d, off);
		happen(d, "pwritev");
		if (event != NULL)
			happen(d, event);
		if (event != NULL && strcmp(event, "refblock_update") == 0)
			happen(d, "refblock_update_part");
	}
	enum qcow_status status = judge(d, BLKDEBUG_WRITE, off, len, err);
	(void)pthread_mutex_unlock(&d->lock);
	return status;
}

static enum qcow_status before_other(struct cli_blkdebug *d, const char *event, unsigned io,
	uint64_t off, uint64_t len, struct qcow_error *err)
{
	(void)pthread_mutex_lock(&d->lock);
	happen(d, event);
	enum qcow_status status = judge(d, io, off, len, err);
	(void)pthread_mutex_unlock(&d->lock);
	return status;
}

/* The tables may have changed. After the write, so that what is read again is what was written. */
static void after_write(struct cli_blkdebug *d, uint64_t off, uint64_t len)
{
	(void)pthread_mutex_lock(&d->lock);
	blkdebug_note_write(&d->where, off, len);
	(void)pthread_mutex_unlock(&d->lock);
}

/* The first `bytes` of what *iov still holds, as one buffer after another. */
static struct iovec take_part(const struct iovec **iov, size_t *used, uint64_t bytes)
{
	const struct iovec *v = *iov;
	size_t left = v->iov_len - *used;
	struct iovec part = {(uint8_t *)v->iov_base + *used, (size_t)qk_min(left, bytes)};
	*used += part.iov_len;
	if (*used == v->iov_len) {
		(*iov)++;
		*used = 0;
	}
	return part;
}

static enum qcow_status move_whole(struct cli_blkdebug *d, bool is_write, const struct iovec *iov,
	int n_iov, uint64_t off, struct qcow_error *err)
{
	uint64_t len = 0;
	for (int i = 0; i < n_iov; i++)
		len += iov[i].iov_len;
	if (!is_write)
		QK_TRY(before_read(d, off, len, err));
	/* with align a whole block may be asked for at the end */
	for (int i = 0; !is_write && d->align > 1 && i < n_iov; i++) {
		QK_TRY(qcow_store_read_padded(d->below, iov[i].iov_base, iov[i].iov_len, off, err));
		off += iov[i].iov_len;
	}
	if (!is_write)
		return d->align > 1 ? QCOW_OK : qcow_store_readv(d->below, iov, n_iov, off, err);
	QK_TRY(before_write(d, off, len, err));
	enum qcow_status status = qcow_store_writev(d->below, iov, n_iov, off, err);
	after_write(d, off, len);
	return status;
}

/* In requests of at most max-transfer. */
static enum qcow_status move(struct cli_blkdebug *d, bool is_write, const struct iovec *iov,
	int n_iov, uint64_t off, struct qcow_error *err)
{
	const struct iovec *end = iov + n_iov;
	size_t used = 0;
	if (d->max_transfer == UINT64_MAX)
		return move_whole(d, is_write, iov, n_iov, off, err);
	while (iov < end) {
		struct iovec part = take_part(&iov, &used, d->max_transfer);
		QK_TRY(move_whole(d, is_write, &part, 1, off, err));
		off += part.iov_len;
	}
	return QCOW_OK;
}

static enum qcow_status node_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	return move(ctx, false, iov, n_iov, off, err);
}

static enum qcow_status node_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	return move(ctx, true, iov, n_iov, off, err);
}

static enum qcow_status node_flush(void *ctx, struct qcow_error *err)
{
	struct cli_blkdebug *d = ctx;
	QK_TRY(before_other(d, "flush_to_os", 0, 0, 0, err));
	if (d->no_flush)
		return QCOW_OK;
	QK_TRY(before_other(d, "flush_to_disk", BLKDEBUG_FLUSH, 0, 0, err));
	return qcow_store_flush(d->below, err);
}

static enum qcow_status node_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	struct cli_blkdebug *d = ctx;
	return qcow_store_size(d->below, size_bytes, err);
}

static enum qcow_status node_truncate(void *ctx, uint64_t size_bytes, struct qcow_error *err)
{
	struct cli_blkdebug *d = ctx;
	return qcow_store_truncate(d->below, size_bytes, err);
}

static enum qcow_status node_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	struct cli_blkdebug *d = ctx;
	for (uint64_t at = 0; at < len;) {
		uint64_t part = qk_min(len - at, d->max_zero);
		QK_TRY(before_other(d, "pwritev_zero", BLKDEBUG_ZERO, off + at, part, err));
		QK_TRY(qcow_store_zero(d->below, off + at, part, flags, err));
		after_write(d, off + at, part);
		at += part;
	}
	return QCOW_OK;
}

static enum qcow_status node_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct cli_blkdebug *d = ctx;
	for (uint64_t at = 0; at < len;) {
		/* cut at multiples, for who lies below discards in units of its own */
		uint64_t part = qk_min(len - at, d->max_discard - (off + at) % d->max_discard);
		QK_TRY(before_other(d, "cluster_free", BLKDEBUG_DISCARD, off + at, part, err));
		QK_TRY(qcow_store_punch(d->below, off + at, part, err));
		at += part;
	}
	return QCOW_OK;
}

static enum qcow_status node_extents(void *ctx, uint64_t off, uint64_t len,
	struct qcow_store_extent *out, struct qcow_error *err)
{
	struct cli_blkdebug *d = ctx;
	return qcow_store_extents(d->below, off, len, out, err);
}

static void node_caps(void *ctx, struct qcow_store_caps *out)
{
	struct cli_blkdebug *d = ctx;
	qcow_store_caps(d->below, out);
	out->request_align = d->align > out->request_align ? d->align : out->request_align;
	out->can_clone = false;
}

static void free_node(struct cli_blkdebug *d)
{
	blkdebug_free_rules(d->rules);
	blkdebug_where_release(&d->where);
	(void)pthread_cond_destroy(&d->moved);
	(void)pthread_mutex_destroy(&d->lock);
	free(d);
}

static void node_close(void *ctx)
{
	struct cli_blkdebug *d = ctx, **at = &d->cli->blkdebugs;
	while (*at != NULL && *at != d)
		at = &(*at)->next;
	if (*at == d)
		*at = d->next;
	qcow_store_close(d->below);
	free_node(d);
}

static const struct qcow_store_ops node_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "blkdebug",
	.preadv = node_preadv,
	.pwritev = node_pwritev,
	.flush = node_flush,
	.size = node_size,
	.truncate = node_truncate,
	.zero = node_zero,
	.punch = node_punch,
	.extents = node_extents,
	.caps = node_caps,
	.close = node_close,
};

/* ---- making one ---- */

static enum qcow_status read_limit(
	struct cli *cli, const json_t *spec, const char *key, uint64_t *out, struct qcow_error *err)
{
	*out = 0;
	QK_TRY(cli_spec_u64(cli, spec, key, out, err));
	if (*out % 512 != 0)
		return QK_FAIL(err, QCOW_E_INVAL, "%s is no multiple of 512", key);
	*out = *out != 0 ? *out : UINT64_MAX;
	return QCOW_OK;
}

static enum qcow_status read_options(
	struct cli_blkdebug *d, const json_t *spec, struct qcow_error *err)
{
	uint64_t align = 0;
	QK_TRY(cli_spec_u64(d->cli, spec, "align", &align, err));
	if (align > (UINT64_C(1) << 30) || (align & (align - 1)) != 0)
		return QK_FAIL(err, QCOW_E_INVAL, "Cannot meet constraints with align %llu",
			(unsigned long long)align);
	d->align = align != 0 ? (uint32_t)align : 1;
	QK_TRY(read_limit(d->cli, spec, "max-transfer", &d->max_transfer, err));
	QK_TRY(read_limit(d->cli, spec, "max-write-zero", &d->max_zero, err));
	QK_TRY(read_limit(d->cli, spec, "max-discard", &d->max_discard, err));
	return blkdebug_read_rules(spec, &d->rules, err);
}

enum qcow_status cli_blkdebug_new(struct cli *cli, const json_t *spec, struct qcow_store *below,
	bool no_flush, struct qcow_store **out, struct qcow_error *err)
{
	struct cli_blkdebug *d = qk_calloc(1, sizeof(*d));
	if (d == NULL)
		return QK_FAIL_NOMEM(err);
	d->cli = cli;
	d->state = 1;
	d->no_flush = no_flush;
	(void)pthread_mutex_init(&d->lock, NULL);
	(void)pthread_cond_init(&d->moved, NULL);
	enum qcow_status status = read_options(d, spec, err);
	d->below = below;
	if (status == QCOW_OK)
		status = qcow_store_new(&node_ops, d, out, err);
	if (status != QCOW_OK) {
		free_node(d);
		return status;
	}
	d->next = cli->blkdebugs;
	cli->blkdebugs = d;
	happen(d, "none");
	/* without memory for a name it goes by that of its kind */
	status = qcow_store_set_name(*out, qcow_store_name(below), NULL);
	(void)status;
	return QCOW_OK;
}

/* ---- from above ---- */

enum qcow_status cli_blkdebug_event(
	struct cli *cli, const char *event, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct cli_blkdebug *d = cli->blkdebugs;
	return d != NULL ? before_other(d, event, BLKDEBUG_WRITE, off, len, err) : QCOW_OK;
}

int cli_blkdebug_break(struct cli *cli, const char *event, const char *tag)
{
	struct cli_blkdebug *d = cli->blkdebugs;
	if (d == NULL)
		return ENOTSUP;
	const char *name = blkdebug_event_name(event);
	if (name == NULL)
		return ENOENT;
	struct blkdebug_rule *rule = qk_calloc(1, sizeof(*rule));
	char *copy = strdup(tag);
	if (rule == NULL || copy == NULL) {
		free(rule);
		free(copy);
		return ENOMEM;
	}
	*rule = (struct blkdebug_rule){.action = BLKDEBUG_BREAK, .event = name, .tag = copy};
	(void)pthread_mutex_lock(&d->lock);
	rule->next = d->rules;
	d->rules = rule;
	(void)pthread_mutex_unlock(&d->lock);
	return 0;
}

static void go(struct stop *stop)
{
	(void)printf("blkdebug: Resuming request '%s'\n", stop->tag);
	stop->may_go = true;
}

/* Let those that stand at `tag` go on: all, or the one that has stood longest. The lock is held. */
static bool let_go(struct cli_blkdebug *d, const char *tag, bool all)
{
	struct stop *oldest = NULL;
	for (struct stop *s = d->stops; s != NULL; s = s->next)
		if (!s->may_go && strcmp(s->tag, tag) == 0) {
			oldest = s;
			if (all)
				go(s);
		}
	if (oldest != NULL && !all)
		go(oldest);
	(void)pthread_cond_broadcast(&d->moved);
	return oldest != NULL;
}

int cli_blkdebug_resume(struct cli *cli, const char *tag)
{
	struct cli_blkdebug *d = cli->blkdebugs;
	if (d == NULL)
		return ENOTSUP;
	(void)pthread_mutex_lock(&d->lock);
	bool found = let_go(d, tag, false);
	(void)pthread_mutex_unlock(&d->lock);
	return found ? 0 : ENOENT;
}

int cli_blkdebug_remove_break(struct cli *cli, const char *tag)
{
	struct cli_blkdebug *d = cli->blkdebugs;
	if (d == NULL)
		return ENOTSUP;
	(void)pthread_mutex_lock(&d->lock);
	bool found = false;
	for (struct blkdebug_rule **at = &d->rules; *at != NULL;) {
		struct blkdebug_rule *r = *at;
		if (r->action != BLKDEBUG_BREAK || strcmp(r->tag, tag) != 0) {
			at = &r->next;
			continue;
		}
		*at = r->next;
		r->next = NULL;
		blkdebug_free_rules(r);
		found = true;
	}
	found = let_go(d, tag, true) || found;
	(void)pthread_mutex_unlock(&d->lock);
	return found ? 0 : ENOENT;
}

/* Does one stand at `tag`, and how many stand anywhere? The lock is held. */
static bool stands_at(const struct cli_blkdebug *d, const char *tag, size_t *n_standing)
{
	bool found = false;
	*n_standing = 0;
	for (const struct stop *s = d->stops; s != NULL; s = s->next) {
		if (s->may_go)
			continue;
		(*n_standing)++;
		found = found || strcmp(s->tag, tag) == 0;
	}
	return found;
}

int cli_blkdebug_wait(
	struct cli *cli, const char *tag, size_t (*in_flight)(const void *ctx), const void *ctx)
{
	struct cli_blkdebug *d = cli->blkdebugs;
	if (d == NULL)
		return ENOTSUP;
	int rc = 0;
	size_t n_standing = 0;
	(void)pthread_mutex_lock(&d->lock);
	while (!stands_at(d, tag, &n_standing)) {
		if (in_flight(ctx) <= n_standing) {
			rc = ENOENT;
			break;
		}
		/* that a request ends is told to nobody: look again soon */
		struct timespec until;
		(void)clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += WAIT_NS;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		(void)pthread_cond_timedwait(&d->moved, &d->lock, &until);
	}
	(void)pthread_mutex_unlock(&d->lock);
	return rc;
}
