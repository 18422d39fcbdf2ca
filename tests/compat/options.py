#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The option tables of doc/COMPAT.md, held to the programs.

Every option that the newest QEMU's --help lists stands in exactly one cell of its command's row, and no row names another;
our program takes what the table does not call refused, with as many arguments as QEMU's takes, and refuses by name what it
does (R55 of "Rules of callers"). The environment: QCOW_COMPAT, the folder with our qemu-img, qemu-io and qemu-nbd; QEMU_IMG_NEW, QEMU's own (default: what
tools/peers/get fetched). Without QEMU's the rows are held to our programs alone.
"""
import os, re, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[2]
ours = Path(os.environ["QCOW_COMPAT"])
theirs = Path(os.environ.get("QEMU_IMG_NEW", Path.home() / ".cache/qcowkit-peers/bin/qemu-img")).parent
OPTION = re.compile(r"`(-[-\w]+)`")
CELLS = ["same", "better", "no effect", "refused"]
# what to give an option with an argument, where not any word will do
VALUES = {"-r": "leaks", "--repair": "leaks", "--output": "json", "--preallocation": "off", "--object": "secret,id=s,data=x",
          "--aio": "threads", "-i": "threads", "--discard": "unmap", "-d": "unmap", "--detect-zeroes": "off"}
CACHES = {"-t", "-T", "--cache", "--source-cache", "--target-cache", "--backing-cache"}
bad = []


def check(ok, what):
    print(("[       OK ] " if ok else "[  FAILED  ] ") + what)
    if not ok:
        bad.append(what)


def table():
    """{(program, command): {option: cell}} of the section "Options"."""
    rows = {}
    text = (root / "doc/COMPAT.md").read_text().split("\n## Options\n")[1].split("\n## ")[0]
    program = None
    for line in text.splitlines():
        if line.startswith("### "):
            program = line[4:].strip()
        cells = [c.strip() for c in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 1 + len(CELLS) or cells[0] in ("", "command") or set(line) <= set("|-"):
            continue
        row = rows.setdefault((program, cells[0]), {})
        for name, cell in zip(CELLS, cells[1:]):
            for option in OPTION.findall(cell):
                check(option not in row, f"{program} {cells[0]} {option} stands there once")
                row[option] = name
    return rows


def qemu_options(program, command):
    """{option: takes an argument} as QEMU's --help lists them."""
    words = [str(theirs / program)] + ([command] if program == "qemu-img" and command != "program" else []) + ["--help"]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in out.splitlines():
        m = re.match(r"\s+(-\S.*?)(\s\s+\S|$)", line)
        if not m or line.strip().startswith("qemu-"):
            continue
        head = m.group(1).split(" (")[0]
        options = re.findall(r"(?<![\w=\[-])(--?[A-Za-z][\w-]*)", head)
        # "-T, --trace PATTERN": what is left when the options are gone is the argument
        rest = re.sub(r"(?<![\w=\[-])--?[A-Za-z][\w-]*", "", head).replace(",", "").strip()
        for option in options:
            # QEMU 11.1 forgot the FMT of one
            found[option] = rest != "" or option in ("-f", "--format")
    return found


def value_of(option):
    return "none" if option in CACHES else VALUES.get(option, "1")


def runs(program, command, words):
    line = [str(ours / program)] + ([command] if program == "qemu-img" and command != "program" else []) + words
    return subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)


def main():
    rows = table()
    have_qemu = (theirs / "qemu-img").exists()
    if not have_qemu:
        print("SKIP the newest QEMU is not there (tools/peers/get fetches it)")
    check(len(rows) >= 18, f"{len(rows)} rows")
    for (program, command), row in rows.items():
        want = qemu_options(program, command) if have_qemu else {}
        for option, takes in want.items():
            check(option in row, f"{program} {command} {option} is in the table")
            if option not in row:
                continue
            if option in ("-h", "--help", "-V", "--version"):
                check(runs(program, command, [option]).returncode == 0, f"{program} {command} {option} answers")
                continue
            words = [option] + ([value_of(option)] if takes else []) + ["--help"]
            r = runs(program, command, words)
            if row[option] == "refused":
                r = runs(program, command, words[:-1] + ["nothing"])
                check(r.returncode == 1 and option.lstrip("-") in r.stderr or "nbd" in r.stderr and r.returncode == 1,
                      f"{program} {command} {option} is refused by name")
            else:
                check(r.returncode == 0 and r.stderr == "", f"{program} {command} {option} is taken: {r.stderr.strip()}")
        if have_qemu:
            for option in row:
                check(option in want, f"{program} {command} {option} is an option of QEMU's")
    print(f"{len(bad)} failed")
    return 1 if bad else 0


if len(sys.argv) > 1 and sys.argv[1] == "--print":
    names = [("qemu-img", c) for c in ["program", "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info",
                                       "map", "measure", "rebase", "resize", "snapshot"]] + [("qemu-nbd", "program"), ("qemu-io", "program")]
    for program, command in names:
        print(f"| {command} | " + " ".join(f"`{o}`" for o in qemu_options(program, command)) + " | | | |")
    sys.exit(0)
sys.exit(main())
