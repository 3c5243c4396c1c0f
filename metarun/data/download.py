"""Fetching an official archive, and nothing that merely answers at its address."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from metarun.data.formats.reading import refuse_web_page
from metarun.errors import UserError


def fetch(address: str, md5: str, folder: Path) -> None:
    """Download an archive into the folder, under the last part of its address; an interrupted one leaves nothing.

    Raises:
        UserError: it cannot be fetched, or what came is something else, which is kept aside.
    """
    name = address.rpartition("/")[2]
    by_hand = f"put {name} from {address} in {folder}"
    try:
        from torchvision.datasets.utils import download_url

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            came = Path(part) / name
            download_url(address, part, name)
            verify_checksum(came, md5, folder / f"{name}.refused", by_hand)
            came.replace(folder / name)
    except UserError:
        raise
    except Exception as error:  # torchvision raises many kinds
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"download=true: {name} could not be fetched ({cause}); {by_hand}") from error


def verify_checksum(came: Path, md5: str, aside: Path, by_hand: str) -> None:
    """Raises UserError, and moves the file aside, where it is not the one of that checksum."""
    found = hashlib.md5(usedforsecurity=False)
    with came.open("rb") as file:
        start = file.read(512)
        found.update(start)
        while part := file.read(2**20):
            found.update(part)
    if found.hexdigest() == md5:
        return
    came.replace(aside)
    refuse_web_page(start, aside)
    raise UserError(
        f"download=true: {came.name} has the checksum {found.hexdigest()}, not the official {md5}: "
        f"it is kept as {aside}; try again, or {by_hand}"
    )
