"""docs/keys.md is the page that scripts/keys_table.py writes from the schema and configs/."""

from pathlib import Path

import tests
from metarun.config.groups import CONFIG_GROUPS, choices
from metarun.config.schema import Settings, iter_options
from scripts import keys_table

PAGE = Path(tests.__file__).parents[1] / "docs" / "keys.md"


def test_the_keys_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == keys_table.page(), "run: python -m scripts.keys_table > docs/keys.md"


def test_the_keys_page_has_every_key_and_choice() -> None:
    page = keys_table.page()
    names = [name for name, _, _ in iter_options(Settings)]
    for group, nodes in CONFIG_GROUPS.items():
        names += [name for node in nodes.values() for name, _, _ in iter_options(node, f"{group}.")]
        names += choices(group)
    assert [name for name in names if f"`{name}`" not in page] == []
