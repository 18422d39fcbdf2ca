#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The functions of OpenStack that run qemu-img, from Debian's packages as they are: nova, cinder, glance, ironic and oslo, with their
limits and with their parsers, once with ours first on PATH and once with QEMU's. What they return or raise is the same, and so are the
disks. Debian's python3 has these packages, so this runs by it.

usage: clouds.py             all of them
       clouds.py NAME        one, in this folder, as it is: a line of JSON for each call"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# of the host and of the moment; and our hints, and the words for a header that is cut off
HOST = re.compile(r"""(actual-size|date-n?sec|uuid|iters|master-key-iters)'?"?: [^,}]*|\\+nhint: [^"\\]*|(?<=short.qcow2': )[^\\"]*|"""
                  r"""(?<=import': )[^\\"]*""")


def told(name, function, *words, **kw):
    """One call: what it returned, or how it failed."""
    try:
        value = function(*words, **kw)
        value = vars(value) if hasattr(value, "virtual_size") else value
        value = {k: v for k, v in value.items() if k not in ("disk_size", "image")} if isinstance(value, dict) else value
    except Exception as e:  # whatever it is, the caller of these functions gets it
        value = f"{type(e).__name__}: {getattr(e, 'exit_code', '')} {getattr(e, 'stderr', None) or e}"
    text = json.dumps(value, default=str, sort_keys=True).replace(os.getcwd(), "HERE")
    print(name + "\t" + HOST.sub("", text), flush=True)


def nova():
    import nova.conf
    from nova.virt import images
    from nova.virt.disk import api
    from nova.virt.image import model
    from nova.virt.libvirt import utils
    nova.conf.CONF([], default_config_files=[])
    nova.conf.CONF.set_override("instances_path", os.getcwd())
    for path, format_ in (("base.raw", None), ("base.raw", "raw"), ("src.qcow2", None), ("src.qcow2", "qcow2"), ("snap.qcow2", "qcow2"),
                          ("nothing", None), ("base.raw", "qcow2"), ("short.qcow2", "qcow2")):
        told(f"qemu_img_info {path} {format_}", images.qemu_img_info, path, format_)
    here = os.getcwd()
    told("create_image raw", utils.create_image, f"{here}/new.raw", "raw", "64M")
    told("create_image", utils.create_image, f"{here}/new.qcow2", "qcow2", 64 << 20)
    told("create_image over raw", utils.create_image, f"{here}/disk", "qcow2", 128 << 20, f"{here}/base.raw")
    told("create_image over qcow2", utils.create_image, f"{here}/disk2", "qcow2", None, f"{here}/odd.qcow2")
    told("create_image over an overlay", utils.create_image, f"{here}/disk3", "qcow2", None, f"{here}/disk2")
    told("create_image encrypted", utils.create_image, f"{here}/luks.qcow2", "qcow2", "16M",
         encryption={"secret": "open-sesame", "format": "luks"})
    told("get_disk_size", utils.get_disk_size, "disk")
    told("get_disk_backing_file", utils.get_disk_backing_file, "disk")
    told("get_disk_backing_file", utils.get_disk_backing_file, "disk2", basename=False)
    told("extend", api.extend, model.LocalFileImage("new.qcow2", model.FORMAT_QCOW2), 96 << 20)
    told("extend raw", api.extend, model.LocalFileImage("new.raw", model.FORMAT_RAW), 96 << 20)
    told("convert to raw", images.convert_image, "src.qcow2", "out.raw", "qcow2", "raw")
    told("convert -c", images.convert_image, "src.qcow2", "out.qcow2", "qcow2", "qcow2", compress=True)
    told("convert what is not there", images.convert_image, "nothing", "out2", "qcow2", "raw")
    told("convert what is none", images.convert_image, "base.raw", "out2", "qcow2", "raw")
    told("extract_snapshot", utils.extract_snapshot, "disk", "qcow2", "extracted.qcow2", "qcow2")
    for path, format_ in (("new.qcow2", "qcow2"), ("out.qcow2", "qcow2"), ("disk", "qcow2"), ("new.raw", "raw"), ("new.raw", "qcow2")):
        told(f"do_image_deep_inspection {path}", images.do_image_deep_inspection, {"disk_format": format_}, "id", path)
    from nova.virt.libvirt import driver
    told("rebase", driver.LibvirtDriver._rebase_with_qemu_img, "disk", None)


def cinder():
    from oslo_concurrency import processutils
    from cinder import objects
    objects.register_all()
    from cinder.image import image_utils as iu
    from cinder.volume.drivers import remotefs
    iu.CONF([], default_config_files=[])
    told("get_qemu_img_version", lambda: iu.get_qemu_img_version() > [2, 10])
    told("check_qemu_img_version", iu.check_qemu_img_version, "2.10")
    for path in ("base.raw", "src.qcow2", "snap.qcow2", "nothing", "luks.raw"):
        told(f"qemu_img_info {path}", iu.qemu_img_info, path, run_as_root=False, force_share=True, allow_qcow2_backing_file=True)
    plain = {"run_as_root": False}
    told("convert to raw", iu.convert_image, "src.qcow2", "out.raw", "raw", src_format="qcow2", **plain)
    told("convert to qcow2", iu.convert_image, "base.raw", "out.qcow2", "qcow2", src_format="raw", **plain)
    told("convert -c", iu.convert_image, "base.raw", "small.qcow2", "qcow2", src_format="raw", compress=True, **plain)
    told("convert of another format", iu.convert_image, "base.raw", "bad.qcow2", "qcow2", src_format="qcow2", **plain)
    Path("key").write_text("open-sesame")
    luks = {"cipher_alg": "aes-256", "cipher_mode": "xts", "ivgen_alg": "essiv"}
    told("convert to luks", iu.convert_image, "base.raw", "out.luks", "luks", src_format="raw", cipher_spec=luks, passphrase_file="key", **plain)
    told("info of luks", iu.qemu_img_info, "out.luks", run_as_root=False)
    told("resize", iu.resize_image, "out.qcow2", 1, file_format="qcow2")
    told("resize to less", iu.resize_image, "out.qcow2", 0)
    told("check_image_format", iu.check_image_format, "out.qcow2", "raw", run_as_root=False)

    class Driver(remotefs.RemoteFSSnapDriver):  # a driver that needs no host
        def __init__(self):
            self._execute_as_root = False
            self._execute = lambda *a, run_as_root=False, **kw: processutils.execute(*a, **kw)

        def _set_rw_permissions(self, path):
            os.chmod(path, 0o666)

        def _delete(self, path):
            os.unlink(path)
    d = Driver()
    told("_create_qcow2_file", d._create_qcow2_file, "volume", 1)
    told("_qemu_img_info_base", lambda: iu.qemu_img_info("volume", run_as_root=False).virtual_size)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "backing_file=volume,backing_fmt=qcow2", "volume.one", "1G"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "backing_file=volume.one,backing_fmt=qcow2", "volume.two", "1G"], check=True)
    told("_rebase_img", d._rebase_img, "volume.two", "volume", "qcow2")
    told("_img_commit", d._img_commit, "volume.two")
    told("after it", lambda: sorted(os.listdir(".")))


def glance():
    from glance.common import config
    from glance.async_.flows.plugins import image_conversion as ic
    config.parse_args([], default_config_files=[])

    class Action:  # what the task says of the image that it imports
        def __init__(self, format_):
            self.image_disk_format, self.said = format_, {}

        def set_image_attribute(self, **kw):
            self.said.update(kw)

    class Wrapper:
        image_id = "id"
    for source, from_, to in (("src.qcow2", "qcow2", "raw"), ("base.raw", "raw", "qcow2"), ("snap.qcow2", "qcow2", "raw"),
                              ("short.qcow2", "qcow2", "raw")):
        shutil.copy(source, "import")
        ic.CONF.set_override("output_format", to, group="image_conversion")
        action = Action(from_)
        told(f"_ConvertImage {source}", ic._ConvertImage(None, "t", "import", Wrapper)._execute, action, f"file://{os.getcwd()}/import")
        action.said.pop("size", None) if to == "qcow2" else None
        told("attributes", lambda: action.said)
        if os.path.exists(f"import.{to}"):
            os.rename(f"import.{to}", f"imported-{source}.{to}")


def ironic():
    from ironic_lib import disk_utils as du
    du.CONF([], default_config_files=[])
    for path in ("base.raw", "src.qcow2", "snap.qcow2", "nothing"):
        told(f"qemu_img_info {path}", du.qemu_img_info, path)
    told("convert_image", du.convert_image, "src.qcow2", "out.raw", "raw")
    told("convert_image -t -W", du.convert_image, "src.qcow2", "out2.raw", "raw", cache="directsync", out_of_order=True)
    told("convert_image -S 0", du.convert_image, "base.raw", "out.qcow2", "qcow2", cache="writeback", sparse_size="0")
    told("convert_image of nothing", du.convert_image, "nothing", "out3.raw", "raw")


def oslo():
    from oslo_utils import imageutils
    for path in ("base.raw", "src.qcow2", "snap.qcow2", "over.qcow2"):
        for format_, words in (("human", []), ("json", ["--output=json"])):
            out = subprocess.run(["qemu-img", "info", *words, path], capture_output=True, text=True, check=True).stdout
            def parsed():
                info = vars(imageutils.QemuImgInfo(out, format=format_) if format_ == "json" else imageutils.QemuImgInfo(out))
                return {k: v for k, v in info.items() if k != "disk_size"}
            told(f"QemuImgInfo {path} {format_}", parsed)


def one_side(root, side, who, program):
    """The calls of one caller, in a folder of its own."""
    place = root / who / side
    shutil.copytree(root / "images", place)
    (root / f"bin-{side}").mkdir(exist_ok=True)
    link = root / f"bin-{side}/qemu-img"
    if not link.exists():
        link.symlink_to(program.resolve())
    r = callers.run([sys.executable, os.path.abspath(__file__), who], place, callers.with_path(root / f"bin-{side}"), 300)
    return place, [line.partition("\t") for line in r.stdout.splitlines()], r


def main():
    callers.need_newest()
    with tempfile.TemporaryDirectory(prefix="qcow-callers.") as name:
        root = Path(name)
        (root / "images").mkdir()
        with open(root / "images/base.raw", "wb") as f:
            f.truncate(32 << 20)
            for at in range(0, 8 << 20, 1 << 20):
                f.seek(at)
                f.write(bytes([at >> 20 | 0x40]) * 300000)
        for line in ("convert -f raw -O qcow2 base.raw src.qcow2", "convert -f raw -O qcow2 -o cluster_size=4k base.raw odd.qcow2",
                     "convert -f raw -O qcow2 base.raw snap.qcow2", "snapshot -c one snap.qcow2",
                     "create -q -f qcow2 -b base.raw -F raw over.qcow2",
                     "create -q --object secret,id=s,data=abc -f luks -o key-secret=s,iter-time=10 luks.raw 1M"):
            callers.run([callers.THEIRS, *line.split()], root / "images", check=True)
        (root / "images/short.qcow2").write_bytes((root / "images/src.qcow2").read_bytes()[:60])
        for who in CALLERS:
            r = callers.run([sys.executable, "-c", f"import {CALLERS[who]}"], ".")
            if r.returncode:
                print(f"SKIP {who} is not there (tools/packages callers)")
                continue
            a, got, failed = one_side(root, "a", who, callers.OURS)
            b, want, _ = one_side(root, "b", who, callers.THEIRS)
            if not callers.check(got and failed.returncode == 0, f"{who}: its calls are made", failed.stdout[-500:] + failed.stderr[-1500:]):
                continue
            callers.check(len(got) == len(want), f"{who}: as many answers", f"{len(got)}, {len(want)}")
            for x, y in zip(got, want):
                callers.check(x == y, f"{who}: {x[0]}", f"ours {x[2]}\nQEMU's {y[2]}")
            for p in (a, b):  # one holds the other's bytes under a key of its own
                for secret in ("out.luks", "luks.qcow2", "luks.raw", "short.qcow2", "import"):
                    (p / secret).unlink(missing_ok=True)
            wrong = callers.same_disks(a, b)
            callers.check(not wrong, f"{who}: the same disks are left", wrong)
    callers.finish()


CALLERS = {"nova": "nova.virt.images", "cinder": "cinder.image.image_utils", "glance": "glance.async_.flows.plugins.image_conversion",
           "ironic": "ironic_lib.disk_utils", "oslo": "oslo_utils.imageutils"}
if len(sys.argv) > 1:
    sys.path.pop(0)  # what stands beside this file has names of its own
    globals()[sys.argv[1]]()
else:
    import callers
    main()
