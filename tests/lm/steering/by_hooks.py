"""Texts that a steered model should write: by plain hooks, at columns that are counted by hand."""

import numpy as np
import torch

from depthsys import lm
from tests.lm.whole_sequence import blocks

N_LAYERS, H, N_NEW = 3, 16, 6


N_LAYERS, H, N_NEW = 3, 16, 6


N_LAYERS, H, N_NEW = 3, 16, 6


PROMPTS = [[7, 2, 30, 4], [2, 9], [5, 2, 2, 11]]


MARKED = lm.After([2])


POSITIONS = ("last", "generated", "every", MARKED)


def begins_by_hand(prompt, positions) -> list[bool]:
    """Whether each token of the prompt and each new one is pushed."""
    n = len(prompt)
    if positions == MARKED:
        first = n - prompt[::-1].index(2)
    else:
        first = {"last": n - 1, "generated": n - 1, "every": 0}[positions]
    last = n - 1 if positions == "last" else 10**6
    return [first <= at <= last for at in range(n + N_NEW + 40)]


def logits_by_hooks(hf, row, added, here, law=None) -> torch.Tensor:
    """Logits (token, word) of one row; vectors (depth, feature) where ``here`` says it."""
    handles = []
    mask = torch.tensor(here[: len(row)])[None, :, None]
    for layer, block in enumerate(blocks(hf)):

        def hook(module, args, layer=layer):
            more = torch.as_tensor(added[layer]).to(args[0])
            if law is not None:
                more = more + law(layer, args[0])
            return (args[0] + mask * more, *args[1:])

        handles.append(block.register_forward_pre_hook(hook))

    def behind(module, args, out):
        hidden = out[0] if isinstance(out, tuple) else out
        moved = hidden + mask * torch.as_tensor(added[-1]).to(hidden)
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    handles.append(blocks(hf)[-1].register_forward_hook(behind))
    try:
        with torch.no_grad():
            return hf(torch.tensor([row]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def written_by_hooks(hf, prompt, added, positions, n_new=N_NEW, law=None) -> list[int]:
    row = list(prompt)
    for _ in range(n_new):
        here = begins_by_hand(prompt, positions)
        row.append(int(logits_by_hooks(hf, row, added, here, law)[-1].argmax()))
    return row[len(prompt) :]


def logits_on_the_way(hf, prompts, added, positions, texts, law=None) -> np.ndarray:
    """Logits (prompt, new token, word) that those texts are read from, by hooks."""
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        row = [*prompt, *text[:-1]]
        here = begins_by_hand(prompt, positions)
        found.append(logits_by_hooks(hf, row, added, here, law)[len(prompt) - 1 :].numpy())
    return np.array(found)


def with_logits(hf, prompts) -> tuple[list[list[int]], np.ndarray]:
    """The texts of `written`, and the logits that they were read from."""
    out = written(hf, prompts, whole=True, output_logits=True, return_dict_in_generate=True)
    width = max(map(len, prompts))
    return out.sequences[:, width:].tolist(), torch.stack(out.logits, 1).numpy()


def written(hf, prompts, *, whole=False, **options):
    """By the model's own generate, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = {"max_new_tokens": N_NEW, "do_sample": False, "eos_token_id": None} | options
    out = hf.generate(ids, attention_mask=mask, pad_token_id=0, **options)
    return out if whole else out[:, width:].tolist()


def is_clean(model) -> bool:
    hf, modules = model.hf, [model.hf, *blocks(model.hf)]
    left = [m for m in modules if m._forward_pre_hooks or m._forward_hooks]
    return not left and "generate" not in vars(hf)


def law_of(seed=0, n_states=2):
    rng = np.random.default_rng(seed)
    return {
        "K": (("layer", "input", "state"), rng.standard_normal((N_LAYERS, 1, n_states))),
        "W": (("depth", "feature", "state"), rng.standard_normal((N_LAYERS + 1, H, n_states)) / 4),
        "x_ref": (("depth", "feature"), rng.standard_normal((N_LAYERS + 1, H))),
        "r_ref": (("depth", "state"), rng.standard_normal((N_LAYERS + 1, n_states))),
    }
