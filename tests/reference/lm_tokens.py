"""Golden token ids of hard text for SmolLM2's tokenizer.

    python lm_tokens.py MODEL.gguf > lm_tokens.tsv        (numpy, gguf, regex, tokenizers)

The ids come from a byte-pair encoder written out below, in the plainest way; the script stops if the Python package
`tokenizers`, built from the same file, disagrees anywhere.

Rows of the table: the text as a JSON string, then its ids.
"""

import argparse
import json

import regex
from lm_gguf import Model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "The year 2024 had 366 days; pi is 3.14159, and 1/3 = 0.333…",
    "I'll say we've seen they're here, it's Bob's, I'd go and you're not. DON'T SHOUT'LL",
    "def fib(n: int) -> int:\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n\n\n\tprint(fib(10))  # 55\n",
    "for (int i = 0; i < n; ++i) { a[i] ^= 0xDEADBEEF; }\r\n",
    "   leading, trailing and   inner   spaces   \n \n\t \t",
    "👋🏽 wave, 👨‍👩‍👧‍👦 family, 🇫🇷 flag, 🦀",
    "中文字符，日本語のテキスト、한국어 텍스트",
    "Ünïcödé: naïve café, Ελληνικά, Русский язык, עברית, العربية, हिन्दी",
    "e\u0301 is not é; \u200bzero\u200dwidth\ufeff; nbsp\u00a0here; thin\u2009space\u3000wide",
    "numbers: ٣٤٥ ²³ ½ Ⅷ ①② 1,000,000",
    "<|endoftext|> and <|im_start|>user are plain text here",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.org/a_b-c?d=e%20f#g  user@host.tld",
    "x\u0000y \u0001\u0002 z\u007f \u0080\u009f",
    "".join(chr(c) for c in range(1, 128)),
    "plane 4: a\U00040000b, plane 11: \U000b1234!, last: \U0010ffff.",
    "“Quotes” — dashes – and … ‘singles’",
    "\n\n\n\n    \n",
]

PIECES = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def byte_symbols():
    """GPT-2's printable character for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}


class Bpe:
    def __init__(self, tokens, merges):
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.symbols = byte_symbols()

    def encode(self, text):
        ids = []
        for run in regex.split(r"(\p{N})", text):  # every digit stands alone
            for piece in PIECES.findall(run):
                word = [self.symbols[b] for b in piece.encode()]
                ids += self.merge([symbol for symbol in word if symbol in self.ids])
        return ids

    def merge(self, word):
        while len(word) > 1:
            ranks = [self.ranks.get(pair, len(self.ranks)) for pair in zip(word, word[1:])]
            best = min(ranks)
            if best == len(self.ranks):
                break
            at = ranks.index(best)
            word[at : at + 2] = [word[at] + word[at + 1]]
        return [self.ids[symbol] for symbol in word]


def packaged(tokens, merges):
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", metavar="MODEL.gguf")
    fields = Model(p.parse_args().model).fields
    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    bpe, other = Bpe(tokens, merges), packaged(tokens, merges)
    for text in TEXTS:
        ids = bpe.encode(text)
        assert ids == other.encode(text).ids, f"{text!r}: {ids} against {other.encode(text).ids}"
        print(json.dumps(text), *ids, sep="\t")


if __name__ == "__main__":
    main()
