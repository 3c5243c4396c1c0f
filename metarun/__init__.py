"""metarun: gradient-based meta-learning from the shell, and from Python through `Init`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarun.core.init import Init, State

__version__ = "0.1.0"
__all__ = ["Init", "State", "__version__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """`Init` and `State` bring torch with them, so they are imported when they are asked for."""
    if name in ("Init", "State"):
        import metarun.core.init

        return getattr(metarun.core.init, name)
    raise AttributeError(f"module 'metarun' has no attribute {name!r}")
