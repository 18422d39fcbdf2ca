#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""reconnect-delay: our own client (src/store_nbd/again.c) and servers that die again and again, and forget what they had not flushed
when they do. What was written is there all the same.

usage: store_again.py [--seed N] [TEST...]      the environment names QCOW
"""
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import served
from store_commands import QCOW, Fake, Refused, comes_true, fails, nbd
from wire import *  # noqa: F403 pylint: disable=all

SIZE = 8 << 20


class Forgetful(Fake):
    """A disk in memory. After each of `lives` requests it is dead for `absent` seconds, and then as it was when it was flushed last; the
    last life has no end. before: at its death, the number of the life that ends."""

    def __init__(self, path, lives, absent=0.01, before=None, **kw):
        self.lives, self.absent, self.before = list(lives), absent, before
        self.left = self.lives[0] if self.lives else None
        self.disk = self.stable = bytes(SIZE)
        self.disk = bytearray(self.disk)
        self.n_deaths, self.n_flushes, self.is_dead = 0, 0, False
        super().__init__(path, flags=0x1 | 0x4 | 0x40 | 0x100, size=SIZE, **kw)

    def run(self):
        while True:
            s, _ = self.listener.accept()
            with self.lock:
                if self.is_dead:
                    s.close()
                    continue
                self.n_clients += 1
                self.sockets.append(s)
            threading.Thread(target=self.serve, args=(s,), daemon=True).start()

    def die(self):
        """With the lock."""
        self.is_dead = True
        self.n_deaths += 1
        self.disk = bytearray(self.stable)
        for s in self.sockets:
            try:
                s.shutdown(2)
            except OSError:
                pass
        self.sockets = []
        self.lives.pop(0)
        self.left = self.lives[0] if self.lives else None
        if self.before:
            self.before(self)
        threading.Timer(self.absent, self.live).start()

    def live(self):
        self.is_dead = False

    def wait_until(self, condition):
        """With the lock, which others may have meanwhile."""
        self.lock.release()
        comes_true("what the server waits for", condition)
        self.lock.acquire()

    def carry_out(self, s, kind, off, n, data):
        if s not in self.sockets:  # of a life that is over
            raise OSError
        if self.left == 0:
            self.die()
            raise OSError
        if self.left is not None:
            self.left -= 1
        if kind == WRITE:
            self.disk[off:off + n] = data
        elif kind == ZEROES:
            self.disk[off:off + n] = bytes(n)
        elif kind == FLUSH:
            self.stable = bytes(self.disk)
            self.n_flushes += 1
        return bytes(self.disk[off:off + n]) if kind == READ else b""


def source(folder, rng):
    """A raw disk with data and holes."""
    path = os.path.join(folder, "source")
    with open(path, "wb") as f:
        f.truncate(SIZE)
        for _ in range(40):
            f.seek(rng.randrange(SIZE - (1 << 20)) & ~4095)
            f.write(rng.randbytes(rng.choice((4096, 65536, 1 << 20))))
    return path


def whole(path):
    with open(path, "rb") as f:
        return f.read()


def a_copy_goes_through(folder, rng):
    """Deaths at any request of a copy: nothing is missing when it has ended."""
    raw = source(folder, rng)
    for turn in range(4):
        at = os.path.join(folder, "copy%d" % turn)
        server = Forgetful(at, [rng.randrange(1, 40) for _ in range(rng.randrange(1, 12))])
        served.run(QCOW, "convert", "-n", *["-W", "-m", "8"] * (turn % 2), "-f", "raw", "--target-image-opts", raw, "driver=raw,file." + nbd(at, reconnect_delay=100).replace(",", ",file."))
        check("the copy, with %d deaths" % server.n_deaths, bytes(server.stable) == whole(raw), True)
        out = at + ".out"
        server.lives = [1] + [rng.randrange(1, 5) for _ in range(5)]
        server.left = server.lives[0]
        deaths = server.n_deaths
        served.run(QCOW, "convert", "--image-opts", "-O", "raw", nbd(at, reconnect_delay=100), out)
        check("read again", whole(out) == whole(raw), True)
        check("it died", server.n_deaths > deaths, True)


def what_is_written_is_read(folder, rng):
    """A program that writes, reads and flushes, beside an array of bytes; the disk that the server has at the end."""
    at = os.path.join(folder, "random")
    server = Forgetful(at, [rng.randrange(1, 25) for _ in range(25)])
    model, commands = bytearray(SIZE), []
    for number in range(1, 250):
        n = rng.choice((512, 4096, 65536, 300000)) & ~511
        off = rng.randrange(SIZE - n) & ~511
        kind = rng.choices(("write", "zero", "read", "flush"), (8, 2, 6, 1))[0]
        if kind == "write":
            commands.append("write -P %d %d %d" % (number % 255 + 1, off, n))
            model[off:off + n] = bytes([number % 255 + 1]) * n
        elif kind == "zero":
            commands.append("write -z %d %d" % (off, n))
            model[off:off + n] = bytes(n)
        elif kind == "flush":
            commands.append("flush")
        elif model[off:off + n].count(model[off]) == n:
            commands.append("read -P %d %d %d" % (model[off], off, n))
    commands.append("flush")
    text = served.run(QCOW, "io", "-t", "writeback", "--image-opts", *[a for c in commands for a in ("-c", c)], nbd(at, reconnect_delay=100))
    check("reads", "verification failed" in text, False)
    check("deaths", server.n_deaths > 3, True)
    check("the disk", bytes(server.stable) == bytes(model), True)


def what_is_kept_has_a_bound(folder, rng):
    """More is written than may be kept: flushes come by themselves."""
    at = os.path.join(folder, "bound")
    server = Forgetful(at, [25, 10])
    commands = ["write -q -P %d %dM 2M" % (i + 1, i * 2 % 8) for i in range(40)]
    process = subprocess.run([QCOW, "io", "-t", "writeback", "--image-opts", *[a for c in commands for a in ("-c", c)], nbd(at, reconnect_delay=100)],
                             capture_output=True, text=True, timeout=300)
    check(process.stderr, process.returncode, 0)
    check("flushes: %d" % server.n_flushes, 3 <= server.n_flushes <= 8, True)
    check("the last", [server.disk[i << 21] for i in range(4)], [37, 38, 39, 40])


def servers_that_stay_away(folder, rng):
    at = os.path.join(folder, "away")
    Forgetful(at, [5], absent=1000)
    begin = time.time()
    says = fails(QCOW, "io", "-t", "writeback", "--image-opts", *["-c", "write -q 0 64k"] * 20, "-c", "flush", nbd(at, reconnect_delay=1))
    check(says, "was not there again within 1 s" in says and time.time() - begin >= 1, True)
    check("every later call fails", says.count("was not there again") > 10, True)


def signals_while_nobody_is_there(folder, rng):
    """The first leaves a run that waits its time; a later one ends it."""
    raw, at = source(folder, rng), os.path.join(folder, "signals")
    server = Forgetful(at, [3], absent=1000)
    run = subprocess.Popen([QCOW, "convert", "-n", "-f", "raw", "--target-image-opts", raw, "driver=raw,file." + nbd(at, reconnect_delay=1000).replace(",", ",file.")],
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    comes_true("death", lambda: server.n_deaths == 1)
    try:
        run.send_signal(signal.SIGINT)
        time.sleep(0.3)
        check("it waits", run.poll(), None)
        comes_true("an end", lambda: run.send_signal(signal.SIGINT) or run.poll() is not None)
    except AssertionError:
        run.kill()
        raise
    check("status", run.wait(), -signal.SIGINT)


def servers_that_die_of_a_request(folder, rng):
    at = os.path.join(folder, "poison")
    server = Forgetful(at, [3] + [0] * 10000, absent=0)
    begin = time.time()
    says = fails(QCOW, "io", "-t", "writeback", "--image-opts", *["-c", "write -q 0 64k"] * 4, nbd(at, reconnect_delay=1))
    check(says, "was not there again within 1 s" in says and time.time() - begin >= 1 and server.n_deaths > 0, True)


def servers_that_come_back_as_others(folder, rng):
    def smaller(server):
        server.size = SIZE - 4096

    def read_only(server):
        server.flags |= 2
    for i, before in enumerate((smaller, read_only)):
        at = os.path.join(folder, "other%d" % i)
        Forgetful(at, [5], before=before)
        says = fails(QCOW, "io", "-t", "writeback", "--image-opts", *["-c", "write -q 0 64k"] * 20, nbd(at, reconnect_delay=100))
        check(says, "the server has ended the connection" in says, True)


def a_write_that_servers_die_of(folder, rng):
    """It fails; what was written before is there, and what is written after."""
    class Dying(Forgetful):
        def carry_out(self, s, kind, off, n, data):
            if kind == WRITE and off == 1 << 20:
                self.lives, self.left = [0, None], 0
            return super().carry_out(s, kind, off, n, data)
    at = os.path.join(folder, "dying")
    server = Dying(at, [])
    commands = ["write -q -P 1 0 64k", "write -q -P 2 1M 64k", "write -q -P 3 2M 64k", "flush"]
    says = fails(QCOW, "io", "-t", "writeback", "--image-opts", *[a for c in commands for a in ("-c", c)], nbd(at, reconnect_delay=3))
    check(says, says.count("was not there again within 3 s"), 1)
    check("the disk", [server.stable[0], server.stable[1 << 20], server.stable[2 << 20], server.n_deaths > 1], [1, 0, 3, True])


def a_flush_that_fails_is_told_to_who_flushes(folder, rng):
    """Also when it was one that came by itself, to make room."""
    class Failing(Forgetful):
        fails = 1

        def carry_out(self, s, kind, off, n, data):
            if kind == FLUSH and self.fails > 0:
                self.fails -= 1
                self.disk = bytearray(self.stable)  # as a host does that could not write its pages
                raise Refused(5)
            return super().carry_out(s, kind, off, n, data)
    at = os.path.join(folder, "failing")
    server = Failing(at, [])
    commands = ["write -q -P %d %dM 2M" % (i + 1, i * 2 % 8) for i in range(17)] + ["flush", "flush"]
    says = fails(QCOW, "io", "-t", "none", "--image-opts", *[a for c in commands for a in ("-c", c)], nbd(at, reconnect_delay=100))
    check("none is left", server.fails, 0)
    check(says, "flush failed: " in says, True)


def servers_that_promise_less(folder, rng):
    """One whose connections do not see each other's flushes is used by one alone."""
    class Less(Forgetful):
        def carry_out(self, s, kind, off, n, data):
            if self.n_deaths == 0:
                self.wait_until(lambda: self.n_ready == 4)
            return super().carry_out(s, kind, off, n, data)

    def alone(server):
        server.flags &= ~0x100
    raw, at = source(folder, rng), os.path.join(folder, "alone")
    server = Less(at, [8], before=alone)
    served.run(QCOW, "convert", "-n", "-W", "-m", "8", "-f", "raw", "--target-image-opts", raw, "driver=raw,file." + nbd(at, reconnect_delay=100).replace(",", ",file."))
    check("deaths", server.n_deaths, 1)
    check("clients of both lives", server.n_clients, 5)
    check("the copy", bytes(server.stable) == whole(raw), True)


def connections_that_reach_the_next_life(folder, rng):
    """Those that were begun in one life and are accepted in the next one are not used before what was lost is done again."""
    class Late(Forgetful):
        has_second, n_writes = False, 0

        def carry_out(self, s, kind, off, n, data):
            self.wait_until(lambda: self.has_second)
            self.n_writes += kind == WRITE
            return super().carry_out(s, kind, off, n, data)

        def run(self):
            first, _ = self.listener.accept()
            self.sockets.append(first)
            threading.Thread(target=self.serve, args=(first,), daemon=True).start()
            second, _ = self.listener.accept()
            self.has_second = True
            comes_true("writes", lambda: self.n_writes == 2)
            time.sleep(0.3)  # they are answered
            with self.lock:
                self.die()
                self.sockets.append(second)
            time.sleep(0.2)
            threading.Thread(target=self.serve, args=(second,), daemon=True).start()
            super().run()
    at = os.path.join(folder, "late")
    server = Late(at, [1000], absent=0)
    says = served.run(QCOW, "io", "-t", "writeback", "--image-opts", "-c", "aio_write -q -P 1 0 1M", "-c", "aio_write -q -P 2 1M 1M", "-c", "aio_flush",
                      "-c", "sleep 1500", "-c", "read -P 1 0 1M", "-c", "flush", nbd(at, reconnect_delay=100))
    check(says, "verification failed" in says, False)
    check("deaths", server.n_deaths, 1)
    check("the disk", [server.stable[0], server.stable[1 << 20]], [1, 2])


def connections_that_stay_silent(folder, rng):
    """One of several is lost, and the others do not end when they are told to: the next one is made in time."""
    class Silent(Forgetful):
        is_lost = False

        def carry_out(self, s, kind, off, n, data):
            if s is not self.sockets[0] and not self.is_lost:
                self.is_lost = True
                threading.Timer(1, setattr, (self, "stays", False)).start()
                raise OSError
            return super().carry_out(s, kind, off, n, data)
    raw, at = source(folder, rng), os.path.join(folder, "silent")
    server = Silent(at, [], stays=True)
    for _ in range(20):  # until the others have a request
        server.stays = True
        served.run(QCOW, "convert", "-n", "-W", "-m", "8", "-f", "raw", "--target-image-opts", raw, "driver=raw,file." + nbd(at, reconnect_delay=3).replace(",", ",file."))
        check("the copy", bytes(server.stable) == whole(raw), True)
        if server.is_lost:
            return
        server.sockets = []
    raise AssertionError("none was lost")


def a_server_that_is_killed(folder, rng):
    """qcow serve, and qcow2 in what it serves."""
    raw, holder = source(folder, rng), os.path.join(folder, "holder")
    with open(holder, "wb") as f:
        f.truncate(2 * SIZE)
    path = os.path.join(folder, "killed")
    argv = [QCOW, "serve", "-t", "-f", "raw", "-k", path, "--pid-file", path + ".pid", holder]

    def start():
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        for _ in range(2400):
            if os.path.exists(path + ".pid") and os.path.getsize(path + ".pid"):
                return process
            time.sleep(0.025)
        raise AssertionError("the server does not start")

    def end(process, is_hard=True):
        process.kill() if is_hard else process.terminate()
        process.wait()
        for name in (path, path + ".pid"):
            if os.path.exists(name):
                os.unlink(name)

    node = "file." + nbd(path, reconnect_delay=200).replace(",", ",file.")
    process = start()
    served.run(QCOW, "create", "-q", "-f", "qcow2", "nbd+unix:///?socket=" + path, str(SIZE))
    copy = subprocess.Popen([QCOW, "convert", "-n", "-r", "8M", "-f", "raw", "--target-image-opts", raw, "driver=qcow2," + node])
    for is_hard in (True, False, True, False):
        time.sleep(0.5)
        end(process, is_hard)
        process = start()
    check("status of the copy", copy.wait(300), 0)
    served.run(QCOW, "compare", "--image-opts", "driver=raw,file.filename=" + raw, "driver=qcow2," + node)
    end(process)
    served.run(served.IMG, "check", "-q", "-f", "qcow2", holder)
    served.run(served.IMG, "compare", "-f", "raw", "-F", "qcow2", raw, holder)


if __name__ == "__main__":
    if not served.IMG:
        print("SKIP qemu-img is not there")
        sys.exit(77)
    args = sys.argv[1:]
    seed = int(os.environ.get("QCOWKIT_SEED", "1"), 0)
    if args[:1] == ["--seed"]:
        seed, args = int(args[1]), args[2:]
    print("seed %d" % seed)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(served.main([a_copy_goes_through, what_is_written_is_read, what_is_kept_has_a_bound, servers_that_stay_away, signals_while_nobody_is_there,
                              servers_that_die_of_a_request, servers_that_come_back_as_others, a_write_that_servers_die_of, a_flush_that_fails_is_told_to_who_flushes,
                              servers_that_promise_less, connections_that_reach_the_next_life, connections_that_stay_silent, a_server_that_is_killed], args, folder, random.Random(seed)))
