/* SPDX-License-Identifier: MIT */
/*
 * tree: folders and files by name and number. Two levels: the root, and folders in it.
 */
#include <string.h>

#include "serve/fuse/core.h"

static struct qk_fuse_node *new_node(
	struct qk_fuse *fs, const char *name, size_t name_bytes, enum qk_fuse_kind kind)
{
	size_t at = 0;
	while (at < fs->n_nodes && fs->nodes[at] != NULL)
		at++;
	if (at == fs->n_nodes) {
		struct qk_fuse_node **grown = qk_grown(
			fs->nodes, fs->n_nodes, &fs->room, sizeof(*fs->nodes));
		if (grown == NULL)
			return NULL;
		fs->nodes = grown;
		fs->nodes[at] = NULL;
	}
	struct qk_fuse_node *node = qk_calloc(1, sizeof(*node));
	if (node == NULL || (node->name = qk_strndup(name, name_bytes)) == NULL) {
		free(node);
		return NULL;
	}
	if (at == fs->n_nodes)
		fs->n_nodes++;
	(void)pthread_mutex_init(&node->blocks.lock, NULL);
	(void)clock_gettime(CLOCK_REALTIME, &node->changed);
	node->blocks.counted = UINT64_MAX;
	node->kind = kind;
	node->ino = (fuse_ino_t)at + 1;
	node->generation = ++fs->generation;
	fs->nodes[at] = node;
	return node;
}

static void free_node(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	fs->nodes[node->ino - 1] = NULL;
	(void)pthread_mutex_destroy(&node->blocks.lock);
	free(node->name);
	free(node->path);
	free(node);
}

enum qcow_status qk_fuse_tree_init(struct qk_fuse *fs, struct qcow_error *err)
{
	struct qk_fuse_node *root = new_node(fs, "", 0, QK_FUSE_FOLDER);
	return root != NULL ? QCOW_OK : QK_FAIL_NOMEM(err);
}

void qk_fuse_tree_release(struct qk_fuse *fs)
{
	for (size_t i = 0; i < fs->n_nodes; i++)
		if (fs->nodes[i] != NULL)
			free_node(fs, fs->nodes[i]);
	free(fs->nodes);
	fs->nodes = NULL;
	fs->n_nodes = 0;
}

struct qk_fuse_node *qk_fuse_tree_child(
	struct qk_fuse *fs, const struct qk_fuse_node *folder, const char *name)
{
	for (size_t i = 0; i < fs->n_nodes; i++) {
		struct qk_fuse_node *node = fs->nodes[i];
		if (node != NULL && !node->is_gone && node->parent == folder &&
			strcmp(node->name, name) == 0)
			return node;
	}
	return NULL;
}

struct qk_fuse_node *qk_fuse_tree_find(struct qk_fuse *fs, const char *path)
{
	for (size_t i = 0; i < fs->n_nodes; i++) {
		struct qk_fuse_node *node = fs->nodes[i];
		if (node != NULL && !node->is_gone && node->path != NULL &&
			strcmp(node->path, path) == 0)
			return node;
	}
	return NULL;
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
	folder = new_node(fs, name, folder_bytes, QK_FUSE_FOLDER);
	if (folder != NULL)
		folder->parent = root;
	return folder;
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
		node = folder != NULL ? new_node(fs, name, strlen(name), kind) : NULL;
		if (node == NULL)
			return QK_FAIL_NOMEM(err);
		node->parent = folder;
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

static bool is_empty(const struct qk_fuse *fs, const struct qk_fuse_node *folder)
{
	for (size_t i = 0; i < fs->n_nodes; i++)
		if (fs->nodes[i] != NULL && fs->nodes[i]->parent == folder)
			return false;
	return true;
}

void qk_fuse_tree_remove(struct qk_fuse *fs, struct qk_fuse_node *node)
{
	struct qk_fuse_node *folder = node->parent;
	node->is_gone = true;
	node->parent = NULL;
	qk_fuse_tree_let_go(fs, node);
	if (folder == NULL)
		return;
	(void)clock_gettime(CLOCK_REALTIME, &folder->changed);
	if (folder->ino != QK_FUSE_ROOT && is_empty(fs, folder))
		qk_fuse_tree_remove(fs, folder);
}

struct qk_fuse_node *qk_fuse_node(struct qk_fuse *fs, fuse_ino_t ino)
{
	(void)pthread_mutex_lock(&fs->lock);
	struct qk_fuse_node *node = ino > 0 && ino <= fs->n_nodes ? fs->nodes[ino - 1] : NULL;
	(void)pthread_mutex_unlock(&fs->lock);
	return node;
}
