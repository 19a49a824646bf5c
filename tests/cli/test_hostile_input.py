from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from hessprobe.cli.process import shown

ROOT = Path(__file__).parents[2]


def one_sentence(done, code):
    assert done.code == code
    assert done.err.count("\n") == 1
    assert done.err.startswith("hessprobe: error: ")
    assert "Traceback" not in done.err
    return done.err


@pytest.fixture
def naming(digits_checkpoint, tmp_path):
    """Return a checkpoint that names other data: ``naming("text:/dev/zero")``."""

    def make(name):
        content = torch.load(digits_checkpoint, weights_only=True)
        content["data"]["name"] = name
        torch.save(content, tmp_path / "named.pt")
        return tmp_path / "named.pt"

    return make


@pytest.mark.parametrize("name", ["text:/dev/zero", "hf:someone/data", "image-folder:/tmp", "text:FIFO"])
def test_a_checkpoint_chooses_no_data_outside_the_package(run, naming, tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    name = name.replace("FIFO", str(tmp_path / "fifo"))
    path = naming(name)
    for command in ("measure", "sharpness", "landscape"):
        error = one_sentence(run(command, path), 2)
        assert f"{path} asks for the data {name!r}, which lie outside hessprobe. Pass --trust-data" in error
    if not name.startswith(("hf", "image")):
        assert "which is none. Check the path" in one_sentence(run("measure", path, "--trust-data"), 1)


def test_data_that_are_made_here_need_no_trust(run, naming, fake):
    assert "hash" in run("measure", naming("synthetic")).err


def test_an_archive_of_nothing_is_not_unpacked(run, tmp_path):
    class Zeros:
        def read(self, count):
            return bytes(count)

    with tarfile.open(tmp_path / "bomb.tar.xz", "w:xz", preset=0) as archive:
        member = tarfile.TarInfo("train/a/1.png")
        member.size = 300_000_000
        archive.addfile(member, Zeros())
    done = run("train", "--data", f"image-folder:{tmp_path}/bomb.tar.xz", "--out", tmp_path / "a.pt")
    assert "MB to over 300 MB, which no images do. Pack them again." in one_sentence(done, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "is truncated or not JSON"),
        ('{"schema": "hessprobe.record/3", "results": ' + "[" * 100_000, "is truncated or not JSON"),
        ("\udcff", "is not a record, which is JSON text"),
    ],
)
def test_hostile_records_are_one_sentence(run, tmp_path, content, words):
    (tmp_path / "r.json").write_bytes(content.encode(errors="surrogateescape"))
    assert words in one_sentence(run("report", tmp_path / "r.json", "--out", tmp_path / "p.html"), 1)
    assert not (tmp_path / "p.html").exists()


def test_one_bad_record_is_named_and_the_others_are_shown(run, tmp_path, digits_checkpoint, fake):
    folder = tmp_path / "runs"
    folder.mkdir()
    assert run("measure", digits_checkpoint, "--json", folder / "good.json").code == 0
    record = json.loads((folder / "good.json").read_text())
    for index, broken in enumerate(({"flags": 3}, {"interval": [1]}, {"interval": "ab"}, {"value": "x"})):
        rows = [{**record["results"][0], **broken}]
        (folder / f"bad{index}.json").write_text(json.dumps({**record, "results": rows}))
    rows = record["results"] * 4000
    (folder / "long.json").write_text(json.dumps({**record, "results": rows}))
    (folder / "deep.json").write_text("[" * 100_000)
    done = run("report", folder, "--out", tmp_path / "p.html")
    assert done.code == 0
    for name in ("bad0", "bad1", "bad2", "bad3", "long", "deep"):
        assert f"{name}.json" in done.err


def test_a_record_that_no_page_can_be_made_of_is_named_and_the_others_are_shown(run, tmp_path, digits_checkpoint, fake):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    assert run("measure", digits_checkpoint, "--per-layer", "--json", good).code == 0
    text = good.read_text()
    row = json.loads(text)["results"][0]
    assert row["layers"]
    # A key of a layer, which is looked for only where layers are shown.
    head, layers = text.split('"layers"', 1)
    bad.write_text(head + '"layers"' + layers.replace('"confidence"', '"confidance"', 1))
    error = one_sentence(run("report", bad, "--out", tmp_path / "p.html"), 1)
    assert f"{bad} holds something else than a record does (KeyError: 'confidence'). Write it again." in error
    assert not (tmp_path / "p.html").exists()
    done = run("report", tmp_path, "--out", tmp_path / "p.html")
    assert (done.code, "1 record," in done.out) == (0, True)
    assert f"note: {bad} holds something else" in done.err


def test_what_a_file_says_does_not_reach_the_terminal_raw(run, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"schema": "\x1b]0;owned\x07\x9b31m\u202e"}))
    error = one_sentence(run("report", tmp_path / "r.json"), 1)
    assert not set(error) & set("\x1b\x07\x9b\u202e")
    assert shown("a\x1b[1m\tb\u202ec\nd") == "a\\x1b[1m\tb\\u202ec\\nd"


def test_long_and_strange_words_are_wrong_usage(run):
    for word in ("m" * 300, "a\x00b", "\udcff"):
        assert "has no command" in one_sentence(run(word), 2)


def test_a_recipe_that_is_nested_or_large_is_one_sentence(run, tmp_path):
    recipe = tmp_path / "r.toml"
    for content, words in (("a = " + "[" * 30_000, "is nested too deeply"), ("#" * 100_000, "must be at most 65,536")):
        recipe.write_text(content)
        assert words in one_sentence(run("train", "--recipe", recipe, "--out", tmp_path / "a.pt"), 2)


def process(*words, **options):
    options = options or {"capture_output": True}
    return subprocess.run([sys.executable, "-m", "hessprobe", *map(str, words)], cwd=ROOT, check=False, **options)


def test_names_that_are_not_utf_8_and_an_ascii_terminal(digits_checkpoint, tmp_path):
    path = os.fsencode(tmp_path) + b"/n\xff\xc3\xa4.pt"
    os.symlink(digits_checkpoint, path)
    surroundings = {**os.environ, "PYTHONIOENCODING": "ascii", "HOME": "", "LC_ALL": "C"}
    command = [sys.executable, "-m", "hessprobe", "info", path, "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, env=surroundings)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\udcff" in done.stdout
    assert os.fsencode(json.loads((tmp_path / "r.json").read_text())["arguments"]["ckpt"]) == path


def test_a_closed_stderr_changes_nothing(digits_checkpoint):
    command = f"exec {sys.executable} -m hessprobe info {digits_checkpoint} 2>&-"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0
    failed = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -m hessprobe info no.pt 2>&-"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert (failed.returncode, failed.stdout) == (1, b"")


def test_every_figure_is_written_before_the_first_line_is_printed(run, digits_checkpoint, tmp_path, monkeypatch):
    from hessprobe.cli.commands import plot

    record = tmp_path / "s.json"
    assert run("sharpness", digits_checkpoint, "--examples", "30", "--json", record).code == 0
    copy = tmp_path / "t.json"
    copy.write_text(record.read_text())

    def gone(_):
        raise BrokenPipeError

    monkeypatch.setattr(plot.typer, "echo", gone)
    with pytest.raises(BrokenPipeError):
        plot.plot([str(record), str(copy)])
    assert {path.stem[0] for path in tmp_path.glob("*.png")} == {"s", "t"}


def test_a_loop_of_links_is_one_sentence_wherever_it_stands(run, tmp_path, digits_checkpoint):
    loop, other = tmp_path / "a", tmp_path / "b"
    loop.symlink_to(other)
    other.symlink_to(loop)
    done = one_sentence(run("info", digits_checkpoint, "--json", loop), 2)
    assert f"--json must be the path of a file; got '{loop}' (Too many levels of symbolic links). Rename it." in done
    assert f"{loop}" in one_sentence(run("report", loop, "--out", tmp_path / "p.html"), 1)
    assert f"{loop}" in one_sentence(run("compare", loop, digits_checkpoint), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_page_is_written_under_the_name_of_a_page(run, tmp_path, digits_checkpoint, fake):
    record = tmp_path / "r.json"
    assert run("measure", digits_checkpoint, "--json", record).code == 0
    for name in ("p.txt", "p", "p.png"):
        error = one_sentence(run("report", record, "--out", tmp_path / name), 2)
        assert f"--out must end in .html, .htm; got '{tmp_path / name}'." in error
    assert run("report", record, "--out", tmp_path / "p.HTM").code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_said_with_what_could_not_be_written(run, digits_checkpoint, fake):
    said = "cannot be written: No space left on device. Free some space, or choose another folder."
    assert f"error: /dev/full {said}" in run("measure", digits_checkpoint, "--json", "/dev/full").err
    with open("/dev/full", "w") as full:
        done = process("info", digits_checkpoint, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.decode()) == (1, f"hessprobe: error: standard output {said}\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("rho = 'abc'\noptimizer = 'sam'", "rho in RECIPE must be"),
        ("lr = -1", "lr in RECIPE must be a finite number > 0; got -1."),
        ("optimizer_args = 3", "optimizer_args in RECIPE must be"),
        ("milestones = 'x'", "milestones in RECIPE must be"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_not_blamed_on_an_option(run, tmp_path, content, words):
    recipe = tmp_path / "r.toml"
    recipe.write_text(content)
    error = one_sentence(run("train", "--model", "mlp", "--recipe", recipe, "--out", tmp_path / "a.pt"), 2)
    assert f"hessprobe: error: {words.replace('RECIPE', str(recipe))}" in error


def test_what_is_typed_beside_a_recipe_is_still_called_an_option(run, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text("lr = 0.1\n")
    error = one_sentence(
        run("train", "--recipe", recipe, "--model", "mlp", "--lr", "-1", "--out", tmp_path / "a.pt"), 2
    )
    assert "hessprobe: error: --lr must be" in error


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"name": "mlp", "arguments": {"hidden": [8] * 10**6}},
            "asks for 1,000,000 layers (hidden), and has 4 tensors",
        ),
        ({"name": "vit", "arguments": {"layers": 10**9}}, "asks for 1,000,000,000 layers (layers)"),
        ({"name": "wide-resnet", "arguments": {"depth": 10**9 + 4}}, "asks for 1,000,000,004 layers (depth)"),
        ({"name": "resnet", "arguments": {"stages": 60}}, "cannot build"),
        ({"name": "mlp", "arguments": {"hidden": [10**12]}}, "but the model has (1000000000000, 64)"),
    ],
)
def test_a_model_that_the_file_has_no_weights_for_is_not_built(run, digits_checkpoint, tmp_path, model, said):
    content = torch.load(digits_checkpoint, weights_only=True)
    torch.save({**content, "model": model}, tmp_path / "m.pt")
    began = time.process_time()
    assert said in one_sentence(run("info", tmp_path / "m.pt"), 1)
    assert time.process_time() - began < 5


def test_options_from_a_file_that_is_nested_or_large_or_none(run, tmp_path):
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000 + "]" * 5000)
    (tmp_path / "big.toml").write_text(f'a = "{"x" * 10**6}"')
    os.mkfifo(tmp_path / "fifo")
    for name, said in (
        ("deep.toml", "is nested too deeply"),
        ("big.toml", "--config must be at most 65,536 bytes"),
        ("fifo", "--config must be a file; got"),
        ("../" + tmp_path.name, "--config must be a file; got"),
    ):
        assert said in one_sentence(run("info", "a.pt", "--config", tmp_path / name), 2)


@pytest.mark.parametrize("command", ["info", "measure", "landscape", "report", "plot", "repeat"])
def test_a_pipe_that_never_says_anything_is_refused_and_not_waited_for(run, tmp_path, command):
    os.mkfifo(tmp_path / "fifo")
    told = one_sentence(run(command, tmp_path / "fifo"), 1)
    assert "is a pipe or a device" in told or "is no file" in told
