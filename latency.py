"""Time float and integer models side by side on this CPU, as one JSON setting says.

python latency.py                                                setting/latency.json: nine models at 224 x 224
python latency.py 'engines=["x86","onnxruntime","openvino"]'     with other people's engines next to ours
python latency.py 'models=["torchvision:resnet50"]' threads=1
python latency.py 'models=["runs/train"]' 'engines=["fbgemm","x86","onednn"]'
"""

import functools

from experiment.latency import main
from utils import memory
from utils.errors import run

if __name__ == "__main__":
    memory.keep_freed()
    run(functools.partial(main, description=__doc__))
