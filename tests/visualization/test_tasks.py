"""Pictures say what is right and what is wrong, whatever the numbers are."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from metarun.engine.eval_result import EvalResult
from metarun.types import Task
from metarun.visualization.tasks import GREEN, PALE_GREEN, RED, classification_grid, metric_by_step, regression_plot


def amount(png: bytes, colour: tuple[int, int, int]) -> int:
    """Pixels of about that colour."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).max(-1) < 12).sum())


def task_of_images(channels: int, ways: int = 4, size: int = 28) -> Task:
    support, query = torch.arange(ways).repeat_interleave(2), torch.arange(ways).repeat_interleave(3)
    grey = [torch.full((len(target), channels, size, size), 128, dtype=torch.uint8) for target in (support, query)]
    return Task(grey[0], support, grey[1], query)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 84), (3, 200)])
def test_frames_are_green_where_the_class_is_found_and_red_where_not(channels: int, size: int) -> None:
    task = task_of_images(channels, size=size)
    right = classification_grid("a", task, task.query_target)
    wrong = classification_grid("a", task, (task.query_target + 1) % 4)
    some = classification_grid("a", task, torch.where(torch.arange(12) < 3, task.query_target + 1, task.query_target))
    assert amount(right, GREEN) > 1000 and amount(right, RED) == 0
    assert amount(wrong, RED) > 1000 and amount(wrong, GREEN) == 0
    assert amount(some, RED) == pytest.approx(amount(wrong, RED) / 4, rel=0.1)


def test_a_large_task_has_a_picture_of_bounded_size() -> None:
    task = task_of_images(1, ways=64)
    picture = Image.open(io.BytesIO(classification_grid("a", task, task.query_target)))
    assert picture.width < 500 and picture.height < 700


@pytest.mark.parametrize(
    ("shots", "said"), [(1, ["support", "query (5 of 15)"]), (5, ["support (3 of 5)", "query (5 of 15)"])]
)
def test_headings_say_how_many_of_a_class_are_shown(
    shots: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, words, *rest, **named: drawn.append(words))
    support, query = torch.arange(3).repeat_interleave(shots), torch.arange(3).repeat_interleave(15)
    grey = [torch.full((len(target), 1, 8, 8), 128, dtype=torch.uint8) for target in (support, query)]
    classification_grid("a", Task(grey[0], support, grey[1], query), query)
    assert [words for words in drawn if words.startswith(("support", "query"))] == said


def sine(outputs: torch.Tensor) -> bytes:
    x = torch.linspace(-5, 5, 50)[:, None]
    return regression_plot("a", Task(x[::9], x[::9].sin(), x, x.sin()), outputs, range(len(outputs)))


def test_a_fit_hides_the_true_curve_where_it_is_right() -> None:
    x = torch.linspace(-5, 5, 50)[:, None]
    far, near = torch.stack([x.sin() + 0.8, x.sin() + 0.7]), torch.stack([x.sin() + 0.8, x.sin()])
    assert amount(sine(near), PALE_GREEN) < amount(sine(far), PALE_GREEN)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3e38, 1e20])
def test_numbers_that_cannot_be_drawn_are_left_out(value: float) -> None:
    assert amount(sine(torch.full((3, 50, 1), value)), PALE_GREEN) > 300
    losses = torch.tensor([[1.0, value, 2.0], [3.0, 1.0, 1.0]], dtype=torch.float64)
    for metric in ("mse", "accuracy"):
        assert len(metric_by_step("", {"validation": EvalResult(metric, losses, losses)})) > 1000
