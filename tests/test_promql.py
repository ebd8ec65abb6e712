"""The reader of PromQL that the dashboard's test relies on."""

import pytest

from tests.promql import read


def test_metrics_are_told_from_functions_labels_and_keywords() -> None:
    """In the forms that dashboards have."""
    asked = read(
        'histogram_quantile(0.99, sum by (le, model) (rate(a_bucket{job=~"$job", m!="{}"}[5m])))'
        " / on (job) group_left (b) max without (pod) (c:d{}) > bool 1e3 or absent(up offset 5m)"
    )
    assert asked.metrics == {"a_bucket": {"job", "m"}, "c:d": set(), "up": set()}
    assert asked.groupings == {"le", "model", "job", "b", "pod"}


def test_a_grouping_may_stand_behind_its_operand() -> None:
    """And a metric beside an aggregation's parameter."""
    asked = read("topk(5, count(x) by (y))")
    assert (asked.metrics, asked.groupings) == ({"x": set()}, {"y"})


@pytest.mark.parametrize("wrong", ["sum(x", "x)", "rate(x{a=", "sum by x", "x ? y"])
def test_what_is_no_expression_is_refused(wrong: str) -> None:
    """So a dashboard with a typing error is found."""
    with pytest.raises(ValueError, match=r" in "):
        read(wrong)
