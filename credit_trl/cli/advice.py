"""What to do about errors of TRL, transformers and datasets whose messages say what is wrong and not how to mend it.

The scripts add the advice to their one line. Each key is a piece of the message as its library writes it.
"""

ADVICE = {
    "Your setup doesn't support bf16/gpu": (
        "For a CPU: --use_cpu true --bf16 false --use_vllm false, with a small model. For a GPU older than Ampere: "
        "--bf16 false --fp16 true"
    ),
    "must be divisible by num_generations": (
        "It is per_device_train_batch_size x steps_per_generation x processes: set these or num_generations so that "
        "whole groups fit"
    ),
    "Please check the target modules and try again": (
        "They are names of the model's linear layers, such as q_proj; all-linear takes all of them"
    ),
    "We couldn't connect to": "Without a network, give the folder of a model that is here",
    "Couldn't reach": "Without a network, give a local .jsonl, .json or .parquet file",
    "JSON parse error": "Rows are counted from 0",
    "codec can't decode": "It is no UTF-8 text: save it as UTF-8",
    "corresponds to no data": "There is no row in this split",
}


def advised(message: str) -> str:
    """Return `message`, with what to do about it where `ADVICE` knows."""
    for piece, advice in ADVICE.items():
        if piece in message:
            return f"{message.rstrip().rstrip('.!')}. {advice}"
    return message
