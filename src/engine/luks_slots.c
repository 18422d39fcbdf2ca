/* SPDX-License-Identifier: MIT */
/*
 * luks_slots: see luks_slots.h. The header of version 1 has eight slots of 48 bytes from byte 208 on; a slot's state is the
 * first word of it, which lies in one sector wherever the slot does.
 *
 *	add	the slot inactive, with salt and iterations; its material || state := active ||
 *	erase	state := inactive || random bytes over the material, zeros over salt and iterations ||
 *
 * So a slot that is active has all of its key, in every state that a crash may leave. One that is overwritten is erased
 * first. The header in memory nobody keeps: it is read for each call.
 * Locking: engine/control.h; a LUKS file is closed by its gate.
 */
#include "engine/luks_slots.h"

#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "engine/build.h"
#include "engine/control.h"
#include "engine/crypt.h"
#include "engine/gate.h"
#include "engine/image.h"
#include "engine/rw.h"
#include "crypto/luks1.h"

#define SLOTS_OFF	     208U
#define SLOT_BYTES	     48U
#define STATE_BYTES	     4U
#define DEFAULT_ITER_TIME_MS 2000U

struct job {
	struct qcow_image *image;
	const struct qcow_key_options *o;
	struct qk_crypt_luks_request rq;
	struct qk_luks luks;
	bool is_chosen[QK_LUKS_SLOTS]; /* to be erased */
};

/* ---- what may be done ---- */

static unsigned count_active(const struct job *j)
{
	unsigned n = 0;
	for (unsigned i = 0; i < QK_LUKS_SLOTS; i++)
		n += j->luks.slots[i].is_active;
	return n;
}

static enum qcow_status judge_add(const struct job *j, unsigned *slot, struct qcow_error *err)
{
	if (j->o->new_secret.data == NULL)
		return QK_FAIL(err, QCOW_E_INVAL, "'new-secret' is required to activate a keyslot");
	if (j->o->old_secret.data != NULL)
		return QK_FAIL(err, QCOW_E_INVAL,
			"'old-secret' must not be given when activating keyslots");
	if (j->o->slot != QCOW_LUKS_ANY_SLOT) {
		*slot = (unsigned)j->o->slot;
		if (!j->luks.slots[*slot].is_active || j->o->force)
			return QCOW_OK;
		return QK_FAIL(err, QCOW_E_EXIST,
			"Refusing to overwrite active keyslot %u - please erase it first", *slot);
	}
	for (*slot = 0; *slot < QK_LUKS_SLOTS; (*slot)++)
		if (!j->luks.slots[*slot].is_active)
			return QCOW_OK;
	return QK_FAIL(err, QCOW_E_EXIST, "Can't add a keyslot - all keyslots are in use");
}

/* The slots that the old passphrase opens. */
static enum qcow_status choose_by_secret(struct job *j, struct qcow_error *err)
{
	bool has_any = false;
	j->rq.passphrase = (struct qk_span){j->o->old_secret.data, j->o->old_secret.len};
	for (unsigned i = 0; i < QK_LUKS_SLOTS; i++) {
		bool is_asked = j->o->slot == QCOW_LUKS_ANY_SLOT || j->o->slot == (int)i;
		if (is_asked && j->luks.slots[i].is_active)
			QK_TRY(qk_crypt_luks_fits(&j->rq, &j->luks, i, &j->is_chosen[i], err));
		has_any = has_any || j->is_chosen[i];
	}
	if (has_any)
		return QCOW_OK;
	if (j->o->slot != QCOW_LUKS_ANY_SLOT)
		return QK_FAIL(err, QCOW_E_NOENT,
			"Given keyslot %d doesn't contain the given old password for erase "
			"operation",
			j->o->slot);
	return QK_FAIL(
		err, QCOW_E_NOENT, "No keyslots match given (old) password for erase operation");
}

static enum qcow_status choose_by_number(struct job *j, struct qcow_error *err)
{
	if (!j->luks.slots[j->o->slot].is_active && !j->o->force)
		return QK_FAIL(err, QCOW_E_NOENT, "Given keyslot %d is already erased (inactive)",
			j->o->slot);
	j->is_chosen[j->o->slot] = true;
	return QCOW_OK;
}

static enum qcow_status judge_erase(struct job *j, struct qcow_error *err)
{
	unsigned n_gone = 0;
	if (j->o->new_secret.data != NULL)
		return QK_FAIL(
			err, QCOW_E_INVAL, "'new-secret' must not be given when erasing keyslots");
	if (j->o->iter_time_ms != 0)
		return QK_FAIL(
			err, QCOW_E_INVAL, "'iter-time' must not be given when erasing keyslots");
	if (j->o->old_secret.data == NULL && j->o->slot == QCOW_LUKS_ANY_SLOT)
		return QK_FAIL(err, QCOW_E_INVAL,
			"To erase keyslot(s), either explicit keyslot index or the password "
			"currently "
			"contained in them must be given");
	QK_TRY(j->o->old_secret.data != NULL ? choose_by_secret(j, err) : choose_by_number(j, err));
	for (unsigned i = 0; i < QK_LUKS_SLOTS; i++)
		n_gone += j->is_chosen[i] && j->luks.slots[i].is_active;
	if (n_gone == 0 || n_gone < count_active(j) || j->o->force)
		return QCOW_OK;
	if (j->o->old_secret.data != NULL)
		return QK_FAIL(err, QCOW_E_POLICY,
			"All the active keyslots match the (old) password that was given and "
			"erasing them "
			"will erase all the data in the image irreversibly - refusing operation");
	return QK_FAIL(err, QCOW_E_POLICY,
		"Attempt to erase the only active keyslot %d which will erase all the data in the "
		"image "
		"irreversibly - refusing operation",
		j->o->slot);
}

/* ---- bytes ---- */

static enum qcow_status put(
	struct job *j, const void *bytes, size_t n, uint64_t off, struct qcow_error *err)
{
	struct qk_rw *rw = j->image->rw;
	QK_ASSERT(K7, qk_in_range(off, n, j->rq.len));
	if (!j->image->is_raw)
		QK_TRY(qk_space_check_overlap(rw->space, QK_SPACE_CRYPTO, j->rq.off + off, n, err));
	return qcow_store_write(j->rq.store, bytes, n, j->rq.off + off, err);
}

/* Slot `i` as j->luks has it; with `state_alone` nothing but whether it is active. */
static enum qcow_status put_slot(
	struct job *j, unsigned i, bool state_alone, struct qcow_error *err)
{
	uint8_t header[QK_LUKS_HEADER_BYTES];
	uint64_t off = SLOTS_OFF + (uint64_t)i * SLOT_BYTES;
	qk_luks_encode(&j->luks, header);
	QK_TRY(put(j, header + off, state_alone ? STATE_BYTES : SLOT_BYTES, off, err));
	return qcow_store_flush(j->rq.store, err);
}

/* ---- erase ---- */

/* Slot i, which is inactive and stable so. */
static enum qcow_status wipe(struct job *j, unsigned i, struct qcow_error *err)
{
	struct qk_luks_slot *s = &j->luks.slots[i];
	size_t bytes = qk_luks_material_bytes(&j->luks, i);
	/* what an inactive slot says was judged by nobody */
	bool is_sound = s->stripes == QK_LUKS_STRIPES && s->key_off >= QK_LUKS_HEADER_BYTES &&
			qk_in_range(s->key_off, bytes, j->rq.len);
	if (is_sound) {
		uint8_t *noise QK_AUTO_FREE = qk_malloc(bytes, 1);
		if (noise == NULL)
			return QK_FAIL_NOMEM(err);
		QK_TRY(qk_build_crypt_random(noise, bytes, err));
		QK_TRY(put(j, noise, bytes, s->key_off, err));
	}
	s->iterations = 0;
	memset(s->salt, 0, sizeof(s->salt));
	return put_slot(j, i, false, err);
}

static enum qcow_status erase(struct job *j, unsigned i, struct qcow_error *err)
{
	bool was_active = j->luks.slots[i].is_active;
	j->luks.slots[i].is_active = false;
	if (was_active)
		QK_TRY(put_slot(j, i, true, err));
	return wipe(j, i, err);
}

static enum qcow_status erase_chosen(struct job *j, struct qcow_error *err)
{
	for (unsigned i = 0; i < QK_LUKS_SLOTS; i++)
		if (j->is_chosen[i])
			QK_TRY(erase(j, i, err));
	return QCOW_OK;
}

/* ---- add ---- */

static enum qcow_status make_material(
	struct job *j, unsigned i, uint8_t *material, struct qcow_error *err)
{
	const struct qcow_key_options *o = j->o;
	struct qk_luks_slot *s = &j->luks.slots[i];
	uint32_t ms = o->iter_time_ms != 0 ? o->iter_time_ms : DEFAULT_ITER_TIME_MS;
	const struct qk_luks_slot_request seal = {.luks = &j->luks,
		.slot = i,
		.material = material,
		.passphrase = {o->new_secret.data, o->new_secret.len},
		.cancel = j->rq.cancel};
	QK_TRY(qk_build_crypt_iterations(
		&j->luks, j->luks.spec.key_bytes, ms, &s->iterations, err));
	QK_TRY(qk_build_crypt_random(s->salt, sizeof(s->salt), err));
	QK_TRY(qk_build_crypt_random(material, qk_luks_material_bytes(&j->luks, i), err));
	return qk_luks_seal(&seal, qk_crypt_key(j->image->crypt), err);
}

/* Where slot i has its material: where it had one, or as new headers have it. */
static enum qcow_status place(struct job *j, unsigned i, struct qcow_error *err)
{
	struct qk_luks fresh = j->luks;
	struct qk_luks_slot *s = &j->luks.slots[i];
	QK_TRY(qk_luks_layout(&fresh, err));
	uint64_t end = j->rq.detached ? j->rq.len : qk_min(j->rq.len, j->luks.payload_off);
	if (s->stripes != QK_LUKS_STRIPES || s->key_off < QK_LUKS_HEADER_BYTES)
		*s = fresh.slots[i];
	uint64_t bytes = qk_luks_material_bytes(&j->luks, i);
	bool is_free = qk_in_range(s->key_off, bytes, end);
	for (unsigned k = 0; k < QK_LUKS_SLOTS; k++) {
		const struct qk_luks_slot *other = &j->luks.slots[k];
		uint64_t other_end = other->key_off + qk_luks_material_bytes(&j->luks, k);
		if (k != i && other->is_active && s->key_off < other_end &&
			other->key_off < s->key_off + bytes)
			is_free = false;
	}
	return is_free ? QCOW_OK
		       : QK_FAIL(err, QCOW_E_FORMAT,
				 "the header has no room for the key material of slot %u", i);
}

/* Into a slot that is inactive. */
static enum qcow_status fill_slot(struct job *j, unsigned i, struct qcow_error *err)
{
	QK_TRY(place(j, i, err));
	size_t bytes = qk_luks_material_bytes(&j->luks, i);
	uint8_t *material QK_AUTO_FREE = qk_malloc(bytes, 1);
	if (material == NULL)
		return QK_FAIL_NOMEM(err);
	QK_TRY(make_material(j, i, material, err));
	j->luks.slots[i].is_active = false;
	QK_TRY(put(j, material, bytes, j->luks.slots[i].key_off, err));
	QK_TRY(put_slot(j, i, false, err));
	j->luks.slots[i].is_active = true;
	return put_slot(j, i, true, err);
}

/* Over an active slot. Where it is the only one the passphrase goes to another first, which is erased afterwards. */
static enum qcow_status replace_slot(struct job *j, unsigned i, struct qcow_error *err)
{
	unsigned spare = i == 0 ? 1 : 0;
	bool is_only = count_active(j) == 1;
	if (is_only)
		QK_TRY(fill_slot(j, spare, err));
	QK_TRY(erase(j, i, err));
	QK_TRY(fill_slot(j, i, err));
	return is_only ? erase(j, spare, err) : QCOW_OK;
}

/* ---- all of it ---- */

static enum qcow_status work(struct job *j, struct qcow_error *err)
{
	unsigned slot = 0;
	QK_TRY(qk_crypt_luks_header(&j->rq, &j->luks, err));
	if (j->o->action == QCOW_KEY_ADD)
		QK_TRY(judge_add(j, &slot, err));
	else
		QK_TRY(judge_erase(j, err));
	if (j->o->dry_run)
		return QCOW_OK;
	if (j->o->action == QCOW_KEY_ERASE)
		return erase_chosen(j, err);
	return j->luks.slots[slot].is_active ? replace_slot(j, slot, err) : fill_slot(j, slot, err);
}

static enum qcow_status judge(
	const struct qcow_image *image, const struct qcow_key_options *o, struct qcow_error *err)
{
	bool is_luks = image->is_luks ||
		       (!image->is_raw && image->header.crypt_method == QK_CRYPT_LUKS);
	if (!is_luks)
		return QK_FAIL(err, QCOW_E_NOTSUP, "'%s' is not encrypted with LUKS",
			qcow_store_name(image->store));
	if (image->crypt == NULL && o->action == QCOW_KEY_ADD)
		return QK_FAIL(err, QCOW_E_KEY, "the image is open without its key");
	if (o->action != QCOW_KEY_ADD && o->action != QCOW_KEY_ERASE)
		return QK_FAIL(err, QCOW_E_INVAL, "no such change of keys: %d", (int)o->action);
	if (o->slot < QCOW_LUKS_ANY_SLOT || o->slot >= QCOW_LUKS_SLOTS)
		return QK_FAIL(err, QCOW_E_INVAL,
			"Invalid keyslot %d specified, must be between 0 and %d", o->slot,
			QCOW_LUKS_SLOTS - 1);
	return QCOW_OK;
}

static enum qcow_status work_alone(struct job *j, struct qcow_error *err)
{
	struct qcow_image *image = j->image;
	if (j->o->dry_run)
		return work(j, err);
	if (!image->is_raw) {
		QK_TRY(qk_control_begin(image, err));
		return qk_control_end(image, 0, work(j, err), err);
	}
	qk_gate_close(image->rw->gate);
	enum qcow_status status = work(j, err);
	qk_gate_open(image->rw->gate);
	return status;
}

enum qcow_status qk_luks_slots_amend(
	struct qcow_image *image, const struct qcow_key_options *o, struct qcow_error *err)
{
	struct job j = {.image = image, .o = o};
	QK_TRY(judge(image, o, err));
	j.rq = (struct qk_crypt_luks_request){
		.store = image->header_store != NULL ? image->header_store : image->store,
		.off = image->is_luks ? 0 : image->ext.crypto_off,
		.len = image->header_store != NULL ? image->header_bytes
		       : image->is_luks		   ? (uint64_t)image->file_size
						   : image->ext.crypto_len,
		.cancel = {o->progress.cancelled, o->progress.ctx},
		.detached = image->header_store != NULL};
	enum qcow_status status = work_alone(&j, err);
	explicit_bzero(&j.luks, sizeof(j.luks));
	return status;
}
