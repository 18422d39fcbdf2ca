/* SPDX-License-Identifier: MIT */
/*
 * fuse: the file system from its making to its end, and the threads that answer the kernel.
 *
 * Each thread reads one request, answers it and reads the next; reads block. So the end is: unmount, which ends every read; and
 * where somebody still has files open, a signal that interrupts the reads.
 */
#include <fcntl.h>
#include <signal.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/num.h"
#include "serve/fuse/core.h"

enum {
	LEAST_THREADS = 8,
	DRAIN_TURNS = 5000 /* of a millisecond */
};

_Thread_local struct qk_fuse_worker *qk_fuse_me;

/* What libfuse said, in a row. */
static _Thread_local char said[256];

static void on_say(enum fuse_log_level level, const char *fmt, va_list ap)
{
	size_t used = strlen(said);
	if (level > FUSE_LOG_ERR)
		return;
	(void)vsnprintf(said + used, sizeof(said) - used, fmt, ap);
	used = strlen(said);
	if (used > 0 && said[used - 1] == '\n')
		said[used - 1] = '\0';
}

/* ---- making ---- */

static char *copy(const char *text, bool *ok)
{
	char *out = text != NULL ? qk_strndup(text, strlen(text)) : NULL;
	*ok = *ok && (text == NULL || out != NULL);
	return out;
}

enum qcow_status qk_fuse_new(
	const struct qk_fuse_options *options, struct qk_fuse **out, struct qcow_error *err)
{
	struct qk_fuse *fs = qk_calloc(1, sizeof(*fs));
	if (fs == NULL)
		return QK_FAIL_NOMEM(err);
	bool ok = true;
	fs->o = *options;
	fs->o.source = copy(options->source, &ok);
	fs->o.options = copy(options->options, &ok);
	fs->o.only = copy(options->only, &ok);
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	if (fs->o.n_threads == 0)
		fs->o.n_threads = (unsigned)qk_max(LEAST_THREADS, cores > 0 ? (uint64_t)cores : 1);
	qk_view_gate_init(&fs->gate);
	(void)pthread_mutex_init(&fs->lock, NULL);
	(void)pthread_cond_init(&fs->something_stale, NULL);
	enum qcow_status status = ok ? qk_fuse_tree_init(fs, err) : QK_FAIL_NOMEM(err);
	if (status == QCOW_OK)
		*out = fs;
	else
		qk_fuse_free(fs);
	return status;
}

void qk_fuse_free(struct qk_fuse *fs)
{
	if (fs == NULL)
		return;
	qk_fuse_stop(fs);
	for (size_t i = 0; i < fs->n_nodes; i++) {
		struct qk_fuse_node *node = fs->nodes[i];
		if (node != NULL && node->kind == QK_FUSE_FILE && node->ops != NULL &&
			node->ops->close != NULL)
			node->ops->close(node->ctx);
	}
	qk_fuse_tree_release(fs);
	qk_view_gate_release(&fs->gate);
	(void)pthread_mutex_destroy(&fs->lock);
	(void)pthread_cond_destroy(&fs->something_stale);
	free((void *)(uintptr_t)fs->o.source);
	free((void *)(uintptr_t)fs->o.options);
	free((void *)(uintptr_t)fs->o.only);
	free(fs->mountpoint);
	free(fs);
}

/* ---- files ---- */

enum qcow_status qk_fuse_add(struct qk_fuse *fs, const struct qk_nbd_export *export, uint64_t off,
	bool sleeps, struct qcow_error *err)
{
	struct qk_fuse_node *node = NULL;
	(void)pthread_mutex_lock(&fs->lock);
	enum qcow_status status = qk_fuse_tree_add(fs, export->name, QK_FUSE_FILE, &node, err);
	if (status == QCOW_OK) {
		node->ops = export->ops;
		node->ctx = export->ctx;
		node->read_only = export->read_only;
		node->off = off;
		node->sleeps = sleeps;
		if (!node->read_only) {
			node->next_writable = fs->writable;
			fs->writable = node;
		}
		atomic_store(&node->size, export->size);
	}
	(void)pthread_mutex_unlock(&fs->lock);
	return status;
}

/* The texts of the bitmaps of `node` that are not among `files` go. fs->lock is held. */
static void remove_texts(
	struct qk_fuse *fs, const struct qk_fuse_node *node, const char *const *files, unsigned n)
{
	for (size_t i = 0; i < fs->n_nodes; i++) {
		struct qk_fuse_node *text = fs->nodes[i];
		if (text == NULL || text->kind != QK_FUSE_TEXT || text->of != node)
			continue;
		bool stays = false;
		for (unsigned j = 0; j < n && !stays; j++)
			stays = strcmp(text->path, files[j]) == 0;
		if (stays)
			continue;
		text->of = NULL;
		qk_fuse_tree_remove(fs, text);
	}
}

enum qcow_status qk_fuse_remove(
	struct qk_fuse *fs, const char *name, bool hard, struct qcow_error *err)
{
	enum qcow_status status = QCOW_OK;
	const struct qk_nbd_export_ops *ops = NULL;
	void *ctx = NULL;
	qk_view_gate_close(&fs->gate);
	(void)pthread_mutex_lock(&fs->lock);
	struct qk_fuse_node *node = qk_fuse_tree_find(fs, name);
	if (node == NULL || node->kind != QK_FUSE_FILE) {
		status = QK_FAIL(err, QCOW_E_NOENT, "there is no file '%s'", name);
	} else if (node->n_open > 0 && !hard) {
		status = QK_FAIL(err, QCOW_E_LOCKED, "'%s' is open", name);
	} else {
		ops = node->ops;
		ctx = node->ctx;
		node->ops = NULL;
		node->ctx = NULL;
		remove_texts(fs, node, NULL, 0);
		qk_fuse_tree_remove(fs, node);
	}
	(void)pthread_mutex_unlock(&fs->lock);
	if (ops != NULL && ops->close != NULL)
		ops->close(ctx);
	qk_view_gate_open(&fs->gate);
	return status;
}

bool qk_fuse_has(struct qk_fuse *fs, const char *name)
{
	(void)pthread_mutex_lock(&fs->lock);
	bool has = qk_fuse_tree_find(fs, name) != NULL;
	(void)pthread_mutex_unlock(&fs->lock);
	return has;
}

enum qcow_status qk_fuse_resized(
	struct qk_fuse *fs, const char *name, uint64_t new_size, struct qcow_error *err)
{
	enum qcow_status status = QCOW_OK;
	(void)pthread_mutex_lock(&fs->lock);
	struct qk_fuse_node *node = qk_fuse_tree_find(fs, name);
	if (node == NULL) {
		status = QK_FAIL(err, QCOW_E_NOENT, "there is no file '%s'", name);
	} else {
		atomic_store(&node->size, new_size);
		atomic_fetch_add(&node->blocks.n_changes, 1);
		qk_fuse_make_stale_size(fs, node);
	}
	(void)pthread_mutex_unlock(&fs->lock);
	return status;
}

static enum qcow_status set_texts(struct qk_fuse *fs, struct qk_fuse_node *node,
	const char *const *files, unsigned n, struct qcow_error *err)
{
	remove_texts(fs, node, files, n);
	for (unsigned i = 0; i < n; i++) {
		struct qk_fuse_node *text = qk_fuse_tree_find(fs, files[i]);
		if (text == NULL)
			QK_TRY(qk_fuse_tree_add(fs, files[i], QK_FUSE_TEXT, &text, err));
		text->of = node;
		text->bitmap = i;
		(void)clock_gettime(CLOCK_REALTIME, &text->changed);
	}
	return QCOW_OK;
}

enum qcow_status qk_fuse_set_bitmaps(struct qk_fuse *fs, const char *name, const char *const *files,
	unsigned n, struct qcow_error *err)
{
	qk_view_gate_close(&fs->gate);
	(void)pthread_mutex_lock(&fs->lock);
	struct qk_fuse_node *node = qk_fuse_tree_find(fs, name);
	enum qcow_status status = node != NULL ? set_texts(fs, node, files, n, err)
					       : QK_FAIL(err, QCOW_E_NOENT, "there is no file '%s'",
							 name);
	(void)pthread_mutex_unlock(&fs->lock);
	qk_view_gate_open(&fs->gate);
	return status;
}

void qk_fuse_quiesce(struct qk_fuse *fs)
{
	qk_view_gate_close(&fs->gate);
}

void qk_fuse_resume(struct qk_fuse *fs)
{
	qk_view_gate_open(&fs->gate);
}

void qk_fuse_get_stats(struct qk_fuse *fs, struct qk_fuse_stats *out)
{
	*out = (struct qk_fuse_stats){.n_files = 0};
	(void)pthread_mutex_lock(&fs->lock);
	for (size_t i = 0; i < fs->n_nodes; i++) {
		const struct qk_fuse_node *node = fs->nodes[i];
		if (node == NULL || node->kind == QK_FUSE_FOLDER)
			continue;
		out->n_files += !node->is_gone;
		out->n_open += node->n_open;
	}
	(void)pthread_mutex_unlock(&fs->lock);
	for (unsigned i = 0; i < QK_FUSE_COUNTS; i++)
		out->counts[i] = (struct qk_nbd_counter){.requests = fs->counts[i].requests,
			.bytes = fs->counts[i].bytes,
			.errors = fs->counts[i].errors};
}

/* ---- mounting ---- */

/* "-o" words for libfuse. False: out of memory. */
static bool make_args(const struct qk_fuse *fs, struct fuse_args *args)
{
	QK_AUTO_FREE char *source = NULL;
	char *all = NULL;
	bool ok = fuse_opt_add_arg(args, "qcow") == 0 &&
		  asprintf(&source, "fsname=%s", fs->o.source) >= 0 &&
		  fuse_opt_add_opt(&all, "subtype=qcow") == 0 &&
		  fuse_opt_add_opt(&all, "default_permissions") == 0 &&
		  fuse_opt_add_opt_escaped(&all, source) == 0 &&
		  (fs->o.options == NULL || fs->o.options[0] == '\0' ||
			  fuse_opt_add_opt(&all, fs->o.options) == 0) &&
		  fuse_opt_add_arg(args, "-o") == 0 && fuse_opt_add_arg(args, all) == 0;
	free(all);
	return ok;
}

static enum qcow_status make_session(struct qk_fuse *fs, struct qcow_error *err)
{
	struct fuse_lowlevel_ops ops = {.init = NULL};
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	qk_fuse_add_meta(&ops);
	qk_fuse_add_io(&ops);
	fuse_set_log_func(on_say);
	said[0] = '\0';
	bool ok = make_args(fs, &args);
	if (ok)
		fs->session = fuse_session_new(&args, &ops, sizeof(ops), fs);
	fuse_opt_free_args(&args);
	if (fs->session != NULL)
		return QCOW_OK;
	return ok ? QK_FAIL(err, QCOW_E_NOTSUP, "%s", said[0] != '\0' ? said : "it is refused")
		  : QK_FAIL_NOMEM(err);
}

static enum qcow_status look_at(
	const struct qk_fuse *fs, const char *mountpoint, struct qcow_error *err)
{
	struct stat st;
	if (stat(mountpoint, &st) != 0)
		return QK_FAIL_OS(err, errno, "'%s'", mountpoint);
	if (fs->o.only == NULL && !S_ISDIR(st.st_mode))
		return QK_FAIL(err, QCOW_E_INVAL, "'%s' is no folder", mountpoint);
	if (fs->o.only != NULL && !S_ISREG(st.st_mode))
		return QK_FAIL(err, QCOW_E_INVAL, "'%s' is no regular file", mountpoint);
	if (fs->o.only != NULL && fs->nodes[0]->kind == QK_FUSE_FOLDER)
		return QK_FAIL(err, QCOW_E_NOENT, "there is no file '%s'", fs->o.only);
	return QCOW_OK;
}

enum qcow_status qk_fuse_mount(struct qk_fuse *fs, const char *mountpoint, struct qcow_error *err)
{
	QK_TRY(look_at(fs, mountpoint, err));
	char *path = realpath(mountpoint, NULL);
	if (path == NULL)
		return QK_FAIL_OS(err, errno, "'%s'", mountpoint);
	enum qcow_status status = make_session(fs, err);
	said[0] = '\0';
	if (status == QCOW_OK && fuse_session_mount(fs->session, path) != 0)
		status = QK_FAIL(err, QCOW_E_NOTSUP, "%s",
			said[0] != '\0' ? said : "the system does not let us");
	if (status == QCOW_OK) {
		fs->mountpoint = path;
		return QCOW_OK;
	}
	free(path);
	if (fs->session != NULL)
		fuse_session_destroy(fs->session);
	fs->session = NULL;
	return status;
}

/* ---- threads ---- */

static void rest(void)
{
	const struct timespec millisecond = {.tv_nsec = 1000000};
	(void)nanosleep(&millisecond, NULL);
}

static void on_wake(int signal_number)
{
	(void)signal_number;
}

static void answer(struct qk_fuse *fs)
{
	struct fuse_buf buf = {.mem = NULL};
	while (!atomic_load(&fs->is_over)) {
		int n = fuse_session_receive_buf(fs->session, &buf);
		if (n == -EINTR || n == -EAGAIN)
			continue;
		if (n == -ENOMEM) {
			rest();
			continue;
		}
		if (n <= 0)
			break;
		atomic_fetch_add(&fs->n_busy, 1);
		fuse_session_process_buf(fs->session, &buf);
		atomic_fetch_sub(&fs->n_busy, 1);
	}
	free(buf.mem);
}

static void *work(void *arg)
{
	struct qk_fuse_worker *w = arg;
	struct qk_fuse *fs = w->fs;
	qk_fuse_me = w;
	answer(fs);
	if (!atomic_load(&fs->is_over) && !atomic_exchange(&fs->told_end, true) &&
		fs->o.on_end != NULL)
		fs->o.on_end(fs->o.ctx);
	atomic_fetch_sub(&fs->n_alive, 1);
	return NULL;
}

/* All signals are somebody else's, but the one that interrupts a read. */
static int make_thread(struct qk_fuse_worker *w)
{
	sigset_t all, old;
	(void)sigfillset(&all);
	(void)sigdelset(&all, SIGUSR1);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	int failed = pthread_create(&w->thread, NULL, work, w);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	return failed;
}

static enum qcow_status make_worker(struct qk_fuse *fs, struct qcow_error *err)
{
	struct qk_fuse_worker *w = &fs->workers[fs->n_workers++];
	w->fs = fs;
	w->buf = qk_malloc_aligned(4096, QK_FUSE_IO_BYTES);
	if (w->buf == NULL)
		return QK_FAIL_NOMEM(err);
	atomic_fetch_add(&fs->n_alive, 1);
	int failed = make_thread(w);
	w->is_made = failed == 0;
	if (w->is_made)
		return QCOW_OK;
	atomic_fetch_sub(&fs->n_alive, 1);
	return QK_FAIL_OS(err, failed, "cannot make a thread");
}

enum qcow_status qk_fuse_start(struct qk_fuse *fs, struct qcow_error *err)
{
	struct sigaction action = {.sa_handler = on_wake}; /* no SA_RESTART */
	(void)sigemptyset(&action.sa_mask);
	if (sigaction(SIGUSR1, &action, NULL) != 0)
		return QK_FAIL_OS(err, errno, "cannot handle signals");
	fs->workers = qk_calloc(fs->o.n_threads, sizeof(*fs->workers));
	if (fs->workers == NULL)
		return QK_FAIL_NOMEM(err);
	for (unsigned i = 0; i < fs->o.n_threads; i++)
		QK_TRY(make_worker(fs, err));
	QK_TRY(qk_fuse_stale_start(fs, err));
	fs->is_started = true;
	return QCOW_OK;
}

/* ---- the end ---- */

/* What mappings of files hold goes to the files. */
static void sync_pages(const struct qk_fuse *fs)
{
	int fd = open(fs->mountpoint, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return;
	(void)syncfs(fd);
	(void)close(fd);
}

/* Where nobody is there any more: then every thread ends by itself. False: somebody is. */
static bool unmount_unused(const struct qk_fuse *fs)
{
	char *argv[] = {(char *)(uintptr_t) "fusermount3", (char *)(uintptr_t) "-u",
		(char *)(uintptr_t) "-q", (char *)(uintptr_t) "--", fs->mountpoint, NULL};
	pid_t child = 0;
	int status = 1;
	if (umount2(fs->mountpoint, UMOUNT_NOFOLLOW) == 0)
		return true;
	if (errno != EPERM)
		return false;
	posix_spawn_file_actions_t quiet;
	(void)posix_spawn_file_actions_init(&quiet);
	(void)posix_spawn_file_actions_addopen(&quiet, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	bool ran = posix_spawnp(&child, argv[0], &quiet, NULL, argv, environ) == 0 &&
		   waitpid(child, &status, 0) == child;
	(void)posix_spawn_file_actions_destroy(&quiet);
	return ran && status == 0;
}

/* Has everything that the kernel asked been answered? */
static bool is_idle(struct qk_fuse *fs)
{
	struct pollfd fd = {.fd = fuse_session_fd(fs->session), .events = POLLIN};
	return atomic_load(&fs->n_busy) == 0 &&
	       (poll(&fd, 1, 0) <= 0 || (fd.revents & POLLIN) == 0);
}

static void join_workers(struct qk_fuse *fs)
{
	while (atomic_load(&fs->n_alive) > 0) {
		for (unsigned i = 0; i < fs->n_workers; i++)
			if (fs->workers[i].is_made)
				(void)pthread_kill(fs->workers[i].thread, SIGUSR1);
		rest();
	}
	for (unsigned i = 0; i < fs->n_workers; i++) {
		if (fs->workers[i].is_made)
			(void)pthread_join(fs->workers[i].thread, NULL);
		free(fs->workers[i].buf);
	}
	free(fs->workers);
	fs->workers = NULL;
	fs->n_workers = 0;
}

void qk_fuse_stop(struct qk_fuse *fs)
{
	if (fs->session == NULL)
		return;
	/* where a thread could not be made, nobody may be there to answer us */
	bool is_there = fs->is_started && !fuse_session_exited(fs->session);
	if (is_there)
		sync_pages(fs);
	qk_fuse_stale_stop(fs);
	bool unmounted = is_there && unmount_unused(fs);
	for (unsigned i = 0; is_there && i < DRAIN_TURNS && atomic_load(&fs->n_alive) > 0; i++) {
		if (!unmounted && is_idle(fs))
			break;
		rest();
	}
	atomic_store(&fs->is_over, true);
	qk_view_gate_wake(&fs->gate);
	join_workers(fs);
	fuse_session_unmount(fs->session);
	fuse_session_destroy(fs->session);
	fs->session = NULL;
}
