"""Which store is spoken to, and what its answers mean: of moto's server, and of servers that refuse. What both kinds of places promise is
in test_storage.py."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from pipeline.contracts import s3, storage
from pipeline.contracts.errors import InputError, RunError


def test_old_uploads_are_aborted(s3_endpoint: str) -> None:
    client = boto3.client("s3")
    client.create_bucket(Bucket="uploads")
    client.create_multipart_upload(Bucket="uploads", Key="run/part")
    century = 100 * 365 * 86_400.0  # moto says of every upload that it began in 2010
    assert storage.abort_uploads("s3://uploads/run", older_than_s=century) == 0
    assert storage.abort_uploads("s3://uploads/run") == 1
    assert storage.abort_uploads("s3://uploads/run") == 0
    assert storage.abort_uploads("local/folder") == 0


def test_a_wrong_endpoint(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for act in (lambda: storage.read_bytes("s3://bucket/key"), lambda: storage.put_if_absent("s3://bucket/key", b"")):
        with pytest.raises(InputError, match="AWS_ENDPOINT_URL"):
            act()


@pytest.mark.parametrize("region", ["us-east-1", ""])
@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:9", "garbage", "http://", "http://[::1:", "http://[:::]:9", "ftp://127.0.0.1:9", "http://127.0.0.1:99999",
        "http://a_b:9000", "http://host:9000/store", "http://host:9000?x", " http://host",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, endpoint: str, region: str) -> None:
    """Whichever library would be asked first."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_REGION", region)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    for act in (storage.read_bytes, storage.exists, storage.list_files, lambda uri: storage.write_atomic(uri, b"")):
        with pytest.raises(InputError) as raised:
            act("s3://bucket/key")
        assert str(raised.value).startswith(
            f"AWS_ENDPOINT_URL or ~/.aws/config: {endpoint!r} is no address of a store; "
        )


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9000/", "https://host", "HTTP://a-b.host.:80", "http://[::1]:9000"]
)
def test_an_endpoint_that_is_an_address(endpoint: str) -> None:
    assert s3._address(endpoint) == endpoint
    assert s3._client(endpoint, "us-east-1")
    assert s3._filesystem(endpoint, "us-east-1")


@contextlib.contextmanager
def store(monkeypatch: pytest.MonkeyPatch, handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[None]:
    """An S3 endpoint whose answers are `handler`'s, as the store of this process."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class _Busy(http.server.BaseHTTPRequestHandler):
    """A store that answers every request with one status and S3's XML."""

    protocol_version = "HTTP/1.1"  # so that it tells boto3 to go on with a put, which waits a second for that otherwise
    status, code = 503, "SlowDown"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = f"<Error><Code>{self.code}</Code><Message>no</Message></Error>".encode() if self.status != 200 else b""
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_POST = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.mark.parametrize(
    ("status", "code", "kind", "sentence"),
    [
        (503, "SlowDown", RunError, "the store is in trouble .*SlowDown.*; wait, then run the same command again"),
        (403, "AccessDenied", InputError, "the store answered 'AccessDenied'; check the bucket's name and your rights"),
    ],
)
def test_a_store_in_trouble_is_not_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str, kind: type[Exception], sentence: str
) -> None:
    """Of a small write and of an upload, which boto3 reports by another kind of error; then the store goes away altogether."""
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with store(monkeypatch, type("Answers", (_Busy,), {"status": status, "code": code})):
        with pytest.raises(kind, match=sentence):
            storage.write_atomic("s3://bucket/key", b"x")
        with pytest.raises(kind, match=sentence):
            storage.commit_file(str(file), "s3://bucket/key")
    assert file.exists()


class _Conflicts(_Busy):
    """A store that answers 409 to the first puts of a name, then what it has decided."""

    conflicts, final = 2, 200

    def _answer(self) -> None:
        kind = type(self)
        kind.conflicts -= 1
        kind.status, kind.code = (
            (409, "ConditionalRequestConflict") if kind.conflicts >= 0 else (kind.final, "PreconditionFailed")
        )
        super()._answer()

    do_PUT = _answer  # noqa: N815


@pytest.mark.parametrize(("conflicts", "final", "written"), [(2, 200, True), (2, 412, False), (99, 200, None)])
def test_a_conflict_is_not_yet_an_answer(
    monkeypatch: pytest.MonkeyPatch, conflicts: int, final: int, written: bool | None
) -> None:
    """409 says neither written nor taken: the put is tried again; a conflict without end is a store in trouble."""
    monkeypatch.setattr(s3, "_CONFLICT_WAITS_S", (0.01, 0.01, 0.01))
    with store(monkeypatch, type("Answers", (_Conflicts,), {"conflicts": conflicts, "final": final})):
        if written is None:
            with pytest.raises(RunError, match=r"the store is in trouble .*ConditionalRequestConflict"):
                storage.put_if_absent("s3://bucket/key", b"x")
        else:
            assert storage.put_if_absent("s3://bucket/key", b"x") is written


CONFIG = """
[default]
region = eu-west-3
endpoint_url = http://127.0.0.1:9001
[profile other]
region = ap-south-1
services = mine
[services mine]
s3 =
  endpoint_url = http://127.0.0.1:9002
[profile plain]
output = json
"""


@pytest.mark.parametrize(
    ("environment", "endpoint", "region"),
    [
        ({}, "http://127.0.0.1:9001", "eu-west-3"),
        ({"AWS_PROFILE": "other"}, "http://127.0.0.1:9002", "ap-south-1"),
        ({"AWS_PROFILE": "plain"}, None, "us-east-1"),
        ({"AWS_PROFILE": "other", "AWS_REGION": "sa-east-1"}, "http://127.0.0.1:9002", "sa-east-1"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9003"}, "http://127.0.0.1:9003", "eu-west-3"),
    ],
)
def test_both_libraries_speak_to_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], endpoint: str | None, region: str
) -> None:
    (tmp_path / "config").write_text(CONFIG)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    settings = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in (settings | environment).items():
        monkeypatch.setenv(name, value)
    assert s3._store() == (endpoint, region)
    files, client = s3.filesystem(), s3.client()
    assert files.region == client.meta.region_name == region
    assert endpoint in (None, client.meta.endpoint_url)


def test_a_profile_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(CONFIG)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(InputError, match=r"AWS_PROFILE: .*absent.*; mend"):
        storage.exists("s3://bucket/key")


def test_a_store_that_went_away(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    """It has answered this process before, so that its address is right."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setattr(s3, "_answered", {s3._store()})
    for act in (lambda: storage.read_bytes("s3://bucket/key"), lambda: storage.write_atomic("s3://bucket/key", b"")):
        with pytest.raises(RunError, match=r"the store is in trouble .*; wait, then run the same command again"):
            act()
