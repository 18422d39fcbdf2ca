#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A real guest on our disks: Linux in qemu-system-x86_64, on `qcow serve` and on the file of `qcow mount`. The image has compressed
clusters and a compressed backing file. The guest reads what is there, makes an ext4 (in half of the rounds without a discard, so that
it writes into compressed clusters), writes files and syncs, and is killed, and in every other round the server too. Then the image
must be clean, and every file that was synced there.

usage: guest.py [--rounds N] [--seed S] [--qcow PROGRAM] [nbd|fuse]...

What it boots is in ~/.cache/qcowkit-peers/guest (tools/peers/guest fetches it). By KVM where a guest prints a line within 10 s, else by
TCG with -icount: the guest's clocks then count its own instructions, and a host that has no time for it does not make its
timers seem broken. A machine whose kernel never comes to its first program has not seen our disk: it is booted again, which is
counted and told.
"""
import argparse
import gzip
import hashlib
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

MIB = 1 << 20
DISK = 256 * MIB
BOOTS = 8
MODULES = ["virtio/virtio_ring", "virtio/virtio", "virtio/virtio_pci_modern_dev", "virtio/virtio_pci_legacy_dev",
           "virtio/virtio_pci", "block/virtio_blk"]
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
echo GUEST up
for m in %s; do insmod /modules/$m.ko; done
while [ ! -b /dev/vda ]; do sleep 0.1; done
echo "GUEST first $(dd if=/dev/vda bs=1M count=8 2>/dev/null | md5sum)"
how=discard
! grep -q nodiscard /proc/cmdline || how=nodiscard
/sbin/mke2fs -q -t ext4 -F -E $how /dev/vda || echo GUEST failed mke2fs
mount -t ext4 -o $how /dev/vda /mnt || echo GUEST failed mount
n=0
while true; do
	n=$((n + 1))
	dd if=/dev/urandom of=/mnt/f$n bs=37k count=$((n %% 7 * 4 + 1)) 2>/dev/null
	[ $((n %% 5)) != 4 ] || rm /mnt/f$((n - 2))
	dd if=/dev/zero of=/mnt/f$((n / 2 + 1)) bs=4k seek=1 count=2 conv=notrunc 2>/dev/null
	sync
	cd /mnt
	echo "GUEST synced $(md5sum f* | sed 's/  / /' | tr '\\n' ' ')"
	cd /
done
"""


def archive(files):
    """An initramfs (cpio, newc) of {path: content}; None: a folder."""
    out = bytearray()

    def add(path, mode, data):
        name = path.encode() + b"\0"
        fields = [add.n, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0]
        add.n += 1
        out.extend(b"070701" + b"".join(b"%08X" % f for f in fields) + name)
        out.extend(bytes(-len(out) % 4) + data)
        out.extend(bytes(-len(out) % 4))
    add.n = 1
    for path, data in files.items():
        add(path, 0o40755 if data is None else 0o100755, data or b"")
    add("TRAILER!!!", 0, b"")
    return gzip.compress(bytes(out), 1)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def initramfs(guest):
    files = {d: None for d in ("bin", "dev", "proc", "mnt", "modules", "sbin", "usr", "usr/bin", "usr/sbin", "lib64", "lib")}
    files["bin/busybox"] = read(os.path.join(guest, "busybox"))
    for module in MODULES:
        files["modules/%s.ko" % os.path.basename(module)] = read("%s/modules/drivers/%s.ko" % (guest, module))
    mke2fs = shutil.which("mke2fs", path=os.environ["PATH"] + ":/sbin:/usr/sbin")
    files["sbin/mke2fs"] = read(mke2fs)
    for lib in re.findall(r"(?:=> )?(/\S+) \(", subprocess.run(["ldd", mke2fs], capture_output=True, text=True).stdout):
        folder = os.path.dirname(lib).strip("/")
        for i in range(folder.count("/") + 1):
            files.setdefault("/".join(folder.split("/")[:i + 1]), None)
        files[lib.strip("/")] = read(lib)
    files["init"] = (INIT % " ".join(os.path.basename(m) for m in MODULES)).encode()
    return archive(files)


class Guest:
    """A machine that runs, and what it says. `lines` has what follows GUEST."""

    def __init__(self, kernel, drive, accel, word=""):
        self.lines, self.said, self.changed = [], [], threading.Condition()
        clock = [] if accel == "kvm" else ["-icount", "shift=3,sleep=on", "-rtc", "clock=vm"]
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", accel, *clock, "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-m", "192",
             "-kernel", kernel, "-initrd", "initramfs", "-append",
             "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off tsc=reliable no_timer_check random.trust_cpu=on " + word] + drive,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self):
        for line in self.process.stdout:
            text = line.decode(errors="replace").strip()
            with self.changed:
                self.said.append(text)
                # a line that was cut by the kill is none
                if line.endswith(b"\n") and text.startswith("GUEST "):
                    self.lines.append(text[6:])
                self.changed.notify()
        with self.changed:
            self.lines.append("ended")
            self.changed.notify()

    def wait(self, n, seconds):
        """Until it has said n lines. False: it has not by then, or it ended."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.lines) >= n or "ended" in self.lines, seconds)
            return len(self.lines) >= n and "ended" not in self.lines[:n]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.thread.join()


def pick_accel(kernel):
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        guest = Guest(kernel, [], "kvm")
        works = guest.wait(1, 10)
        guest.kill()
        if works:
            return "kvm"
    return "tcg"


def make_image(rng):
    """The content of the disk's first 8 MiB."""
    words = b" ".join(b"%d" % rng.randrange(1000) for _ in range(100000))
    content = bytearray((words * (16 * MIB // len(words) + 1))[:16 * MIB])
    with open("content", "wb") as f:
        f.write(content)
        f.truncate(DISK)
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "content", "below.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "below.qcow2", "-F", "qcow2", "disk.qcow2")
    for i in range(4):
        off = i * 2 * MIB + 65536
        run("qemu-io", "-c", "write -c -P %d %d 64k" % (i + 1, off), "disk.qcow2")
        content[off:off + 65536] = bytes([i + 1]) * 65536
    return bytes(content[:8 * MIB])


def run(*argv, ok=(0,)):
    r = subprocess.run(argv, capture_output=True, text=True)
    assert r.returncode in ok, "%s: status %d\n%s%s" % (" ".join(argv), r.returncode, r.stdout, r.stderr)
    return r.stdout


def start_server(qcow, how):
    for name in ("s", "pid"):
        if os.path.lexists(name):
            os.unlink(name)
    more = ["serve", "-t", "-k", "s", "disk.qcow2"] if how == "nbd" else ["mount", "-w", "disk.qcow2", "m"]
    server = subprocess.Popen([qcow, *more, "--pid-file", "pid"])
    for _ in range(1200):
        if os.path.exists("pid") and os.path.getsize("pid"):
            return server
        assert server.poll() is None, "the server ended with %r" % server.returncode
        time.sleep(0.05)
    raise AssertionError("the server does not start")


def drive(how):
    node = "driver=nbd,server.type=unix,server.path=s" if how == "nbd" else "driver=file,filename=m/disk"
    return ["-blockdev", node + ",node-name=d,discard=unmap", "-device", "virtio-blk-pci,drive=d"]


def judge(lines, was_killed):
    """What was synced is there; what came later may be."""
    run("qemu-img", "check", "-f", "qcow2", "disk.qcow2", ok=(0, 3) if was_killed else (0,))
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "disk.qcow2", "raw")
    env_path = os.environ["PATH"] + ":/sbin:/usr/sbin"
    os.environ["PATH"] = env_path
    run("e2fsck", "-fy", "raw", ok=(0, 1))
    run("e2fsck", "-fn", "raw")
    fields = lines[-1].split()[1:]
    n_files = 0
    # the round after the last sync may have rewritten or removed one of them
    n = max(int(name[1:]) for name in fields[1::2]) + 1
    may_differ = {"f%d" % (n - 2) if n % 5 == 4 else None, "f%d" % (n // 2 + 1)}
    for md5, name in zip(fields[::2], fields[1::2]):
        run("debugfs", "-R", "dump %s file" % name, "raw")
        if hashlib.md5(read("file")).hexdigest() != md5:
            assert name in may_differ, "%s is not what was synced" % name
            continue
        n_files += 1
    return n_files


def unmount():
    for how in (["umount", "-l", "m"], ["fusermount3", "-u", "-z", "m"]):
        if shutil.which(how[0]) and subprocess.run(how, stderr=subprocess.DEVNULL).returncode == 0:
            return


def boot(args, how, word):
    """The guest, and how often it was booted until init said something."""
    for n in range(1, BOOTS + 1):
        guest = Guest(args.kernel, drive(how), args.accel, word)
        if guest.wait(1, args.patience):
            return guest, n
        guest.kill()
        print("booted in vain, %s:\n%s" % (how, "\n".join(guest.said[-5:])), flush=True)
    raise AssertionError("%d boots came to nothing" % BOOTS)


def round_of(args, how, i, rng):
    first = make_image(rng)
    server = start_server(args.qcow, how)
    guest = None
    try:
        guest, n_boots = boot(args, how, "nodiscard" if i // 2 % 2 else "")
        args.again += n_boots - 1
        n = rng.randrange(4, 12)
        told = guest.wait(n, args.patience)
        time.sleep(rng.random() * 0.3)
        guest.kill()
        assert told, "the guest says:\n" + "\n".join(guest.said[-30:])
        lines = [x for x in guest.lines if x != "ended"]
        assert not [x for x in lines if x.startswith("failed")], guest.said
        assert lines[1].split()[1] == hashlib.md5(first).hexdigest(), "it does not read what the image has: " + lines[1]
        server.send_signal(signal.SIGKILL if i % 2 else signal.SIGTERM)
        status = server.wait(60)
        assert i % 2 or status == 0, "the server ended with %d" % status
        n_files = judge(lines, i % 2)
        print("[       OK ] %s %d: %d lines, %d files, server %s" % (how, i, len(lines), n_files, "killed" if i % 2 else "ended"), flush=True)
        return 0
    except AssertionError as e:
        print(e)
        print("[  FAILED  ] %s %d" % (how, i), flush=True)
        return 1
    finally:
        if guest is not None:
            guest.kill()
        server.kill()
        server.wait()
        if how == "fuse":
            unmount()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("QK_SEED", "1")))
    parser.add_argument("--qcow", default=os.environ.get("QCOW", "qcow"))
    parser.add_argument("--patience", type=int, default=300)
    parser.add_argument("how", nargs="*", default=["nbd", "fuse"])
    args = parser.parse_args()
    args.again = 0
    args.qcow = os.path.abspath(args.qcow)
    guest = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "qcowkit-peers", "guest")
    args.kernel = os.path.join(guest, "vmlinuz")
    for program in ("qemu-system-x86_64", "qemu-img", "qemu-io"):
        if shutil.which(program) is None:
            print("SKIP %s is not there" % program)
            return 77
    if not os.path.exists(args.kernel):
        print("SKIP the guest's kernel is not there")
        return 77
    n_bad = n = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        os.mkdir("m")
        with open("initramfs", "wb") as f:
            f.write(initramfs(guest))
        args.accel = pick_accel(args.kernel)
        print("by %s, seed %d" % (args.accel, args.seed), flush=True)
        if "fuse" in args.how and not os.access("/dev/fuse", os.R_OK | os.W_OK):
            print("SKIP there is no FUSE here")
            args.how.remove("fuse")
        for i in range(args.rounds):
            for how in args.how:
                n_bad += round_of(args, how, i, random.Random("%d %d %s" % (args.seed, i, how)))
                n += 1
        os.chdir("/")
    print("%d kernels that never came to their first program were booted again" % args.again)
    print("%d passed, %d failed" % (n - n_bad, n_bad))
    return 1 if n_bad else 0


sys.exit(main())
