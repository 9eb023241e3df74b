"""`python -m evaluation overlap|train-descriptor|zeroshot|retrieval --config FILE [--check] [key=value …]`, `report DIR`, `verify DIR`.

`report` and `verify` read a finished report and load neither ray nor torch: an auditor's machine needs neither. That is why the commands
import their modules inside the functions below.
"""

from __future__ import annotations

import argparse

from pipeline.contracts import storage
from pipeline.contracts.cli import add_config_arguments, parse, run_cli
from pipeline.contracts.config import StrictModel, digest, load_config, to_toml
from pipeline.contracts.errors import AuditFinding


def main(argv: list[str]) -> int | None:
    """Parse `argv` and run one command; returns its exit code (None is 0)."""
    arguments = parse(_parser(), argv)
    if arguments.command == "overlap":
        return _overlap(arguments)
    if arguments.command == "train-descriptor":
        return _train_descriptor(arguments)
    if arguments.command in ("zeroshot", "retrieval"):
        return _score(arguments)
    if arguments.command == "verify":
        return _verify(arguments.directory)
    return _report(arguments.directory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, words in (
        ("overlap", "how much of each evaluation set is in a corpus, and what that did to the score"),
        ("train-descriptor", "train the near-duplicate descriptor on a corpus's own pictures"),
        ("zeroshot", "classify labelled sets by their class names alone"),
        ("retrieval", "find captions for pictures and pictures for captions"),
    ):
        add_config_arguments(commands.add_parser(name, help=words, description=words, allow_abbrev=False))
    for name, words in (
        ("report", "print a finished report; exit 3 when a set is over its limit"),
        ("verify", "recompute a report from its tables and compare every file with its sha256; exit 3 on a difference"),
    ):
        reader = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
        reader.add_argument("directory", metavar="DIR", help="the folder of the report (a path or s3://…)")
    return parser


def _show_check(config: StrictModel, plan: str) -> None:
    print(to_toml(config), end="")
    print(f"\n# digest {digest(config)}\n# {plan}")


def _overlap(arguments: argparse.Namespace) -> int | None:
    from evaluation.config import OverlapConfig

    config = load_config(OverlapConfig, arguments.config, arguments.overrides)
    # Loads ray: not before the configuration is known to be right.
    from evaluation.overlap import job
    from evaluation.report import files, summary

    if arguments.check:
        _show_check(config, job.plan(config))
        return None
    report = job.run(config)
    print(summary.as_text(report))
    print(f"\nopen: {storage.join(config.report.dir, files.PAGE)}")
    print(f"next: python -m evaluation report {config.report.dir}   (exit code 3 when a set is over its limit)")
    return None


def _train_descriptor(arguments: argparse.Namespace) -> int | None:
    from evaluation.descriptor.config import TrainDescriptorConfig

    config = load_config(TrainDescriptorConfig, arguments.config, arguments.overrides)
    # Loads torch: not before the configuration is known to be right.
    from evaluation.descriptor import train

    if arguments.check:
        _show_check(config, train.plan(config))
        return None
    print(train.summary(train.train(config)))
    print(f"\nnext: give its folder to the overlap job: descriptor.weights={config.run.out}")
    return None


def _score(arguments: argparse.Namespace) -> int | None:
    from evaluation.config import ZeroshotConfig

    config = load_config(ZeroshotConfig, arguments.config, arguments.overrides)
    # Loads torch: not before the configuration is known to be right.
    from evaluation.scoring import plan, run_retrieval, run_zeroshot

    if arguments.check:
        _show_check(config, plan(config))
        return None
    run = run_zeroshot if arguments.command == "zeroshot" else run_retrieval
    print(run(config))
    return None


def _report(directory: str) -> int | None:
    from evaluation.report import files, summary

    report = files.read_report(directory)
    print(summary.as_text(report))
    if report.over_limit:
        raise AuditFinding(
            f"{', '.join(report.over_limit)}: over the limit; read the evidence, then raise the set's limit or take the rows of "
            "removal_ids.txt out of the corpus"
        )
    return None


def _verify(directory: str) -> int | None:
    from evaluation.report import verify
    from evaluation.report.checking import NOT_RECOMPUTED

    problems = verify(directory)
    if problems:
        raise AuditFinding("\n".join(problems))
    print(
        f"{directory}: every file is as it was written, and the figures and the page follow from the tables and settings in it"
    )
    print(f"taken as given, because the folder alone does not show it: {NOT_RECOMPUTED}")
    return None


if __name__ == "__main__":
    run_cli(main)
