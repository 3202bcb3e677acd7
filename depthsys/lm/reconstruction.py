"""How well detached maps give the model's own values, and what each input token gives of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.hf.affine import check_family, moved, pulled_back, relative_error
from depthsys.lm.hf.blocks import Blocks, Calls
from depthsys.lm.linearize import Linearisation
from depthsys.lm.lockstep import Steps, driven, together
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import wide
from depthsys.lm.progress import bar
from depthsys.lm.run import Run
from depthsys.lm.shards import ShardedRun, along, in_shards
from depthsys.lm.stamp import stamp
from depthsys.lm.switch import check_graph

_ERRORS = ("block", "attention", "mlp", "without_biases")


@of_run(once=True, shards=True)
def reconstruction(run: Run, *, linear: str = "up") -> xr.Dataset:
    r"""How well detached maps reproduce the model's own values, block by block and as a whole.

    A detached block is linear in the states X of all tokens and in its biases together [1]_:
    :math:`x_{l+1} = A_l X_l + b_l`. The stack of them gives the last state from the embeddings
    :math:`e_t` of all input tokens, :math:`x_L = \sum_t J_t e_t + b`. Both sides are compared for
    the last token; :math:`b_l` is the derivative with respect to all biases times the biases, so
    nothing is found as what is left.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    linear
        Which factor of a gated MLP stays linear, see `Linearisation`.

    Returns
    -------
    xr.Dataset
        Relative errors: ``block``, ``attention`` and ``mlp`` (prompt, layer), of x_{l+1} and of
        the outputs of the two parts, all as maps of the block's own input; ``stack`` (prompt), of
        x_L as a map of the embeddings. ``without_biases`` (prompt, layer) and
        ``stack_without_biases`` (prompt): what is missing where b is left out, the size of the
        bias term; 0 of a model without biases.

    Raises
    ------
    ValueError
        If the family has no detached map (experts, an attention of its own), or ``linear`` is none.
    RuntimeError
        Within ``torch.inference_mode()``.

    Notes
    -----
    Whole sequences go through every block once as they are and twice with a forward-mode
    derivative, and twice more where there are biases. No Jacobian is formed.

    References
    ----------
    .. [1] Golden (2025), arXiv:2505.24293, without the bias term: the models there have none.

    Examples
    --------
    >>> from depthsys import demo, lm
    >>> model = lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu", dtype="float64")
    >>> found = lm.reconstruction(model, ["the food was good"])
    >>> bool(found["stack"].max() < 1e-12)
    True
    """
    kind = _checked(run, linear)
    errors, stack = _errors(run, kind)
    by_layer = ("prompt", "layer")
    found: dict[str, Any] = {n: (by_layer, errors[..., i]) for i, n in enumerate(_ERRORS)}
    found["stack"] = ("prompt", stack[:, 0])
    found["stack_without_biases"] = ("prompt", stack[:, 1])
    attrs = {**stamp(run, "reconstruction"), **kind.attrs}
    return xr.Dataset(found, {"layer": np.arange(run.n_layers)}, attrs)


@of_run(once=True, shards=True)
def token_shares(run: Run, *, linear: str = "up") -> xr.Dataset:
    r"""How much of the last state each input token gives, by the detached maps.

    With :math:`x_L = \sum_t J_t e_t + \sum_l b_l` as in `reconstruction`, the share of token t is
    :math:`x_L^\top J_t e_t / \|x_L\|^2`, and so for the biases of every layer. Shares add up to 1
    and may be negative.

    Parameters
    ----------
    run, linear
        As in `reconstruction`.

    Returns
    -------
    xr.Dataset
        ``share`` (prompt, token), where token 0 is the last, -1 the one before it, and so on; NaN
        before the first. ``bias_share`` (prompt, layer).

    Raises
    ------
    ValueError, RuntimeError
        As `reconstruction`.

    Notes
    -----
    Whole sequences go through every block once forwards, and once forwards and back with a
    derivative; once more in forward mode where there are biases. The sequences of a batch wait
    between.
    """
    kind = _checked(run, linear)
    share, biases = _shares(run, kind)
    return xr.Dataset(
        {"share": (("prompt", "token"), share), "bias_share": (("prompt", "layer"), biases)},
        {"token": np.arange(1 - share.shape[1], 1), "layer": np.arange(run.n_layers)},
        {**stamp(run, "token_shares"), **kind.attrs},
    )


def _checked(run: Run, linear: str) -> Linearisation:
    check_graph()
    kind = Linearisation(kind="detached", linear=linear)
    for layer in range(run.n_layers):
        check_family(run.model.blocks, layer)
    return kind


# ------------------------------------------------------------------------------- whole sequences


def _of_batches(run: Run, work: Any, title: str, held: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Row numbers of every batch, and what steps of work on its whole sequences find."""
    model = run.model
    model.check_weights()
    width = model.n_features * model.dtype.itemsize
    sizes = [held * run.n_tokens(b) * len(p) * width for b, p in enumerate(run.numbers)]
    with bar(title, len(run), "prompt") as shown:
        for group in run.in_step_groups(sizes):
            works = [work(model.blocks, run.calls_of(number)) for number in group]
            found = driven(model.blocks, together(works))
            for number, one in zip(group, found, strict=True):
                yield run.numbers[number], one
                shown.update(len(run.numbers[number]))


@in_shards(along(0), "reconstruction")
def _errors(run: Run, kind: Linearisation) -> tuple[np.ndarray, np.ndarray]:
    """Errors (prompt, layer, which) of blocks, and (prompt, which) of the stack."""
    errors = np.empty((len(run), run.n_layers, len(_ERRORS)))
    stack = np.empty((len(run), 2))

    @torch.no_grad()
    def work(blocks: Blocks, calls: Calls) -> Steps[tuple[torch.Tensor, torch.Tensor]]:
        hidden, found = calls.embedded, []
        whole, biases, has_any = hidden, torch.zeros_like(hidden), False
        for layer in range(len(blocks)):
            yield layer
            after = blocks.sequence(layer, calls, hidden)[0]
            own = moved(blocks, layer, calls, hidden, hidden, kind.linear, parts=True)
            whole = moved(blocks, layer, calls, hidden, whole, kind.linear).states
            value, made, bias = after[:, -1], own.states[:, -1], None
            has_any = has_any or blocks.has_biases(layer)
            if has_any:
                zero = torch.zeros_like(hidden)
                bias = moved(blocks, layer, calls, hidden, zero, kind.linear).states[:, -1]
                biases = moved(blocks, layer, calls, hidden, biases, kind.linear).states
            without = made if bias is None else made - bias
            found.append(
                torch.stack(
                    [
                        relative_error(made, value),
                        own.parts["attention"],
                        own.parts["mlp"],
                        relative_error(without, value)
                        if bias is not None
                        else torch.zeros_like(own.parts["mlp"]),
                    ],
                    dim=-1,
                )
            )
            hidden = after
        value, made = hidden[:, -1], whole[:, -1]
        without = made - biases[:, -1]
        missing = (
            relative_error(without, value) if has_any else torch.zeros_like(without[:, 0].double())
        )
        ends = torch.stack([relative_error(made, value), missing], dim=-1)
        return torch.stack(found, dim=1), ends

    for prompts, (each, ends) in _of_batches(run, work, "reconstruction", held=3):
        errors[prompts], stack[prompts] = each.cpu().numpy(), ends.cpu().numpy()
    return errors, stack


def _padded(run: ShardedRun, parts: Iterator[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Shares of shards whose longest prompts are of unlike length."""
    shares, biases = zip(*parts, strict=True)
    longest = max(one.shape[1] for one in shares)
    filled = [
        np.pad(one, ((0, 0), (longest - one.shape[1], 0)), constant_values=np.nan) for one in shares
    ]
    return np.concatenate(filled), np.concatenate(biases)


@in_shards(_padded, "shares of tokens")
def _shares(run: Run, kind: Linearisation) -> tuple[np.ndarray, np.ndarray]:
    """Shares (prompt, token) of tokens and (prompt, layer) of biases."""
    longest = max(map(len, run.rows))
    share = np.full((len(run), longest), np.nan)
    biases = np.zeros((len(run), run.n_layers))

    def work(blocks: Blocks, calls: Calls) -> Steps[tuple[torch.Tensor, torch.Tensor]]:
        passed = [calls.embedded]
        for layer in range(len(blocks)):
            yield layer
            with torch.no_grad():
                passed.append(blocks.sequence(layer, calls, passed[-1])[0])
        last = wide(passed.pop()[:, -1]).double()
        rows = torch.zeros_like(passed[0])
        rows[:, -1] = (last / last.square().sum(-1, keepdim=True)).to(rows)
        given = []
        for layer in reversed(range(len(blocks))):
            yield layer
            hidden = passed.pop()
            given.append(torch.zeros_like(last[:, 0]))
            if blocks.has_biases(layer):
                zero = torch.zeros_like(hidden)
                bias = moved(blocks, layer, calls, hidden, zero, kind.linear).states
                given[-1] = (rows.double() * bias.double()).sum((1, 2))
            rows = pulled_back(blocks, layer, calls, hidden, rows, kind.linear)
        shares = (rows.double() * calls.embedded.double()).sum(-1)
        return shares, torch.stack(given[::-1], dim=1)

    held = run.n_layers + 1
    for prompts, (found, of_biases) in _of_batches(run, work, "shares of tokens", held):
        biases[prompts] = of_biases.cpu().numpy()
        for prompt, row in zip(prompts, found.cpu().numpy(), strict=True):
            n_tokens = len(run.rows[prompt])
            share[prompt, longest - n_tokens :] = row[len(row) - n_tokens :]
    return share, biases
