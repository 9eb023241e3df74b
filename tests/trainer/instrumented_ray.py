"""`python -m tests.trainer.instrumented_ray …`: `trainer.launch_ray` whose workers are given what `instrumented` gives a process."""

from typing import Any

from pipeline.contracts.cli import run_cli
from trainer import launch_ray

work = launch_ray._work


def watched_work(given: dict[str, Any]) -> None:
    from tests.trainer import instrumented  # knows its rank, which Ray has set by now
    from trainer import train

    watched = instrumented.Watched()
    vars(train).update(loader=instrumented.Loader(watched), normalise=watched.normalise)
    work(given)


if __name__ == "__main__":
    launch_ray._work = watched_work
    run_cli(launch_ray.main)
