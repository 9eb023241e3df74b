"""Values handed over one by one: in order, never more in memory than are read at once, errors where they belong."""

import threading
import time

import pytest

from pipeline.contracts.at_once import READERS, in_turn


def test_values_come_in_order_and_no_more_are_held_than_are_read_at_once() -> None:
    lock, started, held = threading.Lock(), 0, []

    def read(number: int) -> int:
        nonlocal started
        with lock:
            started += 1
        time.sleep(0.002 * (number % 3))
        return number

    taken = []
    for number in in_turn(read, range(5 * READERS)):
        held.append(started - len(taken))
        taken.append(number)
    assert taken == list(range(5 * READERS))
    assert max(held) == READERS
    assert list(in_turn(read, [])) == []


def test_an_error_comes_where_its_value_would() -> None:
    found = in_turn(lambda number: 60 // (3 - number), range(9))
    assert [next(found) for _ in range(3)] == [20, 30, 60]
    with pytest.raises(ZeroDivisionError):
        next(found)
