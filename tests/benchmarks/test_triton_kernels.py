"""The fused traces of the benchmark beside the package's, on a GPU or interpreted on a CPU: `make test-triton`."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_trl.traces.kernels import eligibility_trace

triton = pytest.importorskip("triton")
if not torch.cuda.is_available() and not triton.knobs.runtime.interpret:
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from benchmarks.cost import triton_kernels  # noqa: E402  # imports Triton
from benchmarks.cost.operations import Operations  # noqa: E402
from benchmarks.cost.triton_kernels import fused_trace  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DECAYS = (0.0, 0.5, 0.99, 1.0)
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Walk a short row in several steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_kernels, "BLOCK", 8)
        yield


def assert_equals_ours(x, mask, gradient, **options):
    """Compare traces and gradients, relative to the largest of a row's weights or sums."""
    results = []
    for trace in (fused_trace, eligibility_trace):
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
def test_equals_ours(case, kernel, decay, use_eligible, normalize):
    x, gradient, mask, eligible = case
    options = dict(kernel=kernel, decay=decay, normalize=normalize, eligible=eligible if use_eligible else None)
    assert_equals_ours(x, mask, gradient, **options)
    assert_equals_ours(x.float(), mask, gradient.float(), **options)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_a_row_of_many_steps(kernel, normalize, dtype):
    """Sums are carried over steps, also over one that is all padding, and `both` reaches back over half of them."""
    x, gradient, mask, eligible = random_case(1, 75, dtype)
    mask[:, 15:33] = False
    assert_equals_ours(x, mask, gradient, kernel=kernel, decay=0.99, normalize=normalize, eligible=eligible)


@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_float64_keeps_a_decay_that_float32_rounds(kernel):
    x, gradient, mask, _ = random_case(1, 20, torch.float64)
    assert_equals_ours(x, mask, gradient, kernel=kernel, decay=1 - 1e-9)


@pytest.mark.parametrize("kernel", ["recent", "both"])
@pytest.mark.parametrize("normalize", [False, True])
def test_second_gradient_by_finite_differences(kernel, normalize):
    x, _, mask, eligible = random_case(1, 10, torch.float64)
    options = dict(kernel=kernel, decay=0.9, normalize=normalize, eligible=eligible)

    def curved(x):
        return fused_trace(x, mask, **options).exp() * mask

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
        assert_equals_ours(x, mask, gradient, kernel=kernel, decay=0.9, normalize=normalize)
        assert_equals_ours(x, mask, gradient, kernel=kernel, decay=0.9, normalize=normalize, eligible=eligible)


@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_what_has_been_forgotten_is_zero(kernel):
    """A token ten places from either end weighs at most 1e-40, which is nothing that float32 can divide by."""
    x, gradient, mask, _ = random_case(1, 24)
    mask[:], eligible = True, torch.zeros_like(mask)
    eligible[0, 10] = True
    options = dict(kernel=kernel, decay=1e-4, normalize=True, eligible=eligible)
    assert_equals_ours(x, mask, gradient, **options)
    z = fused_trace(x, mask, **options)
    assert z[0, 12] != 0 and z[0, -1] == 0


def test_masks_and_values_in_any_layout_and_dtype():
    x, gradient, mask, eligible = random_case(2, 12)
    options = dict(kernel="both", decay=0.9, normalize=True)
    expected = fused_trace(x, mask, eligible=eligible, **options)
    for dtype in (torch.float32, torch.int64):
        assert torch.equal(fused_trace(x, 2 * mask.to(dtype), eligible=eligible.to(dtype), **options), expected)
    spread = torch.stack([x, x, x], -1)[..., 1]
    assert torch.equal(fused_trace(spread, mask.T.contiguous().T, eligible=eligible, **options), expected)
    half = x.half().requires_grad_()  # the interpreter cuts bfloat16 off, where a GPU rounds
    z = fused_trace(half, mask, eligible=eligible, **options)
    assert torch.equal(z, fused_trace(half.float(), mask, eligible=eligible, **options).half())
    assert torch.autograd.grad(z, half, gradient.half())[0].dtype == torch.float16


class Recorded:
    """Stands for a kernel: write down its launches, and do nothing."""

    def __init__(self, name: str, launches: list[tuple]):
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.append((self.name, grid))


@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_one_launch_each_way_and_no_other_operation(kernel, monkeypatch):
    launches: list[tuple] = []
    for name in ("_walk", "_walk_back"):
        monkeypatch.setattr(triton_kernels, name, Recorded(name, launches))
    x, gradient, mask, eligible = random_case(3, 5)
    x.requires_grad_()
    with Operations() as operations:
        fused_trace(x, mask, decay=0.9, kernel=kernel, normalize=True, eligible=eligible).backward(gradient)
    assert launches == [("_walk", (3,)), ("_walk_back", (3,))] and not operations.names


def test_wrong_arguments_are_named():
    x, mask = torch.zeros(1, 2), torch.ones(1, 2)
    for arguments, options, message in (
        ((x, mask), dict(decay=1.5), "decay must be in"),
        ((x, mask), dict(decay=0.5, kernel="uniform"), "kernel must be recent or both, got 'uniform'"),
        ((x.long(), mask), dict(decay=0.5), "x must be floating point, got torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            fused_trace(*arguments, **options)
