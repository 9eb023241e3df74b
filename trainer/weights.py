"""Reading files of weights that others wrote, without running anything that is in them.

    X.safetensors               the plain format: names, shapes, numbers
    X.safetensors.index.json    which of several .safetensors beside it has which tensor (transformers' large models)
    X.pt, X.pth, X.bin          torch's format, read by torch.load(weights_only=True): a state dict, or one under "state_dict"

A TorchScript archive (what OpenAI released as .pt) is a program with its tensors. Of it only the tensors and the list of their names are
given to the same safe reader, with empty classes in the place of the program's own; its code is not even unpacked.
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline.contracts import storage
from pipeline.contracts.errors import HouseError, InputError

INDEX = ".safetensors.index.json"
TORCH = (".pt", ".pth", ".bin")

_OF_AN_ARCHIVE = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment")
"""What torch writes beside the folder `data` with the numbers; the rest of a TorchScript archive is code."""

_LISTS = ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist")
"""Of torch.jit._pickle: how TorchScript writes lists."""


def read(path: str) -> dict[str, Tensor]:
    """The tensors of a file by the names that it has, on the CPU, mapped from the disk where that is possible. `path` may be s3://.

    Raises InputError where it is none of these files, or would have to run code.
    """
    if path.endswith(INDEX):
        weights: dict[str, Tensor] = {}
        for part in _parts(path):
            weights |= _read_safetensors(part)
        return weights
    if path.endswith(".safetensors"):
        return _read_safetensors(path)
    if path.endswith(TORCH):
        with _local(path) as local:
            return _read_torch(path, local)
    raise InputError(f"{path}: not a file of weights by its ending; give .safetensors, {INDEX}, {', '.join(TORCH)}")


def digest(path: str) -> str:
    """SHA-256 of the file; of an index, over the digests of the files that it names, in the order of their names."""
    if not path.endswith(INDEX):
        return storage.sha256_file(path)
    lines = (f"{storage.name(part)} {storage.sha256_file(part)}\n" for part in _parts(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def _local(path: str) -> Iterator[str]:
    """The file on a local disk: one on s3:// is fetched first. What is mapped from it outlives it."""
    if not storage.is_s3(path):
        storage.size(path)  # says that there is none, in our words
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, storage.name(path))
        storage.download(path, local)
        yield local


# ---- safetensors


def _read_safetensors(path: str) -> dict[str, Tensor]:
    with _local(path) as local, storage.plain_errors(path, "read"):
        try:
            weights: dict[str, Tensor] = safetensors.torch.load_file(local)
        except safetensors.SafetensorError as error:
            raise InputError(
                f"{path}: not a readable safetensors file ({error}); export or download it again"
            ) from None
    return weights


def _parts(index: str) -> list[str]:
    """The files that an index names. They lie beside it: a name with a folder in it is taken for the name alone."""
    try:
        names = set(json.loads(storage.read_text(index))["weight_map"].values())
        if any(
            b"\0" in name.encode() for name in names
        ):  # encode raises for half a character: no file has either in its name
            raise ValueError
        return [storage.join(storage.parent(index), storage.name(name)) for name in sorted(names)]
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        raise InputError(f"{index}: not an index of safetensors files; download it again") from None


# ---- torch's own


def _read_torch(path: str, local: str) -> dict[str, Tensor]:
    is_zip = zipfile.is_zipfile(local)
    try:
        if is_zip:
            names = _names_in(path, local)
            if any(name.partition("/")[2] == "constants.pkl" for name in names):
                return _read_torchscript(path, local)
        held = _load(local, mmap=is_zip)
    except (HouseError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (of bytes that others chose, torch's reader may say anything)
        raise _refusal(path, error) from None
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if not isinstance(held, Mapping) or not held or not all(map(_is_named_tensor, held.items())):
        raise InputError(f"{path}: holds no state dict of tensors, nor one under 'state_dict'; save model.state_dict()")
    return dict(held)


def _is_named_tensor(entry: tuple[object, object]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def _load(local: str, *, mmap: bool) -> object:
    """torch's safe reader: it makes tensors and plain containers, and refuses all else by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles that torch did not write, which are read or refused all the same
        return torch.load(local, map_location="cpu", weights_only=True, mmap=mmap)


def _refusal(path: str, error: Exception) -> InputError:
    if not isinstance(error, pickle.UnpicklingError):
        return InputError(f"{path}: not a readable file of torch ({type(error).__name__}); download it again")
    asked = re.search(r"GLOBAL (\S+)", str(error))
    what = f"asks for {asked[1]!r}" if asked else "is not one that torch writes"
    return InputError(
        f"{path}: its pickle {what}, and reading more than tensors would run code; none was run: where you trust the file, save its"
        " state dict with safetensors.torch.save_file and give that file"
    )


def _names_in(path: str, local: str) -> list[str]:
    """The files of an archive. Raises InputError where they are packed: torch packs no numbers, and a bomb would."""
    with zipfile.ZipFile(local) as archive:
        entries = archive.infolist()
    # A program's text is packed, and is not unpacked by us: `_read_torchscript` copies none of it.
    numbers = [entry for entry in entries if not entry.filename.partition("/")[2].startswith("code/")]
    if sum(entry.file_size for entry in numbers) > os.path.getsize(local):
        raise InputError(f"{path}: an archive that torch did not write (its numbers are compressed); save it again")
    return [entry.filename for entry in entries]


def _read_torchscript(path: str, local: str) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        plain = os.path.join(folder, "tensors.pt")
        with zipfile.ZipFile(local) as archive, zipfile.ZipFile(plain, "w") as out:
            for entry in archive.infolist():
                rest = entry.filename.partition("/")[2]
                if rest in _OF_AN_ARCHIVE or rest.startswith(("data/", ".data/")):
                    with archive.open(entry) as source, out.open(entry.filename, "w", force_zip64=True) as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(plain)
        stand_ins: list[Any] = [
            (type("StandIn", (), {}), name) for name in wanted if name.startswith("__torch__.")
        ]  # one each: torch's reader looks them up by class
        stand_ins += [(_as_it_is, f"torch.jit._pickle.{name}") for name in _LISTS]
        with torch.serialization.safe_globals(stand_ins):
            root = _load(plain, mmap=True)
    found = dict(_tensors(root, "", set()))
    if not found:
        raise InputError(f"{path}: a TorchScript archive without tensors; give the weights' own file")
    return found


def _as_it_is(items: list[Any]) -> list[Any]:
    return items


def _tensors(module: object, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a module and those inside it, under the names that its state dict would have."""
    if id(module) in seen or type(module).__name__ != "StandIn":
        return
    seen.add(id(module))
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        else:
            yield from _tensors(value, f"{prefix}{name}.", seen)
