"""Pages, tables and areas from plain cells: what is escaped, what is aligned, what is drawn where."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from clipq.evaluate.report import svg
from clipq.evaluate.report.plain import aligned, html_table, markdown_table, plain_page

ROWS = [["a|<b>", "1"], ["c", "20"]]


def test_a_page_escapes_its_title_and_brings_its_style() -> None:
    """The title is text, the body is HTML as it is given, and nothing comes from outside."""
    page = plain_page("A <script> & co", ["<p>body</p>"])
    assert "<h1>A &lt;script&gt; &amp; co</h1>\n<p>body</p>" in page
    assert "<script" not in page
    assert "http" not in page
    assert "svg .band" in page


def test_tables_escape_every_cell() -> None:
    """HTML and Markdown show what the cells say, whatever stands in them."""
    table = ET.fromstring(html_table(["x<", "n"], ROWS)).find("table")
    assert table is not None
    assert [cell.text for cell in table.iter("th")] == ["x<", "n", "a|<b>", "c"]
    assert [cell.text for cell in table.iter("td")] == ["1", "20"]
    assert markdown_table(["x", "n"], ROWS).splitlines()[2:] == ["| a\\|&lt;b> | 1 |", "| c | 20 |"]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    """Cells of a column begin at the same place, and no line ends with a space."""
    assert aligned([["n", "value"], ["16", "1"], ["4", "long one"]]) == "n   value\n16  1\n4   long one"


def test_an_area_lies_inside_its_points() -> None:
    """Corners are the pixels of the data points, in their order, and the hint is escaped."""
    frame = svg.Frame(10, 20, 100, 50, (0, 1), (0, 2))
    shape = ET.fromstring(svg.area(frame, [(0, 0), (1, 0), (1, 2)], "band", "a & b"))
    assert shape.get("points") == "10.0,70.0 110.0,70.0 110.0,20.0"
    assert (shape.get("class"), shape[0].text) == ("band", "a & b")
