"""Tokenizers without training data: one token per byte or character, saved where the host looks for the published ones."""

from __future__ import annotations

import json
import string
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedTokenizerBase, Qwen2TokenizerFast

Bpe = TypeVar("Bpe")

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_BYTE_VOCAB_SIZE = 2 * 256 + 2

QWEN2_END = "<|endoftext|>"
QWEN2_BYTE_VOCAB_SIZE = 256 + 1

UNIGRAM_SPECIALS = ("<pad>", "</s>", "<unk>")
UNIGRAM_PIECES = ("▁", *string.digits, *string.ascii_letters, *string.punctuation)
UNIGRAM_VOCAB_SIZE = len(UNIGRAM_SPECIALS) + len(UNIGRAM_PIECES)

# The published tokenizers that the host looks up, by their names on the Hub.
CLIP_L, CLIP_G = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
T5 = "google/t5-v1_1-xxl"

REVISION = "0" * 40


def save_for_host(tokenizer: PreTrainedTokenizerBase, folder: Path, name: str, subfolder: str = "") -> None:
    """Save under both names by which the host finds a published tokenizer.

    One is that of `--tokenizer_cache_dir`; the scripts that ignore this option take the other, `folder` as the Hub's cache.
    """
    repository = folder / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION / subfolder
    tokenizer.save_pretrained(folder / name.replace("/", "_"))
    tokenizer.save_pretrained(snapshot)
    (snapshot / "config.json").write_text("{}", encoding="utf-8")  # transformers 5 looks for a model's beside it
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(REVISION, encoding="utf-8")


def byte_characters() -> list[str]:
    """The 256 printable characters that stand for the 256 bytes in a byte-level BPE vocabulary, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without merges: one token per byte, then the two special tokens (514 in all)."""
    from transformers import CLIPTokenizer

    characters = byte_characters()
    tokens = [*characters, *(character + "</w>" for character in characters), CLIP_START, CLIP_END]
    return bpe_tokenizer(CLIPTokenizer, tokens, pad_token=CLIP_END, model_max_length=77)


def qwen2_tokenizer() -> Qwen2TokenizerFast:
    """A tokenizer of Qwen 2 without merges: one token per byte, then the padding token (257 in all)."""
    from transformers import Qwen2TokenizerFast

    return bpe_tokenizer(Qwen2TokenizerFast, [*byte_characters(), QWEN2_END])


def bpe_tokenizer(tokenizer: type[Bpe], tokens: list[str], **options: Any) -> Bpe:
    """A byte-pair tokenizer of the given class, made from its two files, with an empty list of merges."""
    with TemporaryDirectory() as folder:
        vocab, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return tokenizer(str(vocab), str(merges), **options)


def unigram_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer that spells ASCII text as T5 does: `</s>` at the end, `<unk>` for any other character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    vocab = [(token, 0.0) for token in UNIGRAM_SPECIALS] + [(piece, -1.0) for piece in UNIGRAM_PIECES]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=UNIGRAM_SPECIALS.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    end = ("</s>", UNIGRAM_SPECIALS.index("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[end])
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0)
