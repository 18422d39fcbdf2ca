/* SPDX-License-Identifier: MIT */
/*
 * proto: the messages of the NBD protocol, bytes to values and back. Pure: no I/O, no memory of its own.
 *
 * Names and numbers are those of proto.md, without NBD_ where that would only repeat the module's name.
 */
#ifndef QK_SERVE_NBD_PROTO_H
#define QK_SERVE_NBD_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

#define QK_NBD_MAGIC		  UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define QK_NBD_OPTS_MAGIC	  UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define QK_NBD_REP_MAGIC	  UINT64_C(0x0003e889045565a9)
#define QK_NBD_REQUEST_MAGIC	  UINT32_C(0x25609513)
#define QK_NBD_EXT_REQUEST_MAGIC  UINT32_C(0x21e41c71)
#define QK_NBD_SIMPLE_REPLY_MAGIC UINT32_C(0x67446698)
#define QK_NBD_CHUNK_MAGIC	  UINT32_C(0x668e33ef)
#define QK_NBD_EXT_REPLY_MAGIC	  UINT32_C(0x6e8a278c)

enum { /* handshake flags, client flags */
	QK_NBD_FLAG_FIXED_NEWSTYLE = 1,
	QK_NBD_FLAG_NO_ZEROES = 2
};

enum { /* transmission flags */
	QK_NBD_FLAG_HAS_FLAGS = 1 << 0,
	QK_NBD_FLAG_READ_ONLY = 1 << 1,
	QK_NBD_FLAG_SEND_FLUSH = 1 << 2,
	QK_NBD_FLAG_SEND_FUA = 1 << 3,
	QK_NBD_FLAG_ROTATIONAL = 1 << 4,
	QK_NBD_FLAG_SEND_TRIM = 1 << 5,
	QK_NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
	QK_NBD_FLAG_SEND_DF = 1 << 7,
	QK_NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
	QK_NBD_FLAG_SEND_CACHE = 1 << 10,
	QK_NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
	QK_NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12
};

enum { /* options */
	QK_NBD_OPT_EXPORT_NAME = 1,
	QK_NBD_OPT_ABORT = 2,
	QK_NBD_OPT_LIST = 3,
	QK_NBD_OPT_STARTTLS = 5,
	QK_NBD_OPT_INFO = 6,
	QK_NBD_OPT_GO = 7,
	QK_NBD_OPT_STRUCTURED_REPLY = 8,
	QK_NBD_OPT_LIST_META_CONTEXT = 9,
	QK_NBD_OPT_SET_META_CONTEXT = 10,
	QK_NBD_OPT_EXTENDED_HEADERS = 11
};

#define QK_NBD_REP_ERR(n)	       (UINT32_C(0x80000000) + (n))
#define QK_NBD_REP_ACK		       UINT32_C(1)
#define QK_NBD_REP_SERVER	       UINT32_C(2)
#define QK_NBD_REP_INFO		       UINT32_C(3)
#define QK_NBD_REP_META_CONTEXT	       UINT32_C(4)
#define QK_NBD_REP_ERR_UNSUP	       QK_NBD_REP_ERR(1)
#define QK_NBD_REP_ERR_POLICY	       QK_NBD_REP_ERR(2)
#define QK_NBD_REP_ERR_INVALID	       QK_NBD_REP_ERR(3)
#define QK_NBD_REP_ERR_PLATFORM	       QK_NBD_REP_ERR(4)
#define QK_NBD_REP_ERR_TLS_REQD	       QK_NBD_REP_ERR(5)
#define QK_NBD_REP_ERR_UNKNOWN	       QK_NBD_REP_ERR(6)
#define QK_NBD_REP_ERR_SHUTDOWN	       QK_NBD_REP_ERR(7)
#define QK_NBD_REP_ERR_BLOCK_SIZE_REQD QK_NBD_REP_ERR(8)
#define QK_NBD_REP_ERR_TOO_BIG	       QK_NBD_REP_ERR(9)
#define QK_NBD_REP_ERR_EXT_HEADER_REQD QK_NBD_REP_ERR(10)

enum { /* information types */
	QK_NBD_INFO_EXPORT = 0,
	QK_NBD_INFO_NAME = 1,
	QK_NBD_INFO_DESCRIPTION = 2,
	QK_NBD_INFO_BLOCK_SIZE = 3
};

enum { /* request types */
	QK_NBD_CMD_READ = 0,
	QK_NBD_CMD_WRITE = 1,
	QK_NBD_CMD_DISC = 2,
	QK_NBD_CMD_FLUSH = 3,
	QK_NBD_CMD_TRIM = 4,
	QK_NBD_CMD_CACHE = 5,
	QK_NBD_CMD_WRITE_ZEROES = 6,
	QK_NBD_CMD_BLOCK_STATUS = 7
};

enum { /* command flags */
	QK_NBD_CMD_FLAG_FUA = 1 << 0,
	QK_NBD_CMD_FLAG_NO_HOLE = 1 << 1,
	QK_NBD_CMD_FLAG_DF = 1 << 2,
	QK_NBD_CMD_FLAG_REQ_ONE = 1 << 3,
	QK_NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
	QK_NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5
};

enum { /* structured reply chunks */
	QK_NBD_REPLY_NONE = 0,
	QK_NBD_REPLY_OFFSET_DATA = 1,
	QK_NBD_REPLY_OFFSET_HOLE = 2,
	QK_NBD_REPLY_BLOCK_STATUS = 5,
	QK_NBD_REPLY_BLOCK_STATUS_EXT = 6,
	QK_NBD_REPLY_ERROR = (1 << 15) + 1
};
#define QK_NBD_REPLY_FLAG_DONE 1

enum { /* base:allocation */
	QK_NBD_STATE_HOLE = 1,
	QK_NBD_STATE_ZERO = 2
};

enum { /* error values */
	QK_NBD_OK = 0,
	QK_NBD_EPERM = 1,
	QK_NBD_EIO = 5,
	QK_NBD_ENOMEM = 12,
	QK_NBD_EINVAL = 22,
	QK_NBD_ENOSPC = 28,
	QK_NBD_EOVERFLOW = 75,
	QK_NBD_ENOTSUP = 95,
	QK_NBD_ESHUTDOWN = 108
};

/* How requests and replies look. */
enum qk_nbd_mode {
	QK_NBD_SIMPLE = 0,
	QK_NBD_STRUCTURED,
	QK_NBD_EXTENDED
};

/* ---- handshake ---- */

#define QK_NBD_GREETING_BYTES	  18U /* magic, magic, flags */
#define QK_NBD_CLIENT_FLAGS_BYTES 4U
#define QK_NBD_OPTION_BYTES	  16U /* magic, option, length */
#define QK_NBD_OPTION_REPLY_BYTES 20U /* magic, option, type, length */

void qk_nbd_put_greeting(uint8_t out[QK_NBD_GREETING_BYTES]);

struct qk_nbd_option {
	uint32_t option, length;
};
/* false: the magic is wrong. */
bool qk_nbd_get_option(const uint8_t in[QK_NBD_OPTION_BYTES], struct qk_nbd_option *out);

void qk_nbd_put_option_reply(
	uint8_t out[QK_NBD_OPTION_REPLY_BYTES], uint32_t option, uint32_t type, uint32_t length);

/* The data of INFO and GO. Spans point into the data. */
struct qk_nbd_info_request {
	struct qk_span name;
	bool wants_name, wants_description, wants_block_size;
};
bool qk_nbd_get_info(struct qk_span data, struct qk_nbd_info_request *out);

/* The data of LIST_ and SET_META_CONTEXT: `queries` holds n_queries strings, each behind its 32-bit length, which
 * qk_nbd_next_query takes one by one; all of them were looked at. */
struct qk_nbd_meta_request {
	struct qk_span name;
	uint32_t n_queries;
	struct qk_reader queries;
};
bool qk_nbd_get_meta(struct qk_span data, struct qk_nbd_meta_request *out);
struct qk_span qk_nbd_next_query(struct qk_nbd_meta_request *meta);

/* ---- transmission ---- */

#define QK_NBD_REQUEST_BYTES	 28U
#define QK_NBD_EXT_REQUEST_BYTES 32U
#define QK_NBD_SIMPLE_BYTES	 16U
#define QK_NBD_CHUNK_BYTES	 20U
#define QK_NBD_EXT_REPLY_BYTES	 32U

struct qk_nbd_request {
	uint16_t flags, type;
	uint64_t cookie; /* "handle" */
	uint64_t off, len;
};

static inline size_t qk_nbd_request_bytes(enum qk_nbd_mode mode)
{
	return mode == QK_NBD_EXTENDED ? QK_NBD_EXT_REQUEST_BYTES : QK_NBD_REQUEST_BYTES;
}

/* false: the magic is wrong. `in` has qk_nbd_request_bytes(mode) bytes. */
bool qk_nbd_get_request(enum qk_nbd_mode mode, const uint8_t *in, struct qk_nbd_request *out);

static inline size_t qk_nbd_chunk_bytes(enum qk_nbd_mode mode)
{
	return mode == QK_NBD_EXTENDED ? QK_NBD_EXT_REPLY_BYTES : QK_NBD_CHUNK_BYTES;
}

void qk_nbd_put_simple(uint8_t out[QK_NBD_SIMPLE_BYTES], uint32_t error, uint64_t cookie);

/* The head of a chunk with `payload` bytes; qk_nbd_chunk_bytes(mode) bytes. */
struct qk_nbd_chunk {
	uint16_t flags, type;
	uint64_t cookie;
	uint64_t off; /* of the request: extended replies repeat it */
	uint64_t payload;
};
void qk_nbd_put_chunk(enum qk_nbd_mode mode, uint8_t *out, const struct qk_nbd_chunk *chunk);

#endif
