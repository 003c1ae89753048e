"""What the router did, as numbers: expert shares, entropy, router confusion matrix and accuracy.

The numbers behind the paper's figures 4 and 5 (which expert a modality uses, layer by layer) and 6
(router accuracy). Plain NumPy on counts; recording them is `medmoe.routing.trace`, drawing them is
`medmoe.routing.figures`. Confidence intervals belong to the evaluation package.

Shapes: T tokens, K experts chosen per token, E experts, G groups (e.g. modalities), D domains,
N images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medmoe.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def expert_counts(
    experts_TK: npt.ArrayLike, groups_T: npt.ArrayLike, num_groups: int, num_experts: int
) -> Ints:
    """Count how often each group's tokens chose each expert.

    Args:
        experts_TK: Chosen experts per token, (T, K) or (T,); each of the K choices counts.
        groups_T: Group index of each token; a negative group is left out.
        num_groups: G, rows of the result.
        num_experts: E, columns of the result.

    Returns:
        Counts (G, E).

    Raises:
        DataError: The lengths differ, or an index is outside the table.
    """
    experts = np.asarray(experts_TK, dtype=np.int64)
    experts = experts.reshape(len(experts), experts.shape[-1] if experts.ndim > 1 else 1)
    groups = _indices(groups_T, num_groups, "group", lowest=None)
    if len(experts) != len(groups):
        raise DataError(
            f"expert_counts got {len(experts)} tokens and {len(groups)} groups; "
            "give one group for each token"
        )
    _indices(experts.ravel(), num_experts, "expert")
    kept = groups >= 0
    pairs = groups[kept, None] * num_experts + experts[kept]
    flat = np.bincount(pairs.ravel(), minlength=num_groups * num_experts)
    return flat.reshape(num_groups, num_experts).astype(np.int64)


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
    num_experts = shares.shape[-1]
    if num_experts == 1:
        return np.zeros(shares.shape[:-1])
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Floats = -(shares * logs).sum(axis=-1) / np.log(num_experts)
    return entropy + 0.0  # no "-0.0"


def confusion_matrix(truth: npt.ArrayLike, predicted: npt.ArrayLike, num_domains: int) -> Ints:
    """Count images by true domain (row) and the router's domain (column).

    Args:
        truth: Domain index of each image (N,); negative means no domain, such images are left out.
        predicted: The router's domain index of each image (N,).
        num_domains: D.

    Returns:
        Counts (D, D).

    Raises:
        DataError: The lengths differ, or an index is outside the table.
    """
    return expert_counts(np.reshape(predicted, (-1, 1)), truth, num_domains, num_domains)


def _indices(values: npt.ArrayLike, size: int, what: str, lowest: int | None = 0) -> Ints:
    """Return int64 indices; refuses those from size on, and those below ``lowest``."""
    array = np.asarray(values, dtype=np.int64)
    wrong = array >= size
    if lowest is not None:
        wrong |= array < lowest
    if wrong.any():
        raise DataError(
            f"{what} index {int(array[wrong][0])} is outside 0..{size - 1}; "
            f"raise num_{what}s or check the labels"
        )
    return array
