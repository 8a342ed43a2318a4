"""Training on a packed base: LoRA adapters learn, the base stays as it is to the bit, and nothing else is trained."""

from __future__ import annotations

import pytest
import torch
from packed_cases import load, save, tokens
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hf_mamba_prune.packed.modules import packed_modules

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's

CASES = pytest.mark.parametrize("case", ["mamba", "mamba2", "falcon_mamba"])


class Repeats(Dataset):
    """One sequence again and again, which can be learned."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = tokens(12)[0]
        return {"input_ids": ids, "labels": ids}


def trainer(model, folder) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=30, per_device_train_batch_size=4, learning_rate=0.02, logging_steps=5, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=Repeats())


def adapted(model):
    config = peft.LoraConfig(r=4, target_modules=["in_proj", "x_proj"], init_lora_weights="gaussian")
    return peft.get_peft_model(model, config)


@CASES
def test_lora_learns_on_a_base_that_stays(tmp_path, case):
    save(tmp_path / "p", case)
    packed = load(tmp_path / "p")
    before = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    model = adapted(packed)
    work = trainer(model, tmp_path / "out")
    work.train()
    losses = [entry["loss"] for entry in work.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    after = {name.replace("base_layer.", ""): tensor for name, tensor in model.get_base_model().state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    model.eval()
    expected = model(tokens(12)).logits
    cache = model(tokens(12)[:, :5], use_cache=True).cache_params  # the adapters are there in single tokens too
    found = [model(tokens(12)[:, t : t + 1], cache_params=cache).logits for t in range(5, 12)]
    torch.testing.assert_close(torch.cat(found, dim=1), expected[:, 5:], rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(tmp_path / "p"), tmp_path / "adapter")
    torch.testing.assert_close(again(tokens(12)).logits, expected, rtol=1e-5, atol=1e-5)


@CASES
def test_gradients_of_adapters_are_those_on_the_dense_base(tmp_path, case):
    dense = save(tmp_path / "p", case)
    gradients = []
    for model in (dense, load(tmp_path / "p")):
        torch.manual_seed(0)
        model = adapted(model)
        model(tokens(12, 2), labels=tokens(12, 2)).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_without_adapters_the_trainer_refuses_it(tmp_path):
    save(tmp_path / "p")
    with pytest.raises(ValueError, match="Please attach trainable adapters"):  # transformers' own word
        trainer(load(tmp_path / "p"), tmp_path / "out")


def test_adapters_are_not_merged_into_packed_weights(tmp_path):
    save(tmp_path / "p")
    packed = load(tmp_path / "p")
    before = {name: module.weight.detach().clone() for name, module in packed_modules(packed).items()}
    model = adapted(packed)
    with pytest.raises(RuntimeError):
        model.merge_and_unload()
    again = packed_modules(load(tmp_path / "p"))
    assert all(torch.equal(again[name].weight.detach(), blob) for name, blob in before.items())


def test_transformers_own_adapters_are_saved_alone(tmp_path):
    save(tmp_path / "p")
    packed = load(tmp_path / "p")
    packed.add_adapter(peft.LoraConfig(r=4, target_modules=["in_proj"]))
    trainer(packed, tmp_path / "out")
    packed.save_pretrained(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir() if path.suffix == ".safetensors") == [
        "adapter_model.safetensors"
    ]
