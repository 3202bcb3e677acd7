"""What steering does to the texts that a model writes, and what it costs them."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.accuracy import mean_bounds
from depthsys.lm.batches import writing_batches
from depthsys.lm.directions import direction_note
from depthsys.lm.hf.tokens import tokens_sha256
from depthsys.lm.hf.writing import check_room, end_tokens, padded, read_plainly, read_steered
from depthsys.lm.kinds import MODEL, check_kinds, short
from depthsys.lm.model import DepthModel
from depthsys.lm.positions import Positions, checked
from depthsys.lm.precision import wide
from depthsys.lm.progress import bar
from depthsys.lm.readouts import Readout, ReadoutLike, checked_readout
from depthsys.lm.stamp import provenance
from depthsys.lm.steering import steering

# Bytes of logits that are held at once.
LOGITS = 2**26
REPEATED = 3  # words in a row that count as repeated
MEASURES = ("readout", "readout_new", "log_odds", "log_perplexity", "kl", "repetition", "n_new")

PlanAt = xr.Dataset | tuple[xr.Dataset, Positions | None]
Words = Sequence[str | int]


def generation_effects(
    model: DepthModel,
    prompts: Any,
    concept: xr.Dataset,
    plans: Mapping[str, PlanAt],
    *,
    strengths: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    max_new_tokens: int = 40,
    words: tuple[Words, Words] | None = None,
    readout: ReadoutLike = "concept",
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> xr.Dataset:
    r"""What the model writes under plans, what that text is, and what it costs.

    Each text is written once for every plan and strength, and read twice: by the model as it is,
    which judges it, and by the steered one.

    Parameters
    ----------
    model
        The model.
    prompts
        Texts, put into the model's template, or token ids.
    concept
        The direction that is read; also the one that plans push along, unless a plan holds a
        ``direction`` of its own (as control vectors do).
    plans
        Plans by name, each alone or with the tokens where it acts, see `steering`.
    strengths
        Factors on the plans; 0 is the model as it is, written once for all plans.
    max_new_tokens
        The longest new text.
    words
        Words of the positive and of the negative class, each one token: texts (mind the leading
        space) or token ids.
    readout
        What is read of the states behind the last block, one number: see `identify`.
    n_bootstrap, level, seed
        Of the percentile intervals, which resample prompts; ``seed`` also of sampling.
    **options
        Of the model's own ``generate``, for example ``do_sample=True``.

    Returns
    -------
    xr.Dataset
        Over (plan, strength, prompt): ``text``, the new text; ``readout``, at its last token, and
        ``readout_new``, mean over its tokens, both read by the unsteered model, so that they say
        what the text is and not what was added to the states; ``log_odds`` at the end of the
        prompt under steering, log p(positive words) - log p(negative words) of the first new
        token (NaN without ``words``). The prices: ``perplexity`` of the new text under the
        unsteered model; ``kl``, mean over new tokens of KL(steered || unsteered) of the next
        token, in nats; ``repetition``, the share of three tokens in a row that came before in the
        new text. ``n_new``, new tokens, with the one that ends a text.

        For each number a mean (plan, strength, bound) with its interval, ``readout_mean`` and so
        on (for perplexity the exponential of the mean logarithm), and ``readout_shift`` and
        ``readout_new_shift`` (plan, strength, bound), paired differences to strength 0.
        ``positions`` (plan).

    Raises
    ------
    TypeError, ValueError
        If a plan does not fit, there are no plans or strengths, words are not single tokens or in
        both classes, the readout has several outputs, or there is no room for the text.
    FloatingPointError
        If a push is so large that a state overflows.
    """
    given = {"model": model, "concept": concept}
    check_kinds("generation_effects", given, {"model": MODEL})
    chosen = _named(plans)
    factors = _factors(strengths)
    reader = checked_readout(model, readout, concept)
    if reader.n_outputs != 1:
        raise ValueError(
            f"`readout` must be one number here; got {reader.n_outputs} outputs. Select one "
            "direction: `concept.isel(input=0)`."
        )
    if not isinstance(level, (int, float)) or not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1; got {short(level)}. Write 0.95.")
    classes = None if words is None else _word_tokens(model, words)
    rows, n_cut = model.tokenize(prompts)
    check_room(model.hf, rows, max_new_tokens)
    for name, (plan, positions) in chosen.items():
        with _told(name), steering(model, _direction(plan, concept), plan, positions=positions):
            pass  # all of them fit, before any text is written
    written = {**options, "max_new_tokens": max_new_tokens}
    work = _Work(model, prompts, rows, reader, classes, written, seed)
    shape = (len(chosen), len(factors), len(rows))
    found = {name: np.full(shape, np.nan) for name in MEASURES}
    texts = np.empty(shape, dtype=object)
    base = work.of(None)
    with bar("write", len(chosen) * len(factors), "text") as shown:
        for i, j in np.ndindex(shape[:2]):
            plan, positions = list(chosen.values())[i]
            at = (_direction(plan, concept), plan, positions, factors[j])
            with _told(list(chosen)[i]):
                measured, text = base if factors[j] == 0 else work.of(at)
            for name in MEASURES:
                found[name][i, j] = measured[name]
            texts[i, j] = text
            shown.update(1)
    bounds = {"n_bootstrap": n_bootstrap, "level": level, "seed": seed}
    names = [
        str(checked(at or plan.attrs.get("positions", "last"))) for plan, at in chosen.values()
    ]
    attrs = provenance(model, "generation_effects") | direction_note(concept) | bounds
    attrs |= {
        "tokens_sha256": tokens_sha256(rows),
        "n_cut": n_cut,
        "max_new_tokens": max_new_tokens,
        "readout": reader.name,
        "prediction": "none: what is written is measured",
    }
    return _result(found, texts, base[0], list(chosen), factors, names, bounds).assign_attrs(attrs)


class _Work:
    """Writing and reading the texts of all prompts under one plan at a time."""

    def __init__(self, model: DepthModel, prompts, rows, reader: Readout, classes, written, seed):
        self.model, self.prompts, self.rows = model, prompts, rows
        self.reader, self.classes = reader, classes
        self.written, self.seed = written, seed
        self.ends = end_tokens(model.hf)

    def of(self, at: tuple | None) -> tuple[dict[str, np.ndarray], list[str]]:
        """Measures (prompt) and texts; ``at``: concept, plan, positions, strength."""
        with (
            self._steering(at) if at else nullcontext(),
            same_chance(self.seed, self.model.device),
        ):
            # of texts, not of their rows: to token ids no template is added
            new = self.model.new_tokens(self.prompts, **self.written)
        found = {name: np.full(len(new), np.nan) for name in MEASURES}
        longest = max(map(len, new))
        n_words = self.model.hf.get_output_embeddings().weight.shape[0]
        count = min(32, max(1, LOGITS // (4 * longest * n_words)))
        batches = writing_batches(
            [len(row) for row in self.rows], max_rows=count, padded=self.model.left_padding
        )
        for numbers in batches:
            measured = self._read(numbers, [new[i] for i in numbers], at)
            for name, values in measured.items():
                found[name][numbers] = values
        if not np.isfinite(found["kl"]).all():
            raise FloatingPointError(
                "the states must stay finite; a push overflows in the text that is written. Use "
                "smaller strengths."
            )
        found["repetition"] = np.array([repetition(row) for row in new])
        found["n_new"] = np.array([len(row) for row in new], dtype=float)
        return found, [self._text(row) for row in new]

    def _steering(self, at: tuple):
        concept, plan, positions, strength = at
        return steering(self.model, concept, plan, positions=positions, strength=strength)

    def _text(self, row: list[int]) -> str:
        if self.model.tokenizer is None:
            return " ".join(map(str, row))
        return self.model.tokenizer.decode(row, skip_special_tokens=True)

    def _read(self, numbers: np.ndarray, new: list[list[int]], at: tuple | None) -> dict:
        blocks = self.model.blocks
        ids, mask = padded([self.rows[i] for i in numbers], blocks.device)
        n_prompt, longest = ids.shape[1], max(map(len, new))
        behind = torch.tensor([[*row, *[0] * (longest - len(row))] for row in new]).to(ids)
        ids, mask = torch.cat([ids, behind], 1), torch.cat([mask, torch.ones_like(behind)], 1)
        logits, states = read_plainly(blocks, ids, mask, longest + 1)
        plain = torch.log_softmax(wide(logits[:, :-1]), -1)
        steered = plain
        if at is not None:
            with self._steering(at) as here, here.prompts_of(n_prompt):
                pushed = read_steered(blocks, ids, mask, longest + 1)
            steered = torch.log_softmax(wide(pushed[:, :-1]), -1)
        lengths = torch.tensor([len(row) for row in new], device=ids.device)
        is_new = torch.arange(longest, device=ids.device) < lengths[:, None]
        chosen = plain.gather(-1, behind[..., None])[..., 0]
        kl = (steered.exp() * (steered - plain)).sum(-1)
        found = {
            "log_perplexity": -_mean(chosen, is_new),
            "kl": _mean(kl, is_new),
            **self._readouts(states, new),
        }
        if self.classes is not None:
            odds = [steered[:, 0, list(group)].logsumexp(-1) for group in self.classes]
            found["log_odds"] = (odds[0] - odds[1]).double().cpu().numpy()
        return found

    def _readouts(self, states: torch.Tensor, new: list[list[int]]) -> dict[str, np.ndarray]:
        """Of states (prompt, token, feature), the first of them that of the prompt's last token."""
        y = self.reader.values(self.model, states)[..., 0].double().cpu().numpy()
        # the state of the token that ends a text is no part of it
        counts = [len(row) - (row[-1] in self.ends) for row in new]
        last = [values[count] for values, count in zip(y, counts, strict=True)]
        means = [v[1 : n + 1].mean() if n else v[0] for v, n in zip(y, counts, strict=True)]
        return {"readout": np.array(last), "readout_new": np.array(means)}


@contextmanager
def _told(name: str):
    """Errors about a plan say which one it is."""
    try:
        yield
    except (ValueError, TypeError, FloatingPointError) as error:
        error.add_note(f"This is about the plan {name!r}.")
        raise


@contextmanager
def same_chance(seed: int, device: torch.device):
    """The same random numbers for every plan and strength; those of others are as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def repetition(row: Sequence[int], size: int = REPEATED) -> float:
    """Share of the ``size`` tokens in a row that came before.

    Examples
    --------
    >>> repetition([1, 2, 3, 1, 2, 3]), repetition([1, 2])
    (0.25, 0.0)
    """
    found = [tuple(row[i : i + size]) for i in range(len(row) - size + 1)]
    return 1 - len(set(found)) / len(found) if found else 0.0


def _mean(values: torch.Tensor, is_new: torch.Tensor) -> np.ndarray:
    """Mean (prompt) over those columns."""
    kept = torch.where(is_new, values, torch.zeros_like(values)).double()
    return (kept.sum(1) / is_new.sum(1)).cpu().numpy()


def _named(plans: Any) -> dict[str, tuple[xr.Dataset, Positions | None]]:
    if not isinstance(plans, Mapping) or isinstance(plans, xr.Dataset) or not plans:
        raise TypeError(
            f"`plans` must be plans by name; got {short(plans)}. Write {{'plan': plan}}, or "
            "{'plan': (plan, 'generated')}."
        )
    found: dict[str, Any] = {
        str(n): p if isinstance(p, tuple) else (p, None) for n, p in plans.items()
    }
    if len(found) < len(plans):
        raise ValueError(
            f"`plans` must have names that differ as texts; got {list(plans)}. Rename one."
        )
    return found


def _factors(strengths: Sequence[float]) -> list[float]:
    try:
        factors = [float(each) for each in strengths]
    except (TypeError, ValueError):
        factors = []
    if not factors or not np.isfinite(factors).all() or len(set(factors)) < len(factors):
        raise ValueError(
            f"`strengths` must be finite numbers, each once; got {short(strengths)}. Write "
            "(0, 0.5, 1, 2)."
        )
    return factors


def _direction(plan: xr.Dataset, concept: xr.Dataset) -> Any:
    return plan if isinstance(plan, xr.Dataset) and "direction" in plan else concept


def _word_tokens(model: DepthModel, words: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the words of both classes."""
    if isinstance(words, str) or len(words) != 2 or any(isinstance(w, str) for w in words):
        raise TypeError(
            f"`words` must be the words of two classes; got {short(words)}. Write "
            "([' good', ' great'], [' bad', ' awful'])."
        )
    n_words = model.hf.get_output_embeddings().weight.shape[0]
    found = []
    for group in words:
        tokens = []
        for word in group:
            ids = [word] if not isinstance(word, str) else _ids_of(model, word)
            is_token = len(ids) == 1 and isinstance(ids[0], (int, np.integer))
            if not is_token or isinstance(word, bool) or not 0 <= ids[0] < n_words:
                raise ValueError(
                    f"`words` must be single tokens; got {word!r}, which is {ids}. Mind the "
                    "leading space, or give a token id."
                )
            tokens.append(int(ids[0]))
        found.append(tuple(dict.fromkeys(tokens)))
    shared = sorted(set(found[0]) & set(found[1]))
    if shared or not all(found):
        raise ValueError(
            f"`words` must be at least one of each class, and none of both; got {short(words)}. "
            "Name words that tell the classes apart."
        )
    return found[0], found[1]


def _ids_of(model: DepthModel, word: str) -> list[int]:
    if model.tokenizer is None:
        raise ValueError(
            f"`words` must be token ids where the model has no tokenizer; got {word!r}. Give ids."
        )
    return model.tokenizer(word, add_special_tokens=False)["input_ids"]


def _result(found, texts, base, plans, factors, positions, bounds) -> xr.Dataset:
    dims = ("plan", "strength", "prompt")
    variables: dict[str, Any] = {name: (dims, values) for name, values in found.items()}
    result = xr.Dataset(
        {**variables, "text": (dims, texts.astype(str))},
        coords={"plan": plans, "strength": factors, "positions": ("plan", positions)},
    )
    for name in MEASURES:
        result[f"{name}_mean"] = mean_bounds(result[name], **bounds)
    for name in ("readout", "readout_new"):
        change = result[name] - xr.DataArray(base[name], dims="prompt")
        result[f"{name}_shift"] = mean_bounds(change, **bounds)
    for name in ("log_perplexity", "log_perplexity_mean"):
        result[name.removeprefix("log_")] = np.exp(result[name])
    return result.drop_vars(["log_perplexity", "log_perplexity_mean"])
