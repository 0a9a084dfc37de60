"""Heads that are fitted to features."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.linear_model

from gptailor.models.approach import fit_frozen_head


@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 2, 3], [0, 2, 3], [1, 3]])
def test_where_a_head_begins_changes_how_long_it_takes_and_not_where_it_ends(
    classes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, 200)
    features = rng.normal(size=(200, 20)) * rng.uniform(0.1, 10, 20)
    features[np.arange(200), labels] += 2
    steps = []

    class Counted(sklearn.linear_model.LogisticRegression):  # type: ignore[misc]
        def fit(self, *arguments: object) -> Counted:
            super().fit(*arguments)
            steps.append(int(self.n_iter_[0]))
            return self

    monkeypatch.setattr(sklearn.linear_model, "LogisticRegression", Counted)
    alone = fit_frozen_head(features, labels, num_labels=4, strength=1.0)
    before = fit_frozen_head(features, labels, num_labels=4, strength=0.8)
    after = fit_frozen_head(features, labels, num_labels=4, strength=1.0, start=before)
    np.testing.assert_allclose(after, alone, rtol=0, atol=1e-3 * np.abs(alone).max())
    assert steps[2] < steps[0]
