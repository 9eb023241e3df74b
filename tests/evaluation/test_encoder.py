"""An exported model as an encoder against the model itself, one text at a time and of full length."""

import numpy as np
import pytest
import torch

from evaluation.model import ModelEncoder
from tests.evaluation import exported
from trainer import export, models

CONTEXT = models.PRESETS["tiny-vit"].context_length
TEXTS = [
    "red",
    "a picture of a red square " * 9,
    "",
    "blue circle",
    "a picture of red",
    "a blue square on a red circle",
    "red",
]
"""From two ids to more than the context has."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    exported.tiny(folder, "tiny-vit", ["red square", "blue circle"], "ab" * 32)
    return str(folder)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_texts_have_the_features_of_each_alone(model: str, batch: int) -> None:
    plain, read_ids, _ = export.load_model(model)
    with torch.no_grad():
        expected = np.concatenate([plain.eval().encode_text(read_ids([text])).numpy() for text in TEXTS])
    found = ModelEncoder(model, batch=batch).texts(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected[0] - expected[3]).max() > 1e-3


def test_no_batch_of_texts_is_longer_than_its_longest(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, shapes = ModelEncoder(model, batch=3), list[tuple[int, int]]()
    unwatched = models.CLIP.encode_text

    def watched(clip: models.CLIP, ids: torch.Tensor) -> torch.Tensor:
        shapes.append((ids.shape[0], ids.shape[1]))
        assert int(ids.argmax(dim=1).max()) + 1 == ids.shape[1]
        return unwatched(clip, ids)

    monkeypatch.setattr(models.CLIP, "encode_text", watched)
    encoder.texts(TEXTS)
    assert [n for n, _ in shapes] == [3, 3, 1]
    assert [length for _, length in shapes] == sorted(length for _, length in shapes)
    assert shapes[0][1] < shapes[-1][1] == CONTEXT


def test_no_text_is_an_empty_table(model: str) -> None:
    assert ModelEncoder(model).texts([]).shape == (0, models.PRESETS["tiny-vit"].embed_dim)


def test_attention_of_cudnn_is_left_out(model: str) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    ModelEncoder(model)
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
