"""From a photograph to the aligned crop of every face in it.

>>> from poster_zoo.faces import align_faces, detect_faces
>>> faces = detect_faces("examples/face.png")
>>> [crop] = align_faces("examples/face.png", faces)
>>> crop.size
(112, 112)
"""

from poster_zoo.faces.align import align_faces
from poster_zoo.faces.detect import Detector, FaceDetector, detect_faces
from poster_zoo.faces.found import Face, Faces
from poster_zoo.faces.prepare import Prepared, prepare_faces
from poster_zoo.faces.uniface import UnifaceDetector

__all__ = [
    "Detector",
    "Face",
    "FaceDetector",
    "Faces",
    "Prepared",
    "UnifaceDetector",
    "align_faces",
    "detect_faces",
    "prepare_faces",
]
