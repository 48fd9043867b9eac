"""A tokenizer of bytes in the folder that is named: load testers fetch any other from the Internet, aiperf its `builtin` one too."""

import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(["Hi"], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<|end|>"]))
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")
fast.save_pretrained(sys.argv[1])
