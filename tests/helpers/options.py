"""A value of every field of TRL's `GRPOConfig` with which it acts, and a model of experts."""

import torch
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

# A value other than the default, with the company that it needs to act. `None`: the field steers an engine, a hub or a
# deprecated alias that this machine lacks; it never meets the trace, and that it is accepted is all there is to see.
WITH_KL = dict(beta=0.1)


ADAPTIVE = dict(use_adaptive_entropy=True, entropy_coef=0.05, entropy_target=9.0)


VESPO = dict(loss_type="vespo", trace_target="advantage")


OPTIONS = {
    "learning_rate": dict(learning_rate=1e-3),
    "model_init_kwargs": dict(model_init_kwargs={"dtype": "bfloat16"}),
    "trust_remote_code": dict(trust_remote_code=True),
    "router_aux_loss_coef": dict(router_aux_loss_coef=0.1),
    "disable_dropout": dict(disable_dropout=True),
    "cast_lm_head_to_fp32": dict(cast_lm_head_to_fp32=True, model_init_kwargs={"dtype": "bfloat16"}),
    "remove_unused_columns": dict(remove_unused_columns=True),
    "num_generations": dict(num_generations=8),
    "num_generations_eval": dict(num_generations_eval=2),
    "max_completion_length": dict(max_completion_length=5),
    "ds3_gather_for_generation": dict(ds3_gather_for_generation=False),
    "shuffle_dataset": dict(shuffle_dataset=False),
    "pad_to_multiple_of": dict(pad_to_multiple_of=16),
    "generation_batch_size": dict(generation_batch_size=16),
    "steps_per_generation": dict(steps_per_generation=2, num_iterations=1),
    "temperature": dict(temperature=0.7),
    "top_p": dict(top_p=0.8),
    "top_k": dict(top_k=5),
    "min_p": dict(min_p=0.1),
    "generation_kwargs": dict(generation_kwargs={"suppress_tokens": [5]}),
    "chat_template_kwargs": dict(chat_template_kwargs={"enable_thinking": False}),
    "repetition_penalty": dict(repetition_penalty=1.5),
    "cache_implementation": dict(cache_implementation="static"),
    "use_vllm": None,
    "vllm_mode": dict(vllm_mode="server"),
    "vllm_model_impl": dict(vllm_model_impl="transformers"),
    "vllm_enable_sleep_mode": dict(vllm_enable_sleep_mode=True),
    "vllm_structured_outputs_regex": dict(vllm_structured_outputs_regex="[0-9]+"),
    "vllm_server_base_url": dict(vllm_server_base_url="http://localhost:8000"),
    "vllm_server_host": dict(vllm_server_host="localhost"),
    "vllm_server_port": dict(vllm_server_port=8001),
    "vllm_server_timeout": dict(vllm_server_timeout=1.0),
    "vllm_group_port": dict(vllm_group_port=51217),
    "vllm_gpu_memory_utilization": dict(vllm_gpu_memory_utilization=0.5),
    "vllm_max_model_length": dict(vllm_max_model_length=64),
    "vllm_tensor_parallel_size": dict(vllm_tensor_parallel_size=2),
    "beta": WITH_KL,
    "num_iterations": dict(num_iterations=2),
    "epsilon": dict(epsilon=0.01),
    "delta": dict(delta=1.01),
    "epsilon_high": dict(epsilon_high=0.01),
    "sapo_temperature_neg": dict(loss_type="sapo", sapo_temperature_neg=2.0),
    "sapo_temperature_pos": dict(loss_type="sapo", sapo_temperature_pos=2.0),
    "vespo_k_pos": VESPO | dict(vespo_k_pos=1.0),
    "vespo_lambda_pos": VESPO | dict(vespo_lambda_pos=1.0),
    "vespo_k_neg": VESPO | dict(vespo_k_neg=1.0),
    "vespo_lambda_neg": VESPO | dict(vespo_lambda_neg=1.0),
    "importance_sampling_level": dict(importance_sampling_level="token"),
    "reward_weights": dict(reward_weights=[2.0], scale_rewards="none"),
    "multi_objective_aggregation": dict(multi_objective_aggregation="normalize_then_sum"),
    "scale_rewards": dict(scale_rewards="none"),
    "loss_type": dict(loss_type="dr_grpo"),
    "mask_truncated_completions": dict(mask_truncated_completions=True, max_completion_length=9),
    "sync_ref_model": WITH_KL | dict(sync_ref_model=True, ref_model_sync_steps=1),
    "ref_model_mixup_alpha": WITH_KL | dict(sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=0.1),
    "ref_model_sync_steps": WITH_KL | dict(sync_ref_model=True, ref_model_sync_steps=2),
    "top_entropy_quantile": dict(top_entropy_quantile=0.4),
    "entropy_coef": dict(entropy_coef=0.05),
    "use_adaptive_entropy": ADAPTIVE,
    "entropy_coef_min": ADAPTIVE | dict(entropy_target=0.1, entropy_coef_min=0.049),
    "entropy_coef_max": ADAPTIVE | dict(entropy_coef_max=0.051),
    "entropy_coef_delta": ADAPTIVE | dict(entropy_coef_delta=0.1),
    "entropy_target": ADAPTIVE | dict(entropy_target=2.0),
    "max_tool_calling_iterations": dict(max_tool_calling_iterations=1),
    "vllm_importance_sampling_correction": dict(vllm_importance_sampling_correction=False),
    "vllm_importance_sampling_mode": dict(vllm_importance_sampling_mode="token_mask"),
    "vllm_importance_sampling_clip_max": dict(vllm_importance_sampling_clip_max=2.0),
    "vllm_importance_sampling_clip_min": dict(vllm_importance_sampling_clip_min=0.1),
    "off_policy_mask_threshold": dict(off_policy_mask_threshold=1e-4),
    "use_bias_correction_kl": WITH_KL | dict(use_bias_correction_kl=False),
    "log_completions": dict(log_completions=True),
    "log_multimodal": dict(log_multimodal=False),
    "num_completions_to_print": dict(log_completions=True, num_completions_to_print=1),
    "log_unique_prompts": dict(log_completions=True, log_unique_prompts=True),
    "log_completions_hub_repo": None,
    "use_transformers_continuous_batching": None,
    "transformers_continuous_batching_config": dict(transformers_continuous_batching_config={"block_size": 32}),
    "use_transformers_paged": None,
    "vllm_importance_sampling_cap": dict(vllm_importance_sampling_cap=2.0),
}


# Fields of the Trainer that change how the loss is computed or accumulated.
TRAINER_OPTIONS = {
    "gradient_accumulation_steps": dict(gradient_accumulation_steps=2),
    "gradient_checkpointing": dict(gradient_checkpointing=True),
    "bf16": dict(bf16=True),
}


def experts(tiny_model, tmp_path):
    """A mixin that trains a small model of experts instead of the one that it is given."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    path = str(tmp_path / "experts")
    Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            moe_intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=64,
            initializer_range=0.3,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    ).save_pretrained(path)
    tokenizer.save_pretrained(path)

    class OnExperts:
        def __init__(self, model, *args, **kwargs):
            super().__init__(path, *args, **kwargs)

    return OnExperts
