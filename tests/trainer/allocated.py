"""What torch's allocator on CPUs is asked for: the truth beside estimates of memory."""

from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def allocations(work: Callable[[], object]) -> list[int]:
    """Bytes that `work` asks for (above 0) and gives back (below), in the order of time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        work()
    assert record.profiler is not None
    found = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(found, key=lambda event: event.start_ns())]


def most_at_once(work: Callable[[], object]) -> int:
    """The most bytes that there are at one time while `work` is done, beside those that were there before."""
    return max(accumulate(allocations(work), initial=0))
