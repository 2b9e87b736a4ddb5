"""What a run leaves for others: the model card with the method's paper, tags, the hub, the completions table."""

import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import transformers.trainer
import yaml
from trl import GRPOConfig, GRPOTrainer

from credit_trl import GRPOLambdaTrainer, SRPOTrainer, STraceTrainer
from credit_trl.testbed import BASE_MODEL, LOCALIZATION_TEMPLATE, make_dataset
from credit_trl.testbed.arithmetic import answer_reward
from tests.helpers.training import QUIET_ON_CPU

PAPERS = {
    STraceTrainer: ("2605.05965", "Beyond Uniform Credit Assignment: Selective Eligibility Traces for RLVR", "mou2026"),
    GRPOLambdaTrainer: ("2510.00194", "GRPO-λ: Credit Assignment improves LLM Reasoning", "parthasarathi2025"),
    SRPOTrainer: ("2605.25507", "Credit Assignment with Resets in Language Model Reasoning", "samanta2026"),
}


class Hub:
    """Takes the calls that would go to the hub."""

    def __init__(self):
        self.calls: list[tuple[str, dict]] = []

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, folder_path, **options):
        files = sorted(path.name for path in Path(folder_path).iterdir())
        self.calls.append(("upload_folder", {"files": files, **options}))


def pushed(trainer_class, folder, monkeypatch) -> list[tuple[str, dict]]:
    hub = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda *given, **options: hub)
    args = getattr(trainer_class, "config_class", GRPOConfig)(
        str(folder),
        **QUIET_ON_CPU,
        per_device_train_batch_size=8,
        push_to_hub=True,
        hub_model_id="someone/tiny",
        hub_token="secret",
        hub_private_repo=True,
    )
    trainer = trainer_class(str(BASE_MODEL), answer_reward, args=args, train_dataset=make_dataset(4))
    trainer.push_to_hub(commit_message="as asked", dataset_name="someone/sums", tags=["mine"])
    return hub.calls


@pytest.mark.parametrize("trainer_class", PAPERS)
def test_a_push_reaches_the_hub_as_trls_does(trainer_class, tmp_path, monkeypatch):
    calls = pushed(trainer_class, tmp_path / "ours", monkeypatch)
    assert calls == pushed(GRPOTrainer, tmp_path / "theirs", monkeypatch)
    (_, created), *_, (_, uploaded) = calls
    assert (created["repo_id"], created["token"], created["private"]) == ("someone/tiny", "secret", True)
    assert (uploaded["repo_id"], uploaded["commit_message"]) == ("someone/tiny", "as asked")
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= set(uploaded["files"])


@pytest.mark.parametrize("trainer_class", PAPERS)
def test_the_card_names_the_methods_paper_and_its_tags(trainer_class, tmp_path, monkeypatch):
    pushed(trainer_class, tmp_path, monkeypatch)
    card = (tmp_path / "README.md").read_text()
    paper, title, citation = PAPERS[trainer_class]
    assert f"https://huggingface.co/papers/{paper}" in card
    assert title in card
    assert f"@article{{{citation}" in card
    assert "zhihong2024deepseekmath" not in card and "shao2024deepseekmath" not in card  # GRPO's, which TRL cites
    assert f"trained with {trainer_class._name}" in " ".join(card.split())
    about = yaml.safe_load(card.split("---")[1])
    assert {"trl", trainer_class._tag_names[1], "mine"} <= set(about["tags"])
    assert "grpo" not in about["tags"]
    assert about["datasets"] == "someone/sums"


def test_citation_file_and_cards_cite_the_same_papers():
    citation = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text())
    cited = {}
    for reference in citation["references"]:
        names = [f"{author['given-names']} {author['family-names']}" for author in reference["authors"]]
        cited[reference["identifiers"][0]["value"].removeprefix("arXiv:")] = (reference["title"], names)
    for trainer_class, (paper, title, _) in PAPERS.items():
        authors = re.search(r"author\s+= \{(.*?)\},\n", trainer_class._paper["citation"], flags=re.S)[1]
        assert cited[paper] == (title, " ".join(authors.split()).split(" and "))


def test_the_completions_table_says_what_each_completion_is(tmp_path):
    args = SRPOTrainer.config_class(
        str(tmp_path),
        **QUIET_ON_CPU,
        per_device_train_batch_size=16,
        max_completion_length=24,
        max_steps=1,
        log_completions=True,
        localization_template=LOCALIZATION_TEMPLATE,
        localization_max_tokens=4,
    )
    trainer = SRPOTrainer(str(BASE_MODEL), answer_reward, args=args, train_dataset=make_dataset(16))
    trainer.train()
    [path] = (tmp_path / "completions").glob("*.parquet")
    table = pd.read_parquet(path)
    seeded = round(trainer.state.log_history[0]["reset/seeded_fraction"] * 2)
    assert seeded > 0
    expected = ["base"] * 4 + ["reset"] * 4
    for _, rows in table.groupby("prompt", sort=False):
        assert list(rows["completion_role"]) in (expected, ["base"] * 4 + ["fresh"] * 4)
        assert list(rows["reset_step"].notna()) == [role == "reset" for role in rows["completion_role"]]
    assert (table["completion_role"] == "reset").sum() == 4 * seeded
