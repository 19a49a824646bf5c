"""``--threads``: what is asked for, or what a trial finds the fastest; never something that nobody asked for."""

from __future__ import annotations

import pytest
import torch

from hessprobe.cli import outputs, process
from hessprobe.training import loop
from hessprobe.training import run as run_module


@pytest.fixture(autouse=True)
def as_found():
    before = torch.get_num_threads()
    process._settled.clear()
    yield
    process._settled.clear()
    torch.set_num_threads(before)


class Machine:
    """Work that takes ``seconds[threads]``; remembers who had a turn."""

    def __init__(self, seconds):
        self.seconds, self.now, self.turns = seconds, 0.0, []

    def work(self, count):
        self.turns.append(count)
        took = self.seconds[count]
        self.now += took(len(self.turns)) if callable(took) else took

    def choice(self):
        return process.choose(list(self.seconds), self.work, lambda: self.now)


def test_the_fastest_is_taken_and_fewer_where_they_are_nearly_as_fast():
    assert Machine({4: 1e-4, 1: 4e-4, 2: 2e-4}).choice() == 4
    assert Machine({4: 1e-4, 1: 1.1e-4, 2: 1.05e-4}).choice() == 1
    assert Machine({2: 1e-2, 1: 1e-4}).choice() == 1


def test_waiting_counts_though_the_best_round_is_fast():
    # Two threads halve the work, and lose the core of one of them for 10 ms in every fourth turn.
    stalled = Machine({2: lambda turn: 1e-2 if turn % 4 == 1 else 5e-5, 1: 1e-4})
    assert stalled.choice() == 1


def test_a_trial_ends_soon_on_a_machine_that_is_very_busy():
    busy = Machine({2: 1.0, 1: 1.0})
    busy.choice()
    assert len(busy.turns) == 4  # each once to start, and one round


def test_a_run_that_goes_on_takes_the_threads_it_had_unless_a_number_is_asked_for(tmp_path, run):
    words = ("train", "--model", "mlp:hidden=8", "--subset", "0.05", "--epochs", "2", "--out", tmp_path / "a.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_SAVING_SHARE", float("inf"))
        patch.setattr(run_module._Saver, "after_epoch", lambda saver, trained: None)
        patch.setattr(loop, "_close_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*words, "--batch-size", "20", "--threads", "3").code == 130
    assert (tmp_path / "a-resume.pt").exists()
    kept = (tmp_path / "a-resume.pt").read_bytes()
    torch.set_num_threads(1)
    assert run(*words, "--batch-size", "20", "--resume").code == 0
    assert torch.get_num_threads() == 3
    (tmp_path / "a-resume.pt").write_bytes(kept)
    assert run(*words, "--batch-size", "20", "--resume", "--threads", "2").code == 0
    assert torch.get_num_threads() == 2


def test_the_environment_is_the_most_that_auto_takes(monkeypatch):
    seen: list[list[int]] = []
    monkeypatch.setattr(process, "choose", lambda counts, work, clock: seen.append(counts) or 1)
    torch.set_num_threads(1)
    assert process.settle_threads() == 1
    assert seen == []
    process._settled.clear()
    torch.set_num_threads(6)
    assert process.settle_threads() == 1
    assert seen == [[6, 1, 2, 4]]
    assert torch.get_num_threads() == 1


def test_one_trial_serves_the_process(monkeypatch):
    monkeypatch.setattr(process, "_fastest", lambda most: 1)
    process.settle_threads()
    monkeypatch.setattr(process, "_fastest", lambda most: pytest.fail("a second trial"))
    assert process.settle_threads() == 1


def test_a_number_is_taken_at_its_word(run, digits_checkpoint):
    done = run(
        "measure", digits_checkpoint, "--measure", "lambda-max", "--examples", "32", "--threads", "2", "--json", "-"
    )
    assert done.code == 0
    assert '"threads": 2' in done.out


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5", ""])
def test_what_is_no_number_is_refused(run, given):
    done = run("measure", "absent.pt", f"--threads={given}")
    assert done.code == 2
    assert "--threads must be a whole number, 1 or more, or auto" in done.err
    assert "Traceback" not in done.err


def test_a_stopped_run_is_known_by_the_number_that_was_asked_for():
    with outputs.invocation("measure", {}):
        assert process.threads_identity() == "auto"
    with outputs.invocation("measure", {}, threads="3"):
        assert process.threads_identity() == 3
