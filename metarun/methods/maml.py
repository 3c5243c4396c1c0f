"""MAML: Finn, Abbeel, Levine 2017, Model-Agnostic Meta-Learning, arXiv 1703.03400, equation 1 and Algorithm 2.

    theta_{k+1} = theta_k - alpha grad L_support(theta_k),   k = 0..K-1
    minimise over theta_0 the mean over tasks of L_query(theta_K)

First-order MAML (section 5.2 there) drops the second derivatives: `use_second_order=false`.
"""

from metarun.methods.slots import Method

MAML = Method()
