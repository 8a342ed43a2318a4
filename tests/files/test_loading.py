"""Models from folders and from the Hub; for everything that does not fit, one sentence and no random weights."""

from __future__ import annotations

import json
import pickle
import socket

import pytest
import torch
from local_hub import ALICE, BOB
from original_checkpoints import write_original
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mamba_prune.files.loading import load_model, load_skeleton, load_tokenizer, weights_sha256

IDS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(mamba, tokenizer, tmp_path):
    """A whole Mamba checkpoint in transformers' layout."""
    return save(mamba, tokenizer, tmp_path / "model")


@pytest.fixture
def hub(local_hub, monkeypatch, tmp_path):
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    return local_hub


def test_a_folder_gives_the_model_and_its_tokenizer(model, tokenizer, tmp_path, capfd):
    folder = save(model, tokenizer, tmp_path / "model")
    loaded = load_model(str(folder))
    assert torch.equal(logits(loaded.model), logits(model)) and not loaded.model.training
    assert loaded.tokenizer("the thing").input_ids == tokenizer("the thing").input_ids
    assert (loaded.id, loaded.revision, loaded.folder) == ("model", None, folder)
    assert loaded.saved_dtype == torch.float32 and loaded.model.device.type == "cpu"
    assert weights_sha256(loaded.model) == weights_sha256(model)
    assert "newly initialized" not in "".join(capfd.readouterr())


def test_dtypes(mamba, tokenizer, tmp_path):
    source = str(save(mamba.bfloat16(), tokenizer, tmp_path / "model"))
    found = {name: load_model(source, dtype=name, device="cpu") for name in ("auto", "float32", "bfloat16")}
    assert {name: (own.model.dtype, own.saved_dtype) for name, own in found.items()} == {
        "auto": (torch.float32, torch.bfloat16),  # computed as a CPU does best, saved as it came
        "float32": (torch.float32, torch.float32),
        "bfloat16": (torch.bfloat16, torch.bfloat16),
    }
    with pytest.raises(ValueError, match="dtype is 'int8'; expected one of auto, float32, bfloat16, float16"):
        load_model(source, dtype="int8")


def test_devices(folder):
    assert load_model(str(folder), device="auto").model.device.type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device is 'gpu9'; expected auto, cpu or cuda"):
        load_model(str(folder), device="gpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is 'cuda', but torch sees no CUDA device here"):
            load_model(str(folder), device="cuda")


def test_a_hub_id_with_and_without_revision(hub, folder, mamba, tokenizer, tmp_path):
    first = hub.add_model("alice/model", folder)
    mamba.lm_head.weight.data.mul_(2)
    second = hub.add_model("alice/model", save(mamba, tokenizer, tmp_path / "second"))
    newest = load_model("alice/model")
    assert (newest.id, newest.revision) == ("alice/model", second.id)
    assert torch.equal(logits(newest.model), logits(mamba))
    old = load_model("alice/model", revision=first.id)
    assert old.revision == first.id and not torch.equal(logits(old.model), logits(mamba))
    with pytest.raises(ValueError, match="alice/model has no revision 'v9'"):
        load_model("alice/model", revision="v9")


def test_only_what_is_needed_is_downloaded(hub, folder):
    more = {"pytorch_model.bin": b"big", "training_args.bin": b"x", "optimizer.pt": b"y", "packed/packed-1.bin": b"z"}
    hub.add_model("alice/model", {p.name: p.read_bytes() for p in folder.iterdir()} | more)
    load_skeleton("alice/model")
    fetched = [seen.path for seen in hub.requests if "/resolve/" in seen.path]
    assert not any("safetensors" in path for path in fetched)
    load_model("alice/model")
    fetched = [seen.path for seen in hub.requests if "/resolve/" in seen.path]
    assert any("model.safetensors" in path for path in fetched)
    assert not any(name in path for name in more for path in fetched)


@pytest.mark.parametrize("original", [False, True])
def test_a_skeleton_has_the_shapes_and_no_weights(model, tokenizer, tmp_path, original):
    if original and model.config.model_type == "falcon_mamba":
        original = False  # the original layout has no Falcon-Mamba
    (write_original(tmp_path, model, tokenizer) if original else save(model, tokenizer, tmp_path))
    skeleton = load_skeleton(str(tmp_path))
    assert all(p.is_meta for p in skeleton.parameters())
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_a_model_in_the_cache_needs_no_network(hub, folder, monkeypatch, tmp_path):
    hub.add_model("alice/model", folder)
    load_model("alice/model")
    hub.attach(monkeypatch, tmp_path / "home", ALICE.token)  # closes the connections that are still open
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_model("alice/model")
    with pytest.raises(RuntimeError, match="alice/other is not in the local cache and the Hub cannot be reached"):
        load_model("alice/other")


def refuse(self, address):
    raise ConnectionRefusedError("no network")


@pytest.mark.parametrize("source", ["alice/none", "nobody", "./none", "/none/here", "not a name", "a/b/c"])
def test_what_is_not_there(hub, source):
    with pytest.raises(ValueError, match="no folder and no Hub model|is not a folder|neither a folder nor a valid"):
        load_model(source)


def test_private_and_gated_models_say_what_to_do(hub, folder, monkeypatch, tmp_path):
    hub.add_model("alice/private", folder, private=True)
    hub.add_model("alice/gated", folder, gated=True)
    assert load_model("alice/private").revision
    for token in (BOB.token, None):
        hub.attach(monkeypatch, tmp_path / f"home-{token}", token)
        with pytest.raises(ValueError, match="no folder and no Hub model 'alice/private' .or it is private: log in"):
            load_model("alice/private")
        with pytest.raises(RuntimeError, match="alice/gated is gated: accept its terms on the Hub, then log in"):
            load_model("alice/gated")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
@pytest.mark.parametrize("path", ["/api/models/alice/model", "/resolve/", "/objects/"])
def test_a_hub_that_refuses_is_one_sentence_with_the_models_name(hub, folder, path, status):
    hub.add_model("alice/model", folder)
    failure = hub.fail(".*", path, status, times=None)
    with pytest.raises((RuntimeError, ValueError), match="alice/model") as refused:
        load_model("alice/model")
    assert failure.hits and "\n" not in str(refused.value) and ALICE.token not in str(refused.value)
    failure.times = 0
    assert load_model("alice/model").revision


def edit(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


NAME = "backbone.layers.0.mixer.out_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(NAME), f"do not fit its config.json: 1 missing keys, such as {NAME}"),
        (lambda s: s.update(extra=torch.ones(2)), "do not fit its config.json: 1 unexpected keys, such as extra"),
        (lambda s: s.update({NAME: torch.ones(3, 3)}), f"1 mismatched keys, such as {NAME}"),
        (lambda s: s.update({NAME + "_orig": s.pop(NAME)}), "missing keys"),  # as torch's own pruning saves it
        (lambda s: s[NAME].view(-1)[5:6].fill_(torch.nan), f"the weight {NAME} holds NaN or infinite values"),
        (lambda s: s[NAME].view(-1)[5:6].fill_(-torch.inf), f"the weight {NAME} holds NaN or infinite values"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_made_up(folder, change, message, capfd):
    edit(folder, change)
    with pytest.raises(ValueError, match=message) as refused:
        load_model(str(folder))
    assert "model" in str(refused.value)
    assert "newly initialized" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("left", [0, 5, 1000, -100])
def test_weights_that_are_cut_short_are_refused(folder, left):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"damaged or cut short|cannot be loaded"):
        load_model(str(folder))


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(folder))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["zip", "pickle", "cut"])
def test_a_pickle_that_is_malicious_or_cut_is_refused_and_executes_nothing(folder, mamba, tmp_path, how):
    (folder / "model.safetensors").unlink()
    path, trace = folder / "pytorch_model.bin", tmp_path / "executed"
    if how == "zip":
        torch.save({NAME: Payload(trace)}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps({NAME: Payload(trace)}, protocol=2))
    else:
        torch.save(mamba.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match="is not a whole checkpoint of plain tensors"):
        load_model(str(folder))
    assert not trace.exists()


def test_other_models_are_refused_by_type(tmp_path, tokenizer):
    config = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    save(LlamaForCausalLM(config), tokenizer, tmp_path)
    for load in (load_model, load_skeleton):
        with pytest.raises(ValueError, match="of type 'llama', which is not a supported state-space model. Supported"):
            load(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no config.json: it is not a model"),
        (b"{", "config.json of .* is not JSON"),
        (b"\xff\xfe", "config.json of .* is not JSON"),
        (b"[]", "is a model of type None, which is not a supported"),
        (b"{}", "is a model of type None, which is not a supported"),
    ],
)
def test_configs_that_cannot_be_read_are_refused(folder, text, message):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        load_model(str(folder))


def test_a_model_without_a_tokenizer_asks_for_one(folder, tokenizer, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
        with pytest.raises(ValueError, match="has no usable tokenizer .*: name one with --tokenizer"):
            load_model(str(folder))
    tokenizer.save_pretrained(tmp_path / "words")
    loaded = load_model(str(folder), tokenizer=str(tmp_path / "words"))
    assert loaded.tokenizer("the").input_ids == tokenizer("the").input_ids


def test_a_tokenizer_from_the_hub(hub, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "words")
    hub.add_model("alice/words", tmp_path / "words")
    assert load_tokenizer("alice/words")("the").input_ids == tokenizer("the").input_ids
    with pytest.raises(ValueError, match="no Hub model 'alice/none'"):
        load_tokenizer("alice/none")


def test_the_hash_sees_names_values_and_order(mamba):
    before = weights_sha256(mamba)
    assert before == weights_sha256(mamba) and len(before) == 64
    weight = mamba.get_parameter(NAME)
    weight.data[0, 0] *= -1
    assert weights_sha256(mamba) != before
    weight.data[0, 0] *= -1
    assert weights_sha256(mamba) == before
    assert json.dumps(before)
