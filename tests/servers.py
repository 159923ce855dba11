"""S3 servers on loopback for tests: moto in this process, Ceph RGW where installed, and a proxy that misbehaves."""

import http.client
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
from botocore.config import Config

RGW_SCRIPT = Path(__file__).with_name("rgw.sh")


@dataclass
class S3Server:
    """An endpoint and the credentials it takes."""

    endpoint: str
    access_key: str = "AKIATEST"
    secret_key: str = "secretsecret"
    mock: bool = False
    made: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """The AWS environment under which this server is the S3."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }

    def client(self):
        """A boto3 client of this server."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def bucket(self) -> str:
        """Make a fresh bucket; returns its name."""
        name = f"bucket-{os.urandom(5).hex()}"
        self.client().create_bucket(Bucket=name)
        self.made.append(name)
        return name

    def put(self, bucket: str, key: str, body: bytes) -> None:
        """Put an object."""
        self.client().put_object(Bucket=bucket, Key=key, Body=body)


@contextmanager
def moto() -> Iterator[S3Server]:
    """moto's server, in a process of its own: some calls of the Delta library wait for S3 with the GIL held.

    It checks no signature.
    """
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("moto's server did not start") from None
                time.sleep(0.05)
        yield S3Server(f"http://127.0.0.1:{port}", mock=True)
    finally:
        process.terminate()
        process.wait()


def has_rgw() -> bool:
    """Whether Ceph's object gateway can be started here."""
    names = ("radosgw", "ceph-mon", "ceph-osd", "ceph", "radosgw-admin", "monmaptool")
    return all(shutil.which(name) for name in names)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def rgw(folder: Path) -> Iterator[S3Server]:
    """A real S3 server, its objects in memory."""
    environment = {**os.environ, "RGW_STORE": "memstore", "RGW_STORE_BYTES": str(1 << 30)}
    for left in (2, 1, 0):  # another process may take a port between its being found free and used
        port = free_port()
        command = ["bash", RGW_SCRIPT, "start", folder, str(port)]
        started = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
        if started.returncode == 0:
            break
        if not left:
            raise RuntimeError(f"Ceph's gateway did not start: {started.stderr}")
    try:
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        subprocess.run(["bash", RGW_SCRIPT, "stop", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


class FaultyProxy:
    """Passes HTTP on to a server, and now and then answers 503, drops the connection, cuts a body or stalls.

    It runs in a thread of this process: let the Delta library maintain or describe a table through it from another
    process only, since those calls wait with the GIL held.

    Parameters
    ----------
    target
        The server's endpoint.
    rate
        Share of requests that go wrong.
    limit
        Number of requests that go wrong at most.
    faults
        Among "unavailable", "drop", "cut", "stall", "lost" (the request is served and its answer dropped) and
        "refused" (as for wrong credentials).
    """

    def __init__(
        self,
        target: str,
        *,
        rate: float = 0.2,
        faults: tuple[str, ...] = ("unavailable", "drop", "cut"),
        seed: int = 0,
        only: tuple[str, ...] = ("GET", "PUT", "POST", "DELETE", "HEAD"),
        stall_seconds: float = 0.5,
        limit: int | None = None,
    ) -> None:
        # Workers of a running Ray keep the endpoint they were started with, so all of these may be changed on the way.
        self.target, self.rate, self.faults, self.only = target, rate, faults, only
        self.stall_seconds, self.limit = stall_seconds, limit
        generator = random.Random(seed)
        lock = threading.Lock()
        proxy = self
        self.requests = 0
        self.injected = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Keep the test's output clean."""

            def serve(self) -> None:
                if self.headers.get("Expect", "").lower() == "100-continue":
                    self.send_response_only(100)
                    self.end_headers()
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    proxy.requests += 1
                    hit = self.command in proxy.only and generator.random() < proxy.rate
                    fault = generator.choice(proxy.faults) if hit else None
                    fault = fault if proxy.limit is None or proxy.injected < proxy.limit else None
                    proxy.injected += fault is not None
                if fault == "unavailable":
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if fault == "refused":
                    text = b"<Error><Code>SignatureDoesNotMatch</Code><Message>wrong key</Message></Error>"
                    self.send_response(403)
                    self.send_header("Content-Type", "application/xml")
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(text)
                    return
                if fault == "drop":
                    self.close_connection = True
                    return
                if fault == "stall":
                    time.sleep(proxy.stall_seconds)
                host, _, port = proxy.target.removeprefix("http://").partition(":")
                upstream = http.client.HTTPConnection(host, int(port), timeout=30)
                try:
                    upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        if name.lower() not in ("connection", "expect"):
                            upstream.putheader(name, value)
                    upstream.endheaders(body or None)
                    answer = upstream.getresponse()
                    data = answer.read()
                finally:
                    upstream.close()
                if fault == "lost":
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if fault == "cut" and len(data) > 1:
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                elif self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that went away is what this proxy provokes."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "FaultyProxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
