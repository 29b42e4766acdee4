"""Bundles of a model that is larger than the memory there is."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from capture.revision import model_revision
from quant.bundle import verify_bundle
from tests.support.answered_rows import answer, write_log
from tests.support.large_model import make_large_model
from tests.support.limited import run_limited
from tests.support.retort import RETORT
from tests.support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
CONFIG = '[capture]\nlog = "log"\n[quant]\nheldout_fraction = 0.5\n'
LIMIT = 700 * 10**6  # bytes; more than half of them are Python, torch and transformers


@dataclass(frozen=True)
class Large:
    home: Path
    model: Path
    size: int


def prepare(home: Path, blocks: int, inner: int, vocabulary: int) -> Large:
    """A model of 1 GB and a log of rows that name it as their teacher."""
    model = make_large_model(home / "model", blocks=blocks, inner=inner, vocabulary=vocabulary)
    table = answer(make_tiny_model(home / "tiny"), 24, tokens=4)
    place = table.schema.get_field_index("model_revision")
    teacher = pa.array([model_revision(model)] * len(table), table.schema.field(place).type)
    write_log(table.set_column(place, table.schema.field(place), teacher), home / "log", home / "s")
    (home / "retort.toml").write_text(CONFIG)
    return Large(home, model, sum(path.stat().st_size for path in model.glob("*.safetensors")))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Large:
    """Most of it to be rounded."""
    return prepare(tmp_path_factory.mktemp("deep"), blocks=40, inner=2048, vocabulary=32768)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Large:
    """A quarter of it to be rounded, so that GPTQ takes a minute."""
    return prepare(tmp_path_factory.mktemp("flat"), blocks=16, inner=1024, vocabulary=196608)


@pytest.mark.parametrize("scheme", ["int8-weight", "int4-rtn"])
def test_less_memory_than_the_model_takes_is_enough_to_round(deep: Large, scheme: str) -> None:
    make_limited(deep, scheme)


@pytest.mark.parametrize("scheme", ["int8", "int4-gptq"])
def test_less_memory_than_the_model_takes_is_enough_to_compensate(flat: Large, scheme: str) -> None:
    make_limited(flat, scheme)


def make_limited(large: Large, scheme: str) -> None:
    """Make a bundle in a process that is killed if it takes more than the limit."""
    out, log = large.home / scheme, large.home / f"{scheme}.log"
    words = ("--scheme", scheme, "--out", str(out), "-c", str(large.home / "retort.toml"))
    command = [*RETORT, "quantize", str(large.model), *words, "--no-check"]

    code, peak = run_limited(command, LIMIT, log)

    assert code == 0, log.read_text()
    sys.stdout.write(f"{scheme}: {peak / 1e6:.0f} MB of a model of {large.size / 1e6:.0f} MB\n")
    assert 0.75 * large.size > LIMIT
    assert peak < LIMIT
    quality = verify_bundle(out, tokenizer_hash=None).quality
    assert quality["kl_to_parent_nats"] > 0
    assert quality["kl_to_teacher_nats"] > 0
    assert quality["layers_size_ratio"] < 0.52
