"""What results say of where they come from."""

import json
from datetime import UTC, datetime
from typing import Any

from depthsys._version import __version__
from depthsys.lm.run import Run


def provenance(model: Any, action: str) -> dict[str, str | int]:
    """Attrs of a result computed with this model; ``action`` goes into its history."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "depthsys_version": __version__,
        "model": model.name,
        "revision": model.revision,
        "source": model.source,
        **({"adapter": model.adapter} if model.adapter else {}),
        "model_fingerprint": model.fingerprint,
        "contract": json.dumps(model.contract),
        "dtype": model.dtype_name,
        **({"products": model.products} if model.products != "float32" else {}),
        "device": str(model.device),
        **model.prompting.attrs,
        "left_padding": int(model.left_padding),
        "created": created,
        "history": f"{created} depthsys.lm.{action}",
    }


def which(run: Run) -> dict[str, str | int]:
    """Attrs that say which prompts a result is of, and how many of them were cut."""
    return {
        "prompts_sha256": run.sha256,
        "tokens_sha256": run.tokens_sha256,
        "n_cut": run.n_cut,
        **({"token_note": run.token_note} if run.token_note else {}),
        **_parts_of(run),
    }


def _parts_of(run: Any) -> dict[str, int]:
    """The size of shards, which the last bits of a result depend on."""
    return {"shard": run.shard_size} if len(getattr(run, "shards", ())) > 1 else {}


def stamp(run: Run, action: str) -> dict[str, str | int]:
    """Both: which model, which prompts."""
    return {**provenance(run.model, action), **which(run)}
