"""The multi-step loss of MAML++ (Antoniou, Edwards, Storkey 2019, arXiv 1810.09502): its weights at each outer step.

    task loss = sum over k = 1..K of v_k L_query(theta_k)
    v_k = max(1/K - t/(K N), 0.03/K) for k < K at outer step t of N, and v_K takes the rest, so that they sum to 1

After N outer steps only the last inner step counts, as in MAML. The authors' code updates v once an epoch, this one
at each outer step.
"""

LEAST = 0.03  # fraction of its initial 1/K that a weight before the last keeps


def msl_weights(inner_loop: int, over: int, step: int) -> list[float] | None:
    """The weights v_1 .. v_K at outer step `step` of `over`, or None once only the last inner step counts."""
    if step >= over:
        return None
    each = max(1 - step / over, LEAST) / inner_loop
    return [each] * (inner_loop - 1) + [1 - (inner_loop - 1) * each]
