/* SPDX-License-Identifier: MIT */
/* ram: a store of bytes that outlive it, and go back to what they were at little cost. It grows up to QKT_RAM_BYTES. */
#ifndef QKT_RAM_H
#define QKT_RAM_H

#include <stdint.h>

#include <qcowkit/store.h>

#define QKT_RAM_BYTES (4u << 20)

struct qkt_ram {
	uint8_t *bytes; /* the caller's to free */
	uint64_t size;
};

/* A store of these bytes; closing it leaves them. */
struct qcow_store *qkt_ram_store(struct qkt_ram *ram);

/* The bytes are these from now on. */
void qkt_ram_load(struct qkt_ram *ram, const uint8_t *bytes, uint64_t n);

#endif
