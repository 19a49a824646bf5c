"""The Trainer of Hugging Face on two gloo processes against one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

WORLD, STEPS, PARTS = 2, 4, 2


def train(folder: Path, batch_size: int) -> torch.Tensor:
    """Train on 16 rows in their order, ``batch_size`` a rank and micro-batch; return the weights."""
    from functools import partial

    import transformers

    from hessprobe.optim import SAM
    from hessprobe.optim.integrations import SAMTrainer

    class InOrder(SAMTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    transformers.set_seed(5)
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).double()
    model.accepts_loss_kwargs = False
    tokens = torch.randint(11, (STEPS * PARTS * WORLD, 5), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": torch.tensor(int(row[0] > 5))} for row in tokens]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch_size, gradient_accumulation_steps=PARTS,
        max_steps=STEPS, learning_rate=0.01, adam_epsilon=1e-4, max_grad_norm=0.5, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True, ddp_backend="gloo" if "RANK" in os.environ else None,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    InOrder(model=model, args=arguments, train_dataset=rows, rule=partial(SAM, rho=0.2)).train()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def rank_main(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    torch.save(train(folder / str(rank), 1), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_take_the_steps_of_one(tmp_path: Path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_main, args=(tmp_path, port), nprocs=WORLD, join=True)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    assert torch.equal(*ranks)
    # Each rank has every second row, so that one process with twice the batch sees the same rows at every step.
    torch.testing.assert_close(ranks[0], train(tmp_path / "one", WORLD), rtol=1e-10, atol=1e-12)
