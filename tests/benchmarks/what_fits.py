"""What fits which card, and how long the main job takes there: computed, not measured.

    python -m tests.benchmarks.what_fits

Prints the Markdown section of docs/performance.md. Sizes follow from configurations and from the
constants of the package; times from the rates of the shape that was measured, see `RATES`, and from
`LAUNCHING_S`, and are no better than these.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from depthsys.lm.contexts import LINEARISED, SHARE
from depthsys.lm.forecast import RANGE_STEPS

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A Llama: L layers, H features, so many heads of queries and of keys, and so on."""

    name: str
    L: int
    H: int
    heads: int
    key_heads: int
    inner: int
    vocabulary: int
    tied: bool

    @property
    def block(self) -> int:
        """Numbers in the matrices of a block."""
        keys = self.H // self.heads * self.key_heads
        return 2 * self.H**2 + 2 * self.H * keys + 3 * self.H * self.inner

    @property
    def ends(self) -> int:
        """Numbers in embedding and head."""
        return self.vocabulary * self.H * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights, norms included."""
        return self.L * (self.block + 2 * self.H) + self.ends + self.H

    def context(self, n_prompts: int, n_tokens: int) -> int:
        """Keys and values that a run keeps: of all layers and of all tokens but the last one."""
        keys = self.H // self.heads * self.key_heads
        return 2 * self.L * keys * n_prompts * (n_tokens - 1)

    def states(self, n_prompts: int) -> int:
        """Last-token states of all depths."""
        return (self.L + 1) * self.H * n_prompts

    def work(self) -> int:
        """One batch of whole sequences on its way through a block: its states and its inner ones.

        Six states wide (input, norm, queries, attention, sum, output) and three inner ones.
        """
        return batch_tokens(self.H) * (6 * self.H + 3 * self.inner)


def batch_tokens(width: int) -> int:
    """Most tokens of a batch, as `Run` asks for them."""
    return max(1024, 2**19 // width)


SHAPES = (
    Shape("Llama-3.2-1B", 16, 2048, 32, 8, 8192, 128256, tied=True),
    Shape("Llama-3.1-8B", 32, 4096, 32, 8, 14336, 128256, tied=False),
    Shape("Llama-3.1-70B", 80, 8192, 64, 8, 28672, 128256, tied=False),
)
CARDS = (24, 48, 80, 141)  # GB, as they are sold
BYTES = {"float32": 4, "TF32": 4, "bfloat16": 2}

# Measured on an H100: 32 prompts of 128 tokens through the 8B shape. That of bfloat16 was not
# measured: twice that of TF32, as in the data sheet.
PREFILL_TOKENS = 32 * 128
PREFILL_S = {"float32": 1.19, "TF32": 0.22, "bfloat16": 0.11}
# Measured on an H200: the main job of 135M parameters and 30 layers, whose arithmetic takes less
# than a second there. Batches are as many in wider models, calls as many in each layer.
LAUNCHING_S, LAUNCHING_LAYERS = 15.3, 30
# Assumed: bytes per second from the host's memory to the card.
BUS = 25e9
# What neither package nor weights take: of the card's memory as sold, and for libraries.
USABLE, LIBRARIES = 0.97, 1 * GIB

# The main job: texts (two classes each) and tokens per text.
CONCEPT, OPERATING, HELD_OUT, TOKENS = 800, 400, 400, 32
# Its passes through all layers: prefills, linear gains, identification, steps of the range of
# linearity, schedules. Counted on a small model.
PASSES = 18
# States of the last token that `compare_energies` sends through blocks, per held-out prompt and
# layer: so many start at every layer. Counted on small models, 4 to 12 layers.
ENERGY_ROWS = 50


def main_job_rows(L: int) -> float:
    """States that go through a block, over all blocks: of prefills, gains and energies."""
    prefill = (CONCEPT + OPERATING + HELD_OUT) * TOKENS * L
    # both signs from every layer on; the settings' own step, and those of the range
    measured = RANGE_STEPS * L * (L + 1) * HELD_OUT
    # linearised, and one product back, which costs another pass: three times, `identify` included
    linear = 2 * (HELD_OUT + 2 * OPERATING) * L
    return prefill + measured + linear + ENERGY_ROWS * L * HELD_OUT


def seconds(shape: Shape, precision: str) -> float:
    """Of the main job, weights on the card."""
    measured = next(each for each in SHAPES if each.name == "Llama-3.1-8B")
    rate = 2.0 * measured.block * measured.L * PREFILL_TOKENS / PREFILL_S[precision]
    arithmetic = 2.0 * shape.block * main_job_rows(shape.L) / rate
    return arithmetic + LAUNCHING_S * shape.L / LAUNCHING_LAYERS


def moving(shape: Shape, precision: str) -> float:
    """Seconds that the main job waits for layers, each brought to the card once per pass."""
    return PASSES * shape.L * shape.block * BYTES[precision] / BUS


def place(shape: Shape, precision: str, card: int) -> str:
    """Where weights and contexts of a run of the main job lie on a card of so many GB."""
    size = BYTES[precision]
    usable = USABLE * card * GIB - LIBRARIES - LINEARISED
    held = size * (shape.work() + shape.states(CONCEPT + OPERATING + HELD_OUT))
    left = usable - held - size * shape.parameters
    if left >= 0:
        context = size * shape.context(OPERATING, TOKENS)
        return "fits" if context <= SHARE * left else "fits, contexts on the host"
    # two layers, that which works and that which comes
    least = size * (shape.ends + 2 * shape.block)
    return "layers move" if least + held <= usable else "no"


# -------------------------------------------------------------------------------------- section


def table() -> Iterator[str]:
    """Markdown lines: sizes, places, seconds."""
    columns = [
        "shape", "precision", "weights", "context, 400 x 32", "400 x 128", "states", "work",
        *(f"{card} GB" for card in CARDS), "main job", "more, where layers move",
    ]  # fmt: skip
    yield _line(columns)
    yield _line(["---"] * len(columns))
    for shape in SHAPES:
        for precision, size in BYTES.items():
            parts = (
                shape.parameters,
                shape.context(OPERATING, 32),
                shape.context(OPERATING, 128),
                shape.states(CONCEPT + OPERATING + HELD_OUT),
                shape.work(),
            )
            places = [place(shape, precision, card) for card in CARDS]
            yield _line(
                [
                    shape.name,
                    precision,
                    *(f"{size * part / GIB:.3g}" for part in parts),
                    *places,
                    f"{seconds(shape, precision):.0f} s",
                    f"{moving(shape, precision):.0f} s" if "layers move" in places else "",
                ]
            )


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def section() -> str:
    """The section of docs/performance.md."""
    return "\n".join([*table()]) + "\n"


if __name__ == "__main__":
    print(section())
