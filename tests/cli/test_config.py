from __future__ import annotations

import pytest
import typer

from hessprobe.cli import app as program
from hessprobe.cli.app import app
from hessprobe.cli.process import UsageError

GROUP = typer.main.get_command(app)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / "h.toml").write_text(text)
        return "h.toml"

    return write


def merged(*words, **variables):
    return list(program.merged(words, GROUP, variables).words)


def test_options_come_from_the_file(config):
    config(
        'device = "cpu"\nrtol = 0.5\nlr = 0.1\n'
        '[measure]\nmeasure = ["trace", "frob"]\nrtol = 0.05\nper_layer = true\ndata-error = false\n'
        "[train]\nepochs = 3\n"
    )
    assert merged("measure", "a.pt", "--config", "h.toml") == [
        *("measure", "--measure=trace", "--measure=frob", "--per-layer", "--rtol=0.05", "--no-data-error"),
        *("--device=cpu", "a.pt"),
    ]
    assert merged("train", "--config=h.toml") == ["train", "--epochs=3", "--lr=0.1", "--device=cpu"]
    assert merged("info", "a.pt", "--config", "h.toml") == ["info", "a.pt"]


def test_what_is_typed_counts_first_then_variables_then_the_file(config):
    config('rtol = 0.5\nprobes = 4\nseed = 1\n[measure]\nmeasure = ["trace"]\n')
    words = ("measure", "a.pt", "-m", "frob", "--config", "h.toml", "--seed=7")
    variables = {"HESSPROBE_RTOL": "0.2", "HESSPROBE_PROBES": "8", "HESSPROBE_SEED": "3"}
    assert merged(*words, **variables) == [
        *("measure", "--rtol=0.2", "--probes=8", "a.pt", "-m", "frob", "--seed=7"),
    ]


def test_variables_alone(config):
    config("seed = 5\n")
    assert merged("measure", "a.pt", HESSPROBE_PER_LAYER="yes", HESSPROBE_DATA="/data") == [
        *("measure", "--per-layer", "a.pt")
    ]
    assert merged("measure", "a.pt", HESSPROBE_PER_LAYER="0") == ["measure", "a.pt"]
    assert merged("measure", "a.pt", HESSPROBE_CONFIG="h.toml") == ["measure", "--seed=5", "a.pt"]


def test_behind_dashes_nothing_is_an_option():
    assert merged("measure", "--", "--config", HESSPROBE_SEED="1") == ["measure", "--seed=1", "--", "--config"]
    assert merged("measure", "--", "--seed=4", HESSPROBE_SEED="1") == ["measure", "--seed=1", "--", "--seed=4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rtoll = 0.1", "rtoll in h.toml is no option of hessprobe. Did you mean rtol?"),
        ("[measure]\nepochs = 3", "epochs in [measure] of h.toml is no option of hessprobe measure."),
        ("[mesure]\nrtol = 0.1", "h.toml must have tables of commands; got [mesure]. Did you mean measure?"),
        ("per_layer = 3", "per_layer in h.toml must be true or false; got 3."),
        ("rtol = [0.1, 0.2]", "rtol in h.toml must be one value; got 2. Take the brackets away."),
        ("rtol = true", "rtol in h.toml must be a text or a number; got True."),
        ("force = true", "force in h.toml must be typed; a file cannot say it. Write --force behind the command."),
        ("per-layer = true\nper_layer = false", "per-layer in h.toml must be there once; got per-layer and per_layer."),
        ("[measure]\nper_layer = 1\nper-layer = 0", "per_layer in [measure] of h.toml must be there once; got"),
        ("rtol 0.1", "h.toml is not TOML: "),
        ('rtol = "abc"', "rtol in h.toml must be a number; got 'abc'."),
        ("[measure]\nrtol = 5", "rtol in [measure] of h.toml must be a number in (0, 1); got 5."),
        ('operator = "x"', "operator in h.toml must be one of hessian, ggn, fisher, functional; got 'x'."),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_it(run, config, text, message):
    done = run("measure", "absent.pt", "--config", config(text))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"hessprobe: error: {message}")
    assert done.err.count("\n") == 1


def test_a_variable_that_is_wrong_is_named(run, monkeypatch):
    monkeypatch.setenv("HESSPROBE_CONFIDENCE", "7")
    done = run("measure", "absent.pt")
    assert done.err.startswith("hessprobe: error: HESSPROBE_CONFIDENCE must be a number in (0, 1); got 7.")
    typed = run("measure", "absent.pt", "--confidence", "9")
    assert typed.err.startswith("hessprobe: error: --confidence must be a number in (0, 1); got 9.")


def test_a_variable_that_is_no_option_is_named(run, monkeypatch):
    monkeypatch.setenv("HESSPROBE_RTLO", "0.1")
    done = run("measure", "absent.pt")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "hessprobe: error: HESSPROBE_RTLO is no option of hessprobe. Did you mean HESSPROBE_RTOL? "
        "Rename it or unset it.\n"
    )
    assert run("measure", "--help").code == 0


def test_variables_of_other_commands_and_folders_are_let_be():
    others = {"HESSPROBE_EPOCHS": "3", "HESSPROBE_CACHE": "/c", "HESSPROBE_DATA": "/d", "OTHER_RTLO": "1"}
    assert merged("measure", "a.pt", **others) == ["measure", "a.pt"]
    with pytest.raises(UsageError, match="Did you mean HESSPROBE_DATA"):
        merged("measure", "a.pt", HESSPROBE_DATTA="/d")


def test_a_file_that_is_missing(run):
    assert "--config must be a file that can be read; got 'none.toml'" in run("info", "a", "--config", "none.toml").err
    assert "--config must be followed by a value" in run("info", "a", "--config").err


def test_the_record_holds_what_the_file_said(run, config, digits_checkpoint, fake):
    import json

    done = run("measure", digits_checkpoint, "--config", config('measure = "trace"\nseed = 4\n'), "--json", "-")
    assert (done.code, json.loads(done.out)["seed"]) == (0, 4)
    assert [row["measure"] for row in json.loads(done.out)["results"]] == ["trace"]


def test_never_from_a_file_or_a_variable():
    with pytest.raises(UsageError, match="--config must be followed"):
        program.merged(["measure", "--config"], GROUP, {})
    with pytest.raises(UsageError, match="HESSPROBE_FORCE must be typed; a variable cannot say it"):
        merged("measure", "a.pt", HESSPROBE_FORCE="1")
