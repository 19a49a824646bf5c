"""The same products, probes and estimates on a CUDA device as on the CPU."""

from __future__ import annotations

import nets
import pytest
import torch

import hessprobe as hp
from hessprobe.hvp import ENGINES
from hessprobe.objective import EmpiricalRisk
from hessprobe.vectors import LAWS, ProbeStream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", list(nets.CASES))
@pytest.mark.parametrize("engine", list(ENGINES))
def test_products_agree_with_the_dense_hessian(name: str, engine: str) -> None:
    case = nets.CASES[name]()
    hessian = nets.full_hessian(case.risk())
    case.module.cuda()
    risk = EmpiricalRisk(case.module, case.loss, case.data)
    V = torch.randn(3, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = hp.Hessian(risk, engine=engine).matvecs(V.cuda()).cpu()
    expected = V @ hessian
    assert float((product - expected).norm() / expected.norm()) < (1e-7 if engine == "finite_difference" else 1e-11)


@pytest.mark.parametrize("law", LAWS)
def test_probes_do_not_depend_on_the_device(law: str) -> None:
    there = ProbeStream(1001, 3, law, device="cuda").block(0, 4, term=2)
    assert torch.equal(there.cpu(), ProbeStream(1001, 3, law).block(0, 4, term=2))


def test_estimates_do_not_depend_on_the_device() -> None:
    values = []
    for device in ("cpu", "cuda"):
        case = nets.mlp()
        case.module.to(device)
        H = hp.Hessian(EmpiricalRisk(case.module, case.loss, case.data), engine="double_backward")
        values.append(
            [
                hp.trace(H, n_probes=8).value,
                hp.frobenius_norm(H, n_probes=8).value,
                float(hp.eigsh(H, k=2, which="both").values[0]),
                hp.logdet(hp.GaussNewton(H.risk), shift=1e-3, n_probes=4).value,
            ]
        )
    assert values[0] == pytest.approx(values[1], rel=1e-8)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU])
def test_recurrent_networks_have_the_hessian_of_the_cpu(kind: type[torch.nn.Module]) -> None:
    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = kind(3, 4, batch_first=True), torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.recurrent(x)[0][:, -1])

    torch.manual_seed(0)
    module = Last().double()
    x, y = torch.randn(5, 6, 3, dtype=torch.float64), torch.arange(5) % 2
    found = []
    for device in ("cpu", "cuda"):
        module.to(device)
        risk = EmpiricalRisk(module, torch.nn.CrossEntropyLoss(), [(x.to(device), y.to(device))])
        found.append(hp.Hessian(risk).matvecs(torch.eye(risk.dim, dtype=torch.float64, device=device)).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


def test_tf32_is_off_during_products() -> None:
    case = nets.mlp((256,))
    hessian = nets.full_hessian(case.risk())
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        module = case.module.float().cuda()
        risk = EmpiricalRisk(module, case.loss, [(x.float(), y) for x, y in case.data])
        V = torch.randn(1, risk.dim)
        product = hp.Hessian(risk).matvecs(V.cuda()).cpu().double()
        expected = V.double() @ hessian
        assert float((product - expected).norm() / expected.norm()) < 1e-5
        assert torch.backends.cuda.matmul.allow_tf32
        assert any("TF32" in note for note in risk.notes)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
