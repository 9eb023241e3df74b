"""python -m pipeline run|STAGE|queries|status|verify|show|contact-sheet|retry|exclude|plan"""

import argparse
import functools
import logging
import shlex
import sys
from collections.abc import Callable
from typing import Any

from pipeline.contracts.cli import add_config_arguments, parse, run_cli
from pipeline.contracts.config import digest, digest_json, load_config, to_toml
from pipeline.contracts.errors import AuditFinding
from pipeline.records import STAGES

Argument = Callable[[argparse.ArgumentParser], object]
Act = Callable[[argparse.Namespace], None]
_COMMANDS: dict[str, tuple[str, tuple[Argument, ...], Act]] = {}


def main(argv: list[str]) -> None:
    told = "From sources to shards; pipeline/README.md explains."
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=told, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, arguments, act) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(act=act)
        for add in arguments:
            add(command)
    given = parse(parser, argv)
    given.act(given)


def _command(name: str, text: str, *arguments: Argument) -> Callable[[Act], Act]:
    """The function below is what the command does, given these arguments. It imports what it needs by itself: Ray takes seconds, and
    only the commands that compute should pay for it."""

    def register(act: Act) -> Act:
        _COMMANDS[name] = text, arguments, act
        return act

    return register


def _argument(*names: str, **options: Any) -> Argument:
    return lambda command: command.add_argument(*names, **options)


_a_run = _argument("path", help="the run's output (local or s3://)")
_a_run_or_version = _argument("path", help="the output of a run or of exclude (local or s3://)")
_a_run_or_corpus = _argument("path", help="a run or a corpus (local or s3://)")


@_command("run", "all stages; the same command again resumes", add_config_arguments)
def _run(given: argparse.Namespace) -> None:
    from pipeline import check, run, status
    from pipeline.config import PipelineConfig, identity

    config = load_config(PipelineConfig, given.config, given.overrides)
    until = STAGES[-1] if given.command == "run" else given.command
    run.require_stage(config, until)
    if given.check:
        print(f"{to_toml(config)}\n# config digest {digest_json(identity(config))}\n{check.describe(config)}")
        return
    place = run.run(config, until)
    print(status.describe(config.run.out))
    following = ["verify", place]
    if until != STAGES[-1]:
        stages = run.stages_of(config)
        following = [stages[stages.index(until) + 1], "--config", given.config, *given.overrides]
    print(f"next: {shlex.join(['python', '-m', 'pipeline', *following])}")


for _name in STAGES:
    _command(_name, f"the stages up to and including {_name}", add_config_arguments)(_run)


@_command("queries", "the query list, from Wikipedia dumps, page views and WordNet", add_config_arguments)
def _queries(given: argparse.Namespace) -> None:
    from pipeline.queries import job, plan
    from pipeline.queries.config import QueriesConfig

    config = load_config(QueriesConfig, given.config, given.overrides)
    if given.check:
        print(f"{to_toml(config)}\n# config digest {digest(config)}\n{plan.describe(config)}")
        return
    place = job.run(config)
    print(plan.told(config.run.out))
    print(f"next: filter.queries = {place!r} in the configuration of python -m pipeline run")


@_command(
    "status",
    "what a run has done: units, rows by outcome, rates, per stage",
    _a_run,
    _argument("--watch", action="store_true", help="show it again every few seconds until the run ends"),
)
def _status(given: argparse.Namespace) -> None:
    from pipeline import status

    if given.watch:
        status.follow(given.path)
    else:
        print(status.describe(given.path))


@_command("verify", "re-hash a corpus or a whole run against what was recorded", _a_run_or_corpus)
def _verify(given: argparse.Namespace) -> None:
    from pipeline import status

    if problems := status.verify(given.path):
        print(*problems, sep="\n")
        raise AuditFinding(f"{given.path}: {len(problems)} differences from what was recorded, listed above")
    print(f"{given.path}: everything is as it was recorded")


@_command("show", "the whole history of one row", _a_run_or_version, _argument("uid", help="32 hexadecimal digits"))
def _show(given: argparse.Namespace) -> None:
    from pipeline.tools import show

    print(show.describe(given.path, given.uid))


@_command(
    "contact-sheet",
    "a random sample of the corpus as one HTML file",
    _a_run_or_corpus,
    _argument("--rows", type=int, default=200, help="pictures shown (default 200)"),
    _argument("--out", default="contact-sheet.html", metavar="FILE", help="default contact-sheet.html"),
)
def _contact_sheet(given: argparse.Namespace) -> None:
    from pipeline.tools import contact_sheet

    print(f"{given.out}: {contact_sheet.write(given.path, given.rows, given.out):,} pairs")


@_command(
    "retry",
    "fetch the rows of a committed crawl again that failed for some reasons, as a new generation",
    _a_run,
    _argument("--reason", metavar="NAMES", help="reasons of rejection, for example dns,timeout"),
    _argument("--check", action="store_true", help="say how many rows, touch nothing"),
    _argument("overrides", nargs="*", metavar="reason=NAMES", help="the same as --reason"),
)
def _retry(given: argparse.Namespace) -> None:
    from pipeline import status
    from pipeline.tools import retry

    flag = [f"reason={given.reason}"] if given.reason is not None else []
    reason = load_config(retry.RetryConfig, None, [*given.overrides, *flag]).reason
    if given.check:
        print(retry.describe(given.path, reason))
        return
    retry.retry(given.path, reason)
    print(status.describe(given.path))
    print("next: the command that ran the pipeline, again: deduplication and all after it take the new rows in")


@_command(
    "exclude",
    "a new version of a corpus without the rows that lists name",
    _argument("--ids", metavar="FILE", help="the same as ids=FILE: uids, one a line"),
    functools.partial(add_config_arguments, required=False),
)
def _exclude(given: argparse.Namespace) -> None:
    from pipeline import status
    from pipeline.tools import exclude

    flag = [f"ids={given.ids}"] if given.ids is not None else []
    config = load_config(exclude.ExcludeConfig, given.config, [*given.overrides, *flag])
    if given.check:
        print(f"{to_toml(config)}\n{exclude.describe(config)}")
        return
    place = exclude.exclude(config)
    print(status.describe(config.out))
    for kind, missing in exclude.not_found(config).items():
        print(f"{kind}: {len(missing):,} of the list are not in the corpus, the first is {missing[0]}")
    print(f"next: {shlex.join(['python', '-m', 'pipeline', 'verify', place])}")


@_command(
    "plan",
    "hours, core-hours, bytes, requests and money of a corpus of a given size, from measured rates",
    _argument("--from", dest="run", metavar="RUN", help="the rates of this run instead of the shipped ones"),
    add_config_arguments,
)
def _plan(given: argparse.Namespace) -> None:
    from pipeline.tools import plan

    config = load_config(plan.PlanConfig, given.config, given.overrides)
    text = plan.describe(config, plan.measured() if given.run is None else plan.from_run(given.run))
    print(f"{to_toml(config)}\n# config digest {digest(config)}" if given.check else text)


if __name__ == "__main__":
    logging.getLogger("pipeline").setLevel(logging.INFO)
    run_cli(main, sys.argv[1:])
