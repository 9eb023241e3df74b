"""python -m pipeline queries|candidates|exact|filter|precap|crawl|dedup|balance|shards|run|status|verify"""

import argparse
import logging
import shlex
import sys

from pipeline.contracts.cli import add_config_arguments, run_cli
from pipeline.contracts.config import digest, load_config, to_toml
from pipeline.contracts.errors import AuditFinding

STAGES = ("candidates", "exact", "filter", "precap", "crawl", "dedup", "balance", "shards")


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
    text = "the query list, from Wikipedia dumps, page views and WordNet"
    add_config_arguments(commands.add_parser("queries", help=text, description=text, allow_abbrev=False))
    for name, text in {
        "status": "what a run has done: units, rows by outcome, per stage",
        "verify": "re-hash a corpus (its manifest or folder) or a whole run against what was recorded",
    }.items():
        reading = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        reading.add_argument("path", help="the run's output (local or s3://), or a corpus inside it")
    arguments = parser.parse_args(argv)
    if arguments.command == "status":
        _status(arguments.path)
    elif arguments.command == "verify":
        _verify(arguments.path)
    elif arguments.command == "queries":
        _queries(arguments.config, arguments.overrides, arguments.check)
    else:
        _run(arguments.command, arguments.config, arguments.overrides, arguments.check)


def _run(command: str, path: str, overrides: list[str], check: bool) -> None:
    # Ray takes seconds to import: only the commands that compute pay for it.
    from pipeline import check as plan
    from pipeline import run
    from pipeline.config import PipelineConfig

    config = load_config(PipelineConfig, path, overrides)
    if check:
        print(to_toml(config))
        print(f"# config digest {digest(config)}")
        print(plan.describe(config))
        return
    until = run.STAGES[-1] if command == "run" else command
    place = run.run(config, until)
    _status(config.run.out)
    if until == run.STAGES[-1]:
        print(f"next: {shlex.join(['python', '-m', 'pipeline', 'verify', place])}")
    else:
        following = run.STAGES[run.STAGES.index(until) + 1]
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


def _status(path: str) -> None:
    from pipeline import status  # as light as the contracts, but `run` should not import it before Ray

    print(status.describe(path))


def _verify(path: str) -> None:
    from pipeline import status

    problems = status.verify(path)
    for problem in problems:
        print(problem)
    if problems:
        raise AuditFinding(f"{path}: {len(problems)} differences from what was recorded, listed above")
    print(f"{path}: everything is as it was recorded")


if __name__ == "__main__":
    logging.getLogger("pipeline").setLevel(logging.INFO)
    run_cli(main, sys.argv[1:])
