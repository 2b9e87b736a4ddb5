"""Tell a user of traced ratios once, when the trainer is built, what flat or noisy metrics would show much later."""

from collections.abc import Iterator

import torch

from .config import TraceConfig


def notices(args: TraceConfig, model: torch.nn.Module) -> Iterator[str]:
    """Yield what is to be said of a configuration: what the trace replaces, that it does nothing or amplifies noise.

    Args:
        args: the configuration, as the trainer has it.
        model: the model, as the trainer has wrapped it (PEFT adapters included).
    """
    if args.replaces_ratio:
        yield (
            "importance_sampling_level='sequence' (GSPO) gives all tokens of a completion one ratio, whose place the "
            f"trace takes: this run is the one with 'token'. epsilon={args.epsilon} and epsilon_high="
            f"{args.epsilon_high} bound tokens here, for which GRPO's value is 0.2; GSPO's 3e-4 is for its own ratio."
        )
    if args.trace_target == "advantage" or args.keeps_own_ratio:
        return
    generate_every = args.steps_per_generation * args.num_iterations  # type: ignore[operator]  # GRPOConfig sets it
    on_policy = args.gradient_accumulation_steps % generate_every == 0
    # TRL computes old log-probabilities where a batch is used for several steps, and always under vLLM's correction.
    corrected = args.use_vllm and args.vllm_importance_sampling_correction
    effect = "The traces act through the gradient alone."
    if args.trace_gradient == "own":
        effect = "With trace_gradient='own' the traces then do nothing: eligible tokens train as under GRPO."
    if args.loss_type == "cispo":
        yield (
            "loss_type='cispo' stops the gradient through the ratio: the trace reweights tokens where ratios differ "
            "from 1, and on policy it does nothing. Use trace_target='advantage' for credit under this loss "
            "(trace_normalize=False and trust_region='trace' with it)."
        )
    elif on_policy and corrected:
        yield (
            "Importance ratios will differ from 1 by numerical noise alone, more of it in 16-bit: each batch of "
            "completions is used for one optimizer step (num_iterations=1, generation aligned with the step), and TRL "
            "computes its old log-probabilities anew with the same weights, since "
            f"vllm_importance_sampling_correction=True. {effect} Raise num_iterations or "
            "steps_per_generation to train off policy."
        )
    elif on_policy:
        yield (
            "Every importance ratio will be 1, since each batch of completions is used for one optimizer step "
            f"(num_iterations=1, generation aligned with the step), and no clip ever fires. {effect} Raise "
            "num_iterations or steps_per_generation to train off policy."
        )
    remedies = dropout_remedies(model)
    if remedies and not args.trace_normalize and (corrected or not on_policy):
        yield (
            "The model has dropout, which TRL leaves on while it computes old log-probabilities, so that ratios differ "
            "from 1 by noise before anything is learned. TRL's own ratios have that noise too, but a trace that is not "
            f"normalized adds it up over tokens, and clips fire on it. Set {' and '.join(remedies)}, or "
            "trace_normalize=True, which averages it."
        )


def dropout_remedies(model: torch.nn.Module) -> list[str]:
    """Return the settings that switch off the dropout of `model`; none where it has none."""
    active = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    remedies = []
    if any("lora_dropout" in name for name in active):
        remedies.append("lora_dropout=0.0 in the LoraConfig")
    if any("lora_dropout" not in name for name in active):
        remedies.append("disable_dropout=True")
    # Attention's dropout is a function, not a module, and its rate is read from the model's config.
    if getattr(getattr(model, "config", None), "attention_dropout", 0.0):
        remedies.append("attention_dropout=0.0 in model_init_kwargs")
    return remedies
