#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The table "Rules of callers" of doc/COMPAT.md: each rule has a test that is run, and the test names the rule.

The rows are numbered R1, R2, … without a gap; every test that a row names is a test() of some meson.build, and its file says the
rule's number in a case; a number that stands in no row stands in no test.
"""
import re, sys
from pathlib import Path

root = Path(__file__).resolve().parents[2]
bad = []


def check(ok, what):
    print(("[       OK ] " if ok else "[  FAILED  ] ") + what)
    if not ok:
        bad.append(what)


def tests():
    """{name of a test: its file}, of the test() calls of the meson files; the loop over names counts."""
    found = {}
    for build in root.glob("tests/*/meson.build"):
        text = build.read_text()
        for name, program in re.findall(r"test\('([\w-]+)', find_program\('([\w.]+)'\)", text):
            found[name] = build.parent / program
        for names, prefix, suffix in re.findall(r"foreach name : \[([^\]]*)\]\n\s*test\('(\w+)' \+ name, find_program\(name \+ '([.\w]+)'\)", text):
            for name in re.findall(r"'(\w+)'", names):
                found[prefix + name] = build.parent / (name + suffix)
    return found


def main():
    section = (root / "doc/COMPAT.md").read_text().split("\n## Rules of callers\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| R(\d+) \| .*? \| (.*?) \|$", section, re.M)
    check([int(n) for n, _ in rows] == list(range(1, len(rows) + 1)), f"R1 to R{len(rows)}, without a gap")
    check(len(rows) == len([x for x in section.splitlines() if x.startswith("| R")]), "every row is read")
    known, files = tests(), set()
    for number, names in rows:
        names = re.findall(r"`(\w+)`", names)
        check(names, f"R{number} has a test")
        for name in names:
            check(name in known, f"R{number}: {name} is a test that is run")
            if name in known:
                files.add(known[name])
                says = re.search(rf"\bR{number}\b", known[name].read_text())
                check(says, f"R{number}: {known[name].relative_to(root)} says so")
    for file in sorted(files):
        for number in sorted(set(map(int, re.findall(r"\bR(\d+)\b", file.read_text())))):
            check(1 <= number <= len(rows), f"{file.relative_to(root)}: R{number} is a rule")
    print(f"{len(bad)} failed")
    return 1 if bad else 0


sys.exit(main())
