import pytest

from capture.host import has_bfloat16, saturates_int8


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("Features\t: fp asimd bf16 sve", True),
        ("flags\t\t: fpu fma avx2 f16c", False),
        ("model name\t: A CPU without bf16", False),
    ],
)
def test_bfloat16_is_a_flag_of_the_cpu(line: str, expected: bool) -> None:
    assert has_bfloat16(f"processor\t: 0\n{line}\nbugs\t\t: none\n") is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni amx_tile", False),
        ("flags\t\t: fpu avx2 avx_vnni", False),
        ("flags\t\t: fpu avx2 f16c", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw", True),
        ("Features\t: fp asimd asimddp", False),
    ],
)
def test_x86_without_vnni_saturates(line: str, expected: bool) -> None:
    assert saturates_int8(f"processor\t: 0\n{line}\nbugs\t\t: none\n") is expected
