"""What can be tracked; importable without torch, so that the command line can check it at once."""

# Measures that rest on eigenpairs, trace and Frobenius norm, whose products a track shares and counts.
TRACKED = ("lambda-max", "lambda-min", "spectral-norm", "trace", "frob", "effective-rank")
DEFAULT = ("lambda-max", "trace", "frob")
RTOL = 0.05
