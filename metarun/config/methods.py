"""The methods that `method=` takes: a dataclass of each one's keys, which also says what the rest needs to know of it.

To add a method, write its function in metarun/methods/NAME.py and its dataclass here. The function has the method's
name and gets the keys as keyword arguments: see `metarun.methods`.
"""

from dataclasses import dataclass
from typing import ClassVar

from metarun.config.options import option


@dataclass
class MethodConfig:
    """Keys of a method; `name` is what `method=` takes.

    module       module of metarun.methods that has the method's function; "": the one of the method's name
    defaults     values of other keys that `method=NAME` sets
    episodic     whether it learns from tasks; otherwise from mini-batches of all training classes, and it is evaluated
                 by nearest centroids, without inner steps
    any_step     whether an evaluation may take more inner steps than training. Not so for methods that learn rates or
                 warps for the trained steps, which may diverge after them
    linear       whether its update is linear in the gradient, which learned rates (`learn_lr`) multiply
    state        name prefixes of the parameters that it adds to a network and without which the network can run
    bound_state  name prefixes of the parameters that it adds and without which the network's weights mean nothing
    """

    module: ClassVar[str] = ""
    defaults: ClassVar[dict[str, object]] = {}
    episodic: ClassVar[bool] = True
    any_step: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    state: ClassVar[tuple[str, ...]] = ()
    bound_state: ClassVar[tuple[str, ...]] = ()

    name: str

    @property
    def shares_tasks(self) -> bool:
        """Whether processes can share the tasks of a meta-batch."""
        return True


@dataclass
class Maml(MethodConfig):
    """MAML (Finn et al. 2017, arXiv 1703.03400): learn the weights from which a few gradient steps solve a task."""

    name: str = "maml"
    any_step: ClassVar[bool] = True


@dataclass
class Fomaml(MethodConfig):
    """First-order MAML (Finn et al. 2017, section 5.2): MAML without second derivatives."""

    name: str = "fomaml"
    module: ClassVar[str] = "maml"
    defaults: ClassVar[dict[str, object]] = {"use_second_order": False}
    any_step: ClassVar[bool] = True


@dataclass
class Msgd(MethodConfig):
    """Meta-SGD (Li et al. 2017, arXiv 1707.09835): learn the inner learning rates as well."""

    name: str = "msgd"
    state: ClassVar[tuple[str, ...]] = ("inner_rates.",)
    alpha: str = option("element", "one learned rate for each of these", choices=("element", "tensor", "scalar"))
    start: str = option(
        "rate",
        "initial rates: inner_learning_rate (rate), or one sample of U[0.005, 0.1] (random)",
        choices=("rate", "random"),
    )


@dataclass
class Mtnet(MethodConfig):
    """MT-net (Lee and Choi 2018, arXiv 1801.05558): learn a metric and a subspace for each layer's inner steps."""

    name: str = "mtnet"
    state: ClassVar[tuple[str, ...]] = ("mask_logits.",)
    bound_state: ClassVar[tuple[str, ...]] = ("t_layers.",)
    mask: bool = option(True, "learn masks of the inner gradient; false: T-net")
    full: bool = option(
        False, "sample a mask entry for each weight at each inner step, instead of one for each output unit"
    )


@dataclass
class Warpgrad(MethodConfig):
    """WarpGrad (Flennerhag et al. 2020, arXiv 1909.00025): learn warp layers that precondition the inner steps."""

    name: str = "warpgrad"
    bound_state: ClassVar[tuple[str, ...]] = ("warp_layers.",)
    objective: str = option(
        "warp_maml", "meta-objective of the warp layers", choices=("warp_maml", "trajectory", "unrolled")
    )
    initialisation: str = option(
        "leap",
        "trajectory: the initialisation is learned by Leap (leap), or stays fixed (frozen)",
        choices=("leap", "frozen"),
    )
    approximate: bool = option(False, "omit the derivative through the look-ahead step (equation 12)")
    start: str = option(
        "reference",
        "initial warp layers: random as in the reference code (reference), or the identity (identity)",
        choices=("reference", "identity"),
    )
    after: list[str] | None = option(None, "names of the modules that a warp layer follows; null: every block")
    depth: int = option(1, "number of layers of a warp", least=1, most=100)
    kernel: int = option(3, "kernel size of warp convolutions, an odd number", least=1, most=999)
    norm: bool = option(False, "batch norm before each convolution of a warp, and after the sum of a residual layer")
    activation: bool = option(False, "ReLU after each convolution of a warp")
    residual: bool = option(False, "residual connection around each layer of a warp")

    @property
    def shares_tasks(self) -> bool:
        return self.objective != "trajectory"  # which learns from one stored iterate after another


@dataclass
class L2f(MethodConfig):
    """L2F (Baik et al. 2020, arXiv 1906.05895): learn to forget a part of the initialisation for each task."""

    name: str = "l2f"
    state: ClassVar[tuple[str, ...]] = ("attenuator.",)
    any_step: ClassVar[bool] = True


@dataclass
class Anil(MethodConfig):
    """ANIL (Raghu et al. 2020, arXiv 1909.09157): adapt the head only."""

    name: str = "anil"
    module: ClassVar[str] = "anil_boil"
    any_step: ClassVar[bool] = True


@dataclass
class Boil(MethodConfig):
    """BOIL (Oh et al. 2021, arXiv 2008.08882): adapt all but the head."""

    name: str = "boil"
    module: ClassVar[str] = "anil_boil"
    any_step: ClassVar[bool] = True


@dataclass
class Pretrain(MethodConfig):
    """A classifier of all training classes, evaluated by nearest centroids; start=RUN begins with its body."""

    name: str = "pretrain"
    episodic: ClassVar[bool] = False
    batch: int = option(
        32, "images per mini-batch; an outer step averages over meta_batch mini-batches", least=2, most=10**5
    )


METHODS: dict[str, type[MethodConfig]] = {config.name: config for config in MethodConfig.__subclasses__()}
