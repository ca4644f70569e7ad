"""The stages of a linearization and what each waits for."""

from enum import StrEnum


class Stage(StrEnum):
    """One step of the method; the value is its name in commands, labels, status and the store."""

    TOKENIZE = "tokenize"
    COLLECT = "collect"
    SHARD = "shard"
    SELECT = "select"
    """Only where spec.attention.wide.share has the wide layers chosen."""
    CRIA = "cria"
    STITCH = "stitch"
    ADAPT = "adapt"
    """The adapted teacher, to compare with: only where spec.evaluate.adaptedTeacher wants it."""
    EVALUATE = "evaluate"
    EXPORT = "export"


WITHOUT_ADAPTED_TEACHER = "--without-adapted-teacher"
"""Argument of the evaluate stage's program: evaluate as if the spec asked for no adapted teacher."""

GANGS = (Stage.COLLECT, Stage.STITCH, Stage.ADAPT)
"""The stages that are run as gangs, though one may be of a single pod."""

DISTRIBUTED = (*GANGS, Stage.EVALUATE)
"""The stages that run as many ranks, on several nodes if need be."""

INPUTS: dict[Stage, tuple[Stage, ...]] = {
    Stage.TOKENIZE: (),
    Stage.COLLECT: (Stage.TOKENIZE,),
    Stage.SHARD: (Stage.TOKENIZE,),
    Stage.SELECT: (Stage.TOKENIZE,),
    Stage.CRIA: (Stage.COLLECT, Stage.SHARD, Stage.SELECT),
    Stage.STITCH: (Stage.CRIA,),
    Stage.ADAPT: (Stage.TOKENIZE, Stage.SHARD),
    Stage.EVALUATE: (Stage.STITCH, Stage.ADAPT),
    Stage.EXPORT: (Stage.STITCH,),
}
"""The stages whose artifacts must be complete before a stage may start, as far as the spec asks for them
(direct inputs only)."""

READS: dict[Stage, tuple[Stage, ...]] = {
    Stage.TOKENIZE: (),
    Stage.COLLECT: (Stage.TOKENIZE,),
    Stage.SHARD: (),
    Stage.SELECT: (Stage.TOKENIZE,),
    Stage.CRIA: (Stage.TOKENIZE, Stage.COLLECT, Stage.SHARD, Stage.SELECT),
    Stage.STITCH: (Stage.TOKENIZE, Stage.SHARD, Stage.SELECT, Stage.CRIA),
    Stage.ADAPT: (Stage.TOKENIZE, Stage.SHARD),
    Stage.EVALUATE: (Stage.TOKENIZE, Stage.SHARD, Stage.SELECT, Stage.CRIA, Stage.STITCH, Stage.ADAPT),
    Stage.EXPORT: (Stage.SHARD, Stage.SELECT, Stage.CRIA, Stage.STITCH),
}
"""The stages whose artifacts a stage reads: they must not be deleted before it is complete."""
