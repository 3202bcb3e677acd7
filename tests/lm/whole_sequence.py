"""The slow, obvious reference: whole-sequence forward passes with hooks, dense Jacobians.

Written without anything from depthsys. Everything is float64 numpy outside the model.
"""

import contextlib

import numpy as np
import torch


def blocks(hf):
    return hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers


@contextlib.contextmanager
def pushed(hf, pushes: dict[int, torch.Tensor]):
    """Add vectors to the last token at the input of some blocks."""
    handles = []
    for layer, push in pushes.items():

        def hook(module, args, push=push):
            hidden = args[0].clone()
            hidden[:, -1] = hidden[:, -1] + push
            return (hidden, *args[1:])

        handles.append(blocks(hf)[layer].register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def state_after(hf, ids: list[int], block: int, pushes: dict[int, torch.Tensor]) -> torch.Tensor:
    """State of the last token after a block, differentiable with respect to the pushes."""
    out = []
    handle = blocks(hf)[block].register_forward_hook(
        lambda m, a, o: out.append((o[0] if isinstance(o, tuple) else o)[0, -1])
    )
    try:
        with pushed(hf, pushes):
            hf(torch.tensor([ids]), use_cache=False)
    finally:
        handle.remove()
    return out[0]


def states(hf, ids: list[int]) -> np.ndarray:
    """(depth, feature), depth 0..L, before the final norm."""
    first = []
    handle = blocks(hf)[0].register_forward_pre_hook(lambda m, a: first.append(a[0][0, -1]))
    with torch.no_grad():
        hf(torch.tensor([ids]), use_cache=False)
        handle.remove()
        rest = [state_after(hf, ids, k, {}) for k in range(len(blocks(hf)))]
    return torch.stack([first[0], *rest]).numpy()


def skipped(hf, ids: list[int], layer: int) -> tuple[np.ndarray, np.ndarray]:
    """x_L and log-probabilities of the next token where a block leaves the last token alone."""

    def hook(module, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, -1] = args[0][:, -1]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    last, out = len(blocks(hf)) - 1, []
    handles = [
        blocks(hf)[layer].register_forward_hook(hook),
        blocks(hf)[last].register_forward_hook(
            lambda m, a, o: out.append((o[0] if isinstance(o, tuple) else o)[0, -1])
        ),
    ]
    try:
        with torch.no_grad():
            logits = hf(torch.tensor([ids]), use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return out[0].numpy(), torch.log_softmax(logits.double(), dim=-1).numpy()


def jacobians(hf, ids: list[int], dtype=torch.float64) -> np.ndarray:
    """Dense Jacobian of every block on the last token, by whole-sequence autograd."""
    width = hf.config.hidden_size
    return np.stack(
        [
            torch.autograd.functional.jacobian(
                lambda push, layer=layer: state_after(hf, ids, layer, {layer: push}),
                torch.zeros(width, dtype=dtype),
            ).numpy()
            for layer in range(len(blocks(hf)))
        ]
    )


def measured_gains(hf, ids: list[int], v: np.ndarray, eps: float) -> np.ndarray:
    """One hooked forward pass per layer and sign."""
    last = len(blocks(hf)) - 1
    gains = []
    with torch.no_grad():
        for layer in range(last + 1):
            ends = [
                state_after(hf, ids, last, {layer: torch.tensor(sign * eps * v[layer])}).numpy()
                for sign in (1, -1)
            ]
            gains.append(v[-1] @ (ends[0] - ends[1]) / (2 * eps))
    return np.array(gains)


def played(hf, ids: list[int], v: np.ndarray, u: np.ndarray) -> float:
    """Shift of the readout under a schedule."""
    last = len(u) - 1
    with torch.no_grad():
        pushes = {layer: torch.tensor(u[layer] * v[layer]) for layer in range(last + 1)}
        end, start = (state_after(hf, ids, last, p).numpy() for p in (pushes, {}))
    return float(v[-1] @ (end - start))


def chain_gains(A: np.ndarray, v: np.ndarray) -> np.ndarray:
    """h_l = v_L' A_{L-1} ... A_l v_l by dense products."""
    gains = []
    for layer in range(len(A)):
        x = v[layer]
        for matrix in A[layer:]:
            x = matrix @ x
        gains.append(v[-1] @ x)
    return np.array(gains)


def krylov_basis(A: np.ndarray, v: np.ndarray, depth: int, order: int) -> np.ndarray:
    """orth[v_k, A_{k-1} v_{k-1}, A_{k-1} A_{k-2} v_{k-2}, ...], the definition itself."""
    columns = [v[depth]]
    for start in reversed(range(depth)):
        x = v[start]
        for layer in range(start, depth):
            x = A[layer] @ x
        columns.append(x)
    return np.linalg.qr(np.stack(columns[:order], axis=1))[0]


def krylov_gains(A: np.ndarray, v: np.ndarray, order: int) -> np.ndarray:
    """Gains of the Petrov-Galerkin system with W = V, by dense algebra."""
    n_layers = len(A)
    V = [krylov_basis(A, v, k, order) for k in range(n_layers + 1)]
    reduced = [V[k + 1].T @ A[k] @ V[k] for k in range(n_layers)]
    gains = []
    for layer in range(n_layers):
        r = V[layer + 1].T @ A[layer] @ v[layer]
        for matrix in reduced[layer + 1 :]:
            r = matrix @ r
        gains.append(v[-1] @ V[-1] @ r)
    return np.array(gains)


def all_positions(hf, ids: list[int], layer: int) -> np.ndarray:
    """Derivative of x_L of every token by the state of every token before a block.

    (token_out, feature_out, token, feature), by autograd of the whole sequence.
    """
    kept = []
    last = len(blocks(hf)) - 1

    def run(push):
        handles = [
            blocks(hf)[layer].register_forward_pre_hook(lambda m, a: (a[0] + push, *a[1:])),
            blocks(hf)[last].register_forward_hook(
                lambda m, a, o: kept.append((o[0] if isinstance(o, tuple) else o)[0])
            ),
        ]
        try:
            hf(torch.tensor([ids]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return kept.pop()

    zero = torch.zeros(1, len(ids), hf.config.hidden_size, dtype=torch.float64)
    found = torch.autograd.functional.jacobian(run, zero)
    return found[:, :, 0].numpy()
