"""The gates as JUnit XML, which CI servers show: one test suite per engine, one test case per gate and data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from clipq import __version__
from clipq.machine import now

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def render_junit(judged: Mapping[str, Any], *, require_proof: bool) -> bytes:
    """Return the gates of a report or a comparison in the form that Ant's and Jenkins' JUnit schemas share, as UTF-8.

    A gate that failed is a failure; an unproven one is skipped, or a failure with ``require_proof``. Messages are one line.
    """
    root = ET.Element("testsuites")
    for number, engine in enumerate(judged["verdict"]):
        gates = [gate for gate in judged["gates"] if gate["engine"] == engine]
        root.append(_suite(judged, engine, number, [_case(gate, require_proof=require_proof) for gate in gates]))
    ET.indent(root)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _suite(judged: Mapping[str, Any], engine: str, number: int, cases: Sequence[ET.Element]) -> ET.Element:
    facts = {
        "name": _line(engine), "package": "clipq", "id": str(number), "hostname": "localhost", "timestamp": now()[:19],
        "tests": str(len(cases)), "failures": str(_count(cases, "failure")), "errors": "0", "skipped": str(_count(cases, "skipped")),
        "time": "0",
    }  # fmt: skip
    suite = ET.Element("testsuite", facts)
    verdict = judged["verdict"][engine]
    properties = ET.SubElement(suite, "properties")
    for name, value in (("clipq", __version__), ("baseline", judged["baseline"]), ("verdict", verdict["outcome"])):
        ET.SubElement(properties, "property", name=name, value=_line(value))
    suite.extend(cases)
    ET.SubElement(suite, "system-out").text = "\n".join(_line(why) for why in verdict["why"])
    ET.SubElement(suite, "system-err")
    return suite


def _case(gate: Mapping[str, Any], *, require_proof: bool) -> ET.Element:
    where = f" on {gate['data']}" if gate["data"] else ""
    case = ET.Element("testcase", name=_line(gate["rule"] + where), classname=_line(gate["engine"]), time="0")
    message = _line(gate["why"])
    if gate["outcome"] == "fail" or (require_proof and gate["outcome"] == "unproven"):
        ET.SubElement(case, "failure", message=message, type=gate["outcome"]).text = message
    elif gate["outcome"] == "unproven":
        ET.SubElement(case, "skipped", message=message)
    return case


def _count(cases: Sequence[ET.Element], tag: str) -> int:
    return sum(case.find(tag) is not None for case in cases)


def _line(text: str) -> str:
    """Return text as one line of characters that XML can hold."""
    return " ".join(_NOT_XML.sub("\ufffd", text).split())
