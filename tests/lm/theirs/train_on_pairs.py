"""Directions that repeng and steering-vectors find on contrast pairs.

    python train_on_pairs.py REQUEST.json

The request has the folder of a ``model`` with its tokenizer, ``pairs`` (positive, negative), and
``out``, a file .npz for arrays by the names "package, method, layer".
"""

import json
import sys

import numpy as np
import torch
from repeng import ControlVector, DatasetEntry
from steering_vectors import train_steering_vector
from steering_vectors.aggregators import mean_aggregator, pca_aggregator
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def main() -> None:
    with open(sys.argv[1]) as file:
        request = json.load(file)
    # by its file, for a folder of transformers 5 names a class that transformers 4 lacks
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=f"{request['model']}/tokenizer.json",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],  # GPT-2 would embed token types
    )
    model = AutoModelForCausalLM.from_pretrained(request["model"], torch_dtype=torch.float32)
    model.eval()
    pairs = [tuple(pair) for pair in request["pairs"]]
    found = {}
    for name, aggregator in (("mean", mean_aggregator()), ("pca", pca_aggregator())):
        vector = train_steering_vector(model, tokenizer, pairs, aggregator=aggregator)
        for layer, direction in vector.layer_activations.items():
            found[f"steering-vectors, {name}, {layer}"] = direction.numpy()
    earlier = train_steering_vector(model, tokenizer, pairs, read_token_index=-2)
    for layer, direction in earlier.layer_activations.items():
        found[f"steering-vectors, mean at -2, {layer}"] = direction.numpy()
    entries = [DatasetEntry(positive=one, negative=other) for one, other in pairs]
    for method in ("pca_diff", "pca_center"):
        vector = ControlVector.train(model, tokenizer, entries, method=method)
        for layer, direction in vector.directions.items():
            found[f"repeng, {method}, {layer}"] = direction
    np.savez(request["out"], **found)


if __name__ == "__main__":
    main()
