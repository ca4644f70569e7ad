"""The spec of a Trenchcoat, field for field as users write it in YAML.

The descriptions become the custom resource's own documentation (`kubectl explain trenchcoat.spec`).
There are no floats: the Kubernetes API convention is a decimal in a string.
"""

from trenchcoat_api.spec.attention import FIRST_TOKENS, Attention, DType, Form, KeyMaps, Wide
from trenchcoat_api.spec.operation import Distributed, Planning, Retention, Scheduling, StagePods
from trenchcoat_api.spec.sources import (
    CredentialsSecretRef,
    Data,
    Model,
    SecretKeyRef,
    SecretRef,
    StartPositions,
    Store,
    WebIdentity,
)
from trenchcoat_api.spec.stages import (
    AdaptedTeacher,
    Collect,
    CollectStrategy,
    Evaluate,
    Export,
    ExportForm,
    Gates,
    OtherText,
    Tasks,
)
from trenchcoat_api.spec.tracking import MLflow, Tracking, Trackio
from trenchcoat_api.spec.training import (
    CriaLora,
    LongSequences,
    Lora,
    LrSchedule,
    Objective,
    Plateau,
    ProjectionName,
    Stitch,
    StitchLora,
    TeacherProducts,
    Transfer,
)
from trenchcoat_api.spec.trenchcoat import TrenchcoatSpec

__all__ = [
    "FIRST_TOKENS",
    "AdaptedTeacher",
    "Attention",
    "Collect",
    "CollectStrategy",
    "CredentialsSecretRef",
    "CriaLora",
    "DType",
    "Data",
    "Distributed",
    "Evaluate",
    "Export",
    "ExportForm",
    "Form",
    "Gates",
    "KeyMaps",
    "LongSequences",
    "Lora",
    "LrSchedule",
    "MLflow",
    "Model",
    "Objective",
    "OtherText",
    "Planning",
    "Plateau",
    "ProjectionName",
    "Retention",
    "Scheduling",
    "SecretKeyRef",
    "SecretRef",
    "StagePods",
    "StartPositions",
    "Stitch",
    "StitchLora",
    "Store",
    "Tasks",
    "TeacherProducts",
    "Tracking",
    "Trackio",
    "Transfer",
    "TrenchcoatSpec",
    "WebIdentity",
    "Wide",
]
