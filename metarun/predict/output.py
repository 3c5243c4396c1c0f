"""The output of mode=predict: the table of labels, the summary, the adapted weights and the log lines."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.config.schema import Settings
from metarun.engine.task_shapes import eval_inner_loop
from metarun.methods import Tensors
from metarun.predict.labelled_images import LabelledImages, join_truncated
from metarun.utils.text import csv_table, printable

log = logging.getLogger(__name__)

NORMAL = 1.959964  # standard deviations: 95 % of a normal distribution lie within them


@dataclass(frozen=True)
class Prediction:
    classes: list[str]
    support: LabelledImages
    query: LabelledImages
    probabilities: np.ndarray  # [query images, classes]
    weights: Tensors  # of the adapted network; empty unless they are saved
    batch_norm: str  # which statistics batch norm used on the query images

    @property
    def labels(self) -> list[int]:
        """The most probable class of each query image."""
        return self.probabilities.argmax(1).tolist()


def table(prediction: Prediction) -> bytes:
    """CSV: file, class, the probability of each class, and true_class if any query image's class is known."""
    classes, query = prediction.classes, prediction.query
    names = ["" if truth is None else classes[truth] for truth in query.labels]
    any_known = any(names)
    rows = [
        [path, classes[label], *(f"{value:.6g}" for value in row), *([name] if any_known else [])]
        for path, label, row, name in zip(query.files, prediction.labels, prediction.probabilities, names, strict=True)
    ]
    return csv_table(["file", "class", *classes, *(["true_class"] if any_known else [])], rows)


def log_summary(prediction: Prediction, result: dict[str, Any]) -> None:
    """Log the classes, the number of labels of each, the accuracy if known, and query images that are in the support.

    Args:
        result: the prediction's `summary`.
    """

    def counted(labels: Sequence[int | None]) -> str:
        counts = Counter(labels)
        names = enumerate(map(printable, prediction.classes))
        return join_truncated([f"{name} ({counts[label]})" for label, name in names if counts[label]])

    num_queries = len(prediction.query.files)
    log.info(
        "inner steps: %d; classes: %d; support pictures: %s",
        *(result["inner_loop"], len(prediction.classes), counted(prediction.support.labels)),
    )
    log.info("query pictures: %d, labelled as %s", num_queries, counted(prediction.labels))
    if prediction.batch_norm == "transductive":
        log.info("transductive batch norm: the queries are normalised together, so a label depends on which come along")
    if result["accuracy"]:
        log.info("of the queries whose folder is named like a class: %s", format_accuracy(result["accuracy"]))
    if result["in_support"]:
        others = result["accuracy_of_others"]
        log.warning(
            "query: %d of %d pictures are in the support as well, same pixels, so that the network was adapted to "
            "them and their labels say nothing of new pictures; %s",
            *(result["in_support"], num_queries),
            f"of the others: {format_accuracy(others)}" if others else "no other has a known class",
        )


def summary(prediction: Prediction, settings: Settings) -> dict[str, Any]:
    """The content of prediction.json; accuracies are over query images of known class, all and those not in support.

    Images are compared by the pixels that the network is given, whatever their files are called.
    """
    query, support = prediction.query, prediction.support
    support_pixels = {image.tobytes() for image in support.images}
    in_support = [image.tobytes() in support_pixels for image in query.images]
    known = [
        (truth == label, repeated)
        for truth, label, repeated in zip(query.labels, prediction.labels, in_support, strict=True)
        if truth is not None
    ]
    return {
        "method": settings.method.name,
        "dataset": settings.dataset.name,
        "inner_loop": eval_inner_loop(settings),
        "classes": prediction.classes,
        "support": len(support.files),
        "query": len(query.files),
        "in_support": sum(in_support),
        "accuracy": accuracy([correct for correct, _ in known]),
        "accuracy_of_others": accuracy([c for c, repeated in known if not repeated]) if any(in_support) else None,
        "interval": "Wilson score interval, 95 %",
        "batch_norm": prediction.batch_norm,
        "checkpoint": str(settings.checkpoint),
    }


def accuracy(correct: Sequence[bool]) -> dict[str, Any] | None:
    """The fraction of true entries with its 95 % interval; None if there are none."""
    if not correct:
        return None
    right, count = sum(correct), len(correct)
    low, high = wilson(right, count)
    return {"mean": right / count, "low": low, "high": high, "right": right, "pictures": count}


def wilson(right: int, count: int) -> tuple[float, float]:
    """Bounds of the 95 % score interval of a proportion (Wilson 1927), in [0, 1]; valid for small counts too."""
    square = NORMAL * NORMAL / count
    share = right / count
    middle = (share + square / 2) / (1 + square)
    half = NORMAL / (1 + square) * math.sqrt((share * (1 - share) + square / 4) / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def format_accuracy(result: dict[str, Any]) -> str:
    bounds = f"{100 * result['low']:.2f} to {100 * result['high']:.2f} %"
    mean = f"{100 * result['mean']:.2f} %"
    return f"accuracy {mean}, {result['right']} of {result['pictures']} (95 % interval {bounds}, Wilson)"
