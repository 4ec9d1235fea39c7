"""Proper scores and calibration of probabilistic predictions, as functions and, in capitals, as Keras metrics."""

from kriterion.metrics.calibration import (
    adaptive_calibration_error,
    expected_calibration_error,
    gaussian_pit,
    interval_coverage,
    interval_width,
    sample_pit,
)
from kriterion.metrics.keras_metrics import (
    Brier,
    ExpectedCalibrationError,
    GaussianCRPS,
    GaussianNLL,
    IntervalCoverage,
    IntervalWidth,
)
from kriterion.metrics.scores import brier, gaussian_crps, gaussian_nll, sample_crps, sample_nll

__all__ = [
    "Brier",
    "ExpectedCalibrationError",
    "GaussianCRPS",
    "GaussianNLL",
    "IntervalCoverage",
    "IntervalWidth",
    "adaptive_calibration_error",
    "brier",
    "expected_calibration_error",
    "gaussian_crps",
    "gaussian_nll",
    "gaussian_pit",
    "interval_coverage",
    "interval_width",
    "sample_crps",
    "sample_nll",
    "sample_pit",
]
