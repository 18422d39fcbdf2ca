/* SPDX-License-Identifier: MIT */
/*
 * lock: keeping several processes off one image, in the way that QEMU does.
 *
 * A lock is a shared open file description lock on one byte. Byte 100 + n says "I use permission n",
 * byte 200 + n "I do not let others use permission n"; the permissions that matter are
 *
 *     n              0 consistent read    1 write    3 resize
 *     reader holds   100                  201        203
 *     writer holds   100                  101, 201   103, 203
 *
 * After taking its own bytes, an opener tests the opposite ones: whoever wants to use n must find
 * 200 + n free, whoever does not share n must find 100 + n free. Two that open at the same time may
 * both fail, never both succeed. A lock never conflicts with those of its own open file description.
 */
#include "store/file.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "base/err.h"

#define USES_OFF     100
#define UNSHARED_OFF 200

struct permission {
	int n;
	const char *name; /* QEMU's words: callers search for them */
	bool reader_uses, reader_shares;
};

/* A writer uses all of them; it shares what a reader shares. */
static const struct permission permissions[] = {
	{0, "consistent read", true, true},
	{1, "write", false, false},
	{3, "resize", false, false},
};
#define N_PERMISSIONS (sizeof(permissions) / sizeof(permissions[0]))

static int lock_byte(int fd, int command, short type, off_t byte, struct flock *fl)
{
	*fl = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
	int r = 0;
	do
		r = fcntl(fd, command, fl);
	while (r != 0 && errno == EINTR);
	return r == 0 ? 0 : errno;
}

static int hold(int fd, off_t byte)
{
	struct flock fl;
	return lock_byte(fd, F_OFD_SETLK, F_RDLCK, byte, &fl);
}

void qk_lock_drop(int fd)
{
	struct flock fl = {
		.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = USES_OFF, .l_len = 200};
	(void)fcntl(fd, F_OFD_SETLK, &fl);
}

static enum qcow_status refuse(
	int fd, const char *share, const char *name, const char *path, struct qcow_error *err)
{
	char holder[160] = "";
	struct stat st;
	qk_lock_drop(fd); /* else the holder found could be this descriptor */
	if (err != NULL && fstat(fd, &st) == 0)
		qk_holder_name(&st, holder, sizeof(holder));
	return QK_FAIL(err, QCOW_E_LOCKED,
		"Failed to get %s\"%s\" lock. Is another process using the image [%s]?%s%s", share,
		name, path, holder[0] != '\0' ? " It is locked by " : "", holder);
}

/* Somebody else exclusively holds a byte that we only want to share. */
static enum qcow_status cannot_hold(int os_errno, const char *path, struct qcow_error *err)
{
	if (os_errno == EAGAIN || os_errno == EACCES)
		return QK_FAIL(err, QCOW_E_LOCKED,
			"Failed to lock the image [%s]: "
			"another process holds an exclusive lock on it",
			path);
	if (os_errno == EINVAL || os_errno == ENOLCK || os_errno == EOPNOTSUPP ||
		os_errno == ENOSYS)
		return QK_FAIL(err, QCOW_E_NOTSUP,
			"%s: the file system has no open file description "
			"locks; to go on without locks, make sure that nothing else uses the image "
			"and switch locking off",
			path);
	return QK_FAIL_OS(err, os_errno, "%s: locking", path);
}

static enum qcow_status test_byte(
	int fd, off_t byte, bool *is_free, const char *path, struct qcow_error *err)
{
	struct flock fl;
	/* asking for an exclusive lock, which is never taken, meets also the shared ones */
	int e = lock_byte(fd, F_OFD_GETLK, F_WRLCK, byte, &fl);
	if (e != 0)
		return QK_FAIL_OS(err, e, "%s: testing the locks of others", path);
	*is_free = fl.l_type == F_UNLCK;
	return QCOW_OK;
}

static enum qcow_status hold_all(
	int fd, bool writer, bool sharing, const char *path, struct qcow_error *err)
{
	for (size_t i = 0; i < N_PERMISSIONS; i++) {
		const struct permission *p = &permissions[i];
		int e = 0;
		if (writer || p->reader_uses)
			e = hold(fd, USES_OFF + p->n);
		if (e == 0 && !sharing && !p->reader_shares)
			e = hold(fd, UNSHARED_OFF + p->n);
		if (e != 0)
			return cannot_hold(e, path, err);
	}
	return QCOW_OK;
}

static enum qcow_status test_all(int fd, bool writer, const char *path, struct qcow_error *err)
{
	bool is_free = true;
	for (size_t i = 0; i < N_PERMISSIONS; i++) {
		const struct permission *p = &permissions[i];
		if (!writer && !p->reader_uses)
			continue;
		QK_TRY(test_byte(fd, UNSHARED_OFF + p->n, &is_free, path, err));
		if (!is_free)
			return refuse(fd, "", p->name, path, err);
	}
	for (size_t i = 0; i < N_PERMISSIONS; i++) {
		const struct permission *p = &permissions[i];
		if (p->reader_shares)
			continue;
		QK_TRY(test_byte(fd, USES_OFF + p->n, &is_free, path, err));
		if (!is_free)
			return refuse(fd, "shared ", p->name, path, err);
	}
	return QCOW_OK;
}

enum qcow_status qk_lock_take(
	int fd, bool writer, bool sharing, const char *path, struct qcow_error *err)
{
	enum qcow_status st = hold_all(fd, writer, sharing, path, err);
	if (st == QCOW_OK && !sharing)
		st = test_all(fd, writer, path, err);
	if (st != QCOW_OK)
		qk_lock_drop(fd);
	return st;
}
