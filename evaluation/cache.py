"""Arrays that are expensive to compute, kept by what they were computed from.

The name of an entry is the digest of all its inputs: weights, pictures or sentences, preprocessing, layer, precision, versions. There is
nothing to invalidate: another input is another name, and an entry whose bytes are not those that were written is computed again.
Zero-shot, probe, few-shot and retrieval share one folder.

    KEY.npy     the array
    KEY.json    the inputs, shape and sha256 of the array; written last
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import storage
from pipeline.contracts.config import Json, digest_json
from pipeline.contracts.errors import InputError

FORMAT_VERSION = 1
"""Of an entry; part of every key."""
_MOST_BYTES = 64 << 30
_MOST_RECORD = 1 << 20
log = logging.getLogger("evaluation")


class Cache:
    """A folder of arrays (a path or s3://…)."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def array(self, inputs: Mapping[str, Json], compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The float32 array of these inputs, from the folder or from `compute`, which is then kept.

        `inputs` must name everything that can change a value of the array.
        """
        key = _key(inputs)
        found = self._read(key)
        if found is not None:
            return found
        made = np.ascontiguousarray(compute(), np.float32)
        buffer = io.BytesIO()
        np.save(buffer, made, allow_pickle=False)
        data = buffer.getvalue()
        storage.write_atomic(self._place(key, "npy"), data)
        record = {"inputs": dict(inputs), "shape": list(made.shape), "sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False)
        storage.write_atomic(self._place(key, "json"), text.encode())
        return made

    def _place(self, key: str, ending: str) -> str:
        return storage.join(self._folder, f"{key}.{ending}")

    def _read(self, key: str) -> NDArray[np.float32] | None:
        """The entry; None where there is none, or it is not what was written."""
        if not storage.exists(self._place(key, "json")):
            return None
        try:
            record = json.loads(storage.read_bytes(self._place(key, "json"), limit=_MOST_RECORD))
            data = storage.read_bytes(self._place(key, "npy"), limit=_MOST_BYTES)
            if _key(record["inputs"]) == key and hashlib.sha256(data).hexdigest() == record["sha256"]:
                found: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
                return found
        except (InputError, ValueError, KeyError, TypeError, RecursionError):
            pass  # a file is missing, damaged or another entry's, which the line below says
        log.warning("%s: is not what was written; computed again", self._place(key, "npy"))
        return None


def _key(inputs: Mapping[str, Json]) -> str:
    """The name of the entry of these inputs."""
    return digest_json({"cache": FORMAT_VERSION, **inputs})
