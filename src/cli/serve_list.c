/* SPDX-License-Identifier: MIT */
/*
 * serve_list: `qemu-nbd -L`: what another server exports, in QEMU's words.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/nbd_node.h"
#include "cli/serve.h"

#ifdef QK_LIBNBD
#include "store_nbd/store_nbd.h"

static void print_flags(unsigned flags)
{
	static const struct {
		unsigned bit;
		const char *name;
	} names[] = {
		{0x2, "readonly"},
		{0x4, "flush"},
		{0x8, "fua"},
		{0x10, "rotational"},
		{0x20, "trim"},
		{0x40, "zeroes"},
		{0x80, "df"},
		{0x100, "multi"},
		{0x400, "cache"},
		{0x800, "fast-zero"},
	};
	(void)printf("  flags: 0x%x (", flags);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if ((flags & names[i].bit) != 0)
			(void)printf(" %s", names[i].name);
	(void)printf(" )\n");
}

static void print_export(void *ctx, const struct qk_nbd_listed *e)
{
	(void)ctx;
	(void)printf(" export: '");
	cli_put_escaped(stdout, e->name);
	(void)printf("'\n");
	if (e->description != NULL && e->description[0] != '\0') {
		(void)printf("  description: ");
		cli_put_escaped(stdout, e->description);
		(void)printf("\n");
	}
	(void)printf("  size:  %" PRIu64 "\n", e->size);
	print_flags(e->flags);
	(void)printf("  min block: %" PRIu64 "\n  opt block: %" PRIu64 "\n  max block: %" PRIu64
		     "\n",
		e->min_block, e->preferred_block, e->max_block);
	(void)printf("  transaction size: 32-bit\n");
	if (e->n_contexts > 0)
		(void)printf("  available meta contexts: %u\n", e->n_contexts);
	for (unsigned i = 0; i < e->n_contexts; i++) {
		(void)printf("   ");
		cli_put_escaped(stdout, e->contexts[i]);
		(void)printf("\n");
	}
}

static void print_count(void *ctx, unsigned n)
{
	(void)ctx;
	(void)printf("exports available: %u\n", n);
}

int serve_list(struct serve *s)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	const char *path = cli_arg(s->args, "socket"), *host = cli_arg(s->args, "bind");
	const char *port = cli_arg(s->args, "port");
	unsigned seconds = 0;
	if (!serve_handshake_limit(s, &seconds))
		return 1;
	struct qk_nbd_address address = {.path = (char *)(uintptr_t)path,
		.host = (char *)(uintptr_t)(host != NULL ? host : "0.0.0.0"),
		.port = (char *)(uintptr_t)(port != NULL ? port : "10809"),
		.export_name = (char *)(uintptr_t) "",
		.open_timeout_s = seconds};
	if (s->args->n_operands > 0)
		return cli_usage(s->cli, "List mode is incompatible with a file name");
	const char *creds = cli_arg(s->args, "tls-creds");
	enum qcow_status status = creds != NULL ? cli_nbd_use_creds(s->cli, creds, &address, &err)
						: QCOW_OK;
	if (status == QCOW_OK)
		status = qk_nbd_list(&address, print_count, print_export, NULL, &err);
	free(address.tls_dir);
	free(address.tls_psk_file);
	free(address.tls_username);
	if (status == QCOW_E_KEY) {
		cli_error(s->cli, "%s", err.message);
		return 1;
	}
	return status == QCOW_OK ? 0 : cli_fail(s->cli, &err, "Failed to list");
}

#else

int serve_list(struct serve *s)
{
	cli_error(s->cli, "-L needs libnbd, which was not there when this program was built");
	return 1;
}

#endif
