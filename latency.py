"""Time float and integer models side by side on this CPU, as one JSON setting says.

python latency.py                                                setting/latency.json: nine models at 224 x 224
python latency.py engines=x86,onnxruntime,openvino               with other people's engines next to ours
python latency.py torchvision:resnet50 threads=1,2 batch_size=1,8
python latency.py runs/train engines=fbgemm,x86,onednn           a finished run, with its weights
python latency.py mobilenet_v3_small engines=x86 profile=true    which operators take the time, and why
"""

from experiment import latency
from experiment.cli import start

if __name__ == "__main__":
    start(latency.main, __doc__)
