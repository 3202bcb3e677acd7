"""How a text becomes a prompt: what may be asked for, and what results say of it."""

import numpy as np
import pytest
import xarray as xr

from depthsys.prompting import CUTS, Prompting, in_words

ALL = {
    "template": "Review: {text}\nSentiment:",
    "chat": True,
    "system_message": "Be brief.",
    "answer": "It is",
    "read_at": -2,
    "cut": "middle",
    "max_tokens": 9,
}


@pytest.mark.parametrize("given", [{}, ALL, {"read_at": 0}, {"chat": True, "system_message": ""}])
def test_it_is_found_again_in_the_attrs_of_a_file(tmp_path, given):
    made = Prompting(**given)
    xr.Dataset(attrs=made.attrs).to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    attrs = xr.load_dataset(tmp_path / "x.nc", engine="h5netcdf").attrs
    assert Prompting.stored(attrs) == made
    assert all(isinstance(value, (str, int)) for value in made.attrs.values())


def test_what_an_older_file_lacks_has_its_default():
    assert Prompting.stored({"max_tokens": np.int64(7), "model": "m"}) == Prompting(max_tokens=7)


def test_a_marker_is_any_other_string():
    found = [Prompting(read_at=at).marker for at in ("last", "text", 3, "Sentiment:")]
    assert found == [None, None, None, "Sentiment:"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_tokens": 3, "cut": "left"}, ""),
        ({"chat": True}, "texts in the chat template"),
        ({"read_at": "text"}, "read at the last token of the text"),
        ({"read_at": "so:"}, "read at the end of 'so:'"),
        (
            ALL,
            "texts in the template 'Review: {text}\\nSentiment:', in the tokenizer's chat template"
            ", system message 'Be brief.', answer begun with 'It is', read at token -2",
        ),
    ],
)
def test_in_words(given, words):
    assert in_words(Prompting(**given)) == words


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"template": "Review:"}, ValueError, r"`template` must hold \{text\} once, .* 0 of them"),
        ({"template": "{text} {text}"}, ValueError, "with 2 of them. Write it as in 'Review: "),
        ({"template": 3}, TypeError, "`template` must be a string; got 3. Leave it out for none."),
        ({"chat": True, "answer": 1}, TypeError, "`answer` must be a string; got 1"),
        ({"chat": "yes"}, TypeError, "`chat` must be True or False; got 'yes'. Write True."),
        (
            {"system_message": "s"},
            ValueError,
            "`system_message` must come with `chat`, whose .*'s'",
        ),
        ({"answer": "a"}, ValueError, "`answer` must come with `chat`, .* Add `chat`, or leave"),
        (
            {"cut": "top"},
            ValueError,
            r"`cut` must be one of \('right', 'left', 'middle'\); got 'to",
        ),
        ({"max_tokens": 0}, ValueError, "`max_tokens` must be a whole number >= 1; got 0"),
        ({"max_tokens": 1.5}, ValueError, "`max_tokens` must be a whole number >= 1; got 1.5"),
        (
            {"read_at": ""},
            ValueError,
            "`read_at` must be 'last', 'text', a whole number, or a mark",
        ),
        ({"read_at": 0.5}, ValueError, "got 0.5. The default is 'last'."),
        ({"read_at": True}, ValueError, "got True. The default is 'last'."),
    ],
)
def test_what_may_not_be_asked_for(given, error, message):
    with pytest.raises(error, match=message):
        Prompting(**given)


def test_numbers_of_numpy_are_numbers():
    made = Prompting(read_at=np.int64(-1), max_tokens=np.int32(4))
    assert (type(made.read_at), type(made.max_tokens)) == (int, int)
    assert set(CUTS) == {"right", "left", "middle"}
