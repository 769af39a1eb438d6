"""The layer: settings and parameters, and the calls that bring arrays to the engine and back."""

from gennorm.layer.derivatives import Gradients, Pullback
from gennorm.layer.layer import NormalizationLayer, load
from gennorm.layer.texts import Information

__all__ = ["Gradients", "Information", "NormalizationLayer", "Pullback", "load"]
