/* SPDX-License-Identifier: MIT */
/*
 * proto: see proto.h.
 */
#include "serve/nbd/proto.h"

#include "serve/nbd/server.h"

void qk_nbd_put_greeting(uint8_t out[QK_NBD_GREETING_BYTES])
{
	qk_store64(out, QK_NBD_MAGIC);
	qk_store64(out + 8, QK_NBD_OPTS_MAGIC);
	qk_store16(out + 16, QK_NBD_FLAG_FIXED_NEWSTYLE | QK_NBD_FLAG_NO_ZEROES);
}

bool qk_nbd_get_option(const uint8_t in[QK_NBD_OPTION_BYTES], struct qk_nbd_option *out)
{
	out->option = qk_load32(in + 8);
	out->length = qk_load32(in + 12);
	return qk_load64(in) == QK_NBD_OPTS_MAGIC;
}

void qk_nbd_put_option_reply(
	uint8_t out[QK_NBD_OPTION_REPLY_BYTES], uint32_t option, uint32_t type, uint32_t length)
{
	qk_store64(out, QK_NBD_REP_MAGIC);
	qk_store32(out + 8, option);
	qk_store32(out + 12, type);
	qk_store32(out + 16, length);
}

/* A string of the protocol behind its 32-bit length. */
static struct qk_span get_string(struct qk_reader *r)
{
	uint32_t n = qk_read32(r);
	if (n > QK_NBD_MAX_STRING)
		r->bad = true;
	return qk_read_span(r, n);
}

bool qk_nbd_get_info(struct qk_span data, struct qk_nbd_info_request *out)
{
	struct qk_reader r = qk_reader_init(data.p, data.n);
	*out = (struct qk_nbd_info_request){.name = get_string(&r)};
	uint16_t n = qk_read16(&r);
	for (uint16_t i = 0; i < n && !r.bad; i++) {
		uint16_t type = qk_read16(&r);
		out->wants_name |= type == QK_NBD_INFO_NAME;
		out->wants_description |= type == QK_NBD_INFO_DESCRIPTION;
		out->wants_block_size |= type == QK_NBD_INFO_BLOCK_SIZE;
	}
	return !r.bad && qk_reader_left(&r) == 0;
}

bool qk_nbd_get_meta(struct qk_span data, struct qk_nbd_meta_request *out)
{
	struct qk_reader r = qk_reader_init(data.p, data.n);
	*out = (struct qk_nbd_meta_request){.name = get_string(&r)};
	out->n_queries = qk_read32(&r);
	out->queries = r;
	for (uint32_t i = 0; i < out->n_queries && !r.bad; i++)
		(void)get_string(&r);
	return !r.bad && qk_reader_left(&r) == 0;
}

struct qk_span qk_nbd_next_query(struct qk_nbd_meta_request *meta)
{
	return get_string(&meta->queries);
}

bool qk_nbd_get_request(enum qk_nbd_mode mode, const uint8_t *in, struct qk_nbd_request *out)
{
	bool is_extended = mode == QK_NBD_EXTENDED;
	out->flags = qk_load16(in + 4);
	out->type = qk_load16(in + 6);
	out->cookie = qk_load64(in + 8);
	out->off = qk_load64(in + 16);
	out->len = is_extended ? qk_load64(in + 24) : qk_load32(in + 24);
	return qk_load32(in) == (is_extended ? QK_NBD_EXT_REQUEST_MAGIC : QK_NBD_REQUEST_MAGIC);
}

void qk_nbd_put_simple(uint8_t out[QK_NBD_SIMPLE_BYTES], uint32_t error, uint64_t cookie)
{
	qk_store32(out, QK_NBD_SIMPLE_REPLY_MAGIC);
	qk_store32(out + 4, error);
	qk_store64(out + 8, cookie);
}

void qk_nbd_put_chunk(enum qk_nbd_mode mode, uint8_t *out, const struct qk_nbd_chunk *chunk)
{
	bool is_extended = mode == QK_NBD_EXTENDED;
	qk_store32(out, is_extended ? QK_NBD_EXT_REPLY_MAGIC : QK_NBD_CHUNK_MAGIC);
	qk_store16(out + 4, chunk->flags);
	qk_store16(out + 6, chunk->type);
	qk_store64(out + 8, chunk->cookie);
	if (is_extended) {
		qk_store64(out + 16, chunk->off);
		qk_store64(out + 24, chunk->payload);
	} else {
		qk_store32(out + 16, (uint32_t)chunk->payload);
	}
}
