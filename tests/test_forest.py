"""The forest plot and the lead of the page that shows it."""

from __future__ import annotations

import io
import math
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_svg import FigureCanvasSVG

from analysis.figures.forest import ForestRow, forest
from analysis.figures.rendering import PAGE_FONTS, QUIET, STYLE, compact, to_svg
from analysis.figures.style import ARM_COLOURS, FIRST, SECOND, drawing, lines
from analysis.sections.lead import Lead, _at_most, lead_section

ROWS = [
    ForestRow("tl_trg (23)", "targets", -0.05, -0.1, 0.0012),
    ForestRow("ceb_gja (49)", "targets", 0.2, 0.1, 0.3, is_effect=True),
    ForestRow("mean of 2 sets", "targets", 0.075, 0.01, 0.14, "effect", is_mean=True, is_effect=True),
    ForestRow("en_ewt (7)", "others", -0.004, math.nan, math.nan),
    ForestRow("hr_set (9)", "others", -0.3, -0.4, -0.2, is_effect=True),
]


def test_positions_and_colours() -> None:
    """In points; effects have the colour of the better side, other rows are grey; a row without interval has none."""
    axis = forest(ROWS, "MAML", "vanilla").axes[0]
    drawn = [
        (list(line.get_xdata()), line.get_color()) for line in axis.lines if line.get_color() != "#22262a"
    ]
    maml, vanilla = ARM_COLOURS[FIRST], ARM_COLOURS[SECOND]
    expected = [
        ([-10, 0.12], QUIET),
        ([-5], QUIET),
        ([10, 30], maml),
        ([20], maml),
        ([1, 14], maml),
        ([7.5], maml),
        ([-0.4], QUIET),
        ([-40, -20], vanilla),
        ([-30], vanilla),
    ]
    assert [colour for _, colour in drawn] == [colour for _, colour in expected]
    for (found, _), (wanted, _) in zip(drawn, expected, strict=True):
        assert found == pytest.approx(wanted)
    markers = [line.get_marker() for line in axis.lines if len(line.get_xdata()) == 1]
    assert markers == ["o", "o", "D", "o", "o"]


def test_texts() -> None:
    svg = to_svg(forest(ROWS, "MAML", "vanilla"), "forest")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"targets", "others", "tl_trg (23)", "F1 points, MAML minus vanilla"} <= set(texts)
    assert {"−5.0 [−10.0, +0.1]", "+20.0 [+10.0, +30.0]", "−0.4", "← vanilla better", "MAML better →"} <= set(
        texts
    )
    assert ROWS[2].full_label == "mean of 2 sets:\neffect"


def vertices(path: str) -> list[np.ndarray]:
    """The vertices of each part of a path of straight lines [n, 2], whose lines are absolute (L) or relative (l)."""
    found = []
    for part in re.findall(r"M([^M]*)", path):
        numbers = np.array(re.findall(r"-?[\d.]+", part), dtype=float).reshape(-1, 2)
        found.append(numbers.cumsum(axis=0) if "l" in part else numbers)
    return found


def assert_same_lines(first: str, second: str) -> None:
    """Both paths have the same vertices to a tenth of a point, apart from lines without length; and close the same parts."""
    assert first.count("z") == second.count("z")
    for one, other in zip(vertices(first), vertices(second), strict=True):
        rounded = np.round(one, 1)
        kept = np.concatenate([[True], (np.diff(rounded, axis=0) != 0).any(axis=1)])
        kept[1:2] |= kept.sum() == 1
        assert np.abs(one[kept] - other).max() < 0.051


@pytest.mark.parametrize(
    ("path", "small"),
    {
        "M 36.52 142 \nL 665.93 142 \n": "M36.5 142l629.4 0",
        "M 1.24 5 \nL 1.2 5.01 \nL 1.2 3.96 \nL 0 4.5 \nz\n": "M1.2 5l0-1-1.2 .5z",
        "M 1 1 \nL 1 1 \nM 2 3 \nL 2.5 -3 \n": "M1 1l0 0M2 3l.5-6",
        "M 0 3 \nC 0.795609 3 1.55874 2.683901 2.12132 2.12132 \nz\n": "M 0 3 C 0.8 3 1.56 2.68 2.12 2.12 z",
    }.items(),
)
def test_paths_of_lines_are_relative(path: str, small: str) -> None:
    assert compact(f'<svg ><path d="{path}"/></svg>').endswith(f'<path d="{small}"/></svg>')


def test_compact_figures_have_the_same_elements() -> None:
    """Compares with what matplotlib writes: tags, texts, styles and coordinates, to a tenth of a point."""
    canvas, file = forest(ROWS, "MAML", "vanilla"), io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "forest"}):
        FigureCanvasSVG(canvas).print_svg(file)
    original = re.sub("<metadata>.*</metadata>", "", file.getvalue(), flags=re.DOTALL)
    small = compact(original)
    assert len(small) < 0.6 * len(original)
    before, after = (list(ElementTree.fromstring(svg).iter()) for svg in (original, small))
    rules = dict(re.findall(r"\.(\w+)\{([^}]*)\}", after.pop(1).text or ""))
    assert after[0].attrib["font-family"] == PAGE_FONTS
    ids = {element.attrib.get("id") for element in after}
    for old, new in zip(before, after, strict=True):
        assert (old.tag, (old.text or "").strip()) == (new.tag, (new.text or "").strip())
        style = old.attrib.get("style", "").replace(" font-family: 'DejaVu Sans';", "")
        assert new.attrib.get("style", rules.get(new.attrib.get("class", ""), "")) == style
        for key in ("d", "x", "y", "width", "height", "viewBox", "transform"):
            texts = [element.attrib.get(key, "").strip() for element in (old, new)]
            if "l" in texts[1] or re.fullmatch(r"M[^CQ]*", texts[1]):
                assert_same_lines(*texts)
                continue
            values = [re.split("[ \\n()]+", text) for text in texts]
            if values[0][0] == "rotate" and float(values[0][1]) == 0:
                assert key not in new.attrib
                continue
            for first, second in zip(*values, strict=True):
                if re.fullmatch(r"-?[\d.]+", first):
                    assert float(second) == pytest.approx(float(first), abs=0.051)
                else:
                    assert first == second
        for value in new.attrib.values():
            assert set(re.findall(r"(?:url\(|^)#(\w+)", value)) <= ids


def test_curves_lose_only_vertices_that_nobody_sees() -> None:
    """No point of a curve is farther than half a line's width, 0.75 points, from the line that is drawn."""
    x, y = np.arange(240), 5 * np.exp(-np.arange(240) / 40) + 0.02 * np.random.default_rng(0).normal(size=240)
    with drawing(1, 1, 3) as (canvas, axes):
        lines(axes[0, 0], [(x, y)], "maml")
        svg = to_svg(canvas, "curve")
        points = axes[0, 0].transData.transform(np.column_stack([x, y]))
    height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', svg)[1])  # type: ignore[index]
    longest = max(re.findall(r' d="([^"]*)"', svg), key=len)
    (drawn,) = vertices(longest)
    assert 10 < len(drawn) < 200
    scale = 72 / canvas.dpi
    points = points * scale * [1, -1] + [0, height]
    steps = np.diff(drawn, axis=0)
    moves = steps.any(axis=1)  # the last point is written twice
    starts, steps = drawn[:-1][moves], steps[moves]
    along = ((points[:, None] - starts) * steps).sum(2) / (steps**2).sum(1)
    nearest = starts + np.clip(along, 0, 1)[..., None] * steps
    assert np.linalg.norm(points[:, None] - nearest, axis=2).min(axis=1).max() < 0.75


def test_groups_are_shown_whole_as_long_as_all_means_fit() -> None:
    mean = {name: ForestRow("mean", name, 0.1, 0, 0.2, is_mean=True) for name in "abc"}
    sets = {name: [ForestRow(f"{name}{n}", name, 0.1, 0, 0.2) for n in range(4)] for name in "abc"}
    rows = [row for name in "abc" for row in (*sets[name], mean[name])]
    assert _at_most(rows, 15) == rows
    assert _at_most(rows, 14) == [*sets["a"], mean["a"], *sets["b"], mean["b"], mean["c"]]
    assert _at_most(rows, 6) == list(mean.values())
    assert _at_most(rows, 7) == [*sets["a"], *mean.values()]


def test_a_lead_without_a_comparison_is_a_sentence() -> None:
    section = lead_section(Lead("Nothing can be compared.", ("maml", "vanilla"), notes=["Needed: runs."]))
    assert (list(section.paragraphs), section.figures, section.tables) == (
        ["Nothing can be compared.", "Needed: runs."],
        [],
        [],
    )
