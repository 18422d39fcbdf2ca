/* SPDX-License-Identifier: MIT */
/*
 * api_open: qcow_open and qcow_close: argument checks, and options from callers that were built against
 * another version of the struct.
 */
#include <qcowkit/qcowkit.h>

#include "base/options.h"
#include "engine/chain.h"

#define KNOWN_FLAGS                                                                   \
	((uint32_t)(QCOW_OPEN_NO_BACKING | QCOW_OPEN_NO_DATA_FILE | QCOW_OPEN_CHECK | \
		    QCOW_OPEN_PROBE | QCOW_OPEN_WRITE))

#define KNOWN_DISCARD                                                        \
	((uint32_t)(QCOW_DISCARD_PASS_REQUEST | QCOW_DISCARD_PASS_SNAPSHOT | \
		    QCOW_DISCARD_PASS_OTHER | QCOW_DISCARD_NO_UNREF))

/* Where the struct of a caller has the member. */
#define HAS(options, member)       \
	((options)->struct_size >= \
		offsetof(struct qcow_open_options, member) + sizeof((options)->member))

const char *qcow_version(void)
{
	return QCOW_VERSION_TEXT;
}

QK_TAKE_OPTIONS(take_options, qcow_open_options, "open options", QCOW_OPEN_OPTIONS_INIT, format)

static enum qcow_status check_options(const struct qcow_open_options *o, struct qcow_error *err)
{
	if ((o->flags & ~KNOWN_FLAGS) != 0)
		return QK_FAIL(err, QCOW_E_INVAL, "open flags 0x%x hold an unknown bit", o->flags);
	if (o->snapshot_by_id && o->snapshot_by_name)
		return QK_FAIL(err, QCOW_E_INVAL,
			"snapshot_by_id and snapshot_by_name exclude each other");
	if ((o->flags & QCOW_OPEN_WRITE) != 0 && (o->flags & QCOW_OPEN_CHECK) != 0)
		return QK_FAIL(
			err, QCOW_E_INVAL, "QCOW_OPEN_CHECK does not go with QCOW_OPEN_WRITE");
	if ((o->discard & ~KNOWN_DISCARD) != 0)
		return QK_FAIL(
			err, QCOW_E_INVAL, "discard flags 0x%x hold an unknown bit", o->discard);
	if (o->dirty > QCOW_DIRTY_REFUSE || o->prove > QCOW_PROVE_OFF)
		return QK_FAIL(err, QCOW_E_INVAL, "no such policy: dirty %d, prove %d",
			(int)o->dirty, (int)o->prove);
	return QCOW_OK;
}

/* The store of the header is ours with the other, on failure too. */
static void close_header(const struct qcow_open_options *options)
{
	if (options != NULL && HAS(options, luks_header))
		qcow_store_close(options->luks_header);
}

enum qcow_status qcow_open(struct qcow_store *store, const struct qcow_open_options *options,
	struct qcow_image **out, struct qcow_error *err)
{
	qk_err_clear(err);
	if (store == NULL || out == NULL) {
		qcow_store_close(store);
		close_header(options);
		return QK_FAIL(
			err, QCOW_E_INVAL, "qcow_open needs a store and a place for the image");
	}
	struct qcow_open_options o;
	enum qcow_status status = take_options(options, &o, err);
	if (status == QCOW_OK)
		status = check_options(&o, err);
	if (status != QCOW_OK) {
		qcow_store_close(store);
		close_header(options);
		return status;
	}
	return qk_chain_open(store, &o, out, err);
}

enum qcow_status qcow_close(struct qcow_image *image)
{
	return qk_chain_close(image);
}
