from __future__ import annotations

import dataclasses

import pytest

from hessprobe import report, validation
from hessprobe.validation import Claim, Curve, Finding, Series
from hessprobe.validation.claim import below


@pytest.fixture
def chosen(monkeypatch):
    def configure(measured):
        curve = Curve("x", "y", (Series.of("s", [1, 2], [3, 4]),))
        claim = Claim("fake/claim", "It holds.", "nobody", lambda: Finding((below("b", 1.0, measured),), curve))
        monkeypatch.setattr(validation, "select", lambda pattern, *, full: (claim,))

    return configure


@pytest.mark.parametrize(("measured", "code", "verdict"), [(0.5, 0, "holds"), (1.5, 1, "fails")])
def test_a_claim_that_fails_ends_with_1_and_stays_in_every_output(run, chosen, tmp_path, measured, code, verdict):
    chosen(measured)
    done = run("validate", "--out", tmp_path / "v")
    assert done.code == code
    assert "fake/claim" in done.out
    assert verdict in done.out
    (row,) = report.read_record(tmp_path / "v" / "validation.json")["results"]
    assert (row["verdict"], row["measured"]) == (verdict, measured)
    assert f"**{verdict}**" in (tmp_path / "v" / "README.md").read_text()
    assert (tmp_path / "v" / "figures" / "fake-claim.svg").read_text().startswith("<?xml")


def test_an_unknown_pattern_is_wrong_usage(run):
    done = run("validate", "nonsense")
    assert done.code == 2
    assert "pattern must match a claim" in done.err


@pytest.fixture
def short_bars(monkeypatch):
    def use(factor):
        from hessprobe.validation.coverage import trials

        plain = trials.one

        def shrunk(estimate, truth, **how):
            found = plain(estimate, truth, **how)
            half = (found.high - found.low) / 2 * factor
            return dataclasses.replace(found, low=found.value - half, high=found.value + half, flagged=False)

        monkeypatch.setattr(trials, "one", shrunk)

    return use


@pytest.mark.parametrize(("factor", "code", "word"), [(1.0, 0, "holds"), (0.5, 1, "1 fail")])
def test_coverage_ends_with_1_where_a_cell_is_low(run, short_bars, tmp_path, factor, code, word):
    short_bars(factor)
    what = ("trace-gaussian", "--coverage", "--family", "flat", "--probes", "16", "--seeds", "60")
    done = run("validate", *what, "--out", tmp_path / "v")
    assert done.code == code
    assert word in done.out
    record = report.read_record(tmp_path / "v" / "coverage.json")
    (row,) = record["results"]
    assert (record["command"], row["question"], row["family"]) == ("validate-coverage", "trace, Gaussian", "flat")
    assert word in (tmp_path / "v" / "coverage.md").read_text()
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["coverage.json", "coverage.md"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seeds", "3"), "--seeds must be left out without --coverage"),
        (("--coverage", "--full"), "--full must be left out with --coverage"),
        (("--coverage", "--probes", "8,x"), "probes must be integers >= 2"),
        (("--coverage", "--family", "flatt"), "Did you mean 'flat'"),
        (("--coverage", "xtrac"), "Did you mean 'xtrace'"),
        (("--coverage", "--jobs", "0"), "jobs must be"),
    ],
)
def test_wrong_use_of_coverage_is_told(run, arguments, words):
    done = run("validate", *arguments)
    assert done.code == 2
    assert words in done.err


def test_coverage_lists_its_estimators(run):
    done = run("validate", "x*", "--coverage", "--list")
    assert done.out == "xtrace  trace, XTrace\nxdiag  entry of the diagonal, XDiag\n"


def test_wrong_numbers_are_refused_before_the_estimators_are_named(run):
    done = run("validate", "--coverage", "--list", "--jobs", "0")
    assert (done.code, done.out) == (2, "")
    assert done.err == "hessprobe: error: jobs must be an integer >= 1; got 0.\n"


def test_a_failure_keeps_the_claims_that_were_finished(run, chosen, tmp_path, monkeypatch):
    chosen(0.5)
    genuine = validation.run

    def ends(claims, **how):
        yield from genuine(claims, **how)
        raise ValueError("nothing is left")

    monkeypatch.setattr(validation, "run", ends)
    done = run("validate", "--json", tmp_path / "v.json")
    assert (done.code, done.err) == (1, "hessprobe: error: nothing is left\n")
    assert "fake/claim" in done.out
    record = report.read_record(tmp_path / "v.json")
    assert ([row["claim"] for row in record["results"]], record["flags"]) == (["fake/claim"], ["failed"])


class Killed(BaseException):
    """As abrupt as a process can end that goes on to test what it left."""


@pytest.mark.parametrize("output", [("--json", "v.json"), ("--out", "v")])
def test_claims_that_were_finished_are_not_held_against_measurement_again(run, tmp_path, monkeypatch, output):
    looked, ends = [], [True]
    curve = Curve("x", "y", (Series.of("s", [1, 2], [3, 4]),), log_x=True)

    def look(name, measured):
        def check():
            looked.append(name)
            if name == "second" and ends[0]:
                raise Killed
            return Finding((below("b", 1.0, measured),), curve if name == "first" else None, note=name)

        return Claim(f"fake/{name}", "It holds.", "nobody", check)

    def breaks():
        looked.append("broken")
        return 1 / 0

    claims = (look("first", 1.5), Claim("fake/broken", "It breaks.", "nobody", breaks), look("second", 0.5))
    monkeypatch.setattr(validation, "select", lambda pattern, *, full: claims)
    words = ("validate", output[0], tmp_path / output[1])
    record = tmp_path / ("v.json" if output[0] == "--json" else "v/validation.json")
    with pytest.raises(Killed):
        run(*words)
    assert record.with_name(f"{record.name}.journal").exists()
    ends[0] = False
    done = run(*words, "--resume")
    assert (looked, done.code) == (["first", "broken", "second", "second"], 1)
    assert not record.with_name(f"{record.name}.journal").exists()
    resumed = report.read_record(record)["results"]
    assert run(*words).code == 1
    whole = report.read_record(record)["results"]
    assert [{**row, "seconds": 0} for row in resumed] == [{**row, "seconds": 0} for row in whole]
    assert [row["verdict"] for row in whole] == ["fails", "error", "holds"]
    assert whole[0]["curve"]["log_x"] is True
