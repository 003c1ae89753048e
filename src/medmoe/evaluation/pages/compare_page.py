"""The page of a comparison: verdict, wins and losses, and the pictures whose answers flipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from medmoe.evaluation.compare import Comparison, Difference, Flip
from medmoe.evaluation.files.known_records import known_records, picture_of, with_question
from medmoe.evaluation.pages.page import render_page
from medmoe.evaluation.pages.table import FAILS, Table
from medmoe.files import write_text
from medmoe.numbers import NONE, count, gain, percent, points

MAX_FLIPS = 60


def write_compare_page(
    path: Path,
    names: tuple[str, str],
    comparisons: Sequence[Comparison],
    *,
    root: Path | None,
    images: Path | None,
    phantom_seed: int,
) -> None:
    """Write the page, as `write_text` does.

    Args:
        path: The HTML file.
        names: Sides A and B, as the user named them.
        comparisons: One comparison per set of records.
        root: Folder of the data sets, for questions and pictures.
        images: Folder of pictures under their own names, for other models' records.
        phantom_seed: The seed that the phantom's pictures were drawn with.
    """
    flips = [flip for comparison in comparisons for flip in comparison.flips]
    chosen = most_telling(flips, MAX_FLIPS)
    known = known_records([flip.record for flip in chosen], root, phantom_seed)
    shown = [
        {
            "record": with_question(flip.record, known),
            "a": answers_in_words(flip.a),
            "b": answers_in_words(flip.b),
            "won": flip.change > 0,
            "picture": picture_of(flip.record, known, images),
        }
        for flip in chosen
    ]
    differences = [row for comparison in comparisons for row in comparison.differences]
    text = render_page(
        "compare",
        title="B against A",
        a=names[0],
        b=names[1],
        runs=(len(differences[0].a_runs), len(differences[0].b_runs)),
        verdict=verdict(differences),
        worse=bool(losses(differences)),
        sentences=list(sentences(differences)),
        differences=[difference_table(comparison) for comparison in comparisons],
        wins=[wins_table(comparison) for comparison in comparisons],
        flips=shown,
        flipped=len(flips),
        without_picture=sum(flip["picture"] is None for flip in shown),
    )
    write_text(path, text)


def difference_table(comparison: Comparison) -> Table:
    """Return A, B and B − A with interval and p; a bracket behind A or B holds it run by run."""
    rows = [
        (
            row.subset,
            ("● " if row.decides else "") + row.metric.replace("_", " "),
            _side(row.a, row.a_runs),
            _side(row.b, row.b_runs),
            (FAILS if row.worse else "") + gain(row.difference, row.low, row.high),
            NONE if row.p is None else f"{row.p:.2g}",
            count(row.n),
            count(row.images),
        )
        for row in comparison.differences
    ]
    notes = [f"{FAILS}B is worse."] if any(row.worse for row in comparison.differences) else []
    if any(len(row.a_runs) + len(row.b_runs) > 2 for row in comparison.differences):
        notes.append("The brackets behind A and B hold the values run by run.")
    columns = ("Subset", "Metric", "A", "B", "B − A", "p", "n", "Images")
    return Table(columns, rows, comparison.differences[0].name, 2, notes)


def wins_table(comparison: Comparison) -> Table:
    """Return how many questions both sides, one side or neither answer right."""
    rows = [
        (row.subset, *map(count, (row.both_right, row.only_a, row.only_b, row.both_wrong, row.n)))
        for row in comparison.wins
    ]
    columns = ("Subset", "Both right", "Only A", "Only B", "Both wrong", "n")
    return Table(columns, rows, comparison.differences[0].name)


def _side(value: float, runs: Sequence[float]) -> str:
    by_run = f" ({', '.join(map(percent, runs))})" if len(runs) > 1 else ""
    return percent(value) + by_run


def most_telling(flips: Sequence[Flip], limit: int) -> list[Flip]:
    """Return at most ``limit`` flips, losses first: half of each kind where there are enough."""
    lost = [flip for flip in flips if flip.change < 0]
    won = sorted((flip for flip in flips if flip.change > 0), key=lambda flip: -flip.change)
    half = limit // 2
    first = lost[: max(half, limit - len(won))]
    return first + won[: limit - len(first)]


def answers_in_words(answers: Sequence[str]) -> str:
    """Return the answers of several runs, each once and with how often it was given."""
    counts = {answer: answers.count(answer) for answer in answers}
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    several = len(answers) > 1
    return "; ".join(f"{a or '(empty)'}{f' ({n}×)' if several else ''}" for a, n in ordered)


def losses(differences: Sequence[Difference]) -> list[Difference]:
    """Return the deciding rows in which B is worse."""
    return [row for row in differences if row.decides and row.worse]


def verdict(differences: Sequence[Difference]) -> str:
    """Return in a sentence whether B is worse than A."""
    lost = losses(differences)
    won = [row for row in differences if row.decides and row.better]
    places = ", ".join(dict.fromkeys(map(_place, lost or won)))
    if lost:
        return f"B is worse than A: {places}."
    if won:
        return f"B is better than A: {places}. Nowhere is it shown to be worse."
    return "Neither is shown to be better."


def sentences(differences: Sequence[Difference]) -> Iterator[str]:
    """Say of each deciding row what its interval bears."""
    for row in differences:
        if not row.decides:
            continue
        text = f"{_place(row)}: {points(row.difference)} points"
        if row.low is None or row.high is None:
            yield f"{text}; a single image gives no interval, so this shows nothing."
            continue
        inside = f"{points(row.low)} to {points(row.high)}, n = {row.n}"
        said = "the interval holds zero"
        if row.worse or row.better:
            said = "B is worse" if row.worse else "B is better"
        # A point may be less than one question.
        count = round(abs(row.difference) / 100 * row.n)
        many = "" if count == 1 else "s"
        yield f"{text}, about {count} question{many} ({inside}): {said}."


def _place(row: Difference) -> str:
    return " ".join(part for part in (row.name, row.subset) if part)
