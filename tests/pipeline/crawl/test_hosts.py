"""Turns, limits, pace and pauses on a clock that the test moves; the twin is a plain search over all that waits."""

import itertools
import random
from collections import Counter

from pipeline.crawl.hosts import HostQueues
from pipeline.crawl.urls import parse


def queues(counts: dict[str, int], limit: int = 1) -> HostQueues:
    made = HostQueues(lambda host: limit)
    index = 0
    for host, count in counts.items():
        for number in range(count):
            made.add(index, parse(f"http://{host}/{number}"))
            index += 1
    return made


def hosts_taken(made: HostQueues, now: float, most: int = 1000) -> list[str]:
    taken: list[str] = []
    while len(taken) < most and (found := made.take(now)) is not None:
        taken.append(found[1].host)
    return taken


def test_hosts_take_turns() -> None:
    made = queues({"large.org": 50, "a.org": 2, "b.org": 1}, limit=3)
    assert hosts_taken(made, 0) == ["large.org", "a.org", "b.org", "large.org", "a.org", "large.org"]
    made.give_back("large.org")
    assert hosts_taken(made, 0) == ["large.org"]
    assert len(made) == 46


def test_no_host_has_more_than_its_limit_and_all_is_handed_out_once() -> None:
    dice = random.Random(5)
    counts = {f"h{number}.org": dice.randrange(1, 40) for number in range(20)}
    made, out, seen = queues(counts, limit=3), list[str](), Counter[str]()
    while made or out:
        found = made.take(0)
        if found is not None:
            out.append(found[1].host)
            seen[found[1].host] += 1
            assert out.count(found[1].host) <= 3
        if out and (found is None or dice.random() < 0.4):
            made.give_back(out.pop(dice.randrange(len(out))))
    assert seen == counts


def test_a_pace_is_kept_and_the_others_go_on() -> None:
    made = queues({"slow.org": 4, "fast.org": 4}, limit=10)
    made.space("slow.org", 2.0)
    times: list[tuple[float, str]] = []
    now = 0.0
    while made:
        times += [(now, host) for host in hosts_taken(made, now)]
        now += 0.5
    assert [time for time, host in times if host == "fast.org"] == [0.0] * 4
    slow = [time for time, host in times if host == "slow.org"]
    assert [later - earlier for earlier, later in itertools.pairwise(slow)] == [2.0] * 3
    assert made.next_time() is None


def test_a_paused_host_is_left_alone_until_then() -> None:
    made = queues({"a.org": 3, "b.org": 1}, limit=5)
    assert hosts_taken(made, 0, most=1) == ["a.org"]
    made.pause("a.org", 10.0)
    made.pause("a.org", 4.0)  # a shorter one takes nothing back
    assert hosts_taken(made, 9.9) == ["b.org"]
    assert made.next_time() == 10.0
    assert hosts_taken(made, 10.0) == ["a.org", "a.org"]


def test_a_port_is_given_up_and_another_one_is_not() -> None:
    made = HostQueues(lambda host: 1)
    for index, port in enumerate([80, 81, 80, 81, 80]):
        made.add(index, parse(f"http://a.org:{port}/{index}"))
    assert made.take() is not None
    assert [index for index, _ in made.drop("a.org", 80)] == [2, 4]
    assert len(made) == 2
    made.give_back("a.org")
    assert [found[0] for found in (made.take(),) if found] == [1]
    made.give_back("a.org")
    assert [found[0] for found in (made.take(),) if found] == [3]
    assert not made
    assert made.take() is None


def test_one_at_a_time_until_a_host_is_opened() -> None:
    made = HostQueues(lambda host: 3, one_first=True)
    for index in range(6):
        made.add(index, parse(f"http://a.org/{index}"))
    assert hosts_taken(made, 0) == ["a.org"]
    made.give_back("a.org")
    assert hosts_taken(made, 0) == ["a.org"]
    made.open("a.org")
    made.open("a.org")  # and no more than the limit
    assert hosts_taken(made, 0) == ["a.org"] * 2


def test_what_a_host_asks_for_is_added_up_and_our_own_pace_is_not() -> None:
    made = queues({"a.org": 20, "b.org": 20}, limit=20)
    made.space("a.org", 2.0)
    made.delay("a.org", 5.0)  # three more than our own pace
    began = made.waits_s("a.org")
    times = list[float]()
    now = 100.0
    while len(times) < 5:
        times += [now for host in hosts_taken(made, now) if host == "a.org"]
        now += 0.5
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [5.0] * 4
    assert made.waits_s("a.org") - began == 5 * 3.0
    assert made.waits_s("b.org") == 0

    before = made.waits_s("a.org")
    made.pause("a.org", times[-1] + 15.0, times[-1])  # it rests for five seconds anyway
    assert made.waits_s("a.org") - before == 10.0
    made.pause("a.org", times[-1] + 12.0, times[-1] + 1.0)
    assert made.waits_s("a.org") - before == 10.0
    made.pause("b.org", 207.0, 200.0)
    assert made.waits_s("b.org") == 7.0


def test_a_delay_counts_from_when_it_is_known() -> None:
    """The URL that was taken at 10 waited until 13 for the robots.txt that says it, and is asked for only then."""
    made = queues({"a.org": 3}, limit=1)
    assert hosts_taken(made, 10.0) == ["a.org"]
    made.delay("a.org", 2.0, 13.0)
    made.give_back("a.org")
    assert hosts_taken(made, 14.9) == []
    assert hosts_taken(made, 15.0) == ["a.org"]
    made.delay("a.org", 2.0, 16.0)  # no news
    made.give_back("a.org")
    assert hosts_taken(made, 17.0) == ["a.org"]
    assert made.waits_s("a.org") == 2.0 + 2 * 2.0


def test_a_request_out_of_turn_costs_the_next_turn() -> None:
    made = queues({"a.org": 3, "b.org": 3}, limit=5)
    made.space("a.org", 2.0)
    assert sorted(hosts_taken(made, 10.0)) == ["a.org", "b.org", "b.org", "b.org"]
    made.skip_turn("a.org", 11.0)
    assert hosts_taken(made, 13.9) == []
    assert hosts_taken(made, 14.0) == ["a.org"]
    made.skip_turn("a.org", 20.0)  # its rest was long over
    assert hosts_taken(made, 21.9) == []
    assert hosts_taken(made, 22.0) == ["a.org"]


def test_a_host_that_nobody_asked_for_is_left_aside() -> None:
    made = queues({"a.org": 1})
    for say in (made.open, lambda name: made.pause(name, 9.0), lambda name: made.delay(name, 9.0), made.skip_turn):
        say("redirected-to.org")
    assert made.drop("redirected-to.org") == []
    assert made.waits_s("redirected-to.org") == 0
    assert hosts_taken(made, 0) == ["a.org"]
    assert made.next_time() is None
