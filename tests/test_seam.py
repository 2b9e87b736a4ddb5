"""What the trace trainers lean on inside TRL. A failure names what moved: read TRL's change before this test."""

import inspect

from trl import GRPOTrainer

from credit_trl import GRPOLambdaConfig, GRPOLambdaTrainer

MOVED = "TRL moved the seam of credit_trl/trace_trainer.py: "
VISION = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


class Recorded(dict):
    """A dict that writes down the order in which its keys are read."""

    def __init__(self, values, events):
        super().__init__(values)
        self.events = events

    def __getitem__(self, key):
        self.events.append(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.events.append(key)
        return super().get(key, default)


def test_the_loss_reads_old_log_probabilities_and_advantages_after_the_forward_pass(run):
    events = []

    class Spy(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            events.append("loss")
            return super()._compute_loss(model, Recorded(inputs, events))

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            events.append("forward")
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    run(Spy, num_iterations=2, max_steps=1, off_policy_mask_threshold=1.0)
    assert "loss" in events, MOVED + "`compute_loss` no longer calls `_compute_loss`"
    of_the_loss = events[events.index("loss") + 1 :]
    assert of_the_loss.count("forward") == 1, (
        MOVED + "`_compute_loss` must ask `_get_per_token_logps_and_entropies` exactly once, "
        f"it asked {of_the_loss.count('forward')} times"
    )
    before = of_the_loss[: of_the_loss.index("forward")]
    after = of_the_loss[of_the_loss.index("forward") :]
    for key in ("old_per_token_logps", "advantages", "sampling_per_token_logps"):
        assert key in after, MOVED + f"`_compute_loss` no longer reads inputs[{key!r}]"
        assert key not in before, MOVED + f"`_compute_loss` reads inputs[{key!r}] before the forward pass"


def test_the_loss_asks_for_entropies_and_gets_three_values(run):
    seen = []

    class Spy(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if kwargs.get("compute_entropy"):
                seen.append(output)
            return output

    run(Spy, max_steps=1)
    assert seen, MOVED + "`_compute_loss` no longer asks for entropies (`compute_entropy=True`)"
    assert len(seen[0]) == 3, MOVED + "`_get_per_token_logps_and_entropies` no longer returns (logps, entropies, aux)"
    logps, entropies, _ = seen[0]
    assert logps.shape == entropies.shape and logps.dim() == 2, MOVED + "log-probabilities are no longer (B, T)"


def test_the_entropy_mask_takes_a_quantile_of_the_masked_tokens():
    parameters = list(inspect.signature(GRPOTrainer.get_high_entropy_mask).parameters)
    assert parameters == ["self", "entropies", "mask", "threshold"], MOVED + "`get_high_entropy_mask` changed"


def test_vision_arguments_reach_the_forward_pass(run, monkeypatch):
    """The trainers hand on whatever TRL puts into the inputs of the loss."""
    seen = []
    original = GRPOTrainer._get_per_token_logps_and_entropies

    def spy(self, *args, **kwargs):
        if kwargs.get("compute_entropy"):
            seen.append({name: kwargs.pop(name, None) for name in VISION})
        return original(self, *args, **kwargs)

    class WithVision(GRPOLambdaTrainer):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, dict(inputs) | {name: f"the {name}" for name in VISION})

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", spy)
    run(WithVision, GRPOLambdaConfig, max_steps=1)
    assert seen == [{name: f"the {name}" for name in VISION}]
