"""Byte tokenizers that differ only in the special tokens they have and put around a text."""

from dataclasses import replace

from tokenizers import processors

from q2n.models.tiny import byte_tokenizer

AROUND = {
    "nothing": ("$A", {}),
    "bos": ("<s> $A", {}),
    "eos": ("$A </s>", {}),
    "both": ("<s> $A </s>", {}),
    "no special tokens": ("$A", {"bos_token": None, "eos_token": None, "pad_token": None}),
}
"""What stands around a text, and the changes to the tokenizer, by name."""
BEFORE = {"nothing": [], "bos": [0], "eos": [], "both": [0], "no special tokens": []}
"""Ids that stand before a text."""


def tokenizer(name):
    made = byte_tokenizer(add_bos=False)
    template, tokens = AROUND[name]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    for token, value in tokens.items():
        setattr(made, token, value)
    return made


def with_tokens(loaded, name):
    """The model with another tokenizer."""
    return replace(loaded, tokenizer=tokenizer(name))


ROLLING = """
task: texts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
"""A task of rolling log-likelihoods over the texts of ``{file}``."""
