"""State of the global random generators of Python, numpy and torch, for checkpoints.

A network or an objective may draw from them; metarun's own random numbers are counter-based and need no state.
"""

import random

import numpy as np
import torch
from torch import Tensor

WORDS = 624  # 32-bit words in the state of the Mersenne twister


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_state() -> dict[str, Tensor]:
    """State of each generator as tensors.

    python, numpy       int64 [625] and [626]: the words, the position, and for numpy whether a spare normal is stored
    python_spare        float64 [0] or [1]: the stored second normal of a pair
    numpy_spare         float64 [1]
    torch, cuda/N       uint8 [bytes]
    """
    _, words, spare = random.getstate()
    _, keys, position, has_spare, numpy_spare = np.random.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": torch.tensor(words),
        "python_spare": torch.tensor([] if spare is None else [spare], dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_spare]),
        "numpy_spare": torch.tensor([numpy_spare], dtype=torch.float64),
        "torch": torch.get_rng_state(),
        **{f"cuda/{number}": state for number, state in enumerate(devices)},
    }


def check(saved: dict[str, Tensor]) -> None:
    """Raise ValueError unless `saved` is a valid state. An invalid position would make numpy read out of bounds."""
    devices = [f"cuda/{number}" for number in range(sum(name.startswith("cuda/") for name in saved))]
    expected = {
        **{"python": (torch.int64, WORDS + 1), "numpy": (torch.int64, WORDS + 2), "numpy_spare": (torch.float64, 1)},
        **{"python_spare": (torch.float64, None), **dict.fromkeys(("torch", *devices), (torch.uint8, None))},
    }
    if saved.keys() != expected.keys():
        raise ValueError("its generators are not those that a run has")
    for name, (dtype, size) in expected.items():
        tensor = saved[name]
        if tensor.dtype != dtype or tensor.dim() != 1 or len(tensor) != (len(tensor) if size is None else size):
            raise ValueError(f"its generator {name} is {tensor.dtype} of {list(tensor.shape)}")
    for name in ("python", "numpy"):
        words, (position, *spare) = saved[name][:WORDS], saved[name][WORDS:].tolist()
        in_range = int(words.min()) >= 0 and int(words.max()) < 2**32 and 0 <= position <= WORDS
        if not in_range or spare not in ([], [0], [1]):
            raise ValueError(f"its generator {name} is at no state that it can be in")
    if saved["python_spare"].numel() > 1:
        raise ValueError("its generator python has several spare numbers")


def set_rng_state(saved: dict[str, Tensor]) -> None:
    """Restore the states of `get_rng_state`. Raises ValueError if torch rejects its state."""
    spare = saved["python_spare"].tolist()
    random.setstate((3, tuple(saved["python"].tolist()), spare[0] if spare else None))
    *keys, position, has_spare = saved["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_spare, float(saved["numpy_spare"])))
    try:
        torch.set_rng_state(saved["torch"])
        for device in range(torch.cuda.device_count()):
            if (state := saved.get(f"cuda/{device}")) is not None:
                torch.cuda.set_rng_state(state, device)
    except RuntimeError as error:
        raise ValueError(f"its generator torch is at no state that it can be in ({error})") from error
