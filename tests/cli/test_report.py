from __future__ import annotations

import json
import re

import pytest
from page_records import everything, measured, record, write


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs").mkdir()
    write(tmp_path / "runs", **everything())
    return tmp_path / "runs"


def test_page_from_a_folder(run, folder, tmp_path):
    page = tmp_path / "page.html"
    done = run("report", folder, "--out", page, "--title", "Two <b>minima</b>")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"wrote {page}: 8 records, ")
    text = page.read_text(encoding="utf-8")
    assert "<title>Two &lt;b&gt;minima&lt;/b&gt;</title>" in text
    assert "hessprobe measure runs/sgd.pt" in text
    assert "data:image/svg+xml;base64," in text
    assert page.stat().st_size < 3_000_000


def test_flags_and_notes_are_in_the_words_of_the_command_line(run, tmp_path):
    row = measured(flags=["tolerance-missed"], notes=["did better with engine='double_backward'"])
    write(tmp_path, a=record("measure", [row]))
    assert run("report", tmp_path / "a.json", "--out", tmp_path / "page.html").code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    words = re.sub(r"<[^>]+>", "", text)
    assert "the interval is wider than --rtol asks for" in words
    assert "--engine double-backward" in words


def test_what_is_left_out_of_a_folder_is_said(run, folder, tmp_path):
    write(folder, newer={"schema": "hessprobe.record/9"}, config={"lr": 1})
    (folder / "cut.json").write_text("{")
    done = run("report", folder, "--out", tmp_path / "page.html")
    assert done.code == 0
    assert "newer.json has schema 'hessprobe.record/9'" in done.err
    assert "cut.json is truncated or not JSON" in done.err
    assert "1 JSON files are no records of hessprobe and were left out: config.json" in done.err


def test_a_figure_that_cannot_be_drawn_does_not_take_the_page_with_it(run, tmp_path):
    write(tmp_path, a=record("measure", [measured("density", arrays={"grid": 3}), measured()]))
    done = run("report", tmp_path / "a.json", "--out", tmp_path / "page.html")
    assert done.code == 0
    assert "a figure of R1 could not be drawn: " in done.err
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A figure of R1 could not be drawn" in text
    assert "0.7793" in text


def test_record_of_the_page_goes_to_stdout_alone(run, folder, tmp_path):
    done = run("report", folder, "--out", tmp_path / "page.html", "--json", "-")
    written = json.loads(done.out)
    assert written["command"] == "report"
    assert {row["command"] for row in written["results"]} == {each["command"] for each in everything().values()}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{dir}/none.json"], 1, "none.json cannot be read: No such file or directory. Check the path."),
        (
            ["{dir}/empty"],
            1,
            "must hold records; got a folder with no JSON file. Make one: hessprobe measure CKPT",
        ),
        (["{dir}/sgd.pt"], 2, "RECORD must be a record; got the checkpoint"),
        (["{dir}/runs/measure_sgd.json", "--out", "{dir}/none/a.html"], 2, "--out must lie in an existing folder"),
        (["{dir}/runs/measure_sgd.json", "--out", "{dir}/runs"], 2, "--out must be a file; got the folder"),
        (["{dir}/runs/measure_sgd.json", "--out", "-"], 2, "--out must be a file; got '-'"),
        (
            ["{dir}/runs/measure_sgd.json", "--out", "{dir}/runs/measure_sgd.json"],
            2,
            "--out must be another file than those that are read",
        ),
        ([], 2, "RECORD|DIR must be given; got none."),
    ],
)
def test_wrong_input(run, folder, tmp_path, words, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sgd.pt").write_bytes(b"PK")
    done = run("report", *(word.replace("{dir}", str(tmp_path)) for word in words))
    assert done.code == code
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_failed_write_leaves_the_old_page(run, folder, tmp_path, monkeypatch):
    from hessprobe import files

    page = tmp_path / "page.html"
    page.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    done = run("report", folder, "--out", page, "--force")
    assert done.code == 1
    assert "No space left on device" in done.err
    assert page.read_text() == "old"
