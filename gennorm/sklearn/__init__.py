"""The layer as an estimator of scikit-learn: statistics of any levels, where `StandardScaler` has those of columns.

>>> from sklearn.pipeline import make_pipeline
>>> from sklearn.linear_model import LinearRegression
>>> import gennorm.sklearn
>>> model = make_pipeline(gennorm.sklearn.LevelScaler(), LinearRegression())
>>> model.fit([[0.0, 5.0], [2.0, 7.0], [4.0, 5.0]], [0.0, 3.0, 4.0]).predict([[2.0, 7.0]]).round(6)
array([3.])

The modules, from the inside out: `sparse` measures and scales sparse matrices; `scaler` has the estimator.
"""

from gennorm.sklearn.scaler import LevelScaler

__all__ = ["LevelScaler"]
