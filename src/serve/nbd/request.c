/* SPDX-License-Identifier: MIT */
/*
 * request: see request.h. Order of judgement: framing, command, flags, permission, range, block sizes.
 */
#include "serve/nbd/request.h"

#include "base/num.h"

/* The transmission flag without which a command may not be sent; 0: always. */
static unsigned needed_flag(uint16_t type)
{
	switch (type) {
	case QK_NBD_CMD_FLUSH:
		return QK_NBD_FLAG_SEND_FLUSH;
	case QK_NBD_CMD_TRIM:
		return QK_NBD_FLAG_SEND_TRIM;
	case QK_NBD_CMD_CACHE:
		return QK_NBD_FLAG_SEND_CACHE;
	case QK_NBD_CMD_WRITE_ZEROES:
		return QK_NBD_FLAG_SEND_WRITE_ZEROES;
	default:
		return 0;
	}
}

static unsigned allowed_flags(const struct qk_nbd_session *session, uint16_t type)
{
	unsigned flags = (session->flags & QK_NBD_FLAG_SEND_FUA) != 0 ? QK_NBD_CMD_FLAG_FUA : 0;
	bool has_payload = session->mode == QK_NBD_EXTENDED;
	if (type == QK_NBD_CMD_READ && (session->flags & QK_NBD_FLAG_SEND_DF) != 0)
		flags |= QK_NBD_CMD_FLAG_DF;
	if (type == QK_NBD_CMD_WRITE && has_payload)
		flags |= QK_NBD_CMD_FLAG_PAYLOAD_LEN;
	if (type == QK_NBD_CMD_WRITE_ZEROES)
		flags |= QK_NBD_CMD_FLAG_NO_HOLE | QK_NBD_CMD_FLAG_FAST_ZERO;
	if (type == QK_NBD_CMD_BLOCK_STATUS)
		flags |= QK_NBD_CMD_FLAG_REQ_ONE;
	if (type == QK_NBD_CMD_BLOCK_STATUS &&
		(session->flags & QK_NBD_FLAG_BLOCK_STATUS_PAYLOAD) != 0)
		flags |= QK_NBD_CMD_FLAG_PAYLOAD_LEN;
	return flags;
}

static bool is_write(uint16_t type)
{
	return type == QK_NBD_CMD_WRITE || type == QK_NBD_CMD_TRIM ||
	       type == QK_NBD_CMD_WRITE_ZEROES;
}

/* Length that the block size binds: what moves bytes, or may have to. */
static bool is_bounded(const struct qk_nbd_request *rq)
{
	return rq->type == QK_NBD_CMD_READ || rq->type == QK_NBD_CMD_WRITE ||
	       rq->type == QK_NBD_CMD_CACHE ||
	       (rq->type == QK_NBD_CMD_WRITE_ZEROES &&
		       (rq->flags & QK_NBD_CMD_FLAG_FAST_ZERO) == 0);
}

static void refuse(struct qk_nbd_judgement *j, uint32_t error, const char *message)
{
	j->verdict = QK_NBD_REFUSE;
	j->error = error;
	j->message = message;
}

static void judge_range(const struct qk_nbd_session *session, const struct qk_nbd_request *rq,
	struct qk_nbd_judgement *j)
{
	bool is_full = rq->type == QK_NBD_CMD_WRITE || rq->type == QK_NBD_CMD_WRITE_ZEROES;
	bool is_unaligned = ((rq->off | rq->len) & (session->min_block - 1)) != 0;
	bool is_default = session->min_block == 1 && session->max_block == QK_NBD_MAX_PAYLOAD;
	if (!qk_in_range(rq->off, rq->len, session->size))
		refuse(j, is_full ? QK_NBD_ENOSPC : QK_NBD_EINVAL,
			"the request goes past the end of the export");
	else if (is_unaligned)
		refuse(j, QK_NBD_EINVAL, "the request is no multiple of the minimum block size");
	else if (!is_default && is_bounded(rq) && rq->len > session->max_block)
		refuse(j, QK_NBD_EINVAL, "the request is larger than the maximum block size");
	else if (rq->type == QK_NBD_CMD_READ && rq->len > QK_NBD_MAX_PAYLOAD)
		refuse(j, QK_NBD_EINVAL, "a read of more than 32 MiB");
	else if (rq->type == QK_NBD_CMD_BLOCK_STATUS && rq->len == 0)
		refuse(j, QK_NBD_EINVAL, "the block status of no bytes");
}

static void judge_command(const struct qk_nbd_session *session, const struct qk_nbd_request *rq,
	struct qk_nbd_judgement *j)
{
	if (rq->type > QK_NBD_CMD_BLOCK_STATUS)
		refuse(j, QK_NBD_EINVAL, "this command is not known here");
	else if ((rq->flags & ~allowed_flags(session, rq->type)) != 0)
		refuse(j, QK_NBD_EINVAL, "a flag that this command does not have");
	else if (is_write(rq->type) && (session->flags & QK_NBD_FLAG_READ_ONLY) != 0)
		refuse(j, QK_NBD_EPERM, "the export is read-only");
	else if ((needed_flag(rq->type) & ~session->flags) != 0)
		refuse(j, QK_NBD_EINVAL, "this export does not have that command");
	else if (rq->type == QK_NBD_CMD_BLOCK_STATUS && session->n_contexts == 0)
		refuse(j, QK_NBD_EINVAL, "block status without a metadata context");
	else if (rq->type == QK_NBD_CMD_FLUSH && (rq->off != 0 || rq->len != 0))
		refuse(j, QK_NBD_EINVAL, "a flush has neither offset nor length");
	else if (rq->type != QK_NBD_CMD_FLUSH && j->payload == 0)
		judge_range(session, rq, j);
	else if (rq->type == QK_NBD_CMD_WRITE)
		judge_range(session, rq, j);
}

/* What follows the request: data of a write, or what extended headers announce. */
static uint64_t payload_of(const struct qk_nbd_session *session, const struct qk_nbd_request *rq)
{
	bool is_announced = session->mode == QK_NBD_EXTENDED &&
			    (rq->flags & QK_NBD_CMD_FLAG_PAYLOAD_LEN) != 0;
	return rq->type == QK_NBD_CMD_WRITE || is_announced ? rq->len : 0;
}

struct qk_nbd_judgement qk_nbd_judge(
	const struct qk_nbd_session *session, const struct qk_nbd_request *rq)
{
	struct qk_nbd_judgement j = {.verdict = QK_NBD_RUN};
	uint64_t payload = payload_of(session, rq);
	if (rq->type == QK_NBD_CMD_DISC) {
		j.verdict = QK_NBD_DISC;
		return j;
	}
	if (payload > QK_NBD_MAX_PAYLOAD) {
		j.verdict = QK_NBD_BREAK;
		j.message = "a payload of more than 32 MiB";
		return j;
	}
	j.payload = (uint32_t)payload;
	judge_command(session, rq, &j);
	return j;
}

static bool is_selected(const struct qk_nbd_session *session, uint32_t id)
{
	for (unsigned i = 0; i < session->n_contexts; i++) {
		if (session->contexts[i].id == id)
			return true;
	}
	return false;
}

static bool is_repeated(const uint8_t *ids, size_t n, uint32_t id)
{
	for (size_t i = 0; i < n; i++) {
		if (qk_load32(ids + 4 * i) == id)
			return true;
	}
	return false;
}

const char *qk_nbd_get_status_payload(const struct qk_nbd_session *session, struct qk_span payload,
	struct qk_nbd_request *rq, struct qk_nbd_status_payload *out)
{
	if (payload.n < 12 || payload.n % 4 != 0 || payload.n > 8 + 4 * (size_t)session->n_contexts)
		return "the payload is no list of metadata contexts";
	out->ids = payload.p + 8;
	out->n_ids = payload.n / 4 - 2;
	for (size_t i = 0; i < out->n_ids; i++) {
		uint32_t id = qk_load32(out->ids + 4 * i);
		if (!is_selected(session, id) || is_repeated(out->ids, i, id))
			return "the payload names a metadata context twice, or one that was not "
			       "selected";
	}
	rq->len = qk_load64(payload.p);
	struct qk_nbd_judgement j = {.verdict = QK_NBD_RUN};
	judge_range(session, rq, &j);
	return j.verdict == QK_NBD_RUN ? NULL : j.message;
}
