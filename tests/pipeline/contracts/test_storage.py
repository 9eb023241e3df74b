"""The same promises on a local disk and on S3, which is moto's server in a process of its own."""

import contextlib
import hashlib
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError, RunError


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh folder in each kind of store."""
    if request.param == "local":
        return str(tmp_path / "store")
    endpoint: str = request.getfixturevalue("s3_endpoint")
    assert endpoint
    bucket = "b" + tmp_path.name.replace("_", "-").lower()[:40]
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/store"


def test_write_read_list(root: str) -> None:
    storage.write_atomic(storage.join(root, "a", "one.bin"), b"one")
    storage.write_atomic(storage.join(root, "a", "two.bin"), b"second")
    storage.write_atomic(storage.join(root, "a", "two.bin"), b"again!")
    assert storage.read_bytes(storage.join(root, "a", "two.bin")) == b"again!"
    assert storage.read_range(storage.join(root, "a", "two.bin"), 2, 3) == b"ain"
    assert storage.size(storage.join(root, "a", "one.bin")) == 3
    assert storage.sizes(storage.join(root, "a")) == {"one.bin": 3, "two.bin": 6}
    assert storage.list_files(root) == []
    assert [storage.name(uri) for uri in storage.list_files(root, recursive=True)] == ["one.bin", "two.bin"]
    assert storage.folders(root) == ["a"]
    assert storage.glob(storage.join(root, "*", "t*.bin")) == [storage.join(root, "a", "two.bin")]
    assert storage.glob(storage.join(root, "**", "*.bin")) == storage.list_files(root, recursive=True)
    assert not storage.exists(storage.join(root, "a"))
    assert storage.is_folder(storage.join(root, "a"))


def test_remove(root: str) -> None:
    for name in ("a/one", "a/b/two", "c/three"):
        storage.write_atomic(storage.join(root, *name.split("/")), b"1")
    storage.remove_file(storage.join(root, "a", "one"))
    storage.remove_file(storage.join(root, "a", "one"))
    assert storage.list_files(storage.join(root, "a"), recursive=True) == [storage.join(root, "a", "b", "two")]
    storage.remove_folder(storage.join(root, "a"))
    storage.remove_folder(storage.join(root, "a"))
    assert storage.folders(root) == ["c"]


def test_a_place_has_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    for spelling in ("b", "./b/", "b//.", "../a/b", f"{tmp_path}/link/b", f"{tmp_path}//a/x/../b"):
        assert storage.absolute(spelling) == str(tmp_path / "a/b")
    for spelling in ("s3://b/k/x", "s3://b/k//x/", "s3://b/./k/y/../x", "s3://b//k/x"):
        assert storage.absolute(spelling) == "s3://b/k/x"
    assert storage.absolute("s3://b") == storage.absolute("s3://b/") == "s3://b"
    assert storage.holds("s3://b/", "s3://b/k")
    assert storage.holds(".", f"{tmp_path}/link/b")
    assert storage.holds("/", "b")
    assert not storage.holds("b", ".")
    assert not storage.holds("s3://b/k", "s3://b/kk")
    assert not storage.holds("s3://b/k", "b/k")


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for spell in (storage.absolute, storage.rooted, storage.require_folder):
        with pytest.raises(InputError, match="'x': the working directory is no longer there; go to another"):
            spell("x")
        spell(str(tmp_path / "x"))
        storage.rooted("s3://bucket/x")


def test_a_name_with_brackets_is_meant_where_it_is_there(root: str) -> None:
    for name in ("a[1].bin", "a1.bin", "b1.bin", "c[1]/x.bin", "c1/x.bin"):
        storage.write_atomic(storage.join(root, name), b"x")
    assert storage.glob(storage.join(root, "a[1].bin")) == [storage.join(root, "a[1].bin")]
    assert storage.glob(storage.join(root, "a[[]1].bin")) == [storage.join(root, "a[1].bin")]
    assert storage.glob(storage.join(root, "b[1].bin")) == [storage.join(root, "b1.bin")]
    assert storage.glob(storage.join(root, "c[1]", "x.bin")) == [storage.join(root, "c[1]", "x.bin")]
    assert [storage.name(uri) for uri in storage.glob(storage.join(root, "a*.bin"))] == ["a1.bin", "a[1].bin"]
    if not storage.is_s3(root):
        assert storage.glob(storage.join(root, "c[1]", "*.bin")) == [storage.join(root, "c[1]", "x.bin")]


def test_an_absent_folder_is_empty(root: str) -> None:
    assert storage.list_files(storage.join(root, "none")) == []
    assert storage.sizes(storage.join(root, "none")) == {}


def test_of_many_writers_one_wins(root: str) -> None:
    uri = storage.join(root, "record.json")
    won: list[int] = []
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        if storage.put_if_absent(uri, f"writer {number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes(uri) == f"writer {won[0]}".encode()
    assert storage.sizes(root) == {"record.json": 8}


def test_commit_moves_a_finished_file(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "data.bin")
    storage.make_folder(root)
    temporary = storage.local_temporary(uri)
    Path(temporary).write_bytes(b"x" * (9 << 20))
    storage.commit_file(temporary, uri)
    assert storage.sha256_file(uri) == hashlib.sha256(b"x" * (9 << 20)).hexdigest()
    assert not Path(temporary).exists()


def test_what_is_missing_is_said_in_one_sentence(root: str) -> None:
    with pytest.raises(InputError, match=r"none\.bin: no such file"):
        storage.read_bytes(storage.join(root, "none.bin"))


def test_a_large_file_is_refused_before_reading(root: str) -> None:
    storage.write_atomic(storage.join(root, "big"), b"x" * 100)
    with pytest.raises(InputError, match="100 bytes, more than the 10"):
        storage.read_bytes(storage.join(root, "big"), limit=10)


def test_an_unknown_kind_of_place() -> None:
    with pytest.raises(InputError, match="use a local path or s3://BUCKET/KEY"):
        storage.read_bytes("ftp://host/file")


@pytest.mark.parametrize(
    "place", ["s3:/bucket/x", "s3:bucket", "s3:", "s3://", "s3:///x", "exp:1", "gs://b/x", "file:///tmp/x"]
)
def test_a_place_that_looks_like_a_uri_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Wherever it is given; nothing is created on the way."""
    monkeypatch.chdir(tmp_path)
    acts = (
        storage.read_bytes, storage.make_folder, storage.list_files, storage.glob, storage.absolute, storage.require_folder,
        storage.sha256_file, lambda uri: storage.write_atomic(storage.join(uri, "x"), b""),
        lambda uri: storage.put_if_absent(uri, b""), lambda uri: storage.commit_file("none", uri),
    )  # fmt: skip
    for act in acts:
        if act is storage.make_folder and place.startswith("s3://"):
            continue  # there is none to make
        with pytest.raises(
            InputError,
            match=r"unknown kind of place; use a local path or s3|no bucket; write s3|is a bucket, not a file",
        ):
            act(place)
    assert list(tmp_path.iterdir()) == []


def test_a_local_name_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"or s3://BUCKET/KEY, \./exp:1 for a file of this name"):
        storage.write_atomic("exp:1", b"x")
    for name in ("./exp:1", "a/exp:1", str(tmp_path / "b:c"), "x:1", "1a:2"):
        storage.write_atomic(name, b"x")
        assert storage.read_bytes(name) == b"x"
        assert storage.size(name) == 1


def test_a_folder_to_write_to_is_told_before_it_is_made(root: str) -> None:
    storage.require_folder(storage.join(root, "new", "folder"))
    storage.write_atomic(storage.join(root, "file"), b"x")
    storage.require_folder(root)
    with pytest.raises(InputError, match="file: is a file, not a folder; choose another output"):
        storage.require_folder(storage.join(root, "file"))
    if not storage.is_s3(root):
        with pytest.raises(InputError, match="a part of the path is a file, not a folder"):
            storage.require_folder(storage.join(root, "file", "below"))
    assert [storage.name(uri) for uri in storage.list_files(root, recursive=True)] == ["file"]


def test_a_folder_for_a_file(tmp_path: Path) -> None:
    for act in (
        storage.read_bytes,
        storage.read_text,
        storage.sha256_file,
        lambda uri: storage.write_atomic(uri, b"x"),
    ):
        with pytest.raises(InputError, match="is a folder, not a file; name a file"):
            act(str(tmp_path / "."))
    assert list(tmp_path.parent.glob(f"{storage.TEMPORARY_MARK}*")) == []


def test_a_long_name(tmp_path: Path) -> None:
    """As long as a disk takes it, and longer."""
    for name in ("x" * 251 + ".bin", "ж" * 125 + ".bin", "😀" * 62 + ".bin"):
        place = str(tmp_path / name)
        storage.write_atomic(place, b"x")
        storage.remove_file(place)
        assert storage.put_if_absent(place, b"x")
        temporary = storage.local_temporary(place)
        assert temporary.endswith(name[-20:])
        Path(temporary).write_bytes(b"y")
        storage.commit_file(temporary, place)
        assert storage.read_bytes(place) == b"y"
    for act in (
        storage.read_bytes, storage.exists, storage.list_files, storage.make_folder, storage.require_folder,
        lambda uri: storage.write_atomic(uri, b""), lambda uri: storage.put_if_absent(uri, b""),
    ):  # fmt: skip
        with pytest.raises(InputError, match="xxx: the name is too long; choose a shorter one"):
            act(str(tmp_path / ("x" * 300)))


def test_a_link_that_leads_nowhere_is_no_output(tmp_path: Path) -> None:
    """A disk that is not mounted, perhaps: nothing is made in its place."""
    (tmp_path / "link").symlink_to("absent")
    (tmp_path / "circle").symlink_to("circle")
    for place in ("link", "link/below", "circle", "circle/below"):
        for act in (storage.require_folder, storage.make_folder):
            with pytest.raises(InputError, match=r"leads nowhere; mend it|lead in a circle; mend them|no such file"):
                act(str(tmp_path / place))
    with pytest.raises(InputError, match="below: a link in this path leads nowhere; mend it or choose another output"):
        storage.require_folder(str(tmp_path / "link" / "below"))
    with pytest.raises(InputError, match="circle: its links lead in a circle"):
        storage.write_atomic(str(tmp_path / "circle"), b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "link"]


def test_an_empty_name_is_no_place() -> None:
    for act in (storage.read_bytes, storage.make_folder, storage.absolute, lambda uri: storage.write_atomic(uri, b"")):
        with pytest.raises(InputError, match="'': is no place; name a file or a folder"):
            act("")


def test_a_pipe_for_an_input(tmp_path: Path) -> None:
    """As a shell makes of <(...), and one that nobody writes to: to open it would take for ever."""
    os.mkfifo(tmp_path / "pipe")
    ours, theirs = os.pipe()
    os.write(theirs, b"x")
    for place in (f"/dev/fd/{ours}", str(tmp_path / "pipe")):
        for look in (
            storage.read_bytes,
            storage.read_text,
            storage.sha256_file,
            storage.size,
            storage.exists,
            storage.require_folder,
        ):
            with pytest.raises(InputError, match=f"{place}: is a pipe or a device; name a place on a disk"):
                look(place)
    os.close(ours)
    os.close(theirs)


def test_what_is_replaced_keeps_its_rights_and_its_links(tmp_path: Path) -> None:
    file, link, folder = tmp_path / "a" / "file", tmp_path / "link", tmp_path / "a"
    folder.mkdir()
    file.write_bytes(b"old")
    file.chmod(0o600)
    link.symlink_to("a/file")
    storage.write_atomic(str(link), b"new")
    assert link.is_symlink()
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"new", 0o600)
    file.unlink()
    storage.write_atomic(str(link), b"newer")  # a link to what is not there yet
    assert link.is_symlink()
    assert file.read_bytes() == b"newer"
    assert sorted(tmp_path.rglob("*")) == [folder, file, link]


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        before = sorted((path.name, path.lstat().st_ino) for path in tmp_path.iterdir())
        for name, _ in before:
            with pytest.raises(InputError, match=f"{name}: is a pipe or a device; name a place on a disk"):
                storage.write_atomic(str(tmp_path / name), b"x")
    assert sorted((path.name, path.lstat().st_ino) for path in tmp_path.iterdir()) == before


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file"):
        storage.write_atomic(str(tmp_path / "file" / "inner"), b"")


def test_a_full_disk_is_said() -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    with (
        open("/dev/full", "wb", buffering=0) as sink,
        pytest.raises(RunError, match="cannot write"),
        storage.plain_errors("/dev/full", "write"),
    ):
        sink.write(b"x")


@contextlib.contextmanager
def limit(kind: int, value: int) -> Iterator[None]:
    """This process has less of something for a while."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@pytest.mark.parametrize("write", [storage.write_atomic, storage.put_if_absent])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, write: Callable[[str, bytes], object]) -> None:
    with (
        limit(resource.RLIMIT_FSIZE, 1000),
        pytest.raises(
            RunError, match=r"cannot write \(File too large\); raise the limit of a file's size \(ulimit -f\)"
        ),
    ):
        write(str(tmp_path / "file"), b"x" * 2000)
    assert list(tmp_path.iterdir()) == []


def test_importing_storage_does_not_import_boto3() -> None:
    code = "import sys, pipeline.contracts.storage; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_limit_of_open_files_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    storage.read_bytes(str(tmp_path / "a"))  # what is imported on the way is imported
    with limit(resource.RLIMIT_NOFILE, 0), pytest.raises(RunError) as raised:
        storage.read_bytes(str(tmp_path / "a"))
    assert "Too many open files" in str(raised.value)
    assert str(raised.value).endswith("raise the limit of open files (ulimit -n)")


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.jpg").write_bytes(b"x")
    folder = str(tmp_path)
    for look in (
        storage.list_files,
        storage.sizes,
        storage.folders,
        lambda place: storage.list_files(place, recursive=True),
    ):
        with pytest.raises(InputError, match=r"caf.xe9\.jpg' in it is no UTF-8; rename or move that file"):
            look(folder)


NO_NAMES = {
    "a\0b": r"'a\\x00b': a NUL character is in it, which no name holds; check the path",
    "s3://bucket/a\0b": "a NUL character is in it",
    "caf\udce9": r"'caf\\udce9': the name is no UTF-8; give it another",
    "s3://bucket/caf\udce9": "the name is no UTF-8",
}


@pytest.mark.parametrize("place", NO_NAMES)
def test_a_place_that_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    acts = (
        storage.read_bytes, storage.make_folder, storage.list_files, storage.glob, storage.absolute, storage.require_folder,
        storage.sha256_file, lambda uri: storage.list_files(uri, recursive=True), lambda uri: storage.write_atomic(uri, b""),
        lambda uri: storage.put_if_absent(uri, b""), lambda uri: storage.commit_file("none", uri), storage.remove_file,
    )  # fmt: skip
    for act in acts:
        with pytest.raises(InputError, match=NO_NAMES[place]):
            act(place)
    assert list(tmp_path.iterdir()) == []


LOCALES = ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C.UTF-8"})
LISTS = """
import sys
from pipeline.contracts import errors, storage
try:
    print(len(storage.list_files(sys.argv[1], recursive=True)))
except errors.InputError as error:
    print(ascii(str(error)))
"""


@pytest.mark.parametrize("place", ["größe", ""])
def test_names_that_the_locale_cannot_spell(tmp_path: Path, place: str) -> None:
    """Neither given nor found below what is given."""
    (tmp_path / "größe" / "below").mkdir(parents=True)
    (tmp_path / "größe" / "below" / "file").write_bytes(b"x")
    said = [
        subprocess.run(
            [sys.executable, "-c", LISTS, str(tmp_path / place)],
            env=os.environ | locale,
            check=True,
            capture_output=True,
        ).stdout.decode()
        for locale in LOCALES
    ]
    assert "the locale spells names in ascii, not in UTF-8; set PYTHONUTF8=1" in said[0]
    assert said[1] == "1\n"
