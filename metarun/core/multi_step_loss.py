"""The multi-step loss of MAML++ (Antoniou, Edwards, Storkey 2019, arXiv 1810.09502): its weights as a run goes on.

    task loss = sum over k = 1..K of v_k L_query(theta_k)
    v_k = max(1/K - t/(K N), 0.03/K) for k < K at outer step t of N, and v_K takes the rest, so that they sum to 1

After N outer steps the last step alone counts, which is MAML. The authors' code steps once an epoch, this each step.
"""

from __future__ import annotations

LEAST = 0.03  # of a step's first weight: what those before the last keep


def msl_weights(inner_loop: int, over: int, step: int) -> list[float] | None:
    """v_1 .. v_K at outer step `step` of `over`, or None where the last inner step alone counts."""
    if step >= over:
        return None
    each = max(1 - step / over, LEAST) / inner_loop
    return [each] * (inner_loop - 1) + [1 - (inner_loop - 1) * each]
