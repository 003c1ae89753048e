"""Draws which bytes of a model an added expert moved.

`python scripts/bytes_moved.py BEFORE AFTER OUT.png` takes two model folders.

Every tensor of both folders is hashed, and every row of a router by itself. Grey is the same bytes
in both, colour is what came or changed. The picture of docs/experts.md is drawn so.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from medmoe.model.expert_tensors import owner
from medmoe.model.experts import MoeFolder, moved
from medmoe.routing.figure_style import INK

GREYS = ("#c4c7c5", "#dadce0")
NEW, RED = "#E69F00", "#b3261e"
PARTS = ("vision_tower", "projector", "meta_expert", "gate", "domain_check")
NAMES = {
    "vision_tower": "vision encoder", "projector": "projector", "meta_expert": "meta expert",
    "language_model": "language model", "gate": "routers", "domain_check": "out-of-domain check",
}  # fmt: skip


def part_of(key: str) -> str:
    if name := owner(key):
        return "gate" if key.endswith("]") else f"expert {name}"
    return next((part for part in PARTS if part in key), "language_model")


def sizes(tensors: dict[str, Tensor], part: str) -> int:
    return sum(t.nbytes for key, t in tensors.items() if part_of(key) == part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    before, after = (MoeFolder(path) for path in (args.before, args.after))
    found = moved(before.tensors, after.tensors)
    came, changed = found["came"], [*found["changed"], *found["went"]]
    same, new = (sum(after.tensors[k].nbytes for k in found[kind]) for kind in ("same", "came"))
    (name,) = {owner(key) for key in came}
    print(f"the same {same:,} bytes in {len(found['same'])} tensors and rows; came {new:,} in "
          f"{len(came)}; changed or went: {len(changed)}")  # fmt: skip
    order = [*dict.fromkeys(map(part_of, after.tensors))]
    order.sort(key=lambda part: (part.startswith("expert"), part == "gate"))
    total = sum(t.nbytes for t in after.tensors.values())
    with rc_context({"font.size": 8, "text.color": INK}):
        figure = Figure(figsize=(7.2, 2.5), layout="constrained")
        strips, rows = figure.subplots(2, 1, height_ratios=[2, 1.25])
        for y, (what, tensors) in enumerate((("after", after.tensors), ("before", before.tensors))):
            left = 0.0
            for number, part in enumerate(order):
                width = sizes(tensors, part) / total
                here = [k for k in tensors if part_of(k) == part]
                moves = any(k in changed for k in here)
                fresh = here and all(k in came for k in here)
                colour = RED if moves else NEW if fresh else GREYS[number % 2]
                strips.barh(y, width, left=left, color=colour, height=0.62, edgecolor="white")
                if width > 0.05:
                    said = NAMES.get(part, part).replace(" ", "\n", 1)
                    strips.text(left + width / 2, y, said, ha="center", va="center", fontsize=6.5)
                left += width
            strips.text(-0.01, y, what, ha="right", va="center")
        strips.set_title(
            f"All weights, by bytes: {same / 2**20:,.1f} MiB the same before and after, "
            f"{new / 2**20:,.1f} MiB came, {len(changed)} tensors changed or went",
            fontsize=8, loc="left",
        )  # fmt: skip
        gate = next(k.partition("[")[0] for k in came if k.endswith("]"))
        labels = [k[len(gate) + 1 : -1] for k in after.tensors if k.startswith(f"{gate}[")]
        for x, label in enumerate(labels):
            colour = NEW if label == name else GREYS[0]
            rows.barh(0, 0.96, left=x, color=colour, height=0.6)
            rows.text(x + 0.48, 0, label, ha="center", va="center")
        layers = len({k for k in came if k.endswith("weight" + f"[{name}]") and ".gate." in k})
        rows.set_title(
            f"The router of each of {layers} MoE layers: one row and its bias came, the others "
            "are the same bytes", fontsize=8, loc="left",
        )  # fmt: skip
        for axes in (strips, rows):
            axes.set_axis_off()
        figure.savefig(args.out, dpi=200)


if __name__ == "__main__":
    main()
