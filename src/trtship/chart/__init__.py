"""Small charts as SVG, in words as well for those who do not see them."""

from trtship.chart.axis import Axis, number
from trtship.chart.draw import COLOURS, STYLE, Rule, Series, chart

__all__ = ["COLOURS", "STYLE", "Axis", "Rule", "Series", "chart", "number"]
