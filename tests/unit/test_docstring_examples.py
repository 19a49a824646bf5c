"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

import hessprobe
import hessprobe.optim

ROOT = Path(hessprobe.__file__).parent
WITH_EXAMPLES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples(path: Path) -> None:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    module = import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    examples = [found for found in doctest.DocTestFinder().find(module) if found.examples]
    assert examples, "the examples stand where no docstring is"
    for example in examples:
        torch.manual_seed(0)
        said: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        runner.run(example, out=said.append)
        assert runner.failures == 0, "".join(said)


def _explained(public: object, name: str) -> str:
    # A package that bears the name of its function is called as that function.
    within = getattr(public, name, None) if isinstance(public, ModuleType) else None
    return (within or public).__doc__ or ""


@pytest.mark.parametrize(
    ("package", "name"),
    [(package, name) for package in (hessprobe, hessprobe.optim) for name in package.__all__],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_public_name_has_an_example(package: ModuleType, name: str) -> None:
    examples = doctest.DocTestParser().get_examples(_explained(getattr(package, name), name))
    assert examples, f"the docstring of {package.__name__}.{name} must show how it is used"
    assert any(each.want for each in examples), "an example that prints nothing cannot fail"
