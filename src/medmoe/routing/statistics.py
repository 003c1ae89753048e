"""What the routers did, as numbers: expert shares, load entropy and the specialisation index.

The index says in one number what the paper shows in figures 4 and 5: the mutual information of
domain and expert. Each image counts once, by the shares of its tokens that chose each expert, so an
image with many questions weighs no more than one with few. The permutation test shuffles the
domains among images, not among tokens: tokens of one image are not independent. The estimate from n
images is biased upwards; the mean under permutation says by how much. Plain NumPy on counts;
recording them is `medmoe.routing.trace`, drawing them is `medmoe.routing.figures`.

Shapes: N images, G groups (e.g. domains), E experts, R permutations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import entr, rel_entr

Floats = npt.NDArray[np.float64]
PERMUTATIONS = 999


def expert_share(counts_GE: npt.ArrayLike) -> Floats:
    """Turn counts into shares of each row, 0 to 1; a row without tokens is NaN, not zero."""
    counts = np.asarray(counts_GE, dtype=np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    share: Floats = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return share


def routing_entropy(shares_GE: npt.ArrayLike) -> Floats:
    """Return the entropy of each row divided by its maximum log E: 0 one expert, 1 all alike.

    Rows are scaled to sum to one first, so counts may be given too; a row without tokens is NaN.
    With a single expert there is nothing to choose and the entropy is 0.
    """
    shares = expert_share(shares_GE)
    entropy: Floats = entr(shares).sum(axis=-1) / (math.log(shares.shape[-1]) or 1.0)
    return entropy + 0.0  # no "-0.0"


@dataclass(frozen=True, slots=True)
class Specialisation:
    """The specialisation index of one layer.

    Attributes:
        bits: Mutual information of domain and expert, in bits.
        domain_bits: Entropy of the images' domains, the most that ``bits`` can be.
        by_chance: Mean of ``bits`` over permutations of the images' domains.
        p: Share of permutations that reach ``bits``, the observed one counted in (+1 rule).
    """

    bits: float
    domain_bits: float
    by_chance: float
    p: float
    n: int

    @property
    def normalised(self) -> float:
        """``bits`` ÷ ``domain_bits``: 0 no relation, 1 the expert tells the domain; NaN for one."""
        return self.bits / self.domain_bits if self.domain_bits else math.nan


def specialisation(
    counts_NE: npt.ArrayLike,
    domains: npt.ArrayLike,
    *,
    seed: int,
    permutations: int = PERMUTATIONS,
) -> Specialisation:
    """Return the specialisation index with its permutation test.

    Args:
        counts_NE: How often each image's tokens chose each expert (N, E); images without a token
            are left out.
        domains: Domain index of each image (N,); images with a negative one are left out, but for
            one at least.
    """
    counts = np.asarray(counts_NE, dtype=np.float64)
    labels = np.asarray(domains, dtype=np.int64)
    kept = (labels >= 0) & (counts.sum(1) > 0)
    shares_NE = counts[kept] / counts[kept].sum(1, keepdims=True)
    member_NG = np.eye(int(labels[kept].max()) + 1)[labels[kept]]
    bits = float(_information((member_NG.T @ shares_NE)[None])[0])
    rng = np.random.default_rng(seed)
    order = [rng.permutation(len(member_NG)) for _ in range(permutations)]
    shuffled = _information(np.stack([member_NG[o].T @ shares_NE for o in order]))
    # The same sums in another order may differ in their last bits: such a permutation has reached.
    reached = int((shuffled >= bits - 1e-12).sum())
    return Specialisation(
        bits=bits,
        domain_bits=float(entr(member_NG.mean(0)).sum() / math.log(2)) + 0.0,  # no "-0.0"
        by_chance=float(shuffled.mean()),
        p=(reached + 1) / (permutations + 1),
        n=len(member_NG),
    )


def _information(joint_RGE: Floats) -> Floats:
    """Return the mutual information (R,), in bits, of tables of weights (R, G, E)."""
    p = joint_RGE / joint_RGE.sum((1, 2), keepdims=True)
    apart = p.sum(2, keepdims=True) * p.sum(1, keepdims=True)
    bits: Floats = np.maximum(rel_entr(p, apart).sum((1, 2)), 0.0) / math.log(2)
    return bits
