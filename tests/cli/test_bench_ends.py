"""``hessprobe bench --suite`` that ends early: what is known is shown and written, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hessprobe import report
from hessprobe.benchmarks import family, landscapes, optimizers
from hessprobe.errors import about

HERE = Path(__file__).parent


@pytest.fixture
def started(tmp_path):
    """Start the suite of optimizers on the stand-in, and wait until ``jobs`` runs that do not end are under way."""
    processes = []

    def start(jobs):
        names = ["sgd", "sam", "asam", "gsam"]
        options = [word for name in names for word in ("--optimizer", name)]
        files = ["--json", str(tmp_path / "o.json"), "--markdown", str(tmp_path / "o.md")]
        command = [sys.executable, str(HERE / "fake_runs.py"), "bench", "--suite", "optimizers", "--seeds", "1"]
        process = subprocess.Popen(
            [*command, "--jobs", str(jobs), *options, *files],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE.parent.parent,
            start_new_session=True,
        )
        processes.append(process)
        # The last of them has begun because sgd was finished.
        lines = [process.stderr.readline().split() for _ in range(jobs)]
        assert all(line[0] == "ready" for line in lines), lines
        return process, [int(line[1]) for line in lines]

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.parametrize(
    ("jobs", "number", "to_all", "code"),
    [(2, signal.SIGTERM, False, 143), (2, signal.SIGINT, True, 130), (1, signal.SIGTERM, True, 143)],
)
def test_a_signal_writes_what_is_finished_and_leaves_no_process(started, tmp_path, jobs, number, to_all, code):
    process, children = started(jobs)
    (os.killpg if to_all else os.kill)(process.pid, number)
    # Reads until the last process that holds the pipes has ended; the runs under way would take a minute.
    out, err = process.communicate(timeout=10)
    said = f"hessprobe: interrupted after 1 results; what is known is in {tmp_path / 'o.json'}\n"
    assert (process.returncode, err) == (code, said)
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    assert "| sgd | 91 ± n/a | 2 ± n/a |" in out
    assert "1 seeds" not in out
    assert "one seed, which leaves the spread between runs unknown" in out
    assert "| gsam | not finished | | | | 1.00 |" in out
    assert (tmp_path / "o.md").read_text() == out
    record = report.read_record(tmp_path / "o.json")
    assert record["flags"] == ["interrupted"]
    rows = [(row["optimizer"], row["seed"]) for row in record["timings"]]
    assert rows == [("sgd", 0), ("sam", None), ("asam", None), ("gsam", None)]


def test_what_is_killed_without_a_word_is_gone_on_from(started, tmp_path, run, monkeypatch):
    import fake_runs

    process, _ = started(1)
    process.kill()
    process.communicate(timeout=10)
    record = report.read_record(tmp_path / "o.json")
    assert record["flags"] == ["interrupted"]
    assert [(row["optimizer"], row["seed"]) for row in record["timings"]] == [("sgd", 0)]

    def trained(name, seed, epochs):
        (tmp_path / f"made-{name}").touch()
        return family.TrainedOptimizer(name, seed, 0.93, 1.0, dict.fromkeys(family.MEASURES, (3.0, 0.01)))

    monkeypatch.setattr(family, "time_optimizers", fake_runs.time_optimizers)
    monkeypatch.setattr(family, "train_and_measure", trained)
    chosen = ("--optimizer", "sgd", "--optimizer", "sam", "--seeds", 1, "--json", tmp_path / "o.json")
    done = run("bench", "--suite", "optimizers", *chosen, "--resume")
    assert done.code == 0, done.err
    # The run of sgd is that of before, and was not made again.
    assert sorted(path.name for path in tmp_path.glob("made-*")) == ["made-sam"]
    assert "| sgd | 91 ± n/a | 2 ± n/a |" in done.out
    assert "| sam | 93 ± n/a | 3 ± n/a |" in done.out
    assert report.read_record(tmp_path / "o.json")["flags"] == []
    again = run("bench", "--suite", "optimizers", *chosen, "--resume")
    assert again.out == done.out


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_is_killed_is_named_and_the_others_are_kept(run, monkeypatch, tmp_path, jobs):
    import fake_runs

    monkeypatch.setattr(family, "time_optimizers", fake_runs.time_optimizers)
    monkeypatch.setattr(family, "train_and_measure", fake_runs.train_and_measure)
    chosen = ("--optimizer", fake_runs.LOST, "--optimizer", "sgd", "--seeds", 2, "--jobs", jobs)
    done = run("bench", "--suite", "optimizers", *chosen, "--json", tmp_path / "o.json")
    killed = "was killed by SIGKILL, as happens where memory runs out"
    sentence = f"the run of adamw, seed 0, {killed}; the run of adamw, seed 1, {killed}; 2 of 4 runs were finished."
    assert (done.code, done.err) == (1, f"hessprobe: error: {sentence}\n")
    assert "| sgd | 91 (all 2 equal) | 2.50 ± 0.50 |" in done.out
    record = report.read_record(tmp_path / "o.json")
    assert (record["flags"], record["errors"]) == (["failed"], [sentence])
    assert [(row["optimizer"], row["seed"]) for row in record["timings"]] == [("sgd", 0), ("sgd", 1), ("adamw", None)]


@pytest.fixture
def stopped(monkeypatch):
    """Suites in one process, of which the last part ends by the given exception."""

    def configure(error):
        def ends(*_, **__):
            raise error

        plane = landscapes.PlaneTiming("digits", "hessprobe", 1.0, 2.0, 1.5, 1.4, 1.6, 2, 9)
        monkeypatch.setattr(optimizers, "SHAPES", {"3 x (4)": (3, (4,))})
        monkeypatch.setattr(optimizers, "time_network", ends)
        monkeypatch.setattr(landscapes, "time_planes", lambda case, **_: [plane] if case.name == "digits" else ends())

    return configure


@pytest.mark.parametrize(("suite", "shown"), [("steps", "| 3 x (4) | "), ("landscapes", "| hessprobe | 1.00 | 2.00 |")])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(about("rounds", "must be fewer; got 2."))])
def test_what_ends_the_other_suites_keeps_what_they_timed(run, stopped, tmp_path, suite, shown, error):
    stopped(error)
    done = run("bench", "--suite", suite, "--rounds", 2, "--json", tmp_path / "s.json", "--markdown", tmp_path / "s.md")
    record = report.read_record(tmp_path / "s.json")
    assert len(record["timings"]) >= 1
    assert shown in done.out
    assert (tmp_path / "s.md").read_text() == done.out
    if isinstance(error, KeyboardInterrupt):
        assert (done.code, record["flags"]) == (130, ["interrupted"])
        assert done.err.startswith("hessprobe: interrupted after ")
    else:
        assert (done.code, record["flags"]) == (1, ["failed"])
        assert done.err == "hessprobe: error: --rounds must be fewer; got 2.\n"


class Killed(BaseException):
    """As abrupt as a process can end that goes on to test what it left."""


def test_what_was_timed_before_a_kill_is_not_timed_again_and_no_product_is_written_down(run, monkeypatch, tmp_path):
    from hessprobe import benchmarks
    from hessprobe.benchmarks.products import Timing
    from hessprobe.hvp import engines

    timed, ends = [], [True]

    def time_products(case, **_):
        timed.append(case.name)
        assert engines.place("pool") == ""
        if case.name == "resnet20" and ends[0]:
            raise Killed
        return [Timing(case.name, "auto", 1, 2.0, 1.9, 2.1, 1.0, 0.5, 1, 0.1, 0.0)]

    monkeypatch.setattr(benchmarks, "time_products", time_products)
    words = ("bench", "--case", "mlp", "--case", "resnet20", "--json", tmp_path / "b.json")
    with pytest.raises(Killed):
        run(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["b.json.journal"]
    ends[0] = False
    refused = run(*words, "--rounds", "3", "--resume")
    assert (refused.code, "--rounds was 9 and is 3" in refused.err) == (1, True)
    assert run(*words, "--resume").code == 0
    assert timed == ["mlp", "resnet20", "resnet20"]
    assert [row["case"] for row in report.read_record(tmp_path / "b.json")["timings"]] == ["mlp", "resnet20"]
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]
