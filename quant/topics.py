"""What prompts are about: a few groups of prompts with like pairs of neighbouring tokens (pure).

Shape suffixes: R rows, F features, K groups.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.dataset import Ints, Ragged

Floats = npt.NDArray[np.float32]

FEATURES = 2048
ROWS_PER_TOPIC = 40
MOST_TOPICS = 8
PASSES = 50
STARTS = 4  # of which the best grouping is taken
WORD = re.compile(r"[^\W\d_]{3,}")
NAMING_WORDS = 3


def topics(prompts: Ragged, seed: int) -> Ints:
    """Return each prompt's group, a number from 0; the same prompts and seed give the same.

    k-means over unit vectors of hashed TF-IDF; what all prompts share counts nothing.

    Source:
        Dhillon and Modha 2001, "Concept decompositions for large sparse text data", spherical
        k-means; Arthur and Vassilvitskii 2007, "k-means++", for its start.
    """
    vectors_RF = _vectors(prompts)
    num_topics = min(MOST_TOPICS, len(vectors_RF) // ROWS_PER_TOPIC)
    if num_topics < 2:  # noqa: PLR2004 - one group says nothing
        return np.zeros(len(vectors_RF), np.int64)
    random = np.random.default_rng(seed)
    found = [_grouped(vectors_RF, num_topics, random) for _ in range(STARTS)]
    return max(found, key=lambda each: each[1])[0]


def name_topics(texts: Sequence[str], groups: Ints) -> dict[int, str]:
    """Name each group by the words that most more of its prompts have than all have."""
    words = [set(WORD.findall(text.lower())) for text in texts]
    everywhere = Counter(word for each in words for word in each)
    names = {}
    for group in np.unique(groups).tolist():
        members = [words[row] for row in np.flatnonzero(groups == group)]
        inside = Counter(word for each in members for word in each)
        lift = {w: n / len(members) - everywhere[w] / len(words) for w, n in inside.items()}
        best = sorted((w for w in lift if lift[w] > 0), key=lambda w: (-lift[w], w))
        names[group] = " ".join([f"{group + 1}:", *best[:NAMING_WORDS]]).removesuffix(":")
    return names


def _vectors(prompts: Ragged) -> Floats:
    """Unit vectors; a prompt that has nothing of its own is zero."""
    rows = len(prompts.lengths)
    ids = prompts.values.astype(np.uint64)
    row_of = np.repeat(np.arange(rows), prompts.lengths)
    is_pair = row_of[1:] == row_of[:-1]
    # Multipliers of Knuth's multiplicative hash: neighbouring ids land far apart.
    mixed = ids[:-1] * np.uint64(2654435761) + ids[1:] * np.uint64(11400714819323198485)
    feature = ((mixed >> np.uint64(17)) % np.uint64(FEATURES)).astype(np.int64)[is_pair]
    counts_RF = np.zeros((rows, FEATURES), np.float32)
    np.add.at(counts_RF, (row_of[1:][is_pair], feature), 1.0)
    having_F = np.count_nonzero(counts_RF, axis=0)
    rarity_F = np.log(max(rows, 1) / np.maximum(having_F, 1)).astype(np.float32)
    weighted_RF: Floats = np.log1p(counts_RF) * rarity_F
    length_R = np.linalg.norm(weighted_RF, axis=1, keepdims=True)
    unit_RF: Floats = weighted_RF / np.maximum(length_R, np.float32(1e-12))
    return unit_RF


def _grouped(vectors_RF: Floats, num: int, random: np.random.Generator) -> tuple[Ints, float]:
    """One run of k-means: each row's group, and how near the rows are to their centres."""
    centres_KF = _start(vectors_RF, num, random)
    group_R = np.full(len(vectors_RF), -1)
    near_RK = vectors_RF @ centres_KF.T
    for _ in range(PASSES):
        chosen_R = near_RK.argmax(axis=1)
        if np.array_equal(chosen_R, group_R):
            break
        group_R = chosen_R
        for group in range(num):
            members = vectors_RF[group_R == group]
            if len(members):  # an empty group keeps its centre
                total = members.sum(axis=0)
                centres_KF[group] = total / max(float(np.linalg.norm(total)), 1e-12)
        near_RK = vectors_RF @ centres_KF.T
    return group_R, float(near_RK.max(axis=1).sum())


def _start(vectors_RF: Floats, num: int, random: np.random.Generator) -> Floats:
    """Choose rows far from each other as centres."""
    rows = [int(random.integers(len(vectors_RF)))]
    while len(rows) < num:
        far_R = np.clip(1 - (vectors_RF @ vectors_RF[rows].T).max(axis=1), 0, None)
        far_R[rows] = 0
        weights = far_R.astype(np.float64) + 1e-9
        rows.append(int(random.choice(len(vectors_RF), p=weights / weights.sum())))
    return vectors_RF[rows].copy()
