"""Pictures of credit: what is drawn, that it can be read in both themes, and that text of a model stays text."""

import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.integrations import TensorBoardCallback
from trl import GRPOConfig, GRPOTrainer

from credit_trl import (
    Continuation,
    CreditHeatmapCallback,
    GRPOLambdaConfig,
    GRPOLambdaTrainer,
    Picture,
    SRPOConfig,
    SRPOTrainer,
    STraceConfig,
    STraceTrainer,
    credit_heatmap,
    reset_tree,
    token_credit,
    token_texts,
)
from credit_trl.resets import CompletionRecord, Reset, SeedRecord
from credit_trl.visualization.callback import reset_trees
from credit_trl.visualization.completion_credit import CompletionCredit, full_color
from credit_trl.visualization.page import LEVELS, level, palette, visible
from credit_trl.visualization.raster import COLUMNS, MAX_LINES, heatmap_image
from tests.helpers.training import QUIET_ON_CPU

HOSTILE = '<script>alert(\'1\')</script>"><img src=x onerror="alert(2)">&amp;'


class Page(HTMLParser):
    """The tags of a page, its tokens (class, tooltip, text), and the text of every other element by class."""

    def __init__(self, picture):
        super().__init__()
        self.tags, self.tokens, self.texts, self.open = [], [], [], []
        self.html = picture.html
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag in ("br", "wbr", "meta"):
            return
        names = (attributes.get("class") or tag).split()
        self.open.append(names)
        if "token" in names:
            self.tokens.append([names[-1], attributes["title"], ""])
        self.texts.append([names, ""])

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        if self.open and "token" in self.open[-1]:
            self.tokens[-1][2] += data
        elif self.texts:
            self.texts[-1][1] += data

    def text_of(self, name):
        return [text for names, text in self.texts if name in names]


# --- colors ---


def relative_luminance(color: str) -> float:
    """WCAG 2.2, from `#rrggbb`."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((relative_luminance(one), relative_luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_wcags():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_on_every_background(theme):
    colors = palette(theme)
    backgrounds = ["page", *(f"{scale}{number}" for scale in "npw" for number in range(1, LEVELS + 1))]
    for name in backgrounds:
        assert contrast(colors["text"], colors[name]) >= 4.5, name
    for name in ("page", "masked", "stripe"):
        assert contrast(colors["note"], colors[name]) >= 4.5, name


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_larger_value_stands_out_more_from_the_page(theme):
    colors = palette(theme)
    for scale in "npw":
        ratios = [contrast(colors["page"], colors[f"{scale}{number}"]) for number in range(1, LEVELS + 1)]
        assert ratios == sorted(ratios) and ratios[0] > 1 and ratios[-1] > 1.9


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_signs_differ_without_red_or_green_cones(theme):
    """Protanopia and deuteranopia leave blue against yellow: the difference of blue and the mean of red and green."""

    def blue_yellow(color):
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        return blue - (red + green) / 2

    colors = palette(theme)
    for number in range(LEVELS // 2, LEVELS + 1):
        negative, positive = blue_yellow(colors[f"n{number}"]), blue_yellow(colors[f"p{number}"])
        assert positive - negative > 80 * number / LEVELS


def test_levels_are_the_nearest_ones():
    for value, name in [(0.0, "page"), (0.04, "page"), (0.06, "p1"), (-0.5, "n5"), (1.0, "p10"), (-7.0, "n10")]:
        assert level(value, 1.0, signed=True) == name
    assert level(0.5, 2.0, signed=False) == "w2"
    assert level(0.0, 0.0, signed=True) == "page"
    assert level(float("nan"), 1.0, signed=True) == level(float("-inf"), 1.0, signed=True) == "not-finite"


# --- heatmap ---


def test_heatmap_colors_every_method_on_its_own_scale():
    credit = {"GRPO": [-1.0, -1.0, -1.0], "trace": torch.tensor([4.0, 2.0, -1.0])}
    page = Page(credit_heatmap(["a", "b", "c"], credit, details={"entropy": [0.5, 0.25, 0.0]}))
    assert [kind for kind, _, _ in page.tokens] == ["n10", "n10", "n10", "p10", "p5", "n2"]
    assert page.tokens[4][1] == "token 1: 'b'\ncredit 2\nentropy 0.25"
    assert page.text_of("figcaption") == ["GRPO", "trace"]
    html = credit_heatmap(["a", "b", "c"], credit).html
    assert "credit −1<" in html and ">+1<" in html and "credit −4<" in html and ">+4<" in html


def test_a_given_limit_is_shared_and_values_beyond_it_keep_their_number():
    page = Page(credit_heatmap(["a", "b"], {"one": [0.5, 9.25], "other": [1.0, -0.2]}, limit=1.0))
    assert [kind for kind, _, _ in page.tokens] == ["p5", "p10", "p10", "n2"]
    assert "credit 9.25" in page.tokens[1][1]


def test_masked_tokens_have_no_credit_and_do_not_set_the_scale():
    credit = {"GRPO": [100.0, 1.0, 2.0], "SRPO": [100.0, 1.0, 2.0]}
    mask = {"GRPO": [1, 1, 1], "SRPO": torch.tensor([0, 1, 1])}
    picture = credit_heatmap(["a", "b", "c"], credit, mask=mask, marks={1: "reset"})
    page = Page(picture)
    assert [kind for kind, _, _ in page.tokens] == ["p10", "page", "page", "masked", "p5", "p10"]
    assert page.tokens[3][1] == "token 0: 'a'\nnot trained"
    assert page.text_of("mark") == ["reset", "reset"]
    assert picture.html.count("</i>not trained") == 1  # in the legend of SRPO alone
    assert re.search(r'title="[^"]*">a</span><b class="mark">reset</b><wbr><span class="token p5"', picture.html)


def test_weights_have_a_scale_of_one_sign():
    page = Page(credit_heatmap(["a", "b"], [0.0, 3.0], signed=False, unit="weight"))
    assert [kind for kind, _, _ in page.tokens] == ["page", "w10"] and page.tokens[1][1].endswith("\nweight 3")
    with pytest.raises(ValueError, match="negative values: draw them with signed=True"):
        credit_heatmap(["a"], [-1.0], signed=False)


def test_values_that_are_not_finite_are_marked_and_do_not_set_the_scale():
    page = Page(credit_heatmap(["a", "b", "c"], [float("nan"), 2.0, float("inf")]))
    assert [kind for kind, _, _ in page.tokens] == ["not-finite", "p10", "not-finite"]
    assert "credit nan" in page.tokens[0][1]


def test_white_space_and_control_characters_are_visible():
    tokens = [" a", "\n\n", "\t", "\r", "‮b", "​", "", "é漢🙂", "<|im_end|>"]
    page = Page(credit_heatmap(tokens, [1.0] * len(tokens)))
    shown = ["·a", "↵↵", "⇥", "\\r", "\\u202eb", "\\u200b", "◌", "é漢🙂", "<|im_end|>"]
    assert [text for _, _, text in page.tokens] == shown
    assert "‮" not in credit_heatmap(tokens, [1.0] * len(tokens)).html
    assert sum(tag == "br" for tag, _ in page.tags) == 1


@pytest.mark.parametrize("tokens", [["a", "\n\n", "b\n"], ["a", "\n", "\n", "b", "\n"], ["a\n\nb", "\n"]])
def test_lines_break_after_the_last_of_several_line_breaks(tokens):
    body = credit_heatmap(tokens, [1.0] * len(tokens)).body
    text = body[body.index('class="text"') :].partition(">")[2]
    assert re.sub(r"<(?!br)[^>]*>", "", text).strip() == "a↵↵<br>b↵"


def test_outlined_tokens_are_followed_by_their_label():
    picture = credit_heatmap(["a", "b", "c"], [1.0, -2.0, 0.0], outlined={1: "wrong"})
    assert re.search(r'class="token outlined n10" title="[^"]*">b</span><b class="mark">wrong</b><wbr>', picture.html)
    assert picture.html.count('class="token outlined') == 1


def test_numbers_stand_below_tokens_that_have_a_color():
    credit, mask = [-3.21, 0.0, 100.0, 2.0, float("nan")], [1, 1, 0, 1, 1]
    page = Page(credit_heatmap(list("abcde"), credit, mask=mask, numbers=True))
    assert [number.strip() for number in page.text_of("number")] == ["−3.2", "", "", "+2", "+nan"]
    assert [text for _, _, text in page.tokens] == list("abcde")
    assert Page(credit_heatmap(["a"], [0.5], signed=False, numbers=True)).text_of("number")[0].strip() == "0.5"
    assert not Page(credit_heatmap(["a"], [0.5])).text_of("number")


def test_methods_may_be_drawn_on_completions_of_their_own():
    picture = credit_heatmap(
        {"GRPO": ["a", "b"], "SRPO": ["a", "x", "y"]},
        {"GRPO": [1.0, -1.0], "SRPO": [9.0, 0.5, 0.25]},
        mask={"GRPO": [1, 1], "SRPO": [0, 1, 1]},
        marks={"SRPO": {1: "reset"}},
        outlined={"GRPO": {1: "wrong"}, "SRPO": {2: "right"}},
        limit=1.0,
    )
    page = Page(picture)
    assert [token[::2] for token in page.tokens] == [
        ["p10", "a"], ["n10", "b"], ["masked", "a"], ["p5", "x"], ["p2", "y"]
    ]  # fmt: skip
    assert [label.strip() for label in page.text_of("mark")] == ["wrong", "reset", "right"]
    # One scale for both, above them.
    assert len(page.text_of("legend")) == 1 and picture.body.index("legend") < picture.body.index("<figure>")


def test_short_lines_stand_side_by_side_on_a_phone():
    for line, narrow in (("x" * 20, True), ("x" * 21, False)):
        assert ('class="methods narrow"' in credit_heatmap(["a\n", line], [1.0, 1.0]).body) == narrow


@pytest.mark.parametrize(
    "picture",
    [
        credit_heatmap(
            [HOSTILE, "b"],
            {HOSTILE: [1.0, 2.0]},
            mask=[1, 0],
            marks={1: HOSTILE},
            outlined={0: HOSTILE},
            numbers=True,
            details={HOSTILE: [1.0, 2.0]},
            title=HOSTILE,
            note=HOSTILE,
            unit=HOSTILE,
        ),
        reset_tree(
            [HOSTILE, HOSTILE], 2, [Continuation(HOSTILE, 1.0, 1.0)], marks={2: HOSTILE}, title=HOSTILE, note=HOSTILE
        ),
    ],
    ids=["heatmap", "tree"],
)
def test_text_of_a_model_stays_text(picture):
    page = Page(picture)
    known = {"html", "head", "meta", "title", "style", "body", "section", "h3", "p", "div", "figure", "figcaption"}
    assert {tag for tag, _ in page.tags} <= known | {"span", "i", "b", "br", "wbr"}
    assert {name for _, attributes in page.tags for name in attributes} <= {
        *("lang", "charset", "name", "content", "class", "title")
    }
    assert page.text_of("h3") == [HOSTILE] and page.text_of("note")[0] == HOSTILE
    if page.tokens:
        assert page.tokens[0][2] == HOSTILE.replace(" ", "·") and repr(HOSTILE) in page.tokens[0][1]
    # Nothing is fetched from anywhere.
    assert not re.search(r"url\(|@import|https?:|(?:src|href)=[\"']", picture.html.replace("src=x", ""))


def test_a_picture_shows_itself_in_a_notebook_and_saves_a_page(tmp_path):
    picture = credit_heatmap(["naïve 漢"], [1.0], title="Credit")
    assert picture._repr_html_() in picture.html and "<html" not in picture._repr_html_()
    assert "prefers-color-scheme:dark" in picture._repr_html_()
    path = picture.save(tmp_path / "deep" / "credit.html")
    assert path.read_text(encoding="utf-8") == picture.html


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(credit=[1.0]), "credit has 1 values for 2 tokens"),
        (dict(credit={"GRPO": [1.0] * 3}), "GRPO has 3 values for 2 tokens"),
        (dict(credit=[1.0, 2.0], mask=[1]), "mask has 1 values"),
        (dict(credit=[1.0, 2.0], details={"entropy": []}), "entropy has 0 values"),
        (dict(credit=[1.0, 2.0], marks={2: "reset"}), "marks has token 2, but there are 2 tokens"),
        (dict(credit=[1.0, 2.0], outlined={-1: "wrong"}), "outlined has token -1, but there are 2 tokens"),
        (dict(credit={"GRPO": [1.0, 2.0]}, marks={"GRPO": {3: "reset"}}), "marks has token 3"),
        (
            dict(credit={"GRPO": [1.0, 2.0], "SRPO": [1.0, 2.0]}, marks={"SRP0": {1: "reset"}}),
            "marks has labels for 'SRP0', and credit has GRPO, SRPO",
        ),
        (dict(credit={"GRPO": [1.0, 2.0]}, outlined={0: "right", "grpo": {1: "wrong"}}), "outlined has .* 'grpo'"),
        (
            dict(credit=[1.0, 2.0], marks={"GRPO": {1: "reset"}}),
            "marks has labels for 'GRPO', and credit has no methods",
        ),
        (dict(credit={"GRPO": [1.0, 2.0]}, mask={"SRPO": [1, 1]}), "mask has no 'GRPO', only SRPO"),
        (dict(credit={"GRPO": [1.0, 2.0]}, tokens={"SRPO": ["a", "b"]}), "tokens has no 'GRPO', only SRPO"),
        (dict(credit=[1.0, 2.0], limit=0.0), "limit must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        credit_heatmap(**dict(tokens=["a", "b"]) | options)


# --- texts of tokens ---


def bytes_decode(ids):
    return bytes(ids).decode("utf-8", errors="replace")


def test_a_character_of_several_tokens_is_the_text_of_the_last():
    text = "né 漢🙂!"
    expected = ["n", "", "é", " ", "", "", "漢", "", "", "", "🙂", "!"]
    assert token_texts(list(text.encode()), bytes_decode) == expected


def test_a_text_that_ends_inside_a_character_or_is_no_text_is_all_there():
    for ids in (list("a漢".encode())[:-1], [65, 0xFF, 66], [0xFF] * 9):
        assert "".join(token_texts(ids, bytes_decode)) == bytes_decode(ids)
    assert token_texts([], bytes_decode) == []


def test_spaces_that_a_token_loses_when_decoded_alone_are_kept():
    pieces = [" The", " answer", " is", "\n", " 4"]

    def decode(ids):  # as sentencepiece tokenizers do
        return "".join(pieces[i] for i in ids).removeprefix(" ")

    assert token_texts(range(5), decode) == ["The", " answer", " is", "\n", " 4"]


# --- reset tree ---


def test_tree_cuts_before_the_reset_step():
    continuations = [Continuation("x=3\n\n#3", 1.0, 1.5), Continuation("x=4", 0.0, -0.75)]
    picture = reset_tree(
        ["a=1\n\n", "b=2\n\n", "c=9\n\n", "#9"], 3, continuations, reward=0.0, marks={3: "first error"}
    )
    page = Page(picture)
    plain = re.sub(r"<(?!br)[^>]*>", "", picture.body)
    kept, rest = plain.split("failed from step 3 on, reward 0: dropped")
    assert kept.endswith("kept prefix, not trained1 a=12 b=2reset to here")
    assert rest.startswith("3 first errorc=94 #9reward 1, advantage +1.5x=3<br>#3reward 0, advantage -0.75x=4")
    assert [names[-1] for names, _ in page.texts if names[0] == "head" != names[-1]] == ["page", "page", "p10", "n5"]


def test_tree_that_keeps_nothing_says_so():
    trained = reset_tree(["a", "b"], 2, [], prefix_trained=True).body
    assert "kept prefix<" in trained and "not trained" not in trained and 'class="box masked"' not in trained
    assert "nothing: reset to the beginning" in reset_tree(["a", "b"], 1, []).body
    for options in (dict(reset_step=3), dict(reset_step=0), dict(reset_step=1, marks={4: "x"})):
        with pytest.raises(ValueError, match="but the completion has 2 steps, counted from 1"):
            reset_tree(["a", "b"], continuations=[], **options)


# --- image ---


def completion(tokens, credit, mask=None):
    count = len(tokens)
    return CompletionCredit("p", tokens, credit, mask or [True] * count, [0.0] * count, [0.0] * count, 1.0)


def pixels(image, color):
    wanted = [int(palette("light")[color][i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((image == wanted).all(-1))


def test_image_has_each_tokens_color_at_its_place():
    image = heatmap_image(
        [completion(["a$b$", "\n", "c", "漢"], [2.0, 0.0, -2.0, 1.0], [True, True, True, False])], 2.0
    )
    assert image.dtype == np.uint8 and image.shape[2] == 3
    positive, negative, masked = (pixels(image, name) for name in ("p10", "n10", "masked"))
    assert len(positive) > 2.5 * len(negative) > 0  # four characters and one, less what the letters cover
    assert positive[:, 0].max() < negative[:, 0].min()  # a line above
    assert negative[:, 1].max() < masked[:, 1].min()  # to the left


def test_image_wraps_and_cuts_long_completions():
    short, long, longer = (
        heatmap_image([completion(["x" * COLUMNS] * lines, [1.0] * lines)], 1.0)
        for lines in (1, MAX_LINES + 5, 10 * MAX_LINES)
    )
    assert short.shape[0] < long.shape[0] == longer.shape[0]
    assert short.shape[1] == long.shape[1] and pixels(long, "p10")[:, 0].max() > MAX_LINES * 15


# --- credit of a configuration, and of a training step ---


@pytest.mark.parametrize("kernel", ["identity", "recent", "both", "uniform"])
@pytest.mark.parametrize("normalize", [False, True])
def test_credit_is_a_loop_over_pairs(kernel, normalize, tmp_path):
    decay, fraction = 0.5, 0.5
    mask = torch.tensor([[0, 1, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0]])
    entropies = torch.tensor([[9.0, 0.2, 0.9, 0.4, 9.0, 0.8], [0.1, 0.7, 0.3, 9.0, 9.0, 9.0]])
    advantages = torch.tensor([1.5, -2.0])
    args = STraceConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, trace_kernel=kernel, trace_lambda=decay,
        trace_normalize=normalize, trace_entropy_fraction=fraction, negative_advantage_floor=-0.5,
    )  # fmt: skip
    expected = torch.zeros(2, 6)
    eligible = (entropies >= 0.4) & mask.bool()  # four of the seven, as the median itself is one of them
    for row, advantage in enumerate([1.5, -0.5]):
        columns = [t for t in range(6) if mask[row, t]]
        for n, t in enumerate(columns):
            weights = {
                k: {
                    "identity": float(k == t),
                    "recent": decay ** (n - m) if m <= n else 0.0,
                    "both": max(decay ** (n - m), decay**m) if m <= n else 0.0,
                    "uniform": 1.0,
                }[kernel]
                for m, k in enumerate(columns)
                if eligible[row, k]
            }
            total = sum(weights.values()) if normalize else 1.0
            for k, weight in weights.items():
                expected[row, k] += advantage * weight / total if total else 0.0
    torch.testing.assert_close(token_credit(args, advantages, mask, entropies), expected)


def test_credit_needs_entropies_where_they_choose_tokens(tmp_path):
    args = STraceConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match=r"trace_entropy_fraction=0\.2 chooses tokens by entropy"):
        token_credit(args, torch.ones(1), torch.ones(1, 3))


def test_there_may_be_nothing_to_credit_and_no_gradient(tmp_path):
    """As in the last, empty rows of a batch, and in what was computed to be looked at."""
    args = STraceConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    mask, entropies = torch.tensor([[0, 1, 1], [1, 1, 1]]), torch.tensor([[0.5, 0.1, 0.9], [0.2, 0.3, 0.8]])
    advantages = torch.tensor([1.0, -1.0])
    for empty in (
        token_credit(args, advantages, 0 * mask, entropies),
        token_credit(args, advantages, mask, entropies * torch.nan),
    ):
        assert torch.equal(empty, torch.zeros(2, 3)) and empty.dtype == torch.float32
    expected = token_credit(args, advantages, mask, entropies)
    assert expected.abs().sum() > 0
    with torch.no_grad():
        assert torch.equal(token_credit(args, advantages, mask, entropies), expected)
    args.trace_entropy_fraction = 1.0
    assert token_credit(args, advantages.to("meta"), mask.to("meta")).device.type == "meta"  # where the mask is


# Every character is a step, and every failed completion is reset to its third.
THIRD_CHARACTER = dict(step_delimiter=lambda text: range(len(text)), localizer=lambda failed: [3] * len(failed))


class Recording(CreditHeatmapCallback):
    """Keeps what it has drawn and the loss's inputs."""

    drawn: list

    def _completions(self):
        found = super()._completions()
        self.drawn = [*getattr(self, "drawn", []), (found, dict(self._seen))]
        return found


def reward(completions, **kwargs):
    return [sum(character in "02468" for character in text) / 8 for text in completions]


def watched(
    trainer_class,
    config_class,
    model,
    prompts,
    tmp_path,
    *,
    trainer_options=None,
    every=1,
    max_steps=1,
    num=8,
    **options,
):
    settings = QUIET_ON_CPU | dict(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=8, num_generations=8, max_completion_length=12,
        loss_type="dapo", learning_rate=5e-3, num_iterations=2, max_steps=max_steps,
    )  # fmt: skip
    trainer = trainer_class(
        model,
        reward,
        args=config_class(**settings | options),
        train_dataset=prompts,
        **(trainer_options or {}),
    )
    callback = Recording(trainer, every=every, num_completions=num)
    trainer.add_callback(callback)
    return trainer, callback


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "options"),
    [
        (GRPOTrainer, GRPOConfig, {}),
        (STraceTrainer, STraceConfig, {}),
        (GRPOLambdaTrainer, GRPOLambdaConfig, {"trace_kernel": "both"}),
        (GRPOLambdaTrainer, GRPOLambdaConfig, {"trace_target": "advantage"}),
        (SRPOTrainer, SRPOConfig, {"trainer_options": THIRD_CHARACTER}),
    ],
)
def test_the_credit_of_a_step_is_the_configurations(
    trainer_class, config_class, options, tiny_model, prompts, tmp_path
):
    """The first step is on policy, and TRL's `dapo` loss divides all tokens by one number."""
    trainer, callback = watched(trainer_class, config_class, tiny_model, prompts, tmp_path, **options)
    trainer.train()
    [(found, seen)] = callback.drawn
    inputs = seen["inputs"]
    mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    expected = token_credit(trainer.args, inputs["advantages"], mask, seen["entropies"])
    expected = expected / expected[mask.bool()].square().mean().sqrt()
    order = inputs["advantages"].abs().argsort(descending=True, stable=True).tolist()
    assert len(found) == len(order) == 8 and len(set(inputs["advantages"].tolist())) > 1
    for one, row in zip(found, order, strict=True):
        length = int(inputs["completion_mask"][row].sum())
        assert one.credit == pytest.approx(expected[row, :length].tolist(), rel=1e-3, abs=1e-5)
        assert one.mask == mask[row, :length].bool().tolist()
        assert "".join(one.tokens) == trainer._tokenizer.decode(inputs["completion_ids"][row, :length])


def written(tmp_path, step):
    return Page(SimpleNamespace(html=(tmp_path / "run" / "credit" / f"credit_{step:05d}.html").read_text()))


def test_a_step_with_resets_shows_prefixes_and_trees(tiny_model, prompts, tmp_path):
    options = dict(localizer="random", trainer_options=THIRD_CHARACTER, logging_steps=1)
    trainer, callback = watched(SRPOTrainer, SRPOConfig, tiny_model, prompts, tmp_path, **options)
    trainer.train()
    page, [(found, _)] = written(tmp_path, 1), callback.drawn
    continued = [one for one in found if not one.mask[0]]
    assert len(continued) == 4
    assert len({text for text in page.text_of("scale") if text}) == 1  # one scale for all completions
    marks = page.text_of("mark")
    assert marks[:4] == ["trained from here"] * 4 and len(marks) == 6
    assert marks[4] == "reset to here" and marks[5].startswith("named as wrong")
    heads = [text for names, text in page.texts if names[0] == "head" != names[-1]]
    assert heads[:2] == ["kept prefix, not trained", "failed from step 3 on: dropped"]
    # The tree has the rewards and the advantages of the continuations, of which the heatmaps know the advantages.
    logged = list(zip(trainer._logs["rewards"]["reward"], trainer._logs["advantages"], strict=True))
    expected = [f"reward {value:.4g}, advantage {advantage:+.4g}" for value, advantage in logged[4:]]
    assert heads[2:] == expected and len(set(expected)) > 1
    assert sorted(f"{one.advantage:+.4g}" for one in continued) == sorted(text.split()[-1] for text in expected)
    shown = re.findall(r'class="step">(.*?)</span>', page.html)[-4:]
    wanted = []
    for one in continued:
        lines = "".join(one.tokens[one.mask.index(True) :]).split("\n")
        wanted.append("<br>".join(visible(line, spaces=False) for line in lines if line.strip()))
    assert sorted(shown) == sorted(wanted)


def test_a_reset_without_a_named_step_is_called_so_and_is_drawn_in_every_step_on_its_completions(
    tiny_model, prompts, tmp_path
):
    options = dict(localizer="random", max_steps=2)
    trainer, _ = watched(SRPOTrainer, SRPOConfig, tiny_model, prompts, tmp_path, **options)
    trainer.train()
    first, second = (written(tmp_path, step) for step in (1, 2))  # two iterations on the same completions
    assert any(text.startswith("no step was named") for text in first.text_of("mark"))
    assert first.text_of("tree") and second.text_of("tree") == first.text_of("tree")


def test_pictures_come_when_they_are_due_and_leave_no_trace(tiny_model, prompts, tmp_path):
    plain, callback = watched(STraceTrainer, STraceConfig, tiny_model, prompts, tmp_path / "a", every=99, max_steps=4)
    plain.train()
    assert not hasattr(callback, "drawn") and not (tmp_path / "a" / "run" / "credit").exists()
    options = dict(every=2, max_steps=4, num=3)
    trainer, callback = watched(STraceTrainer, STraceConfig, tiny_model, prompts, tmp_path / "b", **options)
    trainer.train()
    files = sorted(path.name for path in (tmp_path / "b" / "run" / "credit").iterdir())
    assert files == ["credit_00002.html", "credit_00004.html"]
    assert [len(found) for found, _ in callback.drawn] == [3, 3]
    assert not {"_compute_loss", "_get_per_token_logps_and_entropies"} & set(vars(trainer)) and not callback._seen
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name]), name


def test_every_tracker_that_is_reported_to_gets_the_picture(tiny_model, prompts, tmp_path, monkeypatch):
    trainer, callback = watched(GRPOTrainer, GRPOConfig, tiny_model, prompts, tmp_path)
    logged = []

    def tracker(name):
        def html(page, inject):
            assert not inject
            return page

        return SimpleNamespace(Html=html, log=lambda values: logged.append((name, values)), run="a run")

    class Writer(TensorBoardCallback):
        def __init__(self):
            self.tb_writer = SimpleNamespace(add_image=lambda *args, **kwargs: logged.append(("tensorboard", args)))

        def on_train_begin(self, *args, **kwargs): ...

        def on_log(self, *args, **kwargs): ...

        def on_train_end(self, *args, **kwargs): ...

    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, tracker(name))
    trainer.train()
    trainer.add_callback(Writer())  # only now, as TRL would log to the trackers itself
    trainer.args.report_to = ["wandb", "trackio", "tensorboard"]
    found = callback.drawn[0][0]
    callback._log(found, Picture("<p>page</p>", "page"), 1)
    entry = {"credit": Picture("<p>page</p>", "page").html, "train/global_step": 1}
    assert [name for name, _ in logged] == ["wandb", "trackio", "tensorboard"]
    assert logged[0][1] == logged[1][1] == entry
    tag, image, step = logged[2][1]
    assert (tag, step) == ("credit", 1) and np.array_equal(image, heatmap_image(found, full_color(found)))


@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (SRPOTrainer, SRPOConfig)])
def test_no_method_of_the_trainer_is_replaced_while_it_is_watched(
    trainer_class, config_class, tiny_model, prompts, tmp_path
):
    """Not on the trainer, not on its class, and the model's hook goes with the step."""
    trainer, callback = watched(trainer_class, config_class, tiny_model, prompts, tmp_path, max_steps=2)
    methods = {name: getattr(trainer_class, name) for name in dir(trainer_class)}
    own = {name for name, value in vars(trainer).items() if callable(value)}
    hooks, seen = dict(trainer.model._forward_hooks), []

    def look(model, arguments, output):
        seen.append({name for name, value in vars(trainer).items() if callable(value)} - own)
        assert {name: getattr(trainer_class, name) for name in dir(trainer_class)} == methods

    trainer.model.register_forward_hook(look)
    trainer.train()
    assert len(callback.drawn) == 2 and set().union(*seen) <= {"rollout_func", "_calculate_rewards"}
    assert len(trainer.model._forward_hooks) == len(hooks) + 1


def test_trees_are_drawn_from_the_records_alone():
    """Largest advantages first; without a named step it says so, and an empty completion has nothing to be cut."""
    first = SeedRecord(("a|", "b|", "c"), 2, Reset(2, False))
    other = SeedRecord(("d|", "e"), None, Reset(1, True))
    empty = SeedRecord((), None, Reset(1, True))

    def record(group, role, text, prefix_length, reward, seed, advantage):
        return CompletionRecord(
            0, group, role, [65, 66], list(map(ord, text)), prefix_length, reward, True, seed, advantage
        )

    records = [
        record(0, "base", "zz", 0, 1.0, None, 9.0),
        record(1, "reset", "a|x", 2, 1.0, first, 0.5),
        record(1, "reset", "a|y", 2, 0.0, first, -0.5),
        record(2, "reset", "f", 0, 0.25, other, 2.0),
        record(3, "reset", "g", 0, 0.0, empty, 7.0),
    ]
    pictures = reset_trees(records, lambda ids: "".join(map(chr, ids)))
    texts = [re.sub(r"<[^>]*>", " ", picture.body) for picture in pictures]
    assert len(texts) == 2 and all("AB" in text for text in texts)
    assert "no step was named" in texts[0] and "reward 0.25, advantage +2" in texts[0]
    assert "named as wrong" in texts[1]
    assert re.search(r"reward 1, advantage \+0\.5\s+x\s.*reward 0, advantage -0\.5\s+y", texts[1])


def test_numbers_below_one_are_refused(tiny_model, prompts, tmp_path):
    trainer, _ = watched(GRPOTrainer, GRPOConfig, tiny_model, prompts, tmp_path)
    for name in ("every", "num_completions"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            CreditHeatmapCallback(trainer, **{name: 0})
