"""Learning curves."""

import pytest
from matplotlib.image import imread

from credit_trl.visualization.curves import RewardProgress, learning_curve, smoothed


def test_smoothing_is_a_weighted_mean_of_the_past():
    # Weights 1, then (1/2, 1) / 1.5, then (1/4, 1/2, 1) / 1.75.
    assert smoothed([3.0, 0.0, 7.0], smoothing=0.5) == pytest.approx([3.0, 1.0, (0.75 + 7.0) / 1.75])
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)


def test_curve_shows_the_rewards(tmp_path):
    history = [{"step": step, "reward": step / 10, "loss": 0.0} for step in range(1, 9)]
    path = learning_curve([*history, {"step": 9, "reward": None}, {"train_runtime": 3.0, "step": 9}],
                          tmp_path / "deep" / "curve.png")  # fmt: skip
    picture = imread(path)
    is_blue = picture[..., 2] - picture[..., 0] > 0.3
    left, right = is_blue[:, : picture.shape[1] // 3], is_blue[:, 2 * picture.shape[1] // 3 :]
    # Rewards rise, so the curve stands lower in the left part of the picture (row numbers grow downwards).
    assert left.nonzero()[0].max() > right.nonzero()[0].max()


def test_no_reward_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no `reward`"):
        learning_curve([{"step": 1, "loss": 0.5}], tmp_path / "curve.png")


def test_the_bar_shows_the_last_reward_that_there_was():
    class Bar:
        def set_postfix(self, **values):
            vars(self).update(values)

    progress = RewardProgress()
    progress.training_bar = bar = Bar()
    for reward in (0.25, None):  # the second time no reward function scored anything
        progress.on_log(None, None, None, logs={"reward": reward})
    progress.on_log(None, None, None, logs={"train_runtime": 3.0})
    assert bar.reward == "0.250"
