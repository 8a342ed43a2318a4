"""Other people's files: every form that a text comes in gives its texts, from one column of the whole file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import pytest

from hf_mamba_prune.texts.sources import read_text

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi \u00e4"}]
SHARE = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi \u00e4"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "image"}]}, HELLO[1]]
SAID = "Hello\n\nHi \u00e4"


def lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def table(delimiter: str, *rows: tuple[str, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode()


ROWS = ('one, "two"\nthree', "", "NA", "007", "null \u2192")
HEAD = ("id", "text")
TABLE = tuple((str(i), row) for i, row in enumerate(ROWS))

FILES = {
    "a.csv": (table(",", HEAD, *TABLE), ROWS),
    "a.tsv": (table("\t", HEAD, *TABLE), ROWS),
    "A.CSV": (b"\xef\xbb\xbf" + table(",", ("text", "id"), *[row[::-1] for row in TABLE]), ROWS),
    "a.csv.gz": (gzip.compress(table(",", HEAD, *TABLE)), ROWS),
    "body.csv": (table(",", ("id", "body"), ("1", "one"), ("2", "3")), ("one", "3")),
    "a.JSONL": (lines({"text": "one"}, {"text": "two"}), ("one", "two")),
    "a.ndjson": (lines({"text": "one"}), ("one",)),
    "bom.jsonl": (b"\xef\xbb\xbf" + lines({"text": "one"}), ("one",)),
    "bom.txt": (b"\xef\xbb\xbfone\ntwo\n", ("one\n", "two\n")),
    "array.json": (b"\xef\xbb\xbf \n [\n" + json.dumps({"text": "one"}).encode() + b',\n{"text": "two"}]',
                   ("one", "two")),
    "texts.json": (b'["one", "two"]', ("one", "two")),
    "lines.json": (b"\n" + lines({"text": "one"}, {"text": "two"}), ("one", "two")),
    "chat.jsonl": (lines({"id": "x", "messages": HELLO}, {"id": "y", "messages": HELLO}), (SAID, SAID)),
    "share.jsonl": (lines({"conversations": SHARE}), (SAID,)),
    "parts.jsonl": (lines({"messages": PARTS}), (SAID,)),
    "list.jsonl": (lines({"sentences": ["one", "two"], "n": 1}), ("one\ntwo",)),
    "surrogate.jsonl": (b'{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}\n', ("a\ufffdb", "\U0001f600")),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_form_gives_its_texts(tmp_path, name, tokenizer):
    content, rows = FILES[name]
    (tmp_path / name).write_bytes(content)
    source = read_text(str(tmp_path / name), "train")
    assert source.documents == rows and source.name == name
    assert tokenizer(source.joined()).input_ids and source.joined().encode()


@pytest.mark.parametrize("column", [None, "text"])
def test_the_column_is_chosen_once_and_null_is_an_empty_text(tmp_path, column):
    """Row by row, half of such a file was taken from `url` without a word."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        lines({"text": None, "url": "u"}, {"text": "one", "url": "u"}, {"url": "u"}, {"url": "v", "text": "two"})
    )
    assert read_text(str(path), "train", column).documents == ("", "one", "", "two")
    path.write_bytes(lines(*[{"text": None, "url": "u"}] * 300, {"text": "one", "url": "u"}))
    assert read_text(str(path), "train", column).documents == ("",) * 300 + ("one",)
    path.write_bytes(lines({"text": "one"}, {"text": 5}))
    with pytest.raises(ValueError, match="a.jsonl, line 2: the column 'text' holds a int; expected a text"):
        read_text(str(path), "train", column)


def test_a_single_column_under_another_name_stays_the_column(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"body": "one"}, {"url": "u"}, {"body": "two"}))
    with pytest.raises(ValueError, match=r"has 2 text columns \(body, url\): name one with --column"):
        read_text(str(path), "train")
    assert read_text(str(path), "train", "body").documents == ("one", "", "two")


DATA = {"text": ["one", None, "two"], "url": ["u"] * 3}


def saved(data: datasets.Dataset | datasets.DatasetDict, path: Path) -> str:
    data.save_to_disk(str(path))
    return str(path)


def test_folders_that_datasets_wrote_are_read(tmp_path):
    data = datasets.Dataset.from_dict(DATA)
    folder = saved(data, tmp_path / "one")
    assert read_text(folder, "train").documents == ("one", "", "two") and read_text(folder, "train").name == "one"
    assert read_text(folder, "train", "url").documents == ("u", "u", "u")
    (shard,) = (tmp_path / "one").glob("*.arrow")
    assert read_text(str(shard), "train").documents == ("one", "", "two")
    both = saved(datasets.DatasetDict(train=data, test=data.select([2])), tmp_path / "both")
    assert read_text(both, "test").documents == ("two",)
    with pytest.raises(
        ValueError, match="both has no split 'validation'; it has: train, test. Give the folder of one"
    ):
        read_text(both, "validation")
    assert read_text(str(tmp_path / "both" / "train"), "test").documents == ("one", "", "two")
    chat = saved(datasets.Dataset.from_dict({"id": ["x"], "messages": [HELLO]}), tmp_path / "chat")
    assert read_text(chat, "train").documents == (SAID,)
    listed = saved(datasets.Dataset.from_dict({"lines": [["one", "two"]]}), tmp_path / "listed")
    assert read_text(listed, "train").documents == ("one\ntwo",)


def test_parquet_with_chats_and_lists(tmp_path):
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"id": ["x"], "messages": [HELLO], "n": [1]}).to_parquet(str(path))
    assert read_text(str(path), "train").documents == (SAID,)
    datasets.Dataset.from_dict({"lines": [["one", "two"]], "n": [1]}).to_parquet(str(path))
    assert read_text(str(path), "train").documents == ("one\ntwo",)


def test_a_saved_folder_that_is_damaged_is_refused_in_one_sentence(tmp_path):
    folder = saved(datasets.Dataset.from_dict(DATA), tmp_path / "one")
    shard = next((tmp_path / "one").glob("*.arrow"))
    whole = shard.read_bytes()
    for damage in (lambda: shard.write_bytes(whole[:100]), shard.unlink):
        damage()
        with pytest.raises(ValueError, match="one cannot be read as `datasets` saves it") as refused:
            read_text(folder, "train")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    for name in ("state.json", "dataset_info.json"):
        for text in ("[" * 200_000, "{", "5"):
            (tmp_path / "one" / name).write_text(text)
            with pytest.raises(ValueError, match="one"):
                read_text(folder, "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[1, 2]", "item 1: expected a JSON object, found int"),
        ("b.json", b'[{"text": "a"}', "b.json is not JSON"),
        ("c.json", b'{\n"text": "a"}', "line 1: expected one JSON object a line, or in a file called .json one array"),
        ("d.csv", b"a,b\n1,2\n", "has 0 text columns"),
        ("e.csv", b'text\n"a\x00b"\n' + b"\xff", "is not UTF-8 text"),
        ("f.jsonl", b'{"messages": [{"role": "user"}, 5]}\n', "has 0 text columns"),
        ("g.jsonl", b'{"text": "a"}\n{"text": {"b": 1}}\n', "line 2: the column 'text' holds a dict"),
        ("h.txt", b"\xff\xfeo\x00n\x00e\x00", "is not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(str(tmp_path / name), "train")
