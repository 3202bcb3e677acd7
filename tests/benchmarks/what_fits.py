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
LAUNCHING_S, LAUNCHING_LAYERS = 24.0, 30
LAUNCHING_GAINS_S = 10.1  # of these, the step of the gains
# 16 bits hold no difference of two runs: `check_step` refuses measured gains in them.
REFUSING = ("bfloat16",)
# Assumed: bytes per second from the host's memory to the card.
BUS = 25e9
# What neither package nor weights take: of the card's memory as sold, and for libraries.
USABLE, LIBRARIES = 0.97, 1 * GIB

# Passes of the main job through all layers: prefills, identification, gains, energies. Counted on
# small models: 15 to 20, as the energies are found by bisection.
PASSES = 18
# States that `compare_energies` sends through a block, per held-out prompt: counted on models of 2
# to 16 layers, 35 to 93.
ENERGY_ROWS = 60


@dataclass(frozen=True)
class Texts:
    """Of a main job: how many, of both classes together, and their tokens."""

    concept: int
    operating: int
    held_out: int
    tokens: int

    @property
    def count(self) -> int:
        """All of them."""
        return self.concept + self.operating + self.held_out


TEXTS = Texts(800, 400, 400, tokens=32)  # --split 400/200/200


def main_job_rows(L: int, texts: Texts = TEXTS, *, measured_gains: bool = True) -> float:
    """States that go through a block, over all blocks: most that prefills, gains and energies need.

    The range of linearity is found with fewer steps where it can be.
    """
    prefill = texts.count * texts.tokens * L
    # both signs, from every layer on; the settings' own step, and those of the range
    measured = RANGE_STEPS * L * (L + 1) * texts.held_out
    # linearised, and one product back, which costs another pass; `identify` does the same
    linear = 2 * (texts.held_out + 2 * texts.operating) * L
    energies = ENERGY_ROWS * L * texts.held_out
    return prefill + linear + energies + (measured if measured_gains else 0)


def arithmetic(shape: Shape, precision: str) -> float:
    """Seconds of the main job at the rate of the measured prefill."""
    measured = next(each for each in SHAPES if each.name == "Llama-3.1-8B")
    rate = 2.0 * measured.block * measured.L * PREFILL_TOKENS / PREFILL_S[precision]
    rows = main_job_rows(shape.L, measured_gains=precision not in REFUSING)
    return 2.0 * shape.block * rows / rate


def launching(shape: Shape, precision: str) -> float:
    """Seconds that the main job of the measured small model takes, for as many layers."""
    spent = LAUNCHING_S - (LAUNCHING_GAINS_S if precision in REFUSING else 0)
    return spent * shape.L / LAUNCHING_LAYERS


def moving(shape: Shape, precision: str) -> float:
    """Seconds that the main job waits for layers, each brought to the card once per pass."""
    return PASSES * shape.L * shape.block * BYTES[precision] / BUS


def place(shape: Shape, precision: str, card: int) -> str:
    """Where weights and contexts of a run of the main job lie on a card of so many GB."""
    size = BYTES[precision]
    usable = USABLE * card * GIB - LIBRARIES - LINEARISED
    held = size * (shape.work() + shape.states(TEXTS.count))
    left = usable - held - size * shape.parameters
    if left >= 0:
        context = size * shape.context(TEXTS.operating, TEXTS.tokens)
        return "fits" if context <= SHARE * left else "fits, contexts on the host"
    # two layers, that which works and that which comes
    least = size * (shape.ends + 2 * shape.block)
    return "layers move" if least + held <= usable else "no"


# -------------------------------------------------------------------------------------- section

TEXT = """### What fits which card, and for how long: computed, not measured

Made by `python -m tests.benchmarks.what_fits`. **No number of this section was measured on these
models.** Sizes in GiB follow from the configurations: all weights; the contexts (keys and values)
of one run of 400 prompts of 32 or 128 tokens; the states of the {count} texts of a main job
(400/200/200 texts per class); and the work space of one batch in one block. Beside them
{libraries:.0f} GiB for libraries and up to {linearised:.0f} GiB for one linearised layer are set
aside, and {unusable:.0%} of the card. *fits*: all of it on the card, contexts of 32 tokens in the
quarter of the free memory that a run takes without a budget; *contexts on the host*: all but
these; *layers move*: the weights stay in the host's memory, and the card holds embedding, head
and two layers.

The seconds of a main job with 32 tokens per text are a sum of two. Arithmetic: at most {rows}
rows through a block in the 8B shape ({prefill} of them in the prefills), at the rate of the
prefill that an H100 did in float32 ({exact} s for {tokens} tokens of that shape) and TF32 ({tf32}
s), and in bfloat16 at twice the rate of TF32, which is *assumed*. Launches: what the main job of
SmolLM2, nearly all launches, took on an H200 ({launching:.0f} s, {layers} layers), times the
layers. So the seconds are those of an H100 or H200; other cards differ by their rates. In bfloat16
the main job refuses to measure gains, and the seconds are those of the rest; with TF32 it asks for
a larger step (`--eps 0.1`), as the default is refused. Where layers move,
{passes} passes bring every layer to the card once each, at {bus:.0f} GB/s, which is *assumed*; at
best that is hidden behind the arithmetic, at worst it is added.

"""


def table() -> Iterator[str]:
    """Markdown lines: sizes, places, seconds."""
    columns = [
        "shape", "precision", "weights", "context, 400 x 32", "400 x 128", "states", "work",
        *(f"{card} GB" for card in CARDS), "main job", "moving the layers",
    ]  # fmt: skip
    yield _line(columns)
    yield _line(["---"] * len(columns))
    for shape in SHAPES:
        for precision, size in BYTES.items():
            parts = (
                shape.parameters,
                shape.context(TEXTS.operating, 32),
                shape.context(TEXTS.operating, 128),
                shape.states(TEXTS.count),
                shape.work(),
            )
            places = [place(shape, precision, card) for card in CARDS]
            first, second = arithmetic(shape, precision), launching(shape, precision)
            moved = f"{moving(shape, precision):.0f} s" if "layers move" in places else ""
            sizes = [
                f"{size * part / GIB:.{0 if size * part > 10 * GIB else 1}f}" for part in parts
            ]
            spent = f"{first:.0f} + {second:.0f} s"
            yield _line([shape.name, precision, *sizes, *places, spent, moved])


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def section() -> str:
    """The section of docs/performance.md."""
    wide = next(each for each in SHAPES if each.name == "Llama-3.1-8B").L
    text = TEXT.format(
        count=TEXTS.count,
        exact=PREFILL_S["float32"],
        tf32=PREFILL_S["TF32"],
        tokens=PREFILL_TOKENS,
        bus=BUS / 1e9,
        libraries=LIBRARIES / GIB,
        linearised=LINEARISED / GIB,
        unusable=1 - USABLE,
        rows=_millions(main_job_rows(wide)),
        prefill=_millions(TEXTS.count * TEXTS.tokens * wide),
        launching=LAUNCHING_S,
        layers=LAUNCHING_LAYERS,
        passes=PASSES,
    )
    return text + "\n".join(table()) + "\n"


def _millions(count: float) -> str:
    return f"{count / 1e6:.1f} million"


if __name__ == "__main__":
    print(section(), end="")
