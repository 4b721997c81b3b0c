from __future__ import annotations

from pathlib import Path

from rcnn_ext.config.data import DataConfig
from rcnn_ext.config.parse import all_keys

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data_formats.md"


def test_every_key_is_in_the_table_of_keys():
    """And every key in the table exists."""
    text = PAGE.read_text()
    table = text[text.index("## Keys") : text.index("## ", text.index("## Keys") + 3)]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `data.")]
    named = [name for row in rows for name in row.replace("`", "").replace(",", " ").split()]
    assert sorted(named) == sorted(all_keys(DataConfig, "data."))
