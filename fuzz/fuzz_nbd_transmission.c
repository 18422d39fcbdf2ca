/* SPDX-License-Identifier: MIT */
/*
 * Requests: the first byte picks how they look, whether block sizes bind, and the export. Oracle: an array of bytes beside the
 * export's; every reply is whole, says what was asked and no more, and reads are what the array holds.
 */
#include "nbd.h"

static uint8_t model[FUZZ_DISK_BYTES];

struct seen {
	uint64_t covered;
	unsigned n_status;
	uint32_t error;
};

static void look_at_content(const struct qk_nbd_job *job, const struct qk_nbd_request *rq,
	uint16_t type, struct qk_reader *body, struct seen *seen)
{
	uint64_t off = qk_read64(body);
	uint64_t len = type == QK_NBD_REPLY_OFFSET_HOLE ? qk_read32(body) : qk_reader_left(body);
	FUZZ_CHECK(job->rq.type == QK_NBD_CMD_READ && off == rq->off + seen->covered && len != 0);
	FUZZ_CHECK(off + len <= rq->off + rq->len);
	if (type == QK_NBD_REPLY_OFFSET_HOLE)
		FUZZ_CHECK(qk_is_zero(model + off, len));
	else
		FUZZ_CHECK(memcmp(model + off, qk_read_span(body, len).p, len) == 0);
	seen->covered += len;
}

static void look_at_status(
	const struct qk_nbd_job *job, bool is_extended, struct qk_reader *body, struct seen *seen)
{
	uint64_t sum = 0, last = 0;
	unsigned n = 0;
	FUZZ_CHECK(qk_read32(body) < job->session->n_contexts);
	uint32_t told = is_extended ? qk_read32(body) : 0;
	for (; qk_reader_left(body) != 0; n++) {
		last = is_extended ? qk_read64(body) : qk_read32(body);
		uint64_t flags = is_extended ? qk_read64(body) : qk_read32(body);
		FUZZ_CHECK(last != 0 && flags <= 4);
		sum += last;
	}
	FUZZ_CHECK(n != 0 && sum <= job->rq.len && (!is_extended || told == n));
	FUZZ_CHECK((job->rq.flags & QK_NBD_CMD_FLAG_REQ_ONE) == 0 || n == 1);
	seen->n_status++;
}

static bool look_at_chunk(const struct qk_nbd_job *job, const struct qk_nbd_request *rq,
	struct qk_reader *r, struct seen *seen)
{
	bool is_extended = job->session->mode == QK_NBD_EXTENDED;
	FUZZ_CHECK(qk_read32(r) == (is_extended ? QK_NBD_EXT_REPLY_MAGIC : QK_NBD_CHUNK_MAGIC));
	uint16_t flags = qk_read16(r), type = qk_read16(r);
	FUZZ_CHECK(qk_read64(r) == rq->cookie);
	FUZZ_CHECK(!is_extended || qk_read64(r) == rq->off);
	uint64_t len = is_extended ? qk_read64(r) : qk_read32(r);
	struct qk_span span = qk_read_span(r, len);
	FUZZ_CHECK(!r->bad);
	struct qk_reader body = qk_reader_init(span.p, span.n);
	if (type == QK_NBD_REPLY_OFFSET_DATA || type == QK_NBD_REPLY_OFFSET_HOLE) {
		look_at_content(job, rq, type, &body, seen);
	} else if (type == QK_NBD_REPLY_ERROR) {
		seen->error = qk_read32(&body);
		FUZZ_CHECK(seen->error != 0 && qk_read16(&body) == qk_reader_left(&body));
		qk_read_skip(&body, qk_reader_left(&body));
	} else if (type == QK_NBD_REPLY_NONE) {
		FUZZ_CHECK((flags & QK_NBD_REPLY_FLAG_DONE) != 0);
	} else {
		look_at_status(job, is_extended, &body, seen);
	}
	FUZZ_CHECK(!body.bad && qk_reader_left(&body) == 0);
	return (flags & QK_NBD_REPLY_FLAG_DONE) != 0;
}

/* The reply is whole and about this request. Returns its error. */
static uint32_t look_at_reply(const struct qk_nbd_job *job, const struct qk_nbd_request *rq)
{
	static uint8_t bytes[FUZZ_DISK_BYTES + 65536 * 8];
	struct seen seen = {0};
	size_t n = 0;
	for (int i = 0; i < job->n_iov; i++) {
		FUZZ_CHECK(job->iov[i].iov_len <= sizeof(bytes) - n);
		memcpy(bytes + n, job->iov[i].iov_base, job->iov[i].iov_len);
		n += job->iov[i].iov_len;
	}
	struct qk_reader r = qk_reader_init(bytes, n);
	bool is_simple = n >= 4 && qk_load32(bytes) == QK_NBD_SIMPLE_REPLY_MAGIC;
	FUZZ_CHECK(is_simple || job->session->mode != QK_NBD_SIMPLE);
	if (is_simple) {
		qk_read_skip(&r, 4);
		seen.error = qk_read32(&r);
		FUZZ_CHECK(qk_read64(&r) == rq->cookie && job->session->mode != QK_NBD_EXTENDED);
		FUZZ_CHECK(rq->type != QK_NBD_CMD_READ || job->session->mode == QK_NBD_SIMPLE);
		seen.covered = qk_reader_left(&r);
		FUZZ_CHECK(memcmp(model + (seen.covered != 0 ? rq->off : 0), bytes + 16,
				   seen.covered) == 0);
	} else {
		while (!look_at_chunk(job, rq, &r, &seen))
			FUZZ_CHECK(qk_reader_left(&r) != 0);
		FUZZ_CHECK(qk_reader_left(&r) == 0);
	}
	if (rq->type == QK_NBD_CMD_READ && seen.error == 0)
		FUZZ_CHECK(seen.covered == rq->len);
	if (rq->type == QK_NBD_CMD_BLOCK_STATUS && seen.error == 0)
		FUZZ_CHECK(seen.n_status != 0);
	return seen.error;
}

static void change_model(const struct qk_nbd_request *rq, const uint8_t *payload)
{
	if (rq->type == QK_NBD_CMD_WRITE)
		memcpy(model + rq->off, payload, rq->len);
	else if (rq->type == QK_NBD_CMD_WRITE_ZEROES)
		memset(model + rq->off, 0, rq->len);
}

/* One request with its payload. */
static void execute(const struct qk_nbd_session *session, const struct qk_nbd_request *rq,
	const struct qk_nbd_judgement *j, const uint8_t *payload)
{
	struct qk_nbd_job job = {
		.session = session, .rq = *rq, .error = j->error, .message = j->message};
	bool is_read = rq->type == QK_NBD_CMD_READ && j->verdict == QK_NBD_RUN;
	job.n_data = is_read ? (size_t)rq->len : j->payload;
	job.data = malloc(job.n_data + 1);
	FUZZ_CHECK(job.data != NULL);
	if (!is_read && job.n_data != 0)
		memcpy(job.data, payload, job.n_data);
	if (!is_read || (rq->cookie & 1) == 0 || !qk_nbd_execute_now(&job))
		qk_nbd_execute(&job);
	if (j->verdict == QK_NBD_RUN && job.error == 0)
		change_model(rq, payload);
	FUZZ_CHECK(look_at_reply(&job, rq) == job.error);
	qk_nbd_job_release(&job);
	free(job.data);
}

/* A session as a handshake would leave it. */
static void begin(struct qk_nbd_handshake *h, uint8_t how)
{
	static const uint8_t contexts[] = "\0\0\0\4disk\0\0\0\3\0\0\0\x0f"
					  "base:allocation\0\0\0\x15qemu:allocation-depth\0\0\0\x14"
					  "qemu:dirty-bitmap:b0";
	static const uint8_t go[] = "\0\0\0\4disk\0\1\0\3", plain[] = "\0\0\0\4disk\0\0";
	struct qk_nbd_buf out = {0};
	uint8_t option[256];
	size_t used = 0;
	h->has_flags = true;
	h->session->is_fixed = true;
	h->session->mode = (enum qk_nbd_mode)(how % 3);
	const struct {
		uint32_t option;
		const uint8_t *data;
		size_t n;
	} steps[] = {{QK_NBD_OPT_SET_META_CONTEXT, contexts, sizeof(contexts) - 1},
		{QK_NBD_OPT_GO, (how & 16) != 0 ? go : plain,
			(how & 16) != 0 ? sizeof(go) - 1 : sizeof(plain) - 1}};
	for (unsigned i = (how & 32) != 0 ? 1 : 0; i < 2; i++) {
		qk_store64(option, QK_NBD_OPTS_MAGIC);
		qk_store32(option + 8, steps[i].option);
		qk_store32(option + 12, (uint32_t)steps[i].n);
		memcpy(option + 16, steps[i].data, steps[i].n);
		(void)qk_nbd_handshake_step(h, option, 16 + steps[i].n, &used, &out);
	}
	FUZZ_CHECK(h->session->node != NULL);
	qk_nbd_buf_free(&out);
}

static void requests(const struct qk_nbd_session *session, const uint8_t *p, size_t n)
{
	size_t head = qk_nbd_request_bytes(session->mode);
	while (n >= head) {
		struct qk_nbd_request rq;
		uint8_t bytes[QK_NBD_EXT_REQUEST_BYTES];
		memcpy(bytes, p, head);
		/* the magic is not for the fuzzer to find */
		qk_store32(bytes, session->mode == QK_NBD_EXTENDED ? QK_NBD_EXT_REQUEST_MAGIC
								   : QK_NBD_REQUEST_MAGIC);
		FUZZ_CHECK(qk_nbd_get_request(session->mode, bytes, &rq));
		struct qk_nbd_judgement j = qk_nbd_judge(session, &rq);
		FUZZ_CHECK(j.payload <= QK_NBD_MAX_PAYLOAD &&
			   (j.verdict == QK_NBD_REFUSE) == (j.error != 0));
		p += head;
		n -= head;
		if (j.verdict > QK_NBD_REFUSE || j.payload > n)
			return;
		execute(session, &rq, &j, p);
		p += j.payload;
		n -= j.payload;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct qk_nbd_registry registry;
	struct qk_nbd_session session = {.min_block = 1};
	const _Atomic bool is_stopping = false;
	if (n < 2)
		return 0;
	for (size_t i = 0; i < sizeof(model); i += 512)
		memset(model + i, i % 65536 < 16384 ? 0 : (int)(i / 512), 512);
	memcpy(fuzz_disk, model, sizeof(model));
	fuzz_nbd_registry(&registry);
	struct qk_nbd_handshake h = {
		.registry = &registry, .session = &session, .is_stopping = &is_stopping};
	begin(&h, data[0]);
	requests(&session, data + 1, n - 1);
	FUZZ_CHECK(memcmp(model, fuzz_disk, sizeof(model)) == 0);
	qk_nbd_session_release(&session, &registry);
	qk_nbd_registry_release(&registry);
	return 0;
}
