/* SPDX-License-Identifier: MIT */
/*
 * Encrypted guest data: "crypt_method" of the header, "Full disk encryption header pointer", and LUKS1 (the "LUKS On-Disk
 * Format Specification", version 1.2.3) as it lies in a qcow2 file. Ciphers and hashes are those of libgcrypt.
 *
 *	crypt_method 1	AES-128-CBC, the passphrase is the key; sectors are numbered by the guest's offset
 *	crypt_method 2	LUKS1, AES-XTS or AES-CBC with plain64; sectors are numbered by their place in the file
 */
#include "oracle.h"

#include <gcrypt.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR	    512u
#define N_SLOTS	    8u
#define SLOT_ACTIVE UINT64_C(0x00ac71f3)

/* ---- sectors ---- */

static gcry_cipher_hd_t cipher_of(const struct image_key *key)
{
	int mode = key->is_xts ? GCRY_CIPHER_MODE_XTS : GCRY_CIPHER_MODE_CBC;
	uint64_t bits = key->n_bytes * (key->is_xts ? 4 : 8);
	int algo = bits == 128	 ? GCRY_CIPHER_AES128
		   : bits == 192 ? GCRY_CIPHER_AES192
				 : GCRY_CIPHER_AES256;
	gcry_cipher_hd_t cipher = NULL;
	if (gcry_cipher_open(&cipher, algo, mode, 0) != 0)
		return NULL;
	if (gcry_cipher_setkey(cipher, key->bytes, key->n_bytes) == 0)
		return cipher;
	gcry_cipher_close(cipher);
	return NULL;
}

/* Whole sectors; the first has this number. */
static void decrypt(const struct image_key *key, uint8_t *buf, uint64_t bytes, uint64_t number)
{
	gcry_cipher_hd_t cipher = cipher_of(key);
	if (!cipher)
		refuse("libgcrypt does not take the key");
	for (uint64_t at = 0; at < bytes; at += SECTOR, number++) {
		uint8_t iv[16] = {0};
		for (unsigned i = 0; i < 8; i++)
			iv[i] = (uint8_t)(number >> (8 * i));
		gcry_cipher_setiv(cipher, iv, sizeof iv);
		gcry_cipher_decrypt(cipher, buf + at, SECTOR, NULL, 0);
	}
	gcry_cipher_close(cipher);
}

void read_encrypted(struct image *img, const struct file *file, const struct run *run, uint8_t *buf,
	uint64_t bytes)
{
	uint64_t into = run->host % SECTOR, span = (into + bytes + SECTOR - 1) / SECTOR * SECTOR;
	uint64_t host = run->host - into, guest = run->guest - into;
	if (!img->key.n_bytes)
		refuse("the guest's data is encrypted");
	uint8_t *sectors = malloc(span);
	if (!sectors)
		refuse("out of memory");
	read_at(file, sectors, span, host);
	decrypt(&img->key, sectors, span, (img->key.by_guest ? guest : host) / SECTOR);
	memcpy(buf, sectors + into, bytes);
	free(sectors);
}

/* ---- LUKS1 ---- */

struct luks {
	int hash;
	const uint8_t *header; /* 592 bytes */
	const char *passphrase;
};

/* Each block of as many bytes as a digest has becomes the digest of its number and itself. */
static void diffuse(int hash, uint8_t *buf, uint64_t bytes)
{
	uint64_t size = gcry_md_get_algo_dlen(hash);
	uint8_t in[4 + 64], out[64];
	for (uint64_t at = 0, n = 0; at < bytes; at += size, n++) {
		uint64_t part = bytes - at < size ? bytes - at : size;
		for (unsigned i = 0; i < 4; i++)
			in[i] = (uint8_t)(n >> (24 - 8 * i));
		memcpy(in + 4, buf + at, part);
		gcry_md_hash_buffer(hash, out, in, 4 + part);
		memcpy(buf + at, out, part);
	}
}

/* Anti-forensic merge: `stripes` times the key's bytes to the key. */
static void merge(int hash, const uint8_t *split, uint64_t stripes, struct image_key *key)
{
	memset(key->bytes, 0, key->n_bytes);
	for (uint64_t s = 0; s < stripes; s++) {
		for (uint64_t i = 0; i < key->n_bytes; i++)
			key->bytes[i] ^= split[s * key->n_bytes + i];
		if (s + 1 < stripes)
			diffuse(hash, key->bytes, key->n_bytes);
	}
}

static bool is_master_key(const struct luks *luks, const struct image_key *key)
{
	uint8_t digest[20];
	return gcry_kdf_derive(key->bytes, key->n_bytes, GCRY_KDF_PBKDF2, luks->hash,
		       luks->header + 132, 32, be(luks->header + 164, 4), sizeof digest,
		       digest) == 0 &&
	       memcmp(digest, luks->header + 112, sizeof digest) == 0;
}

static bool open_slot(const struct image *img, const struct luks *luks, const uint8_t *slot,
	struct image_key *key)
{
	struct image_key derived = *key;
	uint64_t stripes = be(slot + 44, 4), bytes = stripes * key->n_bytes;
	uint64_t span = (bytes + SECTOR - 1) / SECTOR * SECTOR;
	if (be(slot, 4) != SLOT_ACTIVE || !stripes || stripes > 100000)
		return false;
	if (gcry_kdf_derive(luks->passphrase, strlen(luks->passphrase), GCRY_KDF_PBKDF2, luks->hash,
		    slot + 8, 32, be(slot + 4, 4), derived.n_bytes, derived.bytes) != 0)
		refuse("libgcrypt does not derive the key");
	uint8_t *split = take(span, 1);
	read_at(&img->file, split, span, img->crypto_off + be(slot + 40, 4) * SECTOR);
	decrypt(&derived, split, span, 0);
	merge(luks->hash, split, stripes, key);
	return is_master_key(luks, key);
}

static void unlock_luks(struct image *img, const char *passphrase)
{
	uint8_t h[592];
	struct luks luks = {.header = h, .passphrase = passphrase};
	read_at(&img->file, h, sizeof h, img->crypto_off);
	if (memcmp(h, "LUKS\xba\xbe\0\1", 8) != 0 || memcmp(h + 8, "aes", 4) != 0)
		refuse("no LUKS1 header, or a cipher that is not AES");
	img->key.is_xts = memcmp(h + 40, "xts-plain64", 12) == 0;
	if (!img->key.is_xts && memcmp(h + 40, "cbc-plain64", 12) != 0)
		refuse("LUKS with cipher mode '%.32s'", (const char *)h + 40);
	luks.hash = gcry_md_map_name(memchr(h + 72, 0, 32) ? (const char *)h + 72 : "");
	img->key.n_bytes = be(h + 108, 4);
	if (!luks.hash || img->key.n_bytes > sizeof img->key.bytes || img->key.n_bytes % 16)
		refuse("LUKS with hash '%.32s' and keys of %ju bytes", (const char *)h + 72,
			(uintmax_t)img->key.n_bytes);
	for (unsigned i = 0; i < N_SLOTS; i++)
		if (open_slot(img, &luks, h + 208 + i * 48, &img->key))
			return;
	refuse("the passphrase opens no slot");
}

void image_unlock(struct image *img, const char *passphrase)
{
	uint64_t n = strlen(passphrase);
	gcry_check_version(NULL);
	if (img->crypt_method == 2) {
		unlock_luks(img, passphrase);
		return;
	}
	img->key = (struct image_key){.n_bytes = img->crypt_method ? 16 : 0, .by_guest = true};
	memcpy(img->key.bytes, passphrase, n < 16 ? n : 16);
}
