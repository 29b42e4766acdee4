import json

import pytest

from capture.errors import ConfigError
from quant.commands import quantize_app
from quant.errors import SchemeError
from quant.schemes import SCHEMES, find_scheme, refusal

REFUSED = ("int8-weight", "fp8", "w4a8", "nvfp4", "mxfp4", "gguf")


def test_int8_is_served_with_a_kernel_on_both_hosts() -> None:
    assert find_scheme("int8", "cpu").kernel("cpu") == "CPUInt8ScaledMM"
    assert find_scheme("int8", "cuda").kernel("cuda") == "CutlassInt8ScaledMM"


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_cpu_engine_cannot_serve_is_refused_with_a_reason_and_a_way_on(name: str) -> None:
    with pytest.raises(SchemeError, match=f"^{name}: not served by vLLM on this CPU because .*; "):
        find_scheme(name, "cpu")


@pytest.mark.parametrize("name", REFUSED)
def test_what_nothing_here_makes_is_refused_on_a_gpu_too(name: str) -> None:
    with pytest.raises(SchemeError, match="not made by this retort; use int8"):
        find_scheme(name, "cuda")


def test_an_unknown_scheme_is_a_usage_error() -> None:
    with pytest.raises(ConfigError, match="--scheme is 'int7', expected one of int8, "):
        find_scheme("int7", "cpu")


def test_every_refused_scheme_names_a_served_one() -> None:
    served = {scheme.name for scheme in SCHEMES if not refusal(scheme, "cpu")}

    assert {scheme.nearest for scheme in SCHEMES if refusal(scheme, "cpu")} <= served


def test_the_matrix_says_what_is_served_and_what_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        quantize_app(["matrix", "--json"], prog_name="retort quantize")

    matrix = json.loads(capsys.readouterr().out)
    status = {row["name"]: row["status"] for row in matrix["schemes"]}
    assert end.value.code == 0
    assert status == {"int8": "served", **dict.fromkeys(REFUSED, "refused")}
