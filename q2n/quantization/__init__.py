"""Number formats, solvers and transforms that baselines are composed of."""
