#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""TLS of `qcow serve`: certificates of clients that are good, missing, expired, of another authority; shared keys;
priorities; what the protocol says of options before, at and behind STARTTLS. Clients: libnbd's programs, QEMU's old and new, our own
(src/store_nbd), and one written from proto.md with Python's ssl.

usage: serve_tls.py [TEST...]      the environment names QCOW
"""
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import served
from wire import *  # noqa: F403 pylint: disable=all

SIZE = 4 << 20
QCOW = os.environ["QCOW"]


def certtool(*argv):
    r = subprocess.run(["certtool", *argv], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def authority(folder):
    os.mkdir(folder)
    certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", folder + "/ca-key.pem")
    template(folder, "ca", 'cn = "authority"', "ca", "cert_signing_key", "expiration_days = 9")
    certtool("--generate-self-signed", "--load-privkey", folder + "/ca-key.pem", "--template", folder + "/ca.info", "--outfile", folder + "/ca-cert.pem")


def template(folder, name, *lines):
    with open("%s/%s.info" % (folder, name), "w") as f:
        f.write("\n".join(lines) + "\n")


def certificate(by, folder, name, *lines, host="localhost"):
    """A key and a certificate in a folder, and who it trusts."""
    os.makedirs(folder, exist_ok=True)
    if not os.path.exists(folder + "/ca-cert.pem"):
        shutil.copy(by + "/ca-cert.pem", folder)
    certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", "%s/%s-key.pem" % (folder, name))
    template(folder, name, 'cn = "%s"' % host, 'dns_name = "%s"' % host, "signing_key", *lines)
    certtool("--generate-certificate", "--load-privkey", "%s/%s-key.pem" % (folder, name), "--load-ca-certificate", by + "/ca-cert.pem",
             "--load-ca-privkey", by + "/ca-key.pem", "--template", "%s/%s.info" % (folder, name), "--outfile", "%s/%s-cert.pem" % (folder, name))


PAST = ('activation_date = "2001-01-01 00:00:00 UTC"', 'expiration_date = "2001-02-01 00:00:00 UTC"')
NOW = ("expiration_days = 9",)


def make_certificates(folder):
    good, other = folder + "/good", folder + "/other-ca"
    authority(good)
    authority(other)
    certificate(good, good, "server", "tls_www_server", *NOW)
    certificate(good, good, "client", "tls_www_client", *NOW)
    certificate(good, folder + "/expired", "client", "tls_www_client", *PAST)
    certificate(good, folder + "/expired", "server", "tls_www_server", *PAST)
    certificate(good, folder + "/elsewhere", "server", "tls_www_server", *NOW, host="elsewhere")
    os.mkdir(folder + "/other")  # it trusts the server, which does not trust it
    shutil.copy(good + "/ca-cert.pem", folder + "/other")
    certificate(other, folder + "/other", "client", "tls_www_client", *NOW)
    os.mkdir(folder + "/nobody")
    shutil.copy(good + "/ca-cert.pem", folder + "/nobody")
    os.mkdir(folder + "/distrusts")  # it knows another authority only
    shutil.copy(other + "/ca-cert.pem", folder + "/distrusts")
    for name in ("client-cert.pem", "client-key.pem"):
        shutil.copy("%s/%s" % (good, name), folder + "/distrusts")


def x509(folder, *more):
    return "--object", ",".join(("tls-creds-x509,id=t,dir=%s,endpoint=server" % folder, *more)), "--tls-creds", "t"


def outcome(*argv):
    r = subprocess.run(argv, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    return r.returncode == 0, r.stdout + r.stderr


def clients(server, folder):
    """(name, command) of each client that reads the whole disk with the credentials of a folder. By TCP: older versions of libnbd
    believe whoever listens at a Unix socket."""
    uri = "nbds://localhost:%d/?tls-certificates=%s" % (server.port, folder)
    creds = "tls-creds-x509,id=t,dir=%s,endpoint=client" % folder
    opts = "driver=nbd,server.type=inet,server.host=localhost,server.port=%d,tls-creds=t" % server.port
    yield "nbdinfo", ("nbdinfo", "--size", uri)
    yield "nbdcopy", ("nbdcopy", uri, "null:")
    for img in filter(None, (served.IMG, served.newest("qemu-img"))):
        yield img, (img, "compare", "--object", creds, "--image-opts", opts, "driver=raw,file.driver=null-co,file.read-zeroes=on,file.size=%d" % SIZE)
    yield "qcow", (QCOW, "measure", "-O", "qcow2", uri)
    yield "qcow by an object", (QCOW, "measure", "-O", "qcow2", "--object", creds, "--image-opts", opts)


def certificates_of_clients(folder, image):
    server = served.Ours(folder, *x509(folder + "/good"), image, tcp=True)
    allowed = {"good"}
    for who in ("good", "nobody", "expired", "other", "distrusts"):
        for name, command in clients(server, folder + "/" + who):
            got, text = outcome(*command)
            if got != (who in allowed) or "Segmentation" in text:
                raise AssertionError("%s with the certificates of %r: %s" % (name, who, text))
    for name, command in clients(server, folder + "/good"):  # and the next ones
        check(name, outcome(*command)[0], True)
    check("clear text", outcome("nbdinfo", "--size", "nbd://localhost:%d" % server.port)[0], False)
    check("connections that are left", server.status()["connections"], [])
    check("status", server.stop(), 0)


def certificates_that_nobody_looks_at(folder, image):
    server = served.Ours(folder, *x509(folder + "/good", "verify-peer=off"), image, tcp=True)
    for who in ("good", "nobody"):
        for name, command in clients(server, folder + "/" + who):
            got, text = outcome(*command)
            if not got:
                raise AssertionError("%s with the certificates of %r: %s" % (name, who, text))
    server.end()


def servers_that_nobody_believes(folder, image):
    """Whose certificate is old, or somebody else's."""
    for who in ("expired", "elsewhere"):
        server = served.Ours(folder, *x509("%s/%s" % (folder, who), "verify-peer=off"), image, tcp=True)
        for name, command in clients(server, folder + "/good"):
            check("%s: %s" % (who, name), outcome(*command)[0], False)
        check("status", server.stop(), 0)


def credentials_that_are_none(folder, image):
    os.makedirs(folder + "/broken", exist_ok=True)
    for name in ("ca-cert.pem", "server-key.pem"):
        shutil.copy("%s/good/%s" % (folder, name), folder + "/broken")
    for what, options in (("no folder", x509("/nowhere")), ("a missing certificate", x509(folder + "/broken")),
                          ("no such object", ("--tls-creds", "nobody")),
                          ("the client's end", ("--object", "tls-creds-x509,id=t,dir=%s/good,endpoint=client" % folder, "--tls-creds", "t")),
                          ("a priority that is none", x509(folder + "/good", "priority=NONSENSE"))):
        got, text = outcome(QCOW, "serve", "-k", folder + "/x", *options, image)
        if got or not text.startswith("qcow: "):
            raise AssertionError("%s: %r %s" % (what, got, text))


def priorities(folder, image):
    for priority, versions in (("NORMAL:-VERS-ALL:+VERS-TLS1.2", "1.2"), ("NORMAL:-VERS-ALL:+VERS-TLS1.3", "1.3"), (None, "both")):
        server = served.Ours(folder, *x509(folder + "/good", *([] if priority is None else ["priority=" + priority])), image)
        for version in ("1.2", "1.3"):
            c = server.client().greet()
            check("STARTTLS", c.last(OPT["STARTTLS"]), ACK)
            try:
                wrap(c, folder + "/good", version)
                got = c.last(OPT["LIST"]) == ACK
            except (OSError, Closed):
                got = False
            check("%s speaks %s" % (priority, version), got, versions in (version, "both"))
            c.close()
        check("status", server.stop(), 0)


def wrap(c, folder, version=None):
    context = ssl.create_default_context(cafile=folder + "/ca-cert.pem")
    if os.path.exists(folder + "/client-cert.pem"):
        context.load_cert_chain(folder + "/client-cert.pem", folder + "/client-key.pem")
    if version:
        context.minimum_version = context.maximum_version = ssl.TLSVersion["TLSv" + version.replace(".", "_")]
    c.sock = context.wrap_socket(c.sock, server_hostname="localhost", suppress_ragged_eofs=True)


def options_around_starttls(folder, image):
    server = served.Ours(folder, *x509(folder + "/good"), image)
    c = server.client().greet()
    for what, option, data in (("LIST", OPT["LIST"], b""), ("INFO", OPT["INFO"], info_data("")), ("GO", OPT["GO"], info_data("")),
                               ("an unknown name", OPT["GO"], info_data("nobody")), ("STRUCTURED", OPT["STRUCTURED"], b""),
                               ("EXTENDED", OPT["EXTENDED"], b""), ("SET_META", OPT["SET_META"], meta_data("", "base:allocation")),
                               ("an unknown option", 99, b""), ("a long one", 99, bytes(5000))):
        check(what, c.option(option, data)[-1:][0][0], ERR["TLS_REQD"])
    check("with data", c.last(OPT["STARTTLS"], b"x"), ERR["INVALID"])
    check("STARTTLS", c.option(OPT["STARTTLS"]), [(ACK, b"")])
    wrap(c, folder + "/good")
    check("again", c.last(OPT["STARTTLS"]), ERR["INVALID"])
    check("no structure yet", c.set_meta("", "base:allocation"), ERR["INVALID"])
    check("EXTENDED", c.last(OPT["EXTENDED"]), ACK)
    c.extended = True
    check("contexts", c.set_meta("", "base:allocation"), ACK)
    check("GO", c.go(""), ACK)
    check("a write", c.error(WRITE, 0, payload=b"x" * 3000000), 0)
    check("a read", bytes(c.request(READ, 0, 3000000).data), b"x" * 3000000)
    check("zeros", c.error(ZEROES, 0, SIZE), 0)
    check("block status", c.request(STATUS, 0, SIZE).status[c.contexts["base:allocation"]], [(SIZE, 3)])
    c.send_request(DISC)
    check_closed("DISC", c)
    c = server.client().greet()
    c.send_option(OPT["EXPORT_NAME"])
    check_closed("EXPORT_NAME in clear text", c)
    c = server.client().greet()
    check("ABORT", c.option(OPT["ABORT"]), [(ACK, b"")])
    for what, data in (("noise", b"\x16\x03\x01\x00\x05hello" * 50), ("an option", struct.pack(">QII", IHAVEOPT, OPT["LIST"], 0)),
                       ("nothing", b""), ("half a record", b"\x16\x03\x01\x02\x00\x01")):
        c = server.client().greet()
        check("STARTTLS", c.last(OPT["STARTTLS"]), ACK)
        c.send(data)
        c.sock.shutdown(socket.SHUT_WR)
        try:
            while True:
                c.recv(1)
        except Closed:
            pass
    c = server.client().greet()  # what was sent in clear text behind STARTTLS is not heard as if it had been encrypted
    c.send(struct.pack(">QII", IHAVEOPT, OPT["STARTTLS"], 0) + struct.pack(">QII", IHAVEOPT, OPT["LIST"], 0))
    try:
        c.option_reply(OPT["STARTTLS"])
        wrap(c, folder + "/good")
        raise AssertionError("an option in clear text did not spoil the handshake")
    except (OSError, Closed):
        pass
    check("served", outcome("nbdinfo", "--size", "nbds+unix://localhost/?socket=%s&tls-certificates=%s/good" % (server.path, folder))[0], True)
    check("status", server.stop(), 0)


def a_server_that_allows_both(folder, image):
    server = served.Ours(folder, *x509(folder + "/good"), "--tls=allow", image)
    c = server.client().greet()
    check("clear text", c.last(OPT["STRUCTURED"]), ACK)
    check("contexts", c.set_meta("", "base:allocation"), ACK)
    check("STARTTLS", c.last(OPT["STARTTLS"]), ACK)
    wrap(c, folder + "/good")
    check("what was set before is forgotten", c.set_meta("", "base:allocation"), ERR["INVALID"])
    c.contexts = {}
    check("GO", c.go(""), ACK)
    check("no structure", c.flags & 0x80, 0)
    check("a read", c.request(READ, 0, 512).error, 0)
    check("no status", c.error(STATUS, 0, 512), EINVAL)
    c.close()
    check("clear text", outcome("nbdinfo", "--size", server.uri())[0], True)
    server.end()


def shared_keys(folder, image):
    for name, key in (("psk", "00112233445566778899aabbccddeeff"), ("wrong", "ffeeddccbbaa99887766554433221100")):
        os.makedirs(folder + "/" + name, exist_ok=True)
        with open(folder + "/%s/keys.psk" % name, "w") as f:
            f.write("alice:%s\n" % key)
    server = served.Ours(folder, "--object", "tls-creds-psk,id=t,dir=%s/psk,endpoint=server" % folder, "--tls-creds", "t", image)
    for where, user, want in (("psk", "alice", True), ("wrong", "alice", False), ("psk", "bob", False)):
        uri = "nbds+unix://%s@/?socket=%s&tls-psk-file=%s/%s/keys.psk" % (user, server.path, folder, where)
        creds = "tls-creds-psk,id=t,dir=%s/%s,endpoint=client,username=%s" % (folder, where, user)
        opts = "driver=nbd,path=%s,tls-creds=t" % server.path
        commands = [("nbdcopy", uri, "null:"), (QCOW, "measure", "-O", "qcow2", uri),
                    (QCOW, "measure", "-O", "qcow2", "--object", creds, "--image-opts", opts)]
        for img in filter(None, (served.IMG, served.newest("qemu-img"))):
            commands.append((img, "measure", "-O", "qcow2", "--object", creds, "--image-opts", opts))
        for command in commands:
            got, text = outcome(*command)
            if got != want:
                raise AssertionError("%r: %s" % (command, text))
    check("clear text", outcome("nbdinfo", "--size", server.uri())[0], False)
    check("status", server.stop(), 0)


def our_own_client_copies(folder, image):
    """There and back through TLS, and an image of a chain whose lower layer lies behind it."""
    server = served.Ours(folder, *x509(folder + "/good"), image)
    uri = "nbds+unix://localhost/?socket=%s&tls-certificates=%s/good" % (server.path, folder)
    with open(folder + "/data", "wb") as f:
        f.write(os.urandom(1 << 20) + bytes(1 << 20) + os.urandom(SIZE - (2 << 20)))
    served.run(QCOW, "convert", "-n", "-f", "raw", "-O", "raw", folder + "/data", uri)
    served.run(QCOW, "convert", "-f", "raw", "-O", "qcow2", uri, folder + "/copy")
    served.run(served.IMG, "compare", "-f", "raw", "-F", "qcow2", folder + "/data", folder + "/copy")
    served.run(QCOW, "compare", "-f", "raw", "-F", "qcow2", uri, folder + "/copy")
    server.end()


if __name__ == "__main__":
    missing = [t for t in ("certtool", "nbdinfo", "nbdcopy") if not shutil.which(t)]
    if missing or not served.IMG:
        print("SKIP %s is not there" % (missing or ["qemu-img"])[0])
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        make_certificates(folder)
        image = folder + "/image"
        served.run(served.IMG, "create", "-q", "-f", "qcow2", image, str(SIZE))
        sys.exit(served.main([certificates_of_clients, certificates_that_nobody_looks_at, servers_that_nobody_believes,
                              credentials_that_are_none, priorities, options_around_starttls, a_server_that_allows_both, shared_keys,
                              our_own_client_copies], sys.argv[1:], folder, image))
