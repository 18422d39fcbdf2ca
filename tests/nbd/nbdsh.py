# SPDX-License-Identifier: MIT
"""What nbdsh runs for serve_clients.sh: `nbdsh -c "exec(open('nbdsh.py').read())"`. $URI names an export "disk" of 8 MiB whose first
MiB is "a", with a bitmap "marks", and "ro", the same read-only. Every command with its flags, and what libnbd lets through of
bad requests when it is told not to be strict. Each step prints its name; the first that fails ends the script."""
# pylint: disable=undefined-variable  # h is nbdsh's
import errno
import os

SIZE, URI = 8 << 20, os.environ["URI"]


def connected(name="disk", contexts=(), **kw):
    c = nbd.NBD()
    for context in contexts:
        c.add_meta_context(context)
    if not kw.get("structured", True):
        c.set_request_structured_replies(False)
    if "handshake" in kw:
        c.set_handshake_flags(kw["handshake"])
    c.set_strict_mode(kw.get("strict", nbd.STRICT_COMMANDS | nbd.STRICT_FLAGS | nbd.STRICT_BOUNDS | nbd.STRICT_ZERO_SIZE | nbd.STRICT_ALIGN))
    c.connect_uri(URI % name)
    return c


def fails(number, call, *args, **kw):
    try:
        call(*args, **kw)
    except nbd.Error as e:
        assert e.errnum == number, "%r: errno %r, expected %d" % (e, e.errnum, number)
        return
    raise AssertionError("%r %r succeeds" % (call, args))


def step_read_and_write():
    for structured in (True, False):
        c = connected(structured=structured)
        assert c.get_size() == SIZE and c.get_structured_replies_negotiated() == structured
        assert c.pread(4, 0) == b"aaaa" and c.pread(100000, 2 << 20) == bytes(100000)
        c.pwrite(b"b" * 100000, 2 << 20)
        c.pwrite(b"c" * 512, 3 << 20, nbd.CMD_FLAG_FUA)
        assert c.pread(100000, 2 << 20) == b"b" * 100000 and c.pread(512, 3 << 20) == b"c" * 512
        c.flush()
        c.zero(2 << 20, 2 << 20)
        c.shutdown()


def step_structured_read():
    c = connected()
    pieces = []
    c.pread_structured(2 << 20, 512 << 10, lambda data, off, status, err: pieces.append((off, len(data), status, err.value)))
    assert sum(n for _, n, _, _ in pieces) == 2 << 20 and any(s == nbd.READ_HOLE for _, _, s, _ in pieces), pieces
    pieces.clear()
    c.pread_structured(1 << 20, 512 << 10, lambda data, off, status, err: pieces.append((off, len(data), status)), nbd.CMD_FLAG_DF)
    assert pieces == [(512 << 10, 1 << 20, nbd.READ_DATA)], pieces


def step_zero_trim_cache():
    c = connected()
    for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE):
        c.pwrite(b"z" * 131072, 4 << 20)
        try:
            c.zero(131072, 4 << 20, flags)
        except nbd.Error as e:
            assert flags & nbd.CMD_FLAG_FAST_ZERO and e.errnum == errno.ENOTSUP, e
            assert c.pread(131072, 4 << 20) == b"z" * 131072
            continue
        assert c.pread(131072, 4 << 20) == bytes(131072), flags
    c.trim(1 << 20, 4 << 20)
    c.trim(1 << 20, 4 << 20, nbd.CMD_FLAG_FUA)
    c.cache(SIZE, 0)
    c.zero(1 << 20, 4 << 20)


def step_block_status():
    c = connected(contexts=["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:marks", "qemu:dirty-bitmap:nothing"])
    assert c.can_meta_context("base:allocation") and c.can_meta_context("qemu:dirty-bitmap:marks")
    assert not c.can_meta_context("qemu:dirty-bitmap:nothing")
    c.zero(1 << 20, 6 << 20)
    c.pwrite(b"m" * 65536, 6 << 20)
    seen = {}

    def extent(name, off, extents, err):
        seen[name] = (off, list(extents))
    c.block_status(2 << 20, 6 << 20, extent)
    assert seen["base:allocation"][1][:2] == [65536, 0] and sum(seen["base:allocation"][1][::2]) >= 2 << 20, seen
    assert seen["base:allocation"][1][3] & 2 and seen["qemu:dirty-bitmap:marks"][1][1] == 1, seen
    assert seen["qemu:allocation-depth"] == (6 << 20, [65536, 1] + seen["qemu:allocation-depth"][1][2:]), seen
    seen.clear()
    c.block_status(1 << 20, (6 << 20) + 65536, extent, nbd.CMD_FLAG_REQ_ONE)
    assert len(seen) == 3 and all(len(e) == 2 and e[0] <= 1 << 20 for _, e in seen.values()), seen


def step_many_at_once():
    c = connected()
    buffers = [nbd.Buffer.from_bytearray(bytearray(bytes([i]) * 8192)) for i in range(64)]
    cookies = [c.aio_pwrite(b, 1 << 20 | i << 13) for i, b in enumerate(buffers)]
    while cookies:
        c.poll(-1)
        cookies = [k for k in cookies if not c.aio_command_completed(k)]
    assert c.pread(64 << 13, 1 << 20) == b"".join(bytes([i]) * 8192 for i in range(64))
    c.zero(1 << 20, 1 << 20)


def step_options():
    c = nbd.NBD()
    c.set_opt_mode(True)
    c.connect_uri(URI % "disk")
    names = []
    c.opt_list(lambda name, text: names.append(name))
    assert sorted(names) == ["disk", "ro"], names
    for _ in range(2):
        c.opt_info()
        assert c.get_size() == SIZE and not c.is_read_only()
    contexts = []
    c.opt_list_meta_context(contexts.append)
    assert set(contexts) >= {"base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:marks"}, contexts
    contexts.clear()
    c.add_meta_context("qemu:dirty-bitmap:")
    c.opt_list_meta_context(contexts.append)
    assert contexts == ["qemu:dirty-bitmap:marks"], contexts
    c.clear_meta_contexts()
    c.set_export_name("nobody")
    fails(errno.ENOENT, c.opt_info)
    fails(errno.ENOENT, c.opt_go)
    c.set_export_name("x" * 4096)
    fails(errno.ENOENT, c.opt_info)
    c.set_export_name("ro")
    c.opt_go()
    assert c.is_read_only() and c.pread(1, 0) == b"a"
    c = nbd.NBD()
    c.set_opt_mode(True)
    c.connect_uri(URI % "disk")
    c.opt_abort()
    assert c.aio_is_closed()


def step_handshakes():
    for flags in (0, 1, 2, 3):  # nothing, fixed newstyle, no zeroes
        c = connected(handshake=flags)
        assert c.pread(2, 0) == b"aa", flags


def step_abilities():
    c = connected()
    assert c.can_cache() and c.can_df() and c.can_fast_zero() and c.can_flush() and c.can_fua() and c.can_multi_conn()
    assert c.can_trim() and c.can_zero() and not c.is_read_only() and not c.is_rotational()
    assert c.get_block_size(nbd.SIZE_MINIMUM) == 1 and c.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
    assert c.get_protocol() == "newstyle-fixed" and not c.get_tls_negotiated()


def step_bad_requests():
    for structured in (True, False):
        c = connected(strict=0, structured=structured)
        for off, n in ((SIZE, 1), (SIZE - 1, 2), (1 << 62, 512)):
            fails(errno.EINVAL, c.pread, n, off)
            fails(errno.ENOSPC, c.pwrite, b"x" * n, off)
            fails(errno.EINVAL, c.trim, n, off)
            fails(errno.ENOSPC, c.zero, n, off)
            fails(errno.EINVAL, c.cache, n, off)
        for flag in (1 << 6, 1 << 15):
            fails(errno.EINVAL, c.pwrite, b"x", 0, flag)
            fails(errno.EINVAL, c.trim, 512, 0, flag)
            fails(errno.EINVAL, c.zero, 512, 0, flag)
            fails(errno.EINVAL, c.cache, 512, 0, flag)
            fails(errno.EINVAL, c.flush, flag)
        fails(errno.EINVAL, c.pwrite, b"x", 0, nbd.CMD_FLAG_NO_HOLE)
        fails(errno.EINVAL, c.pread, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert c.pread(3, 0) == b"aaa"
    c = connected("ro", strict=0)
    fails(errno.EPERM, c.pwrite, b"x", 0)
    fails(errno.EPERM, c.trim, 512, 0)
    fails(errno.EPERM, c.zero, 512, 0)
    fails(errno.EPERM, c.pwrite, b"x" * 100000, SIZE)
    assert c.pread(3, 0) == b"aaa"
    c.flush()


for name, step in list(globals().items()):
    if name.startswith("step_"):
        print(name[5:], flush=True)
        step()
print("end")
