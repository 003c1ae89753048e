"""Ask a trained model about one picture, and print what its answer rests on.

    python examples/ask.py runs/demo/model runs/demo/examples/ct.png "Is there any nodule?"

Research use only, not a medical device.
"""

from __future__ import annotations

import sys

from medmoe import MedMoe
from medmoe.inference.evidence import explain


def main(folder: str, picture: str, question: str) -> None:
    model = MedMoe.load(folder)
    evidence = explain(model, picture, question)
    print(evidence.answer)
    if evidence.confidence is not None:  # None about a flat picture
        print(f"confidence: {evidence.confidence:.2f} (not calibrated)")
    if evidence.routing is not None:  # None of a dense model
        print(f"domain: {evidence.routing.domain} ({evidence.routing.domain_probability:.2f})")
        for layer, shares in evidence.routing.experts.items():
            most = max(shares, key=lambda name: shares[name])
            print(f"layer {layer}: {most} has {100 * shares[most]:.0f} % of the image's tokens")
    for change in evidence.counterfactuals:
        print(f"{change.change}: {change.answer}")
    if not evidence.attribution.deletion.passed:
        print("the regions did not pass their deletion test; do not rely on them")
    print(evidence.note)


if __name__ == "__main__":
    main(*sys.argv[1:])
