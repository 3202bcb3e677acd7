"""The check made when a model is loaded: do its blocks act as this package assumes?

It runs a few random prompts of 1 and 9 tokens (and, where the model has a sliding window that
`max_tokens` passes, of two tokens more than the window) through the model's own whole-sequence
forward pass with hooks, and compares. It proves nothing about longer prompts, nor about values far
from the nominal run; derivatives are compared for the prompts of 9 tokens only, with central
differences, which see errors above 1e-2. The tests of this package prove more, family by family:
see docs/models.md.
"""

import torch

from depthsys.lm.frozen import FrozenRun
from depthsys.lm.hf.checkpoint import check_padding
from depthsys.lm.precision import SIXTEEN_BITS, eps, wide
from depthsys.lm.run import Model, Run

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
    limits = limits_of(model.dtype)
    n_tokens = model.hf.config.get_text_config().vocab_size
    rows = [torch.randint(n_tokens, (n,), generator=generator).tolist() for n in lengths]
    (batch,) = Run(model, rows, contexts=False).batches
    errors = _replay_errors(model, batch, rows, generator)
    if derivatives:
        errors |= _derivative_errors(batch, generator)
    for name, error in errors.items():
        if not error <= limits[name]:  # NaN fails too
            raise ValueError(
                f"`model` must {_RULES[name]}; {model.name!r} ({type(model.hf).__name__}) "
                f"has relative error {error:.1e} (limit {limits[name]:.0e}) on a prompt of "
                f"{lengths[-1]} tokens. {_cure(model)}"
            )
        report[name] = max(report[name], error)
    if (margin := batch.router_margin) is not None:
        least = float(margin.min())  # NaN if one is
        report["router_margin"] = min(report.get("router_margin", least), least)


def limits_of(dtype: torch.dtype) -> dict[str, float]:
    """The largest relative error of each rule that a model of that dtype may have."""
    replay, difference = REPLAY_LIMIT.get(dtype), DIFFERENCE_LIMIT
    if replay is None:
        replay, difference = ROUNDINGS * eps(dtype), DIFFERENCE_ROUNDINGS * eps(dtype) ** (2 / 3)
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


def _replay_errors(
    model: Model, run: FrozenRun, rows: list[list[int]], generator: torch.Generator
) -> dict[str, float]:
    """The nominal run and two perturbed ones, replayed together and by whole sequences."""
    n_prompts, n_features = run.x.shape[1:]
    pushes = _randn(run, generator, model.n_layers, 2, n_prompts, n_features)
    pushes *= 0.1 * run.x[:-1].std(-1)[:, None, :, None]
    chain, states = run.x[0][:, None].expand(-1, 3, -1), [run.x[0]]
    for block, push in zip(run.blocks, pushes, strict=True):
        # copy 0 is nominal, the others are pushed at the input of every block
        chain = block(torch.cat([chain[:, :1], chain[:, 1:] + push.transpose(0, 1)], dim=1))
        states.append(chain[:, 0])
    replayed = torch.stack(states)
    errors: dict[str, float] = {}
    for length in {len(row) for row in rows}:
        # the reference has no padding: prompts of one length at a time
        those = [i for i, row in enumerate(rows) if len(row) == length]
        ids = torch.tensor([rows[i] for i in those], device=model.device)
        nominal, other, pushed, logits = _whole_sequence(model, ids, pushes[:, :, those])
        for name, error in {
            "causality": _error(other[:, :, :-1], nominal[:, :, :-1]),
            "states": _larger(
                _error(replayed[:, those], nominal[:, :, -1]),
                _error(run.x[:, those], nominal[:, :, -1]),
            ),
            "logits": _error(model.logits(ids, replayed[-1, those]), logits),
            "injection": _error(chain[those, 1:].transpose(0, 1), pushed),
        }.items():
            errors[name] = _larger(errors.get(name, 0.0), error)
    return errors


def _derivative_errors(run: FrozenRun, generator: torch.Generator) -> dict[str, float]:
    """Jacobian-vector products against central differences and against transposed products."""
    n_prompts, n_features = run.x.shape[1:]
    v, w = (_randn(run, generator, n_prompts, N_DIRECTIONS, n_features) for _ in range(2))
    v = v / v.norm(dim=-1, keepdim=True)
    errors = {"jvp": 0.0, "adjoint": 0.0}
    coarse = run.x.dtype in SIXTEEN_BITS
    # one large feature rounds to more than the slope of a small one is: their norms are compared
    errors_of = _norm_errors if coarse else _row_errors
    steps = LONG_STEPS if coarse else STEPS
    for block in run.blocks:
        linear = block.linearised()
        forward, backward = linear.jvp(v), linear.vjp(w)
        ahead, back = wide(forward) * wide(w), wide(v) * wide(backward)
        gap = (ahead.sum(-1) - back.sum(-1)).abs()
        adjoint = float((gap / (wide(forward).norm(dim=-1) * wide(w).norm(dim=-1))).max())
        errors["adjoint"] = _larger(errors["adjoint"], adjoint)
        size = wide(block.x).norm(dim=-1)[:, None, None]
        # all steps, signs and directions as copies of one call: the weights are read once
        pushes = torch.cat([sign * step * size * v for step in steps for sign in (1, -1)], dim=1)
        ends = wide(block((block.x[:, None] + pushes).to(block.x)))
        ends = ends.unflatten(1, (len(steps), 2, N_DIRECTIONS))
        misses = []
        for i, step in enumerate(steps):
            slope = (ends[:, i, 0] - ends[:, i, 1]) / (2 * step * size)
            rows = errors_of(forward.flatten(0, 1), slope.flatten(0, 1))
            misses.append(torch.tensor(rows).view(n_prompts, N_DIRECTIONS))
        # a NaN in any of them stays
        best = torch.stack(misses).amin(0).amin(-1).max()
        errors["jvp"] = _larger(errors["jvp"], float(best))
    return errors


def _larger(a: float, b: float) -> float:
    """The larger of two errors, and NaN if one is (max() may lose it)."""
    return b if not b <= a else a


def _randn(run: FrozenRun, generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(run.x)


def _whole_sequence(
    model: Model, ids: torch.Tensor, pushes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompts of one length through the model's own forward pass, four times in one batch.

    As they are: states (depth, prompt, token, feature); with another last token: the same; with
    ``pushes`` (layer, 2, prompt, feature) on the last token at the input of each block: last
    states (2, prompt, feature); and the logits (prompt, token id) of the first.
    """
    states: list[torch.Tensor] = []
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % model.hf.config.get_text_config().vocab_size
    batch = torch.cat([ids, other, ids, ids])

    def at(layer: int):
        def keep(hidden):
            if layer < model.n_layers:
                hidden = hidden.clone()
                hidden[2 * len(ids) :, -1] += pushes[layer].flatten(0, 1).to(hidden)
            states.append(hidden.to(model.device))
            return hidden

        return keep

    with model.blocks.hooks({layer: at(layer) for layer in range(model.n_layers + 1)}):
        logits = model.hf(batch, attention_mask=torch.ones_like(batch)).logits[: len(ids), -1]
    depths = torch.stack(states).unflatten(1, (4, len(ids)))
    return depths[:, 0], depths[:, 1], depths[-1, 2:, :, -1], logits.to(model.device)


def _error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest deviation, relative to the largest reference value per leading index."""
    errors = _row_errors(value, reference)
    return float(torch.tensor(errors).max()) if errors else 0.0


def _norm_errors(value: torch.Tensor, reference: torch.Tensor) -> list[float]:
    value, reference = value.flatten(1).double(), reference.flatten(1).double()
    return ((value - reference).norm(dim=1) / reference.norm(dim=1)).tolist()


def _row_errors(value: torch.Tensor, reference: torch.Tensor) -> list[float]:
    if value.numel() == 0:
        return []
    value, reference = value.flatten(1).double(), reference.flatten(1).double()
    worst = (value - reference).abs().amax(1)
    scale = reference.abs().amax(1)
    return (worst / scale.clamp_min(torch.finfo(scale.dtype).tiny)).tolist()
