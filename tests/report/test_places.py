"""Paths of the machine that made results do not come into a page."""

import html
import re
from dataclasses import replace

import pytest

from depthsys.report.html import Stage, page
from depthsys.report.html.places import Places
from depthsys.study.reported import read_results

SECRET = ("/home/", "/mnt/", "/tmp", "C:", "someone", "disk")


def test_a_page_holds_no_absolute_path(study_store):
    results = read_results(study_store)
    attrs = {
        "model": "/home/someone/models/gpt2_small",
        "texts": "/mnt/disk/sets of texts/films.csv",
        "source": "GGUF file C:\\disk\\a.gguf",
        "adapter": "merged from /mnt/disk/adapters/lora, of rank 4",
        "direction_note": f"read beside {study_store.parent.as_posix()}/own/notes.txt",
    }
    cells = [
        replace(
            cell,
            stages={n: Stage(s.variables, {**s.attrs, **attrs}) for n, s in cell.stages.items()},
            attrs={n: f"{said}: '/mnt/disk/x.csv' is gone" for n, said in cell.attrs.items()},
        )
        for cell in results.cells
    ]
    about = {
        **results.attrs,
        "command": "depthsys study run /mnt/disk/study.toml --out=/mnt/disk/s.zarr",
        "machine": "a node of /mnt/disk/cluster",
    }
    settings = 'texts = "/home/someone/films.csv"\nmodels = "https://hf.co/models/gpt2"'
    notes = ("file:///mnt/disk/other.nc: not read",)
    made = html.unescape(
        page(replace(results, cells=tuple(cells), attrs=about, settings=settings, notes=notes))
    )
    text = re.sub(r"<(script|style)>.*?</\1>", "", made, flags=re.DOTALL)
    assert [word for word in (*SECRET, str(study_store.parent)) if word in text] == []
    for shown in (
        "~/models/gpt2_small: L = 4", "texts films.csv, ", "GGUF file …/a.gguf",
        "merged from …/lora, of rank 4", "Read beside own/notes.txt", "'…/x.csv' is gone",
        "study run …/study.toml --out=…/s.zarr", 'texts = "~/films.csv"', "…/other.nc: not read",
        "https://hf.co/models/gpt2", "<dd>study.zarr</dd>",
    ):  # fmt: skip
        assert shown in text, shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("got '/home/some one/films/a.csv' here", "got '~/films/a.csv' here"),
        ('texts = "/mnt/my disk/films of/a.csv"', 'texts = "…/a.csv"'),
        ("run '/a/my films/s.toml' --out /a/s.zarr", "run 'my films/s.toml' --out s.zarr"),
        ("'/b/c' or '/d/e'", "'…/c' or '…/e'"),
        ("cd /home/someone", "cd ~/"),
    ],
)
def test_names_of_folders_go_with_their_spaces_and_homes_with_their_names(said, shown):
    assert Places("/a").inside(said) == shown


@pytest.mark.parametrize(
    "said",
    ["100/50/50 per class", "yes and/or no", "https://hf.co/a/b", "~/a/b", "../a/b.csv", "a / b"],
)
def test_what_is_no_absolute_path_stays(said):
    assert Places("/a").inside(said) == said


def test_templates_and_classes_stay():
    kept = {"template": "/inst/a {text}", "classes": '["/a/b", "c"]', "max_tokens": 128}
    assert Places("").attrs(kept) == kept
