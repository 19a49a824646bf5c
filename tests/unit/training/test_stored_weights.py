from __future__ import annotations

import random
import zipfile

import pytest
import torch

from hessprobe.errors import CheckpointError
from hessprobe.training.checkpoint import foreign_checkpoint, read_state_dict
from hessprobe.training.models import build_model

NAME = "layers.0.weight"


@pytest.fixture
def state():
    return dict(build_model("mlp", {"hidden": [8]}, seed=1).state_dict())


def opened(path, state):
    torch.save(state, path)
    return foreign_checkpoint(path, "mlp", {"hidden": [8]}, "digits")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: (10 * t).to(torch.int8), "as int8"),
        (lambda t: t > 0, "as bool"),
        (lambda t: t.to(torch.complex64), "as complex64"),
        (lambda t: t.to(torch.float8_e4m3fn), "as float8_e4m3fn"),
        (lambda t: t.to_sparse(), r"sparse \(sparse_coo\)"),
        (lambda t: t.to("meta"), r"without data \(a meta tensor\)"),
        (lambda t: t[:1, :1].clone().expand(t.shape), "expanded from fewer numbers"),
    ],
)
def test_what_is_no_weight_is_refused_by_name(state, tmp_path, change, words):
    state[NAME] = change(state[NAME])
    with pytest.raises(CheckpointError, match=rf"w\.pt has {NAME} {words}, which cannot be measured as it is\."):
        opened(tmp_path / "w.pt", state)


def test_weights_are_measured_in_the_precision_they_are_stored_in(state, tmp_path):
    wide = {name: tensor.double() + 1e-12 for name, tensor in state.items()}
    checkpoint = opened(tmp_path / "w.pt", wide)
    risk = checkpoint.risk(examples=20)
    assert risk.dtype == torch.float64
    assert torch.equal(checkpoint.model.state_dict()[NAME], wide[NAME])
    assert opened(tmp_path / "h.pt", {name: t.half() for name, t in state.items()}).risk().dtype == torch.float32
    assert checkpoint.risk(examples=20, dtype=torch.float32).dtype == torch.float32


def test_no_flipped_byte_of_a_plain_state_dict_is_measured(state, tmp_path):
    torch.save(state, tmp_path / "w.pt")
    whole, draw, refused = (tmp_path / "w.pt").read_bytes(), random.Random(0), 0
    for _ in range(60):
        broken = bytearray(whole)
        broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        (tmp_path / "b.pt").write_bytes(broken)
        try:
            read = read_state_dict(tmp_path / "b.pt")
        except CheckpointError:
            refused += 1
            continue
        # Bytes of the archive that nothing is read from.
        assert read.keys() == state.keys()
        assert all(torch.equal(read[name], state[name]) for name in state)
    assert refused > 20


def test_an_archive_that_unpacks_to_many_times_its_size_is_not_unpacked(state, tmp_path):
    state[NAME] = torch.zeros(2**23 * 3)
    torch.save(state, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry.filename))
    with pytest.raises(CheckpointError, match=r"b\.pt would unpack from 0\.\d+ MB to 101 MB, which no weights do"):
        read_state_dict(tmp_path / "b.pt")


def test_deep_nesting_is_one_sentence(tmp_path):
    for depth in (100, 100_000):
        (tmp_path / "deep.pt").write_bytes(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")
        with pytest.raises(CheckpointError, match=r"deep\.pt is "):
            read_state_dict(tmp_path / "deep.pt")
