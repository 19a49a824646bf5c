from __future__ import annotations

import json

import pytest
import torch

from hessprobe.training import load_checkpoint


@pytest.mark.parametrize(
    ("arguments", "notes"),
    [
        (["-m", "trace", "--shift", "0.1"], ["--shift has no effect here; it is for logdet, effective-dimension"]),
        (["-m", "trace", "--k", "3"], ["--k has no effect here; it is for lambda-max, lambda-min, spectral-norm"]),
        (["-m", "logdet", "--per-layer"], ["--per-layer has no effect here; it is for lambda-max, trace, frob"]),
        (
            ["-m", "lambda-max", "--probes", "9"],
            [
                "--probes has no effect here; it is for trace, frob, block-frob, logdet, density, diagonal, "
                "effective-rank, effective-dimension"
            ],
        ),
        (
            ["-m", "universal:worst", "--rtol", "0.1"],
            ["--rtol has no effect here; it is for lambda-max, lambda-min, spectral-norm, trace, frob, "],
        ),
        (
            ["-m", "trace", "--rtol", "0.1", "--probes", "9"],
            ["--rtol has no effect here; --probes fixes the size of the sample"],
        ),
        (["-m", "trace", "-m", "lambda-max", "--k", "2", "--rtol", "0.1", "--per-layer"], []),
        (["-m", "logdet", "--shift", "0.1", "--probes", "9"], []),
        # The width of an eigenvalue's bracket.
        (["-m", "lambda-max", "--rtol", "0.1"], []),
    ],
)
def test_options_without_effect_are_noted_in_one_line_each(run, fake, digits_checkpoint, arguments, notes):
    done = run("measure", digits_checkpoint, *arguments, "--json", "-")
    assert done.code == 0
    assert len(done.err.splitlines()) == len(notes)
    for line, note in zip(done.err.splitlines(), notes, strict=True):
        assert line.startswith(f"hessprobe: note: {note}")
    assert json.loads(done.out)["command"] == "measure"


def test_the_same_file_for_two_outputs_is_refused(run, digits_checkpoint, tmp_path):
    same = tmp_path / "r"
    done = run("measure", digits_checkpoint, "--json", same, "--csv", same)
    assert (done.code, list(tmp_path.iterdir())) == (2, [])
    assert "--csv must be another file than --json; got" in done.err
    assert "--markdown must be another file than --json" in run("bench", "--json", same, "--markdown", same).err


def test_k_prints_every_eigenvalue(run, digits_checkpoint):
    done = run("measure", digits_checkpoint, "-m", "lambda-max", "-m", "lambda-min", "--k", "3", "--examples", "60",
               "--dtype", "float64")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    start = lines.index("6 eigenvalues, largest first, each with its error:")
    values = [float(line.split(" ± ")[0]) for line in lines[start + 1 : start + 7]]
    risk = load_checkpoint(digits_checkpoint).risk(examples=60, dtype=torch.float64)
    from hessprobe.hvp import Hessian

    exact = torch.linalg.eigvalsh(Hessian(risk, engine="double_backward").to_dense()).flip(0)
    wanted = [*exact[:3].tolist(), *exact[-3:].tolist()]
    assert values == pytest.approx(wanted, rel=2e-3)
    assert all(" ± " in line for line in lines[start + 1 : start + 7])
