#!/usr/bin/env python3
"""A web server that is good, or bad in a way of one's choice, to fetch host tables from.

    https_server.py DIRECTORY ADDRESS

makes certificates in DIRECTORY, says `ready` on standard output, and serves ADDRESS until it is
ended. The port chooses the certificate (PORTS), the path the answer (Answers). The table is the
file `hosts.json` in DIRECTORY as it is at the time of the request.
"""

import functools
import http.server
import pathlib
import ssl
import subprocess
import sys
import threading
import time

GOOD, PLAIN = 4430, 8080
# What is behind a port. `ca.pem` has signed the certificates of the first three.
PORTS = {
    GOOD: "good",
    4431: "othername",
    4432: "expired",
    4433: "future",
    4434: "stranger",  # signed by stranger-ca.pem
    4435: "selfsigned",  # an authority's own certificate
    PLAIN: None,  # HTTP
}
TOO_MUCH = (1 << 20) + 1

CA_CONFIG = """
[ca]
default_ca = this
[this]
certificate = {directory}/{name}.pem
private_key = {directory}/{name}.key
database = {directory}/{name}.index
new_certs_dir = {directory}
rand_serial = yes
default_md = sha256
unique_subject = no
policy = any
[any]
commonName = supplied
"""


def openssl(*words):
    argv = ["openssl", *map(str, words)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{argv}: {done.stderr}")


def new_key(directory, name):
    curve = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    return [
        "-newkey",
        *curve,
        "-nodes",
        "-keyout",
        directory / f"{name}.key",
        "-subj",
        f"/CN={name}",
    ]


def make_authority(directory, name, *extensions):
    words = [word for extension in extensions for word in ("-addext", extension)]
    out = ["-out", directory / f"{name}.pem", "-days", 30]
    openssl("req", "-x509", *new_key(directory, name), *out, *words)
    (directory / f"{name}.index").touch()
    (directory / f"{name}.conf").write_text(CA_CONFIG.format(directory=directory, name=name))


def make_certificate(directory, name, authority, names, days=(-1, 30)):
    """A certificate for `names`, good from one day to another as counted from now."""
    request = directory / f"{name}.csr"
    openssl("req", "-new", *new_key(directory, name), "-out", request)
    extensions = directory / f"{name}.ext"
    extensions.write_text(f"subjectAltName = {names}\nbasicConstraints = CA:FALSE\n")
    start, end = (
        time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + d * 86400)) for d in days
    )
    sign = ["ca", "-batch", "-notext", "-config", directory / f"{authority}.conf"]
    files = ["-in", request, "-out", directory / f"{name}.pem", "-extfile", extensions]
    openssl(*sign, *files, "-startdate", start, "-enddate", end)


def make_certificates(directory, address):
    names = f"IP:{address},DNS:hosts.test"
    make_authority(directory, "ca")
    make_authority(directory, "stranger-ca")
    make_authority(directory, "selfsigned", f"subjectAltName={names}")
    make_certificate(directory, "good", "ca", names)
    make_certificate(directory, "othername", "ca", "DNS:other.test")
    make_certificate(directory, "expired", "ca", names, days=(-30, -1))
    make_certificate(directory, "future", "ca", names, days=(1, 30))
    make_certificate(directory, "stranger", "stranger-ca", names)


class Answers(http.server.BaseHTTPRequestHandler):
    """One method per path."""

    def __init__(self, *arguments, directory, address):
        self.directory, self.address = directory, address
        super().__init__(*arguments)

    def do_GET(self):
        answers = {
            "/hosts.json": self.table,
            "/moved": lambda: self.redirect("/hosts.json"),
            "/loop": lambda: self.redirect("/loop"),
            "/to-http": lambda: self.redirect(f"http://{self.address}:{PLAIN}/hosts.json"),
            "/to-https": lambda: self.redirect(f"https://{self.address}:{GOOD}/hosts.json"),
            "/garbage": lambda: self.answer(b'{"nodes": {\n  "10.0.0.1" {}\n'),
            "/page": lambda: self.answer(b"<html>Please log in</html>"),
            "/largest": lambda: self.answer(b'{"nodes": {}}'.ljust(TOO_MUCH - 1)),
            "/huge": lambda: self.answer(b'{"nodes": {}}'.ljust(TOO_MUCH)),
            "/endless": self.endless,
            "/short": lambda: self.answer(b'{"nodes"', length=1000),
            "/slow": self.slow,
            "/silent": lambda: time.sleep(3600),
        }
        answers.get(self.path.split("?")[0], lambda: self.send_error(404))()
        super().log_request(self.code)

    def table(self):
        self.answer((self.directory / "hosts.json").read_bytes())

    def answer(self, body, length=None):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, to):
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def endless(self):
        """A body without an announced length, for as long as somebody reads it."""
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b" " * 65536)

    def slow(self):
        """A byte a second."""
        self.send_response(200)
        self.send_header("Content-Length", "3600")
        self.end_headers()
        for _ in range(3600):
            self.wfile.write(b" ")
            time.sleep(1)

    def log_request(self, code="-", size="-"):
        """Is called when an answer begins; it is logged when it was given."""
        self.code = code

    def log_message(self, format, *arguments):
        print(self.server.server_port, format % arguments, flush=True)


class Server(http.server.ThreadingHTTPServer):
    """Greets in the thread of the connection, not in the one that accepts."""

    daemon_threads = True
    context = None

    def finish_request(self, request, client_address):
        if self.context:
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)
        request.close()

    def handle_error(self, request, client_address):
        print(self.server_port, repr(sys.exc_info()[1]), flush=True)


def main():
    directory, address = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "good.pem").exists():
        make_certificates(directory, address)
    answers = functools.partial(Answers, directory=directory, address=address)
    for port, certificate in PORTS.items():
        server = Server((address, port), answers)
        if certificate:
            server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            files = (directory / f"{certificate}.{kind}" for kind in ("pem", "key"))
            server.context.load_cert_chain(*files)
        threading.Thread(target=server.serve_forever).start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
