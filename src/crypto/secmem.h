/* SPDX-License-Identifier: MIT */
/*
 * secmem: memory for keys: kept out of swap and core files where the host lets us, wiped when it is freed.
 */
#ifndef QK_CRYPTO_SECMEM_H
#define QK_CRYPTO_SECMEM_H

#include <stddef.h>

/* n > 0 zeroed bytes on pages of their own. NULL: out of memory. */
void *qk_secmem_new(size_t n) __attribute__((warn_unused_result));

/* Wipe and free what qk_secmem_new gave; `n` as there. NULL is allowed. */
void qk_secmem_free(void *p, size_t n);

#endif
