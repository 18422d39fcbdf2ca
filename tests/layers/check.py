#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The shape of the tree, checked: which room may include which, what the library may link, export,
keep in memory and call, and how long files and functions may be.

usage: check.py [--self-test] [--build DIR] [CHECK...]

  includes   a file includes only its own room and rooms below it
  tree       SPDX lines, lengths of files and functions, words that must not appear
  headers    public headers alone as C99 and C++11 without a warning; internal headers alone as C17
  link       each room links against the rooms below it and nothing else   (needs --build)
  symbols    external symbols are qcow_ or qk_; exported = declared        (needs --build)
  globals    the library has no object that can be written                 (needs --build)
  calls      the library neither prints nor exits                          (needs --build)

--self-test shows that each check can fail: it runs it on something bad made for it. DIR is a build
folder of gcc without sanitizers. Prints one line a fault, then "N passed, N failed"; status 1 on faults.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# What a room may include besides itself and the public headers (doc/ARCHITECTURE.md, section 1).
BELOW = {
    "base": [],
    "store": ["base"],
    "format": ["base"],
    "codec": ["base"],
    "crypto": ["base"],
    "audit": ["base", "store", "format", "codec", "crypto"],
    "engine": ["base", "store", "format", "codec", "crypto", "audit"],
    "check": ["base", "store", "format", "codec", "crypto", "audit", "engine"],
    "api": ["base", "store", "format", "codec", "crypto", "audit", "engine", "check"],
    "ops": ["base"],
    "serve": ["base"],
    "store_nbd": ["base"],
    "cli": ["base", "compat", "serve", "store_nbd"],
    "compat": ["base"],
}
LIBRARY = ["base", "store", "format", "codec", "crypto", "audit", "engine", "check", "api", "ops"]
# Public headers that a low room may include: it knows errors and findings, not images.
PUBLIC_FOR = {"base": {"qcowkit/error.h"}}
SYSTEM_LIBS = ["-lpthread", "-ldeflate", "-lz", "-lzstd", "-lgcrypt", "-lm"]

# Objects that may be written, with the reason. Keep it empty.
GLOBALS_ALLOWED = {
    "qk_crypto_once": "libgcrypt is initialised once a process",
}
# (room, object, symbol): a call that prints or ends the process, with the reason.
CALLS_ALLOWED = {
    ("base", "err.c", "abort"): "qk_bug of test builds",
    ("base", "err.c", "fprintf"): "qk_bug of test builds",
    ("base", "err.c", "stderr"): "qk_bug of test builds",
}
CALLS_FORBIDDEN = {
    "printf", "vprintf", "puts", "putchar", "putc", "fputc", "fprintf", "vfprintf", "fputs", "fwrite",
    "perror", "stdout", "stderr", "dprintf", "vdprintf", "syslog", "warn", "err", "errx", "warnx",
    "exit", "_exit", "_Exit", "quick_exit", "abort", "raise", "kill", "atexit", "signal", "sigaction",
    "__assert_fail", "__printf_chk", "__fprintf_chk", "__vfprintf_chk",
    "strcpy", "strcat", "sprintf", "vsprintf", "gets", "atoi", "atol", "atoll", "alloca", "setjmp",
    "_setjmp", "longjmp", "strtok", "rand", "srand", "setlocale", "chdir", "fork", "system", "popen",
    "getenv", "setenv", "umask",
}
WORDS = [
    (r"\bTODO\b|\bFIXME\b|\bXXX\b", "unfinished by its own words"),
    (r"^\s*#\s*if\s+0\b", "#if 0"),
    (r"\b(strcpy|strcat|sprintf|vsprintf|atoi|atol|alloca|setjmp|longjmp|gets)\s*\(", "forbidden call"),
]
MAX_FILE, MAX_FUNCTION = 800, 100


def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True)


def out(*argv):
    r = run(*argv)
    if r.returncode:
        raise SystemExit("layers: %s: %s" % (" ".join(argv), r.stderr.strip()))
    return r.stdout


def walk(top, *suffixes):
    for folder, dirs, names in os.walk(top):
        dirs[:] = sorted(d for d in dirs if not d.startswith("build") and d != ".git")
        for name in sorted(names):
            if name.endswith(suffixes):
                yield os.path.join(folder, name)


def strip_comments(text):
    """C text without comments and string contents, lines kept."""
    def blank(m):
        s = m.group(0)
        if s.startswith(("\"", "'")):
            return s[0] + s[0]
        return "\n" * s.count("\n")
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)


# ---- includes ----

def check_includes(top):
    faults, n = [], 0
    for path in walk(os.path.join(top, "src"), ".c", ".h"):
        rel = os.path.relpath(path, os.path.join(top, "src"))
        room = rel.split(os.sep)[0]
        n += 1
        if room not in BELOW:
            faults.append("src/%s: a room that tests/layers/check.py does not know" % rel)
            continue
        for number, line in enumerate(open(path, encoding="utf-8"), 1):
            m = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if not m:
                continue
            bracket, name = m.groups()
            where = "src/%s:%d" % (rel, number)
            if ".." in name.split("/"):
                faults.append("%s: includes %s by a relative path" % (where, name))
            elif name.startswith("qcowkit/"):
                allowed = PUBLIC_FOR.get(room)
                if allowed is not None and name not in allowed:
                    faults.append("%s: %s may not include <%s>" % (where, room, name))
            elif bracket == '"':
                target = name.split("/")[0] if "/" in name else room
                if target != room and target not in BELOW[room]:
                    faults.append("%s: %s may not include \"%s\"" % (where, room, name))
            elif name.split("/")[0] in BELOW and "/" in name:
                faults.append("%s: includes <%s> with angle brackets" % (where, name))
    return n, faults


# ---- tree ----

def functions(text):
    """(name, first line, lines) of each function: kernel braces, so '{' and '}' stand in column 0."""
    lines = strip_comments(text).split("\n")
    start = None
    for i, line in enumerate(lines):
        if line.startswith("{"):
            start = i
        elif line.startswith("}") and start is not None:
            head = start
            while head > 0 and lines[head - 1].strip() and not lines[head - 1].startswith(("}", "#")):
                head -= 1
            m = re.search(r"(\w+)\s*\(", "\n".join(lines[head:start]))
            if m:
                yield m.group(1), head + 1, i - head + 1
            start = None


def check_tree(top):
    faults, n = [], 0
    for folder in ("include", "src", "tests", "fuzz", "bench", "examples", "tools", ".ci"):
        for path in walk(os.path.join(top, folder), ".c", ".h", ".py", ".sh", "meson.build", ".def", ".map"):
            rel = os.path.relpath(path, top)
            text = open(path, encoding="utf-8").read()
            n += 1
            if "SPDX-License-Identifier: MIT" not in "\n".join(text.split("\n", 3)[:2]):
                faults.append("%s:1: no SPDX line at its head" % rel)
            if not path.endswith((".c", ".h")):
                continue
            count = text.count("\n")
            if count > MAX_FILE:
                faults.append("%s: %d lines, %d at most" % (rel, count, MAX_FILE))
            code = strip_comments(text)
            for pattern, what in WORDS:
                source = text if what.startswith("unfinished") else code
                for m in re.finditer(pattern, source, re.M):
                    line = source.count("\n", 0, m.start()) + 1
                    faults.append("%s:%d: %s: %s" % (rel, line, what, m.group(0).strip()))
            for name, line, length in functions(text):
                if length > MAX_FUNCTION:
                    faults.append("%s:%d: %s is %d lines, %d at most" % (rel, line, name, length, MAX_FUNCTION))
    return n, faults


# ---- headers ----

WARN = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror", "-fsyntax-only"]


def check_headers(top):
    faults, n = [], 0
    include = os.path.join(top, "include")
    for path in walk(include, ".h"):
        name = os.path.relpath(path, include)
        # g++ -Wshadow minds that struct qcow_store_caps and the call of that name are two things
        compilers = [["gcc", "-std=c99", "-x", "c"], ["clang", "-std=c99", "-x", "c"],
                     ["g++", "-std=c++11", "-x", "c++"],
                     ["clang++", "-std=c++11", "-x", "c++"]]
        for compiler in compilers:
            if run("sh", "-c", "command -v " + compiler[0]).returncode:
                faults.append("include/%s: no %s to try it with (tools/packages tests)" % (name, compiler[0]))
                continue
            with tempfile.NamedTemporaryFile("w", suffix=".c") as source:
                # twice: the guard holds
                source.write("#include <%s>\n#include <%s>\ntypedef int translation_unit;\n" % (name, name))
                source.flush()
                r = run(*compiler[:-2], *WARN, "-Wno-shadow" if "++" in compiler[0] else "-Wshadow",
                        *compiler[-2:], "-I", include, source.name)
            n += 1
            if r.returncode:
                faults.append("include/%s: %s: %s" % (name, " ".join(compiler), r.stderr.strip().split("\n")[0]))
    fuse = run("pkg-config", "--cflags", "fuse3").stdout.split()
    for path in walk(os.path.join(top, "src"), ".h"):
        rel = os.path.relpath(path, os.path.join(top, "src"))
        with tempfile.NamedTemporaryFile("w", suffix=".c") as source:
            source.write('#include "%s"\n#include "%s"\ntypedef int translation_unit;\n' % (rel, rel))
            source.flush()
            r = run("gcc", "-std=gnu17", "-D_GNU_SOURCE", *WARN, "-I", include,
                    "-I", os.path.join(top, "src"), *fuse, source.name)
        n += 1
        if r.returncode:
            faults.append("src/%s: does not compile alone: %s" % (rel, r.stderr.strip().split("\n")[0]))
    return n, faults


# ---- link, symbols, globals, calls: on the archives of a build ----

def archives(build):
    """room -> its static library, for rooms that have code"""
    found = {}
    for room in LIBRARY:
        path = os.path.join(build, "libqk_%s.a" % room)
        if os.path.exists(path) and out("ar", "t", path).strip():
            found[room] = path
    if "base" not in found:
        raise SystemExit("layers: %s holds no build (no libqk_base.a)" % build)
    return found


def link_room(room, path, libs, build):
    """the symbols that a room needs and nothing below it has"""
    lower = [libs[r] for r in reversed(LIBRARY) if r in BELOW[room] and r in libs]
    if room == "ops":  # written on the public calls alone: the shared library's exports must do
        lower = [os.path.join(build, "libqcowkit.so")] + lower
    with tempfile.TemporaryDirectory() as tmp:
        argv = ["gcc", "-shared", "-o", os.path.join(tmp, "room.so"), "-Wl,-z,defs", "-Wl,--whole-archive", path,
                "-Wl,--no-whole-archive", "-Wl,--start-group", *lower, "-Wl,--end-group", "-Wl,--as-needed"]
        r = run(*argv, *[lib for lib in SYSTEM_LIBS if lib_exists(lib)])
    missing = sorted(set(re.findall(r"undefined reference to `([^']+)'", r.stderr)))
    if r.returncode and not missing:
        missing = [r.stderr.strip().split("\n")[-1]]
    return missing


def lib_exists(lib):
    with tempfile.TemporaryDirectory() as tmp:
        return run("gcc", "-shared", "-o", os.path.join(tmp, "x.so"), lib).returncode == 0


def check_link(build):
    faults, libs = [], archives(build)
    for room, path in libs.items():
        for symbol in link_room(room, path, libs, build):
            faults.append("%s needs %s, which no room below it has" % (room, symbol))
    return len(libs), faults


def objects(path):
    """(object, symbol, section, kind) of each defined symbol of an archive or object"""
    member = os.path.basename(path)
    for line in out("objdump", "-t", path).split("\n"):
        m = re.match(r"(\S+):\s+file format", line)
        if m:
            member = m.group(1)
            continue
        m = re.match(r"[0-9a-f]{16} (.{7}) (\S+)\t[0-9a-f]{16}\s+(?:\.hidden |\.protected |\.internal )?(\S+)$", line)
        if m:
            yield member, m.group(3), m.group(2), m.group(1)


def check_globals_of(path):
    for member, symbol, section, kind in objects(path):
        writable = re.match(r"(\.data|\.bss|\.tdata|\.tbss|\*COM\*)(\.|$)", section)
        if not writable or section.startswith(".data.rel.ro"):
            continue
        thread_local = section.startswith((".tdata", ".tbss"))  # objdump shows no kind for them
        if (thread_local or section == "*COM*" or "O" in kind) and symbol.split(".")[0] not in GLOBALS_ALLOWED:
            yield "%s: %s in %s can be written" % (member, symbol, section)


def check_globals(build):
    faults, libs = [], archives(build)
    for room, path in libs.items():
        faults += ["%s: %s" % (room, fault) for fault in check_globals_of(path)]
    return len(libs), faults


def unprefixed(path):
    for member, symbol, section, kind in objects(path):
        if kind[0] in "gu!" and section != "*UND*" and not symbol.startswith(("qcow_", "qk_")):
            yield "%s: external symbol %s has no prefix" % (member, symbol)


def declared(include):
    names = set()
    for path in walk(include, ".h"):
        text = strip_comments(open(path, encoding="utf-8").read())
        text = re.sub(r"^\s*#.*(?:\\\n.*)*$", "", text, flags=re.M)
        names |= set(re.findall(r"QCOW_EXPORT[^;(]*?\b(\w+)\s*\(", text))
    return names


def compare_exports(names, shared):
    exported = {line.split()[2].split("@")[0] for line in out("nm", "-D", "--defined-only", shared).split("\n")
                if len(line.split()) == 3 and line.split()[1] != "A"}
    for name in sorted(exported - names):
        yield "exported but not declared in include/qcowkit: %s" % name
    for name in sorted(names - exported):
        yield "declared in include/qcowkit but not exported: %s" % name


def check_symbols(build):
    faults, libs = [], archives(build)
    for room, path in libs.items():
        faults += ["%s: %s" % (room, fault) for fault in unprefixed(path)]
    names = declared(os.path.join(TOP, "include"))
    faults += list(compare_exports(names, os.path.join(build, "libqcowkit.so")))
    return len(libs) + len(names), faults


def calls_of(room, path):
    for member in out("ar", "t", path).split():
        source = re.sub(r"\.o$", "", member).split("_")[-1]
        text = out("nm", "-u", os.path.join(os.path.dirname(path), path_of(path, member)))
        for symbol in re.findall(r"U (\S+)", text):
            symbol = symbol.split("@")[0]
            if symbol in CALLS_FORBIDDEN and (room, source, symbol) not in CALLS_ALLOWED:
                yield "%s/%s: uses %s" % (room, source, symbol)


def path_of(archive, member):
    """archives of meson are thin: their members are files beside them"""
    folder = os.path.dirname(archive)
    for candidate in (member, os.path.join(os.path.basename(archive) + ".p", os.path.basename(member))):
        if os.path.exists(os.path.join(folder, candidate)):
            return candidate
    raise SystemExit("layers: cannot find %s of %s" % (member, archive))


def check_calls(build):
    faults, libs = [], archives(build)
    for room, path in libs.items():
        faults += list(calls_of(room, path))
    return len(libs), faults


# ---- each check on something bad ----

def self_test():
    results = []

    def expect(what, faults, needle):
        ok = any(needle in fault for fault in faults)
        results.append(ok)
        if not ok:
            print("self-test: %s is not found (%s)" % (what, list(faults)[:3]))

    def expect_none(what, faults):
        faults = list(faults)
        results.append(not faults)
        if faults:
            print("self-test: %s is refused: %s" % (what, faults[0]))

    with tempfile.TemporaryDirectory() as tmp:
        def write(rel, text):
            path = os.path.join(tmp, rel)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            return path

        def compile_c(rel, text):
            source = write(rel, text)
            out("gcc", "-O1", "-fPIC", "-fno-builtin", "-c", source, "-o", source + ".o")
            return source + ".o"

        spdx = "/* SPDX-License-Identifier: MIT */\n"
        write("src/format/up.c", spdx + '#include "engine/open.h"\n')
        write("src/base/image.c", spdx + "#include <qcowkit/qcowkit.h>\n")
        write("src/ops/inside.c", spdx + '#include "engine/open.h"\n')
        write("src/cli/inside.c", spdx + '  #  include "store/file.h"\n')
        write("src/codec/side.c", spdx + '#include "format/../format/header.h"\n')
        write("src/attic/room.c", spdx)
        write("src/engine/fine.c", spdx + '#include "format/header.h"\n#include <qcowkit/store.h>\n#include "open.h"\n')
        faults = check_includes(tmp)[1]
        for needle in ("format may not include", "base may not include", "ops may not include",
                       "cli may not include", "relative path", "does not know"):
            expect("include: " + needle, faults, needle)
        expect_none("a good include", [f for f in faults if "engine/fine.c" in f])

        write("src/base/no_spdx.c", "int qk_x;\n")
        write("src/base/long.c", spdx + "int qk_y;\n" * 900)
        write("src/base/fn.c", spdx + "int qk_long(void)\n{\n" + "\tqk_y++;\n" * 120 + "}\n")
        write("src/base/words.c", spdx + "#if 0\n#endif\n/* TODO */\nvoid f(void)\n{\n\tstrcpy(a, b);\n}\n")
        write("src/base/quiet.c", spdx + '/* strcpy( */\nconst char *qk_s = "atoi(";\n')
        faults = check_tree(tmp)[1]
        for needle in ("no SPDX", "lines, 800", "qk_long is 12", "#if 0", "TODO", "strcpy("):
            expect("tree: " + needle, faults, needle)
        expect_none("a word in a comment", [f for f in faults if "quiet.c" in f])

        write("include/qcowkit/bad.h", spdx + "struct qcow_a { uint64_t x; };\n")
        write("include/qcowkit/cxx.h", spdx + "#ifndef C\n#define C\nstatic inline int *qcow_b(void *p) { return p; }\n#endif\n")
        write("src/base/bad.h", spdx + "uint8_t qk_z(void);\n")
        faults = check_headers(tmp)[1]
        for needle in ("qcowkit/bad.h: gcc", "qcowkit/cxx.h: g++", "src/base/bad.h"):
            expect("header: " + needle, faults, needle)
        expect_none("a C header as C", [f for f in faults if "cxx.h: gcc" in f or "cxx.h: clang -" in f])

        good = "static const char *const names[] = {\"a\", \"b\"};\nconst char *qk_n(int i)\n{\n\treturn names[i];\n}\n"
        for what, text, needle in [
                ("a static counter", "int qk_f(void)\n{\n\tstatic int n;\n\treturn ++n;\n}\n", "n.0 in .bss"),
                ("an initialised global", "int qk_g = 3;\n", "qk_g in .data"),
                ("a thread-local", "_Thread_local int qk_t;\n", "qk_t in .tbss"),
                ("a writable table", "const char *qk_table[] = {\"a\"};\n", "qk_table in .data")]:
            expect(what, list(check_globals_of(compile_c("o/g.c", text))), needle)
        expect_none("a constant table of strings", check_globals_of(compile_c("o/good.c", good)))

        expect("an unprefixed symbol", list(unprefixed(compile_c("o/u.c", "int helper(void)\n{\n\treturn 1;\n}\n"))),
               "external symbol helper")
        expect_none("a static function", unprefixed(compile_c("o/good.c", good)))

        obj = compile_c("o/exp.c", "int qcow_extra(void)\n{\n\treturn 1;\n}\nint qcow_known(void)\n{\n\treturn 2;\n}\n")
        shared = os.path.join(tmp, "o/libx.so")
        out("gcc", "-shared", "-o", shared, obj)
        faults = list(compare_exports({"qcow_known", "qcow_lost"}, shared))
        expect("an undeclared export", faults, "not declared in include/qcowkit: qcow_extra")
        expect("a declared call without code", faults, "not exported: qcow_lost")
        results.append(len(faults) == 2)

        def archive(name, text):
            obj = compile_c("o/%s.c" % name, text)
            path = os.path.join(tmp, "o", "libqk_%s.a" % name)
            out("sh", "-c", "cd '%s' && rm -f '%s' && ar rcsT '%s' '%s'" % (
                os.path.dirname(path), path, path, os.path.basename(obj)))
            return path
        printing = archive("store", "#include <stdio.h>\nvoid qk_p(void)\n{\n\tprintf(\"x\");\n}\n")
        expect("a print in the library", list(calls_of("store", printing)), "uses printf")
        low = archive("base", "int qk_up(void);\nint qk_low(void)\n{\n\treturn qk_up();\n}\n")
        high = archive("engine", "int qk_low(void);\nint qk_up(void)\n{\n\treturn 1;\n}\nint qk_e(void)\n{\n\treturn qk_low();\n}\n")
        libs = {"base": low, "engine": high}
        expect("a call from below into a higher room", link_room("base", low, libs, tmp), "qk_up")
        expect_none("a call into a lower room", link_room("engine", high, libs, tmp))
    return len(results), results.count(False)


def main():
    source = {"includes": check_includes, "tree": check_tree, "headers": check_headers}
    built = {"link": check_link, "symbols": check_symbols, "globals": check_globals, "calls": check_calls}
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--self-test", action="store_true")
    p.add_argument("--build")
    p.add_argument("checks", nargs="*")
    a = p.parse_args()
    if a.self_test:
        n, bad = self_test()
        print("%d passed, %d failed" % (n - bad, bad))
        return 1 if bad else 0
    checks = a.checks or list(source) + (list(built) if a.build else [])
    passed = failed = 0
    for name in checks:
        if name in source:
            n, faults = source[name](TOP)
        elif name in built and a.build:
            n, faults = built[name](os.path.abspath(a.build))
        else:
            p.error("no check '%s'%s" % (name, " without --build" if name in built else ""))
        for fault in faults:
            print("%s: %s" % (name, fault))
        failed += len(faults)
        passed += max(0, n - len(faults))
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
