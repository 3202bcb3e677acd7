#!/usr/bin/env bash
# All that is wanted of a machine with a GPU, without a network:
#
#     OUT=results tests/benchmarks/on_a_gpu.sh [tests] [SHAPE ...]
#
# By default the GPU tests and the shapes GPT-2-large, Llama-8B and SmolLM2, one process each, in
# twenty minutes at most; name some for a shorter visit. What is found lies in $OUT at any time.
# PYTHON is the interpreter with depthsys; real weights of SmolLM2 are used where DEPTHSYS_REAL
# has them; BUDGET_S is the time of a shape, PRECISION what it is measured in.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

OUT=${OUT:?must name a folder for the results}
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
BUDGET_S=${BUDGET_S:-220}
PRECISION=${PRECISION:-}
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)

if [ $# -eq 0 ]; then
    set -- tests GPT-2-large Llama-8B SmolLM2
fi

failed=0
for part in "$@"; do
    echo "== $part"
    if [ "$part" = tests ]; then
        DEPTHSYS_TEST_DEVICE=$DEVICE timeout 300 "$PYTHON" -m pytest -q -p no:cacheprovider \
            -m gpu tests/lm/test_gpu.py 2>&1 | tee "$OUT/tests.txt" || failed=1
    else
        # the budget ends works; the time limit is for what does not listen to it
        timeout $((BUDGET_S + 40)) "$PYTHON" -m tests.benchmarks.card_table "$part" \
            --device "$DEVICE" ${PRECISION:+--precision $PRECISION} \
            --budget-s "$BUDGET_S" --out "$OUT/$part.md" || failed=1
    fi
done
exit $failed
