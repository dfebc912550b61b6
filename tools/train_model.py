#!/usr/bin/env python3
"""Trains the lab's model: handwritten digits, 64 pixels in, ten scores out.

    python3 -m venv venv && venv/bin/pip install scikit-learn onnx onnxruntime
    venv/bin/python tools/train_model.py src/lab/model

The data ships inside scikit-learn, so nothing is fetched. The graph is written node by node (Gemm, Relu,
Softmax, ArgMax) rather than by a converter: every ONNX runtime runs these, and the file stays small.
Writes digits.onnx and golden.json: ten held-out inputs with what onnxruntime made of them.
"""
import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

SEED = 20261123
HIDDEN = 64


def graph(weights, biases, scale):
    """x / 16 -> Gemm -> Relu -> Gemm -> Softmax, and the place of the largest score."""
    def constant(name, array):
        return numpy_helper.from_array(np.asarray(array, dtype=np.float32), name)

    nodes = [
        helper.make_node("Mul", ["input", "scale"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    constants = [constant("scale", scale)]
    for number, (w, b) in enumerate(zip(weights, biases), start=1):
        constants += [constant(f"w{number}", w), constant(f"b{number}", b)]
    return helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 64])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10]),
        ],
        constants,
    )


def main(folder):
    digits = load_digits()
    x = digits.data.astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(x, digits.target, test_size=0.25, random_state=SEED, stratify=digits.target)
    classifier = MLPClassifier(hidden_layer_sizes=(HIDDEN,), max_iter=400, random_state=SEED)
    classifier.fit(train_x / 16.0, train_y)

    model = helper.make_model(
        graph(classifier.coefs_, classifier.intercepts_, 1.0 / 16.0),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
        producer_name="muster",
    )
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "digits.onnx"
    path.write_bytes(model.SerializeToString())

    session = onnxruntime.InferenceSession(str(path))
    labels, scores = session.run(["label", "scores"], {"input": test_x})
    accuracy = float((labels == test_y).mean())
    size = path.stat().st_size
    assert accuracy > 0.95, accuracy
    assert size < 100 * 1024, size

    # One held-out input of each digit.
    chosen = [int(np.flatnonzero(test_y == digit)[0]) for digit in range(10)]
    cases = [
        {"features": test_x[i].tolist(), "scores": [float(s) for s in scores[i]], "label": int(labels[i])}
        for i in chosen
    ]
    (folder / "golden.json").write_text(json.dumps({"cases": cases}) + "\n")
    print(f"{path}: {size} bytes, accuracy {accuracy:.4f} on {len(test_y)} held-out images")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "src/lab/model"))
