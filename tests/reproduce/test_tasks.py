"""Every benchmark: its data as published, its generator as specified, and a tiny run from training to loading."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTimeSeriesPrediction

from hf_mamba_prune import find_targets
from hf_mamba_prune.measure.metrics import METRICS
from hf_mamba_prune.reproduce.run import Reproduction
from hf_mamba_prune.reproduce.tasks import TASKS, ett, image, listops, retrieval, text
from hf_mamba_prune.reproduce.tasks import base as base_module
from hf_mamba_prune.reproduce.tasks.results import table
from hf_mamba_prune.reproduce.tasks.training import measure

REFERENCE = Path(__file__).resolve().parents[1] / "data" / "listops_reference.tsv.gz"


def data_of(folder: Path) -> None:
    """A few rows of every benchmark, as published."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(text.CLASSES):
        for split in ("train", "test"):
            place = folder / "aclImdb" / split / name
            place.mkdir(parents=True)
            for i in range(20):
                (place / f"{i}_{label}.txt").write_text(("good " if label else "bad ") * draw.integers(3, 9))
    for name in retrieval.FILES.values():
        rows = [f"{i % 2}.0\tp{i}\tq{i}\tb'text {i % 2} \\xc3\\xa9'\tother text {i}" for i in range(16)]
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    images, labels = draw.integers(0, 256, (60, 32, 32), dtype=np.uint8), draw.integers(0, 10, 60)
    np.savez(folder / image.ARCHIVE, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    np.savez(folder / "pathfinder32.npz", easy_x=images, easy_y=labels % 2)
    hours = np.arange(20 * 30 * 24 + 50)
    waves = np.stack([np.sin(hours / (3 + i)) * (i + 1) + i for i in range(7)], axis=1)
    for name in ett.NAMES:
        step = 4 if name.startswith("ETTm") else 1
        rows = [",".join(["2016", *(f"{value:.4f}" for value in row)]) for row in np.repeat(waves, step, axis=0)]
        (folder / f"{name}.csv").write_text("date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n" + "\n".join(rows) + "\n")
    words = "\n".join(" the cat in the hat sat on the mat and ran ." for _ in range(200))
    for name in ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"):
        (folder / name).write_text(words, encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    data_of(folder)
    return folder


TINY = {
    "listops": "listops", "text": "text", "retrieval": "retrieval", "image": "image", "pathfinder": "pathfinder",
    "etth1": "etth1-96", "ettm2": "ettm2-720", "wikitext103": "wikitext103",
}  # fmt: skip


def shrink(monkeypatch, name: str) -> None:
    """Make a task's small scale tiny."""
    task = TASKS[name]
    small = task.scales["small"]
    sizes = small.model | dict(hidden_size=16, num_hidden_layers=2, state_size=4)
    length = {"image": 64, "pathfinder": 64}.get(name, 96 if name.startswith("ett") else 48)
    steps = 0 if name == "wikitext103" else 12
    tiny = replace(small, model=sizes, length=length, steps=steps, recover_steps=20, batch_size=4, evaluated=8)
    monkeypatch.setitem(TASKS, name, replace(task, scales={"small": tiny}))
    monkeypatch.setitem(listops.SIZES, "small", ((24, 96), {"train": 60, "val": 8, "test": 8}))


# One of each kind of task in the default run: classes of one text, of two texts, and a forecast.
FAST = {"listops", "retrieval", "ettm2-720"}


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TINY.values()]
)
def test_train_prune_recover_evaluate_save_and_load(data, tmp_path, monkeypatch, capsys, name):
    shrink(monkeypatch, name)
    command = ("reproduce", name, "--data", str(data), "--output", str(tmp_path), "--seeds", "1", "--quiet")
    command += ("--sparsities", "0.5", "--methods", "ours,magnitude")
    assert run(*command, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    runs = [(found["method"], found["sparsity"]) for found in results]
    assert runs == [("dense", 0.0), ("dense-longer", 0.0), ("ours", 0.5), ("magnitude", 0.5)]
    task = TASKS[name]
    assert all(set(found["metrics"]) == set(task.metrics) for found in results)
    assert results[2]["nonzero"] < results[0]["nonzero"]
    folder = tmp_path / f"{name}-small"
    shown = (folder / "table.md").read_text()
    assert (
        "| dense | 0% | 1 |" in shown
        and "| dense, trained longer | 0% | 1 |" in shown
        and "hf-mamba-prune: Fisher" in shown
    )
    components = json.loads((folder / "components.json").read_text())
    assert set(components) == {"dense", "in_proj", "x_proj", "dt_proj", "out_proj", "conv1d", "D"}
    assert "| conv1d |" in shown and components["dense"]["0"] == pytest.approx(results[0]["metrics"][task.metrics[0]])
    again = _load(name, folder / "ours-0.5-0")
    targets = find_targets(again)
    zeros = sum(int((target.weight(again) == 0).sum()) for target in targets)
    assert zeros == round(0.5 * sum(target.size for target in targets))
    scale = task.scales["small"]
    metrics, _ = measure(again, task, task.data(data, scale), scale)
    assert metrics == pytest.approx(results[2]["metrics"], rel=1e-4)
    less = ("reproduce", name, "--data", str(data), "--output", str(tmp_path), "--seeds", "1", "--quiet")
    assert run(*less, "--sparsities", "0.5,0.5", "--methods", "ours") == 0
    assert (folder / "table.md").read_text() == shown  # what was measured before stays in it
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert run(*command) == 0  # nothing is run again
    assert times == {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}


def _load(name: str, folder: Path):
    auto = AutoModelForTimeSeriesPrediction if name.startswith("ett") else AutoModelForSequenceClassification
    return (AutoModelForCausalLM if name == "wikitext103" else auto).from_pretrained(folder).eval()


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"listops"}))
def test_data_that_is_missing_says_how_to_get_it(tmp_path, name):
    with pytest.raises(ValueError, match="which is not there. Put "):
        TASKS[name].data(tmp_path, TASKS[name].scales["small"])


def test_wrong_requests_are_refused(tmp_path, capsys):
    for words, message in (
        (("lstops",), "Did you mean 'listops'"),
        (("listops", "--methods", "our"), "Did you mean 'ours'"),
        (("listops", "--scale", "big"), "unknown scale"),
        (("listops", "--sparsities", "0.5,x"), "--sparsities is"),
        (("listops", "--sparsities", "1"), "below 1"),
        (("listops", "--seeds", "0"), "at least one seed"),
    ):
        assert run("reproduce", *words) == 2
        assert message in capsys.readouterr().err


def test_the_labels_of_the_reference_are_ours():
    with gzip.open(REFERENCE, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    assert len(rows) == 200
    assert all(listops.value_of(listops.tree_words(source)) == int(target) for source, target in rows)


def test_expressions_have_the_lengths_and_the_acceptance_of_the_specification():
    draw, lengths = random.Random(0), []
    for _ in range(4000):
        words, length = listops.draw_tree(draw)
        operations = sum(word in listops.OPERATORS for word in words)
        digits = len(words) - 2 * operations
        assert length == 2 * operations + digits == len(words)
        lengths.append(length)
    # Three quarters are a single digit, as the first draw says.
    assert sum(length == 1 for length in lengths) / 4000 == pytest.approx(0.75, abs=0.03)
    stream = listops.generate(3, 24, 96)
    found = [next(stream) for _ in range(300)]
    assert len({" ".join(words) for words, _ in found}) == 300
    assert all(24 < len(words) < 96 and listops.value_of(words) == value for words, value in found)


@pytest.mark.slow
def test_the_distribution_of_the_labels():
    stream = listops.generate(0)
    labels = [value for _, value in (next(stream) for _ in range(2000))]
    shares = np.bincount(labels, minlength=10) / 2000
    assert 0.15 < shares.max() < 0.20  # the majority class has 17.5 %
    assert shares.min() > 0.05


@pytest.mark.parametrize("words", ["[MIN 1 2", "1 2", "]", "[MAX ]", "[MIN x ]", ""])
def test_what_is_no_expression_is_refused(words):
    with pytest.raises(ValueError):
        listops.value_of(words.split())


def test_published_listops_files_are_read(tmp_path):
    for split in listops.SPLITS:
        (tmp_path / f"basic_{split}.tsv").write_text("Source\tTarget\n( ( ( [MAX 2 ) 3 ) ] )\t3\n")
    splits = TASKS["listops"].data(tmp_path, TASKS["listops"].scales["paper"])
    example = splits.train[0]
    assert [listops.WORDS[i] for i in example["input_ids"].tolist()] == ["[MAX", "2", "3", "]"]
    assert int(example["labels"]) == 3 and len(splits.train) == 1


def test_pixels_are_read_row_by_row_and_made_fewer_by_means():
    picture = np.arange(1024, dtype=np.uint32).reshape(1, 32, 32).astype(np.uint8)
    assert torch.equal(image.pixels(picture, 32)[0], torch.from_numpy(picture.reshape(-1)))
    small = image.pixels(np.full((2, 32, 32), 7, dtype=np.uint8), 16)
    assert small.shape == (2, 256) and (small == 7).all()


def test_cifars_binary_version_and_pathfinders_release_are_read(tmp_path):
    binary = tmp_path / "cifar-10-batches-bin"
    binary.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (10, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(10)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        rows.tofile(binary / name)
    splits = TASKS["image"].data(tmp_path, TASKS["image"].scales["small"])
    assert len(splits.train) + len(splits.validation) == 50 and len(splits.test) == 10
    root = tmp_path / "pathfinder32" / "curv_contour_length_14"
    (root / "imgs" / "0").mkdir(parents=True)
    (root / "metadata").mkdir()
    (tmp_path / "pathfinder32" / "imgs").mkdir()
    lines = []
    for i in range(20):
        Image.fromarray(rows[i % 10, 1:1025].reshape(32, 32)).save(root / "imgs" / "0" / f"s_{i}.png")
        lines.append(f"imgs/0 s_{i}.png {i} {i % 2} 1 2 3")
    (root / "metadata" / "0.npy").write_text("\n".join(lines) + "\n")
    splits = TASKS["pathfinder"].data(tmp_path, TASKS["pathfinder"].scales["small"])
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (16, 2, 2)
    assert splits.stand_ins == ()
    assert splits.train[0]["input_ids"].shape == (1024,)


def test_bytes_of_published_pairs_are_texts(data):
    (label, one, other), *_ = retrieval.read_pairs(data / "new_aan_pairs.train.tsv")
    assert (label, one, other) == (0, "text 0 é".encode(), b"other text 0")
    (data / "bad.tsv").write_text("1\tonly\n")
    long = "x" * 200_000
    (data / "odd.tsv").write_text(f"1\ta\tb\tb'not bytes\t{long}\n0\ta\tb\tb''\t\n")
    assert retrieval.read_pairs(data / "odd.tsv") == [(1, b"b'not bytes", long.encode()), (0, b"", b"")]
    assert retrieval.read_pairs(data / "odd.tsv", 5, 1) == [(1, b"b'not", b"xxxxx")]
    assert text.byte_ids(b"", 5).tolist() == [0]
    with pytest.raises(ValueError, match="line 1, has 2 columns"):
        retrieval.read_pairs(data / "bad.tsv")


def test_reviews_that_are_not_all_there_are_not_used(data, tmp_path):
    shutil.copytree(data / "aclImdb" / "train", tmp_path / "aclImdb" / "train")
    for folder in (tmp_path, tmp_path / "empty"):
        (folder / "aclImdb").mkdir(parents=True, exist_ok=True)
        with pytest.raises(ValueError, match="text needs .*aclImdb.*, which is not there. Put the folder aclImdb"):
            TASKS["text"].data(folder, TASKS["text"].scales["small"])


def test_ett_is_standardised_by_its_first_year_and_split_as_usual(data):
    task = TASKS["etth1-96"]
    splits = task.data(data, task.scales["small"])
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8640 - 96 - 95, 2880 - 95, 2880 - 95)
    values = ett.read_series(data / "ETTh1.csv")
    scaled = (values - values[:8640].mean(0)) / values[:8640].std(0)
    first = splits.test[0]
    assert np.allclose(first["past_values"], scaled[11520 - 96 : 11520], atol=1e-5)
    assert np.allclose(first["future_values"], scaled[11520 : 11520 + 96], atol=1e-5)
    assert np.allclose(splits.test[len(splits.test) - 1]["future_values"][-1], scaled[14399], atol=1e-5)
    with pytest.raises(IndexError):
        splits.test[len(splits.test)]


def test_errors_are_those_of_the_metric_modules(data, monkeypatch):
    shrink(monkeypatch, "etth1-96")
    task = TASKS["etth1-96"]
    scale = task.scales["small"]
    splits = task.data(data, scale)
    model = task.build(scale).eval()
    found, _ = measure(model, task, splits, scale)
    with torch.no_grad():
        batch = splits.collate([splits.test[i] for i in range(len(splits.test))])
        guess = model(batch["past_values"]).prediction_outputs
    for name in ("mse", "mae"):
        pair = dict(predictions=guess.flatten().tolist(), references=batch["future_values"].flatten().tolist())
        assert found[name] == pytest.approx(METRICS[name](keep_in_memory=True).compute(**pair)[name], rel=1e-5)


def test_padding_has_a_mask():
    batch = base_module.pad([{"input_ids": torch.tensor(ids), "labels": torch.tensor(1)} for ids in ([1, 2, 3], [4])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_table_gives_mean_deviation_and_what_was_kept(tmp_path):
    run_of = Reproduction(task="image", data=tmp_path, output=tmp_path, sparsities=(0.7,), methods=("ours",), seeds=2)
    folder = tmp_path / "image-small"
    folder.mkdir()
    for method, sparsity, values in (("dense", 0, (0.5, 0.7)), ("ours", 0.7, (0.5, 0.58))):
        for seed, value in enumerate(values):
            result = dict(task="image", method=method, sparsity=sparsity, seed=seed, metrics={"accuracy": value})
            result |= dict(nonzero=1000, train_seconds=3.0, test_seconds=1.0, test_bytes=5_000_000 + seed)
            (folder / f"{method}-{sparsity:g}-{seed}.json").write_text(json.dumps(result))
    shown = table(TASKS["image"], TASKS["image"].scales["small"], run_of.results())
    assert "| dense | 0% | 2 | 0.6000 +- 0.1414 | 100.0% |" in shown
    assert "| 70% | 2 | 0.5400 +- 0.0566 | 90.0% | 1,000 | 3 | 1 | 5 |" in shown
    assert "Other than published: 16 x 16 pixels" in shown
    assert "2,400 steps instead of 60,000" in shown and "64 channels instead of 256" in shown
    (folder / "ours-0.7-1.json").unlink()
    shown = table(TASKS["image"], TASKS["image"].scales["small"], run_of.results())
    assert "| 70% | 1 | 0.5000 +- 0.0000 | 100.0% |" in shown  # beside the dense model of its own seed
