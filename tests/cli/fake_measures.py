"""A stand-in for ``measure_all``: chosen numbers, failures and interruptions, no mathematics.

As a program it runs hessprobe on it: ``python fake_measures.py measure ckpt.pt ...``.
"""

from __future__ import annotations

import os
import sys
import time


def measure_all(names, risk, settings, report, *, missing=None):
    import torch

    from hessprobe.estimate import ErrorParts, Estimate
    from hessprobe.measures import Progress, Result

    for name in names:
        report(Progress(10, 60, 1.25, 0.5, stage="probes"))
        if name == os.environ.get("FAKE_INTERRUPT"):
            raise KeyboardInterrupt
        if name == os.environ.get("FAKE_SLEEP"):
            print("ready", file=sys.stderr, flush=True)
            time.sleep(60)
        if name == os.environ.get("FAKE_FAIL"):
            raise ValueError("the operator must be finite; got nan.\nCheck the weights.")
        if name == os.environ.get("FAKE_OOM"):
            torch.empty(2**60, dtype=torch.uint8)
        errors = ErrorParts(probe=0.0123, solver=0.0)
        value = float(os.environ.get("FAKE_VALUE", "-12345.678"))
        estimate = Estimate(value, errors, df=20, matvecs=57, samples=57, method="hutchinson+ggn", seconds=1.5)
        layers = dict.fromkeys(risk.layout.names, estimate) if settings.per_layer else None
        arrays = {"values": torch.tensor([1.0, float("nan")])} if name == "diagonal" else {}
        report(Progress(60, 60, value, 0.0123, stage="probes"))
        yield Result(estimate, layers, arrays, ("a note",), name, settings.operator, "curvature")


def slowly(write):
    """Return ``write`` after a pause that says so, the time of a slow disk."""

    def slow(*arguments):
        print("writing", file=sys.stderr, flush=True)
        time.sleep(float(os.environ["FAKE_SLOW_WRITE"]))
        write(*arguments)

    return slow


if __name__ == "__main__":
    from hessprobe import report
    from hessprobe.cli.app import main
    from hessprobe.measures import registry

    if "FAKE_SLOW_WRITE" in os.environ:
        report.write_record = slowly(report.write_record)
    registry.measure_all = measure_all
    main()
