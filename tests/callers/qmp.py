# SPDX-License-Identifier: MIT
"""A machine of QEMU's that boots nothing (-S), told what to do over QMP. Its disks are -blockdev nodes on scsi-hd devices."""
import json
import re
import shutil
import socket
import subprocess

PROGRAM = shutil.which("qemu-system-x86_64")


class Refused(Exception):
    """The error that a command was answered with."""


def node(name, path, **more):
    """The options of a node with its file below it. The format is qcow2 unless it is said."""
    return {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": str(path)}, **more}


class Machine:
    def __init__(self, folder, *nodes, devices=(), more=()):
        """devices: names of nodes that get a disk. More are words for the command line."""
        ours, its = socket.socketpair()
        argv = [PROGRAM, "-S", "-nodefaults", "-display", "none", "-M", "pc", "-accel", "tcg", "-m", "16", "-device", "virtio-scsi-pci",
                "-chardev", f"socket,id=c,fd={its.fileno()}", "-mon", "chardev=c,mode=control"]
        for n in nodes:
            argv += ["-blockdev", json.dumps(n)]
        for name in devices:
            argv += ["-device", f"scsi-hd,drive={name},id=on-{name}"]
        self.process = subprocess.Popen([*argv, *more], cwd=folder, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        its.close()
        ours.settimeout(120)
        self.socket, self.stream, self.events = ours, ours.makefile("rw"), []
        if not self.stream.readline():
            raise Refused(self.process.communicate()[0].decode())
        self.tell("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.stream.close()
        self.socket.close()

    def message(self):
        line = self.stream.readline()
        if not line:
            raise AssertionError("the machine is gone: " + self.process.communicate()[0].decode())
        return json.loads(line)

    def tell(self, command, **arguments):
        """The answer; names have - where Python wants _."""
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.stream.flush()
        while True:
            m = self.message()
            if "event" in m:
                self.events.append(m)
            elif "error" in m:
                raise Refused(m["error"]["desc"])
            else:
                return m["return"]

    def refusal(self, command, **arguments):
        """The words of the error, None where there is none."""
        try:
            self.tell(command, **arguments)
        except Refused as e:
            return str(e)
        return None

    def until(self, event, **data):
        """Wait for an event with this data, and forget those before it."""
        while True:
            while self.events:
                m = self.events.pop(0)
                if m["event"] == event and data.items() <= m["data"].items():
                    return m["data"]
            m = self.message()
            if "event" in m:
                self.events.append(m)

    def job(self, command, name="job", complete=False, **arguments):
        """Run a block job to its end."""
        is_block_job = command.startswith(("block", "drive")) and command != "blockdev-create"
        self.tell(command, job_id=name, **arguments)
        if complete:
            self.until("JOB_STATUS_CHANGE", id=name, status="ready")
            self.tell("job-complete", id=name)
        if not is_block_job:
            self.until("JOB_STATUS_CHANGE", id=name, status="concluded")
            error = [j.get("error") for j in self.tell("query-jobs") if j["id"] == name]
            self.tell("job-dismiss", id=name)
            if error != [None]:
                raise Refused(str(error))
        else:
            ended = self.until("BLOCK_JOB_COMPLETED", device=name)
            if "error" in ended:
                raise Refused(ended["error"])

    def io(self, name, *commands):
        """Commands of qemu-io on a disk. Whether they succeeded is known when the machine has ended: it prints it then."""
        for command in commands:
            said = self.tell("human-monitor-command", command_line=f'qemu-io -d on-{name} "{command}"')
            assert not said, f"{name}: {command}: {said}"

    def quit(self):
        """It is shut down, and all of its commands have succeeded."""
        self.tell("quit")
        said = self.process.communicate(timeout=120)[0].decode()
        bad = [x for x in said.splitlines() if x and not re.match(r"(wrote|read|discard) (\d+)/\2 bytes|[\d.]+ \S+, \d+ ops;", x)]
        assert self.process.returncode == 0 and not bad, f"the machine ended with {self.process.returncode}: {bad}"
