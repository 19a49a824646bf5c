"""The committed reports are part of the site, at the place where links from the pages find them in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_ROOT = Path(__file__).parents[2]
_KINDS = (".md", ".png", ".svg", ".html")


def on_files(files: Any, *, config: Any, **_: Any) -> Any:
    """Add what reports/ holds to read or to look at."""
    for path in sorted((_ROOT / "reports").rglob("*")):
        if path.suffix in _KINDS:
            name = path.relative_to(_ROOT).as_posix()
            files.append(File(name, str(_ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead from a page of docs/ to a report, which in the repository stands beside docs/."""
    return markdown.replace("](../reports/", "](reports/").replace("](../../reports/", "](../reports/")
