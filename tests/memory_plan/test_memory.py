"""The planner's arithmetic against numbers worked out by hand, and against what TRL's LM head really holds."""

import pytest
import torch
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from scripts.memory_plan import memory
from scripts.memory_plan.fake_model import LiveBytes
from scripts.memory_plan.memory import (
    GIB,
    ModelSizes,
    Sharding,
    buffers,
    kv_cache,
    kv_elements,
    lm_head,
    model_states,
    reference_model,
    vllm_engine,
    whole_model,
)

# Qwen3-8B, from its published configuration: 36 layers, hidden size 4096, 32 heads of 128 with 8 for keys and values,
# MLPs of 12288, 151936 tokens, LM head of its own.
ATTENTION = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 2 * 128  # query and output; key and value; their norms
BLOCK = ATTENTION + 3 * 4096 * 12288 + 2 * 4096
HEAD = 151936 * 4096
PARAMETERS = 36 * BLOCK + 2 * HEAD + 4096
QWEN3_8B = ModelSizes(
    frozen=0,
    trainable=PARAMETERS,
    frozen_bytes=0,
    trainable_bytes=2,
    block=BLOCK,
    head=HEAD,
    head_is_trained=True,
    vocabulary=151936,
    layers=36,
    kv_elements=73728,
)
LORA = ModelSizes(
    frozen=8_000_000_000,
    trainable=100_000_000,
    frozen_bytes=2,
    trainable_bytes=4,
    block=BLOCK,
    head=HEAD,
    head_is_trained=False,
    vocabulary=151936,
    layers=36,
    kv_elements=73728,
)


def sharding(strategy: str, processes: int = 8, **options) -> Sharding:
    return Sharding(strategy, processes, compute_bytes=2, **options)


def test_qwen3_8b_has_its_published_size():
    assert PARAMETERS == 8_190_735_360


def test_zero3_states_of_qwen3_8b_on_8_gpus():
    states = model_states(QWEN3_8B, sharding("zero3"))
    assert states.weights == 2 * 8_190_735_360 / 8  # 1.91 GiB
    assert states.gradients == 2 * 8_190_735_360 / 8
    assert states.optimizer == 12 * 8_190_735_360 / 8  # master weights 4, Adam 8: 11.44 GiB
    assert states.step == 4 * 1_000_000_000  # float32 gradients of one group of 10^9, and a shard has 1.02 * 10^9
    assert model_states(QWEN3_8B, sharding("zero3", 16)).step == 4 * 8_190_735_360 / 16
    assert states.host == 0


def test_zero2_keeps_whole_weights_and_shards_the_rest():
    states = model_states(QWEN3_8B, sharding("zero2"))
    assert states.weights == 16_381_470_720
    # DeepSpeed's own estimate is 2 + 18/N bytes a parameter.
    assert states.weights + states.gradients + states.optimizer + states.step == PARAMETERS * (2 + 18 / 8)


def test_offload_moves_states_to_the_host():
    everything = model_states(QWEN3_8B, sharding("zero3", offload_optimizer=True, offload_weights=True))
    assert (everything.weights, everything.gradients, everything.optimizer, everything.step) == (0, 0, 0, 0)
    assert everything.host == (2 + 2 + 12) * PARAMETERS / 8 + 4 * 1_000_000_000
    optimizer = model_states(QWEN3_8B, sharding("zero2", offload_optimizer=True))
    assert optimizer.weights == 2 * PARAMETERS
    assert optimizer.host == 18 * PARAMETERS / 8


def test_fsdp2_trains_float32_shards():
    states = model_states(QWEN3_8B, sharding("fsdp2"))
    assert (states.weights, states.gradients, states.optimizer) == (
        4 * PARAMETERS / 8,
        4 * PARAMETERS / 8,
        8 * PARAMETERS / 8,
    )
    # Without mixed precision nothing is cast: a float32 model stays at 4 bytes, and so would a 16-bit one at 2.
    frozen = model_states(LORA, sharding("fsdp2"))
    assert frozen.weights == (8_000_000_000 * 2 + 100_000_000 * 4) / 8


def test_one_process_and_ddp_hold_everything_in_the_weights_type():
    states = model_states(QWEN3_8B, sharding("one", 1))
    assert (states.weights, states.gradients, states.optimizer) == (2 * PARAMETERS, 2 * PARAMETERS, 4 * PARAMETERS)
    assert model_states(QWEN3_8B, sharding("ddp")) == states
    assert buffers(QWEN3_8B, sharding("ddp")) == 2 * PARAMETERS  # DDP's buckets
    assert buffers(QWEN3_8B, sharding("one", 1)) == 0
    lora = model_states(LORA, sharding("ddp"))
    assert (lora.weights, lora.gradients, lora.optimizer) == (16.4e9, 0.4e9, 0.8e9)


def test_frozen_weights_have_no_gradients_under_zero():
    states = model_states(LORA, sharding("zero3"))
    assert states.weights == 2 * 8_100_000_000 / 8
    assert states.gradients == 2 * 100_000_000 / 8
    assert states.optimizer == 12 * 100_000_000 / 8


def test_the_reference_model_is_sharded_only_where_trl_shards_it():
    sizes = {name: reference_model(QWEN3_8B, sharding(name)) for name in ("one", "ddp", "zero2", "zero3", "fsdp2")}
    whole, shard = 2 * PARAMETERS, 2 * PARAMETERS / 8
    assert sizes == {"one": whole, "ddp": whole, "zero2": whole, "zero3": shard, "fsdp2": shard}


def test_communication_buffers():
    assert buffers(QWEN3_8B, sharding("zero2")) == 1_000_000_000  # one bucket of 5 * 10^8 elements
    assert buffers(QWEN3_8B, sharding("zero3")) == 2 * (500_000_000 + 1_050_000_000 + HEAD)
    assert buffers(QWEN3_8B, sharding("fsdp2")) == 2 * (4 * BLOCK + 2 * HEAD)
    assert whole_model(QWEN3_8B, sharding("zero3")) == 2 * PARAMETERS
    assert whole_model(QWEN3_8B, sharding("zero2")) == 0  # it is there anyway


def test_lm_head_of_qwen3_8b_is_far_below_its_logits():
    # 4 rows of 2048 completion tokens, of 2560: a bfloat16 tile of 4096 x 32768, the scored positions in bfloat16 with
    # their float32 gradient, and the weight's gradient in float32 with its bfloat16 copy.
    expected = 4096 * 32768 * 2 + 4 * 2048 * 4096 * 6 + HEAD * 6
    assert lm_head(QWEN3_8B, sharding("zero3"), rows=4, sequence=2560, completion=2048) == expected
    assert expected < 4 * 2560 * 151936 * 4  # float32 logits
    frozen = lm_head(LORA, sharding("zero3"), rows=4, sequence=2560, completion=2048)
    assert frozen == expected - HEAD * 6


def test_the_lm_heads_tiles_are_trls():
    assert chunked_logprob.TOKEN_CHUNK_SIZE == memory.HEAD_TOKENS
    assert trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE == memory.HEAD_VOCABULARY


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1000, 40_000), (5000, 1000), (300, 50_000)])
def test_lm_head_is_what_trl_holds(tokens, vocabulary, trained):
    hidden = 64
    head = torch.nn.Parameter(torch.randn(vocabulary, hidden), requires_grad=trained)
    states = torch.randn(tokens, hidden, requires_grad=True)
    model = ModelSizes(0, head.numel(), 0, 4, 0, head.numel(), trained, vocabulary, 1, 0)
    with LiveBytes() as live:
        # TRL passes the hidden states of all positions but the last on, in a copy.
        outputs = chunked_logprob.ChunkedLogProbFunction.apply(
            states.clone(), head, None, torch.zeros(tokens, dtype=torch.long), 1.0, memory.HEAD_VOCABULARY,
            None, 1.0, ("log_probs",),
        )  # fmt: skip
        outputs[0].sum().backward()
    expected = lm_head(
        model, Sharding("one", 1, compute_bytes=4, triton=False), rows=1, sequence=tokens + 1, completion=tokens
    )
    assert 0.95 < expected / live.peak < 1.1


def test_kv_cache():
    # Keys and values, 36 layers, 8 heads of 128; in 2 bytes 144 KiB a token.
    assert kv_elements(36, 8, 128) == 73728
    assert kv_cache(QWEN3_8B, rows=8, tokens=4096, element_bytes=2) == pytest.approx(4.5 * GIB * 37 / 36)


def test_vllm_caches_what_its_share_leaves():
    engine = vllm_engine(QWEN3_8B, 80 * GIB, utilization=0.3, tensor_parallel=1, overhead=2 * GIB)
    assert engine.share == pytest.approx(24 * GIB)
    assert engine.weights == 2 * PARAMETERS
    assert engine.cache_tokens == int((engine.share - 2 * GIB - 2 * PARAMETERS) / 147456)
    halved = vllm_engine(QWEN3_8B, 80 * GIB, utilization=0.3, tensor_parallel=2, overhead=2 * GIB)
    assert halved.weights == PARAMETERS
    # Two GPUs cache for one engine.
    assert halved.cache_tokens == int((engine.share - 2 * GIB - PARAMETERS) * 2 / 147456)
    small = vllm_engine(QWEN3_8B, 80 * GIB, utilization=0.2, tensor_parallel=1, overhead=2 * GIB)
    assert small.cache_tokens == 0
    assert vllm_engine(LORA, 80 * GIB, 0.3, 1, 0).weights == 2 * 8_000_000_000  # adapters are merged into these
