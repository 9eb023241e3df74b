"""`python -m evaluation overlap|train-descriptor|label|zeroshot|retrieval|probe|fewshot --config FILE [--check] [key=value …]`,
`report DIR`, `verify DIR`, `thresholds DIR LABELS…`.

`compare`, `calibration`, `groups` and `versus-probe` take what the scoring commands wrote, `predict` takes pictures, `robustness`, `bias`,
`human` and `human-scores` a configuration.

`report`, `verify` and `thresholds` read a finished report and load neither ray nor torch: an auditor's machine needs neither. That is why
the commands import their modules inside the functions below.
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
    if arguments.command == "label":
        return _label(arguments)
    if arguments.command == "thresholds":
        return _thresholds(arguments.directory, arguments.labels)
    if arguments.command == "probe":
        return _probe(arguments)
    if arguments.command == "fewshot":
        return _fewshot(arguments)
    if arguments.command in ("human", "human-scores"):
        return _human(arguments)
    if arguments.command == "bias":
        return _bias(arguments)
    if arguments.command == "robustness":
        return _robustness(arguments)
    if arguments.command == "predict":
        return _predict(arguments)
    if arguments.command == "versus-probe":
        return _versus_probe(arguments)
    if arguments.command in ("compare", "calibration", "groups"):
        return _of_predictions(arguments)
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
        (
            "label",
            "write pages on which people say whether near pictures are the same (after `overlap`, with its configuration)",
        ),
        ("probe", "a linear classifier on a model's features, its strength searched as in the paper"),
        ("fewshot", "the same from 1, 2, 4, 8 and 16 examples a class, by published lists"),
        ("bias", "the CLIP paper's probes of bias, on portraits that you have"),
        ("human", "write pages on which people classify the pictures of a set"),
        ("human-scores", "score what people answered on such pages, beside a model"),
        ("robustness", "accuracy under the seven natural distribution shifts, beside what reference models keep"),
    ):
        add_config_arguments(commands.add_parser(name, help=words, description=words, allow_abbrev=False))
    for name, words in (
        ("report", "print a finished report; exit 3 when a set is over its limit"),
        ("verify", "recompute a report from its tables and compare every file with its sha256; exit 3 on a difference"),
    ):
        reader = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
        reader.add_argument("directory", metavar="DIR", help="the folder of the report (a path or s3://…)")
    words = "the PDQ distance that people's labels choose for each set of a report"
    chooser = commands.add_parser("thresholds", help=words, description=words, allow_abbrev=False)
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
        figures.add_argument(
            "places", metavar="PLACE", nargs="+", help="what `zeroshot` wrote: its `out`, or one prediction file"
        )
        figures.add_argument("--out", metavar="FILE", help="write the figures there too, as JSON")
    words = "zero-shot scores against the supervised probe's, over datasets"
    versus = commands.add_parser("versus-probe", help=words, description=words, allow_abbrev=False)
    versus.add_argument("zeroshot", metavar="ZEROSHOT", help="`out` of zeroshot, or its zeroshot.json")
    versus.add_argument("probe", metavar="PROBE", help="`out` of probe, or its probe.json")
    versus.add_argument("--fewshot", metavar="FEWSHOT", help="`out` of fewshot, for the shots that zero-shot is worth")
    versus.add_argument("--out", metavar="FILE", help="write the figures there too, as JSON")
    _add_predict(
        commands.add_parser(
            "predict", help="use a model: which label fits a picture, which picture fits a sentence", allow_abbrev=False
        )
    )


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="picture files, or folders of them")
    parser.add_argument("--model", required=True, help="what trainer.export wrote")
    parser.add_argument("--labels", help="the labels to choose from, with commas between them")
    parser.add_argument("--labels-file", metavar="FILE", help="the same, one a line")
    parser.add_argument("--query", metavar="TEXT", help="order the pictures by how near they are to this sentence")
    parser.add_argument("--prompts", default="general", help="templates: general, drawing, plain, or a file of them")
    parser.add_argument("--json", action="store_true", help="print JSON")


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
    print(f"weights and card: {config.run.out}")
    return None


def _label(arguments: argparse.Namespace) -> int | None:
    from evaluation.config import OverlapConfig
    from evaluation.report import labelling

    config = load_config(OverlapConfig, arguments.config, arguments.overrides)
    if arguments.check:
        _show_check(config, labelling.plan(config))
        return None
    # Loads ray, whose stages know where the pictures of a corpus that others wrote lie.
    from evaluation.overlap import corpus, job

    for place, asked in labelling.write(config, corpus.pictures_of(config.corpus, job.work_folder(config))):
        print(f"{place}: {asked:,} pairs")
    print(
        f"open each page in a browser, answer, export; then: python -m evaluation thresholds {config.report.dir} labels-….jsonl"
    )
    return None


def _thresholds(directory: str, labels: list[str]) -> int | None:
    from evaluation.report import summary

    print(summary.thresholds_as_text(directory, labels))
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


def _probe(arguments: argparse.Namespace) -> int | None:
    from evaluation.config import ProbeConfig

    config = load_config(ProbeConfig, arguments.config, arguments.overrides)
    # Loads torch: not before the configuration is known to be right.
    from evaluation import probing

    if arguments.check:
        _show_check(config, probing.plan(config))
        return None
    print(probing.run(config))
    return None


def _fewshot(arguments: argparse.Namespace) -> int | None:
    from evaluation.config import FewshotConfig

    config = load_config(FewshotConfig, arguments.config, arguments.overrides)
    # Loads torch: not before the configuration is known to be right.
    from evaluation import fewshot

    if arguments.check:
        _show_check(config, fewshot.plan(config))
        return None
    print(fewshot.run(config))
    return None


def _human(arguments: argparse.Namespace) -> int | None:
    from evaluation import human, human_scores
    from evaluation.config import HumanConfig

    config = load_config(HumanConfig, arguments.config, arguments.overrides)
    if arguments.check:
        _show_check(config, human.plan(config))
        return None
    print(human.run(config) if arguments.command == "human" else human_scores.run(config))
    return None


def _bias(arguments: argparse.Namespace) -> int | None:
    from evaluation.config import BiasConfig

    config = load_config(BiasConfig, arguments.config, arguments.overrides)
    from evaluation import bias  # loads torch: not before the configuration is known to be right

    if arguments.check:
        _show_check(config, bias.plan(config))
        return None
    print(bias.run(config))
    return None


def _robustness(arguments: argparse.Namespace) -> int | None:
    from evaluation import robustness
    from evaluation.config import RobustnessConfig

    config = load_config(RobustnessConfig, arguments.config, arguments.overrides)
    if arguments.check:
        _show_check(config, robustness.plan(config))
        return None
    print(robustness.run(config))
    return None


def _of_predictions(arguments: argparse.Namespace) -> int | None:
    from evaluation import figures

    print(figures.run(arguments.command, arguments.places, arguments.out))
    return None


def _versus_probe(arguments: argparse.Namespace) -> int | None:
    from evaluation import versus_probe

    print(versus_probe.run(arguments.zeroshot, arguments.probe, arguments.fewshot, arguments.out))
    return None


def _predict(arguments: argparse.Namespace) -> int | None:
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
