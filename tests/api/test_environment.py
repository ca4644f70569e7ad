"""Variables of a program's environment: read, or refused with what they should hold."""

import pytest
from trenchcoat_api.environment import SettingsError, Variables

LOUD = Variables({"PORT": "70000", "SHARE": "nan", "ON": "yes", "LEVEL": "loud", "BLANK": "  "})


def test_what_is_set_counts_and_what_is_blank_does_not() -> None:
    variables = Variables({"PORT": " 80 ", "ON": "true", "NAMES": "a, ,b", "LEVEL": "debug", "BLANK": "  "})
    assert variables.number("PORT", 1, 1, 65535) == 80
    assert variables.switch("ON", default=False)
    assert variables.words("NAMES") == ("a", "b")
    assert variables.log_level("LEVEL", "INFO") == "DEBUG"
    assert variables.text("BLANK", "default") == "default"
    assert variables.number("BLANK", 7, 1) == 7
    assert variables.words("UNSET") == ()


def test_a_number_that_is_none_or_too_large_is_refused() -> None:
    with pytest.raises(SettingsError, match="PORT is '70000': set it to a number from 1 to 65,535"):
        LOUD.number("PORT", 1, 1, 65535)
    with pytest.raises(SettingsError, match="SHARE is 'nan'"):
        LOUD.number("SHARE", 0, -1)


def test_a_switch_and_a_level_that_are_none_are_refused() -> None:
    with pytest.raises(SettingsError, match="ON is 'yes': set it to true or false"):
        LOUD.switch("ON", default=False)
    with pytest.raises(SettingsError, match="LEVEL is 'loud': set it to DEBUG"):
        LOUD.log_level("LEVEL", "INFO")
