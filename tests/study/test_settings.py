"""What may be asked for."""

import inspect
import json

import pytest
import torch

from depthsys import lm
from depthsys.shift import Shift
from depthsys.study import Settings
from depthsys.study.settings import IDENTIFICATION


def test_what_is_not_given_has_its_default_and_is_not_asked():
    settings = Settings.checked(order=3, seed=None, split="40/20/10")
    assert (settings.basis, settings.order, settings.seed) == ("ensemble", 3, 0)
    assert settings.split == (40, 20, 10)
    assert settings.asked == {"order", "split"}
    assert settings.n_each == 20  # all held-out prompts, as there are fewer than 64
    assert Settings.checked().n_each == 64
    assert Settings.checked(n_each=0, seed=0).asked == {"n_each", "seed"}


def test_the_method_has_the_size_asked_for():
    assert Settings.checked(basis="pod", order=5).method() == lm.Pod(order=5)
    assert Settings.checked(basis="balanced", tolerance=0.1).method() == lm.Balanced(tolerance=0.1)


def test_default_orders_end_at_the_width_and_others_are_refused():
    assert Settings.checked().for_width(9).orders == (1, 2, 4, 8)
    assert Settings.checked(orders="2, 9").for_width(9).orders == (2, 9)
    with pytest.raises(ValueError, match="`--orders` must be at most 8, the width of the model"):
        Settings.checked(orders="2,9").for_width(8)


def test_torchs_own_dtype_is_as_good_as_its_name():
    assert Settings.checked(dtype=torch.float64).dtype == "float64"
    assert Settings.checked(dtype="torch.float32").dtype == "float32"


def test_sizes_of_memory_are_parsed():
    found = Settings.checked(device_map="auto", max_memory="0=20GiB, cpu=1000").max_memory
    assert found == ((0, "20GiB"), ("cpu", 1000))
    assert Settings.checked(max_memory={"cpu": "2GB"}).max_memory == (("cpu", "2GB"),)


@pytest.mark.parametrize("given", ["20GiB", "gpu=1", "cpu=", "0=1,0=2", ""])
def test_no_sizes_of_memory(given):
    with pytest.raises(ValueError, match=f"`--max-memory` must be sizes .* got '{given}'. Write"):
        Settings.checked(max_memory=given)


def test_methods_are_parsed():
    assert Settings.checked(methods="pod, krylov").methods == ("pod", "krylov")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": "svd"}, "`--basis` must be one of ensemble, .* got 'svd'. Pick one."),
        (
            {"concept": "svm"},
            "`--concept` must be one of mean_difference, .*; got",
        ),
        ({"readout": "all"}, "`--readout` must be concept or profile; got 'all'"),
        ({"energy": "none"}, "`--energy` must be relative or absolute; got 'none'"),
        (
            {"dtype": "float8"},
            "`--dtype` must be float32, float64, bfloat16 or float16; got 'float8'",
        ),
        ({"cut": "top"}, "`--cut` must be right, left or middle; got 'top'. Pick one."),
        ({"order": 0}, "`--order` must be >= 1; got 0. The default is 32."),
        ({"tolerance": 1.0}, "`--tolerance` must be a fraction between 0 and 1; got 1.0."),
        ({"order": 2, "tolerance": 0.1}, "must not both be given; got 2 and 0.1. Leave one out."),
        ({"max_tokens": 0}, "`--max-tokens` must be >= 1; got 0"),
        ({"seed": -1}, "`--seed` must be >= 0; got -1"),
        ({"eps": float("nan")}, "`--eps` must be positive and finite; got nan"),
        ({"eps": float("inf")}, "`--eps` must be positive and finite; got inf"),
        ({"target": 0.0}, "`--target` must be finite and not zero; got 0.0. Give a shift."),
        ({"target": "1 volt"}, "`--target` must be a number, .* got .1 volt.. Write it as in 1std"),
        ({"layers": "4-"}, "`--layers` must be layers; got .4-.. Write them as in 0,4-12"),
        ({"skip_layers": "5-2"}, "`--skip-layers` must be layers; got .5-2."),
        ({"max_relative_push": 0.0}, "`--max-relative-push` must be a positive fraction .* got 0"),
        ({"max_layers": 0}, "`--max-layers` must be >= 1; got 0"),
        ({"target": float("nan")}, "`--target` must be finite and not zero; got nan"),
        ({"split": "4/2"}, "`--split` must be three positive numbers concept/operating/held-out"),
        ({"split": "4/0/2"}, "`--split` must be three positive numbers"),
        ({"methods": "pod,svd"}, "`--methods` must be names out of ensemble, .*; got 'svd'"),
        ({"methods": "pod,pod"}, "`--methods` must name a method once; got 'pod' 2 times"),
        ({"orders": "4,2"}, "`--orders` must be rising whole numbers >= 1; got '4,2'"),
        ({"orders": "9" * 5000}, "`--orders` must be rising whole numbers >= 1"),
        ({"split": "4/2/3", "n_each": 7}, r"`--each` must be in 0..6, the number of held-out"),
        ({"classes": "a"}, "`--classes` must be two names; got 'a'. Write them as in anger,joy"),
        ({"classes": ("a", "a")}, r"`--classes` must be two names; got \['a', 'a'\]"),
        ({"pairs": "a,b,c"}, "`--pairs` must be two names; got 'a,b,c'. Write them as in positive"),
        ({"format": "xls"}, "`--format` must be one of csv, .*; got 'xls'. Pick one."),
        ({"n_each": -1}, r"`--each` must be in 0..400, .* got -1"),
    ],
)
def test_what_may_not_be_asked_for(options, message):
    with pytest.raises(ValueError, match=message):
        Settings.checked(**options)


def test_how_texts_are_read():
    assert Settings().layout == {}
    asked = {"text_column": "a", "classes": '"sad, blue", glad', "pairs": None}
    found = Settings.checked(**asked, against_rest=True).layout
    assert found == {"text_column": "a", "classes": ("sad, blue", "glad"), "against_rest": True}
    assert Settings.checked(**json.loads(json.dumps(found))).layout == found  # as it is stored


def test_an_unknown_option_is_a_mistake_of_the_caller():
    with pytest.raises(TypeError, match=r"must be attributes of Settings; got .*colour"):
        Settings.checked(colour="red")


def test_options_that_identify_are_attributes():
    assert set(IDENTIFICATION) <= set(inspect.signature(Settings).parameters)


def test_targets_and_layers_are_read_as_typed():
    made = Settings.checked(target="-2 log-odds", layers="4-6,1", skip_layers="5")
    assert made.target == Shift(-2.0, "log-odds")
    assert made.pushed_layers(8) == [1, 4, 6]
    assert Settings.checked().pushed_layers(8) is None
    assert Settings.checked(skip_layers="0").pushed_layers(3) == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "2,8"}, "`--layers` must be layers of the model, 0 to 7; got 8. Leave it out"),
        ({"skip_layers": "0-9"}, "`--skip-layers` must be layers of the model, 0 to 7; got 8"),
        ({"skip_layers": "0-7"}, "`--skip-layers` must leave a layer that may push"),
    ],
)
def test_layers_that_the_model_does_not_have(options, message):
    with pytest.raises(ValueError, match=message):
        Settings.checked(**options).pushed_layers(8)
