"""The code that travels with every version, so that MLflow's own tools can use it.

    mlflow.pyfunc.load_model("models:/LINE@current").predict([image_bytes, ...])

MLflow copies this file beside the weights and runs it by its path; that is why its imports are absolute,
and why it imports of everline only what it needs, when it needs it.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Inspector(PythonModel):
    """Encoded images in; one row of score, p_value, threshold, verdict and calibrated per image out."""

    def load_context(self, context: Any) -> None:
        """Reads the state and its calibration (MLflow calls this by keyword: the name must stay)."""
        from everline.methods.registry import restore
        from everline.platform.calibration import Calibration
        from everline.platform.statefiles import load_state

        folder = Path(context.artifacts["detector"])
        self.detector = restore(load_state(folder))
        self.calibration = Calibration.from_json(json.loads((folder / "calibration.json").read_text("utf-8")))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """model_input: one column of encoded images, as bytes or as base64 text. Raises ImageError."""
        return pd.DataFrame([self._inspect(_bytes(cell)) for cell in model_input.iloc[:, 0]])

    def _inspect(self, data: bytes) -> dict[str, Any]:
        from everline.platform.images import prepare

        image = prepare(data, self.detector.size, bits=self.detector.bits)
        score = float(self.detector.score(self.detector.embed(image[None])).image[0])
        calibration = self.calibration
        return {
            "score": score,
            "p_value": calibration.p_value(score),
            "threshold": calibration.threshold,
            "verdict": calibration.verdict(score),
            "calibrated": calibration.calibrated,
        }


def _bytes(cell: Any) -> bytes:
    """A cell as it came over Python (bytes) or JSON (base64)."""
    from everline.methods.errors import ImageError

    if not isinstance(cell, str):
        return bytes(cell)
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise ImageError(f"expected encoded image bytes, or the same in base64: {error}.") from error


set_model(Inspector())
