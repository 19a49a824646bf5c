from __future__ import annotations

import ast
import pickle
import warnings
from pathlib import Path

import pytest

import hessprobe
from hessprobe.cli import process
from hessprobe.cli.wording import FLAGS, OPTIONS, flag_sentence, in_options
from hessprobe.errors import DataError, NumericalWarning, about


@pytest.mark.parametrize(
    ("library", "shown"),
    [
        (
            "It keeps 3 GB. Use smaller batches, a larger memory budget, or engine='forward_over_reverse'.",
            "It keeps 3 GB. Use a smaller --batch-size, a larger --memory, or --engine forward-over-reverse.",
        ),
        ("Use batchnorm='eval' or 'recalibrate'.", "Use --batchnorm eval or 'recalibrate'."),
        ("Pass for example params='layer1.*'.", "Pass for example --params 'layer1.*'."),
        ("Choose fewer with params=.", "Choose fewer with --params."),
        ("is as wide as all. Raise steps= or shift=.", "is as wide as all. Pass a larger --shift."),
        (
            "is as wide as all. Raise n_probes=, or give a tolerance (rtol=).",
            "is as wide as all. Pass more --probes, or a smaller --rtol.",
        ),
        ("Give the damping, e.g. shift=1e-3, or more.", "Give the damping, e.g. --shift 1e-3, or more."),
        ("--rtol must be a number in (0, 1); got 0.", "--rtol must be a number in (0, 1); got 0."),
        ("data must hold at least one batch; got none.", "data must hold at least one batch; got none."),
        (
            "1 of 2 eigenpairs did not converge to tol=0.001 in 9 products (largest residual 3). "
            "Raise max_matvecs or tol.",
            "1 of 2 eigenpairs did not converge to a relative residual of 0.001 in 9 products (largest residual 3). "
            "Their intervals allow for that; fewer by --k, or --dtype float64 in place of float32, may converge.",
        ),
        ("risks.py:make has max_norm=2, and d_model=3", "risks.py:make has max_norm=2, and d_model=3"),
    ],
)
def test_messages_speak_in_options(library, shown):
    assert in_options(library) == shown
    assert process.one_line(ValueError(library)) == shown
    assert in_options(shown) == shown


@pytest.mark.parametrize(
    ("parameter", "rest", "shown"),
    [
        (
            "examples",
            "must be at most 9, the size of it; got 10. Ask for fewer, or for split 'all'.",
            "--examples must be at most 9, the size of it; got 10. Ask for fewer, or for --split all.",
        ),
        ("n_probes", "must be at least 4; got 3. Give more.", "--probes must be at least 4; got 3. Give more."),
        ("milestones", "must be a list; got 1.", "--milestone must be a list; got 1."),
        ("data", "must be one of digits; got 'x'.", "--data must be one of digits; got 'x'."),
        ("rows", "must be a tensor; got 1.", "rows must be a tensor; got 1."),
    ],
)
@pytest.mark.parametrize("kind", [ValueError, TypeError, DataError])
def test_an_argument_is_the_option_of_its_name(parameter, rest, shown, kind):
    error = kind(about(parameter, rest))
    assert str(error) == f"{parameter} {rest}"
    assert process.one_line(error) == shown
    assert process.one_line(pickle.loads(pickle.dumps(error))) == shown
    with pytest.raises((process.UsageError, DataError)) as raised, process.as_usage():
        raise error
    assert process.one_line(raised.value) == shown


def literals(tree):
    """Yield text and parent of every string literal that is no part of another."""
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            first = child.values[0] if isinstance(child, ast.JoinedStr) and child.values else child
            if not isinstance(parent, ast.JoinedStr) and isinstance(first, ast.Constant):
                yield first.value, parent, child.lineno


def test_every_message_about_an_argument_that_is_an_option_knows_it():
    home = Path(hessprobe.__file__).parent
    plain = []
    for path in home.rglob("*.py"):
        if home / "cli" in path.parents:
            continue
        for text, parent, line in literals(ast.parse(path.read_text())):
            name, _, rest = text.partition(" ") if isinstance(text, str) else ("", "", "")
            option = name in OPTIONS or (name in ("data", "model") and rest.startswith("must be one of"))
            # A docstring is no message.
            if option and rest.startswith("must ") and not isinstance(parent, ast.Expr):
                plain.append(f"{path.relative_to(home)}:{line}: {text}")
    assert plain == []


def test_messages_of_the_users_own_file_stay_as_they_are():
    text = "risks.py:make failed: ValueError: got params='a'"
    assert process.one_line(process.QuotedError(text)) == text


def test_warnings_speak_in_options(capsys):
    def command(debug: bool = False) -> None:
        warnings.simplefilter("always")
        said = about("shift", "must be larger. Use float64 or raise shift.")
        warnings.warn(said, NumericalWarning, stacklevel=1)

    process.guarded(command)()
    assert capsys.readouterr().err == (
        "hessprobe: warning: --shift must be larger. Pass a larger --shift, or --dtype float64 in place of float32.\n"
    )


def test_flags_are_sentences_and_unknown_ones_themselves():
    assert flag_sentence("not-converged") == "some eigenvalue has not converged; the interval allows for that"
    assert flag_sentence("non-finite:value=nan") == "value is nan, null in the record"
    assert flag_sentence("non-finite:arrays.diagonal=2 entries") == "2 entries of arrays.diagonal are not finite"
    assert flag_sentence("brand-new") == "brand-new"


def test_every_sentence_belongs_to_a_flag_that_the_library_sets():
    rooms = [path for path in Path(hessprobe.__file__).parent.iterdir() if path.name != "cli"]
    source = "\n".join(path.read_text() for room in rooms for path in room.rglob("*.py"))
    assert [flag for flag in FLAGS if f'"{flag}"' not in source] == []
