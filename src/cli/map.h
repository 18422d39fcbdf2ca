/* SPDX-License-Identifier: MIT */
#ifndef QK_CLI_MAP_H
#define QK_CLI_MAP_H

#include <qcowkit/qcowkit.h>

/* What was found of the layer that was asked about last. Zero it first. */
struct map_judge {
	const struct qcow_image *layer;
	bool sparse;
};

/* The flags of an extent as QEMU shows them: plain data that lies in a hole of the host's file is known to
 * be zeros only where the image's metadata was preallocated. */
uint32_t map_shown_flags(struct map_judge *judge, const struct qcow_extent *extent);

#endif
