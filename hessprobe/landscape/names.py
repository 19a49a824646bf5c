"""Choices and defaults of landscapes; importable without torch."""

DIRECTIONS = ("random", "eigen", "gradient", "pca", "line")
NORMALIZATIONS = ("filter", "layer", "none")
BIASES = ("zero", "weights", "normalize")
MAPS = ("loss", "error", "grad-norm", "lambda-max", "lambda-min")
STYLES = ("contour", "surface")

SIZE, SPAN, RHO = 51, 1.0, 0.05

TITLES = {
    "loss": "loss",
    "error": "error rate",
    "grad-norm": "gradient norm",
    "lambda-max": "largest Hessian eigenvalue",
    "lambda-min": "smallest Hessian eigenvalue",
}
