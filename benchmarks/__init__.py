"""Side-by-side measurements. `python -m benchmarks` runs the short ones, `python -m benchmarks NAME` one of them."""
