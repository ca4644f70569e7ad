"""What the demo tells Helm passes the chart's schema."""

import pytest
from demo.install import image_values

from tests.charts.helm import render


@pytest.mark.parametrize("tag", ["1a2b3c", "970330566224", "1e5", "007"])
def test_a_tag_may_look_like_a_number(tag: str) -> None:
    made = render(*image_values("image", f"localhost:5000/trenchcoat/operator:{tag}"))
    assert made.returncode == 0, made.stderr
    assert f"localhost:5000/trenchcoat/operator:{tag}" in made.stdout
