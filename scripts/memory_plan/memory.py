"""How much memory a training process needs, as arithmetic over sizes: no model and no TRL here.

Sizes are bytes unless a name says elements or tokens. `scripts.memory_plan` reads them from the model's and the
launch's configurations. What the factors stand for, and which code they were read from:

- ZeRO: DeepSpeed 0.19's `estimate_zero2_model_states_mem_needs` and `estimate_zero3_model_states_mem_needs`, whose 18
  bytes a parameter are 2 (gradient) + 4 (its float32 copy in the step) + 4 (master weight) + 8 (Adam), beside 2 for the
  weight. Here they are kept apart, as they are not all there at the same time. Bucket sizes are DeepSpeed's defaults,
  which accelerate does not change.
- FSDP2: accelerate 1.15's `fsdp2_prepare_model`, which casts trainable weights to float32.
- DDP: one copy of the gradients in its buckets, as `gradient_as_bucket_view` is off.
- The LM head: TRL 1.16's `ChunkedLogProbFunction`, which never holds logits of the whole batch but a tile of them.
"""

from dataclasses import dataclass

GIB = 2**30
STRATEGIES = ("one", "ddp", "zero2", "zero3", "fsdp2")

ZERO_BUCKET = 500_000_000  # elements: DeepSpeed's reduce_bucket_size
ZERO3_LIVE = 1_050_000_000  # elements: its stage3_max_live_parameters and stage3_prefetch_bucket_size
ZERO_STEP_GROUP = 1_000_000_000  # elements: its sub_group_size, of which ZeRO-3 updates one at a time

HEAD_TOKENS, HEAD_VOCABULARY = 4096, 32768  # the tile of logits that TRL holds
# Without Triton, TRL writes the backward pass of a tile in torch, with seven float32 temporaries and a mask.
TORCH_TILE_BYTES = 29


@dataclass(frozen=True)
class ModelSizes:
    """Elements (tied weights once) and bytes an element as loaded, of frozen and of trainable weights."""

    frozen: int
    trainable: int
    frozen_bytes: int
    trainable_bytes: int
    block: int  # elements of the largest decoder layer
    head: int  # elements of the LM head, vocabulary times hidden size
    head_is_trained: bool
    vocabulary: int
    layers: int
    kv_elements: int  # keys and values of one token

    @property
    def total(self) -> int:
        return self.frozen + self.trainable

    @property
    def hidden(self) -> int:
        return self.head // self.vocabulary


@dataclass(frozen=True)
class Sharding:
    """How a launch spreads the states over its processes.

    `compute_bytes` is 2 under bf16 or fp16 mixed precision, and otherwise the size of a weight as loaded.
    """

    strategy: str  # one of STRATEGIES
    processes: int
    compute_bytes: int
    offload_optimizer: bool = False
    offload_weights: bool = False
    triton: bool = True  # whether TRL's kernels run in Triton: on GPUs


@dataclass(frozen=True)
class States:
    """Of one process. `step` is what the optimizer step adds to them, `host` what is offloaded to the CPU's memory."""

    weights: float
    gradients: float
    optimizer: float
    step: float
    host: float


def model_states(model: ModelSizes, sharding: Sharding) -> States:
    """Weights, gradients and Adam's states.

    ZeRO: 2 bytes a weight, 2 a gradient, 12 for float32 master weights and Adam, and in the step 4 for float32
    gradients. ZeRO-2 shards all but the weights, ZeRO-3 the weights too (of frozen ones there is nothing else).
    FSDP2 under mixed precision: 4, 4 and 8, all of them sharded. Elsewhere everything has the trainable weights' type.
    """
    n = sharding.processes
    trained = model.trainable
    if sharding.strategy in ("zero2", "zero3"):
        c = sharding.compute_bytes
        weights: float = model.total * c
        if sharding.strategy == "zero3":
            weights /= n
        gradients, optimizer, step = trained * c / n, trained * 12 / n, trained * 4 / n
        if sharding.strategy == "zero3":
            step = min(step, 4 * ZERO_STEP_GROUP)
        host = 0.0
        if sharding.offload_optimizer:
            host, gradients, optimizer, step = gradients + optimizer + step, 0.0, 0.0, 0.0
        if sharding.offload_weights:
            host, weights = host + weights, 0.0
        return States(weights, gradients, optimizer, step, host)
    trained_bytes = model.trainable_bytes
    if sharding.strategy == "fsdp2" and sharding.compute_bytes < 4:
        trained_bytes = 4
    shards = n if sharding.strategy == "fsdp2" else 1
    frozen_weights = model.frozen * model.frozen_bytes / shards
    gradients = trained * trained_bytes / shards
    return States(frozen_weights + gradients, gradients, 2 * gradients, step=0.0, host=0.0)


def reference_model(model: ModelSizes, sharding: Sharding) -> float:
    """The frozen copy that `beta` above 0 needs without LoRA. TRL shards it under ZeRO-3 and FSDP2 only."""
    loaded = model.frozen * model.frozen_bytes + model.trainable * model.trainable_bytes
    if sharding.strategy in ("zero3", "fsdp2"):
        return loaded / sharding.processes
    return loaded


def buffers(model: ModelSizes, sharding: Sharding) -> float:
    """What communication holds during forward and backward passes: gathered weights and buckets of gradients."""
    c = sharding.compute_bytes
    if sharding.strategy == "ddp":
        return model.trainable * model.trainable_bytes
    if sharding.strategy == "zero2":
        return ZERO_BUCKET * c
    if sharding.strategy == "zero3":
        # TRL gathers the LM head by itself, beyond what DeepSpeed counts as live.
        return (ZERO_BUCKET + min(model.total, ZERO3_LIVE + model.head)) * c
    if sharding.strategy == "fsdp2":
        # A layer and the next one with their gradients; embedding and LM head.
        return (4 * model.block + 2 * model.head) * c
    return 0.0


def whole_model(model: ModelSizes, sharding: Sharding) -> float:
    """All weights at once: what ZeRO-3 gathers to generate with transformers, and to merge LoRA for vLLM."""
    return model.total * sharding.compute_bytes if sharding.strategy == "zero3" else 0.0


def lm_head(model: ModelSizes, sharding: Sharding, rows: int, sequence: int, completion: int) -> float:
    """The peak of TRL's log-probabilities in the backward pass, with the float32 gradient of the head's weight.

    With Triton only completion tokens are scored, elsewhere all of them. Compare B * T * V * 4 for float32 logits.
    """
    c = sharding.compute_bytes
    tokens = rows * (completion if sharding.triton else sequence - 1)
    tile_tokens, tile_vocabulary = min(tokens, HEAD_TOKENS), min(model.vocabulary, HEAD_VOCABULARY)
    tile = tile_tokens * HEAD_VOCABULARY * c
    if not sharding.triton:
        tile += tile_tokens * tile_vocabulary * TORCH_TILE_BYTES
    hidden = tokens * model.hidden * (c + 4)  # the scored positions and their float32 gradient
    weight = model.head * (4 + model.trainable_bytes) if model.head_is_trained else 0
    return tile + hidden + weight


def kv_elements(layers: int, kv_heads: int, head_dim: int) -> int:
    """Keys and values of one token, of attention to all tokens."""
    return 2 * layers * kv_heads * head_dim


def kv_cache(model: ModelSizes, rows: int, tokens: int, element_bytes: int) -> float:
    """Keys and values of `rows` sequences; those of one layer twice, while transformers appends to them."""
    return rows * tokens * model.kv_elements * element_bytes * (1 + 1 / model.layers)


def sampling(rows: int, vocabulary: int) -> float:
    """Logits of the last position in transformers' sampler, in float32: scores, filtered, sorted, probabilities."""
    return 4 * rows * vocabulary * 4


@dataclass(frozen=True)
class Engine:
    """vLLM in the training process: its share of the device, and what is left of it for keys and values."""

    share: float
    weights: float
    cache_tokens: int


def vllm_engine(model: ModelSizes, memory: float, utilization: float, tensor_parallel: int, overhead: float) -> Engine:
    """vLLM takes `utilization` of the device's memory: weights, `overhead` for its own passes, and the cache.

    It computes in 16 bits whatever the trained model's type.
    """
    share = utilization * memory
    weights = (model.frozen or model.total) * 2 / tensor_parallel  # LoRA is merged into the frozen weights
    cache = max(0.0, share - weights - overhead)
    return Engine(share, weights, int(cache * tensor_parallel / (2 * model.kv_elements)))
