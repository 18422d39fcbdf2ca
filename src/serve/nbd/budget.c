/* SPDX-License-Identifier: MIT */
/*
 * budget: bytes that requests and replies hold, of a connection and of all (see core.h). Nobody waits for somebody else's: who is
 * refused waits for what it holds itself, and who holds nothing gets QK_NBD_SLAB_BYTES in any case.
 */
#include "serve/nbd/core.h"

bool qk_nbd_budget_take(struct qk_nbd_conn *conn, uint64_t bytes)
{
	struct qk_nbd_budget *b = &conn->server->budget;
	uint64_t own = conn->charged + bytes;
	uint64_t used = atomic_fetch_add(&b->used, bytes) + bytes;
	/* the more others have, the less may one have: some is always left for those who come */
	bool is_fair = own <= b->conn_limit && used <= b->limit && own / 2 <= b->limit - used;
	if (own > QK_NBD_SLAB_BYTES && !is_fair) {
		atomic_fetch_sub(&b->used, bytes);
		return false;
	}
	conn->charged = own;
	return true;
}

void qk_nbd_budget_give(struct qk_nbd_conn *conn, uint64_t bytes)
{
	conn->charged -= bytes;
	atomic_fetch_sub(&conn->server->budget.used, bytes);
}
