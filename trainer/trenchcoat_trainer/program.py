"""A stage as a program: run it unless its artifact is there, and turn failures into exit codes."""

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from trenchcoat_api import phases
from trenchcoat_api.artifacts import Facts
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.stages import Stage

from trenchcoat_trainer.errors import BadInputError, OutOfMemoryError, StageError
from trenchcoat_trainer.reporting.writing import ENV_REPORT, NEVER, missing, open_reporter
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.importing import importing
from trenchcoat_trainer.runtime.opening import check_inputs, open_context
from trenchcoat_trainer.runtime.processes import program_module
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.runtime.termination import write_termination_log
from trenchcoat_trainer.runtime.tracking.recorder import open_recorder

logger = logging.getLogger(__name__)


def run_program(
    stage: Stage,
    spec_file: Path,
    *,
    cria: int | None,
    folder: Path | None,
    stop: StopRequest,
    without_adapted_teacher: bool = False,
) -> int:
    """Run a stage from its spec's file and return the exit code; a failure's message goes where it is read.

    The message is one line: on the log, and in the termination log that Kubernetes shows.
    """
    try:
        stop.check()
        run_stage(
            stage,
            spec_file,
            cria=cria,
            folder=folder,
            stop=stop,
            without_adapted_teacher=without_adapted_teacher,
        )
    except StageError as error:
        logger.error("%s: %s", stage.value, error)
        write_termination_log(str(error))
        return int(error.exit_code)
    except Exception as error:
        logger.exception("%s failed", stage.value)
        write_termination_log(f"{type(error).__name__}: {error}")
        return int(ExitCode.FAILED)
    return int(ExitCode.OK)


def run_stage(
    stage: Stage,
    spec_file: Path,
    *,
    cria: int | None,
    folder: Path | None,
    stop: StopRequest,
    without_adapted_teacher: bool = False,
) -> None:
    """Run a stage unless its artifact is complete.

    Args:
        stage: Which stage.
        spec_file: The Trenchcoat in YAML.
        cria: Index of the Cria; the cria stage alone.
        folder: The folder that stands for the store, if any.
        stop: Where a wish to stop is noted.
        without_adapted_teacher: Whether to run it as if the spec asked for no adapted teacher.

    Raises:
        StageError: of the kind that tells what to do about it.
    """
    try:
        trenchcoat = Trenchcoat.from_yaml(spec_file)
    except InvalidTrenchcoatError as error:
        raise BadInputError(str(error)) from error
    except OSError as error:
        raise BadInputError(f"--spec {spec_file} cannot be read ({error.strerror}): name a file") from error
    spec = trenchcoat.spec
    if without_adapted_teacher:
        spec = phases.without_adapted_teacher(spec)
    context = open_context(spec, stage, cria=cria, folder=folder, stop=stop)
    if context.store.exists(context.artifact.manifest_path):
        logger.info("%s: %s is complete already", context.artifact.name, context.artifact.prefix)
        context.writer.delete_checkpoints()  # an attempt that was killed as it finished has left some
        return
    check_inputs(context)
    recorder = open_recorder(trenchcoat, context.store, context.artifact) if context.rank == 0 else None
    if recorder is not None:
        context.progress.listener = recorder.tell
    logger.info("%s: making %s in %s", context.artifact.name, context.artifact.prefix, context.store.name)
    reporter = open_reporter(trenchcoat, spec_file, folder) if _reports(context.rank) else None
    if reporter is not None:
        _tell(reporter.begin)
    # What leaves a Cria is made by its own program, which has the layers.
    program = Stage.CRIA if context.artifact.boundary is not None else stage
    with importing():
        module = importlib.import_module(program_module(program))
    try:
        module.run(context)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{context.artifact.name} does not fit into the GPU's memory: lower its batch size or "
            f"spec.layersPerCria, or raise the number of GPUs ({error})"
        ) from error
    finally:
        context.progress.close()
        if recorder is not None:
            recorder.close(_facts(context))
    logger.info("%s: complete", context.artifact.name)
    if reporter is not None:
        _tell(reporter.write)


def _facts(context: StageContext) -> Facts | None:
    """What stands in the manifest of the artifact at hand; none while it is not complete."""
    try:
        return context.manifest(context.artifact).facts
    except StageError:
        return None


def _reports(rank: int) -> bool:
    """Whether this process writes the run's report."""
    if rank > 0 or os.environ.get(ENV_REPORT) == NEVER:
        return False
    if why := missing():
        logger.info("%s", why)
        return False
    return True


def _tell(write: Callable[[], object]) -> None:
    """Write something of the report; the artifact is what counts, whatever becomes of that."""
    try:
        write()
    except Exception:
        logger.exception("the report was not written; `trenchcoat report` writes it anew")


def _is_out_of_memory(error: Exception) -> bool:
    # Not every stage loads torch.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
