"""The generalised Gauss-Newton matrix of an objective as an operator.

The exact diagonal of one batch's Gauss-Newton matrix, from every example's gradient of every output direction.

    diag G_b = sum_s sum_c (J_s^T l_sc)^2,    L_s L_s^T = d^2 l / df_s df_s,  l_sc the columns of L_s.

References:
    Dangel, Kunstner, Hennig (2020), "BackPACK: packing more into backprop" (the diagonal layer by layer).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap
from torch.utils._pytree import tree_map

from hessprobe.errors import UnsupportedError
from hessprobe.estimate import GROUPS
from hessprobe.hvp.auto import EXPECTED_MATVECS
from hessprobe.hvp.batch_products import BatchProducts
from hessprobe.hvp.engines import (
    Engine,
    LossFunction,
    Product,
    batch_bytes,
    by_rows,
    device_clock,
    graph_bytes,
    pulled_back,
    require_differentiable,
)
from hessprobe.hvp.example_norms import Ways, own_factors
from hessprobe.hvp.linearized import Linearized
from hessprobe.hvp.output_space import (
    MAX_OUTPUTS,
    agree,
    exact_squares,
    loss_hessians,
    require_convex,
    sampled_trace,
    square_roots,
)
from hessprobe.hvp.pool import MemoryBudget, holding
from hessprobe.hvp.tracing import LinearFunction
from hessprobe.objective.activations import ActivationRisk
from hessprobe.objective.base import BatchLoss, Objective, SecondOrderLosses, require_objective
from hessprobe.objective.batches import EmpiricalBatch
from hessprobe.objective.checking import MISFITS, passes_to_cut
from hessprobe.objective.classes import ClassRisk, shares_of
from hessprobe.operators.base import ExactTrace, LinearOperator, SampledTrace
from hessprobe.vectors import ParameterLayout, Sharing, row_dots

# Bytes of per-example gradients held at once, within the budget; more gains nothing.
_CHUNK = 1 << 27


def batch_diagonal(batch: BatchLoss, theta: Tensor, budget: int = _CHUNK) -> Tensor | None:
    """Return diag G of one batch, fp64 (d,); None where it is not cheap (many outputs) or cannot be had per example.

    Args:
        batch: the batch.
        theta: (d,) where.
        budget: bytes that the loss Hessians, and the gradients of examples held at once, may take; of the latter at
            least one.
    """
    with torch.no_grad():
        outputs = batch.outputs(theta).detach()
    # The blocks, their eigenvectors in fp64 and two copies.
    if 4 * 8 * outputs.numel() * outputs[0].numel() > budget:
        return None
    blocks = loss_hessians(batch, outputs)
    if blocks is None or not isinstance(batch, EmpiricalBatch) or not batch.separable:
        return None
    roots = _without_zeros(square_roots(blocks)).to(outputs.dtype)
    squares = _linear_layers(batch, theta, roots)
    return _example_gradients(batch, theta, roots, min(budget, _CHUNK)) if squares is None else squares


def diagonal_cost(batch: BatchLoss, theta: Tensor) -> float:
    """Return the arithmetic of ``batch_diagonal`` in products of the batch, (2 C + 8) / 6 for C outputs.

    C backward passes (2 units each, a forward pass being 1 and a product 6), C - 1 for a softmax, two more to check
    the result, and four forward passes. The time is longer where gradients of single examples are slower than those of
    a batch: about 1.5 times this for a small convolutional network on a CPU.
    """
    with torch.no_grad():
        return (2 * float(batch.outputs(theta)[0].numel()) + 8) / 6


def _without_zeros(roots: Tensor) -> Tensor:
    """Drop the columns of (B, C, C) that are zero for every example: a softmax does not see a common shift."""
    sizes = roots.square().sum(1)
    kept = (sizes > 4 * roots.shape[1] * torch.finfo(roots.dtype).eps * sizes.amax(1, keepdim=True)).any(0)
    return roots[:, :, kept]


def _example_gradients(batch: EmpiricalBatch, theta: Tensor, roots: Tensor, budget: int) -> Tensor | None:
    """One example at a time under vmap: any model that has batching rules and whose examples do not see each other."""
    held = max(1, budget // (2 * theta.nbytes))
    columns = min(roots.shape[2], held)
    rows = max(1, held // max(columns, 1))
    total = torch.zeros(theta.numel(), dtype=torch.float64, device=theta.device)
    check = torch.zeros_like(theta)
    cotangents = own_factors(len(roots), theta)[:, None] * roots.sum(2)

    def squares(example: object, root: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        def outputs(at: Tensor) -> Tensor:
            single = tree_map(lambda leaf: leaf[None] if isinstance(leaf, Tensor) else leaf, example)
            return batch.outputs_of(at, single).reshape(-1)

        _, pull = vjp(outputs, theta)  # type: ignore[misc]  # two values without has_aux
        found = torch.zeros_like(theta)
        for directions in root.T.split(columns):  # type: ignore[no-untyped-call]  # untyped in torch
            gradients: Tensor = vmap(pull)(directions.contiguous())[0]
            found = found + gradients.square().sum(0)
        return found, pull(cotangent)[0]

    try:
        for start in range(0, batch.examples, rows):
            stop = min(start + rows, batch.examples)
            part = batch.slice(start, stop)
            found, pulled = vmap(squares)(part.inputs, roots[start:stop], cotangents[start:stop])
            total += found.sum(0).double()
            check += pulled.sum(0)
    except (*MISFITS, AttributeError, UnsupportedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None  # no batching rule for one example at a time
    # Examples that see each other, or a dimension mistaken for that of the examples, give another gradient together.
    return total if agree(check, _pulled(batch, theta, cotangents)) else None


def _pulled(batch: EmpiricalBatch, theta: Tensor, cotangents: Tensor) -> Tensor:
    """Return J^T u of the whole batch for u = ``cotangents`` (B, C)."""
    with torch.enable_grad():
        leaf = theta.detach().clone().requires_grad_()
        outputs = batch.outputs(leaf)
        if not outputs.requires_grad:
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(outputs, leaf, cotangents.view_as(outputs), materialize_grads=True)
    return gradient


def _linear_layers(batch: EmpiricalBatch, theta: Tensor, roots: Tensor) -> Tensor | None:
    """Layer by layer where all parameters belong to ``nn.Linear`` on (B, in) inputs, each used once.

    An example's weight gradient is the outer product of the slope at the layer's output and its input, so that the
    squares add up to one matrix product: sum_s (slope_s^2)(input_s^2)^T. No per-example gradient is ever formed.
    Whether the layers are all there is, and the rows are examples that do not see each other, is checked by gradients
    of one random combination of outputs.
    """
    layers = _owners(batch)
    calls = None if layers is None else _record_calls(batch, theta, layers)
    if calls is None:
        return None
    outputs, inputs, results = calls

    def slopes(cotangents: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(
            outputs, list(results.values()), cotangents.view_as(outputs), retain_graph=True, materialize_grads=True
        )
        return dict(zip(results, found, strict=True))

    factors, mixed = own_factors(len(roots), theta)[:, None], roots.sum(2)
    plain, scaled = slopes(mixed), slopes(factors * mixed)
    if not all(agree(scaled[name], factors * plain[name]) for name in results):
        return None
    if not agree(_assembled(batch, plain, inputs), _pulled(batch, theta, mixed)):
        return None
    squared_inputs = {name: value.square() for name, value in inputs.items()}
    total = torch.zeros_like(theta, dtype=torch.float64)
    for column in roots.unbind(2):
        squares = {name: slope.square() for name, slope in slopes(column).items()}
        total += _assembled(batch, squares, squared_inputs).double()
    return total


def _assembled(batch: EmpiricalBatch, slopes: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """Return the flat vector of slope^T input for every weight and the sum of slopes for every bias."""
    pieces = []
    for name in batch.model.layout.names:
        layer, _, kind = name.rpartition(".")
        pieces.append(slopes[layer].T @ inputs[layer] if kind == "weight" else slopes[layer].sum(0))
    return batch.model.layout.join(pieces)


def _owners(batch: EmpiricalBatch) -> dict[str, nn.Linear] | None:
    """Return the linear layers that own all parameters in theta, by dotted name; None where others own some."""
    owners: dict[str, nn.Linear] = {}
    if batch.model.pairs:
        return None  # a layer of complex numbers squares moduli
    shared = [id(p) for _, p in batch.model.module.named_parameters(remove_duplicate=False)]
    for name in batch.model.layout.names:
        path = (batch.model.prefix + name).rpartition(".")[0]
        module = batch.model.module.get_submodule(path)
        own = dict(module.named_parameters(recurse=False)) if type(module) is nn.Linear else {}
        if (
            name.rpartition(".")[2] not in own
            or not set(own) <= {"weight", "bias"}
            or any(shared.count(id(p)) > 1 for p in module.parameters())
        ):
            return None
        if isinstance(module, nn.Linear):
            owners[name.rpartition(".")[0]] = module
    return owners


def _record_calls(
    batch: EmpiricalBatch, theta: Tensor, layers: dict[str, nn.Linear]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]] | None:
    """Return (outputs, layer inputs, layer outputs) of one forward pass; None where a layer does not fit."""
    inputs: dict[str, Tensor] = {}
    results: dict[str, Tensor] = {}
    fits = True

    def watch(name: str) -> object:
        def hook(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
            nonlocal fits
            shaped = len(args) == 1 and args[0].dim() == 2 and len(args[0]) == batch.examples
            # Compressed rows (CSR) have no squares.
            shaped = shaped and args[0].layout in (torch.strided, torch.sparse_coo)
            fits = fits and name not in inputs and shaped
            inputs[name], results[name] = args[0].detach().clone(), result
            return result.clone()  # what an activation writes in place later is the copy

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in layers.items()]  # type: ignore[arg-type]
    try:
        with torch.enable_grad():
            outputs = batch.outputs(theta.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if not fits or set(inputs) != set(layers) or not outputs.requires_grad:
        return None
    return outputs, inputs, results


# Batches on which the convexity of a loss of unknown make is looked at.
_LOOKED_AT = 8
_DRAWS = "output draws"
# Outputs of an example up to which the trace is summed over all of them.
_SUMMED_OUTPUTS = 64
_LINEAR = (
    "the loss is linear in the model's outputs, as NLLLoss is in log-probabilities: its Gauss-Newton matrix is 0 by "
    "definition; of a likelihood measure the Fisher matrix (operator='fisher')"
)


class JacobianGraph:
    """Reverse mode only, with graphs kept: J v as the derivative of u -> J^T u, then J^T of the loss Hessian."""

    name = "double_backward"
    is_exact = True
    keeps = True
    setup_seconds = 0.0

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product of the Gauss-Newton matrix of one batch."""
        batch = _batch(loss)
        with torch.enable_grad():
            leaf = theta.detach().clone().requires_grad_()
            outputs = batch.outputs(leaf)
            # What is linear in the cotangent has one slope everywhere, but logcumsumexp computes it by logarithms, and
            # takes the slope at 0 for 0.
            cotangent = torch.ones_like(outputs, requires_grad=True)
            combined = torch.dot(outputs.reshape(-1), cotangent.reshape(-1))
            (pulled,) = torch.autograd.grad(combined, leaf, create_graph=True, materialize_grads=True)
            require_differentiable(pulled)
            point = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(
                batch.loss_of_outputs(point), point, create_graph=True, materialize_grads=True
            )
            require_differentiable(slope)

        def halves(vector: Tensor) -> tuple[Tensor, Tensor]:
            pushed = pulled_back(pulled, cotangent, vector)
            if not slope.requires_grad:
                return pushed, torch.zeros_like(pushed)
            return pushed, pulled_back(slope.reshape(-1), point, pushed.reshape(-1))

        def apply_one(vector: Tensor) -> Tensor:
            _, bent = halves(vector)
            return pulled_back(outputs.reshape(-1), leaf, bent.reshape(-1))

        def forms(V: Tensor) -> Tensor:
            pairs = [halves(vector) for vector in V]
            return torch.cat([row_dots(a.reshape(1, -1), b.reshape(1, -1)) for a, b in pairs])

        return Product(by_rows(apply_one), graph_bytes(pulled, outputs, slope, ignore=[theta]), forms)


class JacobianForward:
    """Forward mode for J v, reverse for J^T, nothing kept between products."""

    name = "forward_over_reverse"
    is_exact = True
    keeps = False
    setup_seconds = 0.0

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product of the Gauss-Newton matrix of one batch."""
        function = _gauss_newton_map(loss)

        def apply_one(vector: Tensor) -> Tensor:
            return function(vector, theta)[0][0]

        return Product(by_rows(apply_one), batch_bytes(loss))


def _gauss_newton_map(loss: LossFunction) -> LinearFunction:
    batch = _batch(loss)

    def function(vector: Tensor, theta: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        with SecondOrderLosses():
            outputs, pushed = jvp(batch.outputs, (theta,), (vector,))  # type: ignore[misc]  # two values without has_aux
            slope, bent = jvp(grad(batch.loss_of_outputs), (outputs,), (pushed,))  # type: ignore[misc]  # likewise
            _, pull = vjp(batch.outputs, theta)  # type: ignore[misc]  # likewise
            return (pull(bent)[0], pushed, bent), pull(slope)[0]

    return function


def _batch(loss: LossFunction) -> BatchLoss:
    if not isinstance(loss, BatchLoss):
        raise UnsupportedError("The Gauss-Newton matrix needs a batch loss with outputs; got a plain function.")
    return loss


ENGINES: dict[str, Callable[[], Engine]] = {
    "linearized": lambda: Linearized(_gauss_newton_map, JacobianGraph()),
    "double_backward": JacobianGraph,
    "forward_over_reverse": JacobianForward,
}


class GaussNewton(LinearOperator):
    """G = sum_b w_b J_b^T (d^2 l / df^2) J_b at ``risk.theta``, f the outputs and J their Jacobian.

    Positive semidefinite for a loss l that is convex in the outputs; equal to the Hessian where the outputs are
    linear in the parameters, or the loss has slope zero at them.

    Args:
        risk: an objective whose batches have outputs.
        engine: ``"auto"`` or a name in ``ENGINES``.
        memory: bytes that may be kept between products (a product in the making may take as much again), or a
            ``MemoryBudget`` shared with other operators; half of what is free by default.
        expected_matvecs: about how many products will be asked for; ``"auto"`` spreads the cost of preparing an
            engine over them.
        wrt: as for ``Hessian``: with respect to inputs or activations in place of the parameters.

    Raises:
        ValueError: unknown engine, or ``memory`` not positive.
        UnsupportedError: no outputs, or a loss that is not convex in them (checked on the first
            batch, and on up to 8 of a loss of unknown make).

    References:
        Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent".

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(2, 1).double()
        >>> data = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double(), torch.zeros(2, 1).double())]
        >>> risk = hp.EmpiricalRisk(model, torch.nn.MSELoss(), data)
        >>> hp.GaussNewton(risk).to_dense().round(decimals=6)
        tensor([[10.,  2.,  4.],
                [ 2.,  4.,  2.],
                [ 4.,  2.,  2.]], dtype=torch.float64)
    """

    psd = True
    cheap_forms = True
    # What it is called: the Fisher matrix is one of these as well.
    name = "GaussNewton"
    # What a reader of its numbers should know, in words.
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        risk: Objective,
        *,
        engine: str = "auto",
        memory: int | MemoryBudget | None = None,
        expected_matvecs: int = EXPECTED_MATVECS,
        wrt: str | None = None,
    ) -> None:
        self.risk = risk = require_objective("risk", risk) if wrt is None else ActivationRisk(risk, wrt)
        self.dim, self.dtype, self.device, self.n_terms = risk.dim, risk.dtype, risk.device, risk.n_terms
        self._source = BatchProducts(risk, ENGINES, engine, memory, expected_matvecs)
        self._pool = self._source.pool
        self._diagonal: tuple[Tensor, float] | None = None
        self._ways: list[Ways] = []
        self._draws, self._draw_seconds = 0.0, dict[str, float]()
        self._traces: Tensor | None = None
        self._exact_trace: ExactTrace | None = None
        self._has_exact_trace = True
        with self._pool.context():
            bends = [require_convex(batch, risk.theta) for batch in _sample(risk)]
        if not any(bends):
            self.notes = (_LINEAR,)

    def __repr__(self) -> str:
        return f"{self.name}(dim={self.dim}, engine={self.engine_name!r}, risk={self.risk!r})"

    @property
    def ranks(self) -> Sharing | None:
        """Those that make products of the risk together."""
        return holding(self.risk)

    @property
    def blocks(self) -> dict[str, slice]:
        """The parameter tensors."""
        return self.risk.layout.slices

    @property
    def layout(self) -> ParameterLayout:
        """Names and shapes of the parameters."""
        return self.risk.layout

    @property
    def engine_name(self) -> str:
        """The engine in use; ``"auto"`` before the first product."""
        return self._source.engine.name if self._source.chosen else "auto"

    @property
    def engines(self) -> tuple[str, str]:
        """The name of the engine in use, and ``"auto"``: this matrix has no surrogate."""
        return self.engine_name, "auto"

    @property
    def engine_note(self) -> str:
        """Which engine runs, and with ``"auto"`` why the others do not; ``"auto"`` before the first product."""
        return self._source.note if self._source.chosen else "auto"

    @property
    def gradient_seconds(self) -> float | None:
        """Time of one gradient over all data; None before the first product."""
        return self._source.gradient_seconds

    @property
    def made(self) -> dict[str, float]:
        """Products so far, forms v^T G v and output draws of the sampled trace, by kind; those of one batch a share."""
        return {self.name: self._pool.made["products"], "forms": self._pool.made["forms"], _DRAWS: self._draws}

    @property
    def seconds(self) -> dict[str, float]:
        """The least time of one of each kind in ``made`` over all data, as far as one was made; and of a gradient."""
        gradient = {} if self.gradient_seconds is None else {"gradient": self.gradient_seconds}
        known = {self.name if kind == "products" else kind: least for kind, least in self._pool.seconds.items()}
        return {**gradient, **known, **self._draw_seconds}

    def by_class(self) -> dict[int, LinearOperator]:
        """Return the part of every class, by label: G = sum_c S_c over the examples of the classes.

        S_c = p_c G_c, p_c the share of class c in the loss and G_c the Gauss-Newton matrix of the mean loss of its
        examples; positive semidefinite, so that lambda_max(S_c) <= lambda_max(G), and traces add up to that of G. The
        leading eigenvectors of G are differences between the mean gradients of classes (Papyan 2020), which the parts
        tell apart.

        Raises:
            UnsupportedError: targets that are not one integer label an example, or a loss that is not a mean over
                examples that do not see each other.

        References:
            Papyan (2020), "Traces of class/cross-class structure pervade deep learning spectra".

        Examples:
            >>> import torch, hessprobe as hp
            >>> model = torch.nn.Linear(1, 2).double()
            >>> data = [(torch.tensor([[1.0], [2.0], [1.0]]).double(), torch.tensor([0, 1, 0]))]
            >>> G = hp.GaussNewton(hp.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data))
            >>> parts = G.by_class()
            >>> torch.allclose(parts[0].to_dense() + parts[1].to_dense(), G.to_dense())
            True
        """
        parts: dict[int, LinearOperator] = {}
        for share in shares_of(self.risk):
            own = type(self)(ClassRisk(self.risk, share), memory=self._source.budget)
            parts[share.label] = own * share.weight
        return parts

    def require_engine(self) -> None:
        """Choose the engine now.

        Raises:
            UnsupportedError: none works with this model and loss.
        """
        _ = self._source.engine

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._pool.total(V)

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T G v = <J v, (d^2 l) J v> a row: one push forward, half the price of a product."""
        total = torch.zeros(V.shape[0], dtype=torch.float64, device=V.device)
        for weight, term in self.terms():
            total.add_(term.quadratic_forms(V), alpha=weight)
        return total

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield each batch's weight and Gauss-Newton matrix."""
        return self._source.terms(self)

    def grouped(self, count: int) -> LinearOperator:
        """Return this matrix with groups of examples as terms; itself where there are no finer ones."""
        return self._source.grouped(self, count)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return diag G, fp64 (d,), and its cost in products; None where outputs are many or memory is short.

        diag G = sum over examples s and output directions c of (J_s^T l_c)^2, with l l^T = d^2 l: one backward pass
        of every example for each of its outputs.
        """
        if self._diagonal is None:
            total = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
            cost, weights, traces = 0.0, [], []
            # A sum over examples costs the same by groups, and says what each of them contributes.
            cut = self._source.groups(GROUPS)
            groups = cut or self.risk
            cost += 0.0 if cut is None else cut.passes / 6
            with self._pool.context():
                for batch in groups.terms():
                    diagonal = batch_diagonal(batch, self.risk.theta, self._source.budget.total)
                    if diagonal is None:
                        return None
                    total.add_(diagonal, alpha=batch.weight)
                    cost += diagonal_cost(batch, self.risk.theta) / groups.n_terms
                    weights.append(batch.weight)
                    traces.append(float(diagonal.sum()))
            self._diagonal = total, cost
            self._traces = torch.tensor([weights, traces], dtype=torch.float64)
            return self._diagonal
        return self._diagonal[0], 0.0

    def exact_trace(self) -> ExactTrace | None:
        """Return tr G from the norms of every example's gradients, see ``exact_squares``, at C / 3 products.

        None where an example has more than 64 outputs, or there is no such way.
        """
        if self._exact_trace is None and self._has_exact_trace:
            with self._pool.context():
                self._exact_trace = self._summed()
            self._has_exact_trace = self._exact_trace is not None
            return self._exact_trace
        return None if self._exact_trace is None else replace(self._exact_trace, cost=0.0)

    def _summed(self) -> ExactTrace | None:
        first = next(iter(self.risk.terms()))
        with torch.no_grad():
            outputs = first.outputs(self.risk.theta)
        if outputs.dim() < 2 or outputs[0].numel() > _SUMMED_OUTPUTS:
            return None
        cut = self._source.groups(GROUPS)
        edges = cut.edges if cut is not None else ((),) * self.risk.n_terms
        shares, weights, blocks = [], [], dict.fromkeys(self.blocks, 0.0)
        for batch, groups in zip(self.risk.terms(), edges, strict=True):
            found = exact_squares(batch, self.risk.theta)
            if found is None or not isinstance(batch, EmpiricalBatch):
                return None
            squares, names = found
            for name, value in names.items():
                blocks[name] += batch.weight * value
            for start, stop in groups or ((0, len(squares)),):
                shares.append(batch.weight * float(squares[start:stop].sum()))
                weights.append(batch.slice(start, stop).weight if groups else batch.weight)
        cost = diagonal_cost(first, self.risk.theta) + (0.0 if cut is None else cut.passes / 6)
        told = torch.tensor([weights, shares], dtype=torch.float64)
        return ExactTrace(math.fsum(shares), blocks, told[0], told[1] / told[0], cost)

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return weights (G,) and traces (G,) of groups of examples, once the diagonal or the trace has been made."""
        if self._traces is None:
            known = self._exact_trace
            return None if known is None else (known.weights, known.traces)
        return self._traces[0], self._traces[1]

    def exact_diagonal_cost(self) -> float:
        """Return the cost of ``exact_diagonal``: 0 once it is known, inf where an example has too many outputs."""
        if self._diagonal is not None:
            return 0.0
        with self._pool.context():
            batch = next(iter(self.risk.terms()))
            with torch.no_grad():
                outputs = batch.outputs(self.risk.theta)
            if outputs.dim() < 2 or outputs[0].numel() > MAX_OUTPUTS:
                return math.inf
            return diagonal_cost(batch, self.risk.theta) + passes_to_cut(self.risk, batch, GROUPS) / 6

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return tr G from random output directions, see ``output_sampled_trace``; None where examples mix."""
        start = device_clock(self.device)
        with self._pool.context():
            found = sampled_trace(self.risk, draws, seed, self._ways)
        if found is None:
            return None
        self._ways = found[1]
        self._draws += len(draws)
        spent = (device_clock(self.device) - start) / max(len(draws), 1)
        self._draw_seconds = {_DRAWS: min(spent, self._draw_seconds.get(_DRAWS, math.inf))}
        return found[0]


def _sample(risk: Objective) -> Iterator[BatchLoss]:
    """Yield the first batch; of a loss of unknown make, which may bend down on other data, more of them evenly."""
    asked: set[int] = set()
    for index, batch in enumerate(risk.terms()):
        if index == 0:
            many = _LOOKED_AT if isinstance(batch, EmpiricalBatch) and not batch.rule.known else 1
            asked = {round(i * (risk.n_terms - 1) / max(many - 1, 1)) for i in range(many)}
        if index in asked:
            yield batch
        if index >= max(asked):
            return
