"""Train a small convolutional network on handwritten digits, quantize it to int8, write digits_int8.npz.

Run it from the project's folder: .venv/bin/python examples/train_digits.py (about a minute).
"""

from __future__ import annotations

import numpy as np
from digits import INPUT, NETWORK_FILE, load_scans, quantize_scans, split
from numpy.typing import NDArray

from lepton.compiler.builder import GraphBuilder, quant_of_range, quantize_weights
from lepton.compiler.graph import Graph
from lepton.compiler.graph_file import save_graph
from lepton.compiler.reference import run_reference_batch
from lepton_sim.reference import Activation

Array = NDArray[np.float32]
SEED, EPOCHS, BATCH, RATE, DECAY = 1, 40, 32, 2e-3, 1e-3
CALIBRATION_SCANS = 300


def initial_parameters(rng: np.random.Generator) -> dict[str, Array]:
    """conv 3x3 to 8, conv 3x3 to 16, 2 x 2 maximum, dense to 10; drawn as He et al. propose for ReLU."""
    shapes = {"conv1": (8, 3, 3, 1), "conv2": (16, 3, 3, 8), "dense": (10, 4, 4, 16)}
    parameters = {}
    for name, shape in shapes.items():
        fan_in = np.prod(shape[1:])
        parameters[f"{name}.weights"] = rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        parameters[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return parameters


def patches(x: Array) -> Array:
    """The 3 x 3 neighbourhood of each pixel, zeros outside: [N, H, W, C] to [N, H, W, 9 * C]."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return views.transpose(0, 1, 2, 4, 5, 3).reshape(*x.shape[:3], -1)


def scatter(columns: Array, channels: int) -> Array:
    """The gradient of `patches`: each neighbourhood's values are added where they came from."""
    n, h, w, _ = columns.shape
    taps = columns.reshape(n, h, w, 3, 3, channels)
    padded = np.zeros((n, h + 2, w + 2, channels), np.float32)
    for i in range(3):
        for j in range(3):
            padded[:, i : i + h, j : j + w] += taps[:, :, :, i, j]
    return padded[:, 1:-1, 1:-1]


def matrix(weights: Array) -> Array:
    return weights.reshape(len(weights), -1)


def forward(p: dict[str, Array], x: Array) -> tuple[Array, ...]:
    """All values that the gradient needs; the last are the logits [N, 10]."""
    columns1 = patches(x)
    y1 = np.maximum(columns1 @ matrix(p["conv1.weights"]).T + p["conv1.bias"], 0)
    columns2 = patches(y1)
    y2 = np.maximum(columns2 @ matrix(p["conv2.weights"]).T + p["conv2.bias"], 0)
    windows = y2.reshape(-1, 4, 2, 4, 2, 16)
    pooled = windows.max(axis=(2, 4))
    logits = pooled.reshape(len(x), -1) @ matrix(p["dense.weights"]).T + p["dense.bias"]
    return columns1, y1, columns2, y2, windows, pooled, logits


def gradients(p: dict[str, Array], x: Array, labels: NDArray[np.int64]) -> dict[str, Array]:
    """The gradient of the mean cross-entropy."""
    columns1, y1, columns2, y2, windows, pooled, logits = forward(p, x)
    d = np.exp(logits - logits.max(axis=1, keepdims=True))
    d /= d.sum(axis=1, keepdims=True)
    d[np.arange(len(x)), labels] -= 1
    d /= len(x)

    g = {"dense.weights": d.T @ pooled.reshape(len(x), -1), "dense.bias": d.sum(axis=0)}
    d_pooled = (d @ matrix(p["dense.weights"])).reshape(pooled.shape)
    winners = windows == pooled[:, :, None, :, None]  # equal maxima all get it: harmless
    d2 = (winners * d_pooled[:, :, None, :, None]).reshape(y2.shape) * (y2 > 0)
    flat2 = d2.reshape(-1, 16)
    g |= {"conv2.weights": flat2.T @ columns2.reshape(len(flat2), -1), "conv2.bias": flat2.sum(axis=0)}
    d1 = scatter(d2 @ matrix(p["conv2.weights"]), 8) * (y1 > 0)
    flat1 = d1.reshape(-1, 8)
    g |= {"conv1.weights": flat1.T @ columns1.reshape(len(flat1), -1), "conv1.bias": flat1.sum(axis=0)}
    return {name: value.reshape(p[name].shape) for name, value in g.items()}


def accuracy(p: dict[str, Array], x: Array, labels: NDArray[np.int64]) -> float:
    return float((forward(p, x)[-1].argmax(axis=1) == labels).mean())


def train(x: Array, labels: NDArray[np.int64]) -> dict[str, Array]:
    """Adam on random batches, the rate falling to 0 linearly."""
    rng = np.random.default_rng(SEED)
    p = initial_parameters(rng)
    mean = {name: np.zeros_like(value) for name, value in p.items()}
    square = {name: np.zeros_like(value) for name, value in p.items()}
    steps = EPOCHS * (len(x) // BATCH)
    step = 0
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            step += 1
            rate = RATE * (1 - step / steps)
            for name, slope in gradients(p, x[batch], labels[batch]).items():
                mean[name] += 0.1 * (slope - mean[name])
                square[name] += 0.01 * (slope**2 - square[name])
                unbiased = mean[name] / (1 - 0.9**step)
                p[name] -= rate * unbiased / (np.sqrt(square[name] / (1 - 0.99**step)) + 1e-8)
                p[name] -= rate * DECAY * p[name]
        if epoch % 10 == 0:
            print(f"epoch {epoch}: accuracy on the training scans {accuracy(p, x, labels):.1%}")
    return p


def quantize(p: dict[str, Array], calibration: Array) -> tuple[Graph, float, int]:
    """The int8 graph, its scales from `calibration`, and the input's scale and zero point."""
    quant = quant_of_range(0, 1)
    samples = quantize_scans(calibration, quant.scale, quant.zero_point)
    net = GraphBuilder({INPUT: (samples, quant)})
    x = INPUT
    for name in ("conv1", "conv2"):
        weights, scales = quantize_weights(p[f"{name}.weights"], 0)
        x = net.conv(name, x, weights, scales, p[f"{name}.bias"], activation=Activation.RELU)
    x = net.max_pool("pool", x, 2)
    weights, scales = quantize_weights(matrix(p["dense.weights"]), None)
    x = net.dense("dense", x, weights, float(scales[0]), p["dense.bias"])
    return net.graph(x), quant.scale, quant.zero_point


def main() -> None:
    scans, labels = load_scans()
    training, held_out = split(len(scans))
    parameters = train(scans[training], labels[training])
    float_accuracy = accuracy(parameters, scans[held_out], labels[held_out])
    graph, scale, zero_point = quantize(parameters, scans[training[:CALIBRATION_SCANS]])
    inputs = {INPUT: quantize_scans(scans[held_out], scale, zero_point)}
    logits = run_reference_batch(graph, inputs)[graph.outputs[0]].reshape(len(held_out), 10)
    print(f"held-out scans, float32: {float_accuracy:.2%}")
    print(f"held-out scans, int8:    {(logits.argmax(axis=1) == labels[held_out]).mean():.2%}")
    save_graph(
        NETWORK_FILE,
        graph,
        {
            "float_accuracy": np.float64(float_accuracy),
            "input_scale": np.float64(scale),
            "input_zero_point": np.int64(zero_point),
        },
    )
    print(f"wrote {NETWORK_FILE.name}, {NETWORK_FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
