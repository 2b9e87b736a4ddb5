"""The trace kernels against a slow, obvious loop, finite differences and their closed-form limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cost.operations import Operations, kernel_operations
from credit_trl.traces.kernels import KERNELS, eligibility_trace, trace_weights
from credit_trl.traces.trust_region import token_trust_region
from scripts.memory_plan.fake_model import LiveBytes
from tests.helpers.slow_traces import weight, weight_matrix

DECAYS = (0.0, 0.3, 0.9, 0.99, 1.0)


def slow_trace(x, mask, *, decay, kernel, eligible=None, normalize=False):
    """Row by row, token by token, predecessor by predecessor, in float64."""
    B, T = x.shape
    z = torch.zeros(B, T, dtype=torch.float64)
    for b in range(B):
        clock = torch.cumsum(mask[b].long(), 0).tolist()
        for t in range(T):
            if not mask[b, t]:
                continue
            total, weights = 0.0, 0.0
            for k in range(T):
                if mask[b, k] and math.isfinite(x[b, k]) and (eligible is None or eligible[b, k]):
                    w = weight(kernel, decay, clock[t], clock[k])
                    total += w * x[b, k].item()
                    weights += w
            tiny = torch.finfo(x.dtype).tiny
            z[b, t] = total if not normalize else (total / weights if weights >= tiny else 0.0)
    return z


def slow_weights(mask, *, decay, kernel):
    B, T = mask.shape
    W = torch.zeros(B, T, dtype=torch.float64)
    for b in range(B):
        clock = torch.cumsum(mask[b].long(), 0).tolist()
        for k in range(T):
            if mask[b, k]:
                W[b, k] = sum(weight(kernel, decay, clock[t], clock[k]) for t in range(T) if mask[b, t])
    return W


@st.composite
def trace_cases(draw):
    """Shapes up to a few tokens, any mask (holes, empty rows, padding on either side), any decay."""
    B, T = draw(st.integers(1, 3)), draw(st.integers(1, 24))
    bits = st.lists(st.booleans(), min_size=B * T, max_size=B * T)
    mask = torch.tensor(draw(bits)).view(B, T)
    eligible = torch.tensor(draw(bits)).view(B, T)
    x = torch.tensor(draw(st.lists(st.floats(-5, 5), min_size=B * T, max_size=B * T)), dtype=torch.float64).view(B, T)
    decay = draw(st.one_of(st.sampled_from(DECAYS), st.floats(0, 1)))
    return x, mask, eligible, decay


@settings(max_examples=150, deadline=None)
@given(trace_cases(), st.sampled_from(KERNELS), st.booleans(), st.booleans())
def test_equals_the_slow_loop(case, kernel, use_eligible, normalize):
    x, mask, eligible, decay = case
    options = dict(decay=decay, kernel=kernel, eligible=eligible if use_eligible else None, normalize=normalize)
    expected = slow_trace(x, mask, **options)
    torch.testing.assert_close(eligibility_trace(x, mask, **options), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(trace_cases(), st.sampled_from(KERNELS))
def test_weights_equal_the_slow_column_sums(case, kernel):
    _, mask, _, decay = case
    expected = slow_weights(mask, decay=decay, kernel=kernel)
    torch.testing.assert_close(trace_weights(mask, decay=decay, kernel=kernel).double(), expected, rtol=1e-5, atol=1e-6)


def matrix_trace(x, mask, *, decay, kernel, normalize):
    """As `slow_trace`, row by row in float64, for lengths at which its loops take long."""
    z = torch.zeros(x.shape, dtype=torch.float64)
    for row_x, row_mask, row_z in zip(x, mask, z, strict=True):
        weights = weight_matrix(kernel, decay, int(row_mask.sum()))
        row_z[row_mask] = weights @ row_x[row_mask] / (weights.sum(1) if normalize else 1)
    return z


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("decay", DECAYS)
def test_the_matrix_of_weights_is_the_definition(kernel, decay):
    expected = [[weight(kernel, decay, n_t, n_k) for n_k in range(1, 13)] for n_t in range(1, 13)]
    torch.testing.assert_close(weight_matrix(kernel, decay, 12), torch.tensor(expected).double(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("T", [1, 2, 3, 127, 128, 129, 385])
def test_lengths_around_a_power_of_two(kernel, normalize, T):
    generator = torch.Generator().manual_seed(T)
    x = torch.randn(2, T, generator=generator, dtype=torch.float64)
    for mask in (torch.rand(2, T, generator=generator) < 0.9, torch.ones(2, T, dtype=torch.bool)):
        for decay in (0.0, 0.97, 1.0):
            options = dict(decay=decay, kernel=kernel, normalize=normalize)
            torch.testing.assert_close(
                eligibility_trace(x, mask, **options), matrix_trace(x, mask, **options), rtol=1e-9, atol=1e-9
            )


def test_a_long_row_matches_the_recurrence():
    T, decay = 128 * 128 + 300, 0.9995
    x = torch.randn(1, T, generator=torch.Generator().manual_seed(0))
    z, expected = 0.0, []
    for value in x[0].tolist():
        z = decay * z + value
        expected.append(z)
    actual = eligibility_trace(x, torch.ones(1, T), decay=decay)
    torch.testing.assert_close(actual[0].double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_by_finite_differences(kernel, normalize):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 1, 1]])
    eligible = torch.tensor([[1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 0, 1, 1, 1]])
    for decay in DECAYS:
        assert torch.autograd.gradcheck(
            lambda x, decay=decay: eligibility_trace(
                x, mask, decay=decay, kernel=kernel, eligible=eligible, normalize=normalize
            ),
            (x,),
        )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("normalize", [False, True])
def test_second_gradient_by_finite_differences(kernel, normalize):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 1, 1]])
    eligible = torch.tensor([[1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 0, 1, 1, 1]])
    for decay in DECAYS:
        options = dict(decay=decay, kernel=kernel, eligible=eligible, normalize=normalize)
        # A trace is linear: only with a curved function on top its second gradient says something.
        assert torch.autograd.gradgradcheck(
            lambda x, options=options: eligibility_trace(x, mask, **options).exp() * mask, (x,)
        )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_at_masked_tokens_reach_nothing(kernel, normalize):
    """A loss may be NaN at padding before it is masked out."""
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 0]])
    incoming = torch.tensor([[math.nan, 1.0, -2.0, math.inf, 0.5, 3.0, math.nan]])

    def gradient(incoming):
        x = torch.linspace(-1, 1, 7).unsqueeze(0).requires_grad_()
        options = dict(decay=0.9, kernel=kernel, eligible=torch.tensor([[1, 1, 1, 1, 0, 1, 1]]), normalize=normalize)
        return torch.autograd.grad(eligibility_trace(x, mask, **options), x, incoming)[0]

    assert torch.equal(gradient(incoming), gradient(torch.where(mask.bool(), incoming, 0)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("decay", DECAYS)
def test_on_policy_gradient_is_the_advantage_times_the_weight(kernel, decay):
    """At l = 0: d/dx[k] of sum A exp(z) = A * W[k], the identity behind eps-weight."""
    generator = torch.Generator().manual_seed(1)
    x = torch.zeros(3, 11, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 11, generator=generator) < 0.7
    advantages = torch.tensor([[1.5], [-0.7], [0.2]], dtype=torch.float64)
    z = eligibility_trace(x, mask, decay=decay, kernel=kernel)
    (advantages * z.exp() * mask).sum().backward()
    expected = advantages * trace_weights(mask, decay=decay, kernel=kernel)
    torch.testing.assert_close(x.grad, expected.double(), rtol=1e-5, atol=1e-6)


def test_weights_of_recent_are_the_papers_closed_form():
    a, N = 0.8, 5
    # (1 - a^(N-n+1)) / (1 - a) for n = 1..5: 3.3616, 2.952, 2.44, 1.8, 1
    expected = torch.tensor([[(1 - a ** (N - n + 1)) / (1 - a) for n in range(1, N + 1)]])
    torch.testing.assert_close(trace_weights(torch.ones(1, N), decay=a, kernel="recent"), expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40))
def test_decay_zero_is_the_identity_to_the_bit(values):
    x = torch.tensor([values])
    mask = torch.ones_like(x)
    assert torch.equal(eligibility_trace(x, mask, decay=0.0, kernel="recent"), x)
    assert torch.equal(eligibility_trace(x, mask, decay=0.7, kernel="identity"), x)


def test_decay_one_is_the_prefix_sum():
    x = torch.tensor([[0.5, 9.0, -1.0, 2.0]])
    mask = torch.tensor([[1, 0, 1, 1]])
    for kernel in ("recent", "both"):
        # 0.5, (masked), 0.5 - 1, 0.5 - 1 + 2
        expected = torch.tensor([[0.5, 0.0, -0.5, 1.5]])
        torch.testing.assert_close(eligibility_trace(x, mask, decay=1.0, kernel=kernel), expected)


def test_uniform_normalized_is_the_sequence_mean():
    x = torch.tensor([[0.5, 9.0, -1.0, 2.0]])
    mask = torch.tensor([[1, 0, 1, 1]])
    expected = torch.tensor([[0.5, 0.0, 0.5, 0.5]])  # (0.5 - 1 + 2) / 3
    torch.testing.assert_close(eligibility_trace(x, mask, decay=0.3, kernel="uniform", normalize=True), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_values_outside_the_mask_change_nothing(kernel):
    mask = torch.tensor([[0, 1, 1, 0, 1, 0]])
    x = torch.tensor([[0.0, 0.1, 0.2, 0.0, 0.3, 0.0]])
    other = torch.tensor([[7.0, 0.1, 0.2, float("nan"), 0.3, float("inf")]])
    z = eligibility_trace(x, mask, decay=0.9, kernel=kernel)
    assert torch.equal(eligibility_trace(other, mask, decay=0.9, kernel=kernel), z)
    # Removing the masked columns altogether gives the same trace: they do not tick the clock.
    loss_columns = [1, 2, 4]
    assert torch.equal(
        eligibility_trace(x[:, loss_columns], mask[:, loss_columns], decay=0.9, kernel=kernel), z[:, loss_columns]
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_value_acts_as_an_ineligible_token(kernel, bad):
    x = torch.tensor([[0.1, bad, 0.3, 0.4]], requires_grad=True)
    mask = torch.ones(1, 4)
    for normalize in (False, True):
        z = eligibility_trace(x, mask, decay=0.9, kernel=kernel, normalize=normalize)
        expected = eligibility_trace(
            torch.tensor([[0.1, 5.0, 0.3, 0.4]]),
            mask,
            decay=0.9,
            kernel=kernel,
            eligible=torch.tensor([[1, 0, 1, 1]]),
            normalize=normalize,
        )
        assert torch.equal(z, expected)
        (gradient,) = torch.autograd.grad(z.sum(), x)
        assert torch.isfinite(gradient).all() and gradient[0, 1] == 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("normalize", [False, True])
def test_a_row_without_loss_tokens_is_zero_and_harmless(kernel, normalize):
    x = torch.ones(2, 5, requires_grad=True)
    mask = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    z = eligibility_trace(x, mask, decay=0.5, kernel=kernel, normalize=normalize)
    assert torch.equal(z[0], torch.zeros(5))
    z.sum().backward()
    assert torch.equal(x.grad[0], torch.zeros(5)) and x.grad[1].abs().sum() > 0
    assert torch.equal(trace_weights(mask, decay=0.5, kernel=kernel)[0], torch.zeros(5))


def test_what_has_been_forgotten_leaves_a_ratio_of_one():
    """A single eligible token 2000 tokens back weighs 0.5^2000, which float32 cannot hold."""
    x = torch.full((1, 2000), 0.7)
    eligible = torch.zeros(1, 2000)
    eligible[0, 0] = 1
    z = eligibility_trace(x, torch.ones(1, 2000), decay=0.5, eligible=eligible, normalize=True)
    torch.testing.assert_close(z[0, 50], torch.tensor(0.7))
    assert z[0, -1] == 0
    # On the way there, weights between float32's smallest normal number and zero have too few digits for a mean.
    remembered = z[0] != 0
    torch.testing.assert_close(z[0, remembered], torch.full((int(remembered.sum()),), 0.7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_are_kept_and_half_precision_is_computed_in_float32(dtype):
    x = (0.01 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))).to(dtype)
    mask = torch.ones(1, 3000)
    z = eligibility_trace(x, mask, decay=0.999)
    assert z.dtype == dtype
    expected = eligibility_trace(x.double(), mask, decay=0.999)
    # Only the last rounding to the dtype may be lost, not the sum of 3000 small numbers.
    torch.testing.assert_close(z.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_the_trace_stays_in_float32_under_autocast():
    x = 0.01 * torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 500)
    outside = eligibility_trace(x, mask, decay=0.99, kernel="both")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(eligibility_trace(x, mask, decay=0.99, kernel="both"), outside)


def test_products_of_low_precision_and_deterministic_algorithms_change_nothing():
    """TF32 and its kin are for products of matrices, and none is taken; what is not deterministic would raise."""
    x = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.rand(2, 500, generator=torch.Generator().manual_seed(1)) < 0.9

    def both():
        z = eligibility_trace(x, mask, decay=0.99, kernel="both", normalize=True)
        return z, torch.autograd.grad(z.exp().sum(), x)[0]

    expected, precision = both(), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)
        actual = both()
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    products = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "convolution"}
    for kernel in ("recent", "both"):
        assert not products & set(kernel_operations(kernel, 500).names)


@pytest.mark.thorough
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_compiled_trace_is_the_same_in_one_graph(kernel):
    x = torch.randn(2, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 37, generator=torch.Generator().manual_seed(1)) < 0.8

    def trace(x):
        return eligibility_trace(x, mask, decay=0.9, kernel=kernel, normalize=True)

    compiled, expected = torch.compile(trace, fullgraph=True, backend="aot_eager")(x), trace(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(
        torch.autograd.grad(compiled.exp().sum(), x), torch.autograd.grad(expected.exp().sum(), x)
    )


@pytest.mark.parametrize(("kernel", "most"), [("recent", 50), ("both", 80)])
def test_a_trace_is_few_operations(kernel, most):
    """On a GPU their number is the time: forward and backward, normalized, some tokens not eligible."""
    operations = kernel_operations(kernel, 16384)
    assert operations.count <= most and operations.waits == 0
    # A row half as long takes one step less each way, and a short one nothing but its steps.
    assert kernel_operations(kernel, 8192).count == operations.count - 2
    assert kernel_operations(kernel, 128).count == operations.count - 2 * 7


def test_what_float32_cannot_hold_takes_no_operation():
    """0.5^256 is zero in float32: the steps of 256, 512 and more tokens have nothing to add."""
    x, mask = torch.ones(1, 4096), torch.ones(1, 4096)
    counts = {}
    for decay in (0.0, 0.5, 0.999):
        with Operations() as operations:
            z = eligibility_trace(x, mask, decay=decay)
        counts[decay] = operations.count
        torch.testing.assert_close(z[0, -1].item(), (1 - decay**4096) / (1 - decay), rtol=1e-5, atol=0)
    assert counts[0.5] == counts[0.0] + 8 and counts[0.999] == counts[0.0] + 12


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_is_linear_in_the_length(kernel, normalize):
    """No single allocation grows faster than the tokens: at T = 4096 a T x T float tensor would be 64 MiB."""
    x = torch.randn(1, 4096, requires_grad=True)
    mask = torch.ones(1, 4096)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        eligibility_trace(x, mask, decay=0.99, kernel=kernel, normalize=normalize).sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 16 * x.numel() * x.element_size()


def bytes_alive(T: int, kernel: str) -> int:
    """The peak of all tensors of a whole trace, forward and backward: trust region, trace, ratio, weights."""
    x = torch.zeros(1, T, requires_grad=True)
    mask, eligible = torch.ones(1, T), torch.rand(1, T) < 0.2
    with LiveBytes() as live:
        clipped = token_trust_region(x, torch.ones(1), epsilon_low=0.2, epsilon_high=0.2)
        trace = eligibility_trace(clipped, mask, decay=0.99, kernel=kernel, eligible=eligible, normalize=True)
        (trace.exp() * trace_weights(mask, decay=0.99, kernel=kernel)).sum().backward()
    return live.peak


@pytest.mark.parametrize("kernel", KERNELS)
def test_long_sequences_cost_next_to_nothing_beside_their_logits(kernel):
    T, vocabulary = 32768, 151_936  # Qwen3's
    peak = bytes_alive(T, kernel)
    assert peak < 0.01 * T * vocabulary * 2  # bfloat16 logits of the same tokens
    assert peak < 4.4 * bytes_alive(T // 4, kernel)


@pytest.mark.parametrize(("kernel", "mebibytes"), [("identity", 12), ("recent", 27), ("both", 50), ("uniform", 12)])
def test_peak_of_a_large_batch(kernel, mebibytes):
    """16 completions of 32,768 tokens, of which one float32 tensor takes 2 MiB."""
    x, mask = torch.zeros(16, 32768, requires_grad=True), torch.ones(16, 32768)
    eligible = torch.ones(16, 32768, dtype=torch.bool)
    with LiveBytes() as live:
        z = eligibility_trace(x, mask, decay=0.99, kernel=kernel, eligible=eligible, normalize=True)
        z.backward(mask)
    assert 0.8 * mebibytes < live.peak / 2**20 <= mebibytes


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_decay_outside_its_range_is_named(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\], got {decay}"):
        eligibility_trace(torch.zeros(1, 2), torch.ones(1, 2), decay=decay)
    with pytest.raises(ValueError, match="decay must be in"):
        trace_weights(torch.ones(1, 2), decay=decay, kernel="recent")


def test_an_unknown_kernel_and_wrong_shapes_are_named():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match="kernel must be one of identity, recent, both, uniform, got 'latest'"):
        eligibility_trace(x, mask, decay=0.5, kernel="latest")
    with pytest.raises(ValueError, match=r"x has shape \(2, 4\), but mask has \(2, 3\)"):
        eligibility_trace(torch.zeros(2, 4), mask, decay=0.5)
    with pytest.raises(ValueError, match=r"eligible has shape \(3,\), but mask has \(2, 3\)"):
        eligibility_trace(x, mask, decay=0.5, eligible=torch.ones(3))
    with pytest.raises(ValueError, match=r"mask must have shape \(B, T\), got \(3,\)"):
        trace_weights(torch.ones(3), decay=0.5, kernel="both")


def test_token_trust_region_clips_the_side_that_is_pushed():
    log_ratio = torch.tensor([-1.0, 0.0, 1.0]).repeat(3, 1)
    advantages = torch.tensor([2.0, -2.0, 0.0])
    expected = torch.tensor(
        [
            [-1.0, 0.0, math.log(1.3)],  # A > 0: only from above
            [math.log(0.8), 0.0, 1.0],  # A < 0: only from below
            [-1.0, 0.0, 1.0],  # A = 0: not at all
        ]
    )
    clipped = token_trust_region(log_ratio, advantages, epsilon_low=0.2, epsilon_high=0.3)
    torch.testing.assert_close(clipped, expected)
    per_token = advantages.unsqueeze(1).expand(3, 3)
    assert torch.equal(token_trust_region(log_ratio, per_token, epsilon_low=0.2, epsilon_high=0.3), clipped)


@pytest.mark.parametrize("epsilon_low", [1.0, 10.0])
def test_an_epsilon_of_one_or_more_is_no_lower_bound(epsilon_low):
    """No ratio is below 1 - epsilon_low then. The upper side and all gradients are what they were."""
    log_ratio = torch.tensor([[-30.0, 0.1, 3.0]] * 2, requires_grad=True)
    clipped = token_trust_region(log_ratio, torch.tensor([-1.0, 1.0]), epsilon_low=epsilon_low, epsilon_high=10.0)
    torch.testing.assert_close(clipped, torch.tensor([[-30.0, 0.1, 3.0], [-30.0, 0.1, math.log(11)]]))
    clipped.sum().backward()
    assert torch.equal(log_ratio.grad, torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]))


def test_a_clipped_token_stops_learning_and_the_others_go_on():
    log_ratio = torch.tensor([[0.5, 0.01]], requires_grad=True)
    clipped = token_trust_region(log_ratio, torch.tensor([1.0]), epsilon_low=0.2, epsilon_high=0.2)
    eligibility_trace(clipped, torch.ones(1, 2), decay=0.9).sum().backward()
    assert log_ratio.grad[0, 0] == 0 and log_ratio.grad[0, 1] == 1


@settings(max_examples=100, deadline=None)
@given(trace_cases(), st.sampled_from([-1.0, 1.0]), st.sampled_from(KERNELS))
def test_normalized_factors_in_their_trust_region_keep_the_ratio_in_it(case, advantage, kernel):
    """The outer clip of the loss is then inert: exp(z) stays within the bound on the side that is pushed."""
    x, mask, eligible, decay = case
    x = x.float()
    clipped = token_trust_region(x, torch.full((len(x),), advantage), epsilon_low=0.2, epsilon_high=0.28)
    z = eligibility_trace(clipped, mask, decay=decay, kernel=kernel, eligible=eligible, normalize=True)
    if advantage > 0:
        assert z.exp().max() <= 1.28 * (1 + 1e-4)
    else:
        assert z.exp().min() >= 0.8 * (1 - 1e-4)


@pytest.mark.parametrize(
    ("epsilons", "name"),
    [((-0.1, 0.2), "epsilon_low"), ((math.nan, 0.2), "epsilon_low"), ((0.2, -0.1), "epsilon_high")],
)
def test_token_trust_region_names_an_epsilon_out_of_range(epsilons, name):
    with pytest.raises(ValueError, match=name):
        token_trust_region(torch.zeros(1, 2), torch.ones(1), epsilon_low=epsilons[0], epsilon_high=epsilons[1])


def test_token_trust_region_names_shapes_that_do_not_match():
    with pytest.raises(ValueError, match=r"advantages must be .* got \(3, 1\) and \(2, 4\)"):
        token_trust_region(torch.zeros(2, 4), torch.ones(3), epsilon_low=0.2, epsilon_high=0.2)
