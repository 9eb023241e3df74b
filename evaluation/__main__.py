"""`python -m evaluation overlap|train-descriptor|label|zeroshot|retrieval|probe|fewshot --config FILE [--check] [key=value …]`,
`report DIR`, `verify DIR [--root HEX]`, `thresholds DIR LABELS…`.

`compare`, `calibration`, `groups` and `versus-probe` take what the scoring commands wrote, `predict` takes pictures, `robustness`, `bias`,
`human` and `human-scores` a configuration.

`report`, `verify` and `thresholds` read a finished report and load neither ray nor torch: an auditor's machine needs neither. That is why
the commands import their modules inside the functions below.
"""

from __future__ import annotations

import argparse
import functools
import pkgutil
from typing import NamedTuple

from pipeline.contracts import storage
from pipeline.contracts.cli import add_config_arguments, parse, run_cli
from pipeline.contracts.config import digest, load_config, to_toml
from pipeline.contracts.errors import AuditFinding


class Configured(NamedTuple):
    """A command with `--config`. What it needs is named here and imported when it is called."""

    name: str
    words: str  # of --help
    config: str
    plan: str  # configuration → what --check prints
    run: str  # configuration → what is printed when the work is done
    folders: tuple[str, ...] = ("out",)  # keys of the folders that it writes; such a key may be unset


CONFIGURED = (
    Configured(
        "overlap",
        "how much of each evaluation set is in a corpus, and what that did to the score",
        config="evaluation.config:OverlapConfig",
        plan="evaluation.overlap.job:plan",
        run="evaluation.overlap.job:run_and_tell",
        folders=("report.dir", "report.work", "descriptor.vectors"),
    ),
    Configured(
        "train-descriptor",
        "train the near-duplicate descriptor on a corpus's own pictures",
        config="evaluation.descriptor.config:TrainDescriptorConfig",
        plan="evaluation.descriptor.train:plan",
        run="evaluation.descriptor.train:run",
        folders=("run.out",),
    ),
    Configured(
        "zeroshot",
        "classify labelled sets by their class names alone",
        config="evaluation.config:ZeroshotConfig",
        plan="evaluation.scoring:plan",
        run="evaluation.scoring:run_zeroshot",
        folders=("out", "cache"),
    ),
    Configured(
        "retrieval",
        "find captions for pictures and pictures for captions",
        config="evaluation.config:ZeroshotConfig",
        plan="evaluation.scoring:plan_retrieval",
        run="evaluation.scoring:run_retrieval",
        folders=("out", "cache"),
    ),
    Configured(
        "label",
        "write pages on which people say whether near pictures are the same (after `overlap`, with its configuration)",
        config="evaluation.config:OverlapConfig",
        plan="evaluation.report.labelling:plan",
        run="evaluation.report.labelling:run",
        folders=("labelling.dir",),
    ),
    Configured(
        "probe",
        "a linear classifier on a model's features, its strength searched as in the paper",
        config="evaluation.config:ProbeConfig",
        plan="evaluation.probing:plan",
        run="evaluation.probing:run",
        folders=("out", "cache"),
    ),
    Configured(
        "fewshot",
        "the same from 1, 2, 4, 8 and 16 examples a class, by published lists",
        config="evaluation.config:FewshotConfig",
        plan="evaluation.fewshot:plan",
        run="evaluation.fewshot:run",
        folders=("out", "cache"),
    ),
    Configured(
        "bias",
        "the CLIP paper's probes of bias, on portraits that you have",
        config="evaluation.config:BiasConfig",
        plan="evaluation.bias:plan",
        run="evaluation.bias:run",
    ),
    Configured(
        "human",
        "write pages on which people classify the pictures of a set",
        config="evaluation.config:HumanConfig",
        plan="evaluation.human:plan",
        run="evaluation.human:run",
    ),
    Configured(
        "human-scores",
        "score what people answered on such pages, beside a model",
        config="evaluation.config:HumanConfig",
        plan="evaluation.human:plan",
        run="evaluation.human_scores:run",
    ),
    Configured(
        "robustness",
        "accuracy under the seven natural distribution shifts, beside what reference models keep",
        config="evaluation.config:RobustnessConfig",
        plan="evaluation.robustness:plan",
        run="evaluation.robustness:run",
    ),
)


def main(argv: list[str]) -> int | None:
    """Parse `argv` and run one command; returns its exit code (None is 0)."""
    arguments = parse(_parser(), argv)
    arguments.act(arguments)
    return None


def _parser() -> argparse.ArgumentParser:
    """Every command brings the function that does it, as `act`."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for one in CONFIGURED:
        configured = commands.add_parser(one.name, help=one.words, description=one.words, allow_abbrev=False)
        configured.set_defaults(act=functools.partial(_configured, one))
        add_config_arguments(configured)
    for name, act, words in (
        ("report", _report, "print a finished report; exit 3 when a set is over its limit"),
        (
            "verify",
            _verify,
            "recompute a report from its tables and compare every file with its sha256; exit 3 on a difference",
        ),
    ):
        reader = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
        reader.set_defaults(act=act)
        reader.add_argument("directory", metavar="DIR", help="the folder of the report (a path or s3://…)")
        if name == "verify":
            reader.add_argument(
                "--root",
                metavar="HEX",
                help="the report's root, kept elsewhere: no report that was forged since has it",
            )
    words = "the PDQ distance, or the descriptor's score, that people's labels choose for each set of a report"
    chooser = commands.add_parser("thresholds", help=words, description=words, allow_abbrev=False)
    chooser.set_defaults(act=_thresholds)
    chooser.add_argument("directory", metavar="DIR", help="the folder of the report that was labelled")
    chooser.add_argument("labels", metavar="LABELS", nargs="+", help="files that the labelling page exported")
    _add_figures(commands)
    return parser


def _add_figures(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands over finished answers, and the one for pictures of one's own."""
    for name, words in (
        ("compare", "models on the same sets, in pairs: the first place against every other one"),
        ("calibration", "do probabilities come true? ECE, Brier, log loss, a fitted temperature"),
        ("groups", "the worst subgroup of each set, and whether its gap is more than luck"),
    ):
        figures = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
        figures.set_defaults(act=_of_predictions)
        figures.add_argument(
            "places",
            metavar="PLACE",
            nargs="+",
            help="what `zeroshot` (for compare, also `retrieval`) wrote: its `out`, or one file",
        )
        figures.add_argument("--out", metavar="FILE", help="write the figures there too, as JSON")
    words = "zero-shot scores against the supervised probe's, over datasets"
    versus = commands.add_parser("versus-probe", help=words, description=words, allow_abbrev=False)
    versus.set_defaults(act=_versus_probe)
    versus.add_argument("zeroshot", metavar="ZEROSHOT", help="`out` of zeroshot, or its zeroshot.json")
    versus.add_argument("probe", metavar="PROBE", help="`out` of probe, or its probe.json")
    versus.add_argument("--fewshot", metavar="FEWSHOT", help="`out` of fewshot, for the shots that zero-shot is worth")
    versus.add_argument("--out", metavar="FILE", help="write the figures there too, as JSON")
    words = "use a model: which label fits a picture, which picture fits a sentence"
    use = commands.add_parser("predict", help=words, allow_abbrev=False)
    use.set_defaults(act=_predict)
    use.add_argument("images", metavar="IMAGE", nargs="+", help="picture files, or folders of them")
    use.add_argument("--model", required=True, help="what trainer.export wrote")
    use.add_argument("--labels", help="the labels to choose from, with commas between them")
    use.add_argument("--labels-file", metavar="FILE", help="the same, one a line")
    use.add_argument("--query", metavar="TEXT", help="order the pictures by how near they are to this sentence")
    use.add_argument(
        "--prompts", help="templates of the labels: general (the default), drawing, plain, or a file of them"
    )
    use.add_argument("--json", action="store_true", help="print JSON")


# ---- what the commands do


def _configured(command: Configured, arguments: argparse.Namespace) -> None:
    config = load_config(pkgutil.resolve_name(command.config), arguments.config, arguments.overrides)
    # The work may take hours: not before its output is known to have a place. --check asks no store.
    for key in command.folders:
        place = functools.reduce(lambda table, name: getattr(table, name, None), key.split("."), config)
        if place is not None and not (storage.is_s3(str(place)) and arguments.check):
            storage.require_folder(str(place))
    # The modules may load ray and torch: not before the configuration is known to be right.
    if arguments.check:
        plan = pkgutil.resolve_name(command.plan)(config)
        print(f"{to_toml(config)}\n# digest {digest(config)}\n# {plan}")
    else:
        print(pkgutil.resolve_name(command.run)(config))


def _report(arguments: argparse.Namespace) -> None:
    from evaluation.report import files, summary

    root = files.read_seal(arguments.directory).digest
    report = files.read_report(arguments.directory)
    print(f"{summary.as_text(report)}\nroot {root}")
    if report.over_limit:
        raise AuditFinding(
            f"{', '.join(report.over_limit)}: over the limit; read the evidence, then raise the set's limit or take the rows of "
            "removal_ids.txt out of the corpus"
        )


def _verify(arguments: argparse.Namespace) -> None:
    from evaluation.report import files, verify
    from evaluation.report.checking import NOT_RECOMPUTED

    problems = verify(arguments.directory, arguments.root)
    if problems:
        raise AuditFinding("\n".join(problems))
    print(
        f"{arguments.directory}: every file is as it was written, and the figures and the page follow from the tables and settings in it"
    )
    print(f"taken as given, because the folder alone does not show it: {NOT_RECOMPUTED}")
    root = files.read_seal(arguments.directory).digest
    kept = "is the one that was given" if arguments.root else "keep it elsewhere, and give it as `--root` the next time"
    print(f"root {root}: {kept}")


def _thresholds(arguments: argparse.Namespace) -> None:
    from evaluation.report import summary

    print(summary.thresholds_as_text(arguments.directory, arguments.labels))


def _of_predictions(arguments: argparse.Namespace) -> None:
    from evaluation import figures

    print(figures.run(arguments.command, arguments.places, arguments.out))


def _versus_probe(arguments: argparse.Namespace) -> None:
    from evaluation import versus_probe

    print(versus_probe.run(arguments.zeroshot, arguments.probe, arguments.fewshot, arguments.out))


def _predict(arguments: argparse.Namespace) -> None:
    from evaluation import predict

    print(
        predict.run(
            arguments.images,
            arguments.model,
            labels=arguments.labels,
            labels_file=arguments.labels_file,
            query=arguments.query,
            prompts=arguments.prompts,
            as_json=arguments.json,
        )
    )


if __name__ == "__main__":
    run_cli(main)
