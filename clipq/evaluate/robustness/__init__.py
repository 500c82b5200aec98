"""Three axes of robustness, each with its own question: noise, covariate shift, spurious correlation."""
