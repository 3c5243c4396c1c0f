"""Second derivatives of torch's layers, each by torch's own gradient check: exact, or refused by the layer's name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations as parametrised

from metarun import Init
from metarun.backbones.torchvision_models import make_deterministic
from metarun.core.checkpointed import CheckpointedTaskLearner
from metarun.core.forward import functional_forward
from metarun.core.meta_learner import MetaLearner, TaskLearner, meta_gradient
from metarun.core.objectives import regression
from metarun.core.offline import collect_trajectories, lookahead_gradients
from metarun.core.second_order import exact_kernels, needs, substituted
from metarun.errors import UserError
from metarun.methods import METHODS
from metarun.nn.norm import Norm
from tests.helpers.init_cases import mse
from tests.helpers.laws import largest_relative_error, no_noise
from tests.helpers.problems import regression_tasks


class Call(nn.Module):
    """A function of a layer and the data, or of the data alone."""

    def __init__(self, function: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.layer is None else self.function(self.layer, x)


def recurrent(layer: nn.Module) -> nn.Module:
    return Call(lambda layer, x: layer(x)[0], layer)


def attention(layer: nn.Module, weights: bool) -> nn.Module:
    return Call(lambda layer, x: layer(x, x, x, need_weights=weights)[0], layer)


def grid(size: int, **how: str) -> nn.Module:
    """Samples pictures at places that depend on them."""
    last = (0, 2, 3, 1) if size == 2 else (0, 2, 3, 4, 1)
    return Call(lambda x: F.grid_sample(x, 0.9 * x[:, :size].permute(last).tanh(), align_corners=False, **how))


def orthogonal(form: str, inputs: int = 4, outputs: int = 3) -> nn.Module:
    return parametrised.orthogonal(nn.Linear(inputs, outputs), orthogonal_map=form)


LABELS = torch.tensor([0, 2, 1, 1])
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "weight norm": (lambda: parametrised.weight_norm(nn.Linear(4, 3)), (5, 4)),
    "weight norm over all": (lambda: parametrised.weight_norm(nn.Linear(4, 3), dim=None), (5, 4)),  # type: ignore
    "spectral norm in eval mode": (lambda: parametrised.spectral_norm(nn.Linear(4, 3)).eval(), (5, 4)),
    "spectral norm by a hook in eval mode": (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)).eval(), (5, 4)),
    "orthogonal by matrix_exp": (lambda: orthogonal("matrix_exp"), (5, 4)),
    "orthogonal by cayley": (lambda: orthogonal("cayley"), (5, 4)),
    "square orthogonal by cayley": (lambda: orthogonal("cayley", 4, 4), (5, 4)),
    "RNN": (lambda: recurrent(nn.RNN(3, 2, batch_first=True)), (2, 3, 3)),
    "GRU": (lambda: recurrent(nn.GRU(3, 2, batch_first=True)), (2, 3, 3)),
    "GRU of two layers, both ways": (lambda: recurrent(nn.GRU(2, 2, 2, bidirectional=True)), (2, 2, 2)),
    "LSTM": (lambda: recurrent(nn.LSTM(3, 2, batch_first=True)), (2, 3, 3)),
    "LSTM with projections": (lambda: recurrent(nn.LSTM(3, 3, proj_size=2, batch_first=True)), (2, 3, 3)),
    "GRUCell": (lambda: nn.GRUCell(3, 2), (2, 3)),
    "LSTMCell": (lambda: recurrent(nn.LSTMCell(3, 2)), (2, 3)),
    "attention": (lambda: attention(nn.MultiheadAttention(4, 2, batch_first=True), False), (2, 3, 4)),
    "attention with its weights": (lambda: attention(nn.MultiheadAttention(4, 2, batch_first=True), True), (2, 3, 4)),
    "attention function": (lambda: Call(lambda x: F.scaled_dot_product_attention(x, x, x)), (1, 2, 3, 4)),
    "transformer encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 3, 0.0, F.gelu, batch_first=True), (1, 3, 4)),
    "the same in eval mode": (
        lambda: nn.TransformerEncoderLayer(4, 2, 3, 0.0, F.gelu, batch_first=True).eval(),
        (1, 3, 4),
    ),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3), (2, 2, 5)),
    "Conv2d": (lambda: nn.Conv2d(2, 4, 2, stride=2, dilation=2, groups=2), (2, 2, 5, 5)),
    "Conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (1, 2, 4, 4)),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 3), (2, 2, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (1, 2, 3, 3)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(1, 2, 2), (1, 1, 2, 2, 2)),
    "Bilinear": (lambda: Call(lambda layer, x: layer(x, x), nn.Bilinear(3, 3, 2)), (4, 3)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2), (3, 2, 3, 3)),
    "BatchNorm2d in eval mode": (lambda: nn.BatchNorm2d(2).eval(), (3, 2, 3, 3)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(2, affine=True), (2, 2, 3, 3)),
    "GroupNorm": (lambda: nn.GroupNorm(1, 2), (2, 2, 3, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(4), (3, 4)),
    "RMSNorm": (lambda: nn.RMSNorm(4), (3, 4)),
    "Norm": (lambda: Norm("batch", 2), (3, 2, 3, 3)),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), (2, 3, 2, 2)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(2), (1, 2, 5, 5)),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), (1, 2, 5, 5)),
    "FractionalMaxPool2d": (
        lambda: nn.FractionalMaxPool2d(2, output_size=2, _random_samples=torch.full((1, 2, 2), 0.3).double()),
        (1, 2, 5, 5),
    ),
    "LPPool2d": (lambda: nn.LPPool2d(2, 2), (1, 2, 4, 4)),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), (1, 1, 4, 4, 4)),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), (1, 2, 6)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (1, 2, 4, 4)),
    "MaxPool3d": (lambda: nn.MaxPool3d(2), (1, 1, 4, 4, 4)),
    "interpolate, bilinear": (
        lambda: Call(lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear")),
        (1, 1, 3, 3),
    ),
    "interpolate, bicubic": (lambda: Call(lambda x: F.interpolate(x, scale_factor=1.7, mode="bicubic")), (1, 1, 3, 3)),
    "interpolate, antialiased": (
        lambda: Call(lambda x: F.interpolate(x, (2, 2), mode="bicubic", antialias=True)),
        (1, 1, 4, 4),
    ),
    "grid_sample": (lambda: grid(2), (1, 2, 3, 3)),
    "grid_sample, bicubic": (lambda: grid(2, mode="bicubic"), (1, 2, 3, 3)),
    "grid_sample of volumes": (lambda: grid(3), (1, 3, 2, 2, 2)),
    "cosine_similarity": (lambda: Call(lambda x: F.cosine_similarity(x, x.flip(0))), (4, 4)),
    "cdist": (lambda: Call(lambda x: torch.cdist(x, 2 * x[:2] + 1)), (4, 4)),
    "cross_entropy": (lambda: Call(lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1)), (4, 3)),
    "huber_loss": (lambda: Call(lambda x: F.huber_loss(x, torch.ones_like(x))), (4, 3)),
    "binary_cross_entropy": (lambda: Call(lambda x: F.binary_cross_entropy(x.sigmoid(), torch.ones_like(x))), (4, 3)),
    "kl_div": (
        lambda: Call(lambda x: F.kl_div(x.log_softmax(-1), torch.full_like(x, 0.3), reduction="batchmean")),
        (4, 3),
    ),
    "triplet_margin_loss": (lambda: Call(lambda x: F.triplet_margin_loss(x, 2 * x.flip(0), x.roll(1, 0))), (4, 3)),
}
ACTIVATIONS = (
    "PReLU GELU SiLU Hardswish Hardsigmoid Mish ELU CELU SELU Softplus Softsign Tanh Sigmoid LogSigmoid ReLU6 "
)
for activation in (ACTIVATIONS + "LeakyReLU Hardtanh Softshrink Tanhshrink GLU").split():
    LAYERS[activation] = (lambda kind=activation: nn.Sequential(nn.Linear(4, 4), getattr(nn, kind)()), (3, 4))


@pytest.mark.filterwarnings("ignore:.*Using a non-full backward hook", "ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("name", LAYERS)
def test_first_and_second_derivatives_are_exact(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    model = make().double()
    exact(model, torch.randn(shape, dtype=torch.float64))


def exact(model: nn.Module, x: Tensor) -> None:
    """By torch's gradient checks, of all weights and the data."""
    learner = MetaLearner(model, METHODS["maml"](Call(lambda x: x, nn.Linear(1, 1)), 0.1), mse, mse)
    names = [name for name, _ in model.named_parameters()]
    given = [tensor.detach().clone().requires_grad_() for tensor in (*model.parameters(), x)]
    unused = {"unused": x.new_empty(0)} if not names else {}

    def run(*tensors: Tensor) -> Tensor:
        *weights, data = tensors
        return functional_forward(learner, dict(zip(names, weights, strict=True)) or unused, data)

    with exact_kernels(learner.needs):
        torch.autograd.gradcheck(run, given)
        torch.autograd.gradgradcheck(run, given)


def test_weight_norm_by_a_hook_is_the_parametrisation() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        exact(nn.utils.weight_norm(nn.Linear(4, 3)).double(), torch.randn(5, 4, dtype=torch.float64))


def test_orthogonal_by_householder_is_exact_where_it_is_smooth() -> None:
    """Its diagonal are signs, which torch rounds to integers: the weights below it are what it depends on."""
    torch.manual_seed(0)
    model = orthogonal("householder", 4, 4).double()
    name = "parametrizations.weight.original"
    start, x = model.get_parameter(name).detach().clone(), torch.randn(5, 4, dtype=torch.float64)

    def run(below: Tensor) -> Tensor:
        return torch.func.functional_call(model, {name: start + below.tril(-1)}, (x,))

    torch.autograd.gradcheck(run, [torch.zeros_like(start).requires_grad_()])
    torch.autograd.gradgradcheck(run, [torch.zeros_like(start).requires_grad_()])


def test_hard_sigmoid_is_torch_s() -> None:
    model, x = nn.Hardsigmoid(), torch.linspace(-5, 5, 41, dtype=torch.float64)
    with substituted(needs(model).substitutes):
        assert "forward" in vars(model)
        found = model(x)
    assert "forward" not in vars(model)
    torch.testing.assert_close(found, model(x))


@pytest.mark.parametrize("layer", [nn.CrossMapLRN2d(2), nn.EmbeddingBag(9, 4)], ids=["CrossMapLRN2d", "EmbeddingBag"])
def test_layers_without_a_second_derivative_are_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(UserError, match=rf"^0 \({type(layer).__name__}\): torch has no second derivative of it"):
        Init(nn.Sequential(layer, nn.Linear(2, 2)), mse, mse)


@pytest.mark.parametrize("vectorised", [False, True], ids=["looped", "vectorised"])
def test_torchvisions_vision_transformer_is_the_same_unrolled_and_mixed(vectorised: bool) -> None:
    """`backbone.network=vit_*`, at a small size; what is unrolled has the laws' finite differences."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(8, 4, num_layers=1, num_heads=2, hidden_dim=4, mlp_dim=4, num_classes=2).double()
    nn.init.normal_(
        model.get_parameter("heads.head.weight")
    )  # zero in torchvision, which would leave every other gradient zero
    make_deterministic(model)
    method, tasks = METHODS["maml"](model, 0.1), regression_tasks(2, (3, 8, 8), each=3)
    learner = MetaLearner(model, method, regression, regression, 2)
    found = [
        meta_gradient(learner, method.parameters, tasks, no_noise(tasks), vectorised, kind)[0]
        for kind in (TaskLearner, CheckpointedTaskLearner)
    ]
    assert largest_relative_error(*found) < 1e-12
    assert all(bool(tensor.isfinite().all()) for tensor in found[0].theta.values())


def test_look_aheads_from_stored_iterates_differentiate_attention() -> None:
    """WarpGrad's `objective=trajectory`."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 3, 0.0, F.gelu, batch_first=True)
    model = nn.Sequential(nn.Linear(2, 4), layer, nn.Linear(4, 2)).double()
    method = METHODS["warpgrad"](model, 0.1, after=["0"], objective="trajectory")
    tasks = regression_tasks(1, (3, 2), outputs=2, each=4)
    tasks = tasks._replace(support_target=tasks.support_target[:, :, None], query_target=tasks.query_target[:, :, None])
    tasks = tasks._replace(support_target=tasks.support_target.expand(-1, -1, 3, -1))
    tasks = tasks._replace(query_target=tasks.query_target.expand(-1, -1, 3, -1))
    learner = MetaLearner(model, method, regression, regression, 2)
    paths = collect_trajectories(learner, method.parameters, tasks, no_noise(tasks))
    for gradient in lookahead_gradients(paths, method.parameters.phi, [0, 1]):
        assert all(bool(tensor.isfinite().all() and tensor.abs().max() > 0) for tensor in gradient.values())
