"""The slopes of the soak: known lines are found, what is flat is not called growing, and the warm-up does not count."""

import numpy as np
import pytest

from benchmarks.soak.run import BLOCK, WARMUP_BLOCKS, slope_interval, slopes


def test_the_slope_of_a_line_is_exact():
    assert slope_interval([3.0 + 0.5 * x for x in range(18)]) == pytest.approx((0.5, 0.5, 0.5))
    assert slope_interval([7.0] * 18) == pytest.approx((0, 0, 0), abs=1e-12)


def test_intervals_cover_the_slope_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        estimate, low, high = slope_interval(list(0.3 * np.arange(18) + rng.normal(size=18)))
        assert low <= estimate <= high
        covered += low <= 0.3 <= high
    assert 0.85 <= covered / 200 <= 0.99  # the percentile bootstrap of 18 points is a little too narrow


def test_slopes_are_per_thousand_steps_after_the_warm_up():
    grows = [500.0] * WARMUP_BLOCKS + [600 + 2.0 * block for block in range(18)]  # 2 MiB in a block
    seconds = [9.0] * WARMUP_BLOCKS + [0.1] * 9 + [0.3] * 9
    result = {"blocks": {"resident_memory": grows, "cpu_seconds": seconds}}
    trend = slopes(result)
    assert trend["resident_memory"] == pytest.approx([2 * 1000 / BLOCK] * 3)
    # Of 0, ..., 17 the squared distances from the middle add up to 484.5, the later half's distances to 40.5.
    per_block, mean = 0.2 * 40.5 / 484.5, 0.2
    assert trend["cpu_seconds"][0] == pytest.approx(per_block / mean * 1000 / BLOCK, abs=1e-4)
