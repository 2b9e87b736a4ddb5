"""What a loss reads under a trace, by one GPU kernel each way beside the package's operations: `make test-triton`."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from benchmarks.cost.operations import Operations, step_operations
from credit_trl.traces import credit, fused_credit
from credit_trl.traces.credit import traced_old_logps
from tests.traces.test_fused import DEVICE, Recorded, fused  # skips this module too where it cannot run

PLAIN = dict(decay=0.9, kernel="recent", normalize=True, trust_region="token", epsilon_low=0.2, epsilon_high=0.3)
REGIONS = ("trace", "token", "weight")


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "BLOCK", 8)
        yield


def random_case(B: int, T: int, spread: float = 0.5) -> list[torch.Tensor]:
    """Return log-probabilities, the old ones, a mask with holes, eligible tokens, advantages and a gradient."""
    generator = torch.Generator().manual_seed(T)
    logps, moves, gradient = torch.randn(3, B, T, generator=generator)
    mask, eligible = (torch.rand(B, T, generator=generator) < share for share in (0.8, 0.6))
    advantages = torch.randn(B, generator=generator)
    tensors = -logps.abs(), -logps.abs() - spread * moves, mask, eligible, advantages, gradient
    return [tensor.to(DEVICE) for tensor in tensors]


def both_ways(logps, old_logps, mask, advantages, gradient, **options):
    """Return the old log-probabilities, their gradient, the names and the sums: fused, and by operations."""
    found = []
    for fuses in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(credit, "runs_fused", lambda x, fuses=fuses: fuses)
            if not fuses:
                patch.setattr("credit_trl.traces.kernels.runs_fused", lambda x: False)
            own = logps.detach().requires_grad_()
            read, (names, totals) = traced_old_logps(own, old_logps, mask, advantages, **options)
            found.append((read.detach(), torch.autograd.grad(read, own, gradient)[0], names, totals))
    return found


def assert_same(*arguments, **options):
    (read, gradient, names, totals), (read_, gradient_, names_, totals_) = both_ways(*arguments, **options)
    mask = arguments[2].bool()
    assert names == names_
    torch.testing.assert_close(read[mask], read_[mask], rtol=2e-6, atol=2e-6)
    scale = max(1.0, gradient_.abs().max().item())
    torch.testing.assert_close(gradient, gradient_, rtol=0, atol=3e-6 * scale)
    torch.testing.assert_close(totals, totals_, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trust_region", REGIONS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_equals_the_operations(kernel, normalize, trust_region):
    logps, old_logps, mask, eligible, advantages, gradient = random_case(3, 37)
    advantages[1] = 0.0
    options = PLAIN | dict(kernel=kernel, normalize=normalize, trust_region=trust_region)
    if trust_region == "weight":
        options["epsilon_high"] = 1.3
    assert_same(logps, old_logps, mask, advantages, gradient, **options)
    assert_same(logps, old_logps, mask, advantages, gradient, eligible=eligible, **options)
    of_tokens = torch.where(eligible, advantages[:, None], -1.0)
    assert_same(logps, old_logps, mask, of_tokens, gradient, **options)
    assert_same(logps, old_logps, 2 * mask.long(), advantages[:, None], gradient, **options)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_row_of_any_bounds(data):
    T = data.draw(st.integers(1, 12))
    numbers = st.lists(st.sampled_from([0.0, 0.1, -0.3, 2.0, -40.0, 30.0]), min_size=T, max_size=T)
    ratios, gradient = (torch.tensor([data.draw(numbers)], device=DEVICE) for _ in range(2))
    bits = st.lists(st.booleans(), min_size=T, max_size=T)
    mask, eligible = (torch.tensor([data.draw(bits)], device=DEVICE) for _ in range(2))
    advantages = torch.tensor([data.draw(st.sampled_from([-1.0, 0.0, 2.0]))], device=DEVICE)
    options = PLAIN | dict(
        kernel=data.draw(st.sampled_from(["recent", "both"])),
        decay=data.draw(st.sampled_from([0.0, 0.9, 1.0])),
        normalize=data.draw(st.booleans()),
        trust_region=data.draw(st.sampled_from(REGIONS)),
        epsilon_low=data.draw(st.sampled_from([0.0, 0.2, 1.0, math.inf])),
        epsilon_high=data.draw(st.sampled_from([0.3, 2.0])),
    )
    assert_same(ratios - 1.0, torch.full_like(ratios, -1.0), mask, advantages, gradient, eligible=eligible, **options)


@pytest.mark.parametrize("trust_region", REGIONS)
@pytest.mark.parametrize(("bad", "old"), list(itertools.product([math.nan, -math.inf, math.inf], [False, True])))
def test_what_is_not_finite_is_left_out_and_counted(bad, old, trust_region):
    """In the log-probabilities the token keeps its old one; in the old ones the loss reads a trace all the same."""
    logps, old_logps, mask, _, advantages, gradient = random_case(1, 12)
    mask[0, 4] = mask[0, 5] = True
    (old_logps if old else logps)[0, 4] = bad
    options = PLAIN | dict(trust_region=trust_region)
    assert_same(logps, old_logps, mask, advantages, gradient, **options)
    (read, found, names, totals), _ = both_ways(logps, old_logps, mask, advantages, gradient, **options)
    assert totals[names.index("non_finite")] == 1 and torch.isfinite(found).all()
    if not old:
        assert read[0, 4] == old_logps[0, 4] and found[0, 4] == 0


def test_above_the_cap_there_is_no_gradient():
    logps, old_logps, mask, _, advantages, gradient = random_case(1, 30)
    mask[:] = True
    old_logps = logps - 1.0
    options = PLAIN | dict(decay=1.0, normalize=False, trust_region="trace", cap=10.0)
    assert_same(logps, old_logps, mask, advantages, gradient, **options)
    (read, *_), _ = both_ways(logps, old_logps, mask, advantages, gradient, **options)
    assert (logps - read)[0, -1].item() == pytest.approx(10.0)


def test_no_decay_hands_the_loss_each_tokens_own_log_ratio():
    """To the bit, and with no gradient but the loss's own."""
    logps, _, mask, _, advantages, gradient = random_case(2, 20)
    old_logps = logps - 0.25
    options = PLAIN | dict(decay=0.0, trust_region="trace")
    (read, found, *_), _ = both_ways(logps, old_logps, mask, advantages, gradient, **options)
    assert torch.equal((logps - read)[mask], (logps - old_logps)[mask])
    assert not found[mask].any()


def test_few_operations_beside_one_launch_each_way(monkeypatch):
    launches: list[tuple] = []
    for module, name in ((fused_credit, "_walk_loss"), (fused_credit, "_walk_back")):
        monkeypatch.setattr(module, name, Recorded(name, launches))
    monkeypatch.setattr(credit, "runs_fused", lambda x: True)
    logps, old_logps, mask, eligible, advantages, gradient = random_case(3, 20)
    logps.requires_grad_()
    with Operations() as operations:
        read, _ = traced_old_logps(logps, old_logps, mask, advantages, eligible=eligible, **PLAIN)
        read.backward(gradient)
    assert launches == [("_walk_loss", (3,)), ("_walk_back", (3,))] and dict(operations.names) == {"sum": 1}


@pytest.mark.parametrize("option", [dict(kernel="uniform"), dict(gradient="own"), dict(kernel="identity")])
def test_what_is_not_fused_goes_the_other_way(option, monkeypatch):
    monkeypatch.setattr(credit, "runs_fused", lambda x: True)
    monkeypatch.setattr(fused_credit, "fused_old_logps", None)  # would fail
    monkeypatch.setattr("credit_trl.traces.kernels.runs_fused", lambda x: False)
    logps, old_logps, mask, _, advantages, _ = random_case(2, 9)
    traced_old_logps(logps, old_logps, mask, advantages, **PLAIN | option)
    traced_old_logps(logps.double(), old_logps.double(), mask, advantages, **PLAIN)
    old_logps.requires_grad_()
    read, _ = traced_old_logps(logps, old_logps, mask, advantages, **PLAIN)
    assert read.requires_grad


def test_errors_are_those_of_the_operations(monkeypatch):
    monkeypatch.setattr(credit, "runs_fused", lambda x: True)
    logps, old_logps, mask, _, advantages, _ = random_case(2, 9)
    for option, message in ((dict(decay=2.0), "decay"), (dict(epsilon_low=-1.0), "epsilon_low")):
        with pytest.raises(ValueError, match=message):
            traced_old_logps(logps, old_logps, mask, advantages, **PLAIN | option)
    for shape in ((1,), (3,), (2, 8), ()):
        with pytest.raises(ValueError, match=r"advantages must be \(B,\) or \(B, T\)"):
            traced_old_logps(logps, old_logps, mask, torch.ones(shape, device=DEVICE), **PLAIN)
    with pytest.raises(ValueError, match="old_logps has shape"):
        traced_old_logps(logps, old_logps[:, :1], mask, advantages, **PLAIN)


@pytest.mark.parametrize(
    ("method", "added"), [("p_trace", 4), ("grpo_lambda recent", 5), ("grpo_lambda both", 5), ("s_trace", 30)]
)
def test_an_update_gets_few_operations_and_a_launch_each_way(method, added, monkeypatch, tmp_path):
    """GRPO-lambda has a floor besides, and S-trace TRL's own entropy threshold."""
    launches: list[str] = []

    class Program:
        """Write down its launches, and write zeros, which are no operation of PyTorch in this way."""

        def __init__(self, name: str, output: int):
            self.name, self.output = name, output

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                launches.append(self.name)
                arguments[self.output].numpy()[:] = 0

            return launch

    monkeypatch.setattr(fused_credit, "_walk_loss", Program("_walk_loss", 9))
    monkeypatch.setattr(fused_credit, "_walk_back", Program("_walk_back", 5))
    monkeypatch.setattr(credit, "runs_fused", lambda x: True)
    grpo = step_operations("grpo", str(tmp_path))
    assert step_operations(method, str(tmp_path)).count - grpo.count == added
    assert launches == ["_walk_loss", "_walk_back"] * 2  # in both updates
