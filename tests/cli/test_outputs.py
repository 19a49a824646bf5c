from __future__ import annotations

import errno
import json
import os
import shutil
import signal

import pytest

from hessprobe import files, report
from hessprobe.cli import outputs


@pytest.fixture
def copied(digits_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(digits_checkpoint, tmp_path / "a.pt")
    return tmp_path / "a.pt"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("info", "a.pt", "--json", "a.pt"), "--json"),
        (("measure", "a.pt", "--json", "a.pt", "--force"), "--json"),
        (("measure", "a.pt", "--csv", "sub/../a.pt"), "--csv"),
        (("measure", "a.pt", "--json", "link.pt"), "--json"),
        (("measure", "--objective", "risks.py:make", "--json", "risks.py"), "--json"),
        (("sharpness", "a.pt", "--json", "a.pt"), "--json"),
        (("invariance", "a.pt", "--json", "a.pt"), "--json"),
        (("landscape", "a.pt", "--with", "b.pt", "--json", "b.pt"), "--json"),
        (("compare", "b.pt", "a.pt", "--json", "a.pt"), "--json"),
        (("train", "--recipe", "risks.py", "--out", "risks.py"), "--out"),
    ],
)
def test_no_output_names_what_is_read(run, copied, words, option):
    folder = copied.parent
    (folder / "sub").mkdir()
    (folder / "link.pt").symlink_to(copied)
    shutil.copy(copied, folder / "b.pt")
    (folder / "risks.py").write_text("make = None\n")
    before = {path: path.read_bytes() for path in folder.glob("*.p*")}
    done = run(*words)
    assert done.code == 2
    assert f"{option} must be another file than those that are read; got " in done.err
    assert {path: path.read_bytes() for path in folder.glob("*.p*")} == before


def test_what_hessprobe_did_not_write_stays_without_force(run, copied):
    folder = copied.parent
    for name in ("notes.json", "notes.csv", "page.html"):
        (folder / name).write_text('{"schema": "mine"}\nmeasure\n')
    shutil.copy(copied, folder / "b.pt")
    wrong = "must not replace a file that hessprobe did not write there; got"
    for words in (
        ("info", "a.pt", "--json", "notes.json"),
        ("info", "a.pt", "--json", "b.pt"),
        ("measure", "a.pt", "--csv", "notes.csv"),
        ("train", "--out", "notes.json"),
    ):
        done = run(*words)
        assert done.code == 2
        assert wrong in done.err
    assert run("info", "a.pt", "--json", "ours.json").code == 0
    assert wrong in run("report", "ours.json", "--out", "page.html").err
    assert wrong in run("report", "ours.json", "--out", "a.pt").err
    assert run("info", "a.pt", "--json", "notes.json", "--force").code == 0
    assert report.read_record(folder / "notes.json")["command"] == "info"
    assert (folder / "b.pt").read_bytes() == copied.read_bytes()


def test_files_whose_names_are_not_typed_are_not_replaced_either(run, copied):
    folder = copied.parent
    theirs = ("r.json.journal", "t-resume.pt", "u-epoch-0001.pt")
    for name in theirs:
        (folder / name).write_text("theirs")
    done = run("measure", "a.pt", "-m", "trace", "--examples", "20", "--probes", "4", "--json", "r.json")
    assert (done.code, "r.json.journal is where the journal of this run has to lie" in done.err) == (1, True)
    small = ("train", "--model", "mlp:hidden=4", "--subset", "0.05", "--epochs", "2")
    for words, name in (
        (("--out", "t.pt"), "t-resume.pt"),
        (("--out", "u.pt", "--save-every", "1"), "u-epoch-0001.pt"),
    ):
        done = run(*small, *words)
        assert (done.code, f"--out must leave '{name}' free" in done.err) == (2, True)
    assert [(folder / name).read_text() for name in theirs] == ["theirs"] * 3
    assert sorted(path.name for path in folder.iterdir()) == sorted(["a.pt", *theirs])
    assert run(*small, "--out", "t.pt", "--force").code == 0


def test_what_hessprobe_wrote_is_replaced(run, copied, fake):
    for _ in range(2):
        done = run("measure", "a.pt", "--json", "r.json", "--csv", "r.csv")
        assert (done.code, done.err) == (0, "")
        done = run("report", "r.json", "--out", "page.html")
        assert (done.code, done.err) == (0, "")
        done = run("train", "--model", "mlp:hidden=4", "--epochs", "1", "--out", "b.pt")
        assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_are_known_again_and_others_are_not(run, copied, kind):
    words = ("landscape", "a.pt", "--line", "--size", "3", "--examples", "20", "--out", f"f.{kind}")
    for _ in range(2):
        assert run(*words).code == 0
    (copied.parent / f"f.{kind}").write_bytes(b"\x89PNG of somebody else")
    assert "--out must not replace" in run(*words).err


def test_a_figure_of_plot_does_not_replace_another_file(run, copied):
    assert run("sharpness", "a.pt", "--examples", "30", "--json", "s.json").code == 0
    done = run("plot", "s.json")
    assert done.code == 0
    drawn = copied.parent / done.out.partition(":")[0]
    drawn.write_bytes(b"a picture")
    done = run("plot", "s.json")
    assert (done.code, "--out must not replace a file" in done.err) == (2, True)
    assert drawn.read_bytes() == b"a picture"
    assert run("plot", "s.json", "--force").code == 0


def test_outside_a_command_every_output_is_checked_without_inputs(tmp_path):
    record = tmp_path / "r.json"
    record.write_text(json.dumps({"schema": "hessprobe.record/1"}))
    outputs.check_target("json", str(record))
    with pytest.raises(ValueError, match="--csv must not replace"):
        outputs.check_target("csv", str(record))


def test_two_runs_on_one_output_refuse_each_other(run, program, digits_checkpoint, tmp_path):
    record = tmp_path / "r.json"
    first = program("measure", digits_checkpoint, "--json", record, env={**os.environ, "FAKE_SLEEP": "trace"})
    assert first.stderr.readline() == "ready\n"
    (tmp_path / "link.json").symlink_to(record)
    for path in (record, tmp_path / "link.json"):
        done = run("info", digits_checkpoint, "--json", path)
        assert done.code == 2
        assert f"--json must not be the output of another run that goes on; got '{path}'." in done.err
    assert run("info", digits_checkpoint, "--json", tmp_path / "other.json").code == 0
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert run("info", digits_checkpoint, "--json", record).code == 0
    # The journal of the run that was stopped stays, a lock does not.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "other.json", "r.json", "r.json.journal"]


def test_a_killed_run_holds_no_lock(run, program, digits_checkpoint, tmp_path):
    first = program(
        "measure", digits_checkpoint, "--json", tmp_path / "r.json", env={**os.environ, "FAKE_SLEEP": "trace"}
    )
    assert first.stderr.readline() == "ready\n"
    first.kill()
    first.communicate(timeout=60)
    assert run("info", digits_checkpoint, "--json", tmp_path / "r.json").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.json.journal"]


def test_a_full_disk_is_one_sentence_with_the_path(run, digits_checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    done = run("info", digits_checkpoint, "--json", tmp_path / "r.json")
    assert (done.code, done.err) == (
        1,
        f"hessprobe: error: {tmp_path}/r.json cannot be written: No space left on device. Free some space, or choose "
        "another folder.\n",
    )
