"""Parts of a plan → files of answers."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import IO, Any

from poster_zoo.data.images import ImageSource
from poster_zoo.errors import OutputError
from poster_zoo.predict import Prediction, Predictor
from poster_zoo.scale.arrow import answer_columns, pyarrow, utf8
from poster_zoo.scale.inputs import ParquetRows
from poster_zoo.scale.plan import NAMES, Part, Plan, Tally, write_whole

__all__ = ["Answerer"]


class Answerer:
    """Answers parts, each into its file."""

    def __init__(self, plan: Plan, predictor: Predictor) -> None:
        self.plan = plan
        self.predictor = predictor
        self._parquet: tuple[str, ParquetRows] | None = None

    def answer(self, number: int) -> None:
        """Answer a part."""
        plan = self.plan
        images = list(self.predictor.stream_named_images(self._images(plan.parts[number])))
        if len(images) != plan.parts[number].images:
            source = plan.sources[plan.parts[number].source]
            raise OutputError(
                f"{source!r} has fewer rows than when the work began; give another folder for the answers."
            )
        plan.note(number, Tally.of(images))
        predictions = list(itertools.chain.from_iterable(images))
        write_whole(plan.file(number), lambda file: self._write(predictions, file), plan.work)

    def _images(self, part: Part) -> Iterator[tuple[str, ImageSource]]:
        for name, content in self._rows(part):
            yield name, os.path.join(self.plan.origin, name) if content is None else content

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        path = self.plan.sources[part.source]
        if path is None:
            with (self.plan.work / NAMES).open("rb") as lines:
                lines.seek(part.start)
                for line in itertools.islice(lines, part.images):
                    yield json.loads(line), None
            return
        if self._parquet is None or self._parquet[0] != path:
            self._parquet = path, ParquetRows(os.path.join(self.plan.origin, path), path)
        yield from self._parquet[1].read(part.start, part.images)

    def _write(self, predictions: Sequence[Prediction], file: IO[bytes]) -> None:
        if self.plan.file_format == "jsonl":
            for prediction in predictions:
                file.write(json.dumps(prediction.to_dict(), allow_nan=False).encode("ascii") + b"\n")
            return
        arrow = pyarrow()
        sources = arrow.array([utf8(prediction.source) for prediction in predictions], arrow.string())
        table = arrow.table({"source": sources} | answer_columns(predictions, self.plan.labels))
        arrow.parquet.write_table(table, file)
