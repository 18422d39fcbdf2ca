# SPDX-License-Identifier: MIT
"""The encrypted configurations of interop.py, both ways, by every QEMU.

crypt-read   images that qemu-img makes and qemu-io writes: qcow reads what QEMU reads, checks and maps them
crypt-write  images that `qcow create` makes and qemu-io writes, or `qcow convert`: clean for `qemu-img check`,
             identical for `qemu-img compare`, and read back by us
Rows cover all pairs of encryption, cipher, mode, IV generator, hash, cluster size, version, refcount width,
backing file, data file and extended L2. Key derivations are as short as LUKS allows.
"""
import os
import subprocess

KIB = 1024
SIZE = 1536 * KIB

FACTORS = {
    "method": ["luks", "aes", "luks-file", "detached"],
    "cipher": ["aes-128", "aes-192", "aes-256", "serpent-128", "serpent-192", "serpent-256", "twofish-128",
               "twofish-256", "cast5-128"],
    "mode": ["xts", "cbc", "ctr", "ecb"],
    "ivgen": ["plain64", "plain", "essiv:sha256", "essiv:md5"],
    "hash": ["sha256", "sha1", "sha224", "sha384", "sha512", "ripemd160", "md5"],
    "cluster": [512, 4096, 65536, 2097152],
    "version": [2, 3],
    "refcount_bits": [1, 16, 64],
    "backing": ["none", "raw", "plain", "encrypted"],
    "data_file": [False, True],
    "extended_l2": [False, True],
    "maker": [0, 1],
    "how": ["create", "convert"],
}
PLAIN = {"cipher": "aes-256", "mode": "xts", "ivgen": "plain64", "hash": "sha256"}
CONTAINER = {"cluster": 65536, "version": 3, "refcount_bits": 16, "backing": "none", "data_file": False,
             "extended_l2": False}


def ivgen_ok(row):
    """essiv encrypts with a key as long as the hash, and only sizes that the cipher has will do"""
    ivgen, cipher = row.get("ivgen", "plain64"), row.get("cipher", "aes-256")
    if ivgen == "essiv:sha256":
        return not cipher.startswith("cast5")
    return True


def ok(row):
    def differs(defaults):
        return any(row.get(k, v) != v for k, v in defaults.items())
    method = row.get("method", "luks")
    if method == "aes" and differs(PLAIN):
        return False  # it has one cipher
    if method in ("luks-file", "detached") and differs(CONTAINER):
        return False  # there is no qcow2 around it
    cipher, mode = row.get("cipher", "aes-256"), row.get("mode")
    if cipher == "cast5-128" and mode == "xts":
        return False  # blocks of 8 bytes
    if cipher in ("aes-192", "serpent-192") and mode not in ("xts", None):
        return False  # QEMU aborts on slots that end within a sector
    if not ivgen_ok(row):
        return False
    if row.get("version") == 2 and (row.get("refcount_bits", 16) != 16 or row.get("data_file") or
                                    row.get("extended_l2")):
        return False
    return not (row.get("extended_l2") and row.get("cluster", 65536) < 16384)


def is_file(row):
    return row["method"] in ("luks-file", "detached")


def options(row, qemu_major, ours):
    """-o of the image itself"""
    prefix = "" if is_file(row) else "encrypt."
    o = [prefix + "key-secret=s"]
    if row["method"] != "aes":
        ivgen = row["ivgen"].split(":")
        o += [prefix + "cipher-alg=" + row["cipher"], prefix + "cipher-mode=" + row["mode"],
              prefix + "ivgen-alg=" + ivgen[0], prefix + "hash-alg=" + row["hash"],
              prefix + "iter-time=" + ("0" if ours or qemu_major >= 10 else "10")]
        if len(ivgen) > 1:
            o.append(prefix + "ivgen-hash-alg=" + ivgen[1])
    if is_file(row):
        return o + (["detached-header=on"] if row["method"] == "detached" else [])
    o += ["encrypt.format=" + row["method"], "cluster_size=%d" % row["cluster"],
          "compat=%s" % ("0.10" if row["version"] == 2 else "1.1")]
    if row["version"] == 3:
        o += ["refcount_bits=%d" % row["refcount_bits"], "extended_l2=%s" % ("on" if row["extended_l2"] else "off")]
    if row["data_file"]:
        o.append("data_file=data")
    return o


def secrets():
    return ["--object", "secret,id=s,data=pass phrase", "--object", "secret,id=t,data=other"]


def node(row, name="image"):
    """the image as --image-opts"""
    if row["method"] == "detached":
        return "driver=luks,key-secret=s,file.filename=disk,header.filename=%s" % name
    if is_file(row):
        return "driver=luks,key-secret=s,file.filename=%s" % name
    text = "driver=qcow2,encrypt.key-secret=s,file.filename=%s" % name
    if row["backing"] == "encrypted":
        text += ",backing.encrypt.key-secret=t"
    return text


class Run:
    """programs in one folder"""

    def __init__(self, tools, folder):
        self.tools, self.folder = tools, folder

    def __call__(self, *argv, good=(0,)):
        return self.tools.run(list(argv), ok=good, cwd=self.folder)

    def made(self, *argv):
        """True, or False where QEMU cannot measure its own speed on a busy machine"""
        for _ in range(40):
            r = subprocess.run(argv, capture_output=True, cwd=self.folder, stdin=subprocess.DEVNULL, timeout=300)
            if r.returncode == 0:
                return True
            if b"accurate CPU" not in r.stderr:
                raise self.tools.Mismatch("exit status %d of: %s\n%s" % (
                    r.returncode, " ".join(argv), r.stderr.decode("utf-8", "replace")))
        return False


def make_backing(ctx, run, row, rng, qemu):
    """the file below, and its format; None: none"""
    kind = row["backing"]
    if kind == "none":
        return []
    off = rng.randrange(SIZE // KIB - 100) * KIB
    write = "write -q -P 33 %d 90k" % off
    if kind == "raw":
        run(qemu.img, "create", "-q", "-f", "raw", "base", str(SIZE))
        run(qemu.io, "-f", "raw", "-c", write, "base")
        return ["-b", "base", "-F", "raw"]
    if kind == "plain":
        run(qemu.img, "create", "-q", "-f", "qcow2", "base", str(SIZE))
        run(qemu.io, "-f", "qcow2", "-c", write, "base")
        return ["-b", "base", "-F", "qcow2"]
    run(ctx.compat, "create", "-q", *secrets(), "-f", "qcow2", "-o",
        "encrypt.format=luks,encrypt.key-secret=t,encrypt.iter-time=0,encrypt.cipher-alg=aes-128", "base", str(SIZE))
    run(qemu.io, *secrets(), "--image-opts", "driver=qcow2,file.filename=base,encrypt.key-secret=t", "-c", write)
    return ["-b", "base", "-F", "qcow2"]


def writes(rng):
    """qemu-io commands: data, also of single sectors and across clusters, and zeros"""
    out = []
    for _ in range(rng.randint(4, 9)):
        off = rng.randrange(SIZE // 512) * 512
        length = min(SIZE - off, rng.choice([512, 4096, 70000 // 512 * 512, 200 * KIB]))
        verb = "write -q -z" if rng.random() < 0.2 else "write -q -P %d" % rng.randint(1, 255)
        out += ["-c", "%s %d %d" % (verb, off, length)]
    return out


def fill(run, qemu, row, rng):
    if is_file(row):  # what nobody wrote is no zeros there
        run(qemu.io, *secrets(), "--image-opts", node(row), "-c", "write -q -P 0 0 %d" % SIZE)
    run(qemu.io, *secrets(), "--image-opts", node(row), *writes(rng))


def of_row(ctx, row):
    """a QEMU that can make the row: detached headers came with 9.1"""
    qemus = [q for q in ctx.qemus if row["method"] != "detached" or q.major >= 10]
    return qemus, (qemus[row["maker"] % len(qemus)] if qemus else None)


def compare_all(ctx, run, row, qemus):
    """what every QEMU reads is what we read"""
    for i, qemu in enumerate(qemus):
        run(qemu.img, "convert", *secrets(), "-O", "raw", "--image-opts", node(row), "theirs%d" % i)
        if not is_file(row):
            run(qemu.img, "check", "-q", *secrets(), "--image-opts", node(row))
    run(ctx.qcow, "convert", *secrets(), "-O", "raw", "--image-opts", node(row), "ours")
    for i in range(len(qemus)):
        ctx.tools.want_same("the disk", os.path.join(run.folder, "ours"), os.path.join(run.folder, "theirs%d" % i))
    if not is_file(row):
        run(ctx.qcow, "check", "-q", "image")
    run(ctx.qcow, "compare", "-q", *secrets(), "--image-opts", node(row), "driver=raw,file.filename=ours")


def read_case(ctx, row, rng, folder):
    run = Run(ctx.tools, folder)
    qemus, qemu = of_row(ctx, row)
    if qemu is None:
        return
    base = make_backing(ctx, run, row, rng, qemu)
    if row["method"] == "detached":
        run(qemu.img, "create", "-q", "-f", "raw", "disk", str(SIZE))
    for maker in [qemu] + [q for q in qemus if q is not qemu]:
        if run.made(maker.img, "create", "-q", "-u", *secrets(), "-f", "luks" if is_file(row) else "qcow2",
                    "-o", ",".join(options(row, maker.major, False)), *base, "image", str(SIZE)):
            break
    else:
        raise ctx.tools.Mismatch("no QEMU could measure its own speed: run it again on a machine that is less busy")
    fill(run, qemu, row, rng)
    compare_all(ctx, run, row, qemus)


def write_case(ctx, row, rng, folder):
    run = Run(ctx.tools, folder)
    qemus, qemu = of_row(ctx, row)
    if qemu is None:
        return
    base = make_backing(ctx, run, row, rng, qemu)
    create = [ctx.compat, "create", "-q", *secrets(), "-f", "luks" if is_file(row) else "qcow2",
              "-o", ",".join(options(row, 0, True)), *base, "image", str(SIZE)]
    if row["how"] == "create" or row["method"] == "detached":
        run(*create)
        if row["method"] == "detached":
            run(qemu.img, "create", "-q", "-f", "raw", "disk", str(SIZE))
        fill(run, qemu, row, rng)
    if row["how"] == "convert":
        ctx.tools.raw_disk(os.path.join(folder, "want"), rng, SIZE)
        if row["method"] == "detached":
            run(ctx.qcow, "convert", "-n", *secrets(), "-f", "raw", "--target-image-opts", "want", node(row))
        else:
            with open(os.path.join(folder, "key"), "w") as f:
                f.write("other\n")  # of the backing file, which -b names without a word of its own
            run(ctx.qcow, "convert", *secrets(), "--secret-file", "key", "-f", "raw",
                "-O", "luks" if is_file(row) else "qcow2", "-o", ",".join(options(row, 0, True)), *base, "want", "image")
        for tool in [q.img for q in qemus]:
            run(tool, "compare", "-q", *secrets(), "--image-opts", node(row), "driver=raw,file.filename=want")
    compare_all(ctx, run, row, qemus)
