"""What the bench computes of its measurements, and writes of them."""

from dataclasses import replace
from datetime import date
from xml.etree import ElementTree as ET

import pytest

from infra.bench.figures import TIMES, Figure, Result, compared, compared_percentiles, milliseconds, number
from infra.bench.page import Run, render
from infra.bench.plot import NAMESPACE, draw

MET = Figure("cold start", 0.4, "≤", 0.45, TIMES, "15 rounds", "a usual function", ("48 ms", "120 ms"), (0.3, 0.6), 15)
MISSED = Figure("requests/s", 1.5, "≥", 2.0, TIMES, peer="threads", sides=("3/s", "2/s"), spread=(1.4, 1.6), rounds=5)
REPORTED = Figure("duration", 12.5, unit="ms")
NONE_LOST = Figure("messages lost", 0, "=", 0)


def result(*figures: Figure, problem: str = "") -> Result:
    """What came of a measurement."""
    return Result("cold", "the cold start", "Processes in turn.", 90.0, figures, problem)


def page(*results: Result, whole: bool = True) -> str:
    """The page of a run."""
    return render(Run(results, "make bench", date(2026, 11, 21), {"processor": "one <fast>"}, whole), "plot.svg")


def row(text: str, beginning: str) -> list[str]:
    """The cells of the one row that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {beginning}")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize(
    ("figure", "passed"),
    [
        (MET, True),
        (replace(MET, value=0.45), True),
        (replace(MET, value=0.46), False),
        (MISSED, False),
        (replace(MISSED, value=2.0), True),
        (NONE_LOST, True),
        (replace(NONE_LOST, value=1), False),
        (REPORTED, None),
        (replace(MET, target=None), None),
    ],
)
def test_a_figure_knows_whether_it_meets_its_goal(figure: Figure, passed: object) -> None:
    """At most, at least, exactly; without a goal there is nothing to meet."""
    assert figure.passed is passed


def test_a_comparison_is_the_median_of_the_rounds_ratios() -> None:
    """Not the ratio of the medians: a round's noise hits both of its sides."""
    figure = compared("cold", "usual", [1.0, 4.0, 9.0], [2.0, 16.0, 10.0], milliseconds, sense="≤", target=0.5)
    assert figure.value == 0.5
    assert figure.spread == (0.25, 0.9)
    assert figure.rounds == 3
    assert figure.sides == ("4000.00 ms", "10000.00 ms")
    assert figure.passed


def test_a_comparison_needs_both_sides_of_each_round() -> None:
    """A round that one side has not had is a mistake of the measurement, and is not left out in silence."""
    with pytest.raises(ValueError, match="zip"):
        compared("cold", "usual", [1.0, 2.0], [1.0], milliseconds)


def test_percentiles_are_compared_over_the_whole_run_and_spread_over_its_stretches() -> None:
    """The value is that of all durations together; the spread tells how it moved in the run."""
    ours, theirs = [1.0] * 10 + [3.0] * 10, [1.0] * 20
    figure = compared_percentiles("upload", "MinIO", ours, theirs, 50, rounds=2)
    assert figure.value == 2.0  # half of them took 1 s, the others 3 s
    assert figure.spread == (1.0, 3.0)
    assert figure.rounds == 2
    assert figure.what.endswith("p50")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12.0, "12"), (1_000_000.0, "1,000,000"), (0.0036, "0.0036"), (1.2345, "1.23")]
)
def test_numbers_are_short_and_keep_what_counts(value: float, text: str) -> None:
    """Whole ones without a point, small ones with four places."""
    assert number(value) == text


def test_the_page_tells_each_figure_with_its_peer_both_sides_spread_and_goal() -> None:
    """One row, in the order of the columns."""
    cells = row(page(result(MET, REPORTED)), "cold start")
    assert cells == [
        "cold start, against a usual function<br><sub>15 rounds</sub>",
        "48 ms",
        "120 ms",
        f"0.40 {TIMES}",
        "0.30 to 0.60, 15 rounds",
        f"≤ 0.45 {TIMES}",
        "met",
    ]
    assert row(page(result(MET, REPORTED)), "duration")[3:] == ["12.50 ms", "", "", ""]


def test_a_goal_missed_is_said_in_the_table_and_above_it() -> None:
    """Nobody has to compare numbers to find it."""
    text = page(result(MET, MISSED, NONE_LOST))
    assert row(text, "requests/s")[-1] == "**MISSED**"
    assert "3 figures have a goal, and 2 meet it. Missed:" in text
    assert f"- **cold**: requests/s, against threads is 1.50 {TIMES}, the goal ≥ 2 {TIMES}" in text
    assert "MISSED" not in page(result(MET))
    assert "Missed:" not in page(result(MET))


def test_what_could_not_be_measured_is_said_with_its_reason() -> None:
    """Instead of being absent."""
    text = page(result(problem="PartError: MinIO is not here | at all"))
    assert "could not be measured: PartError: MinIO is not here \\| at all" in text
    assert "Could not be measured: cold." in text


def test_the_page_says_how_it_came_about() -> None:
    """Command, day, duration, machine, what was measured; and where it is only a part."""
    text = page(result(MET))
    for words in ("`make bench`", "2026-11-21", "2 minutes", "one &lt;fast>", "(plot.svg)", "Processes in turn."):
        assert words in text
    assert "Not a whole run" not in text
    assert "Not a whole run" in page(result(MET), whole=False)


def test_what_several_measurements_have_in_common_is_said_once() -> None:
    """With the first of them."""
    first = replace(result(MET), name="rate_1", story="Evenly begun.\n\nOne a second.")
    text = page(first, replace(first, name="rate_10", story="Evenly begun.\n\nTen a second."))
    assert text.count("Evenly begun.") == 1
    assert text.index("Evenly begun.") < text.index("One a second.") < text.index("### rate_10")
    assert "Ten a second." in text


def shapes(svg: str, kind: str) -> list[ET.Element]:
    """All elements of that kind, in the order of drawing."""
    return list(ET.fromstring(svg).iter(f"{{{NAMESPACE}}}{kind}"))  # noqa: S314 - our own


def test_the_plot_shows_ratios_on_one_scale() -> None:
    """Further right is more, equal distances are equal factors, and what is no ratio is not drawn."""
    figures = [Figure(f"figure {value}", value, unit=TIMES) for value in (0.1, 1.0, 10.0)]
    dots = [float(dot.attrib["cx"]) for dot in shapes(draw([result(*figures, REPORTED, NONE_LOST)]), "circle")]
    assert len(dots) == 3
    assert dots[2] - dots[1] == pytest.approx(dots[1] - dots[0], abs=0.2)  # pixels are rounded
    assert dots[0] < dots[1]


def test_the_plot_marks_a_goal_missed_by_words_too() -> None:
    """Colour alone would be lost on some readers."""
    text = "".join(shape.text or "" for shape in shapes(draw([result(MET, MISSED)]), "text"))
    assert "MISSED, goal ≥ 2" in text
    assert text.count("MISSED") == 1
    assert [dot.attrib["class"] for dot in shapes(draw([result(MET, MISSED)]), "circle")] == ["dot", "missed"]


def test_the_plot_survives_any_text() -> None:
    """A figure's name may hold what XML reserves, and be longer than there is room."""
    svg = draw([result(replace(MET, what="a < b & c " * 40))])
    assert any("a < b & c" in (shape.text or "") for shape in shapes(svg, "text"))


def test_the_plot_can_be_read_in_the_dark() -> None:
    """It brings its own paper, and colours for both."""
    svg = draw([result(MET)])
    assert "prefers-color-scheme: dark" in svg
    assert shapes(svg, "rect")[0].attrib["class"] == "paper"


def test_what_is_beyond_the_scale_is_drawn_at_its_end() -> None:
    """With its value beside it, so that one giant does not flatten all others."""
    svg = draw([result(*(replace(MET, value=value, spread=(0.0, value)) for value in (0.01, 0.0001, 10, 1e6)))])
    least, less, most, more = (dot.attrib["cx"] for dot in shapes(svg, "circle"))
    assert less == least
    assert more == most
    assert any("1,000,000" in (shape.text or "") for shape in shapes(svg, "text"))


def test_a_run_without_ratios_is_drawn_too() -> None:
    """There is nothing on the scale."""
    assert not shapes(draw([result(REPORTED)]), "circle")
