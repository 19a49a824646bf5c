"""Small records made by hand, for figures."""

from __future__ import annotations

ERRORS = {"probe": 0.1, "data": None, "solver": 0.0}


def row(measure, value, half=0.5, operator="hessian", **more):
    known = {"measure": measure, "operator": operator, "value": value, "interval": [value - half, value + half]}
    return {**known, "std_error": half / 2, "confidence": 0.9, "errors": ERRORS, **more}


def arrays(**named):
    return {name: {"shape": [len(values)], "dtype": "float64", "values": values} for name, values in named.items()}


def record(command, *rows, **more):
    return {"command": command, "results": list(rows), "arguments": {"ckpt": "a/net.pt"}, **more}


def layer(value, half):
    return {"value": value, "interval": [value - half, value + half]}


def density_row(operator="hessian", shift=0.0):
    grid = [-1.0 + shift, 0.0, 1.0, 2.0, 4.0]
    bands = {"cdf_band_low": [0.0, 0.1, 0.8, 0.9, 0.97], "cdf_band_high": [0.02, 0.3, 0.9, 0.95, 1.0]}
    found = arrays(grid=grid, density=[0.01, 0.9, 0.2, 0.01, 0.001], cdf=[0.0, 0.2, 0.85, 0.92, 1.0], **bands,
                   nodes=[-0.9, 0.0, 3.9], weights=[0.01, 0.98, 0.01])  # fmt: skip
    return row("density", 0.1, operator=operator, arrays=found)
