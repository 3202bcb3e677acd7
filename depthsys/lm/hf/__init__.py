"""All that knows Hugging Face: checkpoints, tokens, how blocks are called, the contract."""
