"""The same answers about any number of images: in parts, by many processes, on a Ray cluster.

`predict_into` answers into a folder. The images are cut into numbered parts, the list of which is written down before
the first answer, in `.poster_zoo/` inside the folder. Whoever answers a part writes it beside its place and renames it
when it is whole, so the parts that are there are the parts that are done: a run that was killed goes on with the
others, whatever number of processes it had, and a part that two processes answered is there once.

The parts are taken by one process, by those that `accelerate launch` or torchrun started, or by the actors of a Ray
cluster, where Ray Data hands them out again when a process or a machine is lost. `BatchPredictor` is for pipelines of
Ray Data that others write.
"""

from __future__ import annotations

from poster_zoo.scale.plan import check_request
from poster_zoo.scale.ray_data import BatchPredictor
from poster_zoo.scale.work import Outcome, predict_into, predict_together

__all__ = ["BatchPredictor", "Outcome", "check_request", "predict_into", "predict_together"]
