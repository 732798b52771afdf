"""Properties of text: what Python's tokenizer and regular expressions say of every character, and the user's own."""

from __future__ import annotations

import io
import sys
import tokenize

import numpy as np
import pytest

from penlight.errors import BadOption, UnknownName
from penlight.inputs.properties import PROPERTIES, at_tokens, chosen

SOURCE = '''import os, sys
def f(a, b=(1, 2)):
    """Doc "q" here."""
    # see http://x.org/a b
    if a:
        s = rb'ab' + f"{a['x']} y"

        return [a,
            {b}]
class A: pass
'''


def marked(name: str, text: str = SOURCE) -> list[str]:
    """The stretches of text at which a property is 1."""
    values, found, run = PROPERTIES[name].find(text), [], ""
    for character, value in zip(text, values.tolist(), strict=True):
        if value == 1:
            run += character
        elif run:
            found.append(run)
            run = ""
    return [*found, run] if run else found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("inside a string", ['"""Doc "q" here.""', "'ab", "\"{a['x']} y"]),
        ("inside a docstring", ['"""Doc "q" here.""']),
        ("inside a triple-quoted string", ['"""Doc "q" here.""']),
        ("inside a comment", ["# see http://x.org/a b"]),
        ("inside a header", ["def f(a, b=(1, 2))", "class A"]),
        ("inside an import", ["import os, sys"]),
        ("keyword", ["import", "def", "if", "return", "class", "pass"]),
        ("number", ["1", "2"]),
        ("inside a URL", ["://x.org/a"]),
        ("capital letter", ["D", "A"]),
        ("line start", ["i", "d", '"', "#", "i", "s", "r", "{", "c"]),
    ],
)
def test_stretches(name: str, expected: list[str]) -> None:
    assert marked(name) == expected


def test_depths_along_the_text() -> None:
    brackets, levels, column = (PROPERTIES[n].find(SOURCE) for n in ("bracket depth", "indentation", "line position"))
    at = {piece: SOURCE.index(piece) for piece in ("(a, b", "(1", "))", ")):", "[a", "{b", "}]", "]\nclass")}
    assert [brackets[at[p]] for p in ("(a, b", "(1", "))", "[a", "{b", "}]", "]\nclass")] == [1, 2, 1, 1, 2, 1, 0]
    assert brackets[at[")):"] + 1] == 0
    starts = {word: SOURCE.index(word) for word in ("import", '"""Doc', "# see", "if a", "s = rb", "{b", "class")}
    assert [levels[i] for i in starts.values()] == [0, 1, 1, 1, 2, 2, 0]
    assert np.isnan(levels[starts["if a"] - 4 : starts["if a"]]).all()  # white space before it is read: not known yet
    assert column[:3].tolist() == [1, 2, 3]
    assert column[SOURCE.index("\n")] == 15
    assert column[SOURCE.index("\n") + 1] == 1


def test_keywords_and_strings_are_those_of_the_tokenizer() -> None:
    import keyword

    lines = SOURCE.splitlines(keepends=True)
    begins = np.cumsum([0, *map(len, lines)])
    names = [t for t in tokenize.generate_tokens(io.StringIO(SOURCE).readline) if t.type == tokenize.NAME]
    expected = np.zeros(len(SOURCE))
    for token in names:
        if keyword.iskeyword(token.string):
            start = begins[token.start[0] - 1] + token.start[1]
            expected[start : start + len(token.string)] = 1
    assert np.array_equal(PROPERTIES["keyword"].find(SOURCE), expected)


def test_comments_before_a_block_has_begun_or_after_it_ended() -> None:
    text = "def f():\n    # inside\n    x = 1\n# outside\ny = 2\n"
    levels = PROPERTIES["indentation"].find(text)
    assert levels[text.index("# inside")] == 1
    assert levels[text.index("# outside")] == 0


def test_cut_source_is_read_as_far_as_it_goes() -> None:
    text = 'a = 1\nb = "x"\nc = 2\nd = """cut off'
    strings = PROPERTIES["inside a string"].find(text)
    place = text.index('"""')
    assert strings[text.index('"x"')] == 1
    assert np.isnan(strings[place:]).all()
    assert np.isfinite(strings[: place - 1]).all()
    assert np.isfinite(PROPERTIES["bracket depth"].find("f(1,\n  [2"[:8])).sum() == 0  # no statement is whole


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox isn't here.\nIt went home at 5 o'clock.\n",
        "<html>\n<head>\n<title>A page</title>\n</head>\n",
        "int main(void) {\n  return 0;\n}\n",
    ],
)
def test_what_is_no_python_is_said_nothing_of(text: str) -> None:
    assert np.isnan(PROPERTIES["inside a string"].find(text)).all()
    assert np.isnan(PROPERTIES["indentation"].find(text)).all()
    assert np.isfinite(PROPERTIES["white space"].find(text)).all()


def test_python_2_and_soft_keywords_are_python() -> None:
    assert np.isfinite(PROPERTIES["name"].find("print x\nmatch y:\n    case z:\n        pass\n")).all()


@pytest.mark.parametrize("text", ["", "\n", " ", "\t\n\x0c", "'", "((((", ")", "\\", "\x00", "é = 'ü'\n", "if x:\n"])
def test_any_text_has_a_value_a_character(text: str) -> None:
    for one in chosen():
        values = one.find(text)
        assert values.shape == (len(text),)
        assert values.dtype == np.float32


def test_quotes_and_sentences_of_plain_text() -> None:
    text = "He said \"no way\". It's 'fine' now? Yes."
    assert marked("inside quotes", text) == ['"no way', "'fine"]
    assert marked("sentence end", text) == [" ", " "]
    assert marked("inside parentheses", "a (b (c) d) e") == ["(b (c) d"]


def test_own_properties() -> None:
    def vowels(text: str) -> list[bool]:
        return [c in "aeiou" for c in text]

    def length(text: str) -> np.ndarray:
        return np.arange(len(text))

    todo, vowel, depth = chosen(["todo=TODO|FIXME", vowels, length])
    assert (todo.name, todo.kind, vowel.name, vowel.kind, depth.kind) == ("todo", "yes/no", "vowels", "yes/no", "depth")
    assert todo.find("x TODO").tolist() == [0, 0, 1, 1, 1, 1]
    assert vowel.find("abe").tolist() == [1, 0, 1]
    assert chosen(["string"])[0].name == "inside a string"
    assert len(chosen()) == len(PROPERTIES)


def test_a_function_is_found_by_its_module(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("penlight_test_module")
    module.hashes = lambda text: [c == "#" for c in text]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "penlight_test_module", module)
    (one,) = chosen(["module:penlight_test_module:hashes"])
    assert one.name == "hashes"
    assert one.find("a#").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        ("strin", UnknownName, "inside a string"),
        ("a=(", BadOption, "no regular expression"),
        (lambda text: [1], BadOption, "one bool or number a character"),
        (lambda text: 1 / 0, BadOption, "ZeroDivisionError"),
        ("module:no_such_module_here:f", BadOption, "cannot be imported"),
        ("module:os", BadOption, "module:package.module:function"),
        ("module:os:sep", BadOption, "no function"),
    ],
)
def test_what_cannot_be_a_property(wanted: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        chosen([wanted])  # type: ignore[list-item]
    with pytest.raises(BadOption, match="2 times"):
        chosen(["digit", "digit"])


def test_values_at_tokens_are_those_of_their_last_characters() -> None:
    values = np.arange(6, dtype=np.float32)
    assert at_tokens(values, [(0, 2), (3, 6)]).tolist() == [1, 5]
