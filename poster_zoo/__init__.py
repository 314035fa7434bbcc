"""A zoo of facial-expression models: POSTER, POSTER++ and what they stand on as timm models, and a face detector.

>>> import poster_zoo
>>> model = poster_zoo.create_model("poster_tiny", pretrained=True)
"""

from poster_zoo._version import __version__
from poster_zoo.data.images import read_image
from poster_zoo.data.transforms import create_transform
from poster_zoo.errors import PosterZooError
from poster_zoo.faces import Face, FaceDetector, Faces, align_faces, detect_faces
from poster_zoo.models._registry import ModelInfo, create_model, list_models, model_info
from poster_zoo.models.centerface import centerface
from poster_zoo.models.ir50 import ir50
from poster_zoo.models.mobilefacenet import mobilefacenet
from poster_zoo.models.poster import (
    poster,
    poster_affectnet7,
    poster_affectnet8,
    poster_base,
    poster_baseline,
    poster_ferplus,
    poster_rafdb,
    poster_small,
    poster_tiny,
    poster_tiny_baseline,
    poster_tiny_image,
)
from poster_zoo.models.poster_v2 import (
    poster_v2,
    poster_v2_affectnet7,
    poster_v2_affectnet8,
    poster_v2_caers,
    poster_v2_rafdb,
)
from poster_zoo.optimize import optimize
from poster_zoo.predict import Prediction, Predictor
from poster_zoo.weights.convert import Conversion, convert, load_checkpoint
from poster_zoo.weights.publish import Published, PublishedFile, push_to_hub
from poster_zoo.weights.save import from_pretrained, save_pretrained

__all__ = [
    "Conversion",
    "Face",
    "FaceDetector",
    "Faces",
    "ModelInfo",
    "PosterZooError",
    "Prediction",
    "Predictor",
    "Published",
    "PublishedFile",
    "__version__",
    "align_faces",
    "centerface",
    "convert",
    "create_model",
    "create_transform",
    "detect_faces",
    "from_pretrained",
    "ir50",
    "list_models",
    "load_checkpoint",
    "mobilefacenet",
    "model_info",
    "optimize",
    "poster",
    "poster_affectnet7",
    "poster_affectnet8",
    "poster_base",
    "poster_baseline",
    "poster_ferplus",
    "poster_rafdb",
    "poster_small",
    "poster_tiny",
    "poster_tiny_baseline",
    "poster_tiny_image",
    "poster_v2",
    "poster_v2_affectnet7",
    "poster_v2_affectnet8",
    "poster_v2_caers",
    "poster_v2_rafdb",
    "push_to_hub",
    "read_image",
    "save_pretrained",
]
