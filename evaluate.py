"""Measure a checkpoint: float where it exists, simulated, and on every engine, side by side.

python evaluate.py runs/train                                        # a run, a checkpoint or an exported file
python evaluate.py runs/train images=photo.jpg                       # what the model says of a picture, or of a folder
python evaluate.py checkpoint=runs/train/best.pt engines=fbgemm,qnnpack data.limit=1000
python evaluate.py checkpoint=runs/train/last.pt sensitivity=true    # and which layers cost how much
python evaluate.py checkpoint=runs/train/last.pt export=my_model     # and write the integer model to take away
python evaluate.py checkpoint=runs/train/last.pt export=model.onnx   # as an ONNX file
python evaluate.py checkpoint=runs/train/last.pt export=model.npz    # as small as its bits; or .pte, .tflite for phones
python evaluate.py compare=runs/a,runs/b                             # or compare finished runs in one page
"""

from experiment import evaluation
from experiment.cli import start

if __name__ == "__main__":
    start(evaluation.main, __doc__)
