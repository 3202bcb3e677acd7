"""The embedded default: a text grammar and small models trained on its text.

Import `depthsys.demo.grammar` for the text; it needs the standard library only. The models
lie in the folder ``models`` beside this file, described in ``models/CARD.md``.
"""

from pathlib import Path

MODELS = ("demo_48x4", "demo_96x8", "demo_128x12")


def model_path(name: str) -> Path:
    """Folder of an embedded model; ValueError for a name that is not in `MODELS`."""
    if name not in MODELS:
        raise ValueError(f"`name` must be one of {MODELS}; got {name!r}. Pick one.")
    return Path(__file__).parent / "models" / name
