#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Extended headers with somebody else's client: the newest QEMU's, through a tap that takes what passes apart. Every request and
reply has the long header; one extent of block status, and one request for zeros, is longer than 32 bits can say. Older clients
get the structured replies that they ask for.

usage: serve_extended.py [TEST...]      the environment names QCOW
"""
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import served
import wire

SIZE, AT = 40 << 30, 20 << 30


def tapped(folder, *argv):
    server = served.Ours(folder, *argv)
    tap = served.Tap(server.path + "t", server.path)
    return server, tap, "nbd+unix:///?socket=" + tap.path


def end(server, tap):
    server.end()
    wire.check("what passed", tap.wrong, [])
    wire.check("connections", tap.connections > 0, True)


def image(folder, name):
    path = os.path.join(folder, name)
    served.run(served.IMG, "create", "-q", "-f", "qcow2", path, str(SIZE))
    served.run(served.newest("qemu-io"), "-f", "qcow2", "-c", "write -P 7 %d 1M" % AT, "-c", "write -z 100M 64k", path)
    return path


def is_extended(tap):
    wire.check("options", {wire.OPT["EXTENDED"], wire.OPT["GO"]} <= tap.acknowledged, True)
    wire.check("not both", wire.OPT["STRUCTURED"] in tap.acknowledged, False)
    wire.check("requests", set(tap.requests), {wire.EXT_REQUEST})
    wire.check("replies", set(tap.replies), {wire.EXT_REPLY})


def a_map_in_long_extents(folder):
    img = served.newest("qemu-img")
    path = image(folder, "map")
    local = json.loads(served.run(img, "map", "--output=json", "-f", "qcow2", path))
    server, tap, uri = tapped(folder, "-r", path)
    got = json.loads(served.run(img, "map", "--output=json", "-f", "raw", uri))
    end(server, tap)
    is_extended(tap)

    def areas(m):  # what is data, joined
        return [(e["start"], e["length"]) for e in m if e["data"]]
    wire.check("data", areas(got), areas(local))
    wire.check("the end", got[-1]["start"] + got[-1]["length"], SIZE)
    longest = max(n for extents in tap.extents for n, _ in extents)
    wire.check("the longest extent", longest, AT)


def a_copy_there_and_back(folder):
    img = served.newest("qemu-img")
    path, target = image(folder, "source"), os.path.join(folder, "target")
    server, tap, uri = tapped(folder, "-r", path)
    served.run(img, "convert", "-f", "raw", "-O", "qcow2", uri, target)
    served.run(img, "compare", "-f", "raw", "-F", "qcow2", uri, target)
    end(server, tap)
    is_extended(tap)
    again = os.path.join(folder, "again")
    served.run(served.IMG, "create", "-q", "-f", "qcow2", again, str(SIZE))
    server, tap, uri = tapped(folder, again)
    served.run(img, "convert", "-n", "-f", "qcow2", "-O", "raw", path, uri)
    end(server, tap)
    is_extended(tap)
    for got in (target, again):
        served.run(served.IMG, "check", "-q", got)
        served.run(served.IMG, "compare", path, got)


def zeros_and_writes(folder):
    path = image(folder, "zeros")
    server, tap, uri = tapped(folder, path)
    served.run(served.newest("qemu-io"), "-f", "raw", "-c", "write -P 3 1G 2M", "-c", "write -z -u -n 10G 15G", "-c", "write -z -n 30G 5G",
               "-c", "discard 1G 64k", "-c", "flush", "-c", "read -P 0 %d 1M" % AT, "-c", "read -P 3 1025M 1M", uri)
    requests = server.status()["requests"]
    end(server, tap)
    is_extended(tap)
    wire.check("two requests for zeros", requests["zero"], {"requests": 2, "bytes": 20 << 30, "errors": 0})
    served.run(served.IMG, "check", "-q", path)
    served.run(served.newest("qemu-io"), "-f", "qcow2", "-c", "read -P 0 %d 1M" % AT, "-c", "read -P 3 1025M 1M", path)


def who_knows_less_gets_less(folder):
    path = image(folder, "older")
    server, tap, uri = tapped(folder, "-r", path)
    version = served.run(served.IMG, "--version").split()[2]
    got = json.loads(served.run(served.IMG, "map", "--output=json", "-f", "raw", uri))
    end(server, tap)
    wire.check("data", [(e["start"], e["length"]) for e in got if e["data"]], [(AT, 1 << 20)])
    if int(version.split(".")[0]) < 8:
        wire.check("options", {wire.OPT["STRUCTURED"], wire.OPT["GO"]} <= tap.acknowledged, True)
        wire.check("requests", set(tap.requests), {wire.REQUEST})
        wire.check("extents", all(n < 1 << 32 for extents in tap.extents for n, _ in extents), True)


if __name__ == "__main__":
    if not served.IMG or not served.newest("qemu-img"):
        print("SKIP the newest QEMU is not there (tools/peers/get fetches it)")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(served.main([a_map_in_long_extents, a_copy_there_and_back, zeros_and_writes, who_knows_less_gets_less],
                             sys.argv[1:], folder))
