import json

import pytest

from capture.errors import ConfigError
from quant.commands import quantize_app
from quant.errors import SchemeError
from quant.schemes import SCHEMES, find_scheme, refusal, served
from quant.target import CPUS, TARGETS, Target, cpu_target, find_target, gpu_target, this_target

CPU_SCHEMES = [
    "int8",
    "int8-qat",
    "int8-weight",
    "int4-rtn",
    "int4-gptq",
    "int4-awq",
    "int4-qat",
    "mixed",
]
MADE = [scheme for scheme in SCHEMES if scheme.method]


@pytest.mark.parametrize("target", CPUS)
def test_cpus_serve_integers(target: Target) -> None:
    assert [scheme.name for scheme in served(target)] == CPU_SCHEMES


def test_4_bits_on_avx2_are_left_to_our_kernel() -> None:
    assert "retort" in find_scheme("int4-gptq", "avx2").kernel("avx2")
    assert find_scheme("int4-gptq", "avx512").kernel("avx512") == "CPUWNA16"


def test_blackwell_multiplies_no_integers() -> None:
    with pytest.raises(SchemeError, match=r"^int8: not served by vLLM on blackwell .*; use fp8$"):
        find_scheme("int8", "blackwell")


@pytest.mark.parametrize("name", ["fp8", "nvfp4", "mxfp4"])
@pytest.mark.parametrize("target", CPUS)
def test_what_a_cpu_cannot_serve_is_refused_with_a_reason_and_two_ways_on(
    name: str, target: Target
) -> None:
    expected = rf"^{name}: not served by vLLM on {target} because .*; served on .*hopper.*; use int"
    with pytest.raises(SchemeError, match=expected):
        find_scheme(name, target)


@pytest.mark.parametrize("target", TARGETS)
def test_what_nothing_here_makes_is_refused_everywhere(target: Target) -> None:
    with pytest.raises(SchemeError, match=r"w4a8: not made by this retort.*; use int4-gptq"):
        find_scheme("w4a8", target)


def test_an_unknown_scheme_or_target_is_a_usage_error() -> None:
    with pytest.raises(ConfigError, match="--scheme is 'int7', expected one of int8, "):
        find_scheme("int7", "avx512")
    with pytest.raises(ConfigError, match="--target is 'tpu', expected one of avx2, "):
        find_target("tpu")
    assert find_target(None) == this_target()


@pytest.mark.parametrize("target", TARGETS)
def test_every_refused_scheme_names_a_served_one(target: Target) -> None:
    names = {scheme.name for scheme in served(target)}

    assert {scheme.nearest for scheme in SCHEMES if refusal(scheme, target)} <= names


def test_machines_are_known_by_what_they_say_of_themselves() -> None:
    assert cpu_target("flags\t: fpu avx2\n", "x86_64") == "avx2"
    assert cpu_target("flags\t: fpu avx2 avx512f avx512_vnni\n", "x86_64") == "avx512"
    assert cpu_target("flags\t: avx512f amx_tile amx_int8\n", "x86_64") == "amx"
    assert cpu_target("Features\t: fp asimd\n", "aarch64") == "arm"
    capabilities = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
    expected = ["turing", "ampere", "ampere", "ada", "hopper", "blackwell", "blackwell"]
    assert [gpu_target(each) for each in capabilities] == expected


def test_the_matrix_says_what_is_served_and_what_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        quantize_app(["matrix", "--json"], prog_name="retort quantize")

    matrix = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    assert matrix["target"] == this_target()
    expected = {scheme.name: bool(scheme.kernel(this_target())) for scheme in SCHEMES}
    assert {row["name"]: row["status"] == "served" for row in matrix["schemes"]} == expected
    assert all(bool(row["kernel"]) != bool(row["reason"]) for row in matrix["schemes"])
