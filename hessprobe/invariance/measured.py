"""All measures of one network, before or after a transform, from shared operators and shared probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from hessprobe.errors import HessprobeError
from hessprobe.estimate import Estimate
from hessprobe.hvp import Hessian
from hessprobe.invariance import paired
from hessprobe.invariance.names import OWN
from hessprobe.invariance.own import measure_own
from hessprobe.invariance.paired import PAIRED, Probed
from hessprobe.measures.registry import measure_all
from hessprobe.measures.session import make_operator
from hessprobe.measures.settings import Event, MeasureSettings
from hessprobe.objective import EmpiricalRisk
from hessprobe.operators import Congruence, LinearOperator, Reordered

Report = Callable[[Event], None]
Values = dict[str, Estimate | HessprobeError]

# Measures after a transform that share no probes with those before draw from other streams: independent errors.
_AFTER = 7919


class Measured:
    """The measures of one network.

    Args:
        names: of ``MEASURES``.
        risk: the network, loss and data.
        settings: how; its seed is that of the probes before and after alike.
        order: (d,) entry of the network before that each entry of theta was, None where none has moved.
        report: told of progress.
    """

    def __init__(
        self,
        names: Sequence[str],
        risk: EmpiricalRisk,
        settings: MeasureSettings,
        *,
        order: Tensor | None = None,
        report: Report = lambda event: None,
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._risk, self._settings, self._order, self._report = risk, settings, order, report
        self._A = make_operator(risk, settings)
        self._limit = settings.n_probes or paired.MOST
        self.probed = {adaptive: self._probed(adaptive) for adaptive in (False, True) if self.paired(adaptive)}
        self._counts: dict[bool, int] = {}

    @property
    def engine(self) -> str:
        """The engine of the products, to spare the next network the choice."""
        return self._A.engine.name if isinstance(self._A, Hessian) else self._settings.engine

    def paired(self, adaptive: bool) -> list[str]:
        """Return the wanted measures that share probes, of H or of diag|w| H diag|w|."""
        return [name for name in self.names if name in PAIRED and PAIRED[name][1] is adaptive]

    def count(self, adaptive: bool) -> int:
        """Return how many probes the values before a transform rest on."""
        if adaptive not in self._counts:
            how = self._settings
            self._counts[adaptive] = how.n_probes or paired.probes_for_tolerance(
                self.paired(adaptive), self.probed[adaptive], how.rtol, how.confidence
            )
        return self._counts[adaptive]

    def others(self, *, after: bool = False) -> Values:
        """Return the measures that share no probes; one that does not exist here as the error that says so.

        Args:
            after: draw from other streams than before.
        """
        settings = replace(self._settings, seed=self._settings.seed + _AFTER) if after else self._settings
        registered = [name for name in self.names if name not in PAIRED and name not in OWN]
        found: Values = {}
        if registered:
            results = measure_all(registered, self._risk, settings, self._report, operator=self._A)
            found.update({one.measure: one.estimate for one in results})
        own = [name for name in self.names if name not in PAIRED and name in OWN]
        found.update(measure_own(own, self._risk, settings, self._report, operator=self._A))
        return found

    def values(self) -> Values:
        """Return every measure in the order asked for."""
        found = self.others()
        for adaptive, probed in self.probed.items():
            count = self.count(adaptive)
            found.update({name: paired.estimate(name, probed, count) for name in self.paired(adaptive)})
        return {name: found[name] for name in self.names}

    def _probed(self, adaptive: bool) -> Probed:
        A: LinearOperator = Congruence(self._A, self._risk.theta.abs()) if adaptive else self._A
        stage = "common probes, adaptive" if adaptive else "common probes"
        pulled = A if self._order is None else Reordered(A, self._order)
        return Probed(
            pulled,
            self._settings.seed,
            self._limit,
            lambda done, total: self._report(Event(stage, float(done), float(total))),
        )
