"""What anchors talk to, on loopback: an SMTP server of 50 lines, OpenSSL's timestamp authority behind HTTP, a sendmail."""

from __future__ import annotations

import base64
import contextlib
import http.server
import socketserver
import ssl
import subprocess
import threading
from pathlib import Path

from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.note import SignerKey

ORIGIN = "srv2/invoices/0f3a9c21b7de"
LOG = SignerKey.generate(ORIGIN)


def note_of(size, root=bytes(range(32)), origin=ORIGIN):
    return sign_checkpoint(Checkpoint(origin, size, root), LOG)


class MailServer:
    """Takes mail. ``refuse``: how many of the recipients it does not want; ``user``: (name, password) that it asks for; ``chain``: a
    PEM file for TLS; ``implicit``: TLS from the first byte."""

    def __init__(self, user=None, refuse=(), chain=None, implicit=False, answer=b"250 2.0.0 kept\r\n"):
        self.user, self.refuse, self.answer = user, refuse, answer
        self.mails, self.context = [], None
        if chain is not None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(chain)
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                    secure = implicit and stack.enter_context(outer.context.wrap_socket(self.request, server_side=True))
                    outer._talk(secure or self.request, implicit, stack)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.where = f"localhost:{self._server.server_address[1]}"

    def _talk(self, sock, secure, stack):
        file, sent_to, known = stack.enter_context(sock.makefile("rb")), [], self.user is None
        say = sock.sendall
        say(b"220 test\r\n")
        while line := file.readline():
            word = line.split()[0].upper()
            if word == b"EHLO":
                offers = [b"250-test"] + ([b"250-STARTTLS"] if self.context and not secure else []) + [b"250 AUTH PLAIN LOGIN"]
                say(b"\r\n".join(offers) + b"\r\n")
            elif word == b"STARTTLS":
                say(b"220 go\r\n")
                sock = stack.enter_context(self.context.wrap_socket(sock, server_side=True))
                file, say, secure = stack.enter_context(sock.makefile("rb")), sock.sendall, True
            elif word == b"AUTH":
                given = base64.b64decode(line.split()[2]).split(b"\0")[1:]
                known = tuple(x.decode() for x in given) == self.user
                say(b"235 ok\r\n" if known else b"535 5.7.8 no: " + b" ".join(given) + b"\r\n")  # a server that repeats the password
            elif word == b"RCPT" and any(name.encode() in line for name in self.refuse):
                say(b"550 5.1.1 nobody\r\n")
            elif word == b"MAIL" and not known:
                say(b"530 5.7.0 log in\r\n")
            elif word == b"DATA":
                say(b"354 go\r\n")
                lines = []
                while (line := file.readline()) != b".\r\n":
                    lines.append(line[1:] if line.startswith(b".") else line)
                self.mails.append((list(sent_to), b"".join(lines)))
                say(self.answer)
            elif word == b"QUIT":
                say(b"221 bye\r\n")
                return
            else:
                if word == b"RCPT":
                    sent_to.append(line.split(b"<")[1].split(b">")[0].decode())
                say(b"250 ok\r\n")

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def sendmail(folder, code=0, words=""):
    """A program in the place of sendmail that keeps what it is given in ``folder/mail``, and its path."""
    program = Path(folder) / "sendmail"
    program.write_text(f'#!/bin/sh\necho "$@" > "{folder}/arguments"\ncat > "{folder}/mail"\necho "{words}" >&2\nexit {code}\n')
    program.chmod(0o755)
    return program


# -- certificates and OpenSSL's timestamp authority ------------------------------------------------------------------------------

TSA_CNF = """[tsa]
default_tsa = one
[one]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/{name}.pem
signer_key = {folder}/{name}.key
signer_digest = sha256
default_policy = 1.2.3.4.1
other_policies = 1.2.3.4.5
digests = sha256
accuracy = secs:1
ordering = no
tsa_name = yes
ess_cert_id_chain = no
"""


def openssl(*args, folder, check=True):
    return subprocess.run(["openssl", *map(str, args)], cwd=folder, check=check, capture_output=True, text=True)


def authority(folder, name="ca"):
    """A CA, and a certificate of it that stamps: ``<name>.pem``, ``<name>-tsa.pem``."""
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key", "-out",
            f"{name}.pem", "-days", "3000", "-subj", f"/CN={name}", folder=folder)  # fmt: skip
    issue(folder, f"{name}-tsa", name, "extendedKeyUsage=critical,timeStamping\nkeyUsage=critical,digitalSignature\n")


def issue(folder, name, ca, extensions, *more):
    (folder / "ext").write_text(f"basicConstraints=CA:FALSE\n{extensions}")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", folder=folder)
    openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-out", f"{name}.pem",
            "-days", "3000", "-extfile", "ext", *more, folder=folder)  # fmt: skip


class TimestampServer:
    """``openssl ts -reply`` behind HTTP. ``alter``: what is done to a reply; ``status``, ``media``: of the answer."""

    def __init__(self, folder, name="ca-tsa"):
        self.folder, self.count = folder, 0
        self.alter, self.status, self.media = (lambda reply: reply), 200, "application/timestamp-reply"
        (folder / "serial").write_text("01")
        (folder / "tsa.cnf").write_text(TSA_CNF.format(folder=folder, name=name))
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                query = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/timestamp-query"
                reply = outer.alter(outer.reply(query))
                self.send_response(outer.status)
                self.send_header("Content-Type", outer.media)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(reply)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/tsa"

    def reply(self, query):
        self.count += 1
        (self.folder / "q.tsq").write_bytes(query)
        openssl("ts", "-reply", "-config", "tsa.cnf", "-queryfile", "q.tsq", "-out", "r.tsr", folder=self.folder)
        return (self.folder / "r.tsr").read_bytes()

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
