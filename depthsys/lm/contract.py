"""The check made when a model is loaded: do its blocks act as this package assumes?

It runs a few random prompts of 1, 2 and 9 tokens through the model's own whole-sequence forward
pass with hooks, and compares. It proves nothing about prompts longer than that (a sliding window
of 100 tokens, say, is not reached), nor about values far from the nominal run.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from depthsys.lm.model import DepthModel, FrozenRun

LENGTHS = (9, 2, 1)
# Relative errors above these refuse the model. float64 is limited by Hugging Face norms and
# rotary tables that compute in float32 even in a float64 model.
REPLAY_LIMIT = {torch.float32: 1e-4, torch.float64: 1e-5}
DIFFERENCE_LIMIT = 1e-2
# Steps of the central difference, relative to the norm of the state. The best one counts: across
# the kinks of a ReLU the long step is off, and the short one is closer to rounding.
STEPS = (3e-3, 3e-4)


@torch.no_grad()
def check(model: "DepthModel") -> dict[str, float]:
    """Compare the frozen-context replay with the model's own forward pass.

    Returns
    -------
    dict
        Largest relative error of ``causality`` (an earlier token moved when the last one was
        changed), ``states`` and ``logits`` (nominal run), ``injection`` (a perturbed run, many
        copies at once), ``jvp`` (against central differences), ``adjoint`` (<Jv, w> = <v, J'w>).

    Raises
    ------
    ValueError
        If one of them is above its limit or not finite: the message says which and where.
    """
    generator = torch.Generator().manual_seed(0)
    limit = REPLAY_LIMIT[model.dtype]
    limits: dict[str, float] = {name: limit for name in _RULES} | {"jvp": DIFFERENCE_LIMIT}
    report: dict[str, float] = dict.fromkeys(_RULES, 0.0)
    for length in LENGTHS:
        if length > model.max_tokens:
            continue
        size = (2, length)
        ids = torch.randint(model.hf.config.get_text_config().vocab_size, size, generator=generator)
        ids = ids.to(model.device)
        (run,) = model.stream(ids.tolist())
        for name, error in _errors(model, run, ids, generator).items():
            if not error <= limits[name]:  # NaN fails too
                raise ValueError(
                    f"`model` must {_RULES[name]}; {model.name!r} ({type(model.hf).__name__}) "
                    f"has relative error {error:.1e} (limit {limits[name]:.0e}) on a prompt of "
                    f"{length} tokens. This family is not supported."
                )
            report[name] = max(report[name], error)
    return report


_RULES = {
    "causality": "be causal: the last token must not change earlier ones",
    "states": "be reproduced by replaying its blocks one by one",
    "logits": "give its own logits from the replayed last state",
    "injection": "respond to an injection as its replay with frozen context does",
    "jvp": "have Jacobians that agree with central differences",
    "adjoint": "have Jacobians and transposed Jacobians that agree",
}


def _errors(
    model: "DepthModel", run: "FrozenRun", ids: torch.Tensor, generator: torch.Generator
) -> dict[str, float]:
    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(run.x)

    states, logits = _whole_sequence(model, ids)
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % model.hf.config.get_text_config().vocab_size
    others, _ = _whole_sequence(model, other)
    replayed = [run.x[0]]
    for block in run.blocks:
        replayed.append(block(replayed[-1][:, None])[:, 0])
    errors = {
        "causality": _error(others[:, :, :-1], states[:, :, :-1]),
        "states": _error(torch.stack(replayed), states[:, :, -1]),
        "logits": _error(model.logits(ids, replayed[-1]), logits),
    }
    # two different injections at every layer, as independent copies of one replay
    pushes = 0.1 * randn(model.n_layers, 2, *run.x.shape[1:]) * run.x[:-1].std(-1)[:, None, :, None]
    copies = run.x[0][:, None].expand(-1, 2, -1)
    for block, push in zip(run.blocks, pushes, strict=True):
        copies = block(copies + push.transpose(0, 1))
    pushed = [_whole_sequence(model, ids, pushes[:, copy])[0][-1, :, -1] for copy in (0, 1)]
    errors["injection"] = _error(copies, torch.stack(pushed, dim=1))

    v, w = randn(*run.x.shape[1:]), randn(*run.x.shape[1:])
    v = v / v.norm(dim=-1, keepdim=True)
    errors["jvp"] = errors["adjoint"] = 0.0
    for block in run.blocks:
        forward = block.jvp(v[:, None])[:, 0]
        backward = block.vjp(w[:, None])[:, 0]
        size = block.x.norm(dim=-1, keepdim=True)
        slopes = []
        for step in STEPS:
            ends = block(torch.stack([block.x + step * size * v, block.x - step * size * v], dim=1))
            slopes.append((ends[:, 0] - ends[:, 1]) / (2 * step * size))
        gap = ((forward * w).sum(-1) - (v * backward).sum(-1)).abs()
        errors["jvp"] = max(errors["jvp"], min(_error(forward, slope) for slope in slopes))
        scale = forward.norm(dim=-1) * w.norm(dim=-1)
        errors["adjoint"] = max(errors["adjoint"], float((gap / scale).max()))
    return errors


def _whole_sequence(
    model: "DepthModel", ids: torch.Tensor, pushes: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """States (depth, prompt, token, feature) and last logits of the model's own forward pass.

    ``pushes`` (layer, prompt, feature) are added to the last token at the input of each block.
    """
    states: list[torch.Tensor] = []

    def at(layer: int):
        def keep(hidden):
            if pushes is not None and layer < model.n_layers:
                hidden = hidden.clone()
                hidden[:, -1] += pushes[layer]
            states.append(hidden)
            return hidden

        return keep

    with model.block_hooks({layer: at(layer) for layer in range(model.n_layers + 1)}):
        logits = model.hf(ids, attention_mask=torch.ones_like(ids)).logits[:, -1]
    return torch.stack(states), logits


def _error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest deviation, relative to the largest reference value per leading index."""
    if value.numel() == 0:
        return 0.0
    value, reference = value.flatten(1).double(), reference.flatten(1).double()
    worst = (value - reference).abs().amax(1)
    scale = reference.abs().amax(1)
    return float((worst / scale.clamp_min(torch.finfo(scale.dtype).tiny)).max())
