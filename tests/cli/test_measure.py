from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap

import fake_measures
import pytest
import torch

from hessprobe import measures, report
from hessprobe.measures import registry
from hessprobe.training import load_checkpoint


@pytest.fixture(autouse=True)
def stand_in(fake):
    return fake


def test_default_measures_table_record_and_csv(run, digits_checkpoint, tmp_path):
    done = run("measure", digits_checkpoint, "--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv")
    assert (done.code, done.err) == (0, "")
    assert "610 parameters, 1433 examples (train), hessian, seed 0" in done.out
    record = report.read_record(tmp_path / "r.json")
    assert [row["measure"] for row in record["results"]] == ["lambda-max", "trace", "frob"]
    assert done.out.count("± 0.012") == 3
    loaded = load_checkpoint(digits_checkpoint)
    assert record["checkpoint"]["sha256"] == loaded.sha256
    assert record["data"]["fingerprint"] == loaded.risk().fingerprint()
    assert record["arguments"]["rtol"] == 0.01
    assert (record["seed"], record["flags"]) == (0, [])
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 4


def test_options_reach_risk_and_settings(run, digits_checkpoint, monkeypatch):
    seen = {}
    real = registry.measure_all

    def spy(names, risk, settings, report):
        seen.update(names=names, risk=risk, settings=settings)
        return real(names, risk, settings, report)

    monkeypatch.setattr(registry, "measure_all", spy)
    done = run("measure", digits_checkpoint, "--measure", "trace", "-m", "frob", "-m", "trace", "--operator", "ggn",
               "--rtol", "0.05", "--probes", "7", "--seed", "4", "--examples", "50", "--batch-size", "20", "--split",
               "test", "--params", "layers.0.*", "--per-layer", "--device", "cpu", "--dtype", "float64", "--engine",
               "double-backward", "--memory", "2GB", "--confidence", "0.9", "--k", "3", "--shift", "0.1",
               "--json", "-")  # fmt: skip
    assert done.code == 0, done.err
    assert seen["names"] == ("trace", "frob")
    assert seen["settings"] == measures.MeasureSettings(
        "ggn", 0.05, 7, 4, True, "double_backward", 2 * 10**9, 0.9, 3, 0.1
    )
    described = seen["risk"].describe()
    assert (described["examples"], described["batches"], described["dim"], described["dtype"]) == (
        50,
        3,
        520,
        "float64",
    )
    record = json.loads(done.out)
    assert list(record["results"][0]["layers"]) == ["layers.0.weight", "layers.0.bias"]
    assert (record["data"]["split"], record["results"][0]["confidence"]) == ("test", 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "frobb"], "--measure must be one of lambda-max, "),
        (["-m", "frobb"], "got 'frobb'. Did you mean 'frob'?"),
        (
            ["--operator", "gnn"],
            "--operator must be one of hessian, ggn, fisher, functional; got 'gnn'. Did you mean 'ggn'?",
        ),
        (["--split", "tset"], "--split must be one of train, test, all; got 'tset'. Did you mean 'test'?"),
        (["--batchnorm", "evl"], "--batchnorm must be one of eval, batch, recalibrate; got 'evl'."),
        (["--dtype", "float16"], "--dtype must be one of float32, float64; got 'float16'."),
        (["--rtol", "0"], "--rtol must be a number in (0, 1); got 0."),
        (["--rtol", "nan"], "--rtol must be a number in (0, 1); got nan."),
        (["--confidence", "1"], "--confidence must be a number in (0, 1); got 1. Write 0.01 for 1 %."),
        (["--shift", "-1"], "--shift must be a finite number > 0; got -1."),
        (["--probes", "-3"], "--probes must be an integer >= 2; got -3."),
        (["--k", "0"], "--k must be an integer >= 1; got 0."),
        (["--k", "611"], "--k must be at most the number of parameters, 610; got 611."),
        (["--examples", "0"], "--examples must be an integer >= 1; got 0."),
        (["--examples", "5000"], "examples must be at most 1433"),
        (["--batch-size", "0"], "--batch-size must be an integer >= 1; got 0."),
        (["--seed", "-1"], "--seed must be an integer >= 0; got -1."),
        (["--memory", "lots"], "--memory must be a size such as 2GB"),
        (["--device", "cuda:99"], "--device must be a device of this machine (cpu"),
        (["--params", "layer.*"], "layer.*"),
        (["--json", "no/such/r.json"], "--json must lie in an existing folder"),
        (["--csv", "no/such/r.csv"], "--csv must lie in an existing folder"),
        (["--engine", "lineraized"], "Did you mean 'linearized'?"),
        (["--model", "mlp", "--data", "digits"], "--model and --data are for plain weights, but"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run, digits_checkpoint, arguments, message):
    done = run("measure", digits_checkpoint, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_without_anything_to_measure(run):
    done = run("measure")
    assert done.code == 2
    assert "CKPT must be given; got none." in done.err


def test_bad_files_fail_with_one_line(run, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    (tmp_path / "junk.pt").write_bytes(b"hello world")
    for name, message in (
        ("no.pt", "does not exist"),
        ("module.pt", "which could run code when loaded; nothing was run"),
        ("junk.pt", "truncated, damaged or not a PyTorch file"),
    ):
        done = run("measure", tmp_path / name)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert message in done.err


def test_earlier_results_survive_a_later_failure(run, stand_in, digits_checkpoint, tmp_path):
    stand_in(FAKE_FAIL="frob")
    done = run("measure", digits_checkpoint, "--json", tmp_path / "r.json")
    assert done.code == 1
    assert done.err == "hessprobe: error: the operator must be finite; got nan. Check the weights.\n"
    assert "lambda-max" in done.out
    assert "trace" in done.out
    record = report.read_record(tmp_path / "r.json")
    assert [row["measure"] for row in record["results"]] == ["lambda-max", "trace"]
    assert record["flags"] == ["failed"]
    assert record["errors"] == ["the operator must be finite; got nan. Check the weights."]


def test_traceback_only_with_debug(run, stand_in, digits_checkpoint):
    stand_in(FAKE_FAIL="frob")
    assert "Traceback" not in run("measure", digits_checkpoint).err
    assert "Traceback" in run("measure", digits_checkpoint, "--debug").err


def test_lack_of_memory_says_how_much_and_which_options_help(run, stand_in, digits_checkpoint):
    stand_in(FAKE_OOM="trace")
    done = run("measure", digits_checkpoint)
    assert done.code == 1
    assert "not enough memory: 1.15e+09 GB more was needed. Pass a smaller --batch-size, a --memory" in done.err
    assert done.err.count("\n") == 1


def test_interruption_keeps_and_writes_what_is_known(run, stand_in, digits_checkpoint, tmp_path):
    stand_in(FAKE_INTERRUPT="trace")
    done = run("measure", digits_checkpoint, "--json", tmp_path / "r.json")
    assert done.code == 130
    assert "interrupted; what was under way:\n  probes: 1.25 ± 0.50 (after 10 of 60)" in done.out
    record = report.read_record(tmp_path / "r.json")
    assert [row["measure"] for row in record["results"]] == ["lambda-max"]
    assert record["flags"] == ["interrupted"]
    assert record["partial"] == [{"stage": "probes", "done": 10, "total": 60, "value": 1.25, "std_error": 0.5}]


def test_ctrl_c_in_a_real_process(program, digits_checkpoint, tmp_path):
    target = tmp_path / "r.json"
    process = program(
        "measure",
        digits_checkpoint,
        "--json",
        target,
        env={**os.environ, "FAKE_SLEEP": "trace"},
        start_new_session=True,
    )
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "interrupted; what was under way:" in out
    assert report.read_record(target)["flags"] == ["interrupted"]
    assert sorted(tmp_path.iterdir()) == [target, tmp_path / "r.json.journal"]


def test_record_is_written_even_when_the_reader_of_the_table_goes_away(program, digits_checkpoint, tmp_path):
    process = program("measure", digits_checkpoint, "--json", tmp_path / "r.json")
    process.stdout.close()
    with process:
        process.stderr.read()
    assert len(report.read_record(tmp_path / "r.json")["results"]) == 3


def test_table_is_shown_even_when_the_record_cannot_be_written(run, digits_checkpoint, tmp_path, monkeypatch):
    def full(path, _):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(report, "write_record", full)
    done = run("measure", digits_checkpoint, "--json", tmp_path / "r.json")
    assert done.code == 1
    assert done.out.count("-12345.7") == 3 * 3
    assert done.err.startswith(f"hessprobe: error: {tmp_path / 'r.json'} cannot be written: No space left on device.")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_progress_with_time_left_is_on_stderr_where_it_is_a_terminal(digits_checkpoint):
    ours, theirs = os.openpty()
    command = [sys.executable, fake_measures.__file__, "measure", str(digits_checkpoint), "-m", "trace"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux reports the end of a pseudo-terminal as an error
        while part := os.read(ours, 4096):
            shown += part
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    for text in ("probes", "100%", "00:00", "-12345.7"):
        assert text in shown.decode()
    assert "%" not in out.replace("95% interval", "")
    assert "\x1b" not in out


def test_json_to_stdout_is_the_record_and_nothing_else(run, stand_in, digits_checkpoint):
    stand_in(FAKE_VALUE="nan")
    done = run("measure", digits_checkpoint, "-m", "diagonal", "--json", "-")
    record = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["results"][0]["value"] is None
    assert "non-finite:value=nan" in record["results"][0]["flags"]
    assert done.err == ""


def test_plain_weights_with_model_and_data(run, digits_checkpoint, tmp_path):
    path = tmp_path / "plain.pt"
    torch.save(load_checkpoint(digits_checkpoint).model.state_dict(), path)
    done = run("measure", path, "--model", "mlp:hidden=8", "--data", "digits", "-m", "trace")
    assert (done.code, done.err) == (0, "")
    assert "610 parameters" in done.out
    wrong = run("measure", path, "--model", "mlp:hidden=9", "--data", "digits")
    assert wrong.code == 1
    assert "has layers.0.weight of shape (8, 64), but the model has (9, 64)." in wrong.err
    assert "must be given together" in run("measure", path, "--model", "mlp").err
    assert "Did you mean 'mlp'?" in run("measure", path, "--model", "mpl", "--data", "digits").err


OBJECTIVE = """
    import torch
    from helper import width
    from hessprobe.objective import EmpiricalRisk

    def make():
        model = torch.nn.Linear(width, 1)
        data = [(torch.ones(2, width), torch.zeros(2, 1))]
        return EmpiricalRisk(model, torch.nn.functional.mse_loss, data)

    def from_checkpoint(path):
        return make()

    def wrong():
        return 3

    def broken():
        raise KeyError("nothing")
"""


@pytest.fixture
def objective(tmp_path):
    (tmp_path / "helper.py").write_text("width = 3\n")
    (tmp_path / "risks.py").write_text(textwrap.dedent(OBJECTIVE))
    return tmp_path / "risks.py"


def test_objective_from_a_file(run, objective, digits_checkpoint):
    done = run("measure", "--objective", f"{objective}:make", "-m", "trace", "--json", "-")
    assert (done.code, done.err) == (0, "")
    record = json.loads(done.out)
    assert record["data"]["dim"] == 4
    assert "checkpoint" not in record
    with_path = run("measure", digits_checkpoint, "--objective", f"{objective}:from_checkpoint", "--json", "-")
    assert json.loads(with_path.out)["checkpoint"]["path"] == str(digits_checkpoint)


@pytest.mark.parametrize(
    ("name", "more", "code", "message"),
    [
        ("mak", [], 2, "has no function 'mak'. Did you mean 'make'?"),
        ("wrong", [], 1, "must return (model, loss, data) or an EmpiricalRisk; got int."),
        ("broken", [], 1, "risks.py:18: KeyError: 'nothing'"),
        ("from_checkpoint", [], 2, "CKPT must be given: from_checkpoint of"),
        ("make", ["ckpt.pt"], 2, "takes no argument, so CKPT must not be given; got 'ckpt.pt'."),
        ("make", ["--split", "test", "--batch-size", "3"], 2, "--split, --batch-size cannot go with an EmpiricalRisk."),
    ],
)
def test_objective_that_does_not_work(run, objective, name, more, code, message):
    done = run("measure", *more, "--objective", f"{objective}:{name}")
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_objective_that_is_not_there(run, tmp_path):
    assert "--objective must be FILE.py:FUNCTION; got no ':'." in run("measure", "--objective", "risks.py").err
    missing = run("measure", "--objective", f"{tmp_path}/no.py:make")
    assert (missing.code, missing.err.count("must name an existing file")) == (1, 1)


def test_objective_that_fails_names_the_line_of_the_user(run, tmp_path):
    (tmp_path / "risks.py").write_text("from parts import part\n\n\ndef make(path):\n    return part(path)\n")
    (tmp_path / "parts.py").write_text("import torch\n\n\ndef part(path):\n    return torch.load(path)\n")
    done = run("measure", "no.pt", "--objective", f"{tmp_path}/risks.py:make")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"risks.py:make failed at {tmp_path}/parts.py:5: FileNotFoundError: " in done.err
    assert done.err.endswith(". --debug shows the traceback.\n")
    for text, message in (("import os\nrisk\n", ":2: NameError"), ("def make(:\n", ":1: SyntaxError")):
        (tmp_path / "broken.py").write_text(text)
        assert message in run("measure", "--objective", f"{tmp_path}/broken.py:make").err


def test_weights_alone_are_asked_whose_they_are(run, tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "plain.sd")
    done = run("measure", tmp_path / "plain.sd")
    assert (done.code, done.out) == (2, "")
    assert "your own as --model FILE.py:FUNCTION --data npz:FILE" in done.err
    assert "--objective FILE.py:FUNCTION" in done.err
    (tmp_path / "plain.safetensors").write_bytes(b"0")
    assert "--objective FILE.py:FUNCTION" in run("measure", tmp_path / "plain.safetensors").err
    assert run("measure", tmp_path / "no.safetensors").code == 1


def test_real_measures_of_a_real_checkpoint_agree_with_the_dense_hessian(run, digits_checkpoint, monkeypatch):
    monkeypatch.undo()  # the real measures, not the stand-in
    arguments = ["--examples", "60", "--batch-size", "25", "--dtype", "float64", "--per-layer", "--rtol", "0.03"]
    done = run("measure", digits_checkpoint, *arguments, "--json", "-")
    assert done.code == 0, done.err
    rows = {row["measure"]: row for row in json.loads(done.out)["results"]}
    risk = load_checkpoint(digits_checkpoint).risk(examples=60, dtype=torch.float64)

    def gradient(theta):
        return torch.func.grad(lambda at: sum(term.weight * term(at) for term in risk.terms()))(theta)

    with risk.evaluating():
        hessian = torch.func.jacfwd(gradient)(risk.theta)
    truth = {
        "lambda-max": float(torch.linalg.eigvalsh(hessian)[-1]),
        "trace": float(hessian.trace()),
        "frob": float(hessian.norm()),
    }
    for name, exact in truth.items():
        error = 4 * rows[name]["std_error"] + rows[name]["errors"]["solver"] + 1e-9 * abs(exact)
        assert abs(rows[name]["value"] - exact) < error
        assert error < 0.2 * abs(exact)
    parts = rows["trace"]["layers"]
    assert list(parts) == list(risk.layout.names)
    for name, where in risk.layout.slices.items():
        exact = float(hessian.diagonal()[where].sum())
        assert abs(parts[name]["value"] - exact) < 5 * parts[name]["std_error"] + 1e-9
