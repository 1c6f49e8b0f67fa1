#!/usr/bin/env bash
# Everything that needs a GPU, in at most six minutes on one H100 or H200: tests, rates of scoring and of the fit, and a
# trial of selection and training. Needs torch, transformers, numpy, scipy, scikit-learn, pytest, safetensors, tokenizers.
#   tests/benchmarks/gpu_check.sh --out DIR                       on a GPU
#   tests/benchmarks/gpu_check.sh --out DIR --tiny --device cpu   anywhere: shows that it works
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
export PYTHONPATH="$root:$root/tests/benchmarks${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" tests/benchmarks/gpu_check.py "$@"
