#!/usr/bin/env bash
# From nothing to a policy that touches the block it is told to, in under 30 minutes on two CPU cores.
#   bash docs/reach.sh [FOLDER]
set -euo pipefail
out=${1:-outputs/reach}

pi0 record --task Reach --episodes 700 --seed 1 --out "$out/demos" &
pi0 record --task scenes --episodes 100 --seed 2 --out "$out/scenes"
wait %1

pi0 train --dataset "$out/demos" --grounding "$out/scenes" --out "$out/policy" \
    --grounding-steps 600 --grounding-batch-size 48 --steps 1100 --batch-size 64 --validate-every 250

pi0 eval --policy "$out/policy" --task Reach --episodes 100 --out "$out/eval"
