"""States of the last token behind the last block, steered by repeng and by steering-vectors.

``python run_in_python.py request.json``: ``model`` (a folder), ``prompts`` (token ids), ``vector``
({block: numbers}), ``strength``, ``layer_ids`` of repeng, and ``out``, a folder. It becomes

* repeng.gguf, the vector as repeng's export_gguf writes it,
* trained.gguf, one that repeng trained itself, with the directions in trained.npz,
* states.npz: nominal, repeng, repeng_trained, steering_vectors (prompt, feature),
* texts.json: new tokens of each prompt and of all of them in one batch, written under repeng's
  vector, and the logits of the first of each.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from repeng import ControlModel, ControlVector, DatasetEntry
from steering_vectors import SteeringVector
from transformers import AutoModelForCausalLM, BatchEncoding


def numbers(text: str) -> list[int]:
    return [ord(letter) - ord("a") + 1 for letter in text]


class Letters:
    """Stands for a tokenizer, a token a letter; texts of one length."""

    def __call__(self, texts, padding, return_tensors):
        ids = torch.tensor([numbers(text) for text in texts])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def states(model, hf, prompts) -> np.ndarray:
    found = []
    inner = hf.transformer if hasattr(hf, "transformer") else hf.model
    norm = inner.ln_f if hasattr(inner, "ln_f") else inner.norm
    handle = norm.register_forward_pre_hook(lambda m, a: found.append(a[0][0, -1].numpy().copy()))
    with torch.no_grad():
        for prompt in prompts:
            model(torch.tensor([prompt]))
    handle.remove()
    return np.array(found)


def texts(model, prompts) -> dict:
    """What repeng's model writes, each prompt alone, and all in a batch padded on the left."""
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone, logits = [], []
    for prompt in prompts:
        out = model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(),
            output_logits=True, return_dict_in_generate=True, **options,
        )  # fmt: skip
        alone.append(out.sequences[0, len(prompt) :].tolist())
        logits.append([step[0].tolist() for step in out.logits])
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    batch = model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:].tolist()
    return {"alone": alone, "batch": batch, "logits": logits}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out, prompts, strength = Path(request["out"]), request["prompts"], request["strength"]
    hf = AutoModelForCausalLM.from_pretrained(request["model"]).eval()
    vector = {int(n): np.array(v, np.float32) for n, v in request["vector"].items()}
    found = {"nominal": states(hf, hf, prompts)}

    tensors = {n: torch.tensor(v) for n, v in vector.items()}
    with SteeringVector(tensors, "decoder_block").apply(hf, multiplier=strength):
        found["steering_vectors"] = states(hf, hf, prompts)

    control = ControlVector(hf.config.model_type, vector)
    control.export_gguf(out / "repeng.gguf")
    model = ControlModel(hf, request["layer_ids"])
    model.set_control(control, strength)
    found["repeng"] = states(model, hf, prompts)
    (out / "texts.json").write_text(json.dumps(texts(model, prompts)))
    model.reset()
    pairs = [DatasetEntry(a, b) for a, b in (("abc", "xyz"), ("bcd", "yzx"), ("cab", "zxw"))]
    trained = ControlVector.train(model, Letters(), pairs)
    trained.export_gguf(out / "trained.gguf")
    np.savez(out / "trained.npz", **{str(n): v for n, v in trained.directions.items()})
    model.set_control(trained, strength)
    found["repeng_trained"] = states(model, hf, prompts)
    np.savez(out / "states.npz", **found)


if __name__ == "__main__":
    main()
