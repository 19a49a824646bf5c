"""Command lines that are wrong in the way people get them wrong: each with the sentence that puts it right."""

from __future__ import annotations

import json

import pytest
import typer

from hessprobe.cli import meanings, options
from hessprobe.cli.app import app
from hessprobe.comparison.names import MEASURES
from hessprobe.measures import TABLE
from hessprobe.sharpness.names import KINDS

GROUP = typer.main.get_command(app)
NO_OPTION = "hessprobe {0} has no option {1}. Did you mean {2}?"


def options_of(command):
    return {name for parameter in GROUP.commands[command].params for name in parameter.opts}


@pytest.mark.parametrize(
    ("command", "written", "meant"),
    [
        ("sharpness", "--radius", "--rho"),
        ("landscape", "--resolution", "--size"),
        ("measure", "--tol", "--rtol"),
        ("measure", "--n_probes", "--probes"),
        ("measure", "--samples", "--probes"),
        ("measure", "--top-k", "--k"),
        ("measure", "-k", "--k"),
        ("measure", "--rho", "--radius"),
        ("measure", "-b", "--batch-size"),
        ("train", "--learning-rate", "--lr"),
        ("train", "--dataset", "--data"),
        ("train", "-o", "--out"),
        ("landscape", "--output", "--out"),
        ("compare", "--metrics", "--measure"),
        ("bench", "--trials", None),
        ("measure", "--xy", None),
    ],
)
def test_an_option_of_another_program_is_answered_with_the_one_that_means_it(run, command, written, meant):
    done = run(command, written, "1")
    assert (done.code, done.out) == (2, "")
    if meant is None:
        assert done.err == f"hessprobe: error: hessprobe {command} has no option {written}. See 'hessprobe " + (
            f"{command} --help'.\n"
        )
    else:
        assert done.err == f"hessprobe: error: {NO_OPTION.format(command, written, meant)}\n"


def test_every_meaning_exists():
    everywhere = set().union(*map(options_of, GROUP.commands)) | {"--help"}
    for words, meant in meanings._OPTIONS.items():
        for name in meant:
            assert name in everywhere, words
    known = {
        "--measure": TABLE,
        "--dtype": options.DTYPES,
        "--split": options.SPLITS,
        "--batchnorm": options.BATCHNORMS,
        "--operator": options.ANY_OPERATOR,
        "--kind": KINDS,
    }
    for option, values in meanings._VALUES.items():
        for here, elsewhere in values.items():
            assert here in known[option]
            # What is a value already is never taken for another.
            assert not set(elsewhere) & set(known[option])
    assert meanings.value("--measure", "logdet", ["frob"]) is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["measure", "a.pt", "-m", "max-eigenvalue"], "got 'max-eigenvalue'. Did you mean 'lambda-max'?"),
        (["measure", "a.pt", "-m", "trace,Spectrum"], "got 'Spectrum'. Did you mean 'density'?"),
        (["measure", "a.pt", "--dtype", "double"], "got 'double'. Did you mean 'float64'?"),
        (["measure", "a.pt", "--split", "validation"], "got 'validation'. Did you mean 'test'?"),
        (["measure", "a.pt", "--operator", "Gauss-Newton"], "got 'Gauss-Newton'. Did you mean 'ggn'?"),
        (["compare", "a.pt", "b.pt", "-m", "frobenius"], "got 'frobenius'. Did you mean 'frob'?"),
        (["sharpness", "a.pt", "--kind", "max"], "got 'max'. Did you mean 'worst'?"),
        (["measure", "a.pt", "--memory", "2"], "which is that many bytes. Write 2GB."),
        (["help"], "hessprobe has no command 'help'. Write: hessprobe --help"),
        (["help", "measure"], "hessprobe has no command 'help'. Write: hessprobe measure --help"),
        (
            ["train", "--data", "cifar10", "--out", "a.pt"],
            "got 'cifar10'. Nothing is fetched unasked: write image-folder:PATH for a copy of it, or hf:cifar10 for",
        ),
    ],
)
def test_a_value_of_another_program_is_answered_with_the_one_that_means_it(run, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("hessprobe: error: ")
    assert done.err.count("\n") == 1
    assert sentence in done.err
    assert list(tmp_path.iterdir()) == []


def test_commas_ask_for_several_measures(run, digits_checkpoint, fake):
    done = run("measure", digits_checkpoint, "--measure", "trace,frob", "--json", "-")
    assert [row["measure"] for row in json.loads(done.out)["results"]] == ["trace", "frob"]
    assert {"trace", "frob"} < set(MEASURES)
