"""Two training runs compared to the bit."""

import torch

TIMES = ("time", "runtime", "per_second", "flos")


def same_log(actual, expected, *, but=(), added="trace/"):
    """Every figure that TRL logs is equal to the bit; ours come on top."""
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        for name, value in theirs.items():
            if name not in but and not any(word in name for word in TIMES):
                assert ours[name] == value, name
        assert all(name.startswith(added) for name in ours.keys() - theirs.keys())


def same_weights(actual, expected):
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def largest_difference(actual, expected):
    return max((actual[name] - value).abs().max().item() for name, value in expected.items())
