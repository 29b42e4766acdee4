"""What two tokenizers have in common: tokens, and places in a text where both may go on.

Experimental. A teacher's entry that a student has too may still mean something else to it: the
teacher writes "worn" as "wor" and "n", the student as one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase as Tokenizer

from trainer.errors import ModelError

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Said:
    """What is known of the teacher at one position, in the student's tokens.

    Attributes:
        ids: Kept entries that both have, likeliest first.
        logprobs: Theirs.
        tail_logprob: Of everything else.
    """

    ids: Ids
    logprobs: npt.NDArray[np.float32]
    tail_logprob: float


@dataclass(frozen=True, slots=True)
class SharedVocabulary:
    """Which tokens of a teacher a student has.

    Attributes:
        student_ids: By the teacher's id, the student's; -1 for none.
    """

    student_ids: Ids

    @classmethod
    def of(
        cls, teacher: Tokenizer, student: Tokenizer, ends: Sequence[int], student_end: int
    ) -> Self:
        """Match tokens that are written alike, and what ends an answer.

        Raises:
            ModelError: If one writes blanks and letters of its vocabulary otherwise than the other.
        """
        if _is_of_bytes(teacher) != _is_of_bytes(student):
            raise ModelError(
                f"{student.name_or_path}: its vocabulary and the teacher's are not written alike "
                "(bytes and pieces of text), so that no token can be matched: use loss = "
                '"behaviour_cloning"'
            )
        theirs, ours = teacher.get_vocab(), student.get_vocab()
        special = {*teacher.all_special_ids, *teacher.added_tokens_decoder}
        found = np.full(max(theirs.values()) + 1, -1, dtype=np.int32)
        for token, number in theirs.items():
            if number not in special:
                found[number] = ours.get(token, -1)
        found[list(ends)] = student_end
        return cls(found)

    def said(self, ids: Ids, logprobs: npt.NDArray[np.float32], tail_logprob: float) -> Said | None:
        """A position of the log; None if the student has none of its entries."""
        inside = ids < len(self.student_ids)  # a teacher's vocabulary may be padded
        known = np.where(inside, self.student_ids[np.where(inside, ids, 0)], -1)
        _, first = np.unique(known, return_index=True)
        is_kept = np.zeros(len(ids), dtype=bool)
        is_kept[first] = True  # several tokens may end an answer
        is_kept &= known >= 0
        if not is_kept.any():
            return None
        left = np.append(logprobs[~is_kept].astype(np.float64), tail_logprob)
        tail = float(np.logaddexp.reduce(left))
        return Said(known[is_kept], logprobs[is_kept], tail)


def common_places(
    teacher_ends: Sequence[int], student_ends: Sequence[int]
) -> list[tuple[int, int]]:
    """Pairs of tokens, teacher's and student's, that cover the same characters (pure).

    Args:
        teacher_ends: Where each token ends in the text, in characters; ascending.
        student_ends: Likewise.
    """
    theirs, ours = _places(teacher_ends), _places(student_ends)
    return [(place, ours[span]) for span, place in theirs.items() if span in ours]


def ends_of(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[int] | None:
    """Where tokens end in their text; None if the tokenizer would cut it otherwise."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if list(found["input_ids"]) != list(ids):
        return None
    return [end for _, end in found["offset_mapping"]]


def _places(ends: Sequence[int]) -> dict[tuple[int, int], int]:
    """Tokens by where they begin and end, without those that are a part of a letter's bytes."""
    triples = zip([0, *ends], ends, [*ends[1:], -1], strict=False)
    return {
        (start, end): place
        for place, (start, end, after) in enumerate(triples)
        if start < end != after
    }


def _is_of_bytes(tokenizer: Tokenizer) -> bool:
    return "ByteLevel" in str(tokenizer.backend_tokenizer.pre_tokenizer)
