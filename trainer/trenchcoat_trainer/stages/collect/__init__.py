"""collect: run the teacher once and store its hidden states at every inner Cria boundary."""

from trenchcoat_trainer.stages.collect.stage import run

__all__ = ["run"]
