"""Text as networks take it: vocabularies, tokens, files, folders and archives, and model cards of networks on text."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import penlight
from penlight.errors import BadInput, BadReference, UnknownName
from penlight.inputs import TextContract, open_data
from penlight.inputs.text_data import TextData, open_texts, read_text

ABC = "abc \n"


@pytest.fixture
def contract():
    return TextContract.of(ABC)


# vocabularies


def test_characters():
    contract = TextContract.of("\ufffdab")
    assert (contract.tokens, contract.unknown, contract.shape, contract.kind) == ("characters", 0, (61,), "text")
    assert contract.encode("abba?").tolist() == [1, 2, 2, 1, 0]
    assert contract.encode("ab").dtype == np.int64
    assert contract.decode([1, 2, 0]) == "ab\ufffd"
    assert contract.spans("ab?") == [(0, 1), (1, 2), (2, 3)]


def test_without_a_token_for_it_the_unknown_is_an_error(contract):
    with pytest.raises(BadInput, match=r"the text has '\?' at 2, which the vocabulary lacks"):
        contract.encode("ab?")
    with pytest.raises(BadInput, match="notes.txt has 'z' at 0"):
        contract.encode("z", "notes.txt")


def test_words():
    contract = TextContract.of(["<unk>", "the", "cat", "sat", "."], lower=True)
    assert (contract.tokens, contract.unknown) == ("words", 0)
    assert contract.encode("The cat\tsat  there.").tolist() == [1, 2, 3, 0, 4]
    assert [("The cat sat.")[a:b] for a, b in contract.spans("The cat sat.")] == ["The", "cat", "sat", "."]
    assert contract.decode([1, 2, 4]) == "the cat ."
    assert TextContract.of(["The", "<unk>"], unknown="<unk>").encode("The the").tolist() == [0, 1]


def test_words_by_a_pattern_of_ones_own():
    contract = TextContract.of(["a-b", "c"], pattern=r"[\w-]+")
    assert contract.encode("a-b c").tolist() == [0, 1]
    assert contract.spans("a-b, c") == [(0, 3), (5, 6)]


def test_lower_case_keeps_spans():
    contract = TextContract.of("abc", lower=True)
    assert contract.encode("AbC").tolist() == [0, 1, 2]


@pytest.mark.parametrize(("given", "number"), [("<unk>", 1), (1, 1), (None, 1)])
def test_the_unknown_token(given, number):
    assert TextContract.of(["a", "<unk>", "b"], unknown=given).unknown == number


def test_single_letters_with_an_unknown_token_are_characters():
    assert TextContract.of(["<unk>", "a", "b"]).tokens == "characters"
    assert TextContract.of(["a", "b"], tokens="words").tokens == "words"


def test_a_mapping_to_numbers():
    assert TextContract.of({"b": 1, "a": 0}).vocabulary == ("a", "b")
    with pytest.raises(BadReference, match="without gaps"):
        TextContract.of({"b": 2, "a": 0})
    with pytest.raises(BadReference, match="without gaps"):
        TextContract.of({"b": 0, "a": 0})


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"vocabulary": "a"}, BadReference, "needs its vocabulary"),
        ({"vocabulary": ""}, BadReference, "needs its vocabulary"),
        ({"vocabulary": "aba"}, BadReference, "'a' stands 2 times"),
        ({"vocabulary": "ab", "unknown": "z"}, UnknownName, "token for what is unknown 'z'"),
        ({"vocabulary": "ab", "unknown": 2}, BadReference, "unknown is token 2; the vocabulary has 0 to 1"),
        ({"vocabulary": "ab", "unknown": -1}, BadReference, "unknown is token -1"),
        ({"vocabulary": "ab", "tokens": "letters"}, UnknownName, "kind of tokens 'letters'"),
        ({"vocabulary": "ab", "encoding": "onehot"}, UnknownName, "did you mean 'one-hot'"),
        ({"vocabulary": ["ab", "c"], "tokens": "characters"}, BadReference, "'ab' is no character"),
        ({"vocabulary": ["ab", "c"], "pattern": "("}, BadReference, "is no regular expression"),
        ({"vocabulary": "ab", "length": 0}, BadReference, "shape"),
    ],
)
def test_what_a_contract_refuses(kwargs, error, words):
    with pytest.raises(error, match=words):
        TextContract.of(**kwargs)


def test_empty_texts(contract):
    with pytest.raises(BadInput, match="the text is empty: there are no characters in it"):
        contract.encode("")
    with pytest.raises(BadInput, match="there are no words in it"):
        TextContract.of(["one", "two"]).encode(" \n")


# what the network is given


def test_ids_and_one_hot_rows_batch_or_time_first():
    ids = np.array([[0, 1, 2], [2, 1, 0]])
    plain = TextContract.of("abc").normalize(ids)
    assert plain.dtype == np.int64
    assert plain.tolist() == ids.tolist()
    assert TextContract.of("abc", batch_first=False).normalize(ids).tolist() == ids.T.tolist()
    hot = TextContract.of("abc", encoding="one-hot").normalize(ids)
    assert (hot.dtype, hot.shape) == (np.float32, (2, 3, 3))
    assert hot.argmax(2).tolist() == ids.tolist()
    assert hot.sum() == 6
    turned = TextContract.of("abc", encoding="one-hot", batch_first=False).normalize(ids)
    assert turned.shape == (3, 2, 3)
    assert np.array_equal(turned, hot.swapaxes(0, 1))
    assert turned.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.zeros(3, np.int64), "not int64 of shape"),
        (np.zeros((1, 3), np.float32), "not float32"),
        (np.array([[0, 5]]), "run from 0 to 5; the vocabulary has 0 to 4"),
        (np.array([[-1, 0]]), "run from -1 to 0"),
    ],
)
def test_what_is_no_text(contract, batch, words):
    with pytest.raises(BadInput, match=words):
        contract.check(batch)


def test_what_is_a_text(contract):
    contract.check(np.array([[0, 4]], np.uint8))
    contract.check(np.zeros((0, 3), np.int64))


# texts from what the user has


def test_a_text_itself(contract):
    data = open_texts("ab c", contract)
    assert isinstance(data, TextData)
    assert (len(data), data.name, data.label(0), data.text(0)) == (1, "text", ("text", None), "ab c")
    assert data.read(0).tolist() == [0, 1, 3, 2]
    assert open_texts("a\nb", contract).read(0).tolist() == [0, 4, 1]
    assert open_texts("a" * 1001, contract).read(0).tolist() == [0] * 1001
    assert open_data("ab c", contract).text(0) == "ab c"


def test_a_file(tmp_path, contract):
    file = tmp_path / "notes of mine.txt"
    file.write_text("ab\n")
    for source in (file, str(file)):
        data = open_texts(source, contract)
        assert (data.name, data.label(0)) == ("notes of mine.txt", ("notes of mine.txt", None))
        assert data.text(0) == "ab\n"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"ab\r\nc", "ab\nc"),
        (b"ab\rc", "ab\nc"),
        (b"\xef\xbb\xbfab", "ab"),
        ("a\u00e9".encode(), "a\u00e9"),
        (b"a\xff", "a\ufffd"),
    ],
    ids=["CRLF", "CR", "BOM", "UTF-8", "broken"],
)
def test_line_ends_and_encodings(tmp_path, contract, raw, text):
    (tmp_path / "a.txt").write_bytes(raw)
    assert open_texts(tmp_path / "a.txt", contract).text(0) == text


def test_line_ends_of_a_text_itself(contract):
    assert open_texts("a\r\nb", contract).text(0) == "a\nb"


def test_a_folder_and_its_classes(tmp_path, contract):
    for name, text in (
        ("b/one.txt", "a"),
        ("a/two.md", "b"),
        ("a/deep/x.py", "c"),
        (".git/c", "a"),
        ("a/__pycache__/y", "a"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "a/picture.png").write_bytes(b"\x89PNG\0\0")
    data = open_texts(tmp_path, contract)
    assert [data.label(n) for n in range(len(data))] == [("a/deep/x.py", 0), ("a/two.md", 0), ("b/one.txt", 1)]
    assert data.classes == ("a", "b")
    assert data.name == tmp_path.name
    (tmp_path / "loose.txt").write_text("a")
    assert open_texts(tmp_path, contract).classes == ()


def test_folders_without_texts(tmp_path, contract):
    with pytest.raises(BadInput, match="holds no text files$"):
        open_texts(tmp_path, contract)
    (tmp_path / "a.bin").write_bytes(b"a\0b")
    with pytest.raises(BadInput, match="holds no text files, only 1 others"):
        open_texts(tmp_path, contract)


def test_an_archive(tmp_path, contract):
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("b.txt", "b\r\na")
        archive.writestr("a/a.txt", "a")
        archive.writestr("bad.bin", b"\0\0")
        archive.writestr("__pycache__/x.pyc", b"\0")
    data = open_texts(tmp_path / "texts.zip", contract)
    assert [data.label(n)[0] for n in range(len(data))] == ["a/a.txt", "b.txt", "bad.bin"]
    assert data.text(1) == "b\na"
    with pytest.raises(BadInput, match="bad.bin is no text: it holds zero bytes"):
        data.read(2)


def test_broken_and_empty_archives(tmp_path, contract):
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(BadInput, match="cannot be read as an archive"):
        open_texts(tmp_path / "a.zip", contract)
    with zipfile.ZipFile(tmp_path / "b.zip", "w"):
        pass
    with pytest.raises(BadInput, match="is an archive without files"):
        open_texts(tmp_path / "b.zip", contract)


def test_an_archive_that_is_gone_later(tmp_path, contract):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    data = open_texts(tmp_path / "a.zip", contract)
    (tmp_path / "a.zip").unlink()
    with pytest.raises(BadInput, match=r"a.txt in .*a.zip cannot be read"):
        data.read(0)


def test_binary_and_empty_files(tmp_path, contract):
    (tmp_path / "a.bin").write_bytes(b"ab\0c")
    with pytest.raises(BadInput, match="a.bin is no text: it holds zero bytes"):
        open_texts(tmp_path / "a.bin", contract).read(0)
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(BadInput, match="b.txt is empty"):
        open_texts(tmp_path / "b.txt", contract).read(0)


def test_a_file_that_is_not_there(contract):
    with pytest.raises(BadInput, match="there is no text file nowhere.txt; give a file, a folder"):
        open_texts("nowhere.txt", contract)


def test_lists(tmp_path, contract):
    (tmp_path / "a.txt").write_text("ab")
    data = open_texts(["a b", tmp_path / "a.txt", ("c c", 1), "b"], contract, ["no", "yes"])
    assert [data.label(n) for n in range(4)] == [
        ("text 0", None),
        (str(tmp_path / "a.txt"), None),
        ("text 2", 1),
        ("text 3", None),
    ]
    assert [data.text(n) for n in range(4)] == ["a b", "ab", "c c", "b"]
    assert (data.classes, data.name) == (("no", "yes"), "4 texts")
    assert open_texts([("a a", 0), ("b b", 2)], contract).classes == ("0", "1", "2")
    assert open_texts(data, contract) is data


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], "there are no texts in the list"),
        ([3], "item 0 is a int, no text"),
        (7, "a int is no text"),
        ({1, 2}, "a set is no text"),
    ],
)
def test_what_is_no_source(contract, source, words):
    with pytest.raises(BadInput, match=words):
        open_texts(source, contract)


def test_fingerprints_follow_the_texts(tmp_path, contract):
    file = tmp_path / "a.txt"
    file.write_text("ab")
    before = open_texts(tmp_path, contract).fingerprint()
    assert open_texts(tmp_path, contract).fingerprint() == before
    file.write_text("abc")
    assert open_texts(tmp_path, contract).fingerprint() != before
    one, two = (open_texts([text, "b b"], contract).fingerprint() for text in ("a a", "a c"))
    assert one != two
    assert open_texts([("a a", 0)], contract).fingerprint() != open_texts([("a a", 1)], contract).fingerprint()


# one text


def test_one_text(tmp_path, contract):
    (tmp_path / "a.txt").write_text("ab")
    own = open_texts(["a a", "b b"], contract)
    assert read_text(tmp_path / "a.txt", contract) == ("a.txt", "ab")
    assert read_text("a b", contract) == ("text", "a b")
    assert read_text("data:1", contract, own) == ("text 1", "b b")
    assert read_text(np.array([0, 1]), contract) == ("tokens", "ab")
    assert read_text(torch.tensor([[1, 0]]), contract) == ("tokens", "ba")


@pytest.mark.parametrize(
    ("source", "own", "words"),
    [
        ("data:0", None, "there is no data"),
        ("data:2", ["a a", "b b"], "2 texts has texts 0 to 1; there is no 2"),
        (np.array([9]), None, "run from 9 to 9"),
        (3.5, None, "a float is no text"),
    ],
)
def test_what_is_not_one_text(contract, source, own, words):
    with pytest.raises(BadInput, match=words):
        read_text(source, contract, None if own is None else open_texts(own, contract))


def test_a_folder_is_not_one_text(tmp_path, contract):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("a")
    with pytest.raises(BadInput, match="holds 2 texts; one is looked at here"):
        read_text(tmp_path, contract)


# model cards


NETWORK = """
from torch import nn
class Net(nn.Module):
    def __init__(self, words=4):
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(words, 3), nn.GRU(3, 5, batch_first=True), nn.Linear(5, words)
    def forward(self, ids):
        return self.head(self.rnn(self.embedding(ids))[0])
"""


@pytest.fixture(autouse=True)
def network(tmp_path_factory, monkeypatch):
    """A module with the network, where Python finds it."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "text_network_of_tests.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("text_network_of_tests", None)


def card(folder: Path, vocabulary: str, more: str = "", words: int = 4) -> Path:
    file = folder / "net.toml"
    file.write_text(
        f'source = "module:text_network_of_tests:Net"\nweights = "net.safetensors"\n[options]\nwords = {words}\n'
        f'[input]\nkind = "text"\nvocabulary = {vocabulary}\n{more}'
    )
    net = {
        "embedding.weight": torch.randn(words, 3),
        "head.weight": torch.randn(words, 5),
        "head.bias": torch.zeros(words),
    }
    save_file(
        net | {f"rnn.{k}": v for k, v in nn.GRU(3, 5).state_dict().items()}, str(file.with_suffix(".safetensors"))
    )
    return file


@pytest.mark.parametrize("form", ["string", "list", "json", "json-mapping", "txt"])
def test_a_card(tmp_path, form):
    (tmp_path / "list.json").write_text(json.dumps(["a", "b", " ", "?"]))
    (tmp_path / "map.json").write_text(json.dumps({"b": 1, "a": 0, " ": 2, "?": 3}))
    (tmp_path / "words.txt").write_text("a\nb\n \n?\n")
    given = {
        "string": '"ab ?"',
        "list": '["a", "b", " ", "?"]',
        "json": '"list.json"',
        "json-mapping": '"map.json"',
        "txt": '"words.txt"',
    }
    model = penlight.load(card(tmp_path, given[form], 'unknown = "?"\nlength = 9\n'), trust=True)
    assert model.contract.vocabulary == ("a", "b", " ", "?")
    assert (model.contract.kind, model.contract.unknown, model.contract.shape) == ("text", 3, (9,))
    assert model.labels == ("a", "b", " ", "?")  # its classes are the tokens
    assert model.layers["rnn.hidden_l0"].layout == "NLC"
    assert model.find("class:b")[0].index == 1


def test_a_card_of_words(tmp_path):
    text = 'tokens = "words"\nlower = true\npattern = "[a-z]+"\nunknown = "<unk>"\n'
    model = penlight.load(card(tmp_path, '["<unk>", "cat", "dog", "s"]', text), trust=True)
    assert model.contract.encode("Cat DOG-bird").tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("vocabulary", "more", "error", "words"),
    [
        ('"ab ?"', 'tokens = "letters"\n', UnknownName, "kind of tokens 'letters'"),
        ('"ab ?"', "vocab = 3\n", UnknownName, r"key in \[input\] of a text 'vocab'"),
        ('"none.json"', "", BadReference, "none.json cannot be read"),
        ('"broken.json"', "", BadReference, "broken.json cannot be read"),
        ('"ab ?"', 'length = "long"\n', BadReference, r"\[input\] cannot be read"),
        ("7", "", BadReference, r"\[input\] cannot be read"),
        ('"aa ?"', "", BadReference, "'a' stands 2 times"),
        ('"ab ?"', "unknown = 9\n", BadReference, "unknown is token 9"),
    ],
)
def test_cards_that_are_wrong(tmp_path, vocabulary, more, error, words):
    (tmp_path / "broken.json").write_text("[")
    with pytest.raises(error, match=words):
        penlight.load(card(tmp_path, vocabulary, more), trust=True)


def test_a_card_without_a_vocabulary(tmp_path):
    file = card(tmp_path, '"ab ?"')
    file.write_text(file.read_text().replace('vocabulary = "ab ?"', ""))
    with pytest.raises(BadReference, match="of a text lacks 'vocabulary'"):
        penlight.load(file, trust=True)


def test_a_vocabulary_larger_than_the_networks(tmp_path):
    with pytest.raises(penlight.PenlightError, match=r"fails on an input|index out of range"):
        penlight.load(card(tmp_path, '"abcdefghijklmnop"')).layers  # noqa: B018 - read on demand
