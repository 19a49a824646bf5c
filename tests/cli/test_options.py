from __future__ import annotations

import pytest

from hessprobe.cli import options
from hessprobe.cli.process import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("512 MiB", 512 * 2**20),
        ("1.5g", 15 * 10**8),
        ("1000000", 10**6),
        ("3kib", 3072),
        ("1TB", 10**12),
        (None, None),
    ],
)
def test_memory_sizes(text, size):
    assert options.parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "2XB", "2iB", "nan", "1e9"])
def test_what_is_not_a_memory_size(text):
    with pytest.raises(UsageError, match=r"--memory must be a size such as 2GB, 512MiB or a number of bytes > 0; got"):
        options.parse_memory(text)


def test_model_specifications():
    assert options.parse_model("mlp") == ("mlp", {})
    assert options.parse_model("mlp:hidden=128-64,activation=tanh") == (
        "mlp",
        {"hidden": [128, 64], "activation": "tanh"},
    )
    parsed = options.parse_model("gpt:layers=2,tied=False,x=0.5,y=null")
    assert parsed == ("gpt", {"layers": 2, "tied": False, "x": 0.5, "y": None})
    with pytest.raises(
        UsageError, match=r"--model must be NAME or NAME:key=value,\.\.\.; got 'hidden' in 'mlp:hidden'"
    ):
        options.parse_model("mlp:hidden")


def test_ranges_are_refused_also_for_nan():
    for value in (0.0, -1.0, 1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"--rtol must be a number in \(0, 1\); got"):
            options.positive("--rtol", value, below=1)
    with pytest.raises(UsageError, match=r"--confidence must be .*; got 95\. Write 0\.95 for 95 %\."):
        options.positive("--confidence", 95.0, below=1)
    with pytest.raises(UsageError, match=r"--shift must be a finite number > 0; got nan"):
        options.positive("--shift", float("nan"))
    with pytest.raises(UsageError, match=r"--probes must be an integer >= 1; got 0"):
        options.at_least("--probes", 0, 1)
    options.positive("--shift", None)
    options.at_least("--probes", None, 1)


def test_only_the_record_goes_to_stdout(tmp_path):
    options.check_outputs(json="-", csv=None)
    with pytest.raises(UsageError, match=r"--csv must be a file; got '-'"):
        options.check_outputs(csv="-")


def test_two_outputs_must_be_two_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(
        UsageError, match=r"--csv must be another file than --json; got 'sub/\.\./a\.out' for both\. Rename one\."
    ):
        options.check_outputs(json="a.out", csv="sub/../a.out")
    options.check_outputs(json="a.json", csv="a.csv")
    options.check_outputs(json=None, csv=None)


def test_commas_separate_measures_but_within_parentheses():
    assert options.separated(["trace,frob", " lambda-max "]) == ["trace", "frob", "lambda-max"]
    assert options.separated(["universal:p(2,3),trace"]) == ["universal:p(2,3)", "trace"]
    assert options.separated(None) is None


def test_a_size_without_its_unit_is_asked_for_it():
    with pytest.raises(UsageError, match=r"with its unit; got '2', which is that many bytes\. Write 2GB\."):
        options.parse_memory("2")
    assert options.parse_memory("10000") == 10_000
