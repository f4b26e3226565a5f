"""Time float and integer models side by side on this CPU, as one JSON setting says.

python latency.py                                                setting/latency.json: nine models at 224 x 224
python latency.py 'engines=["x86","onnxruntime","openvino"]'     with other people's engines next to ours
python latency.py 'models=["torchvision:resnet50"]' threads=1
python latency.py 'models=["runs/train"]' 'engines=["fbgemm","x86","onednn"]'
"""

from experiment import latency
from experiment.cli import start

if __name__ == "__main__":
    start(latency.main, __doc__)
