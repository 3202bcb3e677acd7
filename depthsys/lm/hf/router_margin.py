"""How far the choice of experts is from changing, and whether a router chooses by that rule."""

from typing import Any

import torch


def router_margin(router, output, n_prompts: int) -> torch.Tensor:
    """How far the choice of experts of each prompt's last token is from changing (prompt).

    The gap between the last expert chosen and the first one left out, in the router's unit of
    choice: its logit, or with a correction bias its corrected sigmoid score. Where experts are
    first chosen by group, also the gap between groups, and the smaller one counts. A negative
    gap says that this router chooses by another rule; NaN that it gives no such outputs.
    """
    if not isinstance(output, tuple) or len(output) != 3 or output[2].is_floating_point():
        return torch.full((n_prompts,), torch.nan)
    logits, _, chosen = output
    n_experts = logits.shape[-1]
    score = logits.detach().float().view(n_prompts, -1, n_experts)[:, -1]
    chosen = chosen.view(n_prompts, -1, chosen.shape[-1])[:, -1]
    bias = getattr(router, "e_score_correction_bias", None)
    if bias is not None:
        score = score.sigmoid() + bias
    is_chosen = torch.zeros_like(score, dtype=torch.bool).scatter(1, chosen, value=True)
    eligible = torch.ones_like(is_chosen)
    margin = torch.full_like(score[:, 0], torch.inf)
    n_groups = getattr(router, "num_group", 1) or 1
    if bias is not None and n_groups > 1:
        groups = score.unflatten(1, (n_groups, -1)).topk(2, dim=-1)[0].sum(-1)
        ranked = groups.sort(dim=-1, descending=True)
        kept = router.topk_group
        if kept < n_groups:
            margin = ranked.values[:, kept - 1] - ranked.values[:, kept]
        open_groups = torch.zeros_like(groups, dtype=torch.bool)
        open_groups.scatter_(1, ranked.indices[:, :kept], value=True)
        eligible = open_groups.repeat_interleave(n_experts // n_groups, dim=1)
    least = score.masked_fill(~is_chosen, torch.inf).amin(-1)
    left_out = score.masked_fill(is_chosen | ~eligible, -torch.inf).amax(-1)
    return torch.minimum(margin, least - left_out)


@torch.no_grad()
def rules_are_known(routers: list[Any], width: int) -> bool:
    """Whether routers choose as `router_margin` thinks, for many random states."""
    generator = torch.Generator().manual_seed(0)
    drawn, least = torch.randn(256, width, generator=generator), []
    placed: dict[tuple, torch.Tensor] = {}
    for router in routers:
        weight = next(router.parameters())
        if (where := (weight.device, weight.dtype)) not in placed:
            placed[where] = drawn.to(weight)
        try:
            margin = router_margin(router, router(placed[where]), len(drawn))
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return False  # called in another way, with more than the states
        least.append(margin.min())  # NaN if one is
    if not least:
        return True
    return bool((torch.stack([m.to(least[0].device) for m in least]) >= 0).all())
