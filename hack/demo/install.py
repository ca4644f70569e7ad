"""Installing the operator by Helm."""

from pathlib import Path

from rich.console import Console

from demo.environment import Environment

CHART = Path(__file__).resolve().parents[2] / "charts" / "trenchcoat"
RELEASE = "trenchcoat"
RELEASE_NAMESPACE = "trenchcoat-system"


def install_operator(
    environment: Environment,
    console: Console | None = None,
    *,
    chart: Path = CHART,
    release: str = RELEASE,
    settings: tuple[str, ...] = (),
    strings: tuple[str, ...] = (),
) -> None:
    """Install or upgrade the chart with the images at hand, and wait until the operator is ready.

    Args:
        environment: The cluster.
        console: Where to say so.
        chart: The chart, a folder or a package; this checkout's.
        release: Name of the release.
        settings: Further values of the chart, as for `helm --set`.
        strings: Values that are strings whatever they look like, as for `helm --set-string`.
    """
    words = ["helm", "upgrade", "--install", release, str(chart)]
    words += ["--namespace", RELEASE_NAMESPACE, "--create-namespace", "--wait", "--timeout", "10m"]
    for value, image in (("image", environment.operator_image), ("trainerImage", environment.trainer_image)):
        words += image_values(value, image)
    for setting in settings:
        words += ["--set", setting]
    for setting in strings:
        words += ["--set-string", setting]
    if console is not None:
        console.print(
            "helm upgrade --install " + " ".join(words[3:5]).replace(str(CHART), "charts/trenchcoat")
        )
    environment.command(*words)


def image_values(value: str, image: str) -> list[str]:
    """What tells helm of an image; as strings, for Helm takes a tag of digits alone for a number."""
    repository, _, tag = image.rpartition(":")
    settings = (f"{value}.repository={repository}", f"{value}.tag={tag}", f"{value}.pullPolicy=IfNotPresent")
    return [word for setting in settings for word in ("--set-string", setting)]
