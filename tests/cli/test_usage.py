from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure", "x", "--rtol", "abc"], "--rtol must be a number; got 'abc'. Write for example --rtol 0.05."),
        (["measure", "x", "--k", "2.5"], "--k must be an integer; got '2.5'. Write for example --k 10."),
        (["bench", "--rounds", "x"], "--rounds must be an integer; got 'x'. Write for example --rounds 10."),
        (["train", "--out", "a", "--seed", "one"], "--seed must be an integer; got 'one'."),
        (["measure", "--rtoll", "1"], "hessprobe measure has no option --rtoll. Did you mean --rtol?"),
        (["measure", "-rtol", "1"], "hessprobe measure has no option -rtol. Did you mean --rtol?"),
        (["info", "--qqqq"], "hessprobe info has no option --qqqq. See 'hessprobe info --help'."),
        (["bench", "--csv", "a"], "hessprobe bench has no option --csv."),
        (["--per-layer", "measure"], "--per-layer must stand behind a command; got it before one. Write: hessprobe "),
        (["--per-layer", "measure"], "hessprobe measure --per-layer ..."),
        (["measure", "x", "--rtol"], "--rtol must be followed by a value; got none. Write --rtol R, see 'hessprobe m"),
        (["measure", "--per-layer=3"], "--per-layer must stand without a value; got '3'. Write --per-layer alone"),
        (["train"], "--out must be given; got none. Write: hessprobe train --out FILE"),
        (["info"], "got none. Write: hessprobe info CKPT (A checkpoint, or a file or folder of weights)."),
        (["measure", "a.pt", "frob"], "hessprobe measure takes one CKPT; got also 'frob'. Write --measure frob."),
        (["measure", "a.pt", "b.pt"], "hessprobe measure takes fewer arguments; got also 'b.pt'."),
        (["meassure"], "hessprobe has no command 'meassure'. Did you mean 'measure'?"),
        (
            ["qqq"],
            "hessprobe has no command 'qqq'. Choose one of train, measure, invariance, sharpness, landscape, track, "
            "compare, plot, info, bench, validate, report, demo, doctor, repeat.",
        ),
        ([__file__], f"hessprobe has no command {__file__!r}. Write: hessprobe measure {__file__}"),
    ],
)
def test_the_parser_complains_in_one_line_that_names_option_value_and_mend(run, arguments, message):
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("hessprobe: error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_without_arguments_the_help_is_shown(run):
    done = run()
    assert done.code == 2
    assert "Usage: hessprobe [OPTIONS] COMMAND" in done.out
    assert "error" not in done.err


@pytest.mark.parametrize("command", ["train", "measure", "info", "bench"])
def test_every_command_refuses_an_unknown_option_in_one_line(run, command):
    done = run(command, "--debugg")
    assert (done.code, done.err) == (
        2,
        f"hessprobe: error: hessprobe {command} has no option --debugg. Did you mean --debug?\n",
    )
