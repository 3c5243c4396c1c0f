"""Download of an official archive, compared with its checksum."""

import hashlib
import tempfile
from pathlib import Path

from metarun.data.formats.reading import refuse_web_page
from metarun.errors import UserError


def fetch(address: str, md5: str, folder: Path) -> None:
    """Download an archive into the folder, under the last part of its address. An interrupted one leaves nothing.

    Raises:
        UserError: it cannot be fetched, or the content is not the official one, and is kept as NAME.refused.
    """
    name = address.rpartition("/")[2]
    by_hand = f"put {name} from {address} in {folder}"
    try:
        from torchvision.datasets.utils import download_url

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            path = Path(temporary) / name
            download_url(address, temporary, name)
            digest = hashlib.md5(usedforsecurity=False)
            with path.open("rb") as file:
                start = file.read(512)
                file.seek(0)
                while part := file.read(2**20):
                    digest.update(part)
            whole = digest.hexdigest() == md5
            path = path.replace(folder / (name if whole else f"{name}.refused"))
    except Exception as error:  # torchvision raises exceptions of many types
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"download=true: {name} could not be fetched ({cause}); {by_hand}") from error
    if not whole:
        refuse_web_page(start, path)
        raise UserError(
            f"download=true: {name} has the checksum {digest.hexdigest()}, not the official {md5}: "
            f"it is kept as {path}; try again, or {by_hand}"
        )
