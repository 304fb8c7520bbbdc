"""Files under http or https in a thread of the tests (Starlette), with counted requests."""

import datetime as dt
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.staticfiles import StaticFiles


@contextmanager
def served(folder: Path, certificate: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder; yield its URL and the `path range` of every request.

    With `certificate`, a PEM file of `self_signed`, the server speaks TLS.
    """
    files, requests = StaticFiles(directory=folder), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            requests.append(f"{scope['path']} {dict(scope['headers']).get(b'range', b'').decode()}")
            await files(scope, receive, send)

    listening = socket.create_server(("127.0.0.1", 0))
    tls = {"ssl_certfile": certificate, "ssl_keyfile": certificate} if certificate else {}
    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", **tls)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    scheme = "https" if certificate else "http"
    try:
        yield f"{scheme}://127.0.0.1:{listening.getsockname()[1]}", requests
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def self_signed(file: Path) -> str:
    """Write a key and its certificate for 127.0.0.1; return the certificate as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + pem)
    return pem.decode()
