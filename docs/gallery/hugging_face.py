# %% [markdown]
# # A Hugging Face model
#
# A network of `transformers` goes in with its dict batches and `loss=None`: the loss is then the model's own, weighted
# by the tokens that count. Padding never changes the answer. The model here is made from a config, so that nothing is
# downloaded.

# %%
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import hessprobe as hp

torch.manual_seed(0)
config = GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)

# %% [markdown]
# Sentences of different lengths; labels of -100 do not count.

# %%
generator = torch.Generator().manual_seed(0)
tokens = torch.randint(1, 40, (24, 12), generator=generator)
lengths = torch.randint(5, 13, (24,), generator=generator)
mask = torch.arange(12) < lengths[:, None]
labels = tokens.masked_fill(~mask, -100)
keys = ("input_ids", "attention_mask", "labels")
batches = [
    dict(zip(keys, part, strict=True))
    for part in zip(tokens.split(8), mask.long().split(8), labels.split(8), strict=True)
]

risk = hp.EmpiricalRisk(model, None, batches)
print(risk)

# %% [markdown]
# Tied embeddings count once. Attention is switched to the kernel that has a second derivative, and back.

# %%
found = hp.measure(["lambda-max", "frob"], risk, n_probes=8, per_layer=True, engine="double_backward", seed=0)
print(found["lambda-max"])
print(found["frob"])

# %% [markdown]
# How the squared Frobenius norm is shared between the tensors:

# %%
found["frob"].plot()

# %% [markdown]
# Batching is bookkeeping: the same number from batches of other sizes, up to rounding.

# %%
whole = hp.EmpiricalRisk(model, None, [{"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}])
v = torch.randn(risk.dim, generator=generator)
product, other = (hp.Hessian(each, engine="double_backward") @ v for each in (risk, whole))
print(f"relative difference of a product: {float((product - other).norm() / other.norm()):.1e}")
