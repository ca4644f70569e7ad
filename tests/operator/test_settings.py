"""Settings from the environment."""

import pytest
from trenchcoat_api.environment import SettingsError
from trenchcoat_operator.settings import Settings


def test_defaults() -> None:
    assert Settings.from_environment({}) == Settings()


def test_what_is_set_counts() -> None:
    settings = Settings.from_environment(
        {
            "TRENCHCOAT_TRAINER_IMAGE": "registry.example/trainer:2",
            "TRENCHCOAT_TRAINER_PULL_POLICY": "Never",
            "TRENCHCOAT_TRAINER_PULL_SECRETS": "one, two",
            "TRENCHCOAT_TRAINER_ENV": '[{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]',
            "TRENCHCOAT_NAMESPACES": "a,b",
            "TRENCHCOAT_COUNT_GPUS": "false",
            "TRENCHCOAT_POLL_SECONDS": "0.5",
            "TRENCHCOAT_GANG_PATIENCE_SECONDS": "30",
            "TRENCHCOAT_LOG_LEVEL": "debug",
        }
    )
    assert settings.pods.image == "registry.example/trainer:2"
    assert settings.pods.pull_policy == "Never"
    assert settings.pods.pull_secrets == ("one", "two")
    assert settings.pods.env == ({"name": "HTTPS_PROXY", "value": "http://proxy:3128"},)
    assert settings.namespaces == ("a", "b")
    assert not settings.count_gpus
    assert settings.poll_seconds == 0.5
    assert settings.gang_patience_seconds == 30
    assert settings.log_level == "DEBUG"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRENCHCOAT_WORKERS", "many"),
        ("TRENCHCOAT_WORKERS", "0"),
        ("TRENCHCOAT_POLL_SECONDS", "nan"),
        ("TRENCHCOAT_METRICS_PORT", "65536"),
        ("TRENCHCOAT_HEALTH_PORT", "0"),
        ("TRENCHCOAT_LOG_LEVEL", "loud"),
        ("TRENCHCOAT_GANG_PATIENCE_SECONDS", "-1"),
        ("TRENCHCOAT_TRAINER_PULL_POLICY", "Sometimes"),
        ("TRENCHCOAT_COUNT_GPUS", "maybe"),
        ("TRENCHCOAT_TRAINER_ENV", "HTTPS_PROXY=http://proxy"),
        ("TRENCHCOAT_TRAINER_ENV", '[{"value": "http://proxy"}]'),
    ],
)
def test_what_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({name: value})
