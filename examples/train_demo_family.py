"""Train the demo family: three small GPT-2 models from scratch on the grammar's text.

The models differ in width and depth (hidden size x blocks): ``demo_48x4``, ``demo_96x8`` and
``demo_128x12``. They share one byte-level BPE tokenizer and the documents of
`depthsys.demo.grammar.training_documents`. Training is in float32 on two CPU threads and
takes 5 to 20 minutes a model; weights are stored as float16. Every number in the card is
measured here, on the stored weights loaded back as float32.

The measurements use plain torch and hooks, nothing of `depthsys`, so they double as an
independent check on the package.

Run from the repository root::

    python examples/train_demo_family.py --out my-models
    python examples/train_demo_family.py --models demo_48x4 --force
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import transformers
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from depthsys.demo import grammar

# name: hidden size, blocks, heads, peak learning rate
FAMILY = {
    "demo_48x4": (48, 4, 4, 4e-3),
    "demo_96x8": (96, 8, 4, 2e-3),
    "demo_128x12": (128, 12, 4, 1.5e-3),
}
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 1024
POSITIONS = 128
BATCH = 32
STEPS = 3000
# Documents of similar length are put in one batch so that little is spent on padding; the
# sorting happens within this many batches, which keeps every batch near the stream's order.
BUCKET = 64
HELD_OUT_SEED = 1_000_003
HELD_OUT_DOCUMENTS = 2000
FIT_PER_CLASS, TEST_PER_CLASS = 400, 200
IGNORED = -100


# Text and tokens


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose encoding of a text starts with the end-of-text token.

    Documents start so in training; nothing is ever appended, so the last token of an encoded
    text is the text's own.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(grammar.training_documents(20_000, seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A $B",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> list[list[int]]:
    """Token ids of whole documents, end-of-text at both ends."""
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents)["input_ids"]]
    longest = max(map(len, rows))
    if longest > POSITIONS:
        raise ValueError(
            f"a document must have at most {POSITIONS} tokens; got {longest}. "
            "Shorten the grammar's series of texts."
        )
    return rows


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and next-token targets (row, token); padding is ignored in the targets.

    Padding stands on the right, where a causal model cannot see it from the real tokens.
    """
    length = max(map(len, rows)) - 1
    inputs = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), IGNORED)
    for index, row in enumerate(rows):
        inputs[index, : len(row) - 1] = torch.tensor(row[:-1])
        targets[index, : len(row) - 1] = torch.tensor(row[1:])
    return inputs, targets


def batches(rows: list[list[int]], generator: np.random.Generator) -> Iterator[list[list[int]]]:
    """Every row once, in batches of similar length."""
    for start in range(0, len(rows), BATCH * BUCKET):
        chunk = sorted(rows[start : start + BATCH * BUCKET], key=len)
        starts = generator.permutation(np.arange(0, len(chunk), BATCH))
        for first in starts:
            yield chunk[first : first + BATCH]


def token_losses(model: torch.nn.Module, rows: list[list[int]], reduction: str) -> torch.Tensor:
    inputs, targets = padded(rows)
    logits = model(input_ids=inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction
    )


# Training


def new_model(name: str, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    width, blocks, heads, _ = FAMILY[name]
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=width,
        n_layer=blocks,
        n_head=heads,
        # The same function as GPT-2's "gelu_new" in one kernel; a fifth less time per step.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = GPT2LMHeadModel(config)
    model.generation_config.pad_token_id = end
    return model


def train(
    model: GPT2LMHeadModel, rows: list[list[int]], steps: int, peak: float, seed: int, name: str
) -> float:
    """AdamW with a warm-up and a cosine to 2 % of the peak; returns the wall time in seconds."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
        fused=True,
    )
    warm_up = min(150, max(1, steps // 10))

    def scale(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    model.train()
    begin = time.perf_counter()
    smooth = None
    with tqdm(total=steps, desc=name, mininterval=5.0, unit="step") as bar:
        for batch in batches(rows, np.random.default_rng(seed)):
            loss = token_losses(model, batch, "mean")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss must stay finite; got {value} at step {bar.n} of {name}. "
                    "Lower the learning rate."
                )
            smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
            bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
            bar.update()
    model.eval()
    return time.perf_counter() - begin


# Measurements: plain torch and hooks


@torch.no_grad()
def last_token_stream(model, tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual stream of the last token before every block and after the last one.

    Returns the states (depth, text, feature), depth 0..L, and the logits (text, token) at
    that token. The state at depth L is the output of the last block, before the final norm.
    """
    captured: dict[int, torch.Tensor] = {}
    blocks = model.transformer.h

    def keep(depth: int, value) -> None:
        captured[depth] = value[0] if isinstance(value, tuple) else value

    handles = [
        blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: keep(0, args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    ]
    for depth, block in enumerate(blocks, start=1):
        handles.append(
            block.register_forward_hook(lambda _, args, out, depth=depth: keep(depth, out))
        )
    rows = tokenizer(texts)["input_ids"]
    states, logits = [], []
    try:
        for start in range(0, len(rows), 100):
            part = rows[start : start + 100]
            inputs, _ = padded([[*row, 0] for row in part])
            last = torch.tensor([len(row) - 1 for row in part])
            index = torch.arange(len(part))
            output = model(input_ids=inputs, use_cache=False).logits
            logits.append(output[index, last])
            states.append(torch.stack([captured[d][index, last] for d in sorted(captured)]))
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(states, dim=1), torch.cat(logits)


def auc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Probability that a positive score exceeds a negative one, ties counted half."""
    difference = positive[:, None] - negative[None, :]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def concept_auc(model, tokenizer, concept: str, seed: int) -> list[float]:
    """AUC per depth of the mean-difference direction, fitted and tested on different texts."""
    pairs = grammar.labelled(FIT_PER_CLASS + TEST_PER_CLASS, concept, seed)
    by_class = [[text for text, label in pairs if label == value] for value in (0, 1)]
    states = [last_token_stream(model, tokenizer, texts)[0].double() for texts in by_class]
    fit = [s[:, :FIT_PER_CLASS] for s in states]
    test = [s[:, FIT_PER_CLASS:] for s in states]
    direction = fit[1].mean(dim=1) - fit[0].mean(dim=1)
    # A direction of length zero (all last tokens alike) scores every text alike: AUC 1/2.
    direction /= direction.norm(dim=1, keepdim=True).clamp_min(1e-300)
    scores = [torch.einsum("dtf,df->dt", s, direction) for s in test]
    return [round(auc(one, zero), 4) for zero, one in zip(*scores, strict=True)]


@torch.no_grad()
def verdict_accuracy(model, tokenizer, seed: int) -> float:
    """Share of texts after which "Verdict:" leads to the right side of four/five, one/two."""
    pairs = grammar.labelled(TEST_PER_CLASS, "sentiment", seed)
    _, logits = last_token_stream(model, tokenizer, [f"{text} Verdict:" for text, _ in pairs])
    sides = [
        torch.logsumexp(
            logits[:, [tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in words]],
            dim=1,
        )
        for words in ((" one", " two"), (" four", " five"))
    ]
    labels = torch.tensor([label for _, label in pairs])
    return ((sides[1] > sides[0]).long() == labels).double().mean().item()


@torch.no_grad()
def held_out_loss(model, rows: list[list[int]]) -> float:
    """Mean loss in nats per predicted token (everything after the first end-of-text)."""
    total, count = 0.0, 0
    ordered = sorted(rows, key=len)
    for start in range(0, len(ordered), 100):
        part = ordered[start : start + 100]
        total += token_losses(model, part, "sum").double().item()
        count += sum(len(row) - 1 for row in part)
    return total / count


def count_losses(
    rows: list[list[int]], held_out: list[list[int]], size: int
) -> tuple[float, float]:
    """Held-out loss of the training text's unigram and bigram frequencies, nats per token.

    One is added to every unigram count; the bigram backs off to the unigram with weight 10.
    """
    unigram = np.ones(size)
    bigram = np.zeros((size, size))
    for row in rows:
        np.add.at(unigram, row[1:], 1)
        np.add.at(bigram, (row[:-1], row[1:]), 1)
    unigram /= unigram.sum()
    bigram = (bigram + 10 * unigram) / (bigram.sum(axis=1, keepdims=True) + 10)
    previous, following = np.array([pair for row in held_out for pair in pairwise(row)]).T
    return (
        float(-np.log(unigram[following]).mean()),
        float(-np.log(bigram[previous, following]).mean()),
    )


def word_count_accuracy(concept: str, ngrams: int) -> float:
    """Test accuracy of logistic regression on counts of words (and word pairs)."""
    train_pairs = grammar.labelled(5000, concept, seed=0)
    known = {text for text, _ in train_pairs}
    test_pairs = [p for p in grammar.labelled(2000, concept, seed=1) if p[0] not in known]
    counter = CountVectorizer(token_pattern=r"[#\w]+", ngram_range=(1, ngrams))
    counts = counter.fit_transform([text for text, _ in train_pairs])
    model = LogisticRegression(max_iter=3000).fit(counts, [label for _, label in train_pairs])
    return float(
        model.score(
            counter.transform([text for text, _ in test_pairs]),
            [label for _, label in test_pairs],
        )
    )


def overlap(documents: list[str], texts: list[str]) -> float:
    """Share of `texts` with which some document begins."""
    wanted = set(texts)
    found = set()
    for document in documents:
        for position, character in enumerate(document):
            if character in ".!" and document[: position + 1] in wanted:
                found.add(document[: position + 1])
    return len(found) / len(wanted)


# Files


def measured(folder: Path, held_out: list[list[int]], seed: int) -> dict:
    """What the card says of a stored model, measured on its float16 weights as float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_loss": held_out_loss(model, held_out),
        "verdict_accuracy": verdict_accuracy(model, tokenizer, HELD_OUT_SEED + seed),
        "auc": {
            c: concept_auc(model, tokenizer, c, HELD_OUT_SEED + seed) for c in grammar.CONCEPTS
        },
    }


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.half()
    model.config.activation_function = "gelu_new"
    model.config.dtype = torch.float16
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # safetensors writes for the owner alone; in an installed package others must read it too.
    (folder / "model.safetensors").chmod(0o644)


def write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def card_text(card: dict) -> str:
    data, models = card["data"], card["models"]
    first = next(iter(models.values()))
    peaks = ", ".join(format(entry["peak_learning_rate"], "g") for entry in models.values())
    accuracy, pairs = data["unigram_accuracy"], data["bigram_accuracy"]
    text = f"""\
# Demo family

Three small language models with the GPT-2 architecture, trained from scratch by
`examples/train_demo_family.py`, which also wrote this card. Numbers are measured, on the
stored float16 weights loaded as float32; they are in `card.json` as well.

**The text is synthetic.** All of it comes from the project's own grammar,
`depthsys.demo.grammar`: short reviews, tweets and stories about restaurants or films,
positive or negative. No text of any person and no other model's output went in. The models
know nothing else, and are for demonstrations, tests and teaching only.

## Data

* Training: {first["documents"]:,} documents, {first["tokens"]:,} predicted tokens, each seen once,
  the same in the same order for every model: `training_documents({first["documents"]}, \
seed={card["seed"]})`.
  A document is a labelled text, or two to four that agree in both concepts, and a
  continuation that depends on both. {data["tokens_per_document"]:.1f} tokens on average.
* Tokenizer: byte-level BPE, {data["vocabulary"]} tokens, shared; it puts `{END_OF_TEXT}`
  before a text and nothing after it.
* Held-out: {HELD_OUT_DOCUMENTS} documents with seed {data["held_out_seed"]}; \
{data["held_out_overlap"]:.2%} of them are training documents too.
* Demo prompts, `labelled(1000, concept, seed=0)`: same generator, another stream. Share that
  begins a training document: sentiment {data["prompt_overlap"]["sentiment"]:.2%}, \
domain {data["prompt_overlap"]["domain"]:.2%}.
* Counting words does not settle sentiment. Logistic regression on word counts of 10000
  texts, tested on 4000 others: sentiment {accuracy["sentiment"]:.1%} (words and word pairs
  {pairs["sentiment"]:.1%}), domain {accuracy["domain"]:.1%}.
* Loss of frequencies alone on the held-out documents, nats per token: unigram
  {data["unigram_loss"]:.3f}, bigram {data["bigram_loss"]:.3f}.

## Models

| model | width x blocks | heads | parameters | minutes (threads) | held-out loss | verdict |
|---|---|---|---|---|---|---|
"""
    for name, entry in models.items():
        text += (
            f"| `{name}` | {entry['width']} x {entry['blocks']} | {entry['heads']}"
            f" | {entry['parameters']:,} | {entry['wall_seconds'] / 60:.1f} ({entry['threads']})"
            f" | {entry['held_out_loss']:.4f} | {entry['verdict_accuracy']:.1%} |\n"
        )
    text += f"""
Loss: nats per predicted token. Verdict: share of {2 * TEST_PER_CLASS} new texts after which
`Verdict:` gives four and five together more probability than one and two exactly when the
text is positive. Minutes: wall time of training, CPU of a shared machine.

Recipe: {card["steps"]} steps of {BATCH} documents, AdamW (betas 0.9 and 0.98, weight decay 0.1 on
matrices), gradient norm clipped at 1, warm-up and cosine from {peaks};
float32, no dropout, tied embeddings, {POSITIONS} positions.

## Where the concepts are

AUC per depth of the mean-difference direction in the residual stream of the last token: the
input of the first block (depth 0) and the output of each block, before the final norm.
Direction from {FIT_PER_CLASS} texts per class, AUC on {TEST_PER_CLASS} others per class, the \
other concept balanced.

"""
    deepest = max(entry["blocks"] for entry in models.values())
    for concept in grammar.CONCEPTS:
        text += f"| {concept} at depth | " + " | ".join(map(str, range(deepest + 1))) + " |\n"
        text += "|---" * (deepest + 2) + "|\n"
        for name, entry in models.items():
            values = [f"{value:.3f}" for value in entry["auc"][concept]]
            values += [""] * (deepest + 1 - len(values))
            text += f"| `{name}` | " + " | ".join(values) + " |\n"
        text += "\n"
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    return text + (
        "The standard error of an AUC is about 0.03 near 0.5 and 0.01 near 0.95. At depth 0 the\n"
        "stream holds the last token (full stop or exclamation mark) and its position only.\n\n"
        f"Made with {versions}.\n"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[1] / "depthsys" / "demo" / "models"
    parser.add_argument("--out", type=Path, default=default, help="folder for the model folders")
    parser.add_argument("--seed", type=int, default=0, help="seed of text, weights and batches")
    parser.add_argument("--models", nargs="+", choices=FAMILY, default=list(FAMILY))
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps per model")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, 1 or 2 will do")
    parser.add_argument("--force", action="store_true", help="replace existing model folders")
    options = parser.parse_args()
    for name in ("steps", "threads"):
        value = getattr(options, name)
        if value < 1:
            parser.error(f"--{name} must be at least 1; got {value}. Leave it out for the default.")
    existing = [str(options.out / n) for n in options.models if (options.out / n).exists()]
    if existing and not options.force:
        parser.error(
            f"--out must not hold these models yet; got {', '.join(existing)}. "
            "Pass --force to replace them."
        )
    return options


def kept_models(options: argparse.Namespace) -> dict:
    """Card entries of models that lie in the folder and are not trained in this run."""
    file = options.out / "card.json"
    card = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"models": {}}
    kept = {
        name: entry
        for name, entry in card["models"].items()
        if name not in options.models and (options.out / name).exists()
    }
    if kept and (card["seed"], card["steps"]) != (options.seed, options.steps):
        raise SystemExit(
            "--seed and --steps must be those of the models kept; got "
            f"{options.seed} and {options.steps}, they have {card['seed']} and {card['steps']}. "
            "Train all models or choose another --out."
        )
    return kept


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    # The warning that no pad token is set does not apply: padding never reaches a real token.
    transformers.logging.set_verbosity_error()
    options.out.mkdir(parents=True, exist_ok=True)
    # Read before the long work, so that a mismatch shows at once.
    kept_models(options)
    tokenizer = train_tokenizer(options.seed)
    held_out_documents = list(
        grammar.training_documents(HELD_OUT_DOCUMENTS, options.seed + HELD_OUT_SEED)
    )
    documents = list(
        tqdm(
            grammar.training_documents(BATCH * options.steps, options.seed),
            total=BATCH * options.steps,
            desc="documents",
            mininterval=5.0,
        )
    )
    rows = encode(tokenizer, documents)
    held_out = encode(tokenizer, held_out_documents)
    unigram_loss, bigram_loss = count_losses(rows, held_out, len(tokenizer))
    known = set(documents)
    card = {
        "seed": options.seed,
        "steps": options.steps,
        "data": {
            "vocabulary": len(tokenizer),
            "tokens_per_document": float(np.mean([len(row) for row in rows])),
            "held_out_seed": options.seed + HELD_OUT_SEED,
            "held_out_overlap": float(np.mean([d in known for d in held_out_documents])),
            "prompt_overlap": {
                c: overlap(documents, [text for text, _ in grammar.labelled(1000, c, seed=0)])
                for c in grammar.CONCEPTS
            },
            "unigram_accuracy": {c: word_count_accuracy(c, 1) for c in grammar.CONCEPTS},
            "bigram_accuracy": {c: word_count_accuracy(c, 2) for c in grammar.CONCEPTS},
            "unigram_loss": unigram_loss,
            "bigram_loss": bigram_loss,
        },
        "models": {},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    for name in options.models:
        torch.manual_seed(options.seed)
        model = new_model(name, tokenizer)
        width, blocks, heads, peak = FAMILY[name]
        seconds = train(model, rows, options.steps, peak, options.seed, name)
        # Only a whole model gets its final name; an interrupted run leaves a hidden folder.
        folder, partial = options.out / name, options.out / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        save(model, tokenizer, partial)
        entry = {
            "width": width,
            "blocks": blocks,
            "heads": heads,
            "peak_learning_rate": peak,
            "documents": len(rows),
            "tokens": sum(len(row) - 1 for row in rows),
            "wall_seconds": round(seconds, 1),
            "threads": options.threads,
            **measured(partial, held_out, options.seed),
        }
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        # Read again: another process may have trained another model meanwhile.
        models = {**kept_models(options), **card["models"], name: entry}
        card["models"] = {n: models[n] for n in FAMILY if n in models}
        write_whole(options.out / "card.json", json.dumps(card, indent=2) + "\n")
        write_whole(options.out / "CARD.md", card_text(card))
        tqdm.write(
            f"{name}: loss {entry['held_out_loss']:.4f}, verdict {entry['verdict_accuracy']:.3f}, "
            f"AUC {entry['auc']}"
        )


if __name__ == "__main__":
    main()
