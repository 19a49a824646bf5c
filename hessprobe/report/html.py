"""One HTML file made from records: it loads nothing from elsewhere, and nothing in a record can run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hessprobe import files
from hessprobe.report.document import Section, Table, section
from hessprobe.report.sections import (
    comparison,
    invariance,
    landscape,
    measures,
    provenance,
    sharpness,
    summary,
    tracking,
    training,
    validation,
    verdict,
)
from hessprobe.report.sections.page import Page
from hessprobe.report.typography import listed, moment, plural

# Words and options that are short enough to stay on one line; none of it is special in HTML.
_HYPHENATED = re.compile(r"(?<![\w&#;-])(?=[\w-]{3,16}(?![\w-]))(?:--)?\w+(?:-\w+)*")
# A number with its sign, power of ten and percent sign.
_NUMBER = re.compile(r"(?:[±≥≤]\s)?[+\u2212-]?\d[\d.,]*(?:\s\u00d7\s10[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)?(?:\s%)?")
_JOINT = re.compile(r"[+/]")


def pictures(page: Page) -> Section | None:
    """Return the section of figures, or None where there are none."""
    return section("pictures", "Pictures", [page.shown()], folded=False)


# The answer, then what may be wrong with it, then pictures; all else is folded, from words to provenance.
_SECTIONS = (
    verdict.build,
    provenance.problems,
    pictures,
    summary.build,
    measures.headlines,
    training.build,
    measures.build,
    comparison.build,
    sharpness.build,
    invariance.build,
    landscape.build,
    tracking.build,
    validation.build,
    provenance.build,
)


def render(page: Page, title: str = "Curvature report") -> str:
    """Return the page as HTML.

    Every text of a record is escaped. The page allows itself images that it holds, and the style and script whose
    hashes it names; a browser refuses everything else.

    Args:
        page: records, figures, and how to speak of them.
        title: of the page.
    """
    style, script = _packaged("report.css"), _packaged("report.js")
    environment = Environment(
        loader=PackageLoader("hessprobe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"unbroken": unbroken, "breakable": breakable, "heads": heads}
    return environment.get_template("report.html").render(
        title=title,
        subtitle=_subtitle(page),
        sections=sections(page),
        # Ours, from the package: nothing of a record is in them.
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
    )


def unbroken(text: str) -> Markup:
    """Return a text, escaped, whose short words, options and numbers stay on one line: ``--rtol``, ``± 2 × 10⁻⁴``."""
    kept = _NUMBER.sub(lambda found: found[0].replace(" ", "\u00a0"), text)
    return Markup(_HYPHENATED.sub(_whole, str(escape(kept))))


def breakable(text: str) -> Markup:
    """Return a name, escaped, that may be broken behind every plus and slash: ``hutchinson+blocks+surrogate``."""
    return Markup(_JOINT.sub(lambda found: f"{found[0]}<wbr>", str(escape(text))))


def heads(table: Table) -> list[str]:
    """Return the header of every cell of a row; of a column that covers several cells the first has it."""
    return [name for column in table.columns for name in (column.name, *[""] * (column.span - 1))]


def sections(page: Page) -> list[Section]:
    """Return the sections that have something to show, in order."""
    return [found for build in _SECTIONS if (found := build(page)) is not None]


def write(path: str | Path, page: Page, title: str = "Curvature report") -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    save(path, render(page, title))


def save(path: str | Path, text: str) -> None:
    """Write what ``render`` returned, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    # JSON may hold half of a surrogate pair, which no encoding has.
    content = text.encode("utf-8", "replace")
    files.write_atomically(path, lambda stream: stream.write(content))


def _subtitle(page: Page) -> str:
    sources = page.gathered.sources
    subjects = list(dict.fromkeys(source.subject for source in sources if source.subject))
    of = f" of {listed(subjects)}" if 0 < len(subjects) <= 6 else f" of {len(subjects)} checkpoints" if subjects else ""
    newest = max((str(source.record["created"]) for source in sources), default="")
    versions = dict.fromkeys(_version(source.record) for source in sources)
    return f"{plural(len(sources), 'record')}{of}, the newest made {moment(newest)}; hessprobe {', '.join(versions)}"


def _version(record: Mapping[str, Any]) -> str:
    return str(record["environment"].get("hessprobe", "of an unknown version"))


def _whole(found: re.Match[str]) -> str:
    return f'<span class="whole">{found[0]}</span>' if "-" in found[0] else found[0]


def _packaged(name: str) -> str:
    return resources.files("hessprobe.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
