"""Proper scores and calibration errors of probabilistic predictions, as functions and as Keras metrics."""

from minimand.metrics._calibration import (
    adaptive_calibration_error,
    expected_calibration_error,
    gaussian_pit,
    interval_coverage,
    interval_width,
    sample_pit,
)
from minimand.metrics._keras_metrics import (
    Brier,
    ExpectedCalibrationError,
    GaussianCRPS,
    GaussianNLL,
    IntervalCoverage,
    IntervalWidth,
)
from minimand.metrics._scores import brier, gaussian_crps, gaussian_nll, sample_crps, sample_nll

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
