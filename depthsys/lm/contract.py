"""The check made when a model is loaded: do its blocks act as this package assumes?

It runs a few random prompts of 1 and 9 tokens (and, where the model has a sliding window that
`max_tokens` passes, of two tokens more than the window) through the model's own whole-sequence
forward pass with hooks, and compares. It proves nothing about longer prompts, nor about values far
from the nominal run; derivatives are compared for the prompts of 9 tokens only, with central
differences, which see errors above 1e-2. The tests of this package prove more, family by family:
see docs/models.md.
"""

from dataclasses import dataclass

import numpy as np
import torch

from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.hf.checkpoint import check_padding
from depthsys.lm.precision import Arithmetic, wide
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model

LENGTHS = (9, 1)  # derivatives are checked at the first
PADDED = (5, 6, 7)  # one batch with padding
# Relative errors above these refuse the model. float64 is limited by Hugging Face norms and
# rotary tables that compute in float32 even in a float64 model; 16 bits by their own rounding,
# which grows with the number of blocks.
REPLAY_LIMIT = {torch.float32: 1e-4, torch.float64: 1e-5}
DIFFERENCE_LIMIT = 1e-2
# The largest errors of 16 bits: of a replay, in roundings; of a derivative, in eps^(2/3), which is
# how well a central difference can see at its best step. Among the tested families and SmolLM2 the
# largest were 9 and 3.5.
ROUNDINGS = 32
DIFFERENCE_ROUNDINGS = 6
# Steps of the central difference, relative to the norm of the state, and random directions. For
# each prompt the best one counts: a long step may cross the kink of a ReLU or change the choice of
# experts, a short one is closer to rounding. A wrong Jacobian is wrong in all of them.
STEPS = (3e-3, 3e-4, 1e-4)
# In 16 bits shorter ones drown in the rounding of the states.
LONG_STEPS = (0.3, 0.1, 0.03)
N_DIRECTIONS = 2


@torch.no_grad()
def check(model: Model) -> dict[str, float]:
    """Compare the frozen-context replay with the model's own forward pass.

    Returns
    -------
    dict
        Largest relative error of ``causality`` (an earlier token moved when the last one was
        changed), ``states`` and ``logits`` (nominal run), ``injection`` (a perturbed run, many
        copies at once), ``jvp`` (against central differences), ``adjoint`` (<Jv, w> = <v, J'w>).
        For models with experts also ``router_margin``, the least one seen (see
        `Run.router_margin`), NaN where the router's rule is not known.

    Raises
    ------
    ValueError
        If one of them is above its limit or not finite: the message says which and where.
    """
    generator = torch.Generator().manual_seed(0)
    report: dict[str, float] = dict.fromkeys(_RULES, 0.0)
    for number, lengths in enumerate(_batches(model)):
        _check_batch(model, lengths, generator, report, derivatives=number == 0)
    return report


@torch.no_grad()
def allows_padding(model: Model) -> bool:
    """Whether prompts of unlike length may run together: the contract holds for such a batch."""
    if model.max_tokens < max(PADDED):
        return False
    report, generator = dict(model.contract), torch.Generator().manual_seed(0)
    model.left_padding = True
    try:
        check_padding(model.hf.config, model.max_tokens)
        _check_batch(model, PADDED, generator, report, derivatives=False)
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError):
        return False  # exact lengths are always right, so the reason is not the user's concern
    finally:
        model.left_padding = False
    model.contract = report
    return True


def _check_batch(
    model: Model,
    lengths: tuple[int, ...],
    generator: torch.Generator,
    report: dict[str, float],
    *,
    derivatives: bool,
) -> None:
    """Check one batch of random prompts, and put the larger errors into the report."""
    limits = limits_of(Arithmetic.of(model))
    n_tokens = model.hf.config.get_text_config().vocab_size
    rows = [torch.randint(n_tokens, (n,), generator=generator).tolist() for n in lengths]
    run = Run(model, rows, contexts=False)
    # one batch, however little memory the device has left
    run.numbers = [np.arange(len(rows))]
    (batch,) = run.batches
    found = _errors(model, batch, rows, generator, derivatives=derivatives)
    margin = batch.router_margin
    if margin is not None:
        found["router_margin"] = margin.min().double()
    # the only time that the host waits for the numbers of this batch
    values = torch.stack([error.to(model.device) for error in found.values()]).tolist()
    errors = dict(zip(found, values, strict=True))
    if margin is not None:
        least: float = errors.pop("router_margin")  # NaN if one is
        report["router_margin"] = min(report.get("router_margin", least), least)
    for name, error in errors.items():
        if not error <= limits[name]:  # NaN fails too
            raise ValueError(
                f"`model` must {_RULES[name]}; {model.name!r} ({type(model.hf).__name__}) "
                f"has relative error {error:.1e} (limit {limits[name]:.0e}) on a prompt of "
                f"{lengths[-1]} tokens. {_cure(model)}"
            )
        report[name] = max(report[name], error)


def limits_of(arithmetic: Arithmetic) -> dict[str, float]:
    """The largest relative error of each rule that a model may have which computes in that."""
    replay, difference = REPLAY_LIMIT.get(arithmetic.dtype), DIFFERENCE_LIMIT
    if replay is None or arithmetic.is_coarse:
        eps = arithmetic.eps
        replay, difference = ROUNDINGS * eps, DIFFERENCE_ROUNDINGS * eps ** (2 / 3)
    return {name: replay for name in _RULES} | {"jvp": difference}


def _cure(model: Model) -> str:
    if not model.blocks.runs_eager:
        return "Load it with attn_implementation='eager', or it cannot be used."
    return "It cannot be used."


def _batches(model: Model) -> list[tuple[int, ...]]:
    """Lengths of the prompts that are run, batch by batch."""
    window = getattr(model.hf.config.get_text_config(), "sliding_window", None) or 0
    longest = min(LENGTHS[0], model.max_tokens)
    lengths = {longest: None, **dict.fromkeys(LENGTHS[1:])}
    if longest < window + 2 <= model.max_tokens:
        lengths[window + 2] = None
    batches: list[tuple[int, ...]] = [(n, n) for n in lengths]
    if model.left_padding and model.max_tokens >= max(PADDED):
        batches.append(PADDED)
    return batches


_RULES = {
    "causality": "be causal: the last token must not change earlier ones",
    "states": "be reproduced by replaying its blocks one by one",
    "logits": "give its own logits from the replayed last state",
    "injection": "respond to an injection as its replay with frozen context does",
    "jvp": "have Jacobians that agree with central differences",
    "adjoint": "have Jacobians and transposed Jacobians that agree",
}


def _errors(
    model: Model,
    run: FrozenRun,
    rows: list[list[int]],
    generator: torch.Generator,
    *,
    derivatives: bool,
) -> dict[str, torch.Tensor]:
    """The largest error of every rule, as numbers on the device: nothing waits for them here.

    Each block is called once: on the nominal run and two perturbed ones, which go from block to
    block, and with ``derivatives`` at the ends of the central differences of that block.
    """
    n_prompts, n_features = run.x.shape[1:]
    pushes = _randn(run, generator, model.n_layers, 2, n_prompts, n_features)
    pushes *= 0.1 * run.x[:-1].std(-1)[:, None, :, None]
    differences = _Differences(run, generator) if derivatives else None
    chain, states = run.x[0][:, None].expand(-1, 3, -1), [run.x[0]]
    for block, push in zip(run.blocks, pushes, strict=True):
        # copy 0 is nominal, the next two are pushed at the input of every block
        starts = [chain[:, :1], chain[:, 1:] + push.transpose(0, 1)]
        if differences is not None:
            starts.append(differences.starts(block))
        ends = block(torch.cat(starts, dim=1))
        chain = ends[:, :3]
        states.append(chain[:, 0])
        if differences is not None:
            differences.add(block, ends[:, 3:])
    errors = _replay_errors(model, run, rows, pushes, torch.stack(states), chain[:, 1:])
    return errors if differences is None else errors | differences.errors()


def _replay_errors(
    model: Model,
    run: FrozenRun,
    rows: list[list[int]],
    pushes: torch.Tensor,
    replayed: torch.Tensor,
    pushed: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The replayed runs against whole sequences through the model itself.

    ``replayed`` (depth, prompt, feature) is the nominal run, ``pushed`` (prompt, 2, feature) the
    last states of the perturbed ones.
    """
    whole = _whole_sequences(model, rows, pushes)
    logits = model.logits(whole.last_ids, replayed[-1])
    errors: dict[str, torch.Tensor] = {}
    for length in dict.fromkeys(map(len, rows)):
        # prompts of one length at a time, since the largest of all is what an error is relative to
        those = [i for i, row in enumerate(rows) if len(row) == length]
        at = slice(those[0], those[-1] + 1)
        nominal, other = whole.nominal[:, at, :length], whole.other[:, at, :length]
        for name, error in {
            "causality": _error(other[:, :, :-1], nominal[:, :, :-1]),
            "states": torch.maximum(
                _error(replayed[:, at], nominal[:, :, -1]),
                _error(run.x[:, at], nominal[:, :, -1]),
            ),
            "logits": _error(logits[at], whole.logits[at, length - 1]),
            "injection": _error(pushed[at].transpose(0, 1), whole.pushed[:, at, length - 1]),
        }.items():
            errors[name] = torch.maximum(errors[name], error) if name in errors else error
    return errors


class _Differences:
    """Jacobian-vector products against central differences and against transposed products."""

    def __init__(self, run: FrozenRun, generator: torch.Generator):
        n_prompts, n_features = run.x.shape[1:]
        v, self._w = (_randn(run, generator, n_prompts, N_DIRECTIONS, n_features) for _ in range(2))
        self._v = v / v.norm(dim=-1, keepdim=True)
        coarse = run.arithmetic.is_coarse
        # one large feature rounds to more than the slope of a small one is: norms are compared
        self._errors_of = _norm_errors if coarse else _row_errors
        self._steps = LONG_STEPS if coarse else STEPS
        self._found: list[torch.Tensor] = []

    def starts(self, block: FrozenBlock) -> torch.Tensor:
        """All steps, signs and directions as copies of one call: the weights are read once."""
        size, v = wide(block.x).norm(dim=-1)[:, None, None], self._v
        pushes = [sign * step * size * v for step in self._steps for sign in (1, -1)]
        return (block.x[:, None] + torch.cat(pushes, dim=1)).to(block.x)

    def add(self, block: FrozenBlock, ends: torch.Tensor) -> None:
        """Note the errors of a block, with the states after it."""
        v, w, linear = self._v, self._w, block.linearised()
        forward, backward = linear.jvp(v), linear.vjp(w)
        ahead, back = wide(forward) * wide(w), wide(v) * wide(backward)
        gap = (ahead.sum(-1) - back.sum(-1)).abs()
        adjoint = gap / (wide(forward).norm(dim=-1) * wide(w).norm(dim=-1))
        size = wide(block.x).norm(dim=-1)[:, None, None]
        ends = wide(ends).unflatten(1, (len(self._steps), 2, N_DIRECTIONS))
        misses = []
        for i, step in enumerate(self._steps):
            slope = (ends[:, i, 0] - ends[:, i, 1]) / (2 * step * size)
            rows = self._errors_of(forward.flatten(0, 1), slope.flatten(0, 1))
            misses.append(rows.view(-1, N_DIRECTIONS))
        # a NaN in any of them stays
        best = torch.stack(misses).amin(0).amin(-1).max()
        self._found.append(torch.stack([best, adjoint.max().double()]))

    def errors(self) -> dict[str, torch.Tensor]:
        """The largest over the blocks."""
        jvp, adjoint = torch.stack(self._found).amax(0)
        return {"jvp": jvp, "adjoint": adjoint}


def _randn(run: FrozenRun, generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(run.x)


@dataclass(frozen=True)
class _Whole:
    """Prompts through the model's own forward pass.

    As they are, ``nominal`` (depth, prompt, token, feature) and ``logits`` (prompt, token, token
    id); with another last token, ``other``; and with two sets of pushes on the last token at the
    input of each block, ``pushed`` (2, prompt, token, feature) after the last one.
    """

    nominal: torch.Tensor
    other: torch.Tensor
    pushed: torch.Tensor
    logits: torch.Tensor
    last_ids: torch.Tensor


def _whole_sequences(model: Model, rows: list[list[int]], pushes: torch.Tensor) -> _Whole:
    """All of it in one batch; ``pushes`` are (layer, 2, prompt, feature).

    Without padding on the left, which the replay may have: shorter prompts are followed by tokens
    that a causal model does not see.
    """
    n, longest = len(rows), max(map(len, rows))
    vocabulary = model.hf.config.get_text_config().vocab_size
    others = [[*row[:-1], (row[-1] + 1) % vocabulary] for row in rows]
    filled = [row + [0] * (longest - len(row)) for row in [*rows, *others, *rows, *rows]]
    batch = torch.tensor(filled, device=model.device)
    last = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    # (2 x prompt, token): where the pushes go
    at_last = (torch.arange(longest, device=model.device) == last[:, None]).repeat(2, 1)
    states: list[torch.Tensor] = []

    def at(layer: int):
        def keep(hidden):
            if layer < model.n_layers:
                where = at_last.to(hidden)[:, :, None]
                added = where * pushes[layer].flatten(0, 1).to(hidden)[:, None]
                hidden = torch.cat([hidden[: 2 * n], hidden[2 * n :] + added])
            states.append(hidden.to(model.device))
            return hidden

        return keep

    with model.blocks.hooks({layer: at(layer) for layer in range(model.n_layers + 1)}):
        logits = model.hf(batch, attention_mask=torch.ones_like(batch), use_cache=False).logits
    depths = torch.stack([state[: 2 * n] for state in states]).unflatten(1, (2, n))
    pushed = states[-1][2 * n :].unflatten(0, (2, n))
    last_ids = batch[:n].gather(1, last[:, None])
    return _Whole(depths[:, 0], depths[:, 1], pushed, logits[:n].to(model.device), last_ids)


def _error(value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Largest deviation, relative to the largest reference value per leading index."""
    if value.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=value.device)
    return _row_errors(value, reference).amax()


def _norm_errors(value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    value, reference = value.flatten(1).double(), reference.flatten(1).double()
    return (value - reference).norm(dim=1) / reference.norm(dim=1)


def _row_errors(value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    value, reference = value.flatten(1).double(), reference.flatten(1).double()
    worst = (value - reference).abs().amax(1)
    return worst / reference.abs().amax(1).clamp_min(torch.finfo(torch.float64).tiny)
