"""The log's text in a student's own tokens, where it does not read as its teacher does."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from trainer.answering import end_ids, ends_in
from trainer.conversation import Conversation, conversation_of
from trainer.dataset import Dataset, Ints, Ragged
from trainer.errors import DatasetError, ModelError
from trainer.shared_vocabulary import Said, SharedVocabulary, common_places, ends_of

CUT_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what decodes from a part of a character's bytes
CERTAIN = np.zeros(1, dtype=np.float32)  # the log-probability of all there is


@dataclass(frozen=True, slots=True)
class Retokenized:
    """How the log's rows came into another tokenizer's tokens.

    Attributes:
        as_messages: Prompts that the student's own chat template renders.
        as_text: Other prompts, of which the text that the teacher read is taken as it is.
        left_out: Rows that are neither trained on nor measured: the student's tokenizer cannot
            write their answer as it is, or it says nothing.
        matched_tokens: Of the answers trained on, by the teacher's distribution over what both
            vocabularies have; the others are trained on by their words.
    """

    as_messages: int
    as_text: int
    left_out: int
    matched_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Retokenizer:
    """Two tokenizers, and what ends an answer in each.

    Attributes:
        teacher_ends: Any of them.
        student_end: The one that its answers end with.
    """

    teacher: Tokenizer
    student: Tokenizer
    teacher_ends: frozenset[int]
    student_end: int

    @classmethod
    def of(cls, teacher: Path, student: Path) -> Self:
        """Open the tokenizers of two model folders.

        Raises:
            ModelError: If one holds none, or nothing that ends the student's answers.
        """
        theirs, ours = _open(teacher), _open(student)
        ends, end = ends_in(student / "generation_config.json"), ours.eos_token_id
        if ends and end not in ends:
            end = ends[0]
        if end is None:
            raise ModelError(
                f"{student}: nothing ends its answers; name an eos_token in tokenizer_config.json"
            )
        return cls(theirs, ours, frozenset(end_ids(teacher, theirs)), end)

    def retokenized(
        self, dataset: Dataset, requests: Sequence[str]
    ) -> tuple[Dataset, npt.NDArray[np.bool_], Retokenized]:
        """Write all rows anew; every answer's tokens are all that is left of its distribution.

        Args:
            dataset: In the teacher's tokens.
            requests: Of the same rows, as JSON.

        Returns:
            The rows in the same order, which of them are to be used, and a count.

        Raises:
            DatasetError: If the student's chat template cannot render a conversation.
            ModelError: If it has none.
        """
        conversations = [conversation_of(request) for request in requests]
        prompts = self._prompts(dataset, conversations)
        answers, is_kept = self._answers(dataset)
        num_messages = sum(one is not None for one in conversations)
        counts = (num_messages, len(conversations) - num_messages, int((~is_kept).sum()))
        return words(dataset, prompts, answers), is_kept, Retokenized(*counts)

    def with_distributions(
        self, teachers: Dataset, words_only: Dataset, rows: Ints
    ) -> tuple[Dataset, int]:
        """Give rows of words the teacher's distribution where both go on with the same token.

        Args:
            teachers: Rows in the teacher's tokens.
            words_only: The same rows as ``retokenized`` returns them.
            rows: Whose answers to match.

        Returns:
            The rows, and at how many tokens there is a distribution.

        Raises:
            ModelError: If the vocabularies cannot be compared.
        """
        ends = sorted(self.teacher_ends)
        shared = SharedVocabulary.of(self.teacher, self.student, ends, self.student_end)
        chosen, matched = set(rows.tolist()), 0
        found: list[Said] = []
        for row in range(len(teachers)):
            said = self._matched(shared, teachers, words_only, row) if row in chosen else {}
            matched += len(said)
            tokens = words_only.completion_ids.row(row).astype(np.int32)
            alone = (Said(tokens[[place]], CERTAIN, -np.inf) for place in range(len(tokens)))
            found += [said.get(place, one) for place, one in enumerate(alone)]
        return _with_entries(words_only, found), matched

    def _matched(
        self, shared: SharedVocabulary, teachers: Dataset, words_only: Dataset, row: int
    ) -> dict[int, Said]:
        """What the teacher said, by places of the student's answer."""
        theirs = teachers.completion_ids.row(row).tolist()
        ours = words_only.completion_ids.row(row).tolist()
        num_ends = int(theirs[-1] in self.teacher_ends)
        bodies = theirs[: len(theirs) - num_ends], ours[: len(ours) - num_ends]
        text = decoded(self.student, bodies[1])
        both = (ends_of(self.teacher, text, bodies[0]), ends_of(self.student, text, bodies[1]))
        if both[0] is None or both[1] is None:
            return {}
        last = [len(text) + 1] * num_ends  # the end counts as one more letter
        sizes = teachers.topk_size.row(row).astype(np.int64)
        cuts = np.append(np.int64(0), np.cumsum(sizes))
        found = {}
        for there, here in common_places([*both[0], *last], [*both[1], *last]):
            entries = slice(cuts[there], cuts[there + 1])
            said = shared.said(
                teachers.topk_ids.row(row)[entries].astype(np.int32),
                teachers.topk_logprobs.row(row)[entries].astype(np.float32),
                float(teachers.tail_logprob.row(row)[there]),
            )
            if said is not None and shared.student_ids[theirs[there]] == ours[here]:
                found[here] = said
        return found

    def _prompts(
        self, dataset: Dataset, conversations: Sequence[Conversation | None]
    ) -> list[list[int]]:
        texts = self._texts(dataset.prompt_ids)
        begin = self.teacher.bos_token
        found = []
        for text, conversation in zip(texts, conversations, strict=True):
            if conversation is not None:
                found.append(self._encoded(self._rendered(conversation)))
                continue
            bare = text.removeprefix(begin) if begin else text
            found.append(self._encoded(bare, has_begin=True))
        return [ids or [self.student_end] for ids in found]  # something must predict the answer

    def _rendered(self, conversation: Conversation) -> str:
        if self.student.chat_template is None:
            raise ModelError(
                f"{self.student.name_or_path}: no chat template, and the log holds chats; put a "
                "chat_template.jinja there (the teacher's will do: what are tokens of their own to "
                "the teacher is plain text to the student)"
            )
        settings = {"add_generation_prompt": True, **conversation.options, "tokenize": False}
        try:
            return str(
                self.student.apply_chat_template(
                    conversation.messages, tools=conversation.tools, **settings
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DatasetError(
                f"the student's chat template cannot render a conversation of the log ({error}): "
                "leave such out with `where`, or change chat_template.jinja in "
                f"{self.student.name_or_path}"
            ) from error

    def _answers(self, dataset: Dataset) -> tuple[list[list[int]], npt.NDArray[np.bool_]]:
        ids = dataset.completion_ids
        rows = [ids.row(index).tolist() for index in range(len(dataset))]
        are_ended = [row[-1] in self.teacher_ends for row in rows]
        bodies = [row[:-1] if ended else row for row, ended in zip(rows, are_ended, strict=True)]
        found, is_kept = [], []
        for body, ended in zip(bodies, are_ended, strict=True):
            text = decoded(self.teacher, body)
            text = text if ended else text.rstrip(CUT_CHARACTER)
            answer = self._encoded(text)
            is_faithful = CUT_CHARACTER not in text and decoded(self.student, answer) == text
            answer = [*answer, self.student_end] if ended else answer
            is_kept.append(is_faithful and bool(answer))
            found.append(answer or [self.student_end])
        return found, np.array(is_kept, dtype=bool)

    def _texts(self, ids: Ragged) -> list[str]:
        return [decoded(self.teacher, ids.row(i).tolist()) for i in range(len(ids.lengths))]

    def _encoded(self, text: str, *, has_begin: bool = False) -> list[int]:
        return list(self.student.encode(text, add_special_tokens=has_begin))


def words(
    dataset: Dataset, prompts: Iterable[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Dataset:
    """Rows whose answers are known by their tokens alone; any loss on them is cross-entropy."""
    said = ragged(answers)
    num_tokens = len(said.values)
    return replace(
        dataset,
        prompt_ids=ragged(prompts),
        completion_ids=said,
        topk_size=replace(said, values=np.ones(num_tokens, dtype=np.int32)),
        topk_ids=said,
        topk_logprobs=replace(said, values=np.zeros(num_tokens, dtype=np.float32)),
        tail_logprob=replace(said, values=np.full(num_tokens, -np.inf, dtype=np.float32)),
        tail_draws=Ragged(np.empty(0, dtype=np.int32), np.zeros(len(answers) + 1, dtype=np.int64)),
    )


def _with_entries(dataset: Dataset, found: Sequence[Said]) -> Dataset:
    """Replace every position's entries."""
    sizes = np.array([len(said.ids) for said in found], dtype=np.int32)
    ends = np.append(np.int64(0), np.cumsum(sizes, dtype=np.int64))
    offsets = ends[dataset.completion_ids.offsets]
    tails = np.array([said.tail_logprob for said in found], dtype=np.float32)
    return replace(
        dataset,
        topk_size=replace(dataset.topk_size, values=sizes),
        topk_ids=Ragged(np.concatenate([said.ids for said in found]), offsets),
        topk_logprobs=Ragged(np.concatenate([said.logprobs for said in found]), offsets),
        tail_logprob=replace(dataset.tail_logprob, values=tails),
    )


def ragged(rows: Iterable[Sequence[int]]) -> Ragged:
    """Rows of token ids in one array."""
    arrays = [np.asarray(row, dtype=np.int32) for row in rows]
    ends = np.cumsum([len(row) for row in arrays], dtype=np.int64)
    return Ragged(np.concatenate(arrays), np.append(np.int64(0), ends))


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of token ids, special ones and blanks as they are."""
    found = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(found)


def _open(folder: Path) -> Tokenizer:
    try:
        found: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: no tokenizer that transformers can load: {error}") from error
    return found
