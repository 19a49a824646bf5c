"""What the commands write is what their typed records declare: nothing more, and the same when it is read again."""

from __future__ import annotations

import json

import pytest

from hessprobe.records import typed
from hessprobe.records.compare import CompareRecord
from hessprobe.records.sharpness import SharpnessRecord
from hessprobe.records.typed import MeasureRecord

HEAD = {"schema", "command", "environment", "seed", "arguments", "created", "peak_memory"}
FAST = ("--examples", "40", "--engine", "double-backward")


@pytest.fixture(scope="module")
def other(digits_checkpoint, tmp_path_factory):
    from hessprobe.cli.app import app

    path = tmp_path_factory.mktemp("typed") / "other.pt"
    words = ["train", "--model", "mlp:hidden=8", "--epochs", "1", "--seed", "1", "--out", str(path)]
    with pytest.raises(SystemExit):
        app(words, prog_name="hessprobe")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (MeasureRecord, ("measure", "-m", "trace,lambda-max,diagonal", "--k", "2", "--per-layer", "--probes", "4")),
        (
            SharpnessRecord,
            ("sharpness", "--kind", "ascent,fisher-rao,trace", "--rho", "0.05", "--diagnostics", "--k", "1"),
        ),
        (CompareRecord, ("compare", "-m", "trace,lambda-max", "--probes", "4")),
    ],
)
def test_a_record_declares_all_that_is_written(run, digits_checkpoint, other, tmp_path, kind, words):
    command, *options = words
    paths = (digits_checkpoint, other) if command == "compare" else (digits_checkpoint,)
    done = run(command, *paths, *options, *FAST, "--json", tmp_path / "r.json")
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "r.json").read_text())
    again = typed.written(kind.of(written))
    assert json.dumps(again) == json.dumps({key: value for key, value in written.items() if key not in HEAD})


def test_what_was_under_way_is_declared_too(run, fake, digits_checkpoint, tmp_path):
    fake(FAKE_FAIL="trace")
    assert run("measure", digits_checkpoint, "--json", tmp_path / "r.json").code == 1
    written = json.loads((tmp_path / "r.json").read_text())
    found = MeasureRecord.of(written)
    assert (found.flags, found.partial[0].stage, found.partial[0].value) == (("failed",), "probes", 1.25)
    assert typed.written(found)["partial"] == written["partial"]
    assert typed.written(found)["errors"] == written["errors"]
