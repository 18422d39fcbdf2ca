/* SPDX-License-Identifier: MIT */
/*
 * put: guest data to its place in the file, encrypted where the image is.
 *
 * Encrypted sectors are written whole. What covers a sector in part is read, changed and written back, and nobody
 * else reads or writes encrypted data in place meanwhile; whole sectors take no lock unless that is under way.
 */
#ifndef QK_ENGINE_PUT_H
#define QK_ENGINE_PUT_H

#include <qcowkit/qcowkit.h>

#include "base/bytes.h"
#include "engine/crypt.h"
#include "engine/iov.h"

/* Bytes for [at, at + head.n + len + tail.n) of an image that is open for writing; head and tail may be empty. */
struct qk_put {
	struct qcow_image *image;
	struct qk_crypt_place at;
	struct qk_span head, tail;
	struct qk_iov *from;
	uint64_t len; /* of `from` */
};

/* Write them; encrypted ones are whole sectors. The caller has the clusters for itself, or is in an epoch and
 * overwrites in place. Errors of the store, QCOW_E_NOMEM. */
enum qcow_status qk_put(const struct qk_put *put, struct qcow_error *err) QK_MUST_USE;

/* The same, in an epoch, beside others who overwrite parts of sectors. */
enum qcow_status qk_put_in_epoch(const struct qk_put *put, struct qcow_error *err) QK_MUST_USE;

/* The same for any bytes that are there already, without head and tail. The caller is in no epoch, and holds the stripe of
 * the cluster where there are stripes; without, `put` ends within its first sector. */
enum qcow_status qk_put_part(const struct qk_put *put, struct qcow_error *err) QK_MUST_USE;

/* The same with head and tail, which end with sectors: only where there is none may the payload begin or end within a
 * sector, which is there already. */
enum qcow_status qk_put_over(const struct qk_put *put, struct qcow_error *err) QK_MUST_USE;

/* qk_crypt_read beside those: the caller is in an epoch of `image`, if that is open for writing. */
enum qcow_status qk_put_read(struct qcow_image *image, const struct qk_crypt_place *at,
	uint8_t *buf, size_t len, struct qcow_error *err) QK_MUST_USE;

#endif
