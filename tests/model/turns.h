/* SPDX-License-Identifier: MIT */
/*
 * turns: two threads, one of which runs at a time. At every call to the store, and where a lock is taken, it may be the other's
 * turn; locks are wrapped by the linker (meson.build), so who waits for whom is known exactly, and a deadlock is seen.
 */
#ifndef QKT_TURNS_H
#define QKT_TURNS_H

#include <pthread.h>
#include <stdint.h>

#include <qcowkit/store.h>

#define MAX_CHOICES 400u

enum state {
	AT_CALL, /* may go on */
	WAITS, /* for a lock or a condition; may look again when something was released */
	ENDED
};

/* What the linker has wrapped. */
int __real_pthread_mutex_lock(pthread_mutex_t *m);
int __real_pthread_mutex_unlock(pthread_mutex_t *m);
int __real_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m);
int __real_pthread_cond_broadcast(pthread_cond_t *c);

extern struct turns {
	pthread_mutex_t lock;
	pthread_cond_t turn;
	enum state state[2];
	uint64_t seen[2],
		released; /* releases of locks: counted, and as they were when it looked */
	int running;
	unsigned char choices[MAX_CHOICES], n_alternatives[MAX_CHOICES];
	unsigned n_given, n; /* choices given to repeat; made */
} turns;

extern _Thread_local int turn_self; /* 0 and 1: under control; -1: not */

/* With the lock: who is next? -1: both have ended. Alternatives are counted from the lower thread. */
int turn_choose(void);
/* The thread comes to a point where the other may go on, in this state. Returns when it is its turn. */
void turn_yield(enum state state);
/* Ends the program. The program's own. */
void turn_die(const char *what) __attribute__((noreturn));

/* A store around another one, its context: each call is a point of choice. */
extern const struct qcow_store_ops turn_store_ops;

#endif
