"""kill -9 in the demonstration, which is many commands: the one under way goes on where it was."""

from __future__ import annotations

import json

import forked
import pytest
from runs import numbers, plain, spread

from hessprobe import files
from hessprobe.cli.commands import demo
from hessprobe.hvp import batch_products
from hessprobe.hvp.auto import Choice
from hessprobe.hvp.pool import Chunked

WORDS = ("demo", "--out", "d", "--no-open", "--threads", "1")


@pytest.fixture
def small(monkeypatch):
    """A demonstration of seconds, without its page and pictures, which are made from records at the end."""
    small = {"_MODEL": "mlp:hidden=4", "_EPOCHS": 2, "_POINTS": 5, "_OPTIMIZERS": ("sgd", "sam")}
    measures = ("_MEASURES", "_COMPARED", "_CHECKED")
    for name, value in {
        **small,
        **dict.fromkeys(measures, ("trace",)),
        "_KINDS": ("average",),
        "_RADII": (0.05,),
    }.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "_figures", lambda folder, steps: None)
    run = demo._run

    def without_page(words, program):
        if words[0] != "report":
            return run(words, program)
        page = words[words.index("--out") + 1]
        return files.write_atomically(page, lambda file: file.write(b'content="hessprobe"'))

    monkeypatch.setattr(demo, "_run", without_page)

    def choose(engines, loss, theta, budget, *_):
        # Left to the program, the time decides, and two engines differ in their last digits.
        return Choice(Chunked(engines["double_backward"](), budget), {}, {})

    monkeypatch.setattr(batch_products, "choose", choose)


def found(folder):
    made = {path.name: json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))}
    known = ("results", "training", "data")
    return {name: plain(numbers({key: each[key] for key in known if key in each})) for name, each in made.items()}


@pytest.mark.usefixtures("small")
def test_a_killed_demonstration_goes_on_within_its_command(begin):
    forked.warm(WORDS, begin("warm"))
    whole = begin("whole")
    first = forked.run(WORDS, whole)
    assert (first.code, first.err) == (0, "")
    # At the first and the last there is nothing, or all.
    for number in spread(first.begun)[1:-1]:
        folder = begin(str(number))
        killed = forked.run(WORDS, folder, forked.Ending(number))
        assert killed.code == -9, (number, killed.err)
        done = forked.run(WORDS, folder)
        assert done.code == 0, (number, done.err)
        assert killed.products + done.products <= first.products + 1, number
        assert found(folder) == found(whole), number
        names = [sorted(str(path.relative_to(each)) for path in each.rglob("*")) for each in (folder, whole)]
        assert names[0] == names[1], number
