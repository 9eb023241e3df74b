"""python -m pipeline run|STAGE|queries|status|verify|show|contact-sheet|retry|exclude|plan"""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable
from typing import Any

from pipeline.contracts.cli import add_config_arguments, run_cli
from pipeline.contracts.config import digest, load_config, to_toml
from pipeline.contracts.errors import AuditFinding

STAGES = (
    "candidates", "exact", "filter", "exact-url", "exact-caption", "precap",
    "crawl", "policy", "exact-source", "dedup", "balance", "shards",
)  # fmt: skip


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="From sources to shards; pipeline/README.md explains.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    computing = {"run": "all stages; the same command again resumes"}
    computing |= {name: f"the stages up to and including {name}" for name in STAGES}
    for name, text in computing.items():
        add_config_arguments(commands.add_parser(name, help=text, description=text, allow_abbrev=False))
    _add_tools(commands)
    arguments = parser.parse_args(argv)
    command = arguments.command
    if command in _TOOLS:
        _TOOLS[command](arguments)
    else:
        _run(command, arguments.config, arguments.overrides, arguments.check)


def _add_tools(commands: Any) -> None:
    """The commands that are no stages."""

    def add(name: str, text: str, path: str | None = "the run's output (local or s3://)") -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if path is not None:
            command.add_argument("path", help=path)
        return command

    status = add("status", "what a run has done: units, rows by outcome, rates, per stage")
    status.add_argument("--watch", action="store_true", help="show it again every few seconds until the run ends")
    add(
        "verify",
        "re-hash a corpus (its manifest or folder) or a whole run against what was recorded",
        "a run or a corpus",
    )
    add("show", "the whole history of one row").add_argument("uid", help="32 hexadecimal digits")
    sheet = add("contact-sheet", "a random sample of the corpus as one HTML file", "a run or a corpus (local or s3://)")
    sheet.add_argument("--rows", type=int, default=200, help="pictures shown (default 200)")
    sheet.add_argument("--out", default="contact-sheet.html", metavar="FILE", help="default contact-sheet.html")
    retry = add("retry", "fetch the rows of a committed crawl again that failed for some reasons, as a new generation")
    retry.add_argument("--reason", metavar="NAMES", help="reasons of rejection, for example dns,timeout")
    retry.add_argument("--check", action="store_true", help="say how many rows, touch nothing")
    retry.add_argument("overrides", nargs="*", metavar="reason=NAMES", help="the same as --reason")
    plan = add(
        "plan", "hours, core-hours, bytes, requests and money of a corpus of a given size, from measured rates", None
    )
    plan.add_argument(
        "--from", dest="run", metavar="RUN", help="take the rates of this run instead of the shipped ones"
    )
    add_config_arguments(plan)
    add_config_arguments(add("queries", "the query list, from Wikipedia dumps, page views and WordNet", None))
    exclude = add("exclude", "a new version of a corpus without the rows that lists name", None)
    exclude.add_argument("--ids", metavar="FILE", help="the same as ids=FILE: uids, one a line")
    add_config_arguments(exclude, required=False)


def _run(command: str, path: str, overrides: list[str], check: bool) -> None:
    # Ray takes seconds to import: only the commands that compute pay for it.
    from pipeline import check as plan
    from pipeline import run
    from pipeline.config import PipelineConfig

    config = load_config(PipelineConfig, path, overrides)
    until = run.STAGES[-1] if command == "run" else command
    run.require_stage(config, until)
    if check:
        print(to_toml(config))
        print(f"# config digest {digest(config)}")
        print(plan.describe(config))
        return
    place = run.run(config, until)
    _status(config.run.out)
    if until == run.STAGES[-1]:
        print(f"next: {shlex.join(['python', '-m', 'pipeline', 'verify', place])}")
    else:
        stages = run.stages_of(config)
        following = stages[stages.index(until) + 1]
        print(f"next: {shlex.join(['python', '-m', 'pipeline', following, '--config', path, *overrides])}")


def _queries(path: str, overrides: list[str], check: bool) -> None:
    from pipeline.queries import job, plan
    from pipeline.queries.config import QueriesConfig

    config = load_config(QueriesConfig, path, overrides)
    if check:
        print(to_toml(config))
        print(f"# config digest {digest(config)}")
        print(plan.describe(config))
        return
    place = job.run(config)
    print(plan.told(config.run.out))
    print(f"next: filter.queries = {place!r} in the configuration of python -m pipeline run")


def _status(path: str, watch: bool = False) -> None:
    from pipeline import status  # as light as the contracts, but `run` should not import it before Ray

    if watch:
        status.follow(path)
    else:
        print(status.describe(path))


def _verify(path: str) -> None:
    from pipeline import status

    problems = status.verify(path)
    for problem in problems:
        print(problem)
    if problems:
        raise AuditFinding(f"{path}: {len(problems)} differences from what was recorded, listed above")
    print(f"{path}: everything is as it was recorded")


def _show(path: str, uid: str) -> None:
    from pipeline.tools import show

    print(show.describe(path, uid))


def _contact_sheet(path: str, rows: int, place: str) -> None:
    from pipeline.tools import contact_sheet

    print(f"{place}: {contact_sheet.write(path, rows, place):,} pairs")


def _retry(path: str, reason: str | None, overrides: list[str], check: bool) -> None:
    from pipeline.tools import retry

    given = [f"reason={reason}"] if reason is not None else []
    reason = load_config(retry.RetryConfig, None, [*overrides, *given]).reason
    if check:
        print(retry.describe(path, reason))
        return
    retry.retry(path, reason)
    _status(path)
    print("next: the command that ran the pipeline, again: deduplication and all after it take the new generation in")


def _exclude(path: str | None, overrides: list[str], ids: str | None, check: bool) -> None:
    from pipeline.tools import exclude

    config = load_config(exclude.ExcludeConfig, path, [*overrides, *([f"ids={ids}"] if ids is not None else [])])
    if check:
        print(to_toml(config))
        print(exclude.describe(config))
        return
    place = exclude.exclude(config)
    _status(config.out)
    if missing := exclude.not_found(config):
        print(f"ids: {len(missing):,} of the list are not in the corpus, the first is {missing[0].hex()}")
    print(f"next: {shlex.join(['python', '-m', 'pipeline', 'verify', place])}")


def _plan(path: str, overrides: list[str], measured: str | None, check: bool) -> None:
    from pipeline.tools import plan

    config = load_config(plan.PlanConfig, path, overrides)
    if check:
        print(to_toml(config))
        print(f"# config digest {digest(config)}")
        return
    print(plan.describe(config, plan.measured() if measured is None else plan.from_run(measured)))


_TOOLS: dict[str, Callable[[argparse.Namespace], None]] = {
    "status": lambda given: _status(given.path, given.watch),
    "verify": lambda given: _verify(given.path),
    "show": lambda given: _show(given.path, given.uid),
    "contact-sheet": lambda given: _contact_sheet(given.path, given.rows, given.out),
    "retry": lambda given: _retry(given.path, given.reason, given.overrides, given.check),
    "queries": lambda given: _queries(given.config, given.overrides, given.check),
    "plan": lambda given: _plan(given.config, given.overrides, given.run, given.check),
    "exclude": lambda given: _exclude(given.config, given.overrides, given.ids, given.check),
}


if __name__ == "__main__":
    logging.getLogger("pipeline").setLevel(logging.INFO)
    run_cli(main, sys.argv[1:])
