"""Opening a tokenizer as its `tokenizer.json` says, whatever class the metadata beside it names.

transformers chooses a tokenizer's class by `tokenizer_class` and `model_type`, and such a class may rebuild the
vocabulary under a pre-tokenizer of its own: DeepSeek's byte-level file under `LlamaTokenizerFast` lost every space.
"""

from pathlib import Path

from tokenizers import Tokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from t2ir1_ray.checkpoints.folder import refuse
from t2ir1_ray.errors import UserError

PROBES = (
    "two red apples",
    "tworedapples",
    " a leading space",
    "double  spaces and\na\tnew line",
    "UPPER Case, don't! (3.14 + 2025) 50%?",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{FULLWIDTH EXCLAMATION MARK} \N{CJK UNIFIED IDEOGRAPH-732B} \N{SNOWMAN}",
)
"""Texts on which normalizers and pre-tokenizers differ."""
MOST_IDS = 1 << 24
"""The largest published vocabularies have some 260,000; libraries walk over every id up to the largest."""


def load_tokenizer(folder: Path, field: str) -> TokenizersBackend:
    """The folder's tokenizer; code that comes with it is never run.

    Raises UserError if the folder has no tokenizer.json (a vocabulary alone does not say how text is split), if its
    files are bad, or if the tokenizer gives other ids than tokenizer.json.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"{field}: {folder} has no tokenizer.json, and a vocabulary alone does not say how text is split: "
            "write it with save_pretrained of the tokenizer that the model was trained with"
        )
    with refuse(f"{field}: {folder}: its tokenizer cannot be read"):
        stated = Tokenizer.from_file(str(file))
        word, largest = max(stated.get_vocab().items(), key=lambda entry: entry[1], default=("", 0))
        if largest >= MOST_IDS:
            raise UserError(f"{field}: {file}: {word!r:.80} has the id {largest}: download the checkpoint again")
        tokenizer = TokenizersBackend.from_pretrained(folder, local_files_only=True)
        _hold_against(stated, tokenizer, f"{field}: {file}")
    return tokenizer


def _hold_against(stated: Tokenizer, tokenizer: TokenizersBackend, where: str) -> None:
    """Raises UserError if a probe gets other ids than `tokenizer.json` states, with special tokens or without."""
    stated.no_padding()
    stated.no_truncation()
    # What tokenizer_config.json makes a token of its own may be a word of the vocabulary.
    words = [f"a{token}b {token}" for token in tokenizer.added_tokens_encoder if stated.token_to_id(token) is not None]
    for probe in (*PROBES, *words):
        for special in (True, False):
            expected = stated.encode(probe, add_special_tokens=special).ids
            found = tokenizer(probe, add_special_tokens=special, split_special_tokens=False)["input_ids"]
            if found != expected:
                raise UserError(
                    f"{where}: {probe!r:.80} has the ids {expected!s:.80} by this file but {found!s:.80} with the "
                    "settings beside it: correct tokenizer_config.json, or download the checkpoint again"
                )
