"""Mathematics that was written on a keyboard, ``|R_rho - S|``, as print has it: Greek, indices, powers, signs."""

from __future__ import annotations

import re

_GREEK = {
    "alpha": "\u03b1", "beta": "\u03b2", "gamma": "\u03b3", "delta": "\u03b4", "eps": "\u03b5", "eta": "\u03b7",
    "theta": "\u03b8", "lam": "\u03bb", "lambda": "\u03bb", "mu": "\u03bc", "pi": "\u03c0", "rho": "\u03c1",
    "sigma": "\u03c3", "tau": "\u03c4", "phi": "\u03c6", "psi": "\u03c8",
}  # fmt: skip
_SIGNS = {"<=": "≤", ">=": "≥", "->": "→", "...": "…", "sqrt(": "√(", ".grad ": "·∇", "grad ": "∇", "||": "‖",
          "<<": "≪"}  # fmt: skip
_POWERS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
# A word of letters alone: that of an identifier, a name with a hyphen or an English word with an "eta" in it is none.
# The delta method keeps its English name.
_NAME = re.compile(rf"(?<![A-Za-z_])(d?)({'|'.join(_GREEK)})(?![A-Za-z]|-[A-Za-z]| method)")
_GROUP = r"(?:\{[^{}]*\}|\([^()]*\)|-?\d+|[A-Za-z\u03b1-\u03c9]+)"
# An index stands behind one letter or a sum: "from_losses" is a name.
_INDEX = re.compile(rf"((?<![A-Za-z_])[A-Za-z\u03b1-\u03c9]|‖|\bsum)(\*?)_({_GROUP})(?![A-Za-z_])(?:\^({_GROUP}))?")
_POWER = re.compile(rf"(?<=[\w)‖|]|\*)\^({_GROUP})")
# A hyphen stands between letters, or behind one; a sign does not.
_MINUS = re.compile(r"(?<![\w\u2010-])-(?=[\w(|‖√])|(?<= )-(?= )")


def printed(text: str) -> str:
    """Return text with Greek letters, signs, indices and powers, for matplotlib: ``R_rho`` has a small low rho.

    Scripts beyond powers of digits are mathtext, none of which has a space in it.
    """
    found = text.replace("$", r"\$")
    for sign, symbol in _SIGNS.items():
        found = found.replace(sign, symbol)
    # The name of a class of rules or an option keeps its letters.
    found = _NAME.sub(lambda each: each[1] + _GREEK[each[2]], found)
    found = re.sub(r"(?<=_)(?:rho|lambda|tau|theta)\b", lambda each: _GREEK[each[0]], found)
    found = _INDEX.sub(_indexed, found)
    found = _POWER.sub(lambda each: _raised(_bare(each[1])), found)
    return _MINUS.sub("\u2212", found)


def length(text: str) -> int:
    """Return how many letters are seen of what ``printed`` gives; a small one counts as one."""
    return len(re.sub(r"\\mathregular|[{}^_$]", "", text))


def _indexed(found: re.Match[str]) -> str:
    base = "Σ" if found[1] == "sum" else found[1]
    power = f"^{{{_script(_bare(found[4]))}}}" if found[4] else ""
    return f"{base}{found[2]}$_{{{_script(_bare(found[3]))}}}{power}$"


def _raised(text: str) -> str:
    return text.translate(_POWERS) if re.fullmatch(r"-?\d", text) else f"$^{{{_script(text)}}}$"


def _script(text: str) -> str:
    return r"\mathregular{" + text.replace(" ", "").replace("-", "\u2212") + "}"


def _bare(text: str) -> str:
    return text[1:-1] if text[0] in "({" else text
