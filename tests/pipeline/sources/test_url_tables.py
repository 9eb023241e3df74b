"""URL tables in every format, whole and broken: the same rows from each, and nothing that vanishes."""

import csv
import gzip
import io
import json
import os
import resource
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import boto3
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import CANDIDATE_SCHEMA, REJECTED_SCHEMA, uid
from pipeline.sources import formats, streams
from pipeline.sources.files import SOURCE_SCHEMA, Row, SourceFile, SourcesConfig, expand, table_of
from pipeline.sources.rows import candidates
from pipeline.sources.url_tables import columns, count_rows, read, scan

_ROWS: list[tuple[str | None, str | None]] = [
    (f"http://example.org/{number}.jpg", caption)
    for number, caption in enumerate(
        ["a dog", 'says "hi", twice', "红色的狗", "two\nlines", "", "tab\there", "é" * 50] * 7
    )
]


def _packed(name: str, data: bytes) -> bytes:
    """In two members or frames, one after the other, as `cat` joins compressed files."""
    halves = (data[: len(data) // 2], data[len(data) // 2 :])
    if name.endswith(".gz"):
        return b"".join(gzip.compress(half) for half in halves)
    if name.endswith(".zst"):
        return b"".join(pa.Codec("zstd").compress(half, asbytes=True) for half in halves)
    return data


def _write(
    folder: Path, name: str, rows: list[tuple[str | None, str | None]], names: tuple[str, str] = ("URL", "TEXT")
) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[1]
    if kind == "parquet":
        table = pa.table({"id": range(len(rows)), names[1]: [c for _, c in rows], names[0]: [u for u, _ in rows]})
        pq.write_table(table, path, row_group_size=10)
        return path
    text = io.StringIO(newline="")
    if kind == "csv":
        csv.writer(text).writerows([("id", *names), *((number, *row) for number, row in enumerate(rows))])
    elif kind == "tsv":
        text.writelines("\t".join(map(str, row)) + "\n" for row in [names, *rows])
    elif kind == "json":
        json.dump([{names[0]: url, names[1]: caption} for url, caption in rows], text, indent=2)
    elif kind == "jsonl":
        text.writelines(json.dumps({names[0]: url, names[1]: caption}) + "\n" for url, caption in rows)
    else:
        text.writelines(f"{url}\n" for url, _ in rows)
    data = text.getvalue().encode()
    path.write_bytes(_packed(name, data))
    return path


def _config(*paths: Path | str, **values: object) -> SourcesConfig:
    return SourcesConfig.model_validate({"paths": [str(path) for path in paths], **values})


def _one(path: Path, **values: object) -> tuple[SourceFile, SourcesConfig]:
    config = _config(path, **values)
    (file,) = expand(config)
    return file, config


@pytest.mark.parametrize(
    "name",
    [
        "t.parquet", "t.csv", "t.csv.gz", "t.csv.zst", "t.tsv", "t.tsv.gz", "t.tsv.zst", "t.json", "t.json.gz", "t.json.zst",
        "t.jsonl", "t.JSONL.gz", "t.jsonl.zst", "t.txt", "t.txt.gz", "t.txt.zst",
    ],
)  # fmt: skip
def test_every_format_gives_the_same_rows_whole_and_in_ranges(tmp_path: Path, name: str) -> None:
    plain = ".tsv" in name  # a tab-separated table cannot hold tabs and line breaks
    rows = [(url, " ".join((caption or "").split()) if plain else caption) for url, caption in _ROWS]
    path = _write(tmp_path, name.replace("JSONL", "jsonl"), rows)
    if "JSONL" in name:
        path = path.rename(tmp_path / name)
    file, config = _one(path)
    table = read(file, config)
    expected = [(url, None if ".txt" in name else caption) for url, caption in rows]
    assert list(zip(table["url"].to_pylist(), table["caption_raw"].to_pylist(), strict=True)) == expected
    assert table["source"].to_pylist() == [f"{name}#{number}" for number in range(len(rows))]
    assert table["problem"].null_count == len(rows) == count_rows(file, config)
    for start, stop in ((0, 5), (7, 23), (20, 30), (48, 99), (60, 70)):
        assert read(file, config, range(start, stop)).equals(table.slice(start, stop - start).combine_chunks())
    pieces = list(scan(file, config, 20))
    assert [piece.num_rows for piece in pieces] == [20, 20, 9]
    assert pa.concat_tables(pieces).combine_chunks().equals(table.combine_chunks())


@contextmanager
def _calls() -> Iterator[Counter[str]]:
    """How often each Python function is called inside."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls[frame.f_code.co_name] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def test_only_a_units_own_rows_of_a_row_group_become_python_objects(tmp_path: Path) -> None:
    rows = 3 * formats.BATCH_ROWS
    columns_of = {"url": [f"http://e.org/{n}" for n in range(rows)], "caption": ["a dog"] * rows}
    pq.write_table(pa.table(columns_of), tmp_path / "t.parquet")
    assert pq.read_metadata(tmp_path / "t.parquet").num_row_groups == 1
    file, config = _one(tmp_path / "t.parquet")
    for start in (0, formats.BATCH_ROWS - 50, rows - 100):
        with _calls() as calls:
            table = read(file, config, range(start, start + 100))
        assert table["url"].to_pylist() == columns_of["url"][start : start + 100]
        assert calls["checked"] == 100
        assert calls["_texts"] == (4 if start == formats.BATCH_ROWS - 50 else 2)  # two columns of each batch it lies in


def test_a_whole_text_file_is_held_as_columns_and_not_as_objects(tmp_path: Path) -> None:
    rows = 6 * formats.BATCH_ROWS
    path = tmp_path / "t.tsv"
    path.write_text("url\tcaption\n" + "".join(f"http://e.org/{n}\ta dog {n}\n" for n in range(rows)))
    file, config = _one(path)
    read(file, config, range(10))  # what is loaded at the first use is not counted
    tracemalloc.start()
    try:
        kept, rejected = candidates(read(file, config), config)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (kept.num_rows, rejected.num_rows) == (rows, 0)
    # Arrow's memory is not traced. A batch as Python objects takes about 3 MB; the six of the file take more than 12.
    assert peak < 8_000_000


def test_names_do_not_depend_on_the_place(tmp_path: Path) -> None:
    for place in ("here", "else/where/deep"):
        for name in ("b.csv", "a/x.parquet", "a/y.txt.gz"):
            _write(tmp_path / place, name, _ROWS[:3])
        (tmp_path / place / "_SUCCESS").write_text("")
    found = [expand(_config(tmp_path / place)) for place in ("here", "else/where/deep")]
    assert [[file.name for file in files] for files in found] == [["a/x.parquet", "a/y.txt.gz", "b.csv"]] * 2
    files = expand(
        _config(tmp_path / "here" / "a" / "*", tmp_path / "here/a/x.parquet", f"{tmp_path}/here/**/*.parquet")
    )
    assert [file.name for file in files] == ["x.parquet", "y.txt.gz"]
    assert expand(_config(os.path.relpath(tmp_path / "here" / "b.csv")))[0] == SourceFile(
        str(tmp_path / "here" / "b.csv"),
        "b.csv",
        "table",
    )


def test_sources_of_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InputError, match=r"'x\.csv': the working directory is no longer there"):
        expand(SourcesConfig(paths=["x.csv"]))


def test_sources_whose_names_have_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_endpoint: str) -> None:
    """The file and the folder that are there, not those that the name would match as a pattern."""
    assert s3_endpoint
    boto3.client("s3").create_bucket(Bucket="brackets")
    for name in ("a[1].csv", "a1.csv", "g[1]/x.csv", "g1/y.csv"):
        storage.write_atomic(f"s3://brackets/{name}", _write(tmp_path, name, _ROWS[:1]).read_bytes())
    for root in (str(tmp_path), "s3://brackets"):
        for place, uris in (("a[1].csv", ["a[1].csv"]), ("g[1]", ["g[1]/x.csv"]), ("a[0-9].csv", ["a1.csv"])):
            assert [file.uri for file in expand(SourcesConfig(paths=[f"{root}/{place}"]))] == [
                f"{root}/{uri}" for uri in uris
            ]
    monkeypatch.chdir(tmp_path / "g[1]")
    for place in ("*.csv", "x.csv", "."):
        assert [file.uri for file in expand(SourcesConfig(paths=[place]))] == [str(tmp_path / "g[1]" / "x.csv")]


def test_an_object_store_gives_the_same_rows(tmp_path: Path, s3_endpoint: str) -> None:
    assert s3_endpoint
    boto3.client("s3").create_bucket(Bucket="tables")
    for name in ("x/b.csv.gz", "x/a/x.parquet", "x/a/y.jsonl"):
        storage.write_atomic(f"s3://tables/{name}", _write(tmp_path, name, _ROWS).read_bytes())
    here, there = _config(tmp_path), _config("s3://tables/x/**/*")
    assert [file.name for file in expand(there)] == ["a/x.parquet", "a/y.jsonl", "b.csv.gz"]
    assert [file.name for file in expand(_config("s3://tables/x"))] == [file.name for file in expand(there)]
    for local, remote in zip(expand(here), expand(there), strict=True):
        assert read(remote, there, range(20, 30)).equals(read(local, here, range(20, 30)))
    with pytest.raises(InputError, match="no file, folder or pattern"):
        expand(_config("s3://tables/absent.csv"))


def test_columns_are_recognised_named_or_numbered(tmp_path: Path) -> None:
    file, config = _one(_write(tmp_path, "a.csv", _ROWS[:2], ("Image_URL", "alt")))
    assert columns(file, config) == ("Image_URL", "alt")
    file, config = _one(
        _write(tmp_path, "b.csv", _ROWS[:2], ("where", "what")), url_column="where", caption_column="what"
    )
    assert read(file, config)["url"].to_pylist() == [url for url, _ in _ROWS[:2]]
    bare = tmp_path / "bare.tsv"
    bare.write_text(
        'a dog\thttp://example.org/1\nits "tail"\thttp://example.org/2\n\n"a ""b"""\thttp://example.org/3\n'
    )
    file, config = _one(bare, column_names=["caption", "url"])
    assert read(file, config)["caption_raw"].to_pylist() == ["a dog", 'its "tail"', 'a "b"']


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_bad_lines_are_rows_with_a_problem(tmp_path: Path) -> None:
    good = b"http://example.org/1,a dog\r\n"
    table = _bytes(
        tmp_path / "t.csv",
        b"\xef\xbb\xbfurl,caption\n" + good + b"one field\n" + b'"open"x,b\n' + b"http://e.org/\xff,latin\n" + good
        + b'http://e.org/,"never closed\n' + b"x" * 300_000 + b"\n" + good,
    )  # fmt: skip
    file, config = _one(table)
    rows = read(file, config)
    assert rows["url"].to_pylist().count("http://example.org/1") == 3
    problems = [problem for problem in rows["problem"].to_pylist() if problem]
    assert [problem.split()[0] for problem in problems[:3]] == ["1", "csv:", "url"]
    assert len(problems) >= 4
    lines = [b'{"url": "http://e.org/1", "text": "a"}', b"{broken", b"[1]", b'{"url": 7, "text": "a"}', b'{"url": "http://e.org/1"}',
             b'{"url": "http://e.org/\\ud800", "text": "a"}', b"", b"[" * 100_000, b'{"url": "' + b"y" * (1 << 20) + b'"}']  # fmt: skip
    file, config = _one(_bytes(tmp_path / "t.jsonl", b"\n".join(lines)))
    rows = read(file, config)
    assert [problem is None for problem in rows["problem"].to_pylist()] == [
        True,
        False,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    kept, rejected = candidates(rows, config)
    assert Counter(rejected["reason"].to_pylist()) == {"bad_row": 6, "no_caption": 1}
    assert (kept.num_rows, rejected.num_rows) == (1, 7)


def test_elements_of_an_array_are_those_of_the_json_module(tmp_path: Path) -> None:
    """Strings with brackets, quotes and escapes; nested values; chunks of every length against the edges of the reader's own."""
    odd = ['a "b" [c] {d}, e', "\\", '\\"', "}{", "]", "", "tab\t", "狗,🐕", "x" * 70_000]
    rows = [
        {"url": f"http://e.org/{n}", "text": odd[n % len(odd)], "more": [{"a": [n, odd[n % 7]]}, None]}
        for n in range(300)
    ]
    for number, text in enumerate((json.dumps(rows), json.dumps(rows, ensure_ascii=False, indent=1))):
        path = _bytes(tmp_path / f"{number}.json", (" " * number + text + "\n\n").encode())
        with streams.open_text(str(path)) as stream:
            found = list(streams.array_elements(stream, str(path)))
        assert [json.loads(element or "") for element in found] == json.loads(text)


def test_bad_elements_of_an_array_are_rows_with_a_problem(tmp_path: Path) -> None:
    good = b'{"url": "http://e.org/1", "text": "a dog"}'
    long = b'{"url": "http://e.org/2", "text": "' + b"y,]}" * (1 << 19) + b'"}'
    elements = [
        good,
        b"7",
        b"{broken}",
        b"",
        b'{"url": 7, "text": "a"}',
        long,
        b'{"url": "\xff"}',
        b"[" * 9 + b"]" * 9,
        good,
    ]
    rows = read(*_one(_bytes(tmp_path / "t.json", b"[" + b" ,\n".join(elements) + b"]")))
    problems = rows["problem"].to_pylist()
    assert [problem is None for problem in problems] == [True, *[False] * 7, True]
    assert "longer than" in problems[5]
    assert problems[6] == "url is not UTF-8"


def test_a_long_array_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.json.zst"
    element = b'{"url": "http://example.org/%d.jpg", "text": "' + b"a dog " * 80 + b'"},\n'
    with pa.CompressedOutputStream(str(path), "zstd") as sink:
        sink.write(b"[")
        for start in range(0, 60_000, 1000):
            sink.write(b"".join(element % number for number in range(start, start + 1000)))
        sink.write(b'{"url": "http://example.org/", "text": "the last"}]')
    file, config = _one(path)
    next(scan(file, config, 10))  # what is loaded at the first use is not counted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(table.num_rows for table in scan(file, config)) == 60_001
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # kB; the file holds 33 MB


@pytest.mark.parametrize("after", [3, 5000])
@pytest.mark.parametrize("quoted_later", [True, False])
def test_a_quote_that_is_not_closed_costs_its_own_row(tmp_path: Path, after: int, quoted_later: bool) -> None:
    """Fields with line breaks before and after it are whole, and every other line is a row."""
    caption = '"two\nlines, ""quoted"""' if quoted_later else "plain"
    good = [f"http://e.org/{number},{caption}\n" for number in range(after)]
    lines = ["url,caption\n", good[0], 'http://e.org/stray,"never closed\n', *good]
    file, config = _one(_bytes(tmp_path / "t.csv", "".join(lines).encode()))
    rows = read(file, config)
    problems = [problem for problem in rows["problem"].to_pylist() if problem]
    assert len(problems) == 1
    assert problems[0].startswith("csv: ")
    expected = [f"http://e.org/{number}" for number in [0, *range(after)]]
    assert [url for url in rows["url"].to_pylist() if url] == expected
    captions = {text for text in rows["caption_raw"].to_pylist() if text}
    assert captions == {'two\nlines, "quoted"' if quoted_later else "plain"}
    assert count_rows(file, config) == after + 2


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz"])
@pytest.mark.parametrize("names", [(), ("url", "caption")])
def test_lines_that_end_with_a_carriage_return_alone(tmp_path: Path, name: str, names: tuple[str, ...]) -> None:
    """img2dataset reads them with pyarrow's reader, which is asked here too."""
    separator = "\t" if ".tsv" in name else ","
    texts = ["a dog", *([] if ".tsv" in name else ["two\rlines", "two\nlines"]), "a cat"]
    lines = [f'"http://e.org/{number}"{separator}"{text}"' for number, text in enumerate(texts)]
    data = "\r".join([f"url{separator}caption", *lines, ""][len(names) // 2 :]).encode()
    twin = pyarrow.csv.read_csv(
        io.BytesIO(data),
        read_options=pyarrow.csv.ReadOptions(column_names=names or None),
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
    )
    assert twin["caption"].to_pylist() == texts
    path = _bytes(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    found = read(*_one(path, column_names=names))
    assert (found["url"].to_pylist(), found["caption_raw"].to_pylist()) == (twin["url"].to_pylist(), texts)


def test_a_carriage_return_inside_a_field_is_text(tmp_path: Path) -> None:
    data = b'url,caption\nhttp://e.org/0,"one\rtwo\rthree\r"\nhttp://e.org/1,four\r\n'
    assert read(*_one(_bytes(tmp_path / "t.csv", data)))["caption_raw"].to_pylist() == ["one\rtwo\rthree\r", "four"]
    data = b"url\tcaption\nhttp://e.org/0\tone\rtwo\nhttp://e.org/1\tfour\n"
    assert read(*_one(_bytes(tmp_path / "t.tsv", data)))["caption_raw"].to_pylist() == ["one\rtwo", "four"]
    many = b"url\tcaption\r" + b"http://e.org/0\t" + b"x" * (1 << 20) + b"\rhttp://e.org/1\tfour\r"
    found = read(*_one(_bytes(tmp_path / "t.tsv", many)))
    assert found["caption_raw"].to_pylist() == [None, "four"]


def test_csv_lines_that_are_too_long_and_quotes_on_every_line(tmp_path: Path) -> None:
    """Each bad line is one bad row; the file is read in time and memory that do not grow with its square."""
    stray = [f'"http://e.org/{number}""" , x\n' for number in range(3000)]
    text = "url,caption\n" + 'http://e.org/long,"' + "x" * (3 << 20) + "\n" + "".join(stray) + "http://e.org/1,good\n"
    rows = read(*_one(_bytes(tmp_path / "t.csv", text.encode())))
    assert rows.num_rows == 1 + len(stray) + 1
    assert [url for url in rows["url"].to_pylist() if url] == ["http://e.org/1"]
    assert "longer than" in rows["problem"][0].as_py()


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("t.parquet", b"not parquet at all", "not a parquet file"),
        ("t.parquet", b"", "the file is empty"),
        ("t.txt", b"", "the file is empty"),
        ("t.csv", b"\n\n", "no header line"),
        ("t.csv", b"a,b\n1,2\n", "no column is called url"),
        ("t.csv", b"url,b\n1,2\n", "no column is called caption"),
        ("t.csv", b"url,URL,text\n1,2,3\n", "could both be meant"),
        ("t.tsv.gz", b"not gzip", "corrupt gzip"),
        ("t.tsv.gz", gzip.compress(b"url\ttext\n" + b"a\tb\n" * 90_000)[:200], "corrupt gzip"),
        ("t.tsv.zst", b"not zstd", "corrupt zstd"),
        (
            "t.tsv.zst",
            pa.Codec("zstd").compress(b"url\ttext\n" + b"a\tb\n" * 90_000, asbytes=True)[:-9],
            "corrupt zstd",
        ),
        ("t.jsonl", b"nothing\nhere\n", "none of the first lines is a JSON object"),
        ("t.json", b"nothing\nhere\n", "not a JSON array"),
        ("t.json", b'{"url": {"0": "http://e.org"}}', "not a JSON array"),
        ("t.json", b" \n", "not a JSON array"),
        ("t.json", b"[]", "none of the first elements"),
        ("t.json", b"[1, 2, 3]", "none of the first elements"),
        ("t.json", b'[{"url": "http://e.org/", "text": "a"}, {"url"', "not closed"),
        ("t.json", b'[{"url": "http://e.org/", "text": "a"}] [', "something follows"),
    ],
)
def test_a_useless_file_is_named_in_one_sentence(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    file, config = _one(_bytes(tmp_path / name, data))
    with pytest.raises(InputError, match=sentence) as raised:
        read(file, config)
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_useless_places_and_columns(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, sentence in (("empty", "in folder"), ("absent.csv", "no file, folder"), ("*.csv", "nothing matches")):
        with pytest.raises(InputError, match=sentence):
            expand(_config(tmp_path / place))
    with pytest.raises(InputError, match=r"sources\.paths: a path is empty; write a file, a folder or a pattern"):
        expand(SourcesConfig(paths=[""]))
    with pytest.raises(InputError, match="ends in none of"):
        expand(_config(_bytes(tmp_path / "t.xlsx", b"x")))
    pq.write_table(pa.table({"url": [1], "caption": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="'url' holds int64"):
        columns(*_one(tmp_path / "t.parquet"))
    with pytest.raises(InputError, match=r"no column .link.; set sources\.url_column"):
        columns(*_one(tmp_path / "t.parquet", url_column="link"))


def test_parquet_damaged_inside_and_other_text_types(tmp_path: Path) -> None:
    path = _write(tmp_path, "t.parquet", [(f"http://e.org/{n}", os.urandom(200).hex()) for n in range(2000)])
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 3000] = b"\0" * 3000
    with pytest.raises(InputError, match=r"corrupt parquet|not a parquet"):
        read(*_one(_bytes(tmp_path / "damaged.parquet", bytes(data))))
    urls = pa.array(["http://e.org/1", None, "http://e.org/1"]).dictionary_encode()
    captions = pa.array([b"ok", b"\xff", b"ok"], pa.binary()).view(pa.string()).cast(pa.large_string())
    pq.write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "types.parquet")
    rows = read(*_one(tmp_path / "types.parquet"))
    assert rows["url"].to_pylist() == ["http://e.org/1", None, "http://e.org/1"]
    assert rows["problem"].to_pylist() == [None, "caption is not UTF-8", None]


_VERDICTS: list[tuple[str | None, str | None, str | None]] = [
    ("http://example.org/a.jpg", "a dog", None),
    ("  https://example.org/a b.jpg ", "a dog", None),
    ("HTTP://EXAMPLE.ORG/x", "a dog", None),
    ("http://例え.jp/é", "a dog", None),
    ("http://[::1]:8000/x", "a dog", None),
    (None, "a dog", "bad_url"),
    ("", "a dog", "bad_url"),
    ("UNLIKELY", "a dog", "bad_url"),
    ("//example.org/x", "a dog", "bad_url"),
    ("http://", "a dog", "bad_url"),
    ("http:///path", "a dog", "bad_url"),
    ("http://[::1", "a dog", "bad_url"),
    ("http://example.org:99999/", "a dog", "bad_url"),
    ("http://example.org:x/", "a dog", "bad_url"),
    ("http://example.org/a\nHost: evil", "a dog", "bad_url"),
    ("http://example.org/" + "a" * 5000, "a dog", "bad_url"),
    ("file:///etc/passwd", "a dog", "scheme"),
    ("data:image/png;base64,AAAA", "a dog", "scheme"),
    ("ftp://example.org/x", "a dog", "scheme"),
    ("javascript:alert(1)", "a dog", "scheme"),
    ("http://example.org/x", None, "no_caption"),
    ("http://example.org/x", " \n", "no_caption"),
    ("http://example.org/x", "é" * 5000, "caption_too_long"),
]


def test_candidates_accounts_for_every_row() -> None:
    table = table_of(Row(url, caption, None, f"t#{number}") for number, (url, caption, _) in enumerate(_VERDICTS))
    assert table.schema == SOURCE_SCHEMA
    rows, rejected = candidates(table, _config("t.csv"))
    assert rows.schema == CANDIDATE_SCHEMA
    assert rejected.schema == REJECTED_SCHEMA
    found = dict.fromkeys(rows["source"].to_pylist()) | dict(
        zip(rejected["source"].to_pylist(), rejected["reason"].to_pylist(), strict=True)
    )
    assert found == {f"t#{number}": row[2] for number, row in enumerate(_VERDICTS)}
    assert rows.num_rows + rejected.num_rows == len(_VERDICTS)
    for row in rows.to_pylist():
        assert row["uid"] == uid(row["url"], row["caption_raw"])
    assert rows["url"][1].as_py() == "https://example.org/a b.jpg"


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_over_long_texts_are_not_held_and_are_rejected(tmp_path: Path, name: str) -> None:
    """Spaces must not hide what was cut: behind the limit is more, and it is too long with or without them."""
    url, caption = "http://e.org/a.jpg", "a dog"
    table = [
        (url + " " * 500_000 + "b", caption),
        (" " * 500_000 + url, caption),
        (url, caption + " " * 500_000),
        (url + "é" * 4000, caption),
        (url, caption),
    ]
    file, config = _one(_write(tmp_path, name, [*table]))
    rows = read(file, config)
    assert rows.nbytes < 60_000
    kept, rejected = candidates(rows, config)
    assert kept["url"].to_pylist() == [url, url]
    told = {row["source"][-1]: (row["reason"], row["detail"]) for row in rejected.to_pylist()}
    assert told == {
        "0": ("bad_url", "more than 4,096 bytes"),
        "2": ("caption_too_long", "more than 8,192 bytes"),
        "3": ("bad_url", "more than 4,096 bytes"),
    }
    # What was cut has no identity; what was not keeps it.
    assert [row["uid"] is None for row in sorted(rejected.to_pylist(), key=lambda row: row["source"])] == [
        True,
        True,
        False,
    ]


def test_a_long_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as sink:
        sink.write(b"url,text\n")
        for number in range(150):
            sink.write(
                b"".join(b"http://example.org/%d.jpg,%s\n" % (number * 1000 + n, b"a dog " * 80) for n in range(1000))
            )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = sum(table.num_rows for table in scan(*_one(path)))
    assert total == 150_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB; the file holds 78 MB


@pytest.mark.parametrize(
    ("name", "rows", "left"),
    [("laion_10k.parquet", 10_000, 1), ("tate_30k.tsv.gz", 30_000, 0), ("cc3m_val.tsv.gz", 15_833, 0)],
)
def test_real_tables(name: str, rows: int, left: int) -> None:
    folder = Path(os.environ.get("REAL_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
    if not (folder / "tables" / name).exists():
        pytest.skip("real data is absent")
    values: dict[str, object] = {"column_names": ["caption", "url"]} if "cc3m" in name else {}
    file, config = _one(folder / "tables" / name, **values)
    kept, rejected = candidates(read(file, config), config)
    assert (kept.num_rows + rejected.num_rows, rejected.num_rows) == (rows, left)
