/* SPDX-License-Identifier: MIT */
/*
 * Breaking out of the sandbox of --untrusted: each attempt is made in a process of its own that has entered it, and
 * has to fail; what reading an image needs goes on working. Also where the kernel has no Landlock, or no
 * seccomp: an outer filter then answers ENOSYS for it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/sandbox.h"
#include "cm.h"
#include "host.h"

/* ---- kernels that lack something ---- */

enum lack {
	LACKS_NOTHING,
	LACKS_LANDLOCK,
	LACKS_SECCOMP
};

#define STATEMENT(code, k) ((struct sock_filter){(code), 0, 0, (k)})
#define UNLESS(k, skipped) \
	((struct sock_filter){BPF_JMP | BPF_JEQ | BPF_K, 0, (skipped), (uint32_t)(k)})

/* From now on this call answers ENOSYS. */
static void take_away(long call)
{
	struct sock_filter filter[] = {
		STATEMENT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		UNLESS(call, 1),
		STATEMENT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		STATEMENT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};
	assert_int_equal(prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL), 0);
	assert_int_equal(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

/* libseccomp asks either way */
static void take_away_prctl_seccomp(void)
{
	struct sock_filter filter[] = {
		STATEMENT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		UNLESS(SYS_prctl, 3),
		STATEMENT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
		UNLESS(PR_SET_SECCOMP, 1),
		STATEMENT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
		STATEMENT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};
	assert_int_equal(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

static struct cli_sandbox_state enter(enum lack lack)
{
	static const struct cli_sandbox_limits limits = {
		.memory_bytes = UINT64_C(128) << 20, .cpu_seconds = 20};
	struct cli_sandbox_state state;
	if (lack == LACKS_LANDLOCK)
		take_away(SYS_landlock_create_ruleset);
	if (lack == LACKS_SECCOMP) {
		take_away(SYS_seccomp);
		take_away_prctl_seccomp();
	}
	if (!cli_sandbox_enter(&limits, &state))
		_exit(99);
	return state;
}

/* ---- attempts: true where the way out is open ---- */

static char outside[4096]; /* a file that is there */
static char fresh[4096]; /* one that is not */
static in_port_t port; /* somebody listens on it */
static pid_t parent;

static bool opens_a_file(void)
{
	return open(outside, O_RDONLY | O_CLOEXEC) >= 0;
}

static bool opens_a_secret(void)
{
	return open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0;
}

static bool makes_a_file(void)
{
	return open(fresh, O_RDWR | O_CREAT | O_CLOEXEC, 0600) >= 0;
}

static bool removes_a_file(void)
{
	return unlink(outside) == 0;
}

static bool makes_a_folder(void)
{
	return mkdir(fresh, 0700) == 0;
}

static bool truncates_by_path(void)
{
	return truncate(outside, 0) == 0;
}

static bool connects(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = port};
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0;
}

static bool makes_a_socket(void)
{
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) >= 0;
}

static bool executes(void)
{
	char *argv[] = {(char *)(uintptr_t) "true", NULL};
	(void)execve("/bin/true", argv, argv + 1);
	return false; /* what it would be is exit code 0 of true: see attempt() */
}

static bool forks(void)
{
	pid_t pid = fork();
	if (pid == 0)
		_exit(0);
	return pid > 0;
}

/* Without glibc: the flags of a fork. */
static bool clones(void)
{
	long pid = syscall(SYS_clone, (unsigned long)SIGCHLD, 0UL, 0UL, 0UL, 0UL);
	if (pid == 0)
		_exit(0);
	return pid > 0;
}

static bool clones_by_clone3(void)
{
	uint64_t args[11] = {0};
	args[4] = SIGCHLD;
	long pid = syscall(SYS_clone3, args, sizeof(args));
	if (pid == 0)
		_exit(0);
	return pid > 0;
}

static bool traces(void)
{
	return ptrace(PTRACE_ATTACH, parent, NULL, NULL) == 0;
}

static bool reads_another_process(void)
{
	char byte = 0;
	struct iovec to = {&byte, 1}, from = {&port, 1};
	return process_vm_readv(parent, &to, 1, &from, 1, 0) == 1;
}

static bool signals_the_parent(void)
{
	return kill(parent, 0) == 0;
}

static bool makes_memory_executable(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p == MAP_FAILED || mprotect(p, 4096, PROT_READ | PROT_EXEC) == 0;
}

static bool maps_executable_memory(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0) != MAP_FAILED;
}

static bool makes_a_descriptor(void)
{
	return dup(1) >= 0 || syscall(SYS_memfd_create, "m", 0UL) >= 0;
}

static bool uses_io_uring(void)
{
	uint64_t parameters[15] = {0};
	return syscall(SYS_io_uring_setup, 1UL, parameters) >= 0;
}

static bool loads_bpf(void)
{
	return syscall(SYS_bpf, 0UL, NULL, 0UL) == 0;
}

static bool raises_its_limits(void)
{
	struct rlimit more = {1024, 1024};
	return geteuid() != 0 && setrlimit(RLIMIT_NOFILE, &more) == 0;
}

static bool raises_its_limits_as_root(void)
{
	struct rlimit more = {1024, 1024};
	return setrlimit(RLIMIT_NOFILE, &more) == 0;
}

static bool takes_more_memory(void)
{
	return mmap(NULL, (size_t)1 << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0) != MAP_FAILED;
}

enum {
	BY_FILTER = 1, /* seccomp alone is in the way */
	BY_LANDLOCK = 2, /* Landlock alone is, or the filter */
	BY_MEMORY = 4
};

static const struct {
	const char *name;
	bool (*run)(void);
	unsigned needs;
} attempts[] = {
	{"open a file", opens_a_file, 0},
	{"open /etc/passwd", opens_a_secret, 0},
	{"make a file", makes_a_file, 0},
	{"remove a file", removes_a_file, BY_LANDLOCK},
	{"make a folder", makes_a_folder, BY_LANDLOCK},
	{"truncate by path", truncates_by_path, BY_LANDLOCK},
	{"connect", connects, 0},
	{"make a socket", makes_a_socket, 0},
	{"execute", executes, BY_LANDLOCK},
	{"fork", forks, BY_FILTER},
	{"clone", clones, BY_FILTER},
	{"clone3", clones_by_clone3, BY_FILTER},
	{"trace the parent", traces, BY_LANDLOCK},
	{"read the parent", reads_another_process, BY_LANDLOCK},
	{"signal the parent", signals_the_parent, BY_LANDLOCK},
	{"mprotect", makes_memory_executable, BY_FILTER},
	{"mmap", maps_executable_memory, BY_FILTER},
	{"make a descriptor", makes_a_descriptor, 0},
	{"io_uring", uses_io_uring, 0},
	{"bpf", loads_bpf, BY_FILTER},
	{"raise limits", raises_its_limits, 0},
	{"raise limits as root", raises_its_limits_as_root, BY_FILTER},
	{"take a GiB", takes_more_memory, BY_MEMORY},
};
#define N_ATTEMPTS (sizeof(attempts) / sizeof(attempts[0]))

enum {
	EXIT_HELD = 40,
	EXIT_OUT,
	EXIT_STRANGE_ERRNO,
	EXIT_NOTHING_IN_THE_WAY
};

static int attempt_inside(size_t i, enum lack lack)
{
	struct cli_sandbox_state state = enter(lack);
	unsigned needs = attempts[i].needs;
	if ((needs == BY_FILTER && !state.seccomp) || (needs == BY_MEMORY && !state.memory) ||
		(needs == BY_LANDLOCK && !state.seccomp && state.landlock_abi < 6))
		return EXIT_NOTHING_IN_THE_WAY;
	errno = 0;
	if (attempts[i].run())
		return EXIT_OUT;
	bool right = errno == EPERM || errno == EACCES || errno == EMFILE ||
		     (errno == ENOSYS && attempts[i].run == clones_by_clone3) ||
		     (errno == ENOMEM && needs == BY_MEMORY) ||
		     (errno == 0 && attempts[i].run == raises_its_limits);
	return right ? EXIT_HELD : EXIT_STRANGE_ERRNO;
}

static int attempt(size_t i, enum lack lack)
{
	int status = 0;
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(attempt_inside(i, lack));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static size_t attempt_all(enum lack lack)
{
	size_t held = 0;
	for (size_t i = 0; i < N_ATTEMPTS; i++) {
		int code = attempt(i, lack);
		if (code == EXIT_NOTHING_IN_THE_WAY)
			continue;
		if (code != EXIT_HELD)
			fail_msg("%s: %s (%d)", attempts[i].name,
				code == EXIT_OUT ? "it got out" : "not held as expected", code);
		held++;
	}
	return held;
}

static void prepare(void)
{
	static int listener = -1;
	struct sockaddr_in at = {.sin_family = AF_INET};
	socklen_t n = sizeof(at);
	if (listener >= 0)
		return;
	parent = getpid();
	(void)snprintf(outside, sizeof(outside), "%s", qkt_path("outside"));
	(void)snprintf(fresh, sizeof(fresh), "%s", qkt_path("fresh"));
	qkt_must("echo something >%s", outside);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(listener >= 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &n), 0);
	port = at.sin_port;
}

/* ---- tests ---- */

/* Outside every way is open: otherwise the attempts would prove nothing. */
static void the_ways_out_are_open_without_it(void **state)
{
	(void)state;
	prepare();
	static bool (*const ways[])(void) = {opens_a_file, opens_a_secret, makes_a_file, connects,
		makes_a_socket, forks, clones, clones_by_clone3, signals_the_parent,
		makes_memory_executable, maps_executable_memory, makes_a_descriptor,
		takes_more_memory};
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		int status = 0;
		pid_t pid = fork();
		if (pid == 0)
			_exit(ways[i]() ? 0 : 1);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (status != 0)
			fail_msg("way %zu is closed already", i);
	}
	qkt_must("rm -f %s", fresh);
}

static void nothing_gets_out(void **state)
{
	(void)state;
	prepare();
	assert_true(attempt_all(LACKS_NOTHING) >= 9);
	qkt_must("test -s %s && ! test -e %s", outside, fresh);
}

static void nothing_gets_out_without_landlock(void **state)
{
	(void)state;
	prepare();
	assert_true(attempt_all(LACKS_LANDLOCK) >= 6);
	qkt_must("test -s %s && ! test -e %s", outside, fresh);
}

static void nothing_gets_out_without_seccomp(void **state)
{
	(void)state;
	prepare();
	assert_true(attempt_all(LACKS_SECCOMP) >= 6);
	qkt_must("test -s %s && ! test -e %s", outside, fresh);
}

static void *work(void *done)
{
	void *p = malloc(1 << 20);
	*(int *)done = p != NULL;
	free(p);
	return NULL;
}

static int use_it(int fd)
{
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 1};
	struct stat st;
	char buf[16] = "0123456789";
	pthread_t thread;
	int done = 0;
	(void)enter(LACKS_NOTHING);
	if (pthread_create(&thread, NULL, work, &done) != 0 || pthread_join(thread, NULL) != 0 ||
		done == 0)
		return 1;
	if (pwrite(fd, buf, 10, 1 << 20) != 10 || pread(fd, buf, 10, 1 << 20) != 10 ||
		lseek(fd, 0, SEEK_HOLE) < 0)
		return 2;
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0 ||
		ftruncate(fd, 2 << 20) != 0 || fdatasync(fd) != 0)
		return 3;
	if (fstat(fd, &st) != 0 || st.st_size != 2 << 20 || fcntl(fd, F_OFD_SETLK, &lock) != 0)
		return 4;
	void *big = malloc(16 << 20);
	if (big == NULL || sysconf(_SC_NPROCESSORS_ONLN) < 1)
		return 5;
	free(big);
	return printf("still here\n") > 0 && fflush(stdout) == 0 ? 0 : 6;
}

static void what_reading_needs_goes_on_working(void **state)
{
	(void)state;
	int status = 0;
	int fd = open(qkt_path("image"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	pid_t pid = fork();
	if (pid == 0)
		_exit(use_it(fd)); /* leak detection opens files */
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	(void)close(fd);
}

/* What the machine offers is in force, and the state says so. */
static void the_state_is_true(void **state)
{
	(void)state;
	int status = 0;
	pid_t pid = fork();
	if (pid == 0) {
		struct cli_sandbox_state s = enter(LACKS_NOTHING);
		long mode = prctl(PR_GET_SECCOMP); /* itself refused where a filter is in force */
		bool filtered = mode == 2 || (mode < 0 && errno == EPERM);
		_exit(s.no_new_privs && s.no_new_files && s.cpu && filtered == s.seccomp ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_ways_out_are_open_without_it),
		cmocka_unit_test(nothing_gets_out),
		cmocka_unit_test(nothing_gets_out_without_landlock),
		cmocka_unit_test(nothing_gets_out_without_seccomp),
		cmocka_unit_test(what_reading_needs_goes_on_working),
		cmocka_unit_test(the_state_is_true),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
