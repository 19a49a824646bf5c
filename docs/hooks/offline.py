"""A page of the site asks nothing of another host: no font, script, style or picture from a network."""

from __future__ import annotations

import re
from typing import Any

# Links to follow (<a href>) are no requests.
_REQUEST = re.compile(r"<(?:script|img|iframe|link|source)\b[^>]*?\b(?:src|href)=\"((?:https?:)?//[^\"]+)\"")


def requests_of(html: str) -> list[str]:
    """Return the addresses on other hosts that a browser would load with the page."""
    return _REQUEST.findall(html)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Stop the build at a page that loads something from elsewhere."""
    if found := requests_of(output):
        # A RuntimeError ends the build also where warnings are allowed.
        raise RuntimeError(f"{page.file.src_uri} must load nothing from other hosts; got {found[0]}. Keep it in docs/.")
    return output
