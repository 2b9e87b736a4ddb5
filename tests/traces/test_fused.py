"""The fused traces beside the operations of the package, on a GPU or interpreted on a CPU: `make test-triton`."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cost.operations import Operations
from credit_trl.traces import kernels
from credit_trl.traces.kernels import eligibility_trace

triton = pytest.importorskip("triton")
if not torch.cuda.is_available() and not triton.knobs.runtime.interpret:
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from credit_trl.traces import fused  # noqa: E402  # imports Triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DECAYS = (0.0, 0.5, 0.99, 1.0)
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}

if DEVICE == "cpu":  # these make tensors of a CPU, and are collected here once more
    from tests.traces.test_kernels import (  # noqa: F401
        test_a_long_row_matches_the_recurrence,
        test_a_row_without_loss_tokens_is_zero_and_harmless,
        test_decay_one_is_the_prefix_sum,
        test_decay_zero_is_the_identity_to_the_bit,
        test_equals_the_slow_loop,
        test_gradients_at_masked_tokens_reach_nothing,
        test_on_policy_gradient_is_the_advantage_times_the_weight,
        test_the_matrix_of_weights_is_the_definition,
        test_values_outside_the_mask_change_nothing,
        test_what_has_been_forgotten_leaves_a_ratio_of_one,
    )


@pytest.fixture(autouse=True, scope="module")
def fused_in_small_blocks():
    """Compute every trace the fused way, on a CPU too, and walk a short row in several steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "runs_fused", lambda x: True)
        patch.setattr(fused, "BLOCK", 8)
        yield


def by_operations(*arguments, **options) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "runs_fused", lambda x: False)
        return eligibility_trace(*arguments, **options)


def assert_equals_operations(x, mask, gradient, **options):
    """Compare traces and gradients, relative to the largest of a row's weights or sums."""
    results = []
    for trace in (eligibility_trace, by_operations):
        x = x.detach().requires_grad_()
        z = trace(x, mask, **options)
        results.append((z, torch.autograd.grad(z, x, gradient)[0]))
    for actual, expected in zip(*results, strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCES[x.dtype] * scale)


def random_case(B: int, T: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(T)
    x, gradient = torch.randn(2, B, T, generator=generator, dtype=dtype).to(DEVICE)
    mask, eligible = ((torch.rand(B, T, generator=generator) < share).to(DEVICE) for share in (0.8, 0.6))
    return x, gradient, mask, eligible


@st.composite
def trace_cases(draw):
    """Shapes up to three steps of a walk, any mask (holes, empty rows, padding on either side)."""
    B, T = draw(st.integers(1, 2)), draw(st.integers(1, 20))
    bits = st.lists(st.booleans(), min_size=B * T, max_size=B * T)
    numbers = st.lists(st.floats(-5, 5), min_size=B * T, max_size=B * T)
    mask, eligible = (torch.tensor(draw(bits), device=DEVICE).view(B, T) for _ in range(2))
    x, gradient = (torch.tensor(draw(numbers), dtype=torch.float64, device=DEVICE).view(B, T) for _ in range(2))
    return x, gradient, mask, eligible


@settings(max_examples=25, deadline=None)
@given(trace_cases(), st.sampled_from(["recent", "both"]), st.sampled_from(DECAYS), st.booleans(), st.booleans())
def test_equals_operations(case, kernel, decay, use_eligible, normalize):
    x, gradient, mask, eligible = case
    options = dict(kernel=kernel, decay=decay, normalize=normalize, eligible=eligible if use_eligible else None)
    assert_equals_operations(x, mask, gradient, **options)
    assert_equals_operations(x.float(), mask, gradient.float(), **options)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_a_row_of_many_steps(kernel, normalize, dtype):
    """Sums are carried over steps, also over one that is all padding, and `both` reaches back over half of them."""
    x, gradient, mask, eligible = random_case(1, 75, dtype)
    mask[:, 15:33] = False
    assert_equals_operations(x, mask, gradient, kernel=kernel, decay=0.99, normalize=normalize, eligible=eligible)


@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_float64_keeps_a_decay_that_float32_rounds(kernel):
    x, gradient, mask, _ = random_case(1, 20, torch.float64)
    assert_equals_operations(x, mask, gradient, kernel=kernel, decay=1 - 1e-9)


@pytest.mark.parametrize("kernel", ["recent", "both"])
@pytest.mark.parametrize("normalize", [False, True])
def test_second_gradient_by_finite_differences(kernel, normalize):
    x, _, mask, eligible = random_case(1, 10, torch.float64)
    options = dict(kernel=kernel, decay=0.9, normalize=normalize, eligible=eligible)

    def curved(x):
        return eligibility_trace(x, mask, **options).exp() * mask

    x.requires_grad_()
    assert torch.autograd.gradcheck(curved, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(curved, (x,), fast_mode=True)


@pytest.mark.parametrize("kernel", ["recent", "both"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_is_left_out_and_gets_no_gradient(kernel, bad):
    x, gradient, mask, eligible = random_case(2, 12)
    x[0, 4], mask[0, 4], eligible[0, 4] = bad, True, True
    gradient[~mask] = math.nan  # a loss may be NaN at padding
    for normalize in (False, True):
        assert_equals_operations(x, mask, gradient, kernel=kernel, decay=0.9, normalize=normalize)
        assert_equals_operations(x, mask, gradient, kernel=kernel, decay=0.9, normalize=normalize, eligible=eligible)


@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_what_has_been_forgotten_is_zero(kernel):
    """A token ten places from either end weighs at most 1e-40, which is nothing that float32 can divide by."""
    x, gradient, mask, _ = random_case(1, 24)
    mask[:], eligible = True, torch.zeros_like(mask)
    eligible[0, 10] = True
    options = dict(kernel=kernel, decay=1e-4, normalize=True, eligible=eligible)
    assert_equals_operations(x, mask, gradient, **options)
    z = eligibility_trace(x, mask, **options)
    assert z[0, 12] != 0 and z[0, -1] == 0


def test_masks_and_values_in_any_layout_and_dtype():
    x, gradient, mask, eligible = random_case(2, 12)
    options = dict(kernel="both", decay=0.9, normalize=True)
    expected = eligibility_trace(x, mask, eligible=eligible, **options)
    for dtype in (torch.float32, torch.int64):
        assert torch.equal(eligibility_trace(x, 2 * mask.to(dtype), eligible=eligible.to(dtype), **options), expected)
    spread = torch.stack([x, x, x], -1)[..., 1]
    assert torch.equal(eligibility_trace(spread, mask.T.contiguous().T, eligible=eligible, **options), expected)
    half = x.half().requires_grad_()  # the interpreter cuts bfloat16 off, where a GPU rounds
    z = eligibility_trace(half, mask, eligible=eligible, **options)
    assert torch.equal(z, eligibility_trace(half.float(), mask, eligible=eligible, **options).half())
    assert torch.autograd.grad(z, half, gradient.half())[0].dtype == torch.float16


class Recorded:
    """Stands for a kernel: write down its launches, and do nothing."""

    def __init__(self, name: str, launches: list[tuple]):
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.append((self.name, grid))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_the_sums_of_weights_are_those_of_the_operations(kernel, normalize):
    x, _, mask, eligible = random_case(2, 30)
    options = 0.9, kernel, normalize
    weight = kernels.trace_of_counted(x, mask, eligible, *options)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "runs_fused", lambda x: False)
        expected = kernels.trace_of_counted(x, mask, eligible, *options)[1]
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0)
    assert not weight.requires_grad


@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_one_launch_each_way_and_no_other_operation(kernel, monkeypatch):
    launches: list[tuple] = []
    for name in ("_walk", "_walk_back"):
        monkeypatch.setattr(fused, name, Recorded(name, launches))
    x, gradient, mask, eligible = random_case(3, 5)
    x.requires_grad_()
    with Operations() as operations:
        z, _ = kernels.trace_of_counted(x, mask, eligible, 0.9, kernel, True)
        z.backward(gradient)
    assert launches == [("_walk", (3,)), ("_walk_back", (3,))] and not operations.names
