"""The values of a pickle without unpickling it: plain types and arrays of bytes, which is all that CIFAR's files hold.

A pickle is a program that may call any function. This interpreter knows the instructions that build numbers, strings, lists,
tuples and dictionaries; of functions it knows the names by which numpy writes an array and calls none: an array is recorded and
made here, from its shape and bytes. Every other instruction or name is refused.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_INSTRUCTIONS = 10_000_000
_CALLABLE = frozenset(
    {
        "numpy.core.multiarray _reconstruct",
        "numpy._core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
        "_codecs encode",
    }
)
_VALUES = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_MARK = object()


class PickleRefused(Exception):
    """These bytes are no pickle of plain values."""


@dataclass(frozen=True)
class _Name:
    """A function that the pickle names; it is never looked up."""

    name: str


@dataclass
class _Call:
    """What a call would have made, and the state it was given."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = field(default=None)


def read_pickle(data: bytes) -> Any:
    """The value; strings of Python 2 as bytes, arrays as uint8[…]. Raises PickleRefused, and nothing else, whatever the bytes are."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in a text
            return _plain(_run(data), {})
    except PickleRefused:
        raise
    # pickletools answers broken input with ValueError and its relatives, a stack that is too short is an IndexError, a bad key a TypeError.
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise PickleRefused(f"a damaged pickle ({str(error)[:100]})") from None


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for count, (code, argument, _) in enumerate(pickletools.genops(data)):
        name = code.name
        if count > MOST_INSTRUCTIONS:
            raise PickleRefused(f"more than {MOST_INSTRUCTIONS:,} instructions")
        if name in _VALUES:
            stack.append(argument.encode("latin-1") if name.endswith("STRING") else argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(_taken(stack, int(name[-1]))))
        elif name in ("TUPLE", "LIST", "DICT"):
            items = _since_mark(stack)
            stack.append(_pairs(items) if name == "DICT" else tuple(items) if name == "TUPLE" else items)
        elif name in ("APPEND", "APPENDS"):
            items = _taken(stack, 1) if name == "APPEND" else _since_mark(stack)
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = _taken(stack, 2) if name == "SETITEM" else _since_mark(stack)
            stack[-1].update(_pairs(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                argument = " ".join(_taken(stack, 2))
            if argument not in _CALLABLE:
                raise PickleRefused(f"it calls {argument!r}")
            stack.append(_Name(argument))
        elif name == "REDUCE":
            function, arguments = _taken(stack, 2)
            stack.append(_Call(function.name, tuple(arguments)))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Call):
                raise PickleRefused("it sets the state of something that is no array")
            stack[-1].state = state
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise PickleRefused(f"instruction {name}")
    raise PickleRefused("it ends early")


def _taken(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise PickleRefused("a damaged pickle (its stack is empty)")
    items = stack[-count:]
    del stack[-count:]
    return items


def _since_mark(stack: list[Any]) -> list[Any]:
    place = len(stack) - 1
    while stack[place] is not _MARK:
        place -= 1
        if place < 0:
            raise PickleRefused("a damaged pickle (no mark)")
    items = stack[place + 1 :]
    del stack[place:]
    return items


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """The value with its recorded calls made into arrays and bytes; what occurs twice (`done`, by identity) is made once."""
    if id(value) in done:
        return done[id(value)]
    made: Any = value
    if isinstance(value, dict):
        made = {_plain(key, done): _plain(item, done) for key, item in value.items()}
    elif isinstance(value, list):
        made = [_plain(item, done) for item in value]
    elif isinstance(value, tuple):
        made = tuple(_plain(item, done) for item in value)
    elif isinstance(value, _Call):
        made = _called(value, done)
    elif isinstance(value, _Name) or value is _MARK:
        raise PickleRefused("a function for a value")
    done[id(value)] = made
    return made


def _called(call: _Call, done: dict[int, Any]) -> Any:
    if call.name == "_codecs encode":  # how Python 3 writes bytes for Python 2
        text, encoding = call.arguments
        if encoding not in ("latin1", b"latin1"):
            raise PickleRefused(f"text in {encoding!r}")
        return text.encode("latin-1")
    if not call.name.endswith("_reconstruct") or call.state is None:
        raise PickleRefused(f"it calls {call.name!r} for a value")
    _, shape, kind, fortran, raw = call.state
    shape, raw = _plain(shape, done), _plain(raw, done)
    if not isinstance(kind, _Call) or kind.name != "numpy dtype" or kind.arguments[0] not in ("u1", b"u1"):
        raise PickleRefused("an array that is not of bytes")
    if not isinstance(raw, bytes) or fortran or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise PickleRefused("an array in an order that is not read here")
    if math.prod(shape) != len(raw):
        raise PickleRefused(f"an array of shape {shape} with {len(raw):,} bytes")
    return np.frombuffer(raw, np.uint8).reshape(shape)
