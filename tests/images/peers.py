#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Our verdicts beside QEMU's on the broken and hostile images of cases.txt: a table in Markdown.

usage: peers.py [--qcow PROGRAM] [--qemu FOLDER]... [--only ID]... [--seconds N]

Each image is made anew for each program. QEMU runs as the user nobody, in a folder of that user, without
capabilities, with limits on memory, time and the size of files: as root it would write wherever an image says.
Columns: open (info), check, copy (convert -O raw), and for us vet. Words:

  ok damaged leaks   what check says         refused   it ends with an error
  TIME MEMORY        it takes more than N seconds of processor time (10), more than 2 GiB
  -                  not tried: the disk is a petabyte
  SIGNAL n           it is killed             CHANGED   it changed an image that it only had to read

Last line: "N passed, N failed, N skipped": rows of ours that are as cases.txt says, and with no word in capitals.
"""
import argparse
import ctypes
import os
import pwd
import resource
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import images  # noqa: E402

CHECK_WORDS = {0: "ok", 2: "damaged", 3: "leaks"}
LIBC = ctypes.CDLL(None)


class Peer:
    def __init__(self, name, argv, is_ours):
        self.name, self.argv, self.is_ours = name, argv, is_ours


def readable_copy(folder, number, place, program="qemu-img"):
    """a QEMU that lies where nobody may not look, copied to where it may"""
    top = os.path.dirname(os.path.abspath(folder))
    wrapped = os.path.join(top, "root", "usr", "bin", program)
    if not os.path.exists(wrapped):
        return [os.path.join(folder, program)]
    copy = os.path.join(place, "qemu%d" % number)
    os.makedirs(os.path.join(copy, "usr", "bin"))
    shutil.copy(wrapped, os.path.join(copy, "usr", "bin"))
    paths = []
    for lib in ("usr/lib", "lib", "lib64", "usr/lib64"):
        if os.path.isdir(os.path.join(top, "root", lib)) and not os.path.islink(os.path.join(top, "root", lib)):
            shutil.copytree(os.path.join(top, "root", lib), os.path.join(copy, lib), symlinks=True)
            for path, _, names in os.walk(os.path.join(copy, lib)):
                if any(".so" in name for name in names):
                    paths.append(path)
    loader = [os.path.join(p, n) for p in paths for n in os.listdir(p) if n.startswith("ld-linux")][0]
    return [loader, "--argv0", program, "--library-path", ":".join(paths),
            os.path.join(copy, "usr", "bin", program)]


def bound(seconds):
    """in the child, which is nobody already and can load nothing any more"""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 42, 1 << 42))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    LIBC.prctl(38, 1, 0, 0, 0) # PR_SET_NO_NEW_PRIVS


def run_as_nobody(argv, folder, seconds):
    """(exit code, or the word that says why there is none)"""
    who = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    try:
        with open(os.path.join(folder, "err"), "w+b") as err:
            r = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err,
                               env={"PATH": os.environ["PATH"], "LC_ALL": "C"}, timeout=6 * seconds,
                               preexec_fn=lambda: bound(seconds), **who)
            err.seek(0)
            said = err.read(4000)
    except subprocess.TimeoutExpired:
        return "TIME"
    if r.returncode in (-24, -9):
        return "TIME"
    if b"annot allocate" in said or b"out of memory" in said or b"ailed to allocate" in said:
        return "MEMORY"
    return "SIGNAL %d" % -r.returncode if r.returncode < 0 else r.returncode


def as_word(code, words):
    return code if isinstance(code, str) else words.get(code, "refused")


def judge(peer, case, bases, folder, seconds):
    """the words of one program for one image"""
    words = []
    commands = [("open", ["info", "-f", "qcow2", "image"], {0: "ok"}),
                ("check", ["check", "-f", "qcow2", "image"], CHECK_WORDS),
                ("copy", ["convert", "-f", "qcow2", "-O", "raw", "image", "copy"], {0: "ok"})]
    if peer.is_ours:
        commands.append(("vet", ["vet", "-q", "image"], {0: "ok"}))
    path = os.path.join(folder, "image")
    images.in_child(lambda: images.write_broken(case, bases, path))
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    before = images.digest(path)
    for name, command, meaning in commands:
        if name == "copy" and case.id.startswith("BOMB"):
            words.append("-")
            continue
        words.append(as_word(run_as_nobody(peer.argv + command, folder, seconds), meaning))
        if os.path.exists(os.path.join(folder, "copy")):
            os.unlink(os.path.join(folder, "copy"))
    if images.digest(path) != before:
        words[0] += " CHANGED"
    os.unlink(path)
    return words


def is_right(case, words):
    opened, check = words[0], words[1]
    if any(word.isupper() for text in words for word in text.split()):
        return False
    want = {"REJ": "refused", "CHK": "damaged", "LEAK": "leaks"}.get(case.verdict, "ok")
    streams = set(case.findings) == {"COMPRESSED_STREAM"} # only check --data decodes
    return (check == want or streams) and (case.verdict != "REJ" or opened == "refused")


def own_folder(place):
    folder = os.path.join(place, "work")
    os.mkdir(folder)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return folder


def show(cases, peers, bases, folder, seconds):
    """print the table; (rows that are right, rows, words of the peers that are in capitals)"""
    print("| id | base | mutation | ours: open, check, copy, vet | %s |" %
          " | ".join("%s: open, check, copy" % p.name for p in peers[1:]))
    print("|---" * (4 + len(peers) - 1) + "|")
    right, loud = 0, {p.name: 0 for p in peers}
    for case in cases:
        cells = []
        for peer in peers:
            words = judge(peer, case, bases, folder, seconds)
            loud[peer.name] += any(word.isupper() for text in words for word in text.split())
            if peer.is_ours:
                good = is_right(case, words)
                right += good
                words[0] = words[0] if good else "WRONG " + words[0]
            cells.append(", ".join(words))
        print("| %s | %s | `%s` | %s |" % (case.id, case.base, case.mutation, " | ".join(cells)), flush=True)
    return right, loud


def find_peers(args, place):
    ours = os.path.join(place, "qcow") # where nobody may read it
    shutil.copy(args.qcow, ours)
    peers = [Peer("qcow", [ours], True)]
    for n, folder in enumerate(args.qemu):
        argv = readable_copy(folder, n, place)
        version = subprocess.run(argv + ["--version"], capture_output=True, text=True).stdout.split()
        peers.append(Peer("QEMU " + version[2] if len(version) > 2 else "QEMU ?", argv, False))
    return peers


def default_qemus():
    found = [os.path.dirname(shutil.which("qemu-img"))] if shutil.which("qemu-img") else []
    newest = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "qcowkit-peers", "bin")
    return found + ([newest] if os.path.exists(os.path.join(newest, "qemu-img")) else [])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--qcow", default=os.path.join(images.TOP, "build/bin/qcow"))
    p.add_argument("--qemu", action="append")
    p.add_argument("--only", action="append")
    p.add_argument("--seconds", type=int, default=10)
    args = p.parse_args()
    args.qemu = args.qemu or default_qemus()
    args.qemu_img = "qemu-img"
    if not shutil.which("qemu-img"):
        print("SKIP peers: no qemu-img (package qemu-utils)\n0 passed, 0 failed, 1 skipped")
        return 0
    with open(os.path.join(images.HERE, "cases.txt")) as f:
        cases = [images.Case(line) for line in f if line.strip() and not line.startswith("#")]
    cases = [c for c in cases if not args.only or c.id in args.only]
    place = tempfile.mkdtemp(prefix="qcow-peers-")
    os.chmod(place, 0o755)
    try:
        bases = {}
        for name in images.BASES:
            path = os.path.join(place, "base-" + name)
            images.make_base(name, path, args)
            with open(path, "rb") as f:
                data = f.read()
            bases[name] = (data, images.names(data))
        peers = find_peers(args, place)
        folder = own_folder(place)
        if run_as_nobody(["sh", "-c", "test $(id -u) != 0"], folder, 5) != 0:
            raise SystemExit("peers: cannot become an unprivileged user")
        right, loud = show(cases, peers, bases, folder, args.seconds)
    finally:
        shutil.rmtree(place)
    print("\nRows with a word in capitals: " + ", ".join("%s %d" % item for item in loud.items()))
    print("%d passed, %d failed, 0 skipped" % (right, len(cases) - right))
    return 0 if right == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
