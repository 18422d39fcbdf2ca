/* SPDX-License-Identifier: MIT */
/*
 * request: what a request of the transmission phase may do, before anything is done. Pure.
 */
#ifndef QK_SERVE_NBD_REQUEST_H
#define QK_SERVE_NBD_REQUEST_H

#include "serve/nbd/handshake.h"

enum qk_nbd_verdict {
	QK_NBD_RUN = 0, /* carry it out, once its payload is there */
	QK_NBD_REFUSE, /* answer `error` with `message`, once its payload was skipped */
	QK_NBD_DISC, /* the client leaves */
	QK_NBD_BREAK /* nothing that follows can be trusted: close, for `message` */
};

struct qk_nbd_judgement {
	enum qk_nbd_verdict verdict;
	uint32_t error; /* QK_NBD_E… */
	const char *message;
	uint32_t payload; /* bytes that follow the request, at most QK_NBD_MAX_PAYLOAD */
};

struct qk_nbd_judgement qk_nbd_judge(
	const struct qk_nbd_session *session, const struct qk_nbd_request *rq);

/* The payload of BLOCK_STATUS: which contexts, and how much is asked for (rq->len becomes that). `ids` lies in the payload,
 * n_ids of 4 bytes each; all of them were selected, none twice. */
struct qk_nbd_status_payload {
	const uint8_t *ids;
	size_t n_ids;
};
/* NULL, or what is wrong with it. */
const char *qk_nbd_get_status_payload(const struct qk_nbd_session *session, struct qk_span payload,
	struct qk_nbd_request *rq, struct qk_nbd_status_payload *out);

#endif
