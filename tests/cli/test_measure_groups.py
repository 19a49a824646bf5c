"""``--group`` on the command line."""

import json


def test_blocks_of_modules(run, digits_checkpoint, tmp_path):
    path = tmp_path / "m.json"
    done = run("measure", digits_checkpoint, "--examples", "40", "-m", "lambda-max,block-frob", "--group", "module",
               "--probes", "4", "--json", path)  # fmt: skip
    assert done.code == 0, done.err
    first, second = json.loads(path.read_text())["results"]
    assert list(first["layers"]) == list(second["layers"])
    assert all("." in name and not name.endswith(("weight", "bias")) for name in first["layers"])
    refused = run("measure", digits_checkpoint, "--group", "modul")
    assert (refused.code, "Did you mean 'module'?" in refused.err) == (2, True)
    idle = run("measure", digits_checkpoint, "--examples", "40", "-m", "lambda-min", "--group", "module")
    assert "--group has no effect here" in idle.err
