/* SPDX-License-Identifier: MIT */
/*
 * io_move: reads, writes, zeroes and discards byte ranges of the open image for the commands, from any thread.
 *
 * What QEMU does above the formats is here: a raw disk ends with a whole sector, a disk whose raw format was only
 * guessed must not begin to look like another format, copy-on-read keeps what a read fetched from below.
 */
#include "cli/io.h"

#include <errno.h>
#include <string.h>

#include <qcowkit/manage.h>

#include "base/num.h"
#include "cli/blkdebug.h"

enum {
	SECTOR = 512,
	SUBCLUSTERS = 32, /* of a cluster with extended L2 entries */
	CHUNK = 1 << 20
};

uint8_t *io_buffer(const struct io *io, uint64_t bytes, int fill, void **whole)
{
	uint64_t odd = io->misalign ? 17 : 0;
	*whole = qk_malloc_aligned(4096, bytes + odd + 1);
	if (*whole == NULL)
		return NULL;
	memset(*whole, fill, bytes + odd + 1);
	return (uint8_t *)*whole + odd;
}

static bool is_raw(const struct io *io)
{
	struct qcow_info in;
	qcow_get_info(io->image, &in);
	return in.version == 0;
}

uint64_t io_disk_size(const struct io *io)
{
	uint64_t size = qcow_size(io->image);
	return is_raw(io) ? (size + SECTOR - 1) / SECTOR * SECTOR : size;
}

enum qcow_status io_check_range(
	const struct io *io, uint64_t len, uint64_t off, struct qcow_error *err)
{
	uint64_t size = io_disk_size(io);
	if (off <= size && len <= size - off)
		return QCOW_OK;
	return QK_FAIL(err, QCOW_E_RANGE, "the range goes past the end of the disk");
}

int io_failed(const struct io *io, const char *what, const struct qcow_error *err)
{
	(void)printf("%s failed: %s\n", what, io_reason(err));
	if (!io->cli->qemu && err->message[0] != '\0')
		cli_error(io->cli, "%s", err->message);
	return -1;
}

/* Write one chunk of what copy-on-read fetched. */
static enum qcow_status keep_chunk(
	struct io *io, void *buf, uint64_t off, uint64_t len, struct qcow_error *err)
{
	QK_TRY(qcow_pread(io->image, buf, len, off, err));
	QK_TRY(cli_blkdebug_event(io->cli, "cor_write", off, len, err));
	const uint8_t *bytes = buf;
	bool is_zero = bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0;
	return is_zero ? qcow_zero(io->image, off, len, QCOW_IO_EXPLICIT, err)
		       : qcow_pwrite(io->image, buf, len, off, 0, err);
}

/* Copy [off, off + len) into the top layer. */
static enum qcow_status keep_range(
	struct io *io, uint64_t off, uint64_t len, struct qcow_error *err)
{
	QK_AUTO_FREE void *buf = qk_malloc(CHUNK, 1);
	if (buf == NULL)
		return QK_FAIL_NOMEM(err);
	for (uint64_t at = 0; at < len; at += CHUNK)
		QK_TRY(keep_chunk(io, buf, off + at, qk_min(len - at, CHUNK), err));
	return QCOW_OK;
}

/* Every cluster, or subcluster, that the range touches and the top layer does not hold is copied into it. */
static enum qcow_status copy_on_read(
	struct io *io, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct qcow_info in;
	qcow_get_info(io->image, &in);
	uint64_t cluster = in.version != 0 ? in.cluster_size : SECTOR;
	cluster /= in.extended_l2 ? SUBCLUSTERS : 1;
	uint64_t size = qcow_size(io->image);
	uint64_t end = qk_min(size, (off + len + cluster - 1) / cluster * cluster);
	for (uint64_t at = off / cluster * cluster; len != 0 && at < end;) {
		struct qcow_extent e;
		QK_TRY(qcow_map(io->image, at, end - at, UINT32_MAX, &e, err));
		bool is_held = e.depth == 0 && (e.flags & QCOW_EXTENT_PRESENT) != 0;
		bool is_zero = (e.flags & QCOW_EXTENT_ZERO) != 0;
		if (!is_held && is_zero) {
			QK_TRY(cli_blkdebug_event(io->cli, "cor_write", at, e.len, err));
			QK_TRY(qcow_zero(io->image, at, e.len, QCOW_IO_EXPLICIT, err));
		} else if (!is_held) {
			QK_TRY(keep_range(io, at, e.len, err));
		}
		at += e.len;
	}
	return QCOW_OK;
}

/* ---- requests ---- */

/* Does something above the format read and then write? */
static bool wants_spans(const struct io *io)
{
	return io->opened.copy_on_read || io->compresses;
}

/* The clusters of [off, off + len), alone. */
static void enter_alone(struct io *io, struct io_span *span, uint64_t off, uint64_t len)
{
	struct qcow_info in;
	qcow_get_info(io->image, &in);
	uint64_t cluster = in.version != 0 ? in.cluster_size : SECTOR;
	*span = (struct io_span){.off = off / cluster * cluster,
		.end = (off + len + cluster - 1) / cluster * cluster,
		.is_alone = true};
	io_span_enter(&io->spans, span);
}

static enum qcow_status fill_and_keep(
	struct io *io, uint64_t off, uint64_t len, struct qcow_error *err)
{
	struct io_span span;
	enter_alone(io, &span, off, len);
	enum qcow_status status = copy_on_read(io, off, len, err);
	io_span_leave(&io->spans, &span);
	return status;
}

enum qcow_status io_move_read(struct io *io, const struct io_bytes *bytes, struct qcow_error *err)
{
	uint64_t size = qcow_size(io->image), off = bytes->off;
	QK_TRY(io_check_range(io, bytes->len, off, err));
	uint64_t stored = off < size ? qk_min(bytes->len, size - off) : 0;
	memset((uint8_t *)bytes->buf + stored, 0, bytes->len - stored);
	if (io->opened.copy_on_read)
		QK_TRY(fill_and_keep(io, off, stored, err));
	if (stored == 0)
		return QCOW_OK;
	if (bytes->iov != NULL && stored == bytes->len)
		return qcow_preadv(io->image, bytes->iov, bytes->n_iov, off, err);
	return qcow_pread(io->image, bytes->buf, stored, off, err);
}

/* Would sector 0 begin like a format that QEMU or we know by its first bytes? */
static enum qcow_status guard_sector_0(
	struct io *io, const void *buf, uint64_t len, uint64_t off, struct qcow_error *err)
{
	static const struct {
		const char *bytes;
		size_t n;
	} magics[] = {{"QFI\xfb", 4}, {"LUKS\xba\xbe", 6}, {"QED", 4}, {"KDMV", 4}, {"COWD", 4},
		{"conectix", 8}, {"vhdxfile", 8}, {"WithoutFreeSpace", 16},
		{"WithouFreSpacExt", 16}, {"# Disk DescriptorFile", 21}};
	uint8_t sector[SECTOR] = {0};
	if (!io->guards_sector_0 || off >= SECTOR || len == 0)
		return QCOW_OK;
	QK_TRY(qcow_pread(io->image, sector, qk_min(SECTOR, qcow_size(io->image)), 0, err));
	memcpy(sector + off, buf, qk_min(len, SECTOR - off));
	for (size_t i = 0; i < sizeof(magics) / sizeof(magics[0]); i++)
		if (memcmp(sector, magics[i].bytes, magics[i].n) == 0) {
			(void)QK_FAIL(err, QCOW_E_POLICY,
				"the disk's format was guessed to be raw, and with this write it "
				"would begin like another format: say -f raw");
			if (err != NULL)
				err->os_errno = EPERM;
			return QCOW_E_POLICY;
		}
	return QCOW_OK;
}

/* Version 2 has no zero clusters: QEMU then gives the clusters up, where nothing lies below. The zeros of version 3 are
 * the image's own, unless they are to be given up and nothing lies below. */
static unsigned zero_flags(const struct io *io, const struct io_flags *flags)
{
	struct qcow_info in;
	qcow_get_info(io->image, &in);
	bool is_top = in.backing_name == NULL, unmaps = flags->unmap && !io->ignores_discards;
	if (in.version == 2 && is_top)
		unmaps = true;
	return (unmaps ? (unsigned)QCOW_IO_UNMAP : 0) |
	       (in.version >= 3 && !(unmaps && is_top) ? (unsigned)QCOW_IO_EXPLICIT : 0);
}

static unsigned engine_flags(const struct io *io, const struct io_flags *flags)
{
	/* writethrough is the default */
	bool through = io->opened.cache == NULL ||
		       (cli_cache_file_flags(io->opened.cache) & (unsigned)QCOW_FILE_SYNC) != 0;
	return (flags->fua || through ? (unsigned)QCOW_IO_FUA : 0) |
	       (flags->zero ? zero_flags(io, flags) : 0) |
	       (flags->no_fallback ? (unsigned)QCOW_IO_FAST : 0);
}

/* Whole clusters, compressed: what the range leaves of its first and its last one is read. Alone in them. */
static enum qcow_status write_compressed_range(struct io *io, const void *buf, uint64_t len,
	uint64_t off, unsigned flags, struct qcow_error *err)
{
	struct qcow_info in;
	qcow_get_info(io->image, &in);
	uint64_t mask = in.cluster_size - 1, start = off & ~mask, size = qcow_size(io->image);
	uint64_t end = qk_min((off + len + mask) & ~mask, size);
	if (len == 0 || (start == off && end == off + len))
		return qcow_write_compressed(io->image, buf, (size_t)len, off, flags, err);
	QK_AUTO_FREE uint8_t *whole = qk_malloc(end - start, 1);
	if (whole == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(qcow_pread(io->image, whole, off - start, start, err));
	memcpy(whole + (off - start), buf, len);
	QK_TRY(qcow_pread(io->image, whole + (off + len - start), end - off - len, off + len, err));
	return qcow_write_compressed(io->image, whole, end - start, start, flags, err);
}

static enum qcow_status move_write(struct io *io, const struct io_flags *flags,
	const struct io_bytes *bytes, struct qcow_error *err)
{
	uint64_t len = bytes->len, off = bytes->off;
	unsigned how = engine_flags(io, flags), fua = how & (unsigned)QCOW_IO_FUA;
	if (flags->vm_state)
		return qcow_write_vm_state(io->image, bytes->buf, (size_t)len, off, err);
	if (flags->compress)
		return qcow_write_compressed(io->image, bytes->buf, (size_t)len, off, fua, err);
	if (flags->zero)
		return qcow_zero(io->image, off, len, how, err);
	if (io->compresses)
		return write_compressed_range(io, bytes->buf, len, off, fua, err);
	QK_TRY(guard_sector_0(io, bytes->buf, len, off, err));
	if (bytes->iov != NULL)
		return qcow_pwritev(io->image, bytes->iov, bytes->n_iov, off, how, err);
	return qcow_pwrite(io->image, bytes->buf, len, off, how, err);
}

enum qcow_status io_move_write(struct io *io, const struct io_flags *flags,
	const struct io_bytes *bytes, struct qcow_error *err)
{
	struct io_span span = {.off = bytes->off, .end = bytes->off + bytes->len};
	if (!wants_spans(io))
		return move_write(io, flags, bytes, err);
	if (io->compresses && !flags->zero)
		enter_alone(io, &span, bytes->off, bytes->len);
	else
		io_span_enter(&io->spans, &span);
	enum qcow_status status = move_write(io, flags, bytes, err);
	io_span_leave(&io->spans, &span);
	return status;
}

static enum qcow_status move_discard(
	struct io *io, uint64_t len, uint64_t off, struct qcow_error *err)
{
	QK_TRY(io_check_range(io, len, off, err));
	if (io->ignores_discards)
		return QCOW_OK;
	if (is_raw(io)) { /* what is less than a block of the host stays */
		struct qcow_store_caps caps;
		qcow_store_caps(qcow_image_store(io->image), &caps);
		uint64_t end = off + len, size = qcow_size(io->image);
		off = qk_div_up(off, caps.request_align) * caps.request_align;
		end = end < size ? end / caps.request_align * caps.request_align : end;
		len = off < end ? end - off : 0;
	}
	return qcow_discard(io->image, off, len, 0, err);
}

enum qcow_status io_move_discard(struct io *io, uint64_t len, uint64_t off, struct qcow_error *err)
{
	struct io_span span = {.off = off, .end = off + len};
	if (!wants_spans(io))
		return move_discard(io, len, off, err);
	io_span_enter(&io->spans, &span);
	enum qcow_status status = move_discard(io, len, off, err);
	io_span_leave(&io->spans, &span);
	return status;
}
