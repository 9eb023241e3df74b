"""`zeroshot` and `retrieval` on an exported model: figures against plain torch, files, identity, and the way into the overlap job."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from evaluation.__main__ import main
from evaluation.config import BiasConfig, PromptConfig, ZeroshotConfig
from evaluation.datasets import open_set
from evaluation.overlap.exposure import Training
from evaluation.overlap.splits import read_predictions
from evaluation.prompts import load_prompts, load_templates
from evaluation.scoring import retrieve_set
from pipeline.content.image import decode
from pipeline.content.labelled import LabelledSet, LabelledSetConfig
from pipeline.content.labelled import open_set as open_table
from pipeline.contracts.config import load_config, to_toml
from pipeline.contracts.errors import InputError
from tests.evaluation import exported
from tests.evaluation.datasets.packing import CIFAR_NAMES, cifar10_files, pack
from tests.evaluation.planted import flat, picture
from trainer import export
from trainer.data.transforms import evaluation_pixels, normalise

ROOT_HASH = "ab" * 32
NAMES = ["red_square", "blue circle", "green star"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported tiny model, as random as it was born."""
    folder = tmp_path_factory.mktemp("model")
    exported.tiny(folder, "tiny-vit", NAMES, ROOT_HASH)
    return folder


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Path:
    table = pa.table(
        {
            "image": [picture(k, "evaluation", 1 + k % 3) for k in range(12)],
            "label": pa.array([k % 3 for k in range(12)], pa.int64()),
            "name": [f"a {NAMES[k % 3]} number {k % 2}" if k != 7 else None for k in range(12)],
        }
    )
    pq.write_table(table, tmp_path / "set.parquet")
    settings = {
        "model": str(model),
        "out": str(tmp_path / "out"),
        "batch": 5,
        "sets": [
            {
                "name": "shapes",
                "path": str(tmp_path / "set.parquet"),
                "label": "label",
                "caption": "name",
                "classes": NAMES,
            }
        ],
        "prompts": {"templates": ["a picture of a {}", "one {}"]},
    }
    path = tmp_path / "zeroshot.toml"
    path.write_text(to_toml(ZeroshotConfig.model_validate(settings)), "utf-8")
    return path


def test_zeroshot(config: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zeroshot", "--config", str(config)]) is None
    said = capsys.readouterr().out
    assert "shapes: 12 examples, 3 classes" in said
    assert "chance 33.33%" in said
    net, tokens, card = export.load_model(str(model))
    rows = pq.read_table(tmp_path / "set.parquet").to_pylist()
    with torch.inference_mode():
        pixels = [evaluation_pixels(decode(row["image"]).rgb, card.image_size) for row in rows]
        images = torch.nn.functional.normalize(net.encode_image(normalise(torch.from_numpy(np.stack(pixels)))), dim=-1)
        sentences = [form.format(name.replace("_", " ")) for name in NAMES for form in ("a picture of a {}", "one {}")]
        texts = torch.nn.functional.normalize(net.encode_text(tokens(sentences)), dim=-1)
        classes = torch.nn.functional.normalize(texts.view(3, 2, -1).mean(dim=1), dim=-1)
        expected = (images @ classes.T).argmax(dim=1).tolist()
    table = pq.read_table(tmp_path / "out" / "predictions" / "shapes.parquet")
    assert table["prediction"].to_pylist() == expected
    figures = json.loads((tmp_path / "out" / "zeroshot.json").read_bytes())
    assert figures["model"] == {"content_root": ROOT_HASH, "sha256": card.weights_sha256}
    right = sum(one == row["label"] for one, row in zip(expected, rows, strict=True))
    assert figures["sets"]["shapes"]["top1"]["hits"] == right
    before = (tmp_path / "out" / "zeroshot.json").read_bytes()
    assert main(["zeroshot", "--config", str(config)]) is None
    assert (tmp_path / "out" / "zeroshot.json").read_bytes() == before


def test_predictions_enter_the_overlap_job(config: Path, model: Path, tmp_path: Path) -> None:
    assert main(["zeroshot", "--config", str(config)]) is None
    place = str(tmp_path / "out" / "predictions" / "shapes.parquet")
    one = load_config(ZeroshotConfig, str(config)).sets[0]
    labelled = open_set(one)
    found = read_predictions(place, labelled, "hash")
    assert (found.content_root, found.model) == (ROOT_HASH, export.load_model(str(model))[2].weights_sha256)
    assert found.training == Training(samples_seen=1, seed=0, window_row_groups=512)
    table = pq.read_table(place)
    assert found.correct == table["correct"].to_pylist()

    def refused(said: str, changed: pa.Table = table, against: LabelledSet = labelled) -> None:
        pq.write_table(changed, tmp_path / "changed.parquet")
        with pytest.raises(InputError, match=said) as caught:
            read_predictions(str(tmp_path / "changed.parquet"), against, "hash")
        assert "\n" not in str(caught.value)

    def column(name: str, values: pa.Array) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, values)

    refused("is another picture than in the set", against=dataclasses.replace(labelled, sha256=[bytes(32)] * 12))
    refused("is not in the set", against=dataclasses.replace(labelled, ids=[f"x{row}" for row in range(12)]))
    refused("no column 'eval_id'", table.drop_columns(["eval_id"]))
    refused(
        "scored against label 0, in the set it has 2",
        against=dataclasses.replace(labelled, labels=labelled.labels[::-1]),
    )
    refused("on a set of content hash", against=open_set(one.model_copy(update={"classes": ["red", "blue", "green"]})))
    refused("2 of 12 examples have a label and no score, the first is '0'", table.slice(2))
    refused("example '0' comes twice", pa.concat_tables([table, table]))
    refused("example '0' has no outcome", column("correct", pa.array([None, *[True] * 11])))
    refused("'correct' is int64, not bool", column("correct", pa.array([0, 1] * 6)))
    refused("does not say which set was scored", table.replace_schema_metadata({}))
    refused(
        "has a column 'caption' of string, which no predictions have", table.append_column("caption", table["eval_id"])
    )
    refused("has a column 'row' of string", column("row", table["eval_id"]))
    metadata = table.schema.metadata or {}
    refused(
        "has metadata 'notes', which no predictions have", table.replace_schema_metadata({**metadata, b"notes": b"x"})
    )
    refused("samples_seen is '', no number", table.replace_schema_metadata({**metadata, b"samples_seen": b""}))
    older = {key: value for key, value in metadata.items() if key.decode() not in Training(1, 1, 1).metadata()}
    pq.write_table(table.replace_schema_metadata(older), tmp_path / "older.parquet")
    assert read_predictions(str(tmp_path / "older.parquet"), labelled, "hash").training is None
    refused(
        "format version 9", table.replace_schema_metadata({**(table.schema.metadata or {}), b"format_version": b"9"})
    )


def test_retrieval(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retrieval", "--config", str(config), "--check", "caption_template='a photo of {}'"]) is None
    said = capsys.readouterr().out.splitlines()[-1]
    assert "on shapes; captions as 'a photo of {}'; figures in" in said
    assert main(["retrieval", "--config", str(config)]) is None
    assert "shapes: 11 pictures, 6 different captions" in capsys.readouterr().out
    entry = json.loads((tmp_path / "out" / "retrieval.json").read_bytes())["sets"]["shapes"]
    assert (entry["pictures"], entry["without_caption"], entry["captions"]) == (11, 1, 6)
    assert [one["k"] for one in entry["text_to_image"]] == [1, 5, 10]
    assert entry["image_to_text"][2]["value"] == entry["image_to_text"][2]["chance"] == 1.0

    # Each picture a second time with a caption of its own, as COCO has it.
    table = pq.read_table(tmp_path / "set.parquet")
    captions = pa.array([f"again {number}" for number in range(12)])
    again = table.set_column(table.schema.get_field_index("name"), "name", captions)
    pq.write_table(pa.concat_tables([table, again]), tmp_path / "set.parquet")
    main(["retrieval", "--config", str(config)])
    assert "shapes: 12 pictures, 18 different captions, 23 pairs" in capsys.readouterr().out
    entry = json.loads((tmp_path / "out" / "retrieval.json").read_bytes())["sets"]["shapes"]
    assert (entry["pictures"], entry["pairs"], entry["captions"]) == (12, 23, 18)
    assert [entry[direction][0]["n"] for direction in ("image_to_text", "text_to_image")] == [12, 18]
    assert entry["image_to_text"][0]["chance"] == pytest.approx((11 * 2 + 1) / 12 / 18)

    # The rank of every query gives the same recalls, and a query is a row of the set.
    queries = pq.read_table(tmp_path / "out" / "retrieval" / "shapes.parquet").to_pylist()
    told = pq.read_table(tmp_path / "set.parquet").to_pylist()
    for direction in ("image_to_text", "text_to_image"):
        ranks = [query["rank"] for query in queries if query["direction"] == direction]
        for one in entry[direction]:
            assert (one["n"], one["found"]) == (len(ranks), sum(rank < one["k"] for rank in ranks))
    for query in queries:
        row = told[query["row"]]
        assert (query["caption"], query["sha256"]) == (row["name"], hashlib.sha256(row["image"]).digest())
    assert len({query["sha256"] for query in queries if query["direction"] == "image_to_text"}) == 12
    assert len({query["caption"] for query in queries if query["direction"] == "text_to_image"}) == 18

    # A run against itself, as `compare` reads it.
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "out")]) is None
    said = capsys.readouterr().out
    assert "won 0 lost 0 of 18 captions of 12 pictures   p 1, Holm 1" in said
    assert "won 0 lost 0 of 12   p 1, Holm 1" in said


def test_a_dataset_from_its_archive(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CIFAR's own archive and names from a file, twice: the second time from the cache, to the same bytes."""
    archive = pack(cifar10_files(), tmp_path / "cifar", "tar.gz")
    names = tmp_path / "names.toml"
    classes = [[name, f"small {name}"] for name in CIFAR_NAMES]
    names.write_text(f"classes = {json.dumps(classes)}\ntemplates = ['a picture of a {{}}', 'one {{}}']\n", "utf-8")
    one = {"name": "cifar", "path": str(archive), "dataset": "cifar10", "other_counts": True, "prompts": str(names)}
    settings = {"model": str(model), "out": str(tmp_path / "out"), "cache": str(tmp_path / "kept"), "sets": [one]}
    config = tmp_path / "cifar.toml"
    config.write_text(to_toml(ZeroshotConfig.model_validate(settings)), "utf-8")
    main(["zeroshot", "--config", str(config)])
    said = capsys.readouterr().out
    assert "cifar: 3 examples, 10 classes (3 with an example)" in said
    assert "top-1 with shuffled class names:" in said
    before = (tmp_path / "out" / "zeroshot.json").read_bytes()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert len(kept) == 4
    entry = json.loads(before)["sets"]["cifar"]
    assert (entry["dataset"], entry["split"], entry["metric"], entry["n"]) == ("cifar10", "test", "accuracy", 3)
    assert (entry["prompts"]["source"], entry["prompts"]["names"]) == ("names.toml", 20)
    assert entry["prompts"]["sha256"] == load_prompts(str(names)).sha256
    main(["zeroshot", "--config", str(config)])
    assert (tmp_path / "out" / "zeroshot.json").read_bytes() == before
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == kept
    labelled = open_set(load_config(ZeroshotConfig, str(config)).sets[0])
    found = read_predictions(str(tmp_path / "out" / "predictions" / "cifar.parquet"), labelled, "hash")
    assert all(outcome is not None for outcome in found.correct)

    names.write_text(f"classes = {json.dumps(classes[::-1])}\ntemplates = ['one {{}}']\n", "utf-8")
    with pytest.raises(InputError, match=r"class 0 is 'airplane', which is class 9 of prompts 'names\.toml'"):
        main(["zeroshot", "--config", str(config)])
    names.write_text("classes = ['a', 'b']\n", "utf-8")
    with pytest.raises(InputError, match="name 2 classes, the set has 10"):
        main(["zeroshot", "--config", str(config)])
    with pytest.raises(InputError, match=r"3 examples where CIFAR-10, split 'test', has 10,000 .paper."):
        main(
            [
                "zeroshot",
                "--config",
                str(config),
                f"sets=[{{name='c', path='{archive}', dataset='cifar10', absent_classes=true}}]",
            ]
        )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=nowhere", "holds 0 .safetensors files"),
        ("device=tpu9", "is no device of torch"),
        ("device=cuda:99", "is no device of torch|is not there"),
        ("prompts.templates=['no place']", "must hold {} exactly once"),
    ],
)
def test_bad_input(config: Path, override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        main(["zeroshot", "--config", str(config), override])


def test_an_unreadable_picture_is_named(config: Path, tmp_path: Path) -> None:
    table = pa.table({"image": [flat(3), b"GIF89a broken", flat(9)], "label": [0, 1, 2], "name": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(InputError, match="picture '1' cannot be opened") as caught:
        main(["zeroshot", "--config", str(config)])
    assert "\n" not in str(caught.value)


def test_chinese_captions_and_the_papers_prefix(tmp_path: Path) -> None:
    """Captions are told apart as they are written, whatever the script, and the template stands around each of them."""
    captions = ["一只猫", "一隻貓", "一只狗", "一只猫", None]
    pq.write_table(pa.table({"image": [flat(60 * k) for k in range(5)], "text": captions}), tmp_path / "set.parquet")
    labelled = open_table(LabelledSetConfig(name="zh", path=str(tmp_path / "set.parquet"), caption="text"))
    said: list[str] = []

    class Encoder:
        """Knows each picture's caption by its place: what a tokenizer makes of Chinese is the trainer's story."""

        def images(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
            return np.eye(3, dtype=np.float32)[[[0, 1, 2, 0][row] for row in rows]]

        def texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
            said.extend(sentences)
            return np.eye(3, dtype=np.float32)[: len(sentences)]

    found, _, pairs = retrieve_set(Encoder(), labelled, "a photo of {}")
    assert said == ["a photo of 一只猫", "a photo of 一隻貓", "a photo of 一只狗"]
    assert (pairs, len(found.image_ranks), found.texts) == (4, 4, ["一只猫", "一隻貓", "一只狗"])
    assert [one.value for one in (*found.image_to_text, *found.text_to_image)] == [1.0] * 6


# ---- predict


def test_predict(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Probabilities at the model's own scale, against plain torch; the order of the files; a query; the file of predictions agrees."""
    (tmp_path / "more").mkdir()
    files = [tmp_path / "z.jpg", tmp_path / "more" / "a.jpg", tmp_path / "more" / "b.png"]
    for number, place in enumerate(files):
        place.write_bytes(picture(number, "evaluation", 1 + number))
    call = ["predict", str(files[0]), str(tmp_path / "more"), "--model", str(model)]
    assert main([*call, "--labels", "red square, blue circle ,green star", "--prompts", "plain", "--json"]) is None
    found = json.loads(capsys.readouterr().out)
    net, tokens, card = export.load_model(str(model))
    with torch.inference_mode():
        opened = [decode(place.read_bytes(), min_short_side=card.image_size).rgb for place in files]
        pixels = [evaluation_pixels(rgb, card.image_size) for rgb in opened]
        images = torch.nn.functional.normalize(net.encode_image(normalise(torch.from_numpy(np.stack(pixels)))), dim=-1)
        sentences = [
            form.format(name)
            for name in ("red square", "blue circle", "green star")
            for form in load_templates(PromptConfig(file="plain"))
        ]
        texts = torch.nn.functional.normalize(net.encode_text(tokens(sentences)), dim=-1)
        classes = torch.nn.functional.normalize(texts.view(3, -1, texts.shape[1]).mean(dim=1), dim=-1)
        expected = (net.logit_scale.exp() * images @ classes.T).softmax(dim=-1).tolist()
        query = torch.nn.functional.normalize(net.encode_text(tokens(["a red square"])), dim=-1)
        nearest = (images @ query[0]).tolist()
    assert (found["model"], found["logit_scale"]) == (card.weights_sha256, pytest.approx(1 / 0.07))
    assert [one["image"] for one in found["images"]] == [str(place) for place in files]
    for one, row in zip(found["images"], expected, strict=True):
        shares = one["probabilities"]
        assert [shares[name] for name in ("red square", "blue circle", "green star")] == pytest.approx(row, abs=1e-5)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    (tmp_path / "labels.txt").write_text("red square\n\nblue circle\n", "utf-8")
    assert main([*call, "--labels-file", str(tmp_path / "labels.txt")]) is None
    assert capsys.readouterr().out.count("%") == 6
    assert main([*call, "--query", "a red square", "--json"]) is None
    ranked = json.loads(capsys.readouterr().out)["images"]
    assert [one["image"] for one in ranked] == [str(files[row]) for row in np.argsort(-np.array(nearest))]


def test_bias_probes_run_on_a_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All kinds of probe end to end, and their rows add up to their figures; what is counted is tested in test_bias.py."""
    columns = {
        "gender": ["Male", "Female"] * 6,
        "race": ["Black"] * 6 + ["White"] * 6,
        "who": ["ann", "bob", "eve"] * 4,
    }
    pq.write_table(
        pa.table({"image": [picture(k, "evaluation", 1 + k % 3) for k in range(12)], **columns}), tmp_path / "f.parquet"
    )
    shared = {"path": str(tmp_path / "f.parquet"), "subgroup": "race"}
    sets = [
        {**shared, "name": "gender", "label": "gender", "probe": "gender"},
        {**shared, "name": "words", "probe": "denigration"},
        {"path": shared["path"], "name": "names", "label": "who", "probe": "identity"},
    ]
    settings = {"model": str(model), "out": str(tmp_path / "out"), "sets": sets}
    (tmp_path / "bias.toml").write_text(to_toml(BiasConfig.model_validate(settings)), "utf-8")
    assert main(["bias", "--config", str(tmp_path / "bias.toml")]) is None
    assert "among 3 names" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "bias.json").read_bytes())["sets"]
    rows = {name: pq.read_table(tmp_path / "out" / "bias" / f"{name}.parquet").to_pylist() for name in found}
    for name, accuracy in (("gender", found["gender"]["accuracy"]), ("names", found["names"]["sizes"]["3"])):
        assert accuracy["hits"] == sum(row["answer"] == row["label"] for row in rows[name])
    for category in found["words"]["categories"]:
        assert category["overall"]["hits"] == sum(row["answer"] in category["classes"] for row in rows["words"])
    before = (tmp_path / "out" / "bias.json").read_bytes()
    assert main(["bias", "--config", str(tmp_path / "bias.toml")]) is None
    assert (tmp_path / "out" / "bias.json").read_bytes() == before


def test_what_predict_refuses(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "good.jpg").write_bytes(picture(1, "evaluation", 1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.txt").write_text("alone\n", "utf-8")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    good, table = str(tmp_path / "good.jpg"), str(tmp_path / "t.parquet")
    for said, arguments in (
        ("is a URL, and nothing is fetched", ["https://example.org/cat.jpg", "--labels", "a, b"]),
        ("picture .*bad.jpg' cannot be opened", [good, str(tmp_path / "bad.jpg"), "--labels", "a, b"]),
        ("no such file", [str(tmp_path / "none.jpg"), "--labels", "a, b"]),
        ("has no picture", [str(tmp_path / "empty"), "--labels", "a, b"]),
        ("good.jpg': is named twice", [good, good, "--labels", "a, b"]),
        ("1 labels; a probability needs two", [good, "--labels", "a,"]),
        ("1 labels; a probability needs two", [good, "--labels-file", str(tmp_path / "one.txt")]),
        ("'a' comes twice", [good, "--labels", "a, b, a"]),
        ("give either --labels", [good]),
        ("give one of them", [good, "--labels", "a, b", "--query", "c"]),
        ("--query: is empty", [good, "--query", " "]),
        ("--prompts: 'plain' is for labels, .* drop one", [good, "--query", "c", "--prompts", "plain"]),
        ("t.parquet' is neither a .safetensors file nor its card", [good, "--labels", "a, b", "--model", table]),
        ("is neither a file nor one of", [good, "--labels", "a, b", "--prompts", "none"]),
    ):
        with pytest.raises(InputError, match=said) as caught:
            main(["predict", "--model", str(model), *arguments])
        assert len(str(caught.value).splitlines()) == 1
        assert caught.value.exit_code == 2


def test_probabilities_in_the_file_of_predictions(config: Path, model: Path, tmp_path: Path) -> None:
    """`p` and `p_label` are the softmax of all cosines at the scale that the file names; `scores` only where asked for."""
    assert main(["zeroshot", "--config", str(config)]) is None
    place = tmp_path / "out" / "predictions" / "shapes.parquet"
    assert pq.read_table(place)["scores"].null_count == 12
    assert main(["zeroshot", "--config", str(config), "keep_scores=true"]) is None
    table = pq.read_table(place)
    scale = float((table.schema.metadata or {})[b"logit_scale"])
    assert scale == pytest.approx(1 / 0.07)
    for row in table.to_pylist():
        shares = np.exp(scale * np.array(row["scores"]))
        shares /= shares.sum()
        assert row["p"] == pytest.approx(shares.max(), rel=1e-5)
        assert row["p_label"] == pytest.approx(shares[row["label"]], rel=1e-5)
        assert row["score"] == max(row["scores"])
