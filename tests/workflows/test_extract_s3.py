"""Extraction from S3 to S3 while S3 misbehaves: no clip is lost, and refused credentials end in one line."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage import files
from storage.features import FeatureTable
from tasks.decode_rows import decode_rows
from tests import servers
from tests.pipeline import OPTIONS, account, assert_nothing_to_do, extract_all, local_ray, tiny
from tests.videos import encode
from workflows import cli

WORST = ("unavailable", "drop", "cut", "stall")
NAMES = ["a", "b c", "ü", "sub/d", "e", "f", "g", "h"]


@pytest.fixture(scope="module")
def proxy(moto_server: servers.S3Server) -> Iterator[servers.FaultyProxy]:
    """What every process of this module's Ray takes for S3."""
    with servers.FaultyProxy(moto_server.endpoint, rate=0.0) as proxy, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**moto_server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint}.items():
            patch.setenv(name, value)
        with local_ray():
            yield proxy


# the storage room tries both servers; a whole extraction takes the real one where it is installed
@pytest.fixture(params=["rgw" if servers.has_rgw() else "moto"])
def bucket(request: pytest.FixtureRequest, proxy: servers.FaultyProxy, tmp_path: Path) -> str:
    """A bucket with an archive under videos/, behind a proxy that behaves so far."""
    server = request.getfixturevalue(f"{request.param}_server")
    proxy.target, proxy.rate, proxy.only = server.endpoint, 0.0, ("GET", "PUT", "POST", "DELETE", "HEAD")
    name = server.bucket()
    video = encode(tmp_path / "clip.mp4", frames=18).read_bytes()
    for clip in NAMES:
        server.put(name, f"videos/{clip}.mp4", video)
    server.put(name, "videos/bad.mp4", b"no video")
    return f"s3://{name}"


def impatient(rows: pa.Table, **how: Any) -> pa.Table:
    """Decode in a worker that gives S3 a second to answer."""
    files.READ_SECONDS = 1.0
    return decode_rows(rows, **how)


def test_s3_that_fails_at_random_loses_no_clip(
    bucket: str, proxy: servers.FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "READ_SECONDS", 1.0)
    files._s3_client.cache_clear()
    wanted = dict.fromkeys(NAMES, "features") | {"bad": "decode_error"}
    injected = proxy.injected
    proxy.rate, proxy.faults, proxy.stall_seconds = 0.15, WORST, 1.5  # a stall is longer than the second's patience
    try:
        report = extract_all(f"{bucket}/videos", f"{bucket}/table", decode=partial(impatient), shard_bytes=1)
        assert report.done + sum(report.failed.values()) == len(wanted)
        assert proxy.injected > injected
        assert_nothing_to_do(f"{bucket}/videos", f"{bucket}/table", times=3)
    finally:
        proxy.rate = 0.0
        files._s3_client.cache_clear()
    assert account(f"{bucket}/table") == wanted


def test_refused_credentials_end_in_one_line_without_the_secret(
    bucket: str, proxy: servers.FaultyProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", f"{bucket}/videos", "--features", f"{bucket}/table", *OPTIONS]
    proxy.faults, proxy.rate = ("refused",), 1.0
    refused = proxy.injected
    assert cli.run(command) == 2
    check_refusal(capsys)
    assert proxy.injected == refused + 1, "S3 was asked again"
    # Refused on the way: a worker learns of it first, when it writes.
    proxy.rate = 0.0
    FeatureTable(f"{bucket}/table").put_extractor(tiny().id, tiny().to_json())
    proxy.rate, proxy.only = 1.0, ("PUT", "POST")
    refused = proxy.injected
    assert cli.run(command) == 2
    check_refusal(capsys)
    assert proxy.injected == refused + 1, "S3 was asked again"
    proxy.rate = 0.0
    assert cli.run(command) == 0
    assert account(f"{bucket}/table") == dict.fromkeys(NAMES, "features") | {"bad": "decode_error"}


def check_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1]
    assert last.startswith("pthnet: s3://")
    assert "S3 refused the credentials; check AWS_ACCESS_KEY_ID" in last
    assert "Traceback" not in shown.err
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in shown.out + shown.err
