"""`make demo`: the whole path on a small generated web, in about three minutes, with every answer known beforehand.

A seeded web of some thousands of pairs is planned (tests/web), with troubles planted in known numbers, and served on the loopback.
Then the same commands that the users of the README type are run, one after the other, each in a process of its own: the pipeline
turns the web into a corpus, DeepSpeed trains a tiny model on it in two processes, the weights are exported and scored, and the
audit looks for the test pictures that were planted in the corpus. At the end what came out stands beside what was planted, and the exit
code is 0 only if all of it agrees.

Everything is written under build/demo, fresh each time: what an earlier demo left there is removed first.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.contracts import manifest
from pipeline.contracts.manifest import Manifest
from tests.e2e import steps
from tests.e2e.steps import ROOT, Checks, StepFailed, Steps
from tests.ports import free_port
from tests.web import scenes, server, tables
from tests.web.site import REASONS, STAGES, Count, Kind, Web, total_rejected
from tests.web.tables import Leak

SEED = 7
PAIRS = 3600
PORT = 28_411  # the same each time, if it is free: URLs are part of a pair's identity, so the same port gives the same corpus
BROKEN_LINES = 3
TEST_ROWS, LEAKS = 480, 48
MAX_BYTES = 2_000_000
BATCH, TRAINING_STEPS = 64, 160
OUT = ROOT / "build" / "demo"
MARK = OUT / ".demo"


@dataclass(frozen=True)
class Places:
    """What the commands are told to read and write, relative to the repository root."""

    corpus: str = "build/demo/corpus"
    manifest: str = "build/demo/corpus/shards/manifest.json"
    run: str = "build/demo/training"
    model: str = "build/demo/model.safetensors"
    scores: str = "build/demo/scores"
    report: str = "build/demo/report"
    test_set: str = "build/demo/test_set.parquet"


PLACES = Places()


def main() -> int:
    """Run the demo; returns the exit code."""
    print("This is the whole path, from a web to an audited model, on a web that is generated here.", flush=True)
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    _fresh_folder()
    doing = Steps(OUT / "logs", total=7)
    try:
        doing.say(
            f"Serve a web of {PAIRS:,} pictures with captions on the loopback (seed {SEED}), every trouble of the real web planted in it"
        )
        with server.running(SEED, PAIRS, port=server.free_or_any(PORT)) as web:
            leaks = _write_inputs(web, doing)
            _run_pipeline(doing)
            hits = server.hits(web)
            _train(doing)
            _export(doing)
            _score(doing)
            _audit(doing)
            checks = _summary(web, hits, leaks)
    except StepFailed as failed:
        print(f"\n{failed}\nThe demo stops here: the command above failed.", file=sys.stderr)
        return 1
    print(f"\nOpen in a browser: {PLACES.report}/report.html")
    print(f"All commands together took {doing.seconds:.0f} s.")
    if checks.failed:
        print(f"\n{len(checks.failed)} of the checks above did NOT hold.", file=sys.stderr)
        return 1
    print("Everything that came out is what was planted.")
    return 0


def _fresh_folder() -> None:
    if OUT.exists():
        if not MARK.exists():
            raise SystemExit(f"error: {OUT}: exists and is not of an earlier demo; move it away")
        shutil.rmtree(OUT)
    (OUT / "logs").mkdir(parents=True)
    MARK.touch()


# ---- the inputs


def _write_inputs(web: Web, doing: Steps) -> list[Leak]:
    """The URL table, the query list, the labelled set, and a configuration for each command."""
    doing.say(
        f"Write what a user would bring: URL tables, a query list, {TEST_ROWS} labelled test pictures "
        f"({LEAKS} of them also on the web)"
    )
    tables.write_tables(web, OUT / "tables", BROKEN_LINES)
    tables.write_queries(OUT / "queries.txt")
    leaks = tables.write_evaluation(web, ROOT / PLACES.test_set, TEST_ROWS, LEAKS)
    _write_configs(web)
    print(f"      {OUT.relative_to(ROOT)}/: tables/, queries.txt, test_set.parquet, and a .toml for each command")
    return leaks


def _write_configs(web: Web) -> None:
    steps.write_toml(
        OUT / "pipeline.toml",
        "python -m pipeline run --config build/demo/pipeline.toml",
        {
            "run": {"out": PLACES.corpus, "seed": SEED},
            "sources": {"paths": ["build/demo/tables"], "rows_per_unit": 1000},
            "filter": {"queries": "build/demo/queries.txt"},
            "precap": {"per_query": 2 * web.cap},
            "crawl": {
                "units": 4,
                "concurrency": 24,
                "per_host": 8,
                "timeout_s": 8.0,
                "retries": 0,
                "max_bytes": MAX_BYTES,
                "image_size": 128,
                "user_agent_token": "demo-crawler",
                "allow_addresses": [
                    "127.0.0.0/8"
                ],  # the web of the demo is on the loopback, which is never fetched otherwise
            },
            "balance": {"cap": web.cap},
            "shard": {"rows": 500},
        },
    )
    steps.write_toml(
        OUT / "trainer.toml",
        "deepspeed --num_gpus 2 --module trainer --config build/demo/trainer.toml",
        {
            "data": {"manifest": PLACES.manifest, "workers": 0},
            # Convolutional: it learns shapes, not only colours, within so few steps (41 % against 12 % of `tiny-vit`, one seed each).
            "model": {"preset": "tiny", "image_size": 32, "context_length": 24},
            "tokenizer": {"kind": "bpe", "train_size": 1024},
            "optim": {"lr": 2e-3, "steps": TRAINING_STEPS, "warmup_steps": TRAINING_STEPS // 10},
            "batch": {"global_size": BATCH},
            "zero": {"stage": 1},
            "run": {"dir": PLACES.run, "seed": SEED, "log_every": 4, "save_every": TRAINING_STEPS},
        },
    )
    test_set = {"name": "scenes", "path": PLACES.test_set, "label": "name", "id": "id", "caption": "caption"}
    steps.write_toml(
        OUT / "zeroshot.toml",
        "python -m evaluation zeroshot --config build/demo/zeroshot.toml",
        {
            "model": PLACES.model,
            "out": PLACES.scores,
            "prompts": {"templates": ["a {}", "a card shows a {}", "a {} on a plain background"]},
            "sets": [{**test_set, "classes": list(scenes.CLASSES), "absent_classes": True}],
        },
    )
    steps.write_toml(
        OUT / "overlap.toml",
        "python -m evaluation overlap --config build/demo/overlap.toml",
        {
            "corpus": {"manifest": PLACES.manifest},
            "sets": [
                {
                    **test_set,
                    "classes": list(scenes.CLASSES),
                    "absent_classes": True,
                    "limit": 1.0,
                    "predictions": f"{PLACES.scores}/predictions/scenes.parquet",
                }
            ],
            "report": {"dir": PLACES.report},
        },
    )


# ---- the commands


def _run_pipeline(doing: Steps) -> None:
    doing.say("Data engineer: web -> corpus. Filter by the query list, fetch, remove duplicates, cap, write shards")
    doing.run(["python", "-m", "pipeline", "run", "--config", "build/demo/pipeline.toml"], "pipeline.log", 600)


def _train(doing: Steps) -> None:
    doing.say(
        f"ML engineer: corpus -> model. {TRAINING_STEPS} steps of {BATCH} pairs in two processes under ZeRO 1, on the CPU"
    )
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port())]
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    doing.run(
        [*command, "--module", "trainer", "--config", "build/demo/trainer.toml"],
        "trainer.log",
        1200,
        {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads},
    )


def _export(doing: Steps) -> None:
    doing.say("ML engineer: export the weights, so that they can be used without DeepSpeed")
    doing.run(["python", "-m", "trainer.export", PLACES.run, "--out", PLACES.model], "export.log", 300)


def _score(doing: Steps) -> None:
    doing.say("Researcher: zero-shot. Name the class of test pictures from the class names alone")
    doing.run(["python", "-m", "evaluation", "zeroshot", "--config", "build/demo/zeroshot.toml"], "zeroshot.log", 300)


def _audit(doing: Steps) -> None:
    doing.say("Auditor: which test pictures were in the training corpus, and did that change the score?")
    doing.run(["python", "-m", "evaluation", "overlap", "--config", "build/demo/overlap.toml"], "overlap.log", 300)


# ---- the summary


def _summary(web: Web, hits: Mapping[int, int], leaks: list[Leak]) -> Checks:
    checks = Checks()
    corpus = manifest.load(PLACES.manifest)
    print(f"\n{'=' * 100}\nSUMMARY: what came out, beside what was planted\n{'=' * 100}")
    _corpus_summary(web, corpus, hits, checks)
    _training_summary(checks)
    _score_summary(checks)
    _overlap_summary(web, leaks, corpus, checks)
    return checks


def _corpus_summary(web: Web, corpus: Manifest, hits: Mapping[int, int], checks: Checks) -> None:
    planted = web.expected(broken_lines=BROKEN_LINES)
    found = {name: Count(one.rows_in, one.rows_out, one.rejected) for name, one in corpus.counts.items()}
    print("\n1. The corpus: pairs in and out of every stage, and why pairs were left out (found / planted)\n")
    print(f"  {'stage':<12}{'in':>7}{'out':>7}   left out")
    for stage in STAGES:
        reasons = sorted({*found[stage].rejected, *planted[stage].rejected} - {"over_cap"})
        said = [
            f"{reason} {found[stage].rejected.get(reason, 0)}/{planted[stage].rejected.get(reason, 0)}"
            for reason in reasons
        ]
        if "over_cap" in found[stage].rejected:
            said.append(f"over_cap {found[stage].rejected['over_cap']}")
        for number, line in enumerate(said[i : i + 4] for i in range(0, max(1, len(said)), 4)):
            head = f"  {stage:<12}{found[stage].rows_in:>7,}{found[stage].rows_out:>7,}" if number == 0 else " " * 28
            print(f"{head}   {', '.join(line)}")
    print()
    got, due = total_rejected(found), total_rejected(planted)
    for reason in sorted({*got, *due}):
        if got.get(reason, 0) != due.get(reason, 0):
            checks.that(False, f"{reason}: {got.get(reason, 0)} left out, {due.get(reason, 0)} planted")
    checks.that(
        got == due,
        f"{sum(got.values()):,} of {planted['candidates'].rows_in:,} rows were left out, for {len(got)} reasons, each as often as planted",
    )
    checks.that(corpus.rows == planted["shards"].rows_out, f"{corpus.rows:,} pairs are in the corpus, as planned")
    refused = [row.k for row in web.rows() if row.kind in (Kind.PRIVATE_ADDRESS, Kind.UNRELATED, Kind.NO_CAPTION)]
    checks.that(
        not any(k in hits for k in refused),
        f"none of the {len(refused)} rows that are not to be fetched was asked for (private addresses, no query, no caption)",
    )
    once = [row.k for row in web.rows() if row.kind not in REASONS and row.kind is not Kind.REDIRECTED]
    checks.that(
        max(hits.get(k, 0) for k in once) == 1, "no good picture was fetched twice, also where a URL has two captions"
    )


def _training_summary(checks: Checks) -> None:
    points = steps.losses(ROOT / PLACES.run)
    values = [loss for _, loss in points]
    guessing = log(BATCH)
    steps.plot_losses(points, OUT / "loss.png", guessing)
    last = sum(values[-5:]) / len(values[-5:])
    print(
        f"\n2. The training: contrastive loss over {points[-1][0]} steps (a model that guesses stays at {guessing:.2f})\n"
    )
    print(f"  {values[0]:.2f} {steps.sparkline(values)} {last:.2f}      {OUT.relative_to(ROOT)}/loss.png\n")
    checks.that(last < 0.8 * guessing, f"the loss fell to {last:.2f}, at least a fifth below guessing")


def _score_summary(checks: Checks) -> None:
    figures = json.loads((ROOT / PLACES.scores / "zeroshot.json").read_text())["sets"]["scenes"]
    top1, chance = figures["top1"], figures["chance"]
    print(f"\n3. The score: one of {figures['classes']} classes for each of {figures['n']} test pictures\n")
    print(f"  accuracy {top1['value']:.1%} (95% interval {top1['low']:.1%} to {top1['high']:.1%})")
    print(
        f"  chance   {chance:.1%}   (and {figures['constant']:.1%} for always answering {figures['constant_class']!r})\n"
    )
    checks.that(
        top1["low"] > 5 * chance, "the accuracy is well above chance: even its lower bound is over five times chance"
    )


def _overlap_summary(web: Web, leaks: list[Leak], corpus: Manifest, checks: Checks) -> None:
    report = json.loads((ROOT / PLACES.report / "report.json").read_text())
    pairs = pq.read_table(ROOT / PLACES.report / "pairs.parquet", columns=["eval_row", "url"])
    found = set(pc.unique(pairs["eval_row"]).to_pylist())
    print(f"\n4. The audit: test pictures that are also in the training corpus (found / planted, of {TEST_ROWS})\n")
    for manner in ("exact", "recompressed", "smaller"):
        planted = {leak.row for leak in leaks if leak.manner == manner}
        print(f"  {manner:<14}{len(planted & found):>3} / {len(planted)}")
    wrong = found - {leak.row for leak in leaks}
    print(f"  {'falsely found':<14}{len(wrong):>3} / 0\n")
    checks.that(found == {leak.row for leak in leaks}, "every planted picture was found, and no other")
    source = {leak.row: leak.k for leak in leaks}
    pointed = [
        (int(row), _origin(web, url))
        for row, url in zip(*(pairs[name].to_pylist() for name in pairs.column_names), strict=True)
    ]
    checks.that(
        all(source.get(row) == k for row, k in pointed),
        "every match points at the page of the web that it was copied from",
    )
    checks.that(
        report["corpus"]["content_root"] == corpus.content_root,
        f"report, model and corpus are one: {corpus.content_root[:16]}…",
    )


def _origin(web: Web, url: str) -> int:
    """The row whose picture is behind a URL of the web."""
    return web.origin(int(Path(url).stem))


if __name__ == "__main__":
    sys.exit(main())
