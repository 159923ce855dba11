"""Errors of three S3 clients, told apart: what the user can put right is one line, what is not is left as it is."""

import errno
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from storage import delta, files
from storage.errors import StorageError
from storage.refusals import is_refusal
from tests import servers

DELTA = (
    "Kernel error -> The operation lacked the necessary privileges to complete for path t/_delta_log/_last_checkpoint\n"
    "\x1b[31m↳\x1b[0m Error performing GET http://s3/b/t in 15ms - Server returned non-2xx status code\n"
    "\x1b[31m↳\x1b[0m 403 Forbidden\n"
)
REFUSALS: list[Exception] = [
    OSError(
        "When getting information for key 'x' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation: no"
    ),
    OSError(
        "When listing objects under key 't/': AWS Error SIGNATURE_DOES_NOT_MATCH during ListObjectsV2 operation: no"
    ),
    OSError("When uploading key 'x': AWS Error INVALID_ACCESS_KEY_ID during PutObject operation: no such key"),
    OSError(
        "When uploading key 'x': AWS Error UNKNOWN (HTTP status 403) during PutObject operation: No response body."
    ),
    OSError(DELTA),
    OSError("Generic S3 error: Client error with status 403 Forbidden: <Error><Code>ExpiredToken</Code></Error>"),
    ClientError(
        {"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "Head"
    ),
    ClientError({"Error": {"Code": "ExpiredToken"}, "ResponseMetadata": {"HTTPStatusCode": 400}}, "GetObject"),
    NoCredentialsError(),
    PermissionError(errno.EACCES, "denied"),
]
OTHERS: list[Exception] = [
    OSError(
        "When reading information for key 'clip-403.mp4' in bucket 'b': AWS Error SLOW_DOWN during HeadObject: wait"
    ),
    OSError("When reading key 'Error 403 Forbidden.mp4' in bucket 'b': AWS Error UNKNOWN (HTTP status 500) during Get"),
    OSError("When reading key 'AccessDenied/forbidden love.mp4' in bucket 'b': curlCode: 28, Timeout was reached"),
    OSError("Error performing GET http://s3/b/403/t in 15ms - Server returned non-2xx status code: 503 Slow Down: "),
    ClientError(
        {"Error": {"Code": "503", "Message": "403 Forbidden"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "GetObject"
    ),
    ValueError("403 clips"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=str)
def test_refused_credentials_are_recognised_in_the_words_of_every_client(error: Exception) -> None:
    assert is_refusal(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_a_name_that_reads_like_a_refusal_is_none(error: Exception) -> None:
    assert not is_refusal(error)


def test_credentials_that_are_refused_are_not_tried_again_by_any_client(
    moto: servers.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{moto.bucket()}/403/table"
    calls: list[Callable[[], Any]] = [
        lambda: files.filesystem(uri)[0].get_file_info(files.filesystem(uri)[1]),
        lambda: files.filesystem(uri)[0].get_file_info(pafs.FileSelector(files.filesystem(uri)[1])),
        lambda: files.read_bytes(uri),
        lambda: files.head(uri),
        lambda: list(files.walk(uri)),
        lambda: files.write_atomic(uri, b"bytes"),
        lambda: delta.open_table(uri),
        lambda: delta.ensure_table(uri, pa.schema([("a", pa.int32())])),
    ]
    with servers.FaultyProxy(moto.endpoint, rate=1.0, faults=("refused",)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for call in calls:
            before = proxy.requests
            with pytest.raises(StorageError, match="S3 refused the credentials") as refused, files.explained(uri):
                call()
            assert proxy.requests - before == 1
            assert moto.secret_key not in str(refused.value)


def test_no_message_repeats_a_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"AWS_ACCESS_KEY_ID": "AKIAMINE", "AWS_SECRET_ACCESS_KEY": "s3cr3t/+", "AWS_SESSION_TOKEN": "t0k3n=="}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    said = files.scrub("credential AKIAMINE,\n signed with s3cr3t/+ and t0k3n==")
    assert said == "credential ***, signed with *** and ***"
