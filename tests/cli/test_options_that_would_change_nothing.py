"""Options that would change nothing are refused, commas alone too; a figure's numbers replace their own file alone."""

from __future__ import annotations

import pytest

OBJECTIVE = """
import torch
import hessprobe as hp

def make():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return hp.EmpiricalRisk(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), [(x, x.argmax(1) % 2)])
"""
OPENING = [
    ("--loss", "mse"),
    ("--key", "model"),
    ("--normalize", "imagenet"),
    ("--image-size", "8"),
    ("--label-column", "y"),
    ("--context", "8"),
    ("--pack",),
]


@pytest.mark.parametrize("words", OPENING, ids=[words[0] for words in OPENING])
def test_what_opens_foreign_files_is_refused_for_a_checkpoint_that_names_its_own(run, digits_checkpoint, words):
    done = run("measure", digits_checkpoint, "-m", "trace", *words)
    assert (done.code, done.out) == (2, "")
    assert f"{words[0]} must be left out for {digits_checkpoint}, which names its own model, data and loss." in done.err


@pytest.mark.parametrize("words", OPENING, ids=[words[0] for words in OPENING])
def test_what_opens_foreign_files_is_refused_for_an_objective(run, tmp_path, words):
    (tmp_path / "risks.py").write_text(OBJECTIVE)
    done = run("measure", "--objective", f"{tmp_path}/risks.py:make", "-m", "trace", *words)
    assert (done.code, done.out) == (2, "")
    assert f"{words[0]} must be left out for --objective, which decides it inside the function." in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("measure", "--measure", ","),
        ("compare", "--measure", ", ,"),
        ("track", "--measure", ","),
        ("sharpness", "--kind", ","),
    ],
    ids=lambda words: words[0],
)
def test_commas_alone_name_nothing(run, digits_checkpoint, words):
    command, option, commas = words
    done = run(command, digits_checkpoint, option, commas)
    assert done.code == 2
    assert f"{option} must name something; got {commas!r}. Leave it out for the default." in done.err


def test_kinds_of_sharpness_may_have_commas_between(run, digits_checkpoint):
    done = run("sharpness", digits_checkpoint, "--kind", "ascent,nothing")
    assert (done.code, "must be one of" in done.err, "got 'nothing'" in done.err) == (2, True, True)


def test_the_numbers_of_a_figure_replace_their_own_alone(run, digits_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("sharpness", digits_checkpoint, "--examples", "30", "--json", "s.json").code == 0
    assert run("plot", "s.json").code == 0
    (numbers,) = tmp_path.glob("*.csv")
    told = numbers.read_text()
    assert run("plot", "s.json").code == 0
    numbers.write_text("my notes\n")
    done = run("plot", "s.json")
    assert (done.code, "must not replace a file that hessprobe did not write there" in done.err) == (2, True)
    assert numbers.read_text() == "my notes\n"
    assert run("plot", "s.json", "--force").code == 0
    assert numbers.read_text() == told


def test_a_checkpoint_is_no_record(run, digits_checkpoint):
    done = run("plot", digits_checkpoint)
    assert (done.code, "codec" in done.err) == (2, False)
    assert f"RECORD must be a record; got the checkpoint {str(digits_checkpoint)!r}. Measure it first: " in done.err


def test_a_file_without_its_function_is_no_network_of_ours(run, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"0")
    done = run("measure", tmp_path / "w.pt", "--model", "net.py", "--data", "digits")
    assert (done.code, "got 'net.py'. Write net.py:FUNCTION." in done.err) == (2, True)


@pytest.mark.parametrize("hidden", ["abc", "0", "1.5"])
def test_layers_of_the_own_network_are_named_as_they_are_asked_for(run, tmp_path, hidden):
    done = run("train", "--model", f"mlp:hidden={hidden}", "--out", tmp_path / "a.pt", "--epochs", "1")
    assert (done.code, "hidden must be an integer >= 1" in done.err) == (2, True)
