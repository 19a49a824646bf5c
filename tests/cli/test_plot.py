from __future__ import annotations

import json

import pytest

from hessprobe import report


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records of two operators and one of a landscape, made by the program's own writer."""
    folder = tmp_path_factory.mktemp("plot")

    def layers(value):
        return {"w.weight": {"value": value, "interval": [value - 1, value + 1]}}

    for name, operator, value in (("h", "hessian", 3.0), ("g", "ggn", 2.0)):
        row = {"measure": "trace", "operator": operator, "value": value, "std_error": 0.1, "interval": [2.0, 4.0],
               "confidence": 0.95, "matvecs": 1, "method": "m", "errors": {}, "flags": [],
               "layers": layers(value)}  # fmt: skip
        made = report.build_record("measure", [row], arguments={"ckpt": "net.pt"}, seed=0)
        report.write_record(folder / f"{name}.json", made)
    return folder


def test_every_record_is_drawn_and_operators_side_by_side(run, records, tmp_path):
    done = run("plot", records / "h.json", records / "g.json", "--out", tmp_path / "new" / "out", "--format", "svg")
    assert (done.code, done.err) == (0, "")
    made = sorted(path.name for path in (tmp_path / "new" / "out").iterdir())
    names = ["g-layers-ggn", "h-layers-hessian", "side-by-side-operators"]
    assert made == [f"{name}.{ending}" for name in names for ending in ("csv", "svg")]
    numbers = (tmp_path / "new" / "out" / "h-layers-hessian.csv").read_text().splitlines()
    assert numbers == ["measure,layer,value,low,high", "trace,w.weight,3.0,2.0,4.0"]
    assert done.out.splitlines()[0].endswith("h-layers-hessian.svg: trace of the Hessian by layer")
    again = run("plot", records / "h.json")
    assert (again.code, (records / "h-layers-hessian.png").read_bytes()[:4]) == (0, b"\x89PNG")


def test_records_of_one_name_keep_their_figures_apart(run, records, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "h.json").write_bytes((records / "h.json").read_bytes())
    assert run("plot", tmp_path / "a" / "h.json", tmp_path / "b" / "h.json", "--out", tmp_path / "c").code == 0
    assert sorted(path.name for path in (tmp_path / "c").glob("*.png")) == [
        "a-h-layers-hessian.png",
        "b-h-layers-hessian.png",
    ]


def test_a_landscape_is_drawn_again_from_its_record_alone(run, digits_checkpoint, tmp_path):
    figure, target = tmp_path / "f.svg", tmp_path / "r.json"
    done = run("landscape", digits_checkpoint, "--size", "5", "--examples", "40", "--rho", "0.3", "--out", figure,
               "--json", target)  # fmt: skip
    assert (done.code, done.err) == (0, "")
    first = figure.read_bytes()
    for path in tmp_path.iterdir():
        if path != target:
            path.unlink()
    assert run("plot", target, "--format", "svg").code == 0
    assert (tmp_path / "r-landscape-random.svg").read_bytes() == first


def test_one_bad_record_leaves_the_others(run, records, tmp_path):
    broken = json.loads((records / "h.json").read_text())
    del broken["results"][0]["layers"]["w.weight"]["interval"]
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken))
    done = run("plot", path, records / "g.json", "--out", tmp_path)
    assert done.code == 1
    assert done.err == (
        f"hessprobe: error: {path}: results[0], layers, 'w.weight', lacks the entry 'interval'. "
        "Write the record again.\n"
    )
    assert (tmp_path / "g-layers-ggn.png").exists()


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            "hessprobe.record/9",
            "has schema 'hessprobe.record/9', but this hessprobe reads up to hessprobe.record/1. Upd",
        ),
        ("hessprobe.record/0", "no longer reads. Run hessprobe measure again with the options under 'arguments' and"),
        ("other/1", "is not a hessprobe record (schema 'other/1'). Make one with --json FILE."),
    ],
)
def test_another_schema_says_what_to_do(run, records, tmp_path, schema, message):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**json.loads((records / "h.json").read_text()), "schema": schema}))
    done = run("plot", path)
    assert done.code == 1
    assert message in done.err


def test_wrong_usage(run, records, tmp_path):
    bare = json.loads((records / "h.json").read_text())
    del bare["results"][0]["layers"]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    done = run("plot", tmp_path / "bare.json")
    assert (done.code, done.out) == (2, "")
    assert "RECORD must hold something to draw" in done.err
    done = run("plot", records / "h.json", "--out", records / "h.json")
    assert done.code == 2
    assert "--out must be a folder that can be made; got" in done.err
    assert "--format must be one of png, svg, pdf; got 'jpg'." in run("plot", records / "h.json", "--format", "jpg").err
    assert "nowhere.json cannot be read: No such file or directory" in run("plot", records / "nowhere.json").err


def test_width_and_style_reach_every_figure(run, records, tmp_path):
    done = run("plot", records / "h.json", "--out", tmp_path, "--format", "png", "--width", "3.25", "--style", "dark")
    assert (done.code, done.err) == (0, "")
    content = (tmp_path / "h-layers-hessian.png").read_bytes()
    assert int.from_bytes(content[16:20]) == 975
    assert run("plot", records / "h.json", "--out", tmp_path, "--width", "3.25").code == 0
    assert (tmp_path / "h-layers-hessian.png").read_bytes() != content
    assert "--width must be in inches, 2 to 20; got 0.5." in run("plot", records / "h.json", "--width", "0.5").err
    assert "--width must be in inches" in run("plot", records / "h.json", "--width", "nan").err
    done = run("plot", records / "h.json", "--style", "print")
    assert (done.code, "--style must be one of paper, screen, dark; got 'print'." in done.err) == (2, True)
