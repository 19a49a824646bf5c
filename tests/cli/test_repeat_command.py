from __future__ import annotations

import json

import pytest
import typer

from hessprobe.cli.app import app
from hessprobe.cli.commands import repeat
from hessprobe.cli.process import UsageError

GROUP = typer.main.get_command(app)


@pytest.fixture
def record(run, digits_checkpoint, tmp_path):
    path = tmp_path / "r.json"
    words = ("-m", "trace,lambda-max", "--per-layer", "--examples", "30", "--probes", "4")
    assert run("measure", digits_checkpoint, *words, "--json", path, "--csv", tmp_path / "r.csv").code == 0
    return path


def change(path, **parts):
    content = json.loads(path.read_text())
    for key, value in parts.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))
    return content


def test_the_same_command_gives_the_same_numbers_and_writes_nothing_again(run, record, tmp_path):
    (tmp_path / "r.csv").unlink()
    before = record.read_bytes()
    done = run("repeat", record)
    assert done.code == 0
    assert done.err.startswith("hessprobe: note: running hessprobe measure ")
    assert done.out.splitlines()[-1] == "10 same"
    assert "trace of layers.0.weight" in done.out
    assert "then" not in "".join(done.out.splitlines()[11:])
    assert (record.read_bytes(), (tmp_path / "r.csv").exists()) == (before, False)


def test_of_many_numbers_those_that_differ_are_told(run, record):
    content = json.loads(record.read_text())
    row = {**content["results"][0], "layers": None}
    change(record, results=[row] * 3000 + [{**row, "value": 2 * row["value"]}] * 2)
    done = run("repeat", record, "--quiet")
    lines = done.out.splitlines()
    assert (done.code, len(lines)) == (1, 1003)
    assert [line.split()[-1] for line in lines[1:4]] == ["differs", "differs", "same"]
    assert lines[-2:] == ["and 2,002 more numbers", "3000 same, 2 differs"]


def test_what_differs_is_told_and_ends_with_1(run, record, tmp_path):
    content = json.loads(record.read_text())
    rows = content["results"]
    largest, trace = rows
    # The trace is exact: an error of its own makes two values agree.
    trace["value"] *= 1.001
    trace["std_error"] = 0.001 * trace["value"]
    largest["value"] *= 1.5
    rows.append({**trace, "measure": "frob"})
    change(record, results=rows, environment={"torch": "2.9.0"}, checkpoint={"sha256": "0" * 64})
    done = run("repeat", record, "--json", tmp_path / "now.json", "--quiet")
    assert (done.code, done.err) == (1, "")
    verdicts = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in done.out.splitlines()}
    assert verdicts["trace"] == "within error"
    assert verdicts["lambda-max"] == "differs"
    assert verdicts["frob"] == "not found now"
    assert "torch: then 2.9.0, now " in done.out
    assert "the checkpoint is not what it was (sha256 000000000000 then, " in done.out
    assert json.loads((tmp_path / "now.json").read_text())["command"] == "measure"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            "train",
            {"out": "a.pt"},
            "RECORD must be of measure, sharpness, compare, invariance; got 'r.json' of 'train'.",
        ),
        ("rm", {"ckpt": "a.pt"}, "RECORD must be of measure"),
        ("measure", {"ckpt": "a.pt", "warp": 9}, "asks for an option that hessprobe measure of this version does not"),
        ("measure", {"objective": "evil.py:run"}, "names code that would be run, evil.py:run. Pass --trust-code if"),
        ("measure", {"ckpt": "a.pt", "model": "os.path:join", "data": "digits"}, "would be run, os.path:join."),
        ("measure", {"ckpt": "a.pt", "model": "mlp", "loss": "mine.py:loss"}, "would be run, mine.py:loss."),
    ],
)
def test_a_record_is_data(command, arguments, message):
    with pytest.raises(UsageError) as refused:
        repeat.words_of({"command": command, "arguments": arguments}, "r.json", GROUP)
    assert message in str(refused.value)


def test_code_that_is_trusted_and_models_by_name_are_taken():
    def words(**arguments):
        return repeat.words_of(
            {"command": "measure", "arguments": arguments}, "r.json", GROUP, trust="objective" in arguments
        )

    assert words(objective="mine.py:run", json="r.json", csv="r.csv") == ["measure", "--objective", "mine.py:run"]
    for model in ("mlp:hidden=8-8", "torchvision:resnet18", "timm:vit", "transformers:folder"):
        assert words(ckpt="a.pt", model=model, data="digits")[:2] == ["measure", "a.pt"]


def test_arguments_are_checked_as_if_typed(run, record):
    change(record, arguments={"operator": "nonsense", "probes": 4})
    done = run("repeat", record, "-q")
    assert done.code == 2
    assert "--operator must be one of hessian, ggn, fisher, functional; got 'nonsense'." in done.err


def test_what_the_parser_refuses_is_wrong_usage(run, record):
    change(record, arguments={"probes": "many"})
    done = run("repeat", record, "-q")
    assert done.code == 2
    assert (
        done.err
        == "hessprobe: error: RECORD: --probes must be an integer; got 'many'. Write for example --probes 10.\n"
    )


def test_sharpness_and_comparisons_are_repeated_too(run, digits_checkpoint, tmp_path):
    path = tmp_path / "s.json"
    words = ("--examples", "20", "--kind", "ascent", "--rho", "0.05", "--rho", "0.1")
    assert run("sharpness", digits_checkpoint, *words, "--json", path).code == 0
    names = [name for name, _ in repeat.numbers_of(json.loads(path.read_text()))]
    assert len(names) == len(set(names)) >= 2
    done = run("repeat", path, "-q")
    assert (done.code, done.out.splitlines()[-1]) == (0, f"{len(names)} same")


def test_a_name_that_looks_like_an_option_is_none(run, record):
    change(record, arguments={"ckpt": "--debug"})
    done = run("repeat", record, "-q")
    assert (done.code, done.err) == (1, "hessprobe: error: --debug does not exist. Check the path.\n")


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        ((1.0, 0.1), (1.000001, 0.1), "same"),
        ((1.0, 0.1), (1.5, 0.1), "within error"),
        ((1.0, 0.1), (1.6, 0.1), "differs"),
        ((1.0, 0.0), (1.001, 0.0), "differs"),
        ((1.0, 0.1), None, "not found now"),
    ],
)
def test_verdicts(then, now, verdict):
    assert repeat.Pair("x", then, now).verdict == verdict
