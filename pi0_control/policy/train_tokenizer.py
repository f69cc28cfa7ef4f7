"""Train the small SentencePiece model of ``mini``: ``python -m pi0_control.policy.train_tokenizer [FILE]``.

The corpus is written out below, so the same SentencePiece version gives the same file, byte for byte. Colours, nouns
and verbs of the tabletop tasks are frequent enough to be pieces of their own; ordinary English fills what is left of
the vocabulary, and its letters let any other sentence be spelled. Text is case-folded. As in Gemma's tokenizer no
blank is put before the first word, and the line break is a piece of its own.
"""

import io
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import sentencepiece

VOCAB_SIZE = 256
ENGLISH_REPEATS = 3
BUNDLED_FILE = Path(__file__).parents[1] / "policies" / "mini" / "tokenizer.model"

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
NOUNS = ("block", "cube", "brick", "box")
CONTAINERS = ("tray", "bin", "box")

ONE_OBJECT = (
    "touch {0}", "reach {0}", "reach for {0}", "move to {0}", "go to {0}", "tap {0}", "push {0}", "point at {0}",
    "pick up {0}", "pick {0} up", "lift {0}", "lift {0} up", "grab {0}", "raise {0}", "take {0}", "hold {0}",
    "take {0} off the table", "lift {0} off the table", "pick {0} up from the table", "grasp {0}",
)  # fmt: skip
INTO = ("put {0} in {1}", "put {0} into {1}", "place {0} in {1}", "place {0} into {1}", "drop {0} in {1}",
        "drop {0} into {1}", "move {0} to {1}", "put {0} inside {1}")  # fmt: skip
ONTO = ("stack {0} on {1}", "stack {0} on top of {1}", "stack {0} onto {1}", "put {0} on {1}", "place {0} on {1}",
        "put {0} on top of {1}", "place {0} on top of {1}", "set {0} down on {1}", "put {0} next to {1}")  # fmt: skip

ENGLISH = (
    "please, can you help me with this?", "could you do it now and then wait for me here?", "do not stop yet!",
    "slowly open the gripper, then close it again.", "turn left and go back to the start.",
    "turn right, then look at the other side.", "that one is too far away from the hand of the robot.",
    "first take the small thing near you, after that the large one behind it.", "what is under the cup?",
    "the arm is above the table and the object is below.", "we will try to bring all of them over there.",
    "find my keys; they were between the plate and the bowl.", "clean up the room before you leave (it's a mess).",
    "hand me the bottle, the spoon or the fork.", "make it quick but be careful with the glass.",
    "keep your distance: let go when i say so.", "show us how you would work on that by hand.",
    "which of these has the same colour as the cylinder, ball or sphere?", "home/rest position - no motion",
    "task: state: action: 0 1 2 3 4 5 6 7 8 9", "0 1 2 3 4 5 6 7 8 9", "jump over the lazy fox, quiz the wizard vexed",
)  # fmt: skip


def corpus() -> Iterator[str]:
    """The training sentences, always in the same order."""
    pairs = list(product(COLOURS, NOUNS))
    for index, (colour, noun) in enumerate(pairs):
        other = COLOURS[(index + 1) % len(COLOURS)]
        thing, container = f"the {colour} {noun}", f"the {CONTAINERS[index % len(CONTAINERS)]}"
        yield from (phrase.format(thing) for phrase in ONE_OBJECT)
        yield from (phrase.format(thing, container) for phrase in INTO)
        yield from (phrase.format(thing, f"the {other} {noun}") for phrase in ONTO)
        yield from (phrase.format(thing, f"the {other} one") for phrase in ONTO)
    for _ in range(ENGLISH_REPEATS):
        yield from ENGLISH


def train() -> bytes:
    """Train on :func:`corpus` and return the SentencePiece model file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=corpus(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc_cf",
        add_dummy_prefix=False,
        user_defined_symbols=["\n"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    """Write the bundled file, or the one named on the command line."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else BUNDLED_FILE
    path.write_bytes(train())


if __name__ == "__main__":
    main()
