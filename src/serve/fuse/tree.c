/* SPDX-License-Identifier: MIT */
/*
 * tree: folders and files by name and number. Two levels: the root, and folders in it.
 */
#include <string.h>

#include "serve/fuse/core.h"

/* ---- by name ---- */

static size_t hash_of(const struct qk_fuse_node *parent, const char *name)
{
	uint64_t h = 14695981039346656037U ^ (parent != NULL ? parent->ino : 0); /* FNV-1a */
	for (; *name != '\0'; name++)
		h = (h ^ (unsigned char)*name) * 1099511628211U;
	return (size_t)(h ^ h >> 32);
}

static void hash_in(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	struct qk_fuse_node **at =
		&fs->hashed[hash_of(node->parent, node->name) & (fs->n_hashed - 1)];
	node->same_hash = *at;
	*at = node;
}

/* Room for one more. */
static bool grow_hash(struct qk_fuse *fs)
{
	if (fs->n_named < fs->n_hashed)
		return true;
	size_t n = fs->n_hashed != 0 ? 2 * fs->n_hashed : 64;
	struct qk_fuse_node **bigger = qk_calloc(n, sizeof(*bigger));
	if (bigger == NULL)
		return false;
	free(fs->hashed);
	fs->hashed = bigger;
	fs->n_hashed = n;
	for (size_t i = 0; i < fs->n_nodes; i++)
		if (fs->nodes[i] != NULL && fs->nodes[i]->parent != NULL)
			hash_in(fs, fs->nodes[i]);
	return true;
}

/* Below `parent` from here on. There is room. */
static void name_in(struct qk_fuse *fs, struct qk_fuse_node *parent, struct qk_fuse_node *node)
{
	node->parent = parent;
	parent->n_children++;
	fs->n_named++;
	hash_in(fs, node);
}

static void take_out(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	struct qk_fuse_node **at =
		&fs->hashed[hash_of(node->parent, node->name) & (fs->n_hashed - 1)];
	while (*at != node)
		at = &(*at)->same_hash;
	*at = node->same_hash;
	fs->n_named--;
	node->parent->n_children--;
	node->parent = NULL;
}

struct qk_fuse_node *qk_fuse_tree_child(
	struct qk_fuse *fs, const struct qk_fuse_node *folder, const char *name)
{
	struct qk_fuse_node *node = fs->n_hashed != 0
					    ? fs->hashed[hash_of(folder, name) & (fs->n_hashed - 1)]
					    : NULL;
	while (node != NULL && (node->parent != folder || strcmp(node->name, name) != 0))
		node = node->same_hash;
	return node;
}

/* ---- nodes ---- */

/* A free place in `nodes`, or SIZE_MAX: out of memory. */
static size_t free_place(struct qk_fuse *fs)
{
	size_t at = fs->n_nodes;
	if (fs->n_free > 0) {
		for (at = 0; fs->nodes[at] != NULL;)
			at++;
		fs->n_free--;
		return at;
	}
	struct qk_fuse_node **grown = qk_grown(
		fs->nodes, fs->n_nodes, &fs->room, sizeof(*fs->nodes));
	if (grown == NULL)
		return SIZE_MAX;
	fs->nodes = grown;
	fs->nodes[fs->n_nodes++] = NULL;
	return at;
}

static struct qk_fuse_node *new_node(struct qk_fuse *fs, struct qk_fuse_node *parent,
	const char *name, size_t name_bytes, enum qk_fuse_kind kind)
{
	struct qk_fuse_node *node = grow_hash(fs) ? qk_calloc(1, sizeof(*node)) : NULL;
	if (node == NULL || (node->name = qk_strndup(name, name_bytes)) == NULL) {
		free(node);
		return NULL;
	}
	size_t at = free_place(fs);
	if (at == SIZE_MAX) {
		free(node->name);
		free(node);
		return NULL;
	}
	(void)pthread_mutex_init(&node->blocks.lock, NULL);
	(void)clock_gettime(CLOCK_REALTIME, &node->changed);
	node->blocks.counted = UINT64_MAX;
	node->kind = kind;
	node->ino = (fuse_ino_t)at + 1;
	node->generation = ++fs->generation;
	fs->nodes[at] = node;
	if (parent != NULL)
		name_in(fs, parent, node);
	return node;
}

static void free_node(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	fs->nodes[node->ino - 1] = NULL;
	fs->n_free++;
	(void)pthread_mutex_destroy(&node->blocks.lock);
	free(node->name);
	free(node->path);
	free(node);
}

enum qcow_status qk_fuse_tree_init(struct qk_fuse *fs, struct qcow_error *err)
{
	struct qk_fuse_node *root = new_node(fs, NULL, "", 0, QK_FUSE_FOLDER);
	return root != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

void qk_fuse_tree_release(struct qk_fuse *fs)
{
	for (size_t i = 0; i < fs->n_nodes; i++)
		if (fs->nodes[i] != NULL)
			free_node(fs, fs->nodes[i]);
	free(fs->nodes);
	free(fs->hashed);
	fs->nodes = fs->hashed = NULL;
	fs->n_nodes = 0;
}

struct qk_fuse_node *qk_fuse_tree_find(struct qk_fuse *fs, const char *path)
{
	struct qk_fuse_node *folder = fs->nodes[0];
	const char *slash = strchr(path, '/');
	if (folder->path != NULL && strcmp(folder->path, path) == 0)
		return folder; /* it is a file */
	if (slash != NULL) {
		char name[QK_FUSE_NAME_BYTES + 1];
		size_t n = (size_t)(slash - path);
		if (n >= sizeof(name))
			return NULL;
		memcpy(name, path, n);
		name[n] = '\0';
		folder = qk_fuse_tree_child(fs, folder, name);
	}
	struct qk_fuse_node *node = folder != NULL ? qk_fuse_tree_child(fs, folder,
							     slash != NULL ? slash + 1 : path)
						   : NULL;
	return node != NULL && node->path != NULL ? node : NULL;
}

/* Is it one that a folder may have? */
static bool is_name(const char *text, size_t n)
{
	return n > 0 && n <= QK_FUSE_NAME_BYTES && memchr(text, '/', n) == NULL &&
	       !(n == 1 && text[0] == '.') && !(n == 2 && text[0] == '.' && text[1] == '.');
}

/* The folder that is the first part of `path`, made where it is not there; the root where there is one part alone. */
static struct qk_fuse_node *folder_of(struct qk_fuse *fs, const char *path, size_t folder_bytes)
{
	struct qk_fuse_node *root = fs->nodes[0];
	if (folder_bytes == 0)
		return root;
	char name[QK_FUSE_NAME_BYTES + 1];
	memcpy(name, path, folder_bytes);
	name[folder_bytes] = '\0';
	struct qk_fuse_node *folder = qk_fuse_tree_child(fs, root, name);
	if (folder != NULL)
		return folder->kind == QK_FUSE_FOLDER ? folder : NULL;
	return new_node(fs, root, name, folder_bytes, QK_FUSE_FOLDER);
}

enum qcow_status qk_fuse_tree_add(struct qk_fuse *fs, const char *path, enum qk_fuse_kind kind,
	struct qk_fuse_node **out, struct qcow_error *err)
{
	const char *slash = strchr(path, '/');
	size_t folder_bytes = slash != NULL ? (size_t)(slash - path) : 0;
	const char *name = slash != NULL ? slash + 1 : path;
	if ((slash != NULL && !is_name(path, folder_bytes)) || !is_name(name, strlen(name)))
		return QK_FAIL(err, QCOW_E_INVAL, "'%s' is no file name", path);
	if (qk_fuse_tree_find(fs, path) != NULL)
		return QK_FAIL(err, QCOW_E_EXIST, "there is a file '%s' already", path);
	QK_AUTO_FREE char *copy = qk_strndup(path, strlen(path));
	if (copy == NULL)
		return QK_FAIL_NOMEM(err);
	struct qk_fuse_node *node = NULL;
	if (fs->o.only != NULL && strcmp(fs->o.only, path) == 0) {
		node = fs->nodes[0];
		node->kind = kind;
	} else {
		struct qk_fuse_node *folder = folder_of(fs, path, folder_bytes);
		node = folder != NULL ? new_node(fs, folder, name, strlen(name), kind) : NULL;
		if (node == NULL)
			return QK_FAIL_NOMEM(err);
		(void)clock_gettime(CLOCK_REALTIME, &folder->changed);
	}
	node->path = copy;
	copy = NULL;
	*out = node;
	return QCOW_OK;
}

void qk_fuse_tree_let_go(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	if (node->is_gone && node->n_lookups == 0 && node->n_open == 0 && node->ino != QK_FUSE_ROOT)
		free_node(fs, node);
}

static void forget_writable(struct qk_fuse *fs, const struct qk_fuse_node *node)
{
	struct qk_fuse_node **at = &fs->writable;
	while (*at != NULL && *at != node)
		at = &(*at)->next_writable;
	if (*at != NULL)
		*at = node->next_writable;
}

void qk_fuse_tree_remove(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	struct qk_fuse_node *folder = node->parent;
	if (folder != NULL)
		take_out(fs, node);
	forget_writable(fs, node);
	node->is_gone = true;
	qk_fuse_tree_let_go(fs, node);
	if (folder == NULL)
		return;
	(void)clock_gettime(CLOCK_REALTIME, &folder->changed);
	if (folder->ino != QK_FUSE_ROOT && folder->n_children == 0)
		qk_fuse_tree_remove(fs, folder);
}

struct qk_fuse_node *qk_fuse_node(struct qk_fuse *fs, fuse_ino_t ino)
{
	(void)pthread_mutex_lock(&fs->lock);
	struct qk_fuse_node *node = ino > 0 && ino <= fs->n_nodes ? fs->nodes[ino - 1] : NULL;
	(void)pthread_mutex_unlock(&fs->lock);
	return node;
}
