"""`medmoe score PREDICTIONS [TRUTH]`: any model's answers under every protocol, side by side."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmoe.cli import flags
from medmoe.cli.parser import FOOTER, Parser
from medmoe.errors import ConfigError

if TYPE_CHECKING:
    from medmoe.evaluation.judge import Judge
    from medmoe.evaluation.score.rows import ScoreRow
    from medmoe.evaluation.score_files import Answers


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `score`."""
    parser.add_value(
        "predictions PREDICTIONS",
        "JSON lines, a JSON array or CSV: id, prediction; option_scores for label_score; or a run "
        "folder",
        Path,
    )
    parser.add_value(
        "truth TRUTH",
        "the same with id, answer, answer_type, image, subset (default: what PREDICTIONS "
        "itself holds, as medmoe writes it)",
        Path,
        nargs="?",
    )
    parser.add_shared("--protocol")
    parser.add_switch(
        "--without-thinking",
        "score answers without what the model thought first, e.g. <think>…</think>",
    )
    parser.add_value(
        "--train FILE", "truth of the training split, to choose the constant answers on", Path
    )
    parser.add_value(
        "--blind-twin FILE",
        "answers of a model trained alike without pictures: the picture's share beside each score",
        Path,
    )
    parser.add_value(
        "--task NAME", "what was answered, e.g. vqa_rad: also show what the paper reports on it"
    )
    _add_reliability(parser)
    parser.add_value(
        "--judge URL",
        "also let a language model judge the answers: an OpenAI-compatible endpoint, which is "
        "sent questions and answers; its key stands in $MEDMOE_API_KEY",
        flags.address,
    )
    parser.add_value("--judge-model NAME", "the model of --judge")
    parser.add_shared("--data")
    parser.add_value("--report FILE", "also write an HTML report", Path)
    parser.add_shared("--seed", "--format", "--json")


def _add_reliability(parser: Parser) -> None:
    parser.add_switch(
        "--reliability",
        "also say how far the confidences can be trusted: calibration, risk and coverage",
    )
    parser.add_value(
        "--calibrate FILE",
        "answers to another split, e.g. validation (a file or run folder): choose temperature "
        "and abstention on them; with --reliability",
        Path,
    )
    parser.add_value(
        "--calibrate-truth FILE", "truth of --calibrate (default: what its own file holds)", Path
    )
    parser.add_shared("--target-risk")


def run(args: argparse.Namespace) -> int:
    """Print the scores of all protocols with n, intervals and constant answers."""
    from medmoe.cli.tables import Screen
    from medmoe.evaluation.score_files import answers_of, score_summary, write_score_report

    _check_flags(args)
    answers = answers_of(args.predictions, args.truth, without_thinking=args.without_thinking)
    if (args.task or args.blind_twin) and len(answers) > 1:
        flag, what = ("--task", "task") if args.task else ("--blind-twin", "file")
        raise ConfigError(
            f"{flag} names one {what}, {args.predictions} holds {len(answers)} prediction files; "
            "score one of them"
        )
    scored = _scored(args, answers)
    results = [result | {"use": FOOTER} for result, _ in scored]
    summary = score_summary(results, [row for _, rows in scored for row in rows])
    screen = Screen()
    for result in results:
        screen.line(f"{result['predictions']}: {result['n']} records, {result['images']} images")
    screen.results(summary)
    print(FOOTER)
    if args.report:
        write_score_report(args.report, results, summary)
    if list(answers) == [""] or len(results) == 1:
        flags.write_json(args.json, results[0])
    else:
        files = dict(zip(answers, results, strict=True))
        head = {"version": 1, "predictions": args.predictions.name, "seed": args.seed}
        flags.write_json(args.json, {**head, "files": files, "use": FOOTER})
    return 0


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse a flag that means nothing without another."""
    if args.calibrate is not None and not args.reliability:
        raise ConfigError("--calibrate is about confidences; add --reliability")
    if (args.judge is None) != (args.judge_model is None):
        raise ConfigError("--judge needs the name of its model and the other way; give both")
    for flag, value in (
        ("--calibrate-truth", args.calibrate_truth),
        ("--target-risk", args.target_risk),
    ):
        if value is not None and args.calibrate is None:
            raise ConfigError(f"{flag} needs answers to choose on; add --calibrate FILE")


def _judge(args: argparse.Namespace) -> Judge:
    """Return the judge, once what it is told is printed."""
    from medmoe.data.registry import find_data
    from medmoe.evaluation.judge import PROMPT, Judge
    from medmoe.inference.endpoint import Endpoint

    print(f"Questions and answers, no pictures, go to {args.judge}, with:\n{PROMPT}\n", flush=True)
    endpoint = Endpoint(args.judge, args.judge_model, os.environ.get("MEDMOE_API_KEY"), 8)
    return Judge(endpoint, args.judge_model, find_data(args.data))


def _scored(
    args: argparse.Namespace, answers: dict[str, Answers]
) -> list[tuple[dict[str, Any], list[ScoreRow]]]:
    """Return the scores of each prediction file."""
    from medmoe.evaluation.files.truth import read_truth
    from medmoe.evaluation.protocols import ALL_PROTOCOLS
    from medmoe.evaluation.score_files import Answers, calibrations, score_answers

    chosen = args.protocol or ["all"]
    wanted = ALL_PROTOCOLS if "all" in chosen else tuple(dict.fromkeys(chosen))
    train = read_truth(args.train) if args.train else ()
    twin = Answers(args.blind_twin, None, args.without_thinking) if args.blind_twin else None
    judge = _judge(args) if args.judge else None
    others = calibrations(args.calibrate, args.calibrate_truth, answers)
    return [
        score_answers(
            own,
            name=name,
            task=args.task,
            train=train,
            twin=twin.read() if twin else None,
            wanted=wanted,
            seed=args.seed,
            judged=args.reliability,
            judge=judge,
            calibration=others[name],
            target=args.target_risk or 0.1,
        )
        for name, own in answers.items()
    ]
