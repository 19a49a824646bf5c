# %% [markdown]
# # Records in pandas
#
# Every command writes what it did as JSON (`--json`). Here the program trains a network and measures its checkpoints;
# table and figure are made from the record alone.

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

folder = Path(tempfile.mkdtemp())


def hessprobe(line):
    words = line.split()
    done = subprocess.run([sys.executable, "-m", "hessprobe", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


hessprobe("train --model mlp:hidden=16 --epochs 4 --optimizer sam --save-every 1 --out run.pt")
hessprobe("track run.pt --rtol 0.05 --engine double-backward --json track.json")

# %% [markdown]
# A record holds results, and how they came about: seed, versions, hashes of what went in.

# %%
record = json.loads((folder / "track.json").read_text())
print(", ".join(record))

# %%
rows = []
for point in record["results"]:
    for name, found in point["measures"].items():
        low, high = found["interval"]
        data, products = found["errors"]["data"], found["matvecs"]
        rows.append((point["epoch"], name, found["value"], low, high, data, products))
table = pd.DataFrame(rows, columns=["epoch", "measure", "value", "low", "high", "data error", "products"])
print(table.to_string(index=False, float_format="%.4g"))

# %%
wide = table.pivot(index="epoch", columns="measure", values=["value", "data error"])
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
wide["value"].plot(yerr=wide["data error"], ax=axis, capsize=3, marker="o", logy=True)
axis.set(ylabel="value ± error from the data")
axis.legend(frameon=False)
plt.close(figure)
figure
