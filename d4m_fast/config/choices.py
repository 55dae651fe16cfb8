"""Values of the options that have a closed set of them."""

from __future__ import annotations

from typing import Literal

KMeansMethod = Literal["auto", "gram", "direct", "minibatch"]
KMeansDevice = Literal["cpu", "gpu"]
PrototypeKind = Literal["mean", "medoid"]
SmallClasses = Literal["refuse", "fewer", "repeat"]
LatentKind = Literal["sample", "mean"]
Regime = Literal["hard", "fixed", "online"]
ProtocolName = Literal["small", "fkd", "d4m", "rded", "rd3", "hard"]
Coreset = Literal["herding", "kcenter"]
Scheduler = Literal["model", "pndm", "dpmpp", "unipc"]
PresetName = Literal["reference", "dpmpp", "unipc"]
ExportedEngine = Literal["onnx", "tensorrt"]
EngineName = Literal["torch", ExportedEngine]
Engine = Literal["auto", EngineName]
Precision = Literal["auto", "fp32", "fp16"]
FloatType = Literal["fp32", "fp16"]
ImageFormat = Literal["png", "jpeg", "webp"]
OutputForm = Literal["imagefolder", "webdataset", "parquet"]
GpuName = Literal["h100", "h200", "a100", "l40s"]
