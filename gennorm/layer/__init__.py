"""The layer: settings, parameters and held moments, and the calls that check arrays and run the engine."""

from gennorm.layer.derivatives import Gradients, MomentGradients, MomentsPullback, Pullback
from gennorm.layer.layer import NormalizationLayer, load
from gennorm.layer.texts import Information

__all__ = ["Gradients", "Information", "MomentGradients", "MomentsPullback", "NormalizationLayer", "Pullback", "load"]
