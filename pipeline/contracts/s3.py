"""S3: which store is spoken to, what its answers mean, and what pyarrow cannot do there and boto3 does.

Only `storage.py` asks here, and for names that begin with `s3://`.

Credentials, region and endpoint come from where every AWS user keeps them: the environment (`AWS_ENDPOINT_URL`, `AWS_REGION`,
`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, ...), then ~/.aws, then, but for the endpoint, the EC2 machine itself; a region that nobody names is
us-east-1. Both libraries are given the same endpoint and region. These are places, not configuration of ours.

Every function raises InputError for a wrong endpoint, bucket or right, and StoreTrouble for a store that is busy or has gone silent.
"""

import contextlib
import datetime
import functools
import os
import re
import time
import urllib.parse
from collections.abc import Iterator
from typing import IO, Any, cast

import pyarrow.fs

from pipeline.contracts.errors import HouseError, InputError, StoreTrouble


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The two parts of `s3://BUCKET/KEY`; the key of a bucket itself is empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"{uri!r}: no bucket; write s3://BUCKET/KEY")
    return bucket, key


def _object(uri: str) -> dict[str, str]:
    """Bucket and key of a file, as boto3 takes them: a bucket is no file."""
    bucket, key = bucket_and_key(uri)
    if not key:
        raise InputError(f"{uri!r}: is a bucket, not a file; write s3://BUCKET/KEY")
    return {"Bucket": bucket, "Key": key}


# ---- which store


def _store() -> tuple[str | None, str]:
    """The store's endpoint (None: AWS itself) and region."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint and region:
        return _address(endpoint), region
    named = tuple(os.environ.get(key) for key in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE"))
    configured = _configured(named)
    endpoint = endpoint or configured[0]
    return endpoint and _address(endpoint), region or configured[1] or _found_region()


_ENDPOINT = re.compile(r"https?://(\[[0-9A-F:.]+\]|([0-9A-Z-]+\.)*[0-9A-Z-]+\.?)(:[0-9]+)?/?", re.IGNORECASE)


@functools.cache
def _address(endpoint: str) -> str:
    """The endpoint, if both libraries take it for the same store. What one refuses, the other may send to Amazon or to another port."""
    try:
        fits = _ENDPOINT.fullmatch(endpoint) and urllib.parse.urlsplit(endpoint).port != 0
    except ValueError:  # a port that is too large, an IPv6 address that is none
        fits = False
    if not fits:
        raise InputError(
            f"AWS_ENDPOINT_URL or ~/.aws/config: {endpoint!r} is no address of a store; write http://HOST:PORT or https://HOST"
        )
    return endpoint


@functools.cache
def _configured(named: tuple[str | None, ...]) -> tuple[str | None, str | None]:
    """Endpoint and region of the profile in ~/.aws/config. `named`, which botocore reads by itself, only keeps profiles apart here."""
    import botocore.exceptions  # only reached by users of S3 whose environment does not say both
    import botocore.session

    session = botocore.session.Session()
    try:
        profile = session.get_scoped_config()
        services = session.full_config.get("services", {}).get(profile.get("services"), {})
    except botocore.exceptions.BotoCoreError as error:
        raise InputError(f"~/.aws/config or AWS_PROFILE: {error}; mend the one it names") from None
    block = services.get("s3")  # botocore reads an indented block as a table, anything else as text
    endpoint = block.get("endpoint_url") if isinstance(block, dict) else None
    return endpoint or profile.get("endpoint_url"), profile.get("region")


@functools.cache
def _found_region() -> str:
    """The region of the EC2 machine we are on, as pyarrow's AWS library asks for it, else us-east-1."""
    return cast(str, pyarrow.fs.S3FileSystem().region)


def filesystem() -> pyarrow.fs.S3FileSystem:
    """The store, for pyarrow."""
    return _filesystem(*_store())


@functools.cache
def _filesystem(endpoint: str | None, region: str) -> pyarrow.fs.S3FileSystem:
    options: dict[str, Any] = {"connect_timeout": 10.0, "request_timeout": 60.0}
    if endpoint:
        parsed = urllib.parse.urlsplit(endpoint)
        options |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    return pyarrow.fs.S3FileSystem(region=region, **options)


def client() -> Any:
    """The store, for boto3."""
    return _client(*_store())


@functools.cache
def _client(endpoint: str | None, region: str) -> Any:
    import boto3  # a quarter of a second, paid by those who use S3
    import botocore.config

    retries = botocore.config.Config(connect_timeout=10, read_timeout=60, retries={"total_max_attempts": 3})
    # A session of our own: the one that boto3 keeps stays with the profile of whoever made it.
    return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=retries)


# ---- what its answers mean


_answered: set[tuple[str | None, str]] = set()
"""The stores that have answered this process: one that is silent later is in trouble, not misspelt."""
_BUSY = (
    "ConditionalRequestConflict",
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
)
_BUSY_ARROW = re.compile(
    r"SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT|THROTTLING|HTTP status 5\d\d|Timeout was reached"
)


def has_answered() -> None:
    """Say that pyarrow had an answer."""
    _answered.add(_store())


def error_of_arrow(uri: str, doing: str, said: str) -> HouseError:
    """What is to be raised for an OSError of pyarrow's that says `said`."""
    silent = "NETWORK_CONNECTION" in said and _store() in _answered
    if silent or _BUSY_ARROW.search(said):
        return _in_trouble(uri, said)
    return InputError(f"{uri}: the store cannot {doing} it ({said}); check AWS_ENDPOINT_URL, bucket and credentials")


@contextlib.contextmanager
def _plain_errors(uri: str) -> Iterator[None]:
    """Turn what boto3 raises into one sentence."""
    import boto3.exceptions  # only reached by users of S3
    import botocore.exceptions

    try:
        yield
    except boto3.exceptions.S3UploadFailedError as error:  # what upload_file makes of a ClientError
        raise _error_of_boto(uri, error.__context__ or error) from None
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        raise _error_of_boto(uri, error) from None
    _answered.add(_store())


def _error_of_boto(uri: str, error: BaseException) -> HouseError:
    import botocore.exceptions  # only reached by users of S3

    if isinstance(error, botocore.exceptions.ClientError):
        said = error.response.get("Error", {}).get("Code", "an error")
        if said in _BUSY or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            return _in_trouble(uri, f"it answered {said!r}")
        return InputError(f"{uri}: the store answered {said!r}; check the bucket's name and your rights")
    broken = (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError)
    reached = not isinstance(error, botocore.exceptions.EndpointConnectionError) or _store() in _answered
    if isinstance(error, broken) and reached:
        return _in_trouble(uri, str(error))
    return InputError(f"{uri}: the store cannot be reached ({error}); check AWS_ENDPOINT_URL and credentials")


def _in_trouble(uri: str, said: str) -> StoreTrouble:
    return StoreTrouble(f"{uri}: the store is in trouble ({said}); wait, then run the same command again")


# ---- what boto3 does


_CONFLICT_WAITS_S = (0.1, 0.3, 1.0, 3.0)
"""S3 answers 409 to a conditional put that met another write or a delete of the name half way: not taken yet, to be tried again."""


@contextlib.contextmanager
def opened(uri: str) -> Iterator[tuple[int, IO[bytes]]]:
    """Bytes of a file and what reads it, in one request: pyarrow asks for the size first, and a file that is replaced in between would
    come back torn."""
    import botocore.exceptions  # only reached by users of S3

    with _plain_errors(uri):
        try:
            answer = client().get_object(**_object(uri))
        except botocore.exceptions.ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchKey":
                raise InputError(f"{uri}: no such file; check the path") from None
            raise
        with answer["Body"] as body:
            yield answer["ContentLength"], body


def put(uri: str, data: bytes) -> None:
    """Write a file, or replace it."""
    with _plain_errors(uri):
        client().put_object(**_object(uri), Body=data)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file unless the name is taken (`If-None-Match: *`). True when written; of two writers exactly one is told True."""
    import botocore.exceptions  # only reached by users of S3

    waits = list(_CONFLICT_WAITS_S)
    with _plain_errors(uri):
        while True:
            try:
                client().put_object(**_object(uri), Body=data, IfNoneMatch="*")
                return True
            except botocore.exceptions.ClientError as error:
                said = error.response.get("Error", {}).get("Code")
                if said == "PreconditionFailed":
                    return False
                if said != "ConditionalRequestConflict" or not waits:
                    raise
                time.sleep(waits.pop(0))


def upload(local_path: str, uri: str) -> None:
    """Write or replace a file with a local one, in parts when it is large."""
    with _plain_errors(uri):
        client().upload_file(local_path, **_object(uri))


def remove(uri: str) -> None:
    """Remove a file; one that is not there is no error."""
    bucket, key = bucket_and_key(uri)
    with _plain_errors(uri):
        client().delete_object(Bucket=bucket, Key=key)


def abort_uploads(folder: str, older_than_s: float) -> int:
    """Abort uploads in parts that began under a folder as long ago; returns how many."""
    bucket, prefix = bucket_and_key(folder)
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=older_than_s)
    aborted = 0
    with _plain_errors(folder):
        pages = client().get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix.rstrip("/") + "/"):
            for begun in page.get("Uploads", []):
                if begun["Initiated"] <= before:
                    client().abort_multipart_upload(Bucket=bucket, Key=begun["Key"], UploadId=begun["UploadId"])
                    aborted += 1
    return aborted
