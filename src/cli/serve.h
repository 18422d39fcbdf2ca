/* SPDX-License-Identifier: MIT */
/*
 * serve: what the files of `qcow serve` share.
 *
 *   cmd_serve.c      options, from start to end
 *   serve_open.c     images and what is exported of them
 *   serve_listen.c   sockets: made, inherited from a service manager, accepted
 *   serve_loop.c     the main thread: signals, connections that come and go, the control socket, the end
 *   serve_process.c  --fork, --run, --exit-with-parent, --pid-file, readiness
 *   serve_nbd.c      exports shown by the NBD server
 *   serve_lazy.c     snapshots that are opened when they are first read
 *   serve_ctl.c      the control socket: clients and their lines
 *   serve_do.c       what the lines ask for
 *   serve_list.c     -L of qemu-nbd's personality
 *
 * Threads: everything here runs on the main thread; the server's threads only write to `wake`, and those of a file system call
 * serve_resize.
 */
#ifndef QK_CLI_SERVE_H
#define QK_CLI_SERVE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <time.h>

#include "cli/cli.h"
#include "serve/nbd/server.h"
#include "serve/view/view.h"

enum {
	SERVE_LISTENERS = 32
};

struct serve;

/* What of an image is shown beside its disk. */
struct serve_part {
	enum {
		SERVE_SNAPSHOT = 1,
		SERVE_LAYER,
		SERVE_PARTITION
	} kind;
	const char *name, *id; /* of a snapshot */
	unsigned
		number; /* of a layer, from 1 on, a partition; of a snapshot in the table, from 1 on */
};

/* Who shows the exports: the NBD server, or the file system of `qcow mount`. The calls are those of serve/nbd/server.h. */
struct serve_front {
	/* Snapshots, layers and partitions without --snapshots …, what cannot be shown is left out and said so, no
	 * other image is opened, and snapshots are opened when they are first read (serve_lazy_ops). */
	bool shows_all;
	enum qcow_status (*add)(
		struct serve *s, const struct qk_nbd_export *export, struct qcow_error *err);
	enum qcow_status (*remove)(
		struct serve *s, const char *name, bool hard, struct qcow_error *err);
	enum qcow_status (*resized)(
		struct serve *s, const char *name, uint64_t new_size, struct qcow_error *err);
	/* Let nobody use it until wake (qk_nbd_export_rest); NULL: cannot be. */
	enum qcow_status (*rest)(
		struct serve *s, const char *name, bool hard, struct qcow_error *err);
	void (*wake)(struct serve *s, const char *name);
	enum qcow_status (*set_bitmaps)(struct serve *s, const char *name, const char *const *names,
		unsigned n, struct qcow_error *err);
	void (*quiesce)(struct serve *s);
	void (*resume)(struct serve *s);
	void (*stop)(struct serve *s);
	/* Into the answer of the command status. */
	void (*describe)(struct serve *s, json_t *reply);
	/* How a part of the image that export `base` shows is called. NULL: out of memory. Free it. */
	char *(*name)(struct serve *s, const char *base, const struct serve_part *part);
};
extern const struct serve_front serve_front_nbd;
/* What a counter says, for `describe`. */
json_t *serve_describe_counter(const struct qk_nbd_counter *counter);

/* What to open. */
struct serve_operand {
	const char *text, *name, *format;
	bool image_opts, read_only, temporary;
	const char *snapshot;
};

/* An open image, and how its exports are called. */
struct serve_image {
	struct serve_image *next;
	char *name, *text, *format, *snapshot; /* what `operand` points to */
	struct serve_operand operand;
	struct qk_view_image *shared;
	bool writable;
	bool all_bitmaps; /* those that can be read are shown; else those that -B named */
};

struct serve_export {
	struct serve_export *next;
	char *name;
	char *snapshot, *snapshot_id; /* the one that it shows, or NULL */
	struct serve_image *owner; /* stays open as long, a snapshot's too */
	struct serve_image *image; /* the same where its active disk is shown, else NULL */
	struct qk_view *view;
	bool is_whole; /* the image's own disk, from 0 to its end */
};

/* A Unix socket that we made; all zero: none. */
struct serve_socket {
	char *path;
	int file; /* O_PATH: what was made there */
};

struct serve {
	struct cli *cli;
	const struct cli_args *args;
	const struct serve_front *front;
	struct qk_nbd_server *server; /* of the front that is one */
	struct serve_image *images;
	struct serve_export *exports;
	/* listening sockets that the main thread accepts from, where the number of clients is limited */
	int listeners[SERVE_LISTENERS];
	unsigned n_listeners;
	unsigned max_clients; /* 0: any number, and the server accepts by itself */
	unsigned n_clients; /* given to the server, where it is limited */
	bool rests; /* out of descriptors: nobody is accepted for a moment */
	time_t told_at; /* and it was said then; 0: never */
	struct serve_socket socket, ctl_socket;
	char *temporary_folder; /* of a socket that --run made */
	char *uri; /* of the first export */
	bool persistent, stdio;
	int wake; /* eventfd, for the server's threads */
	atomic_uint n_ended; /* clients that left */
	atomic_uint n_open;
	atomic_bool was_served;
	int ready_fd; /* the parent waits for a byte, or -1 */
	int signals; /* signalfd */
	struct rlimit files; /* as it was before serve_open_many_files; the child has it again */
	pid_t child; /* of --run, or 0 */
	int child_status;
	int ctl_listener; /* or -1 */
	struct serve_client *clients; /* of the control socket */
	bool stops;
	struct qk_fuse *fuse; /* of the front that is one */
	/* what is asked for at the control socket, and what comes by the file system: one at a time */
	pthread_mutex_t lock;
	pthread_cond_t released; /* n_holds is 0 */
	unsigned n_holds; /* quiesces of all clients */
};

/* serve_open.c. Open an image and add its exports. False: reported. */
bool serve_open(struct serve *s, const struct serve_operand *operand);
/* The same, told to nobody but the caller; after a failure nothing of it is left. */
enum qcow_status serve_try_open(
	struct serve *s, const struct serve_operand *operand, struct qcow_error *err) QK_MUST_USE;
/* Is what this option asks for to be shown? */
bool serve_shows(const struct serve *s, const char *option);
/* An image of its own for a snapshot of one that is open; `key`: snapshot.id=… */
enum qcow_status serve_open_snapshot(struct serve *s, const struct serve_operand *operand,
	const char *key, struct qk_view_image **out, struct qcow_error *err) QK_MUST_USE;
/* The export of this name, or NULL. */
struct serve_export *serve_find(struct serve *s, const char *name);
/* Take an export off the server, and forget it. */
enum qcow_status serve_remove(struct serve *s, struct serve_export *export, bool hard,
	struct qcow_error *err) QK_MUST_USE;
/* While quiesced: show the bitmaps that the image has now, of those that -B named what is there. */
enum qcow_status serve_refresh_bitmaps(
	struct serve *s, struct serve_image *image, struct qcow_error *err) QK_MUST_USE;
/* Export the snapshots that the image has and that are not yet there. */
enum qcow_status serve_add_snapshots(
	struct serve *s, struct serve_image *image, struct qcow_error *err) QK_MUST_USE;
/* Close every bitmap reader of the image. */
void serve_close_readers(struct serve *s, struct serve_image *image);
/* Close what is left. False: something could not be stored, which is reported. */
bool serve_forget_all(struct serve *s);

/* serve_lazy.c. What an export of a snapshot has as its ctx. */
struct serve_lazy;
extern const struct qk_nbd_export_ops serve_lazy_ops;
enum qcow_status serve_lazy_new(struct serve *s, struct serve_image *owner, const char *id,
	uint64_t size, struct serve_lazy **out, struct qcow_error *err) QK_MUST_USE;
/* Nobody reads it for now. */
void serve_lazy_close(struct serve_lazy *lazy);

/* serve_listen.c. Make or inherit the sockets, by the options. False: reported. */
bool serve_listen(struct serve *s);
/* A Unix socket that listens at `path`, with `mode`; what nobody listens at is replaced. -1: reported. */
int serve_listen_unix(struct serve *s, const char *path, mode_t mode, struct serve_socket *made);
/* Remove it, if it is still there and not what somebody else made in its place. */
void serve_unlink_socket(struct serve_socket *made);
/* Give a client of a listener to the server. */
void serve_accept(struct serve *s, int listener);
/* accept4 of a listener of ours, close-on-exec. -1: nobody came; where the host has no more descriptors, nobody is asked for
 * until `rests` is over. */
int serve_take_client(struct serve *s, int listener);
void serve_unlisten(struct serve *s);

/* serve_process.c. */
/* --fork: false in the parent, which is done with *exit_code. */
bool serve_fork(struct serve *s, int *exit_code);
/* Each client, snapshot and layer has files of ours: as many as the host allows. */
void serve_open_many_files(struct serve *s);
/* --exit-with-parent. False: reported. */
bool serve_follow_parent(struct serve *s);
/* Clients can connect: pid file, service manager, parent. False: reported. */
bool serve_is_ready(struct serve *s);
void serve_tell_manager(const char *line);
/* --run: start the command. False: reported. */
bool serve_start_child(struct serve *s);

/* serve_loop.c. Before any thread is made: signals are for the main thread. False: reported. */
bool serve_catch_signals(struct serve *s);
/* Until the end is asked for or reached: the exit code. */
int serve_loop(struct serve *s);

/* serve_ctl.c. */
bool serve_ctl_open(struct serve *s, const char *path);
struct pollfd;
/* Fill at most `room` rows for the control socket and its clients. */
size_t serve_ctl_polls(struct serve *s, struct pollfd *fds, size_t room);
/* Look at what came of those rows. */
void serve_ctl_handle(struct serve *s, const struct pollfd *fds, size_t n);
/* Its clients go, and what they held back goes on. */
void serve_ctl_drop(struct serve *s);
void serve_ctl_close(struct serve *s);

/* serve_do.c. Carry out one request. The answer is the caller's. *holds: quiesces that this client has not ended. */
json_t *serve_do(struct serve *s, const json_t *request, unsigned *holds);
/* End n quiesces. */
void serve_release(struct serve *s, unsigned n);
/* From any thread that is in no export: an export's image gets another size, as by "resize". Waits for quiesces to end. */
enum qcow_status serve_resize(
	struct serve *s, const char *export, uint64_t size, struct qcow_error *err) QK_MUST_USE;

/* --handshake-limit in seconds; 0: not given. False: reported. cmd_serve.c. */
bool serve_handshake_limit(struct serve *s, unsigned *seconds);

/* serve_list.c. Print what another server exports: the exit code. */
int serve_list(struct serve *s);

#endif
