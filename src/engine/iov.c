/* SPDX-License-Identifier: MIT */
/* iov: see iov.h. */
#include "engine/iov.h"

#include "base/num.h"

bool qk_iov_sum(const struct iovec *iov, int n, uint64_t *out)
{
	uint64_t sum = 0;
	if (n < 0)
		return false;
	for (int i = 0; i < n; i++)
		if (!qk_add(sum, iov[i].iov_len, &sum))
			return false;
	*out = sum;
	return true;
}

void qk_iov_take(
	struct qk_iov *from, uint64_t len, struct iovec *out, int max, int *n, uint64_t *taken)
{
	*n = 0;
	*taken = 0;
	while (*taken < len && *n < max && from->n > 0) {
		size_t left = from->iov->iov_len - from->at;
		size_t take = (size_t)qk_min(left, len - *taken);
		if (take != 0)
			out[(*n)++] = (struct iovec){
				(uint8_t *)from->iov->iov_base + from->at, take};
		*taken += take;
		from->at += take;
		if (from->at == from->iov->iov_len) {
			from->iov++;
			from->n--;
			from->at = 0;
		}
	}
}
