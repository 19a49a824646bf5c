"""What is said of the project beside its code agrees with it."""

from __future__ import annotations

import tomllib

import pages
import yaml

import hessprobe

PROJECT = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_one_version_and_one_licence():
    citation = yaml.safe_load((pages.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == hessprobe.__version__
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_gate_runs_what_the_readme_promises():
    readme = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    commands = {each.said: each.code for each in pages.blocks_of(readme) if each.mark == "command"}
    assert set(commands) == {"test", "demo"}
    assert "-m pytest" in commands["test"]
    assert "hessprobe demo" in commands["demo"]
    extras = commands["test"].partition('".[')[2].partition("]")[0].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    # The gate builds the site and the wheel in the environment that the test command makes.
    assert {"dev", "docs"} <= set(extras)
    gate = (pages.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(step in gate for step in ("mkdocs build --strict", ".ci/package", "$test_command", "$demo_command"))


def test_every_tool_of_the_documentation_is_pinned():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (pages.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    needs = PROJECT["optional-dependencies"]["docs"] + PROJECT["optional-dependencies"]["dev"]
    assert {each.partition(">")[0].partition("[")[0].lower() for each in needs} <= pinned


def test_every_package_of_the_parity_tests_is_pinned_in_its_version():
    pinned = set((pages.ROOT / "constraints-peers.txt").read_text(encoding="utf-8").splitlines())
    table = (pages.ROOT / "tests" / "parity" / "README.md").read_text(encoding="utf-8").partition("|---")[2]
    named = [row.split("|")[1].split()[:2] for row in table.splitlines() if row.startswith("| ") and row[2] != "|"]
    assert len(named) == 6
    # curvlinops is called curvlinops-for-pytorch where packages are kept.
    for package, version in named:
        assert {f"{package}=={version}", f"{package}-for-pytorch=={version}"} & pinned, package
