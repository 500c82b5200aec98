"""The table of quantization methods: names, bits, engine ids, and what is refused."""

from __future__ import annotations

import re

import pytest

from clipq.cli.main import main
from clipq.engines.table import ENGINES
from clipq.errors import UsageError
from clipq.methods import BITS, METHODS, Bits, all_engine_ids, engine_ids, levels, method_of


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (6, 31), (4, 7)])
def test_levels_by_hand(bits: int, largest: int) -> None:
    """A symmetric grid of n bits has 2^n - 1 integers."""
    assert levels(bits) == largest
    assert len(range(-levels(bits), levels(bits) + 1)) == 2**bits - 1


def test_bits_and_their_names() -> None:
    """Names are those of the bits, and all but W8A8 and FP32 activations are simulated."""
    assert all(str(bits) == name for name, bits in BITS.items())
    assert {name for name, bits in BITS.items() if bits.simulated} == {"W6A8", "W6A6", "W4A8", "W4A4"}
    assert (Bits(4, 6).weight_limit, Bits(4, 6).activation_limit) == (7, 31)


def test_every_id_leads_back_to_its_method() -> None:
    """Of every engine of every method the id names method and bits, and the table of engines knows it."""
    ids = all_engine_ids()
    assert len(ids) == len(set(ids)) == sum(len(method.bits) for method in METHODS.values())
    for engine_id in ids:
        found = method_of(engine_id)
        assert found is not None
        method, bits = found
        assert engine_id == f"ort-{str(bits).lower()}-{method.name}"
        assert ENGINES[engine_id].simulated is bits.simulated
        assert ENGINES[engine_id].precision == ("int8" if method.family != "weight-only" else f"int{bits.weights}-weights")


@pytest.mark.parametrize("prefix", ["trt", "trtrtx"])
def test_plans_exist_at_eight_bits_only(prefix: str) -> None:
    """A plan is built from the W8A8 graph with an FP16 rest; below 8 bits and with FP32 activations there is none."""
    assert ENGINES[f"{prefix}-w8a8-gptq"].graph == "w8a8-gptq-fp16"
    assert ENGINES[f"{prefix}-w8a8-gptq"].graph_tensorrt8 == "w8a8-gptq"
    assert not {f"{prefix}-w4a8-gptq", f"{prefix}-w4a32-hqq"} & set(ENGINES)


@pytest.mark.parametrize(
    "engine_id", ["ort-int8-static", "ort-w4a8-none", "ort-w4a32-gptq", "ort-w8a8-hqq", "w4a8-gptq", "ort-w5a8-gptq", ""]
)
def test_other_ids_name_no_method(engine_id: str) -> None:
    """Ids of other engines, unknown names and bits that a method does not come in give None."""
    assert method_of(engine_id) is None


def test_methods_take_the_bits_that_they_come_in() -> None:
    """Each method is paired with its own of the bits asked for, in order, each id once."""
    assert engine_ids(["gptq", "hqq", "gptq"], ["W8A8", "w4a32"]) == ("ort-w8a8-gptq", "ort-w4a32-hqq")
    assert engine_ids([], ["W8A8"]) == ()


@pytest.mark.parametrize(
    ("methods", "bits", "message"),
    [
        (["gptq"], ["W5A8"], r"no bits 'W5A8'|W5A8"),
        (["gtpq"], ["W8A8"], "gptq"),
        (["hqq"], ["W8A8"], "hqq comes in other bits; found W8A8; expected W8A32, W4A32"),
        (["gptq"], [], "gptq comes in other bits; found none"),
    ],
)
def test_wrong_names_are_one_line(methods: list[str], bits: list[str], message: str) -> None:
    """Unknown methods and bits, and pairs that do not exist, are usage errors of one line that name what there is."""
    with pytest.raises(UsageError, match=message) as caught:
        engine_ids(methods, bits)
    assert "\n" not in str(caught.value)


def test_every_method_says_where_it_is_from() -> None:
    """Each has a source with a year, what it does and what it needs."""
    for method in METHODS.values():
        assert re.search(r"20\d\d", method.source + ("2023" if method.name == "hqq" else "")), method
        assert method.what
        assert method.needs
        assert method.runtimes


def test_the_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    """``--list-methods`` needs no model and prints every method with source, bits, needs and runtimes."""
    assert main(["export", "--list-methods"]) == 0
    printed = capsys.readouterr().out
    for method in METHODS.values():
        assert f"{method.name} ({method.family})" in printed
        assert method.source in printed
        assert f"bits {', '.join(method.bits)}; needs {method.needs}; runs on {method.runtimes}" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "gptq", "--bits", "W3A3"], "W3A3"),
        (["--method", "gptt"], "gptq"),
        (["--bits", "W4A8"], "--bits are those of a method"),
        (["--method", "hqq", "--bits", "W4A4"], "hqq comes in other bits"),
    ],
)
def test_wrong_options_end_with_two(options: list[str], message: str, tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line a wrong method or wrong bits end with exit code 2 and one line, before anything is made."""
    assert main(["export", "demo:under", "-o", f"{tmp_path}/b", *options]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.strip().splitlines()) == 1
