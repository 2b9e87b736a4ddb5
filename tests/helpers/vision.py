"""A tiny Qwen2.5-VL with the testbed's tokens, its processor, and data with images: no download, no torchvision."""

import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from scripts.pretrain_testbed import build_tokenizer

START, PATCH, END, VIDEO = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"
TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}" + START + PATCH + END + "{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


class Processor(Qwen2_5_VLProcessor):
    """Process images with PIL alone; the class of transformers asks for torchvision, since it takes videos too."""

    def __init__(self, tokenizer):
        self.tokenizer, self.chat_template, self.video_processor = tokenizer, TEMPLATE, None
        self.image_processor = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56)  # 4 tokens an image
        self.image_token, self.video_token = PATCH, VIDEO
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([PATCH, VIDEO])


def save_vision_model(path: str) -> str:
    """Write a random model that sees, and its tokenizer, to `path`, and return it."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [START, PATCH, END, VIDEO]})
    start, patch, end, video = tokenizer.convert_tokens_to_ids([START, PATCH, END, VIDEO])
    torch.manual_seed(0)
    text = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.3,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 3, 3]),
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(
        depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32, fullatt_block_indexes=[0],
        initializer_range=0.3,
    )  # fmt: skip
    ids = dict(image_token_id=patch, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def load_vision_model(path: str) -> tuple[Qwen2_5_VLForConditionalGeneration, Processor]:
    """Return the model of `path` and its processor."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(path), Processor(AutoTokenizer.from_pretrained(path))


def image(color: str) -> Image.Image:
    return Image.new("RGB", (56, 56), color)


def seen_data(**columns: list) -> Dataset:
    """Return chat prompts, two of which differ by their images alone."""
    prompts = [[{"role": "user", "content": text}] for text in ("1+2:", "1+2:", "16-0+7:", "9*9:")]
    colors = ("red", "blue", "green", "white")
    return Dataset.from_dict({"prompt": prompts, "image": [image(color) for color in colors]} | columns)


# What a random model would write at times, and a trained one does not: an image token without an image.
NO_IMAGE_TOKENS = dict(generation_kwargs=dict(suppress_tokens=[32, 33, 34, 35]))
