from __future__ import annotations

import pytest
import torch
from torch import nn

from metarun.nn.norm import Norm, is_transductive, norm_parameters, use_batch_stats

REFERENCES = {
    "batch": lambda: nn.BatchNorm2d(12),
    "instance": lambda: nn.InstanceNorm2d(12, affine=True),
    "layer": lambda: nn.GroupNorm(1, 12),
    "group": lambda: nn.GroupNorm(6, 12),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_norms_compute_what_torchs_do(kind: str) -> None:
    ours, reference = Norm(kind, 12), REFERENCES[kind]()
    for parameter, other in zip(ours.parameters(), reference.parameters(), strict=True):
        nn.init.normal_(parameter)
        other.data.copy_(parameter.data)
    x = 3 * torch.randn(4, 12, 5, 5) + 1
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)


def test_norm_parameters_are_found_by_type_not_by_name() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ModuleDict({"norm": nn.Linear(4, 4), "x": nn.LayerNorm(4)})
    )
    assert norm_parameters(model) == {"1.weight", "1.bias", "2.x.weight", "2.x.bias"}
    assert norm_parameters(nn.LayerNorm(3)) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        *((Norm(kind, 4), kind == "batch") for kind in ("batch", "layer", "instance", "group")),
        *((nn.BatchNorm2d(4), True), (nn.GroupNorm(2, 4), False), (nn.InstanceNorm2d(4), False)),
    ],
)
def test_is_transductive_where_an_image_depends_on_the_others(norm: nn.Module, expected: bool) -> None:
    x = torch.randn(5, 4, 3, 3)
    assert is_transductive(nn.Sequential(norm)) is expected
    assert torch.allclose(norm(x)[:2], norm(x[:2]), atol=1e-5) is not expected


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)])
def test_running_buffers_are_hidden_in_train_mode_and_come_back(norm: nn.Module) -> None:
    x, before = torch.randn(4, 3, 5, 5) + 2, {name: b.clone() for name, b in norm.named_buffers()}
    with use_batch_stats(norm):
        inside = norm(x)
    assert {name: b.clone() for name, b in norm.named_buffers()}.keys() == before.keys()
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    torch.testing.assert_close(inside, norm(x))  # this one does move the buffers
    assert not torch.equal(norm.running_mean, before["running_mean"])  # type: ignore[arg-type]
    norm.eval()
    with use_batch_stats(norm):
        torch.testing.assert_close(norm(x), norm(x))
    assert (norm(x) - inside).abs().max() > 0.1
