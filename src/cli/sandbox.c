/* SPDX-License-Identifier: MIT */
/*
 * sandbox: locks a process down before it looks at an image that nobody trusts. Four walls, each of which
 * stands without the others:
 *
 *   no_new_privs   what is executed gains nothing
 *   rlimits        no new descriptor, no core, and bounds on memory and processor time
 *   Landlock       a ruleset without a rule: no file, no TCP port, no abstract socket, no foreign process
 *   seccomp        a list of calls that reading an image needs; others fail with EPERM
 *
 * The list holds no call that takes a path (but for newfstatat, which glibc uses for fstat; it opens nothing),
 * no socket, and no new process. Memory never becomes executable. clone3 answers ENOSYS, for its flags lie in
 * memory where a filter cannot see them, and glibc then uses clone, which may make threads only.
 */
#include "cli/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/landlock.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED 1
#endif

#ifdef IS_SANITIZED
static const bool is_sanitized = true;
#else
static const bool is_sanitized = false;
#endif

#if defined(QK_SECCOMP) && !defined(IS_SANITIZED)
#include <seccomp.h>
#define HAVE_FILTER 1
#else
#define HAVE_FILTER 0
#endif

/* ---- rlimits ---- */

static bool limit(__rlimit_resource_t what, uint64_t most)
{
	struct rlimit old;
	struct rlimit new = {.rlim_cur = most, .rlim_max = most};
	if (getrlimit(what, &old) == 0 && old.rlim_max < most)
		return setrlimit(what, &(struct rlimit){old.rlim_max, old.rlim_max}) == 0;
	return setrlimit(what, &new) == 0;
}

/* ---- Landlock ---- */

/* The kernel's struct as far as ABI 6 knows it: the headers of the build may be older than the kernel. */
struct ruleset {
	uint64_t files, ports, scopes;
};

static const struct {
	unsigned abi, file_rights;
	size_t bytes;
} landlock_abis[] = {
	{6, 16, sizeof(struct ruleset)},
	{5, 16, offsetof(struct ruleset, scopes)},
	{4, 15, offsetof(struct ruleset, scopes)},
	{3, 15, offsetof(struct ruleset, ports)},
	{2, 14, offsetof(struct ruleset, ports)},
	{1, 13, offsetof(struct ruleset, ports)},
};

#define ALL_PORTS  UINT64_C(3) /* bind, connect */
#define ALL_SCOPES UINT64_C(3) /* abstract sockets, signals */

/* The ABI in force, 0: none. */
static unsigned enter_landlock(void)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0UL,
		(unsigned long)LANDLOCK_CREATE_RULESET_VERSION);
	size_t i = 0, n = sizeof(landlock_abis) / sizeof(landlock_abis[0]);
	if (abi < 1)
		return 0;
	while (i + 1 < n && landlock_abis[i].abi > (unsigned long)abi)
		i++;
	const struct ruleset rules = {
		.files = (UINT64_C(1) << landlock_abis[i].file_rights) - 1,
		.ports = ALL_PORTS,
		.scopes = ALL_SCOPES,
	};
	long fd = syscall(SYS_landlock_create_ruleset, &rules, landlock_abis[i].bytes, 0UL);
	if (fd < 0)
		return 0;
	long r = syscall(SYS_landlock_restrict_self, fd, 0UL);
	(void)close((int)fd);
	return r == 0 ? landlock_abis[i].abi : 0;
}

/* ---- seccomp ---- */

#if HAVE_FILTER

/* Calls that are harmless whatever their arguments: they work on open descriptors, memory and this thread. */
static const int plain_calls[] = {SCMP_SYS(read), SCMP_SYS(readv), SCMP_SYS(pread64),
	SCMP_SYS(preadv), SCMP_SYS(preadv2), SCMP_SYS(write), SCMP_SYS(writev), SCMP_SYS(pwrite64),
	SCMP_SYS(pwritev), SCMP_SYS(pwritev2), SCMP_SYS(lseek), SCMP_SYS(fstat), SCMP_SYS(fstatfs),
	SCMP_SYS(fdatasync), SCMP_SYS(fsync), SCMP_SYS(ftruncate), SCMP_SYS(fallocate),
	SCMP_SYS(close), SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise),
	SCMP_SYS(futex), SCMP_SYS(set_robust_list), SCMP_SYS(rseq), SCMP_SYS(rt_sigprocmask),
	SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigreturn), SCMP_SYS(sched_getaffinity),
	SCMP_SYS(sched_yield), SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(getrandom),
	SCMP_SYS(clock_gettime), SCMP_SYS(clock_nanosleep), SCMP_SYS(exit), SCMP_SYS(exit_group),
	SCMP_SYS(restart_syscall)};

/* Of ioctl: sharing blocks of two open files; is it a terminal. */
static const unsigned long ioctls[] = {FICLONERANGE, TCGETS};

/* Of fcntl: flags of open descriptors, and their locks. */
static const int fcntls[] = {F_GETFD, F_GETFL, F_OFD_SETLK, F_OFD_GETLK};

/* Allow `call` where the bits of `mask` in argument `arg` are those of `value`. */
static int allow_if(scmp_filter_ctx filter, int call, unsigned arg, uint64_t mask, uint64_t value)
{
	const struct scmp_arg_cmp same = {arg, SCMP_CMP_MASKED_EQ, mask, value};
	return seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, call, 1, &same);
}

static int allow_with_arguments(scmp_filter_ctx filter)
{
	/* asking, not setting; of this process */
	static const struct scmp_arg_cmp asking[] = {
		{0, SCMP_CMP_MASKED_EQ, UINT32_MAX, 0}, {2, SCMP_CMP_MASKED_EQ, UINT64_MAX, 0}};
	int r = 0;
	for (size_t i = 0; i < sizeof(ioctls) / sizeof(ioctls[0]); i++)
		r |= allow_if(filter, SCMP_SYS(ioctl), 1, UINT32_MAX, ioctls[i]);
	for (size_t i = 0; i < sizeof(fcntls) / sizeof(fcntls[0]); i++)
		r |= allow_if(filter, SCMP_SYS(fcntl), 1, UINT32_MAX, (uint64_t)fcntls[i]);
	r |= allow_if(filter, SCMP_SYS(mmap), 2, PROT_EXEC, 0);
	r |= allow_if(filter, SCMP_SYS(mprotect), 2, PROT_EXEC, 0);
	r |= allow_if(filter, SCMP_SYS(clone), 0, CLONE_THREAD, CLONE_THREAD);
	r |= allow_if(filter, SCMP_SYS(newfstatat), 3, UINT32_MAX, AT_EMPTY_PATH);
	/* raise and abort: this process alone */
	r |= allow_if(filter, SCMP_SYS(tgkill), 0, UINT32_MAX, (uint64_t)getpid());
	r |= seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2, asking);
	r |= seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0, NULL);
	return r;
}

static bool enter_seccomp(void)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	int r = 0;
	if (filter == NULL)
		return false;
	for (size_t i = 0; i < sizeof(plain_calls) / sizeof(plain_calls[0]); i++)
		r |= seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, plain_calls[i], 0, NULL);
	r |= allow_with_arguments(filter);
	bool ok = r == 0 && seccomp_load(filter) == 0;
	seccomp_release(filter);
	return ok;
}

#else

static bool enter_seccomp(void)
{
	return false;
}

#endif

bool cli_sandbox_enter(const struct cli_sandbox_limits *limits, struct cli_sandbox_state *out)
{
	*out = (struct cli_sandbox_state){0};
	tzset(); /* reads a file, which localtime_r would do later */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL) != 0)
		return false;
	out->no_new_privs = true;
	out->landlock_abi = enter_landlock(); /* takes a descriptor for a moment */
	if (!limit(RLIMIT_NOFILE, 0) || !limit(RLIMIT_CORE, 0))
		return false;
	out->no_new_files = true;
	/* a sanitizer maps terabytes */
	out->memory = !is_sanitized && limits->memory_bytes != 0 &&
		      limit(RLIMIT_DATA, limits->memory_bytes);
	out->cpu = limits->cpu_seconds != 0 && limit(RLIMIT_CPU, limits->cpu_seconds);
	out->seccomp = enter_seccomp();
	return true;
}
