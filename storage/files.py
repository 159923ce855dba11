"""Files by URI, on a local disk or in S3: open, walk, read and write whole.

Where S3 is and who we are come from the usual AWS environment (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, ...), read at every call, so that a worker started with another environment follows it. Credentials
are never taken into our hands: each client finds them by its own default chain, and no message repeats them.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from storage.errors import StorageError
from storage.refusals import is_refusal

# Several S3 servers refuse the trailing checksums that the AWS SDKs of 2025 add by default. The SDK inside pyarrow
# reads this once, when its first S3 client is made, hence at import.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")

ATTEMPTS = 8  # tries of one request, with exponential back-off, before an S3 error is believed
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
PAGE = 1000  # objects per listing request, the most S3 gives


class Entry(NamedTuple):
    """One file below a root: its path relative to it, size in bytes, and a tag that changes when its bytes do."""

    path: str
    size: int
    tag: str  # S3: the ETag; local: mtime in ns


def is_s3(uri: str) -> bool:
    """Whether the URI names S3."""
    return uri.startswith(("s3://", "s3a://"))


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of an S3 URI."""
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    if not bucket:
        raise StorageError(f"{uri!r} names no bucket; write s3://bucket/prefix")
    return bucket, key


def local_path(uri: str) -> str:
    """Path of a local URI (a plain path or file://)."""
    if uri.startswith("file://"):
        from urllib.parse import unquote

        return unquote(uri[len("file://") :])
    if "://" in uri:
        raise StorageError(f"cannot open {uri!r}: expected a local path, file:// or s3://")
    return os.path.expanduser(uri)


def absolute(uri: str) -> str:
    """A URI that means the same in every working directory."""
    return uri.rstrip("/") if is_s3(uri) else os.path.abspath(local_path(uri))


def join(uri: str, *parts: str) -> str:
    """The URI of something below another."""
    return "/".join([uri.rstrip("/"), *parts])


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def _identity() -> tuple[str | None, ...]:
    """What distinguishes one S3 client from another; only ever a cache key."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    return (_endpoint(), _region(), str(os.getpid()), *(os.environ.get(name) for name in names))


@lru_cache(maxsize=8)
def _s3_filesystem(identity: tuple[str | None, ...]) -> pafs.S3FileSystem:
    endpoint, region = identity[:2]
    options: dict[str, Any] = {"region": region or ("us-east-1" if endpoint else None)}
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    return pafs.S3FileSystem(
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        **options,
    )


@lru_cache(maxsize=8)
def _s3_client(identity: tuple[str | None, ...]) -> Any:
    import boto3
    from botocore.config import Config

    endpoint, region = identity[:2]
    config = Config(
        retries={"mode": "standard", "max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=32,
        s3={"addressing_style": "path"} if endpoint else None,
    )
    return boto3.session.Session().client(
        "s3", endpoint_url=endpoint, region_name=region or ("us-east-1" if endpoint else None), config=config
    )


def s3_client() -> Any:
    """The boto3 client of the current environment (listing with ETags, conditional reads, atomic puts)."""
    return _s3_client(_identity())


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a URI and the path in it."""
    if is_s3(uri):
        bucket, key = split_s3(uri)
        return _s3_filesystem(_identity()), f"{bucket}/{key}".rstrip("/")
    return pafs.LocalFileSystem(), os.path.abspath(local_path(uri))


def delta_uri(uri: str) -> str:
    """The URI as Delta wants it."""
    return uri if is_s3(uri) else os.path.abspath(local_path(uri))


def delta_options(uri: str) -> dict[str, str] | None:
    """Delta storage options: endpoint, region and the conditional put that makes commits atomic. No credentials."""
    if not is_s3(uri):
        return None
    options = {"aws_conditional_put": "etag", "connect_timeout": f"{CONNECT_SECONDS:.0f}s"}
    if endpoint := _endpoint():
        options |= {"aws_endpoint": endpoint, "aws_virtual_hosted_style_request": "false"}
        if endpoint.startswith("http://"):
            options["aws_allow_http"] = "true"
    if region := _region() or ("us-east-1" if endpoint else None):
        options["aws_region"] = region
    return options


_FULL = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")


def scrub(text: str) -> str:
    """The text on one line, without any credential of the environment."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return " ".join(text.split())


def is_full(error: BaseException) -> bool:
    """Whether an error of Python, pyarrow or Delta says that a disk or a quota is full."""
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or any(word in str(error) for word in _FULL)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what a user can put right (credentials, bucket, endpoint) into a one-line StorageError."""
    try:
        yield
    except (StorageError, FileNotFoundError):
        raise
    except Exception as error:
        kind = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and kind not in ("botocore", "boto3", "deltalake", "_internal"):
            raise
        text = scrub(str(error))
        if not is_s3(uri):
            if isinstance(error, PermissionError):
                raise StorageError(f"{uri}: permission denied ({text}); give this user access to it") from None
            if is_full(error):
                raise StorageError(
                    f"{uri}: no space left on its disk; free some and run the same command again, what is committed is "
                    "kept"
                ) from None
            raise
        if "nosuchbucket" in text.lower() or "no such bucket" in text.lower() or "no_such_bucket" in text.lower():
            raise StorageError(f"{uri}: no such bucket; create it or correct the name") from None
        if is_refusal(error):
            raise StorageError(
                f"{uri}: S3 refused the credentials; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's "
                f"policy (endpoint {_endpoint() or 'AWS'})"
            ) from None
        if any(word in text.lower() for word in ("could not connect", "connection refused", "error sending request")):
            raise StorageError(f"{uri}: no answer from S3 at {_endpoint() or 'AWS'}; check AWS_ENDPOINT_URL") from None
        raise


def is_missing(error: BaseException) -> bool:
    """Whether a boto3 error says that the object is not there."""
    code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
    return code in ("404", "NoSuchKey", "NotFound")


def read_bytes(uri: str) -> bytes:
    """The whole of a file; FileNotFoundError where there is none."""
    with explained(uri):
        if not is_s3(uri):
            with open(local_path(uri), "rb") as file:
                return file.read()
        from botocore.exceptions import ClientError

        bucket, key = split_s3(uri)
        try:
            return read_object(bucket, key)[0]
        except ClientError as error:
            if is_missing(error):
                raise FileNotFoundError(uri) from None
            raise


def read_object(bucket: str, key: str) -> tuple[bytes, str]:
    """Bytes and ETag of a small S3 object; a body cut short is asked for again."""
    import time

    from botocore.exceptions import HTTPClientError, IncompleteReadError

    for attempt in range(ATTEMPTS):
        try:
            answer = s3_client().get_object(Bucket=bucket, Key=key)
            return answer["Body"].read(), answer["ETag"].strip('"')
        except (HTTPClientError, IncompleteReadError):
            # The client's own retries end where the body begins.
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(min(0.1 * 2**attempt, 5.0))
    raise AssertionError("unreachable")


def write_atomic(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file so that readers see all of it or nothing (temporary name and move; on S3 a put is atomic)."""
    if is_s3(uri):
        with explained(uri):
            bucket, key = split_s3(uri)
            # A multipart upload (over 8 MB) shows nothing until it is complete, and is aborted when it fails.
            s3_client().upload_fileobj(pa.BufferReader(data), bucket, key)
        return
    with writing(uri) as file:
        file.write(data)


@contextmanager
def writing(uri: str) -> Iterator[Any]:
    """An open file whose content readers see as `write_atomic` has it, once the block ends well; else nothing stays.

    Where it is local, what is written need not fit into memory.
    """
    if is_s3(uri):
        sink = pa.BufferOutputStream()
        yield sink
        write_atomic(uri, sink.getvalue())
        return
    path = local_path(uri)
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    with explained(uri):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise


def size_of(uri: str) -> int | None:
    """Size of a file in bytes, or None where there is none."""
    with explained(uri):
        fs, path = filesystem(uri)
        info = fs.get_file_info(path)
        return info.size if info.type == pafs.FileType.File else None


def walk(uri: str) -> Iterator[Entry]:
    """Every file below a root, hidden ones and what lies in hidden folders left out. Symbolic links are followed once.

    Raises
    ------
    StorageError
        When a folder cannot be read, or the S3 credentials are refused.
    """
    return _walk_s3(uri) if is_s3(uri) else _walk_local(local_path(uri))


def _walk_local(root: str) -> Iterator[Entry]:
    stack: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(root, "", frozenset())]
    while stack:
        folder, prefix, above = stack.pop()
        try:
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in above:
                continue  # a link back to a folder that holds it
            inside = above | {(here.st_dev, here.st_ino)}
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        stack.append((entry.path, f"{prefix}{entry.name}/", inside))
                    elif entry.is_file():
                        stat = entry.stat()
                        yield Entry(prefix + entry.name, stat.st_size, str(stat.st_mtime_ns))
        except PermissionError:
            raise StorageError(f"cannot read the folder {folder}: permission denied; give access or move it") from None


def _walk_s3(uri: str) -> Iterator[Entry]:
    bucket, key = split_s3(uri)
    prefix = f"{key.rstrip('/')}/" if key else ""
    with explained(uri):
        for page in (
            s3_client()
            .get_paginator("list_objects_v2")
            .paginate(Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": PAGE})
        ):
            for item in page.get("Contents", ()):
                path = item["Key"][len(prefix) :]
                if path and not path.endswith("/") and not path.startswith(".") and "/." not in path:
                    yield Entry(path, item["Size"], item["ETag"].strip('"'))


def head(uri: str) -> Entry | None:
    """Size and ETag of one S3 object, or None where there is none."""
    from botocore.exceptions import ClientError

    bucket, key = split_s3(uri)
    with explained(uri):
        try:
            answer = s3_client().head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if is_missing(error):
                return None
            raise
    return Entry(key.rpartition("/")[2], answer["ContentLength"], answer["ETag"].strip('"'))
