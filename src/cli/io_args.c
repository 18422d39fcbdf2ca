/* SPDX-License-Identifier: MIT */
#include "cli/io_args.h"

#include <inttypes.h>
#include <unistd.h>

int io_getopt(const struct io_command *self, int argc, char **argv)
{
	return getopt(argc, argv, self->options);
}

bool io_take_flag(struct io_flags *flags, int letter)
{
	switch (letter) {
	case 'b':
		flags->vm_state = true;
		return true;
	case 'c':
		flags->compress = true;
		return true;
	case 'C':
		flags->machine = true;
		return true;
	case 'f':
		flags->fua = true;
		return true;
	case 'i':
		flags->invalid = true;
		return true;
	case 'n':
		flags->no_fallback = true;
		return true;
	case 'P':
		return io_pattern(optarg, &flags->pattern);
	case 'q':
		flags->quiet = true;
		return true;
	case 'u':
		flags->unmap = true;
		return true;
	case 'v':
		flags->dump = true;
		return true;
	case 'z':
		flags->zero = true;
		return true;
	case 'a':
	case 'p':
	case 'r':
		/* kinds of requests and buffers that are all one here */
		return true;
	default:
		return false;
	}
}

bool io_take_flags(const struct io_command *self, int argc, char **argv, struct io_flags *flags)
{
	int c = 0;
	while ((c = io_getopt(self, argc, argv)) != -1)
		if (!io_take_flag(flags, c)) {
			if (c != 'P')
				(void)io_usage(self);
			return false;
		}
	return true;
}

bool io_lengths(char *const *words, int n, uint64_t *sum)
{
	*sum = 0;
	for (int i = 0; i < n; i++) {
		uint64_t len = 0;
		if (!io_number(words[i], &len))
			return false;
		if (len > IO_MAX_BYTES) {
			(void)printf("Argument '%s' exceeds maximum size %" PRIu64 "\n", words[i],
				IO_MAX_BYTES);
			return false;
		}
		if (len > IO_MAX_BYTES - *sum) {
			(void)printf("The total number of bytes exceed the maximum size %" PRIu64
				     "\n",
				IO_MAX_BYTES);
			return false;
		}
		*sum += len;
	}
	return true;
}

struct iovec *io_cut(char *const *words, int n, void *buf)
{
	struct iovec *iov = qk_calloc((uint64_t)n, sizeof(*iov));
	uint8_t *at = buf;
	for (int i = 0; iov != NULL && i < n; i++) {
		uint64_t len = 0;
		(void)!io_number(words[i], &len);
		iov[i] = (struct iovec){at, (size_t)len};
		at += len;
	}
	return iov;
}
