from __future__ import annotations

import pytest
import torch

from hessprobe.training.loop import Augmentation

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crops_and_mirrors_are_those_of_slices(dtype):
    images = torch.arange(3 * 2 * 5 * 4).reshape(3, 2, 5, 4).to(dtype)
    moves = torch.tensor([[0, 0, 0], [2, 1, 1], [1, 2, 0]])
    result = Augmentation(1, True).apply(images, moves)
    assert result.dtype == dtype
    assert result.is_contiguous()
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    for index, (top, left, mirrored) in enumerate(moves.tolist()):
        expected = padded[index, :, top : top + 5, left : left + 4]
        assert torch.equal(result[index], expected.flip(-1) if mirrored else expected)


def test_middle_move_changes_nothing():
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(Augmentation(2, False).apply(images, torch.tensor([[2, 2, 0], [2, 2, 0]])), images)


def test_draws_are_uniform_reproducible_and_within_the_padding():
    draw = [Augmentation(4, True).draw(9000, torch.Generator().manual_seed(s), CPU) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    for column in (0, 1):
        counts = torch.bincount(draw[0][:, column], minlength=9).double()
        # 9,000 draws over nine offsets: chi-squared with 8 degrees of freedom is below 26.1 in 99.9 % of cases.
        assert float(((counts - 1000) ** 2 / 1000).sum()) < 26.1
    # Four deviations of a fair coin: 4 sqrt(9000)/2 = 190.
    assert abs(int(draw[0][:, 2].sum()) - 4500) < 190


def test_without_crop_or_flip_there_is_nothing_to_do():
    assert not Augmentation(0, False).active
    assert Augmentation(0, True).draw(10, torch.Generator().manual_seed(0), CPU)[:, :2].sum() == 0
    assert Augmentation(2, False).draw(10, torch.Generator().manual_seed(0), CPU)[:, 2].sum() == 0
