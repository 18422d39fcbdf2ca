#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""qcow io beside qemu-io: the same command lines on copies of the same images. Compared are standard output without
times and speeds, standard error, the exit status, and the guest's view of the image afterwards as qemu-img reads it.

Environment: QCOW_QEMU_IO (ours under QEMU's name), QCOW (ours), QEMU_IO and QEMU_IO_NEW (theirs).
Usage: io.py [NAME...]   Last line "N passed, N failed, N skipped".
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

HOME_PEERS = os.path.join(os.environ.get("HOME", "/root"), ".cache/qcowkit-peers/bin")
OURS = os.environ["QCOW_QEMU_IO"]
QCOW = os.environ["QCOW"]
IMG = shutil.which("qemu-img")
THEIRS = [p for p in (os.environ.get("QEMU_IO") or shutil.which("qemu-io"),
                      os.environ.get("QEMU_IO_NEW") or os.path.join(HOME_PEERS, "qemu-io"))
          if p and os.path.exists(p)]
SPEED = re.compile(r"[0-9]+ ops; [0-9/:. sec]* \([0-9/.inf]* [EPTGMKiBbytes]*/sec and [0-9/.inf]* ops/sec\)")
MACHINE = re.compile(r"^([0-9]+),1,[0-9:.]+,[0-9.]+,[0-9.]+$", re.M)
USAGE = re.compile(r"^([a-z_?]+) .*-- .*$", re.M)  # usage lines: the sentence is the program's own


def tidy(text):
    text = SPEED.sub("X ops", text)
    text = MACHINE.sub(r"\1,1,T", text)
    return USAGE.sub(r"usage of \1", text)


def run(program, words, stdin=""):
    env = dict(os.environ, LC_ALL="C", TMPDIR=os.getcwd())
    p = subprocess.run([program] + words, input=stdin.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       timeout=60, env=env, check=False)
    return tidy(p.stdout.decode("latin-1")), tidy(p.stderr.decode("latin-1")), p.returncode


# ---- images: made once, copied for every run ----

def make(name, *words):
    subprocess.run([IMG, "create", "-q", *words[:-1], name, words[-1]], check=True)


def templates():
    make("a.qcow2", "-f", "qcow2", "4M")
    make("base.qcow2", "-f", "qcow2", "2M")
    subprocess.run([THEIRS[-1], "-c", "write -q -P 0x11 0 1M", "base.qcow2"], check=True)
    make("over.qcow2", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "4M")
    make("sub.qcow2", "-f", "qcow2", "-o", "extended_l2=on", "-b", "base.qcow2", "-F", "qcow2", "2M")
    make("v2.qcow2", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4096", "1M")
    make("odd.raw", "-f", "raw", "1000")
    make("three.raw", "-f", "raw", "3M")
    make("empty.qcow2", "-f", "qcow2", "0")
    with open("pattern", "wb") as f:
        f.write(b"abc")
    open("nothing", "wb").close()
    with open("conf", "w", encoding="ascii") as f:
        f.write('[inject-error]\nevent = "write_aio"\nerrno = "5"\nonce = "on"\n')
    with open("noflush", "w", encoding="ascii") as f:
        f.write('[inject-error]\nevent = "flush_to_disk"\nerrno = "5"\n')
    with open("all.raw", "wb") as f:
        f.write(bytes(range(256)) * 2)


def images():
    for old in os.listdir("."):
        if os.path.isfile(old):
            os.unlink(old)
    for name in os.listdir("templates"):
        subprocess.run(["cp", "--sparse=always", os.path.join("templates", name), "."], check=True)


def contents(words):
    """The guest's view of every image that the words name."""
    out = {}
    for name in sorted(os.listdir(".")):
        if name.endswith((".qcow2", ".raw")) and name in " ".join(words):
            kind = "qcow2" if name.endswith("qcow2") else "raw"
            p = subprocess.run([IMG, "convert", "-f", kind, "-O", "raw", name, "view"], stderr=subprocess.PIPE,
                               check=False)
            with open("view", "rb") as f:
                out[name] = (p.returncode, hash(f.read()))
            os.unlink("view")
    return out


def check(name):
    p = subprocess.run([IMG, "check", "-q", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return p.returncode, p.stdout.decode("latin-1")


# ---- cases: name, words; {c} are -c lines ----

def lines(*commands):
    return [w for c in commands for w in ("-c", c)]


CASES = {
    "machine_state": lines("read -P 0 -b 0 512", "read -P 0 -b 1M 64k") + ["a.qcow2"],
    "nothing": ["a.qcow2"],
    "read": lines("read 0 512", "read 1 2", "read -v 65530 20", "read 0 1.5k", "read 0 0x10", "r 0 1") + ["a.qcow2"],
    "dump": lines("read -v 0 300", "read -vq 0 10", "readv -v 3 4 5") + ["-r", "-f", "raw", "all.raw"],
    "write": lines("write 0 64k", "read -P 0xcd 0 64k", "read -P 0 0 64k", "write -P 7 1M 100k",
                   "read -P 7 1M 100k", "write -q 0 1", "write -C 0 1", "w 5 5") + ["a.qcow2"],
    "zero": lines("write -P 1 0 256k", "write -z 64k 64k", "write -z -u 128k 64k", "write -zn 0 512",
                  "read -P 0 64k 128k", "read -P 1 192k 64k", "map") + ["a.qcow2"],
    "zero_over_backing": lines("write -z 64k 64k", "read -P 0 64k 64k", "read -P 0x11 0 64k", "write -zu 0 64k",
                               "map") + ["over.qcow2"],
    # what takes a part of a cluster: an entry where the rest reads as zeros, else data
    "zero_parts": lines("write -z 1500k 4k", "write -z 100 10", "write -z 1030k 9k", "write -z 1088k 5k", "write -zu 2000k 3k",
                        "write -z 128k 100",
                        "alloc 1500k 4k", "map", "write -z 1m 128k", "map", "read -P 0 1m 1m", "read -P 0x11 110 65426") +
                  ["over.qcow2"],
    "zero_end": lines("write -z 1000 24", "map", "write -zu 2048 24", "map", "write -P 1 4000 8", "write -z 4000 1000", "map") +
                ["a.qcow2"],
    "copy_on_read_zeros": lines("read -P 0 1500k 1k", "read 4095k 1k", "map", "alloc 1472k 64k") + ["-C", "over.qcow2"],
    "copy_on_read_subclusters": lines("write -q -P 1 29k 2k", "read -P 1 30k 1k", "read -P 0x11 70k 1k", "map") +
                                ["-C", "sub.qcow2"],
    "copy_on_read_driver": lines("open -o driver=copy-on-read,file.driver=qcow2 over.qcow2", "read -P 0x11 100 10", "map", "close",
                                 "open -r -o driver=copy-on-read,file.driver=qcow2 over.qcow2", "length"),
    "compress_driver": lines("write -P 7 0 100k", "write -P 8 200k 8k", "read -P 7 0 100k", "read -P 0 208k 48k", "map") +
                       ["--image-opts", "driver=compress,file.driver=qcow2,file.file.filename=a.qcow2"],
    "null": lines("info", "length", "read -P 0 0 64k", "write 0 64k", "read 1M 1") +
            ["-f", "null-co", "json:{'driver': 'null-co', 'size': 1048576, 'read-zeroes': true}"],
    "copy_on_write": lines("write -P 2 100 10", "read -P 0x11 0 100", "read -P 2 100 10", "read -P 0x11 110 65426",
                           "alloc 0 1M", "map") + ["over.qcow2"],
    "discard": lines("write -P 1 0 256k", "discard 64k 64k", "read -P 0 64k 64k", "discard 1 10", "discard -C 0 64k",
                     "discard -q 0 64k", "map", "discard 0 3G", "discard 5M 1", "discard x 1") + ["a.qcow2"],
    "discard_ignored": lines("write -P 1 0 256k", "discard 0 64k", "write -zu 64k 64k", "discard 5M 1", "map") +
                       ["-d", "ignore", "a.qcow2"],
    "discard_options": ["--image-opts"] + lines("write -P 1 0 256k", "discard 0 64k", "write -zu 64k 64k", "map") +
                       ["driver=qcow2,discard=unmap,pass-discard-request=off,pass-discard-snapshot=off,"
                        "pass-discard-other=on,file.filename=a.qcow2"],
    "discard_options_opened": lines("open -d off a.qcow2", "write -P 1 0 128k", "discard 0 64k", "map", "close",
                                    "open -o discard=off a.qcow2", "discard 0 64k", "map",
                                    "reopen -o discard=unmap", "reopen -o discard=foo",
                                    "open -d off -o driver=qcow2,discard=on,file.filename=a.qcow2"),
    "discard_word": ["--image-opts", "driver=qcow2,discard=foo,file.filename=a.qcow2"],
    "version_2": lines("write -P 1 100 10000", "read -P 1 100 10000", "discard 4096 4096", "write -z 8192 4096",
                       "map", "info") + ["v2.qcow2"],
    "counts": lines("read", "read 0", "read 0 1 2", "length 1", "map x", "alloc", "alloc 1 2 3", "sleep", "break",
                    "break a", "truncate", "flush x", "close x", "help a b", "sigraise", "readv 0", "discard 1",
                    "aio_read 0") + ["a.qcow2"],
    "letters": lines("read -y 0 1", "read -P", "read 0 -1", "write -y 0 1", "open -y a", "reopen -y", "truncate -y 1",
                     "aio_read -y 0 1", "discard -y 0 1", "reopen x") + ["a.qcow2"],
    "numbers": lines("read x 0", "read 0 x", "read 8E 1", "read 5E 1", "read 0 1.5", "read 0 1kk", "read 4M 1",
                     "read 4194303 2", "read 0 2G", "readv 0 2147483137", "readv 0 1G 1G", "write 0 2G",
                     "write -z 0 3G", "aio_read 0 3G", "aio_write 0 3G", "alloc x", "alloc 0 x", "truncate x",
                     "sigraise x", "sigraise -1", "sleep x", "sleep -1", "sleep 1") + ["a.qcow2"],
    "patterns": lines("read -P 256 0 1", "read -P -1 0 1", "read -P x 0 1", "read -P 0x 0 1", "read -P 010 0 8",
                      "write -P 300 0 1", "read -s 1 0 1", "read -l 3 0 8", "read -P 0 -s 9 0 8",
                      "read -P 0 -l 9 0 8", "read -P 1 -s 4 -l 2 0 8", "read -P 0 -s x 0 1",
                      "readv -P 1 0 1 2") + ["a.qcow2"],
    "conflicts": lines("write -n 0 64k", "write -u 0 1", "write -z -P 1 0 1", "write -bz 0 1k", "write -bf 0 1k",
                       "write -cf 0 64k", "write -c 64k 1000", "read -b 0 16", "aio_write -u 0 1",
                       "aio_write -z 0 64k 64k", "write -s pattern -P 1 0 1") + ["a.qcow2"],
    "compressed": lines("write -c -P 7 1M 128k", "write -c -P 8 1152k 64k", "read -P 7 1M 128k", "read -P 8 1152k 64k",
                        "write -P 3 1060k 9k", "read -P 7 1M 36k", "read -P 3 1060k 9k", "flush") + ["a.qcow2"],
    "pattern_file": lines("write -s pattern 0 8", "read -v 0 8", "write -s nothing 0 8",
                          "write -s missing 0 8") + ["a.qcow2"],
    "vectors": lines("writev -P 9 5 1 2 3", "readv -P 9 5 3 3", "writev 0 x", "writev -Cf 512 512 512", "writev -P 8 100 0 5 0 0", "readv -P 8 100 0 0 5",
                     "readv -v 0 " + "1 " * 60, "aio_write -P 4 7 1 0 2", "aio_flush", "aio_read -v 5 2 2 0 2", "aio_flush",
                     "writev -q 0 1") + ["a.qcow2"],
    "nothing_long": lines("read 0 0", "write 0 0", "readv 0 0", "discard 0 0", "write -z 0 0") + ["a.qcow2"],
    "not_open": lines("read 0 1", "read", "length", "foo", "open -r a.qcow2", "read 0 1", "close", "close"),
    "open": lines("open a.qcow2", "open a.qcow2", "close", "open missing", "open a b", "open -t foo a.qcow2",
                  "open -d foo a.qcow2", "open -i foo a.qcow2", "open -U a.qcow2", "open -rU a.qcow2", "info",
                  "close", "open -C -r a.qcow2", "open -o driver=raw a.qcow2", "info", "length", "close",
                  "open -o driver=qcow2", "open -r", "open -nk a.qcow2", "length", "quit", "foo"),
    "state": lines("info", "length", "map", "alloc 0", "alloc 0 4M", "alloc 4M", "alloc 9M 1", "write -q 64k 64k",
                   "alloc 64k 100k", "alloc 1 1M", "map") + ["a.qcow2"],
    "state_of_raw": lines("info", "length", "map", "alloc 0", "alloc 100M", "read 0 1000", "read 0 1024",
                          "read 1000 24", "read 0 1025", "write 990 10") + ["-f", "raw", "odd.raw"],
    "state_of_empty": lines("info", "length", "map", "alloc 0", "read 0 1") + ["empty.qcow2"],
    "truncate_qcow2": lines("truncate 4M", "length", "truncate 1M", "length", "truncate 8M", "read -P 0 1M 7M", "truncate 1100",
                            "truncate -m metadata 9M", "truncate -m full 1M", "length") + ["a.qcow2"],
    "truncate_raw": lines("truncate 1M", "length", "truncate 4M", "length", "read -P 0 1M 3M", "truncate 1100",
                          "length", "truncate -m foo 1M") + ["-f", "raw", "three.raw"],
    "guessed_raw": lines("write 0 512", "write -z 0 512", "write -s a.qcow2 0 64k", "write -s a.qcow2 512 64k",
                         "read -P 0 0 512") + ["three.raw"],
    "said_raw": lines("write -s a.qcow2 0 4k") + ["-f", "raw", "three.raw"],
    "read_only": lines("write 0 512", "write -z 0 512", "writev 0 512", "discard 0 512", "aio_write 0 512",
                       "truncate 1M", "flush", "read 0 1") + ["-r", "a.qcow2"],
    "temporary": lines("write 0 512", "read -P 0xcd 0 512", "read -P 0x11 512 512") + ["-s", "over.qcow2"],
    "copy_on_read": lines("read -P 0x11 100 10", "map") + ["-C", "over.qcow2"],
    "reopen": lines("reopen -r", "write 0 1", "reopen -w", "write 0 1", "reopen -r -w", "reopen -c foo",
                    "reopen -c none", "reopen -o foo=on", "reopen -o driver=raw", "reopen -o driver=qcow2",
                    "reopen -o node-name=x", "reopen -o file.driver=file", "reopen -r -o read-only=on",
                    "reopen -o read-only=on", "write 0 1", "reopen -o read-only=maybe",
                    "reopen -c none -o cache.direct=on", "reopen -o cache.direct=maybe",
                    "reopen -o lazy-refcounts=on") + ["a.qcow2"],
    "no_break": lines("break l2_load A", "resume A", "remove_break A") + ["a.qcow2"],
    "breaks": lines("break foo A", "break write_aio A", "remove_break A", "remove_break A", "resume A",
                    "read 0 1") + ["blkdebug::a.qcow2"],
    "stopped": lines("break write_aio A", "aio_write -q -P 1 0 64k", "wait_break A", "aio_write -q -P 2 1M 64k",
                     "resume A", "aio_flush", "read -P 1 0 64k", "read -P 2 1M 64k") + ["blkdebug::a.qcow2"],
    "injected": lines("write 0 64k", "write 0 64k", "read -P 0xcd 0 64k") + ["blkdebug:conf:a.qcow2"],
    "injected_json": lines("write 0 64k", "write 64k 64k", "read -P 0 0 64k") + [
        "json:{'driver':'qcow2','file':{'driver':'blkdebug','image.filename':'a.qcow2','inject-error':[{"
        "'event':'write_aio','errno':28,'once':true}]}}"],
    "over_a_format": lines("write -P 1 1000 128k", "read -P 1 1000 128k", "read -P 0 0 1000", "write -z 64k 64k",
                           "read -P 0 64k 64k", "length") + [
        "--image-opts", "driver=blkdebug,image.driver=qcow2,image.file.filename=a.qcow2,align=4k,max-transfer=64k"],
    "discarded_over_a_format": lines("write -q -P 1 0 2M", "discard 1000 100k", "read -P 1 0 64k", "read -P 0 64k 32k", "discard 1M 64k",
                                     "read -P 0 1M 64k", "read -P 1 1088k 64k") + [
        "--image-opts", "driver=blkdebug,image.driver=qcow2,image.file.filename=a.qcow2"],
    "discarded_in_parts": lines("write -q -P 1 0 4M", "discard 200001 3M", "read -P 1 0 256k", "read -P 0 256k 2752k",
                                "read -P 1 3M 1M") + [
        "--image-opts", "driver=blkdebug,image.driver=qcow2,image.file.filename=a.qcow2,align=512,opt-discard=960k,max-discard=960k"],
    "aligned": lines("open -o driver=qcow2,file.align=4k blkdebug::a.qcow2", "write -P 1 512 1024",
                     "read -P 1 512 1024", "aio_write -z 0x400 0x20000", "aio_flush", "read -P 0 0x400 0x20000"),
    "aio": lines("aio_write -P 1 0 512 512", "aio_flush", "aio_read -P 1 0 1024", "aio_flush", "aio_read -P 2 0 8",
                 "aio_flush", "aio_read 9M 512", "aio_flush", "aio_read -vq 0 8", "aio_flush", "aio_read -C 0 8",
                 "aio_flush", "aio_write -i 0 1", "aio_read -i 0 1", "aio_read x 1", "aio_discard 0 64k",
                 "aio_flush", "aio_discard 9M 1", "aio_flush", "aio_read 0 1") + ["a.qcow2"],
    "first_letters": lines("l", "i", "f", "d 0 1", "s 0", "t", "c", "o a.qcow2", "?x", "m", "g", "q") + ["a.qcow2"],
    "help_of": lines("help foo", "help length") + ["a.qcow2"],
    "missing": ["missing.qcow2"],
    "unknown_format": ["-f", "foo", "a.qcow2"],
    "unknown_words": ["-t", "foo", "a.qcow2"],
    "unknown_discard": ["-d", "foo", "a.qcow2"],
    "unknown_aio": ["-i", "foo", "a.qcow2"],
    "both_formats": ["-f", "raw", "--image-opts", "driver=qcow2,file.filename=a.qcow2"],
    "image_opts": lines("read 0 1", "close", "open driver=qcow2,file.filename=a.qcow2", "length") + [
        "--image-opts", "driver=qcow2,file.filename=a.qcow2"],
    "shared_writer": lines("length") + ["-U", "a.qcow2"],
    "shared_reader": lines("length") + ["-r", "-U", "a.qcow2"],
    "misaligned": lines("write -P 3 1 1000", "read -P 3 1 1000") + ["-m", "-n", "a.qcow2"],
    "killed_writethrough": lines("write -P 4 0 64k", "sigraise 9") + ["a.qcow2"],
    "killed_writeback": lines("write -P 4 0 64k", "flush", "sigraise 9") + ["-t", "writeback", "a.qcow2"],
    "unsafe_flushes_nothing": lines("write -P 4 0 64k", "flush", "write -f -P 5 64k 64k", "discard 0 64k", "flush",
                                    "read -P 5 64k 64k") + ["-t", "unsafe", "blkdebug:noflush:a.qcow2"],
    "aborted": lines("abort") + ["a.qcow2"],
    "file_protocol": lines("length") + ["file:a.qcow2"],
}
INPUT = {
    "input": "foo\nread 0 512\n\nlength",
    "input_quits": "length\nquit\nlength\n",
    "input_after_failure": "read x 1\nlength\n",
}

# What the two are known to say differently: (case, peers as a part of the path or "", why).
DIFFERENT_OLD = {
    "numbers": "QEMU 7.2 says otherwise that -1 is no signal",
    "aio": "QEMU 7.2 has no aio_discard",
    "copy_on_read_subclusters": "QEMU 7.2 copies whole clusters",
}


def compare(name, words, stdin, peer):
    images()
    want = run(peer, words, stdin)
    want_views = contents(words)
    images()
    got = run(OURS, words, stdin)
    got_views = contents(words)
    if want == got and want_views == got_views:
        bad = [n for n in got_views if n.endswith("qcow2") and check(n)[0] not in (0, 3)]
        return not bad, f"qemu-img check: {bad}"
    for what, w, g in zip(("stdout", "stderr", "status"), want, got):
        if w != g:
            return False, f"{what}\n--- {peer}\n{w}\n--- ours\n{g}"
    return False, f"content differs: {[n for n in want_views if want_views[n] != got_views[n]]}"


# ---- ours alone ----

def state_of_a_machine():
    """-b writes behind the disk, where both QEMUs read it, and nothing of the disk."""
    images()
    before = run(OURS, lines("read -v 0 64k") + ["a.qcow2"])[0]
    out, err, status = run(OURS, lines("write -q -b -P 7 512 1k", "read -b -P 7 512 1k", "read -b -P 0 0 512") + ["a.qcow2"])
    if status != 0 or err != "" or "verification" in out or before != run(OURS, lines("read -v 0 64k") + ["a.qcow2"])[0]:
        return False, f"{status}\n{out}{err}"
    for peer in THEIRS:
        out, err, status = run(peer, lines("read -b -P 7 512 1k", "read -b -P 0 1536 1k") + ["a.qcow2"])
        if status != 0 or "verification" in out or out.count("read ") != 2:
            return False, f"{status}\n{out}{err}"
    return subprocess.run([IMG, "check", "-q", "a.qcow2"]).returncode == 0, ""


def concurrent():
    """More requests stand at breaks at once than a pool of threads would have."""
    images()
    n = 40
    commands = ["write -q -P 1 0 4M", "flush"]
    for i in range(n):
        commands += [f"break read_aio T{i}", f"aio_read -P 1 {i * 64}k 64k", f"wait_break T{i}"]
    commands += [f"resume T{i}" for i in reversed(range(n))] + ["aio_flush"]
    out, err, status = run(OURS, lines(*commands) + ["blkdebug::a.qcow2"])
    return (status == 0 and err == "" and out.count("Suspended") == n and out.count("Resuming") == n and
            out.count("read 65536/65536") == n and "verification" not in out), out + err


def no_request_to_wait_for():
    """wait_break ends where no request can come: none is in flight, or all stand at other breaks."""
    images()
    out, err, status = run(OURS, lines("break write_aio A", "wait_break A", "aio_write -q 0 64k", "wait_break A", "break write_aio B",
                                       "wait_break B", "remove_break B", "resume A", "aio_flush") + ["blkdebug::a.qcow2"])
    wanted = ("Could not wait for breakpoint A: no request can reach it\nblkdebug: Suspended request 'A'\n"
              "Could not wait for breakpoint B: no request can reach it\nblkdebug: Resuming request 'A'\n")
    return status == 1 and err == "" and out == wanted, out + err


def no_loop():
    """An image cannot name itself through a node over another format; a pipe as config does not hold us up."""
    images()
    os.mkfifo("pipe")
    here = os.path.join(os.getcwd(), "a.qcow2")
    for named, says in (
            ("json:{'driver':'raw','file':{'driver':'qcow2','file':{'filename':'%s'}}}", "not built in"),
            ("json:{'driver':'blkdebug','image':{'driver':'qcow2','file':{'filename':'%s'}}}", "not built in"),
            ("json:{'filename':'blkdebug::%s','image':{'driver':'qcow2','filename':'x'}}", "not built in"),
            ("json:{'driver':'raw','file':{'driver':'blkdebug','config':'pipe','image.filename':'%s'}}", "lock")):
        subprocess.run([IMG, "rebase", "-u", "-F", "raw", "-b", named % here, "a.qcow2"], check=True)
        out, err, status = run(OURS, lines("read 0 1") + ["a.qcow2"])
        if status != 1 or out or says not in err:
            os.unlink("pipe")
            return False, f"{named}: {status}\n{out}{err}"
    os.unlink("pipe")
    return True, ""


def plain_name():
    """As `qcow io` the sentence of the library comes on stderr too."""
    images()
    out, err, status = run(QCOW, ["io"] + lines("read 4M 1") + ["a.qcow2"])
    return (status == 1 and out == "read failed: Input/output error\n" and
            err == "qcow: the range goes past the end of the disk\n"), out + err


def survives_kill():
    """A killed run loses nothing that a flush made stable, and the image is clean."""
    images()
    p = subprocess.run([OURS, "-t", "writeback"] + lines("write -q -P 5 0 1M", "flush", "sigraise 9") + ["a.qcow2"],
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    _, _, status = run(THEIRS[-1], lines("read -q -P 5 0 1M") + ["a.qcow2"])
    return p.returncode == -signal.SIGKILL and status == 0 and check("a.qcow2")[0] == 0, check("a.qcow2")[1]


def fills_beside_writes():
    """Requests in flight in one cluster, of which one reads it and writes it whole, lose nothing of each other."""
    with open("low.raw", "wb") as f:
        f.write(b"\x11" * (4 << 20))
    compress = "driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=t.qcow2"
    ways = [(["-C", "-t", "writeback"] + lines("aio_read -q 0 4k", "aio_write -q -P 2 64k 4k", "aio_read -q 2M 4k",
                                               "aio_write -q -P 3 3M 4k", "aio_flush") + ["t.qcow2"],
             lines("read -P 2 64k 4k", "read -P 3 3M 4k", "read -P 0x11 68k 64k"), ["-b", "low.raw", "-F", "raw"]),
            (["--image-opts"] + lines("aio_write -q -P 2 0 512k", "aio_write -q -P 3 1M 512k", "aio_flush") + [compress],
             lines("read -P 2 0 512k", "read -P 3 1M 512k", "read -P 0 512k 512k"), [])]
    for words, reads, base in ways * 8:
        make("t.qcow2", "-f", "qcow2", "-o", "cluster_size=2M", *base, "4M")
        wrote, read = run(OURS, words), run(OURS, reads + ["t.qcow2"])
        if wrote[2] != 0 or read[2] != 0:
            return False, f"{words}: {wrote} {read}"
    return True, ""


def holes():
    """Freed clusters become holes for the options for which QEMU's do, at the same offsets."""
    steps = lines("write -q -P 1 0 512k", "write -q -c -P 2 1M 64k", "flush", "discard -q 64k 128k", "flush",
                  "write -q -zu 256k 64k", "flush", "write -q -P 3 1M 64k", "flush", "write -q -P 4 2M 64k")
    sets = ["", "pass-discard-request=off", "pass-discard-other=on", "discard=ignore",
            "discard=ignore,pass-discard-request=on", "pass-discard-request=off,pass-discard-other=on"]
    if len(THEIRS) > 1:
        sets += ["discard-no-unref=on", "discard-no-unref=on,pass-discard-request=off"]
    for options in sets:
        words = ["--image-opts"] + steps + ["driver=qcow2,file.filename=a.qcow2" + (options and "," + options)]
        seen = []
        for program in (THEIRS[-1], OURS):
            images()
            out, err, status = run(program, words)
            with open("a.qcow2", "rb") as f:
                data = f.read()
            zeros = [i for i in range(5, len(data) // 65536) if not any(data[i * 65536:(i + 1) * 65536])]
            seen.append((out, err, status, zeros, check("a.qcow2")[0]))
        if seen[0] != seen[1]:
            return False, f"{options}: theirs {seen[0]}, ours {seen[1]}"
    return True, ""


OWN = [state_of_a_machine, fills_beside_writes, holes, concurrent, no_request_to_wait_for, no_loop, plain_name, survives_kill]


def main():
    if not THEIRS or IMG is None:
        print("SKIP qemu-io and qemu-img are not there")
        sys.exit(77)
    wanted = set(sys.argv[1:])
    n_ok = n_bad = 0
    with tempfile.TemporaryDirectory(prefix="qcow-io.") as folder:
        os.mkdir(os.path.join(folder, "templates"))
        os.chdir(os.path.join(folder, "templates"))
        templates()
        os.chdir(folder)
        jobs = [(n, w, "") for n, w in CASES.items()] + [(n, ["a.qcow2"], s) for n, s in INPUT.items()]
        for name, words, stdin in jobs:
            if wanted and name not in wanted:
                continue
            for i, peer in enumerate(THEIRS):
                if i == 0 and len(THEIRS) > 1 and name in DIFFERENT_OLD:
                    continue  # said in the table, no skip
                ok, why = compare(name, words, stdin, peer)
                n_ok, n_bad = n_ok + ok, n_bad + (not ok)
                print(f"{'[       OK ]' if ok else '[  FAILED  ]'} {name} {i}" + ("" if ok else "\n" + why))
        for test in OWN:
            if wanted and test.__name__ not in wanted:
                continue
            ok, why = test()
            n_ok, n_bad = n_ok + ok, n_bad + (not ok)
            print(f"{'[       OK ]' if ok else '[  FAILED  ]'} {test.__name__}" + ("" if ok else "\n" + why))
        os.chdir("/")
    print(f"{n_ok} passed, {n_bad} failed, 0 skipped")
    sys.exit(1 if n_bad else 0)


if __name__ == "__main__":
    main()
