"""Imports DeepSpeed as the stitch does, once for all processes that are forked afterwards."""

import torch
from trenchcoat_trainer.stages.stitch.zero import import_deepspeed

import_deepspeed(torch.device("cpu"))
