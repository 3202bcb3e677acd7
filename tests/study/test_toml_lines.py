"""Lines of keys, against a slow way: the key goes when its line does."""

import tomllib

from depthsys.study.toml_lines import key_lines, line_of

TEXT = '''
# a comment with = in it
name = "a = b" # [not] a table
"quoted key" = 1
text = """
fake = 1
[fake]
"""
numbers = [
  1,  # one = 1
  2,
]

[settings]
split = "1/1/1"

[settings.inner]
deep = true

[[models]]
source = 'x'
[[models]]
order = 3
source = "y"
'''


def paths(value, before=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*before, key)
            yield from paths(inner, (*before, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, inner in enumerate(value):
            yield from paths(inner, (*before, number))


def test_every_key_has_its_line_and_no_other_has():
    found = key_lines(TEXT)
    keys = {p for p in paths(tomllib.loads(TEXT)) if p != ("models",)}
    assert keys <= set(found)
    assert set(found) - keys == {("models", 0), ("models", 1)}
    lines = TEXT.splitlines()
    for path, number in found.items():
        last = path[-1] if isinstance(path[-1], str) else path[-2]
        assert str(last) in lines[number - 1]
    assert found["numbers",] == 9
    assert found["models", 1, "source"] == len(lines)


def test_a_key_that_is_not_there_has_the_line_of_its_table():
    found = key_lines(TEXT)
    assert line_of(found, ("models", 1, "none")) == found["models", 1]
    assert line_of(found, ("nothing",)) is None


def test_dotted_keys_have_their_lines():
    found = key_lines('a = 1\nsettings.split = "1/1/1"\n[b]\n"c d" . e = 2\n')
    assert (found["settings", "split"], found["b", "c d", "e"]) == (2, 4)


def test_separators_of_unicode_end_no_line():
    assert key_lines('# one\u2028line\r\na = "x\u0085y"\r\nb = 1\r\n') == {("a",): 2, ("b",): 3}


def test_a_long_list_is_read_once(monkeypatch):
    calls = []
    read = tomllib.loads
    monkeypatch.setattr(tomllib, "loads", lambda text: calls.append(text) or read(text))
    prompts = "".join(f'  "prompt {n}",\n' for n in range(100))
    assert key_lines(f"a = [\n{prompts}]\nb = 1\n") == {("a",): 1, ("b",): 103}
    assert len(calls) == 3  # where it begins, where it may end, and b
