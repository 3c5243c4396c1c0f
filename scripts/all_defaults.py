"""Every method with every data set by default, but for the number of steps: the result of each, as a table.

python -m scripts.all_defaults [--iterations 400] [--data-sets NAME ...] [--methods NAME ...] [KEY=VALUE ...]

Curves and glyphs are whole; of the others there are files in miniature, all classes with two tiny pictures each, on
which nothing can be learned: their results say that a run ends with a finite one. Those with learned rates are MAML's.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

from hydra import compose, initialize_config_dir

from metarun.cli import settings
from metarun.cli.app import config_folder
from metarun.config.groups import CONFIG_GROUPS, Folder, Glyphs, Omniglot, Sinusoid
from metarun.errors import UserError
from metarun.runner import run
from metarun.utils.run_outputs import read_result
from tests.helpers import small_data

CONFIGS = config_folder()
WHOLE = (Sinusoid.name, Glyphs.name, Omniglot.name)
RATES = [f"learn_lr={kind}" for kind in ("element", "tensor", "tensor_step", "scalar")]
SHORT = ["eval.tasks=50", "eval.validation_tasks=20"]
SMALL = [*small_data.SHAPE, "meta_batch=2", "eval.tasks=4", "eval.validation_tasks=2"]


def words_of(method: str, dataset: str, iterations: int, place: Path) -> list[str]:
    """What is typed, but for what is the same for all."""
    words = [f"dataset={dataset}", f"method={method}"] if "=" not in method else [f"dataset={dataset}", method]
    words += [f"iterations={iterations}", f"eval.every={iterations}"]
    if dataset in WHOLE:
        return [*words, *SHORT]
    root = [f"dataset.root={place / 'data' / 'pictures'}"] if dataset == Folder.name else []
    return [*words, *SMALL, *root, f"data_dir={place / 'data'}", "download=false"]


def result(words: list[str], folder: Path) -> str:
    """The metric and the inner step that it is of, or how the run failed."""
    typed = [*words, "engine.workers=1"]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            chosen = settings.build(compose("config", typed), [word.partition("=")[0] for word in typed])
        run(chosen, folder)
    except (UserError, FloatingPointError) as error:
        return f"**{type(error).__name__}**: {error}"
    found = read_result(folder)
    mean = found["mean"]
    if not (isinstance(mean, float) and math.isfinite(mean) and math.isfinite(found["ci95"])):
        return f"**not finite**: {mean}"
    value = f"{100 * mean:.1f} ± {100 * found['ci95']:.1f} %" if found["metric"] == "accuracy" else f"{mean:.3f}"
    return f"{value}, step {found['inner_step']} of {found['inner_loop']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument(
        "--data-sets", nargs="+", default=[name for name in CONFIG_GROUPS["dataset"] if name != "omniglot"]
    )
    parser.add_argument("--methods", nargs="+", default=[*CONFIG_GROUPS["method"], *RATES])
    asked, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        small_data.write(place / "data")
        print(f"| method | {' | '.join(asked.data_sets)} |\n| --- |{' --- |' * len(asked.data_sets)}")
        failed = 0
        for method in asked.methods:
            cells = []
            for dataset in asked.data_sets:
                if (method, dataset) == ("pretrain", Sinusoid.name):
                    cells.append("refused: curves have no classes")
                    continue
                own = [*words_of(method, dataset, asked.iterations, place), f"cache_dir={place / 'cache'}", *words]
                cells.append(result(own, place / f"{method}-{dataset}"))
                failed += cells[-1].startswith("**")
            print(f"| `{method}` | {' | '.join(cells)} |", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
