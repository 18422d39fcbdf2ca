/* SPDX-License-Identifier: MIT */
/*
 * server: see server.h. Owns the parts; none of its calls but stop and the waiting ones takes long.
 */
#include "serve/nbd/server.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/err.h"
#include "serve/nbd/core.h"

static unsigned count_cores(void)
{
	cpu_set_t set;
	if (sched_getaffinity(0, sizeof(set), &set) != 0)
		return 1;
	int n = CPU_COUNT(&set);
	return n > 0 ? (unsigned)n : 1;
}

static void set_defaults(struct qk_nbd_options *o)
{
	unsigned n_cores = count_cores();
	const uint64_t least = QK_NBD_MAX_PAYLOAD + QK_MIB(2);
	if (o->n_loops == 0)
		o->n_loops = n_cores < 16 ? n_cores : 16;
	if (o->n_workers == 0)
		o->n_workers = n_cores < 8 ? 8 : n_cores;
	if (o->max_connections == 0)
		o->max_connections = 1000;
	if (o->handshake_ms == 0)
		o->handshake_ms = 10000;
	if (o->stall_ms == 0)
		o->stall_ms = 10000;
	o->conn_bytes = qk_max(o->conn_bytes, least);
	if (o->total_bytes == 0)
		o->total_bytes = QK_MIB(128);
	o->total_bytes = qk_max(o->total_bytes, o->conn_bytes);
}

bool qk_nbd_has_tls(void)
{
#ifdef QK_GNUTLS
	return true;
#else
	return false;
#endif
}

static enum qcow_status init_parts(struct qk_nbd_server *server, struct qcow_error *err)
{
	const struct qk_nbd_options *o = &server->options;
	server->budget.limit = o->total_bytes;
	server->budget.conn_limit = o->conn_bytes;
	server->loops = qk_calloc(o->n_loops, sizeof(*server->loops));
	if (server->loops == NULL)
		return QK_FAIL_NOMEM(err);
	for (; server->n_loops < o->n_loops; server->n_loops++) {
		enum qcow_status status = qk_nbd_loop_init(
			&server->loops[server->n_loops], server, err);
		if (status != QCOW_OK) {
			qk_nbd_loop_release(&server->loops[server->n_loops]);
			return status;
		}
	}
	if (o->tls != QK_NBD_TLS_OFF)
		QK_TRY(qk_nbd_tls_config_new(o, &server->tls, err));
	return QCOW_OK;
}

enum qcow_status qk_nbd_server_new(
	const struct qk_nbd_options *options, struct qk_nbd_server **out, struct qcow_error *err)
{
	struct qk_nbd_server *server = qk_calloc(1, sizeof(*server));
	if (server == NULL)
		return QK_FAIL_NOMEM(err);
	server->options = *options;
	set_defaults(&server->options);
	enum qcow_status status = qk_nbd_registry_init(&server->registry, err);
	if (status != QCOW_OK) {
		free(server);
		return status;
	}
	pthread_mutex_init(&server->pool.lock, NULL);
	pthread_cond_init(&server->pool.work, NULL);
	status = init_parts(server, err);
	if (status != QCOW_OK)
		qk_nbd_server_free(server);
	else
		*out = server;
	return status;
}

enum qcow_status qk_nbd_server_start(struct qk_nbd_server *server, struct qcow_error *err)
{
	if (server->is_started)
		return QK_FAIL(err, QCOW_E_INVAL, "the server runs already");
	server->is_started = true;
	QK_TRY(qk_nbd_pool_start(&server->pool, server->options.n_workers, err));
	for (unsigned i = 0; i < server->n_loops; i++)
		QK_TRY(qk_nbd_loop_start(&server->loops[i], err));
	return QCOW_OK;
}

static void flush_exports(struct qk_nbd_server *server)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qk_nbd_node *node = qk_nbd_registry_next(&server->registry, NULL);
	for (; node != NULL; node = qk_nbd_registry_next(&server->registry, node)) {
		if (node->read_only || node->ops->flush == NULL)
			continue;
		if (node->ops->flush(node->ctx, &err) != QCOW_OK)
			qk_nbd_log(server, QK_NBD_LOG_WARNING, "flushing export '%s': %s",
				node->name, err.message);
	}
}

static void close_listeners(struct qk_nbd_server *server)
{
	while (server->listeners != NULL) {
		struct qk_nbd_listener *l = server->listeners;
		server->listeners = l->next;
		close(l->fd);
		free(l);
	}
}

void qk_nbd_server_stop(struct qk_nbd_server *server, unsigned drain_ms)
{
	if (server->is_stopped)
		return;
	server->is_stopped = true;
	atomic_store(&server->stop_at, qk_nbd_now() + UINT64_C(1000000) * drain_ms);
	atomic_store(&server->is_stopping, true);
	for (unsigned i = 0; i < server->n_loops; i++)
		qk_nbd_loop_wake(&server->loops[i]);
	for (unsigned i = 0; i < server->n_loops; i++) {
		if (server->loops[i].has_thread)
			pthread_join(server->loops[i].thread, NULL);
	}
	qk_nbd_pool_stop(&server->pool);
	close_listeners(server);
	if (server->is_started)
		flush_exports(server);
}

void qk_nbd_server_free(struct qk_nbd_server *server)
{
	if (server == NULL)
		return;
	qk_nbd_server_stop(server, 0);
	for (unsigned i = 0; i < server->n_loops; i++)
		qk_nbd_loop_release(&server->loops[i]);
	free(server->loops);
	qk_nbd_registry_release(&server->registry);
	qk_nbd_tls_config_free(server->tls);
	pthread_mutex_destroy(&server->pool.lock);
	pthread_cond_destroy(&server->pool.work);
	free(server);
}

/* ---- clients ---- */

enum qcow_status qk_nbd_server_listen(struct qk_nbd_server *server, int fd, struct qcow_error *err)
{
	struct qk_nbd_loop *loop = &server->loops[0];
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0)
		return QK_FAIL_OS(err, errno, "a listening socket");
	struct qk_nbd_listener *l = qk_calloc(1, sizeof(*l));
	if (l == NULL)
		return QK_FAIL_NOMEM(err);
	l->source.kind = QK_NBD_SOURCE_LISTENER;
	l->fd = fd;
	enum qcow_status status = qk_nbd_loop_watch(loop, fd, EPOLLIN, &l->source, err);
	if (status != QCOW_OK) {
		free(l);
		return status;
	}
	pthread_mutex_lock(&loop->lock);
	l->next = server->listeners;
	server->listeners = l;
	pthread_mutex_unlock(&loop->lock);
	return QCOW_OK;
}

static struct qk_nbd_loop *least_busy(struct qk_nbd_server *server)
{
	struct qk_nbd_loop *best = &server->loops[0];
	for (unsigned i = 1; i < server->n_loops; i++) {
		if (atomic_load(&server->loops[i].n_conns) < atomic_load(&best->n_conns))
			best = &server->loops[i];
	}
	return best;
}

static void hand_over(struct qk_nbd_loop *loop, struct qk_nbd_conn *conn)
{
	conn->loop = loop;
	atomic_fetch_add(&loop->n_conns, 1);
	pthread_mutex_lock(&loop->lock);
	conn->next = loop->arrivals;
	loop->arrivals = conn;
	pthread_mutex_unlock(&loop->lock);
	qk_nbd_loop_wake(loop);
}

enum qcow_status qk_nbd_server_connect(
	struct qk_nbd_server *server, int in_fd, int out_fd, struct qcow_error *err)
{
	struct qk_nbd_conn *conn = NULL;
	unsigned n_open = atomic_fetch_add(&server->n_open, 1) + 1;
	enum qcow_status status = QCOW_OK;
	if (n_open > server->options.max_connections) {
		atomic_fetch_add(&server->n_refused, 1);
		status = QK_FAIL(err, QCOW_E_LIMIT, "there are %u clients already", n_open - 1);
	} else {
		status = qk_nbd_conn_new(server, in_fd, out_fd, &conn, err);
	}
	if (status != QCOW_OK) {
		atomic_fetch_sub(&server->n_open, 1);
		return status;
	}
	atomic_fetch_add(&server->n_accepted, 1);
	if (server->options.on_connection != NULL)
		server->options.on_connection(server->options.ctx, n_open, true, false);
	hand_over(least_busy(server), conn);
	return QCOW_OK;
}

/* ---- exports ---- */

enum qcow_status qk_nbd_export_add(
	struct qk_nbd_server *server, const struct qk_nbd_export *export, struct qcow_error *err)
{
	return qk_nbd_registry_add(&server->registry, export, err);
}

static void purge_all(struct qk_nbd_server *server)
{
	for (unsigned i = 0; i < server->n_loops; i++) {
		struct qk_nbd_loop *loop = &server->loops[i];
		pthread_mutex_lock(&loop->lock);
		loop->is_purge = true;
		pthread_mutex_unlock(&loop->lock);
		qk_nbd_loop_wake(loop);
	}
}

static enum qcow_status no_export(const char *name, struct qcow_error *err)
{
	return QK_FAIL(err, QCOW_E_NOENT, "there is no export '%s'", name);
}

enum qcow_status qk_nbd_export_remove(
	struct qk_nbd_server *server, const char *name, bool hard, struct qcow_error *err)
{
	bool is_used = false;
	struct qk_nbd_node *node = qk_nbd_registry_take(&server->registry, name, !hard, &is_used);
	if (is_used)
		return QK_FAIL(err, QCOW_E_LOCKED, "export '%s' has clients", name);
	if (node == NULL)
		return no_export(name, err);
	purge_all(server);
	qk_nbd_node_put_wait(&server->registry, node);
	return QCOW_OK;
}

static struct qk_nbd_node *find(struct qk_nbd_server *server, const char *name)
{
	return qk_nbd_registry_find(
		&server->registry, (struct qk_span){(const uint8_t *)name, strlen(name)});
}

enum qcow_status qk_nbd_export_rest(
	struct qk_nbd_server *server, const char *name, bool hard, struct qcow_error *err)
{
	struct qk_nbd_node *node = find(server, name);
	if (node == NULL)
		return no_export(name, err);
	bool rests = qk_nbd_node_rest(&server->registry, node, hard);
	if (rests) {
		purge_all(server);
		qk_nbd_node_rest_wait(&server->registry, node);
	}
	qk_nbd_node_put(&server->registry, node);
	return rests ? QCOW_OK : QK_FAIL(err, QCOW_E_LOCKED, "export '%s' has clients", name);
}

void qk_nbd_export_wake(struct qk_nbd_server *server, const char *name)
{
	struct qk_nbd_node *node = find(server, name);
	if (node != NULL)
		atomic_store(&node->is_resting, false);
	qk_nbd_node_put(&server->registry, node);
}

enum qcow_status qk_nbd_export_resized(
	struct qk_nbd_server *server, const char *name, uint64_t new_size, struct qcow_error *err)
{
	struct qk_nbd_node *node = find(server, name);
	if (node == NULL)
		return no_export(name, err);
	atomic_store(&node->size, new_size);
	qk_nbd_node_put(&server->registry, node);
	return QCOW_OK;
}

enum qcow_status qk_nbd_export_bitmaps(struct qk_nbd_server *server, const char *name,
	const char *const *bitmaps, unsigned n_bitmaps, struct qcow_error *err)
{
	struct qk_nbd_node *node = find(server, name);
	if (node == NULL)
		return no_export(name, err);
	enum qcow_status status = qk_nbd_node_set_bitmaps(
		&server->registry, node, bitmaps, n_bitmaps, err);
	qk_nbd_node_put(&server->registry, node);
	return status;
}

void qk_nbd_server_quiesce(struct qk_nbd_server *server)
{
	qk_view_gate_close(&server->registry.gate);
}

void qk_nbd_server_resume(struct qk_nbd_server *server)
{
	qk_view_gate_open(&server->registry.gate);
}

/* ---- what it does ---- */

static void add_loop_stats(const struct qk_nbd_loop *loop, struct qk_nbd_stats *out)
{
	out->handshakes_failed += atomic_load(&loop->failed_handshakes);
	out->cut += atomic_load(&loop->cut);
	out->answered_at_once += atomic_load(&loop->at_once);
	for (unsigned i = 0; i < QK_NBD_COUNTS; i++) {
		out->counts[i].requests += atomic_load(&loop->counts[i].requests);
		out->counts[i].bytes += atomic_load(&loop->counts[i].bytes);
		out->counts[i].errors += atomic_load(&loop->counts[i].errors);
	}
}

void qk_nbd_server_stats(struct qk_nbd_server *server, struct qk_nbd_stats *out)
{
	*out = (struct qk_nbd_stats){.connections = atomic_load(&server->n_open),
		.accepted = atomic_load(&server->n_accepted),
		.refused = atomic_load(&server->n_refused)};
	out->in_flight_bytes = atomic_load(&server->budget.used);
	for (unsigned i = 0; i < server->n_loops; i++)
		add_loop_stats(&server->loops[i], out);
}

static void visit_conn(const struct qk_nbd_conn *conn,
	void (*visit)(void *ctx, const struct qk_nbd_connection_info *info), void *ctx)
{
	struct qk_nbd_connection_info info = {.id = conn->id,
		.peer = conn->peer,
		.requests = atomic_load(&conn->n_requests),
		.bytes_in = atomic_load(&conn->bytes_in),
		.bytes_out = atomic_load(&conn->bytes_out)};
	if (atomic_load(&conn->phase) == QK_NBD_PHASE_TRANSMISSION) {
		info.export_name = conn->session.node->name;
		info.tls = conn->session.is_tls;
		info.structured = conn->session.mode != QK_NBD_SIMPLE;
		info.extended = conn->session.mode == QK_NBD_EXTENDED;
	}
	visit(ctx, &info);
}

void qk_nbd_each_connection(struct qk_nbd_server *server,
	void (*visit)(void *ctx, const struct qk_nbd_connection_info *info), void *ctx)
{
	for (unsigned i = 0; i < server->n_loops; i++) {
		struct qk_nbd_loop *loop = &server->loops[i];
		pthread_mutex_lock(&loop->lock);
		for (const struct qk_nbd_conn *conn = loop->conns; conn != NULL; conn = conn->next)
			visit_conn(conn, visit, ctx);
		pthread_mutex_unlock(&loop->lock);
	}
}
