"""Instructions to tokens, in the prompt formats of π0 and π0.5.

Works with any SentencePiece model: PaliGemma's for public checkpoints, the small bundled one for ``mini``.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from pi0_control.errors import CheckpointError, ObservationError

STATE_BIN_EDGES = np.linspace(-1.0, 1.0, 257)[:-1]

PromptFormat = Literal["pi0", "pi05", "lerobot_pi0"]
Tokens = tuple[NDArray[np.int64], NDArray[np.bool_]]


def clean_prompt(prompt: str) -> str:
    """One line of text: outer blanks off, underscores and line breaks to spaces.

    Raises:
        ObservationError: not text, or nothing is left.
    """
    if not isinstance(prompt, str):
        raise ObservationError(f"The prompt is {type(prompt).__name__}; expected an instruction as text.")
    clean = prompt.strip().replace("_", " ").replace("\n", " ")
    if not clean.strip():
        raise ObservationError(
            f"The prompt {prompt!r} is empty; expected an instruction such as 'touch the red block'."
        )
    return clean


def digitize_state(state: NDArray[np.float32]) -> NDArray[np.int64]:
    """Bins of a normalised state: floor((x + 1) * 128), limited to -1 (below the range) .. 255."""
    return np.digitize(state, STATE_BIN_EDGES) - 1


class Tokenizer:
    """Encodes prompts to a fixed number of tokens.

    Args:
        path: a SentencePiece model file.
        max_len: length T of every encoding; longer prompts are refused, shorter ones padded on the right.

    Raises:
        CheckpointError: no such file, or it is not a SentencePiece model with a begin-of-sentence token.
    """

    def __init__(self, path: str | Path, max_len: int) -> None:
        if not Path(path).is_file():
            raise CheckpointError(f"No tokenizer file {path}; expected a SentencePiece model.")
        self.serialized = Path(path).read_bytes()
        self.max_len = max_len
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(self.serialized)
        except RuntimeError as error:
            raise CheckpointError(f"Tokenizer file {path} is not a SentencePiece model.") from error
        if not self.serialized or self._pieces.bos_id() < 0:
            raise CheckpointError(
                f"Tokenizer file {path} lacks a begin-of-sentence token; expected a Gemma-style model."
            )

    @property
    def vocab_size(self) -> int:
        """Number of pieces; every token is below it."""
        return int(self._pieces.GetPieceSize())

    def encode_pi0(self, prompt: str) -> Tokens:
        """π0's format: begin token, the instruction, a line break encoded by itself.

        Returns:
            Tokens int64 [T] and their mask bool [T], padded with 0 and False.

        Raises:
            ObservationError: the prompt is empty or too long.
        """
        ids = [self._pieces.bos_id(), *self._encode(clean_prompt(prompt)), *self._encode("\n")]
        return self._pad(ids, prompt)

    def encode_lerobot_pi0(self, prompt: str) -> Tokens:
        """π0's format as LeRobot has it: begin token, the instruction as it is, a line break if it ends without one.

        Returns and raises as :meth:`encode_pi0`.
        """
        clean_prompt(prompt)
        text = prompt if prompt.endswith("\n") else f"{prompt}\n"
        return self._pad([self._pieces.bos_id(), *self._encode(text)], prompt)

    def encode_pi05(self, prompt: str, state: NDArray[np.float32]) -> Tokens:
        """π0.5's format: the instruction and the state as integers 0..255 in one sentence.

        Args:
            prompt: the instruction.
            state: normalised, [D].

        Returns:
            Tokens int64 [T] and their mask bool [T], padded with 0 and False.

        Raises:
            ObservationError: the prompt is empty or too long.
        """
        bins = " ".join(str(value) for value in digitize_state(state))
        text = f"Task: {clean_prompt(prompt)}, State: {bins};\nAction: "
        return self._pad([self._pieces.bos_id(), *self._encode(text)], prompt)

    def decode(self, tokens: NDArray[np.int64]) -> str:
        """Text of the tokens, without padding and special tokens."""
        special = {self._pieces.pad_id(), self._pieces.bos_id(), self._pieces.eos_id()}
        return str(self._pieces.DecodeIds([int(token) for token in tokens if int(token) not in special]))

    def pieces(self, text: str) -> list[str]:
        """The pieces a text is cut into, for looking at a vocabulary."""
        return [str(piece) for piece in self._pieces.EncodeAsPieces(text)]

    def save(self, path: str | Path) -> None:
        """Write the SentencePiece model, byte for byte as it was read."""
        Path(path).write_bytes(self.serialized)

    def _encode(self, text: str) -> list[int]:
        return list(self._pieces.EncodeAsIds(text))

    def _pad(self, ids: list[int], prompt: str) -> Tokens:
        if len(ids) > self.max_len:
            raise ObservationError(
                f"The prompt {prompt!r} takes {len(ids)} tokens; expected at most {self.max_len}: say it shorter."
            )
        tokens, mask = np.zeros(self.max_len, np.int64), np.zeros(self.max_len, np.bool_)
        tokens[: len(ids)], mask[: len(ids)] = ids, True
        return tokens, mask
