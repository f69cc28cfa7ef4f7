from pathlib import Path

import numpy as np
import pytest

from pi0_control.errors import CheckpointError, ObservationError
from pi0_control.policy.tokenizer import Tokenizer, digitize_state
from pi0_control.policy.train_tokenizer import (
    BUNDLED_FILE,
    COLOURS,
    CONTAINERS,
    ENGLISH,
    INTO,
    NOUNS,
    ONE_OBJECT,
    ONTO,
    train,
)

BOS, PAD, UNKNOWN, NEWLINE = 2, 0, 3, 4


VERBS = (
    "touch",
    "reach",
    "move",
    "go",
    "tap",
    "pick",
    "lift",
    "grab",
    "raise",
    "take",
    "put",
    "place",
    "drop",
    "stack",
)
SMALL_WORDS = ("the", "to", "for", "up", "off", "table", "in", "into", "on", "onto", "top", "of", "one", "next", "and")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(BUNDLED_FILE, max_len=12)


@pytest.fixture(scope="module")
def long_tokenizer() -> Tokenizer:
    return Tokenizer(BUNDLED_FILE, max_len=200)


def test_lerobot_s_pi0_format_cleans_nothing_and_breaks_the_line_once(tokenizer: Tokenizer) -> None:
    plain, _ = tokenizer.encode_pi0("touch the red block")
    for prompt in ("touch the red block", "touch the red block\n"):
        np.testing.assert_array_equal(tokenizer.encode_lerobot_pi0(prompt)[0], plain)
    raw, clean = (encode("red_block")[0] for encode in (tokenizer.encode_lerobot_pi0, tokenizer.encode_pi0))
    assert not np.array_equal(raw, clean)
    with pytest.raises(ObservationError, match="empty"):
        tokenizer.encode_lerobot_pi0(" \n")


def test_pi0_format_is_begin_text_line_break_padding(tokenizer: Tokenizer) -> None:
    tokens, mask = tokenizer.encode_pi0("touch the red block")
    assert tokens.shape == mask.shape == (12,)
    assert (tokens.dtype, mask.dtype) == (np.int64, np.bool_)
    assert tokens[0] == BOS
    assert tokens[mask][-1] == NEWLINE
    assert (tokens[~mask] == PAD).all()
    assert mask.tolist() == sorted(mask.tolist(), reverse=True)
    assert tokenizer.decode(tokens) == "touch the red block\n"


def test_wording_is_cleaned_before_encoding(tokenizer: Tokenizer) -> None:
    expected, _ = tokenizer.encode_pi0("pick up the red cube")
    for variant in (" pick up the red cube\n", "pick_up the red_cube", "pick up\nthe red cube", "Pick up the RED cube"):
        assert np.array_equal(tokenizer.encode_pi0(variant)[0], expected)


def test_pi05_format_writes_the_state_as_integers(long_tokenizer: Tokenizer) -> None:
    tokens, mask = long_tokenizer.encode_pi05("touch_the red block", np.array([0.0, -1.5, 1.0], np.float32))
    text = long_tokenizer.decode(tokens)
    assert text.strip() == "task: touch the red block, state: 128 -1 255;\naction:"
    assert tokens[0] == BOS
    assert mask.sum() < 200
    assert tokens[mask].all()


def test_state_bins() -> None:
    values = np.array([-1.001, -1.0, -0.9921876, -0.9921875, 0.0, 0.99, 0.9921875, 1.0, 7.0])
    assert digitize_state(values).tolist() == [-1, 0, 0, 1, 128, 254, 255, 255, 255]
    inside = np.random.default_rng(0).uniform(-1, 1, 1000)
    assert np.array_equal(digitize_state(inside), np.floor((inside + 1) * 128).astype(int))


@pytest.mark.parametrize("prompt", ["", "  ", "\n", "_", "__ \n"])
def test_an_empty_prompt_is_refused(tokenizer: Tokenizer, prompt: str) -> None:
    with pytest.raises(ObservationError, match="empty"):
        tokenizer.encode_pi0(prompt)


def test_a_prompt_that_is_not_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ObservationError, match="bytes"):
        tokenizer.encode_pi0(b"touch the red block")  # type: ignore[arg-type]


def test_an_overlong_prompt_is_refused_not_cut(tokenizer: Tokenizer) -> None:
    with pytest.raises(ObservationError, match=r"takes 43 tokens; expected at most 12"):
        tokenizer.encode_pi0("stack" + " block" * 40)
    with pytest.raises(ObservationError, match="expected at most 12"):
        tokenizer.encode_pi05("touch the red block", np.zeros(7, np.float32))


def test_words_of_the_tasks_are_single_pieces(tokenizer: Tokenizer) -> None:
    for verb in VERBS:
        assert tokenizer.pieces(f"{verb} it")[0] == verb
    for word in (*COLOURS, *NOUNS, *CONTAINERS, *SMALL_WORDS):
        assert tokenizer.pieces(f"touch {word}")[1:] == [f"▁{word}"]


def test_every_ordinary_instruction_fits_in_twelve_tokens(tokenizer: Tokenizer) -> None:
    red, green = "the red block", "the green block"
    sentences = [phrase.format(red) for phrase in ONE_OBJECT]
    sentences += [phrase.format(red, "the tray") for phrase in INTO]
    sentences += [phrase.format(red, green) for phrase in ONTO]
    encoded = [tokenizer.encode_pi0(sentence)[0].tolist() for sentence in sentences]
    assert len({tuple(ids) for ids in encoded}) == len(sentences)
    assert not any(UNKNOWN in ids for ids in encoded)


def test_any_english_sentence_has_no_unknown_piece(long_tokenizer: Tokenizer) -> None:
    for sentence in (*ENGLISH, "Why not tidy the kitchen before dinner?", "wave hello - 3 times!"):
        tokens, mask = long_tokenizer.encode_pi0(sentence)
        assert UNKNOWN not in tokens[mask]


def test_ids_are_those_of_gemma_and_below_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 256
    assert tokenizer.encode_pi0("a\nb")[0].max() < 256


def test_training_again_gives_the_bundled_file() -> None:
    assert train() == train() == BUNDLED_FILE.read_bytes()


def test_saving_keeps_every_byte(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "copy.model")
    assert (tmp_path / "copy.model").read_bytes() == BUNDLED_FILE.read_bytes()


@pytest.mark.parametrize("content", [b"", b"not a model", BUNDLED_FILE.read_bytes()[:100_000]])
def test_a_bad_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.model"):
        Tokenizer(tmp_path / "bad.model", max_len=12)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No tokenizer file"):
        Tokenizer(tmp_path / "none.model", max_len=12)
