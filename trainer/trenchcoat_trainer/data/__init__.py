"""Reading training data: token ids, and hidden states at the boundaries of a Cria."""

from trenchcoat_trainer.data.crias import Batch, CriaData
from trenchcoat_trainer.data.lengthening import LengtheningData, Schedule
from trenchcoat_trainer.data.starts import Starts, positions
from trenchcoat_trainer.data.tokens import TokenData

__all__ = ["Batch", "CriaData", "LengtheningData", "Schedule", "Starts", "TokenData", "positions"]
